//! `anyport get`: what is declared, and who is connected.
//!
//! With `-o yaml` and `-o json`, what is declared is written as a manifest, with
//! one list of the kind asked for, that `apply` takes again.

use std::time::SystemTime;

use anyport_model::resource::Kind;
use anyport_proto::{
    convert::write_kind,
    v1::{self, resource::Kind as Wire},
};
use serde::Serialize;

use super::{Context, certificates, nodes};
use crate::{
    connection::Client,
    console::{Cell, Console, Format},
    failure::Failure,
    manifest::{Document, word, write_wire_duration},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to show
    #[arg(value_name = "KIND")]
    kind: Listed,
    /// Only the one of this name; a prefix is named by its CIDR
    name: Option<String>,
    /// How to write it
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        value_enum,
        default_value = "table"
    )]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Listed {
    /// What arrives where, and where it goes
    #[value(alias = "app")]
    Apps,
    /// Origins that can stand in for each other
    #[value(alias = "pool")]
    Pools,
    /// How origins are probed
    #[value(alias = "monitor")]
    Monitors,
    /// What the edges show to TLS clients
    #[value(alias = "certificate")]
    Certificates,
    /// Address space that the edges answer for
    #[value(alias = "prefix")]
    Prefixes,
    /// Connected edges
    #[value(alias = "edge")]
    Edges,
    /// Connected balancers
    #[value(alias = "balancer")]
    Balancers,
}

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let kind = match args.kind {
        Listed::Apps => Kind::App,
        Listed::Pools => Kind::Pool,
        Listed::Monitors => Kind::Monitor,
        Listed::Certificates => Kind::Certificate,
        Listed::Prefixes => Kind::Prefix,
        Listed::Edges => return connected(v1::NodeRole::Edge, args, context).await,
        Listed::Balancers => return connected(v1::NodeRole::Balancer, args, context).await,
    };
    let resources = match args.name {
        Some(name) => vec![one(&context, kind, name).await?],
        None => context.connection.list(Some(kind)).await?.resources,
    };
    let document = Document::new(&resources);
    match args.output {
        Format::Json => context.console.json(&document)?,
        Format::Yaml => context.console.yaml(&document)?,
        Format::Table => table(&mut context.console, kind, &resources)?,
    }
    Ok(())
}

async fn one(context: &Context, kind: Kind, name: String) -> Result<v1::Resource, Failure> {
    let what = format!("get {} {name:?}", kind.singular());
    let request = v1::GetRequest {
        resource: Some(v1::ResourceRef {
            kind: write_kind(kind).into(),
            name,
        }),
    };
    let call = async |mut client: Client, request| client.get(request).await;
    let response = context.connection.read(&what, request, call).await?;
    response.resource.ok_or_else(|| {
        Failure::refused(format_args!(
            "cannot {what}: the answer of the server is empty"
        ))
    })
}

/// Connected nodes, as JSON and YAML have them.
#[derive(Serialize)]
struct Connected<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    edges: Option<&'a [nodes::Node]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    balancers: Option<&'a [nodes::Node]>,
}

async fn connected(role: v1::NodeRole, args: Args, mut context: Context) -> Result<(), Failure> {
    let listed = context.connection.nodes(role).await?;
    let mut nodes = nodes::Node::of_role(&listed, role);
    if let Some(name) = &args.name {
        nodes.retain(|node| node.name == *name);
        if nodes.is_empty() {
            let noun = match role {
                v1::NodeRole::Balancer => "balancer",
                _ => "edge",
            };
            return Err(Failure::refused(format_args!(
                "there is no {noun} {name:?} connected"
            )));
        }
    }
    let (edges, balancers) = match role {
        v1::NodeRole::Balancer => (None, Some(&nodes[..])),
        _ => (Some(&nodes[..]), None),
    };
    let connected = Connected { edges, balancers };
    match args.output {
        Format::Json => context.console.json(&connected)?,
        Format::Yaml => context.console.yaml(&connected)?,
        Format::Table => {
            let now = SystemTime::now();
            let rows = nodes.iter().map(|node| node.row(now)).collect();
            context.console.table("", &nodes::HEADER, rows)?;
        }
    }
    Ok(())
}

fn table(console: &mut Console, kind: Kind, resources: &[v1::Resource]) -> Result<(), Failure> {
    let header: &[&str] = match kind {
        Kind::Prefix => &["CIDR"],
        Kind::Monitor => &["NAME", "TYPE", "INTERVAL", "TIMEOUT", "UP", "DOWN", "PORT"],
        Kind::Pool => &["NAME", "POLICY", "MONITOR", "FALLBACK", "ORIGINS"],
        Kind::Certificate => &["NAME", "FOR", "EXPIRES"],
        Kind::App => &[
            "NAME",
            "PROTOCOL",
            "EDGE IPS",
            "ORIGIN",
            "ORIGIN PORT",
            "TLS",
        ],
    };
    let now = SystemTime::now();
    let rows = resources.iter().filter_map(|r| r.kind.as_ref());
    let rows = rows.map(|kind| row(kind, now));
    Ok(console.table("", header, rows.collect())?)
}

fn row(kind: &Wire, now: SystemTime) -> Vec<Cell> {
    match kind {
        Wire::Prefix(prefix) => vec![Cell::from(&prefix.cidr)],
        Wire::Monitor(monitor) => {
            let port = match monitor.port {
                0 => "origin's".to_owned(),
                port => port.to_string(),
            };
            vec![
                Cell::from(&monitor.name),
                Cell::from(word::<v1::MonitorType>(monitor.r#type).unwrap_or_default()),
                Cell::from(time(monitor.interval)),
                Cell::from(time(monitor.timeout)),
                Cell::from(monitor.consecutive_up),
                Cell::from(monitor.consecutive_down),
                Cell::from(port),
            ]
        }
        Wire::Pool(pool) => {
            let origin = |origin: &v1::Origin| match origin.enabled {
                Some(false) => format!("{} {} (disabled)", origin.name, origin.address),
                _ => format!("{} {}", origin.name, origin.address),
            };
            vec![
                Cell::from(&pool.name),
                Cell::from(word::<v1::Policy>(pool.policy).unwrap_or_default()),
                Cell::from(or_dash(&pool.monitor)),
                Cell::from(or_dash(&pool.fallback_pool)),
                Cell::from(join(pool.origins.iter().map(origin))),
            ]
        }
        Wire::Certificate(certificate) => {
            let (names, expiry) = certificates::shown(certificate, now);
            vec![
                Cell::from(&certificate.name),
                Cell::from(join(names.into_iter())),
                expiry,
            ]
        }
        Wire::App(app) => {
            let origin = match &app.origin_dns {
                Some(dns) => format!("dns {}", dns.name),
                None if app.origin_pool.is_empty() => join(app.origin_direct.iter().cloned()),
                None => format!("pool {}", app.origin_pool),
            };
            let name = match app.disable {
                Some(_) => format!("{} (disabled)", app.name),
                None => app.name.clone(),
            };
            vec![
                Cell::from(name),
                Cell::from(&app.protocol),
                Cell::from(join(app.edge_ips.iter().cloned())),
                Cell::from(origin),
                Cell::from(or_dash(&app.origin_port)),
                Cell::from(tls(app)),
            ]
        }
    }
}

/// `off`, `off for mail.example.com`, `strict with mail`.
fn tls(app: &v1::App) -> String {
    let mut text = word::<v1::TlsMode>(app.tls).unwrap_or_else(|| "off".to_owned());
    if !app.sni.is_empty() {
        text += &format!(" for {}", join(app.sni.iter().cloned()));
    }
    if !app.certificate.is_empty() {
        text += &format!(" with {}", app.certificate);
    }
    text
}

fn time(duration: Option<prost_types::Duration>) -> String {
    duration.map(write_wire_duration).unwrap_or_default()
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// A table cell is no place for a list of hundreds.
const SHOWN: usize = 4;

fn join(items: impl ExactSizeIterator<Item = String>) -> String {
    let count = items.len();
    let mut text = items.take(SHOWN).collect::<Vec<_>>().join(", ");
    if count > SHOWN {
        text += &format!(" and {} more", count - SHOWN);
    }
    text
}
