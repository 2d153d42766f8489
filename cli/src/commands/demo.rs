//! `anyport demo`: the main job, end to end, on one machine.
//!
//! A client, an edge and three origin servers, each in a network namespace made
//! for the purpose, with the real services between them. What is shown is
//! measured, and what it should have been is judged: the demo is also a test of
//! the machine it runs on.
//!
//! Nothing of it outlives the command: the namespaces have no names, the children
//! die with their parent, and what they write is in one temporary directory.

mod admin;
mod arrivals;
mod closed;
mod fleet;
mod load;
mod manifest;
mod outage;
mod process;
mod resident;
mod role;
mod score;
mod screen;
mod sockets;
mod split;
mod talk;
mod targets;

use std::{io, time::Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

pub use self::role::Role;
use self::{fleet::Fleet, score::Score, screen::Screen, targets::Targets};
use crate::{console::Console, failure::Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Dial the same addresses and ports as the run that printed this number
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

/// What every part of the demo works with.
struct Stage {
    screen: Screen,
    score: Score,
    targets: Targets,
}

pub async fn run(args: Args, console: Console) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut signals = Signals::catch()?;
    let seed = args
        .seed
        .unwrap_or_else(|| rand::random_range(1..1_000_000));
    let mut stage = Stage {
        screen: Screen::new(console),
        score: Score::default(),
        targets: Targets::new(seed),
    };
    anyport_node::boot::raise_nofile();
    stage.screen.line(
        "Anyport, end to end, on this machine, in network namespaces of its own:\n\
         nothing outside of them is touched.\n",
    )?;
    stage.screen.begin("making a network of namespaces");
    let mut fleet = Fleet::new().await?;
    let played = tokio::select! {
        played = play(&mut stage, &mut fleet, seed) => played,
        name = signals.next() => Err(Failure::refused(format_args!("stopped by {name}"))),
    };
    if played.is_err() {
        stage.screen.clear();
        // Why it could not go on says more than how the rest of it ended.
        let _ = fleet.stop().await;
        return played;
    }
    stage.screen.begin("ending everything");
    fleet.stop().await?;
    stage.screen.end(true, "everything was ended and removed")?;
    stage.screen.line("")?;
    stage.score.show(&mut stage.screen)?;
    stage.score.verdict()?;
    let took = screen::time(begun.elapsed());
    stage
        .screen
        .line(format_args!("\nAll as expected, in {took}."))?;
    Ok(())
}

async fn play(stage: &mut Stage, fleet: &mut Fleet, seed: u64) -> Result<(), Failure> {
    stage.screen.end(
        true,
        format_args!("a network of five namespaces (seed {seed})"),
    )?;
    show_network(stage, fleet)?;

    stage
        .screen
        .begin("starting the config service, the balancer and the edge agent");
    for index in 0..manifest::ORIGINS.len() {
        fleet.start_origin(index)?;
    }
    fleet.start_services().await?;
    stage.screen.end(
        true,
        "config service, balancer, edge agent and three origins run",
    )?;

    let manifest = manifest::text(fleet.origin_addresses(), None);
    stage.screen.begin("applying the manifest");
    fleet.apply(&manifest).await?;
    stage.screen.end(
        true,
        "anyport apply -f demo.yaml --wait: the edge has applied",
    )?;
    for line in manifest.lines() {
        stage.screen.note(line)?;
    }

    stage.screen.begin("waiting for the origins to be probed");
    fleet
        .until_health("all origins are up", outage::all_up)
        .await?;
    stage.screen.end(
        true,
        "the balancer has probed all origins, and holds them to be up",
    )?;

    let held = arrivals::run(stage, fleet).await?;
    fleet.check()?;
    let held = outage::run(stage, fleet, held).await?;
    split::run(stage, fleet, held).await?;
    closed::run(stage, fleet).await?;
    fleet.check()
}

fn show_network(stage: &mut Stage, fleet: &Fleet) -> Result<(), Failure> {
    let client = anyport_netns::topology::CLIENT_V4;
    let left = [
        "client ─────────── edge ═══╦══".to_owned(),
        format!("{client:<27}╠══"),
        format!("{:<27}╚══", "namespaces of their own"),
    ];
    let origins = manifest::ORIGINS.iter().zip(fleet.origin_addresses());
    for (left, (name, address)) in left.iter().zip(origins) {
        let port = manifest::ORIGIN_PORT;
        stage
            .screen
            .note(format_args!("{left} origin {name}  {address}:{port}"))?;
    }
    Ok(())
}

/// What asks the demo to end.
struct Signals([(&'static str, Signal); 3]);

impl Signals {
    fn catch() -> Result<Self, Failure> {
        let caught = || -> io::Result<_> {
            Ok(Self([
                ("Ctrl-C", signal(SignalKind::interrupt())?),
                ("SIGTERM", signal(SignalKind::terminate())?),
                ("SIGHUP", signal(SignalKind::hangup())?),
            ]))
        };
        caught().map_err(|error| Failure::refused(format_args!("cannot handle signals: {error}")))
    }

    async fn next(&mut self) -> &'static str {
        let [(interrupt, a), (terminate, b), (hangup, c)] = &mut self.0;
        tokio::select! {
            _ = a.recv() => interrupt,
            _ = b.recv() => terminate,
            _ = c.recv() => hangup,
        }
    }
}
