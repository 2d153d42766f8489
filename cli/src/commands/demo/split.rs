//! Weights: what was asked for against what connections met.

use super::{
    Stage,
    arrivals::Held,
    fleet::Fleet,
    load::{self, Attempt},
    manifest::{self, ORIGINS},
    outage::still_alive,
    screen::grouped,
};
use crate::{
    console::{Cell, Mood},
    failure::Failure,
};

const WEIGHTS: [u32; 3] = [50, 30, 20];
const CONNECTIONS: usize = 3_000;
/// The edge chooses at random, so the split strays; further than this it strays
/// about once in a million runs.
const DEVIATIONS: f64 = 5.0;

pub async fn run(stage: &mut Stage, fleet: &mut Fleet, held: Vec<Held>) -> Result<(), Failure> {
    stage.screen.begin("applying other weights");
    let old = manifest::text(fleet.origin_addresses(), None);
    let new = manifest::text(fleet.origin_addresses(), Some(WEIGHTS));
    fleet.apply(&new).await?;
    fleet
        .until_health("the balancer has the new weights", |pool| {
            let shares = ORIGINS.map(|name| {
                let mut origins = pool.origins.iter();
                origins
                    .find(|origin| origin.origin == name)
                    .map_or(0.0, |origin| origin.share)
            });
            shares
                .iter()
                .zip(WEIGHTS)
                .all(|(share, weight)| (share - part(weight)).abs() < 0.001)
        })
        .await?;
    let before = held.len();
    let after = still_alive(stage, fleet, held).await?.len();
    let good = stage.score.expect(
        "open connections that the change kept",
        grouped(before),
        grouped(after),
        before == after,
    );
    let [a, b, c] = WEIGHTS;
    stage.screen.end(
        good,
        format_args!(
            "weights {a}/{b}/{c} applied; {} of {} open connections live",
            grouped(after),
            grouped(before)
        ),
    )?;
    for line in new
        .lines()
        .filter(|line| !old.lines().any(|known| known == *line))
    {
        stage.screen.note(line)?;
    }
    measure(stage, fleet).await
}

async fn measure(stage: &mut Stage, fleet: &Fleet) -> Result<(), Failure> {
    stage.screen.begin("measuring the split");
    let mut prefixes = manifest::open_prefixes().into_iter().cycle();
    let mut call = || {
        let target = stage.targets.within(prefixes.next()?);
        Some((target, stage.targets.number()))
    };
    let calls = (0..CONNECTIONS).filter_map(|_| call()).collect();
    let attempts = load::all(&fleet.client, calls).await?;
    let met = |name: &str| {
        let of_origin = |attempt: &&Attempt| attempt.outcome.as_ref().is_ok_and(|o| o == name);
        attempts.iter().filter(of_origin).count()
    };
    let counts = ORIGINS.map(met);
    let straying = |index: usize| {
        let (wanted, seen) = (part(WEIGHTS[index]), counts[index] as f64);
        let deviation = (CONNECTIONS as f64 * wanted * (1.0 - wanted)).sqrt();
        (seen - CONNECTIONS as f64 * wanted).abs() / deviation
    };
    let answered: usize = counts.iter().sum();
    let fits = answered == CONNECTIONS && (0..3).all(|index| straying(index) <= DEVIATIONS);
    let percent = |count: usize| format!("{:.1}", count as f64 * 100.0 / CONNECTIONS as f64);
    let good = stage.score.expect(
        "split of new connections, in percent",
        WEIGHTS.map(|weight| weight.to_string()).join("/"),
        counts.map(percent).join("/"),
        fits,
    );
    let text = format_args!("{} new connections, split by weight", grouped(answered));
    stage.screen.end(good, text)?;
    let rows = (0..3).map(|index| {
        let faint = |text: String| Cell::new(text, Mood::Faint);
        vec![
            faint(ORIGINS[index].to_owned()),
            faint(format!("{} %", WEIGHTS[index])),
            faint(format!("{} %", percent(counts[index]))),
            faint(grouped(counts[index])),
        ]
    });
    let header = ["ORIGIN", "WANTED", "MEASURED", "CONNECTIONS"];
    stage.screen.table(&header, rows.collect())?;
    Ok(())
}

/// Of all weights together, 0 to 1.
fn part(weight: u32) -> f64 {
    f64::from(weight) / f64::from(WEIGHTS.iter().sum::<u32>())
}
