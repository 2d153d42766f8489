//! What the kernel does by itself: refuse what nobody claims, without a word to
//! the agent; track no connection; need no listener per port.

use std::{io::ErrorKind, net::SocketAddr};

use super::{
    Stage, admin,
    fleet::{Fleet, WORKERS},
    load::{self, Attempt},
    manifest::{self, OPEN_PORT},
    talk::Problem,
};
use crate::failure::Failure;

const REFUSALS: usize = 200;

pub async fn run(stage: &mut Stage, fleet: &Fleet) -> Result<(), Failure> {
    refusals(stage, fleet).await?;
    stage.screen.begin("looking at the edge's kernel");
    let tracked = fleet.edge_conntrack()?;
    let untracked = stage.score.expect(
        "connections in the kernel's conntrack",
        0,
        tracked.map_or("not loaded".to_owned(), |count| count.to_string()),
        tracked.unwrap_or(0) == 0,
    );
    let listeners = fleet.steered_listeners().await?;
    let of_family = |v6| listeners.iter().filter(|l| l.is_ipv6() == v6).count();
    let counts = (of_family(false), of_family(true));
    let few = stage.score.expect(
        "listeners for all ports, IPv4 + IPv6",
        format_args!("{WORKERS} + {WORKERS}"),
        format_args!("{} + {}", counts.0, counts.1),
        counts == (WORKERS, WORKERS),
    );
    stage.screen.end(
        untracked && few,
        format_args!(
            "all of it by {} listeners, for {WORKERS} workers; {} in conntrack",
            listeners.len(),
            tracked.unwrap_or(0)
        ),
    )?;
    Ok(())
}

/// In a prefix of which only one port is claimed, that port answers and others
/// are refused.
async fn refusals(stage: &mut Stage, fleet: &Fleet) -> Result<(), Failure> {
    let prefix = manifest::closed_prefix();
    stage.screen.begin("connecting to ports that no app claims");
    let mut closed = stage.targets.distinct(prefix, REFUSALS);
    for target in &mut closed {
        if target.port() == OPEN_PORT {
            target.set_port(OPEN_PORT + 1);
        }
    }
    let open = SocketAddr::new(stage.targets.within(prefix).ip(), OPEN_PORT);
    let answered = load::all(&fleet.client, vec![(open, stage.targets.number())]).await?;
    let answers = answered.iter().all(|attempt| attempt.outcome.is_ok());

    let before = accepted(fleet).await?;
    let calls = closed.iter().map(|target| (*target, 0)).collect();
    let attempts = load::all(&fleet.client, calls).await?;
    let refused = attempts
        .iter()
        .filter(|attempt| was_refused(attempt))
        .count();

    let woken = accepted(fleet).await? - before;

    let port = stage.score.expect(
        format_args!("port {OPEN_PORT}, which is claimed there"),
        "echoes",
        if answers { "echoes" } else { "no answer" },
        answers,
    );
    let rest = stage.score.expect(
        "unclaimed ports that refuse",
        REFUSALS,
        refused,
        refused == REFUSALS,
    );
    let asleep = stage
        .score
        .expect("of which the agent was told", 0, woken, woken == 0.0);
    stage.screen.end(
        port && rest && asleep,
        format_args!(
            "{prefix}, of which port {OPEN_PORT} is claimed: {refused} other ports refuse"
        ),
    )?;
    Ok(())
}

fn was_refused(attempt: &Attempt) -> bool {
    matches!(&attempt.outcome, Err(Problem::Connect(error)) if error.kind() == ErrorKind::ConnectionRefused)
}

/// Connections that the agent was handed, whether an app took them or not.
async fn accepted(fleet: &Fleet) -> Result<f64, Failure> {
    let metrics = fleet.edge_metrics().await?;
    let names = [
        "anyport_connections_opened_total",
        "anyport_connections_unclaimed_total",
    ];
    Ok(names.iter().map(|name| admin::sum(&metrics, name)).sum())
}
