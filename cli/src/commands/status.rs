//! `anyport status`: who is connected, what each has applied, and the health of
//! every pool.

use std::{collections::BTreeSet, time::SystemTime};

use anyport_proto::v1::{self, resource::Kind as Wire};
use serde::Serialize;

use super::{
    Context,
    nodes::{self, Gone, Node, hex, short_hash},
    pools::{self, PoolHealth},
    trial::TrialStatus,
};
use crate::{
    console::{Cell, Console, Format, Mood},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub struct Args {
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

/// The whole of it, as JSON and YAML have it.
#[derive(Debug, Serialize)]
struct Status {
    /// The config service that answered.
    server: String,
    /// The latest revision.
    revision: u64,
    /// Of its state, in hexadecimal digits.
    #[serde(skip_serializing_if = "String::is_empty")]
    state_hash: String,
    /// Where the store lost what it held.
    #[serde(skip_serializing_if = "Option::is_none")]
    store_rewind: Option<Rewind>,
    /// Set while only some edges have the latest revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    trial: Option<TrialStatus>,
    /// Replicas of the config service that edges and balancers are connected to.
    replicas: Vec<String>,
    edges: Vec<Node>,
    balancers: Vec<Node>,
    /// Connected within the last day, and not any more.
    gone_edges: Vec<Gone>,
    gone_balancers: Vec<Gone>,
    pools: Vec<PoolHealth>,
    disabled_apps: Vec<String>,
}

/// The store went back, as if restored from an older copy.
#[derive(Debug, Serialize)]
struct Rewind {
    lost_revision: u64,
    latest_revision: u64,
    /// RFC 3339.
    noticed_at: Option<String>,
}

impl From<&v1::StoreRewind> for Rewind {
    fn from(wire: &v1::StoreRewind) -> Self {
        Self {
            lost_revision: wire.lost_revision,
            latest_revision: wire.latest_revision,
            noticed_at: wire.noticed_at.map(|time| time.to_string()),
        }
    }
}

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let connection = &context.connection;
    let (nodes, listed) = tokio::try_join!(
        connection.nodes(v1::NodeRole::Unspecified),
        connection.list(None)
    )?;
    let status = Status::new(connection.url().to_string(), &nodes, &listed.resources);
    match args.output {
        Format::Json => context.console.json(&status)?,
        Format::Yaml => context.console.yaml(&status)?,
        Format::Table => status.print(&mut context.console, SystemTime::now())?,
    }
    Ok(())
}

impl Status {
    fn new(server: String, nodes: &v1::ListNodesResponse, declared: &[v1::Resource]) -> Self {
        let replicas: BTreeSet<String> = nodes
            .nodes
            .iter()
            .map(|node| node.replica.clone())
            .filter(|replica| !replica.is_empty())
            .collect();
        let mut reported = pools::by_name(&nodes.nodes);
        let pools = declared.iter().filter_map(|resource| match &resource.kind {
            Some(Wire::Pool(pool)) => Some(match reported.remove(&pool.name) {
                Some(health) => health,
                None => PoolHealth::unheard(pool),
            }),
            _ => None,
        });
        Self {
            server,
            revision: nodes.revision,
            state_hash: hex(&nodes.state_hash),
            store_rewind: nodes.store_rewind.as_ref().map(Rewind::from),
            trial: nodes.rollout.clone().map(TrialStatus::from),
            replicas: replicas.into_iter().collect(),
            edges: Node::of_role(nodes, v1::NodeRole::Edge),
            balancers: Node::of_role(nodes, v1::NodeRole::Balancer),
            gone_edges: Gone::of_role(nodes, v1::NodeRole::Edge),
            gone_balancers: Gone::of_role(nodes, v1::NodeRole::Balancer),
            pools: pools.collect(),
            disabled_apps: declared.iter().filter_map(disabled).collect(),
        }
    }

    fn print(&self, console: &mut Console, now: SystemTime) -> Result<(), Failure> {
        let hash = match &*self.state_hash {
            "" => String::new(),
            hash => format!(" ({})", short_hash(hash)),
        };
        console.line(format_args!(
            "config service {}, revision {}{hash}",
            self.server, self.revision
        ))?;
        if let Some(rewind) = &self.store_rewind {
            let Rewind {
                lost_revision,
                latest_revision,
                noticed_at,
            } = rewind;
            let when = noticed_at.as_deref().unwrap_or("an unknown time");
            let line = format_args!(
                "the store went back: revision {lost_revision} is lost, the latest was then \
                 {latest_revision};"
            );
            let line = console.paint(line, Mood::Bad);
            console.line(line)?;
            console.line(format_args!("noticed at {when}"))?;
        }
        if let Some(trial) = &self.trial {
            let line = trial.line(self.revision, now);
            let line = console.paint(line, Mood::Notable);
            console.line(line)?;
        }
        if self.replicas.len() > 1 {
            console.line(format_args!(
                "replicas in use: {}",
                self.replicas.join(", ")
            ))?;
        }
        print_nodes(console, "edge", &self.edges, &self.gone_edges, now)?;
        print_nodes(
            console,
            "balancer",
            &self.balancers,
            &self.gone_balancers,
            now,
        )?;
        if !self.disabled_apps.is_empty() {
            console.line("")?;
            let apps = self.disabled_apps.join(", ");
            let line = console.paint(format_args!("disabled apps: {apps}"), Mood::Notable);
            console.line(line)?;
        }
        for pool in &self.pools {
            console.line("")?;
            let words = console.paint(pool.words(), pool.mood());
            console.line(format_args!("pool {}: {words}", pool.name))?;
            let rows = pool.origins.iter().map(|origin| {
                vec![
                    Cell::from(&origin.name),
                    Cell::from(&origin.address),
                    Cell::new(origin.health, origin.mood()),
                    Cell::from(origin.weight),
                    Cell::from(origin.share_words()),
                    origin.why(now),
                ]
            });
            console.table("  ", &ORIGINS, rows.collect())?;
            for disagreement in &pool.disagreements {
                let line = console.paint(disagreement.line(), Mood::Notable);
                console.line(format_args!("  {line}"))?;
            }
        }
        Ok(())
    }
}

/// The name of an app that takes no connections.
fn disabled(resource: &v1::Resource) -> Option<String> {
    match &resource.kind {
        Some(Wire::App(app)) if app.disable.is_some() => Some(app.name.clone()),
        _ => None,
    }
}

const ORIGINS: [&str; 6] = ["ORIGIN", "ADDRESS", "HEALTH", "WEIGHT", "SHARE", "WHY"];

fn print_nodes(
    console: &mut Console,
    noun: &str,
    nodes: &[Node],
    gone: &[Gone],
    now: SystemTime,
) -> Result<(), Failure> {
    console.line("")?;
    if nodes.is_empty() {
        let line = console.paint(format_args!("no {noun} is connected"), Mood::Notable);
        console.line(line)?;
    } else {
        console.line(format_args!("{noun}s"))?;
    }
    let gone = gone.iter().map(|gone| gone.row(now));
    let rows: Vec<_> = nodes.iter().map(|node| node.row(now)).chain(gone).collect();
    if !rows.is_empty() {
        console.table("  ", &nodes::HEADER, rows)?;
    }
    for node in nodes {
        for rejection in &node.rejections {
            let word = console.paint("rejected by", Mood::Bad);
            console.line(format_args!("  {word} {}: {}", node.name, rejection.line()))?;
        }
    }
    Ok(())
}
