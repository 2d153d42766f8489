//! Any port of any address: connections to random places, all open at once, held
//! against what the edge's kernel says of them.

use std::{collections::BTreeSet, net::SocketAddr};

use futures_util::stream::{self, StreamExt};

use super::{
    Stage,
    fleet::Fleet,
    load::AT_ONCE,
    manifest,
    screen::grouped,
    sockets::State,
    talk::{Conversation, Problem},
};
use crate::{
    console::{Cell, Mood},
    failure::Failure,
};

/// To each of the two prefixes.
const CONNECTIONS: usize = 512;
/// Of each prefix.
const SHOWN: usize = 2;

/// An open connection and the origin at its other end.
pub struct Held {
    pub talk: Conversation,
    pub origin: String,
}

/// Opens them and hands over those that answered.
pub async fn run(stage: &mut Stage, fleet: &Fleet) -> Result<Vec<Held>, Failure> {
    let count = CONNECTIONS * 2;
    stage
        .screen
        .begin("connecting to random addresses and ports");
    let mut calls = Vec::with_capacity(count);
    for prefix in manifest::open_prefixes() {
        for target in stage.targets.distinct(prefix, CONNECTIONS) {
            calls.push((target, stage.targets.number()));
        }
    }
    let opened = stream::iter(calls).map(|(target, number)| open(target, number));
    let opened = opened.buffered(AT_ONCE).collect::<Vec<_>>();
    let mut held = Vec::with_capacity(count);
    let mut first_problem = None;
    for (target, outcome) in fleet.client.run(opened).await? {
        match outcome {
            Ok(one) => held.push(one),
            Err(problem) => _ = first_problem.get_or_insert((target, problem)),
        }
    }
    let good = stage.score.expect(
        "random addresses and ports that echo",
        grouped(count),
        grouped(held.len()),
        held.len() == count,
    );
    let text = format!(
        "{} connections to random addresses and ports echo",
        grouped(held.len())
    );
    stage.screen.end(good, text)?;
    if let Some((target, problem)) = first_problem {
        stage.screen.note(format_args!("{target}: {problem}"))?;
        if held.is_empty() {
            return Err(Failure::refused("no connection came through the edge"));
        }
    }
    compare(stage, fleet, &held).await?;
    Ok(held)
}

async fn open(target: SocketAddr, number: u64) -> (SocketAddr, Result<Held, Problem>) {
    let held = async {
        let mut talk = Conversation::open(target).await?;
        let origin = talk.ask(number).await?.origin;
        Ok(Held { talk, origin })
    };
    (target, held.await)
}

/// The original destination and the client's own address must be what the edge's
/// sockets have as their two ends.
async fn compare(stage: &mut Stage, fleet: &Fleet, held: &[Held]) -> Result<(), Failure> {
    stage.screen.begin("reading the edge's sockets");
    let sockets = fleet.edge_sockets().await?;
    let established = sockets.iter().filter(|s| s.state == State::Established);
    let on_edge: BTreeSet<_> = established.map(|s| (s.local, s.remote)).collect();
    let is_there = |one: &&Held| on_edge.contains(&(one.talk.target, one.talk.local));
    let there: Vec<&Held> = held.iter().filter(is_there).collect();
    let good = stage.score.expect(
        "the edge sees both original ends of",
        grouped(held.len()),
        grouped(there.len()),
        there.len() == held.len(),
    );
    let text = format!(
        "of {} the edge sees the original destination and the client",
        grouped(there.len())
    );
    stage.screen.end(good, text)?;
    let sample = |v6| {
        there
            .iter()
            .filter(move |one| one.talk.target.is_ipv6() == v6)
            .take(SHOWN)
    };
    let row = |one: &&Held| {
        let faint = |text: &dyn std::fmt::Display| Cell::new(text, Mood::Faint);
        vec![
            faint(&one.talk.target),
            faint(&one.talk.local),
            faint(&one.origin),
        ]
    };
    let rows = sample(false).chain(sample(true)).map(row).collect();
    stage
        .screen
        .table(&["ORIGINAL DESTINATION", "CLIENT", "ORIGIN"], rows)?;
    Ok(())
}
