//! A server is killed under load: nobody who comes after notices.

use std::time::{Duration, Instant};

use anyport_proto::v1::{self, HealthState};
use futures_util::stream::{self, StreamExt};
use tokio::time::sleep;

use super::{
    Stage,
    arrivals::Held,
    fleet::Fleet,
    load::{self, AT_ONCE, Attempt, Load},
    manifest,
    screen::{grouped, time},
    targets::Targets,
};
use crate::failure::Failure;

/// Position of the one that is killed.
const VICTIM: usize = 1;
/// New connections that are over before the kill, and after the verdict.
const AROUND: usize = 500;
/// The balancer probes every half second and wants two failures, so a little more
/// than a second is right; the rest is for a machine that is short of processors.
const DOWN_WITHIN: Duration = Duration::from_secs(10);
/// An edge leaves an origin that refused alone for 15 s at most.
const USED_WITHIN: Duration = Duration::from_secs(20);
/// How it is tried whether it gets connections: so few at a time, with so much time
/// between, that the edge has source ports left for what comes after.
const A_FEW: usize = 16;
const BREATH: Duration = Duration::from_millis(50);

/// Kills an origin and starts it again; `held` loses what died with it.
pub async fn run(
    stage: &mut Stage,
    fleet: &mut Fleet,
    held: Vec<Held>,
) -> Result<Vec<Held>, Failure> {
    let name = manifest::ORIGINS[VICTIM];
    stage
        .screen
        .begin(format_args!("killing origin {name} under load"));
    let mut load = Load::start(&fleet.client, calls(Targets::new(stage.targets.number())));
    load.more(AROUND).await?;
    fleet.kill_origin(VICTIM).await?;
    let killed = Instant::now();
    let down = fleet.until_health("the balancer holds the killed origin to be down", |pool| {
        is(pool, name, HealthState::Down)
    });
    let pool = down.await?;
    let noticed = killed.elapsed();
    load.more(AROUND).await?;
    let attempts = load.stop().await?;
    judge(stage, &attempts, killed)?;

    let good = stage.score.expect(
        "until the balancer holds it to be down",
        format_args!("within {}", time(DOWN_WITHIN)),
        time(noticed),
        noticed <= DOWN_WITHIN,
    );
    let reason = pool.origins.iter().find(|origin| origin.origin == name);
    let reason = reason.map_or("", |origin| &origin.reason);
    stage.screen.result(
        good,
        format_args!("the balancer holds {name} to be down: {reason}"),
        noticed,
    )?;

    let held = survivors(stage, fleet, held, name).await?;

    stage
        .screen
        .begin(format_args!("starting origin {name} again"));
    fleet.start_origin(VICTIM)?;
    let up = fleet.until_health("the origin is up again", |pool| {
        is(pool, name, HealthState::Up)
    });
    up.await?;
    until_used(stage, fleet, name).await?;
    stage.screen.end(
        true,
        format_args!("origin {name} started again, is up and gets connections"),
    )?;
    Ok(held)
}

fn calls(mut targets: Targets) -> impl Iterator<Item = (std::net::SocketAddr, u64)> {
    let prefixes = manifest::open_prefixes().into_iter().cycle();
    prefixes.map(move |prefix| (targets.within(prefix), targets.number()))
}

/// Whether the balancer holds every origin to be up.
pub fn all_up(pool: &v1::PoolHealth) -> bool {
    manifest::ORIGINS
        .iter()
        .all(|name| is(pool, name, HealthState::Up))
}

/// The edge itself leaves an origin that refused alone for a while, even where the
/// balancer has it up again.
async fn until_used(stage: &mut Stage, fleet: &Fleet, name: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + USED_WITHIN;
    loop {
        let some = calls(Targets::new(stage.targets.number())).take(A_FEW);
        let attempts = load::all(&fleet.client, some.collect()).await?;
        if attempts
            .iter()
            .any(|attempt| attempt.outcome.as_ref().is_ok_and(|o| o == name))
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            let limit = time(USED_WITHIN);
            return Err(Failure::refused(format_args!(
                "origin {name} is up and got no connection within {limit}"
            )));
        }
        sleep(BREATH).await;
    }
}

fn is(pool: &v1::PoolHealth, name: &str, health: HealthState) -> bool {
    let mut origins = pool.origins.iter();
    origins.any(|origin| origin.origin == name && origin.health() == health)
}

/// Connections that were under way at the kill may have been with the victim; any
/// that began after it must not have noticed.
fn judge(stage: &mut Stage, attempts: &[Attempt], killed: Instant) -> Result<(), Failure> {
    let failed = |attempts: &[&Attempt]| attempts.iter().filter(|a| a.outcome.is_err()).count();
    let (after, before): (Vec<&Attempt>, Vec<_>) =
        attempts.iter().partition(|attempt| attempt.begun >= killed);
    let (lost, cut) = (failed(&after), failed(&before));
    let good = stage.score.expect(
        format_args!("failed, of {} opened after kill -9", grouped(after.len())),
        0,
        lost,
        lost == 0 && !after.is_empty(),
    );
    let name = manifest::ORIGINS[VICTIM];
    stage.screen.end(
        good,
        format_args!(
            "kill -9 of origin {name} under load: of {} opened after it, {lost} failed",
            grouped(after.len())
        ),
    )?;
    if cut > 0 {
        stage.screen.note(format_args!(
            "cut while under way at that very moment: {cut}"
        ))?;
    }
    let first = after
        .iter()
        .find_map(|a| Some((a.target, a.outcome.as_ref().err()?)));
    if let Some((target, problem)) = first {
        stage.screen.note(format_args!("{target}: {problem}"))?;
    }
    Ok(())
}

/// Asks all connections that were open before the kill.
async fn survivors(
    stage: &mut Stage,
    fleet: &Fleet,
    held: Vec<Held>,
    victim: &str,
) -> Result<Vec<Held>, Failure> {
    stage
        .screen
        .begin("asking the connections that were open all the while");
    let others = held.iter().filter(|one| one.origin != victim).count();
    let ended = held.len() - others;
    let held = still_alive(stage, fleet, held).await?;
    let good = stage.score.expect(
        "open connections to the others that live",
        grouped(others),
        grouped(held.len()),
        held.len() == others,
    );
    stage.screen.end(
        good,
        format_args!(
            "{} connections that were open to the others live, {} died with {victim}",
            grouped(held.len()),
            grouped(ended)
        ),
    )?;
    Ok(held)
}

/// Those that still answer, by the same origin.
pub async fn still_alive(
    stage: &mut Stage,
    fleet: &Fleet,
    held: Vec<Held>,
) -> Result<Vec<Held>, Failure> {
    let numbered: Vec<(Held, u64)> = held
        .into_iter()
        .map(|one| (one, stage.targets.number()))
        .collect();
    let asked = stream::iter(numbered).map(|(mut one, number)| async move {
        let answer = one.talk.ask(number).await;
        answer
            .is_ok_and(|answer| answer.origin == one.origin)
            .then_some(one)
    });
    let asked = asked.buffer_unordered(AT_ONCE).collect::<Vec<_>>();
    Ok(fleet
        .client
        .run(asked)
        .await?
        .into_iter()
        .flatten()
        .collect())
}
