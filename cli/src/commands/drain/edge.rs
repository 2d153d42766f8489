//! An edge, which is asked itself.

use std::time::Duration;

use anyport_proto::{convert::write_duration, v1};
use tokio::time::Instant;
use tonic::Code;

use crate::{
    commands::{
        Context,
        edges::{Edge, EdgeArgs},
        wait::WaitArgs,
    },
    connection::{limited, timed},
    failure::{Exit, Failure},
    manifest::parse_duration,
};

#[derive(Debug, clap::Args)]
#[command(mut_arg("wait", |wait| {
    wait.help("Return when nothing is open any more; how long to wait at most")
        .default_missing_value("5m")
}))]
pub(super) struct DrainArgs {
    #[command(flatten)]
    edge: Named,
    /// How long connections are still taken, for whoever balances over the edges
    /// to notice that this one is not ready
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    grace: Duration,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct UndrainArgs {
    #[command(flatten)]
    edge: Named,
}

#[derive(Debug, clap::Args)]
struct Named {
    /// The edge's name, or the URL of its gRPC service, which also works while the
    /// config service is gone
    #[arg(value_name = "NAME|URL")]
    name: String,
}

/// Between two looks at an edge that drains.
const LOOK: Duration = Duration::from_millis(500);

pub(super) async fn drain(args: DrainArgs, mut context: Context) -> Result<(), Failure> {
    let edge = args.edge.find(&context).await?;
    let what = format!("drain edge {}", edge.name);
    let request = v1::DrainRequest {
        undo: false,
        grace: Some(write_duration(args.grace)),
    };
    let answer = limited(edge.client().drain(timed(request))).await;
    let answer = answer.map_err(|status| edge.failure(&what, &status))?;
    context.console.line(words(&edge.name, &answer))?;
    match args.wait.limit {
        Some(limit) if answer.state() != v1::DrainState::Drained => {
            until_drained(&edge, limit).await?;
            let line = format!("edge {} is drained", edge.name);
            Ok(context.console.line(line)?)
        }
        _ => Ok(()),
    }
}

pub(super) async fn undrain(args: UndrainArgs, mut context: Context) -> Result<(), Failure> {
    let edge = args.edge.find(&context).await?;
    let what = format!("undrain edge {}", edge.name);
    let request = v1::DrainRequest {
        undo: true,
        grace: None,
    };
    let answer = limited(edge.client().drain(timed(request))).await;
    answer.map_err(|status| edge.failure(&what, &status))?;
    let line = format!("edge {} is in service", edge.name);
    Ok(context.console.line(line)?)
}

impl Named {
    async fn find(self, context: &Context) -> Result<Edge, Failure> {
        EdgeArgs::only(self.name).find_one(context).await
    }
}

fn words(name: &str, answer: &v1::DrainResponse) -> String {
    if answer.state() == v1::DrainState::Drained {
        return format!("edge {name} is drained");
    }
    let open = answer.open_connections;
    match answer.grace_left {
        Some(left) if left.seconds > 0 || left.nanos > 0 => format!(
            "edge {name} drains: new connections are refused after {}, {open} are open",
            rounded(left)
        ),
        _ => format!("edge {name} drains: new connections are refused, {open} are open"),
    }
}

/// To whole seconds, up: it has just begun.
fn rounded(left: prost_types::Duration) -> String {
    format!("{}s", left.seconds + i64::from(left.nanos > 0))
}

async fn until_drained(edge: &Edge, limit: Duration) -> Result<(), Failure> {
    let what = format!("wait for edge {}", edge.name);
    // A limit that no clock can hold is none that ends.
    let deadline = Instant::now().checked_add(limit);
    let is_over = || deadline.is_some_and(|deadline| Instant::now() + LOOK > deadline);
    loop {
        let request = timed(v1::GetStatusRequest {});
        let status = match limited(edge.client().get_status(request)).await {
            Ok(status) => status,
            // Its successor may be about to answer.
            Err(status) if status.code() == Code::Unavailable && !is_over() => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(status) => return Err(edge.failure(&what, &status)),
        };
        match status.drain() {
            v1::DrainState::Drained => return Ok(()),
            v1::DrainState::Draining => {}
            v1::DrainState::Serving | v1::DrainState::Unspecified => {
                let name = &edge.name;
                let refused = format!("edge {name} was taken back into service meanwhile");
                return Err(Failure::refused(refused));
            }
        }
        if is_over() {
            let (name, open) = (&edge.name, status.open_connections);
            return Err(Failure::new(
                Exit::WaitRanOut,
                format_args!("edge {name} still drains: {open} connections are open"),
            )
            .remedy("`anyport connections` shows them; the apps' timeouts.drain say how long"));
        }
        tokio::time::sleep(LOOK).await;
    }
}
