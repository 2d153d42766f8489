//! `anyport connections`: what is open now, on all edges.

use std::time::SystemTime;

use anyport_proto::{event_log::ConnectionLine, v1};

use super::{
    Context,
    edges::{self, Edge, Found, warn_of_missing},
    events::{LineFormat, address, size},
};
use crate::{
    ages::age,
    connection::{limited, timed},
    console::{Cell, Mood},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only of this app
    #[arg(long, value_name = "NAME", default_value = "")]
    app: String,
    #[command(flatten)]
    edges: edges::EdgeArgs,
    /// How to write it
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        value_enum,
        default_value = "table"
    )]
    output: LineFormat,
}

const WHAT: &str = "list connections";
const PAGE: u32 = 1000;
const HEADER: [&str; 10] = [
    "EDGE", "APP", "PROTOCOL", "CLIENT", "TO", "ORIGIN", "ADDRESS", "AGE", "IN", "OUT",
];

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let Found { edges, mut failed } = args.edges.find(&context).await?;
    let mut listed = Vec::new();
    for edge in &edges {
        // What the others have is shown all the same.
        match list(edge, &args.app, &mut listed).await {
            Ok(()) => {}
            Err(failure) => failed = Some(failure),
        }
    }
    match args.output {
        LineFormat::Json => {
            for connection in &listed {
                context
                    .console
                    .json_line(&ConnectionLine::new(connection))?;
            }
        }
        LineFormat::Table => {
            let now = SystemTime::now();
            let rows = listed.iter().map(|connection| row(connection, now));
            context.console.table("", &HEADER, rows.collect())?;
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn list(edge: &Edge, app: &str, to: &mut Vec<v1::Connection>) -> Result<(), Failure> {
    let mut page_token = String::new();
    loop {
        let request = timed(v1::ListConnectionsRequest {
            application: app.to_owned(),
            page_size: PAGE,
            page_token,
        });
        let mut client = edge.client();
        let page = limited(client.list_connections(request)).await;
        let page = page.map_err(|status| edge.failure(WHAT, &status))?;
        to.extend(page.connections);
        for agent in &page.missing {
            warn_of_missing(&edge.name, "connections", agent);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

fn row(connection: &v1::Connection, now: SystemTime) -> Vec<Cell> {
    let origin = match connection.connect_timestamp {
        Some(_) => Cell::from(origin(connection)),
        None => Cell::new("connecting", Mood::Notable),
    };
    vec![
        Cell::from(&connection.edge),
        Cell::from(&connection.application),
        Cell::from(&connection.client_proto),
        Cell::from(address(&connection.client_ip, connection.client_port)),
        Cell::from(address(&connection.edge_ip, connection.edge_port)),
        origin,
        Cell::from(address(&connection.origin_ip, connection.origin_port)),
        Cell::from(age(now, connection.accept_timestamp)),
        Cell::from(size(connection.client_bytes)),
        Cell::from(size(connection.origin_bytes)),
    ]
}

/// `game/a`; of an app's own origins, whose names are their addresses, nothing.
pub(super) fn origin(connection: &v1::Connection) -> String {
    match connection.pool.as_str() {
        "" => "-".to_owned(),
        pool => format!("{pool}/{}", connection.origin),
    }
}
