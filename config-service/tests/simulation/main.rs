//! A config service and its edges with everything that can go wrong, from a seed.
//!
//! The code is the real one, from `Writer` and `Push` to what edges subscribe with. What it stands on
//! is simulated: the store (`disk`), the network between replicas and edges (`wire`), the clock, chance
//! and crashes. One thread does it all, and the clock moves when nobody has anything else to do, so a
//! seed is the whole story, and the same one each time.
//!
//! What must hold, whatever happens: an edge serves one committed revision, whole, and never an older
//! one than it had unless the store itself went back; what was acknowledged is in the store, once; and
//! when everything works again, every edge comes to serve what it is to have.
//!
//! `ANYPORT_SEED=17` runs one seed, `ANYPORT_SEEDS=100000` so many.

#![allow(clippy::unwrap_used)]

mod chance;
mod client;
mod disk;
mod edge;
mod gate;
mod rewind;
mod story;
mod wire;

use std::{
    panic,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use story::Told;

/// Less than a minute, on two processors and without optimisation.
const SEEDS: u64 = 2_000;

fn environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no whole number")),
    )
}

#[test]
fn whatever_fails_edges_serve_one_committed_revision_and_reach_the_last() {
    if let Some(seed) = environment("ANYPORT_SEED") {
        eprintln!("{:#?}", story::run(seed));
        return;
    }
    let seeds = environment("ANYPORT_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let all = thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work(&next, seeds)))
            .collect();
        let told = workers.into_iter().map(|worker| worker.join().unwrap());
        told.fold(Told::default(), Told::and)
    });
    // A story in which nothing happens shows nothing.
    assert!(all.commits > seeds * 5, "{all:?}");
    assert!(all.applied > seeds * 10, "{all:?}");
    for (what, times) in [
        ("crashes of replicas", all.replica_crashes),
        ("crashes of edges", all.edge_crashes),
        ("cut links", all.cuts),
        ("store out of reach", all.outages),
        ("answers lost", all.answers_lost),
        ("whole states", all.whole),
        ("trials", all.trials),
        ("stores that went back", all.rewinds),
    ] {
        assert!(
            times > seeds / 20,
            "{what}: {times} times in {seeds} stories"
        );
    }
}

/// Seeds, one after the other, until there are no more.
fn work(next: &AtomicU64, seeds: u64) -> Told {
    let mut all = Told::default();
    loop {
        let seed = next.fetch_add(1, Relaxed);
        if seed >= seeds {
            return all;
        }
        let told = panic::catch_unwind(|| story::run(seed)).unwrap_or_else(|_| {
            next.store(seeds, Relaxed);
            panic!("seed {seed}: ANYPORT_SEED={seed} tells the same story again")
        });
        all = all.and(told);
    }
}

/// A seed tells the same story each time, to the last number.
#[test]
fn a_seed_is_the_whole_story() {
    for seed in 0..20 {
        assert_eq!(story::run(seed), story::run(seed), "seed {seed}");
    }
}
