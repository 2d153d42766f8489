//! The comparisons run, and leave nothing behind however it ends. What it finds is not looked at:
//! these runs are too short for that. Needs root, HAProxy, nginx, and the programs built
//! (`make test` builds them first).

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// One comparison at a time: they would only take the processors from each other.
fn in_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The comparison where origins fail, likewise.
fn failover(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anyport-failover"));
    command.args(arguments).env("TMPDIR", directory);
    command
}

/// The comparison, with its temporary files and those of its processes in `directory`.
fn bench(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anyport-bench"));
    command.args(arguments).env("TMPDIR", directory);
    command
}

/// Processes that log into `directory`, as all that the comparison starts do. (Their environment would
/// not tell: nginx's workers overwrite theirs.)
fn processes_with(directory: &Path) -> Vec<String> {
    let ids = fs::read_dir("/proc").unwrap();
    let ids = ids.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    ids.filter_map(|id| {
        let log = fs::read_link(format!("/proc/{id}/fd/2")).ok()?;
        let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
        log.starts_with(directory)
            .then(|| format!("{id} {}", name.trim_end()))
    })
    .collect()
}

fn said(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{}\n{out}{err}", output.status)
}

#[test]
fn a_quick_comparison_measures_every_contender_and_leaves_nothing() {
    let _turn = in_turn();
    let directory = TempDir::new().unwrap();
    let kept = TempDir::new().unwrap();
    let json = kept.path().join("bench.json");
    let arguments = ["--quick", "--json", json.to_str().unwrap()];
    let output = bench(directory.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));

    let found: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(found["rounds"], 1);
    assert_eq!(found["failures"].as_array().unwrap().len(), 0);
    for contender in ["routing", "HAProxy", "nginx", "Anyport"] {
        for rate in ["connect_rate", "round_trip_rate", "bulk_rate"] {
            let median = &found["measures"][rate]["contenders"][contender]["median"];
            assert!(
                median.as_f64().unwrap() > 0.0,
                "{contender}, {rate}: {median}"
            );
        }
        let rate = &found["measures"]["datagram_rate"]["contenders"][contender]["median"];
        assert_eq!(rate.as_f64().is_some(), contender != "HAProxy", "{rate}");
        if contender != "routing" {
            let entry = &found["measures"]["idle_descriptors"]["contenders"][contender];
            let each = entry["median"].as_f64().unwrap();
            // One to the client, one to the origin, and hardly ever another one.
            assert!((1.5..3.0).contains(&each), "{contender}: {each}");
        }
    }
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(processes_with(directory.path()), Vec::<String>::new());
}

#[test]
fn a_quick_comparison_where_origins_fail_has_every_contender_in_it_and_leaves_nothing() {
    let _turn = in_turn();
    let directory = TempDir::new().unwrap();
    let kept = TempDir::new().unwrap();
    let json = kept.path().join("failover.json");
    let arguments = ["--quick", "--json", json.to_str().unwrap()];
    let output = failover(directory.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let found: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let answered = |value: &serde_json::Value| value["count"].as_u64().unwrap();
    let outages = found["outages"].as_array().unwrap();
    assert_eq!(outages.len(), 6);
    for outage in outages {
        assert!(answered(&outage["waited"]) > 100, "{outage}");
        // Who is told by a check, or by chance, in time dials it never.
        assert!(outage["dials"].as_f64().unwrap() >= 0.0, "{outage}");
    }
    let distances = found["distances"].as_array().unwrap();
    assert_eq!(distances.len(), 4);
    for distance in distances {
        for phase in ["even", "slow"] {
            assert!(answered(&distance[phase]["waited"]) > 20, "{distance}");
        }
    }
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(processes_with(directory.path()), Vec::<String>::new());
}

#[test]
fn a_program_that_was_not_built_is_named_with_what_to_do() {
    let empty = TempDir::new().unwrap();
    let arguments = ["--quick", "--bin-dir", empty.path().to_str().unwrap()];
    let output = bench(empty.path(), &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(said.contains("config-service is not there"), "{said}");
    assert!(said.contains("cargo build"), "{said}");
}

#[test]
fn an_interrupted_comparison_cleans_up() {
    let _turn = in_turn();
    for contender in ["HAProxy", "nginx", "Anyport"] {
        let directory = TempDir::new().unwrap();
        let mut child = started_until(directory.path(), contender);
        signal(&child, Signal::SIGINT);
        let status = within(|| child.try_wait().unwrap().ok_or("it still runs"));
        assert_eq!(status.code(), Some(1));
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert!(left.is_empty(), "{contender}: {left:?}");
        gone_with(directory.path());
    }
}

#[test]
fn the_processes_of_a_killed_comparison_go_with_it() {
    let _turn = in_turn();
    for contender in ["HAProxy", "nginx", "Anyport"] {
        let directory = TempDir::new().unwrap();
        let mut child = started_until(directory.path(), contender);
        assert_ne!(processes_with(directory.path()), Vec::<String>::new());
        child.kill().unwrap();
        child.wait().unwrap();
        gone_with(directory.path());
    }
}

/// Waits until no process is left: those of nginx end after the one that is waited for.
fn gone_with(directory: &Path) {
    within(|| match processes_with(directory) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

/// Starts a comparison, and returns when `contender` is under load.
fn started_until(directory: &Path, contender: &str) -> Child {
    let mut child = bench(directory, &["--quick"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sign = format!("{contender}: connect, ask, close");
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let found = lines.find(|line| line.as_ref().unwrap().contains(&sign));
    if found.is_none() {
        panic!(
            "it ended before the turn of {contender}: {:?}",
            child.wait()
        );
    }
    // What else it says must find a reader, or it ends by that.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

/// Looks until there is what is looked for.
fn within<T, E: std::fmt::Display>(mut look: impl FnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) => assert!(started.elapsed() < PATIENCE, "{last}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
