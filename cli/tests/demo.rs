//! `anyport demo`, as a user runs it. Needs root.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        prctl::set_child_subreaper,
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, geteuid},
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// Far beyond what a demo takes; it takes seconds.
const DEADLINE: Duration = Duration::from_secs(120);
/// The three services and the three origins.
const CHILDREN: usize = 6;

/// What a demo leaves behind is searched for among the children of this process,
/// so one runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Demo {
    child: Child,
    /// Its `TMPDIR`.
    directory: TempDir,
    alone: MutexGuard<'static, ()>,
}

impl Demo {
    fn start() -> Self {
        assert!(
            geteuid().is_root(),
            "the demo needs root; run this test as root"
        );
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // Orphans of the demo become children of this process.
        set_child_subreaper(true).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_anyport"))
            .args(["demo", "--seed", "7"])
            .env("TMPDIR", directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            child,
            directory,
            alone,
        }
    }

    fn pid(&self) -> i32 {
        self.child.id().unwrap().try_into().unwrap()
    }

    /// Waits until all of its processes run, each in a namespace that is not ours; gives
    /// their ids.
    async fn children(&self) -> Vec<i32> {
        let begun = Instant::now();
        let ours = namespace_of(std::process::id() as i32);
        loop {
            let children = children_of(self.pid());
            let moved = children
                .iter()
                .filter(|child| namespace_of(**child) != ours);
            let moved = moved.count();
            if moved == CHILDREN {
                return children;
            }
            assert!(begun.elapsed() < DEADLINE, "only {moved} children");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for its end, and makes sure that nothing is left of it. As long as the guard is held
    /// no other one begins.
    async fn end(self) -> (Output, String, MutexGuard<'static, ()>) {
        let output = timeout(DEADLINE, self.child.wait_with_output()).await;
        let output = output.expect("the demo ends in time").unwrap();
        let left = waitpid(None, Some(WaitPidFlag::WNOHANG));
        assert_eq!(left, Err(Errno::ECHILD), "a process is left");
        let files: Vec<_> = fs::read_dir(self.directory.path()).unwrap().collect();
        assert!(files.is_empty(), "left on disk: {files:?}");
        let shown = String::from_utf8(output.stdout.clone()).unwrap();
        (output, shown, self.alone)
    }
}

/// Processes whose parent is `pid`.
fn children_of(pid: i32) -> Vec<i32> {
    let mut children = Vec::new();
    for process in processes() {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if parent.is_some_and(|parent| parent.trim() == pid.to_string()) {
            children.push(process);
        }
    }
    children
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
}

/// `net:[4026532669]`.
fn namespace_of(process: i32) -> Option<String> {
    let link = fs::read_link(Path::new("/proc").join(process.to_string()).join("ns/net"));
    Some(link.ok()?.to_str()?.to_owned())
}

/// Namespaces that a process is in, or that are mounted somewhere.
fn namespaces_in_use() -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounted = mounts
        .split_whitespace()
        .filter(|word| word.starts_with("net:["));
    let mounted = mounted.map(str::to_owned).collect::<Vec<_>>();
    processes()
        .filter_map(namespace_of)
        .chain(mounted)
        .collect()
}

#[tokio::test]
async fn the_whole_demo_is_as_expected_and_leaves_nothing() {
    let demo = Demo::start();
    let children = demo.children().await;
    let own: BTreeSet<String> = children.into_iter().filter_map(namespace_of).collect();
    assert_eq!(own.len(), 4, "the edge and three origins: {own:?}");

    let (output, shown, _alone) = demo.end().await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}\n{errors}");
    assert_eq!(errors, "");
    assert!(!shown.contains('✗'), "{shown}");
    for wanted in [
        "(seed 7)",
        "1,024 connections to random addresses and ports echo",
        "10.0.1.2:",
        "[fd00:1::2]:",
        "0 failed",
        "of 1,024 the edge sees the original destination and the client",
        "the balancer holds b to be down: connect: connection refused",
        "3,000 new connections, split by weight",
        "200 other ports refuse",
        "All as expected",
    ] {
        assert!(shown.contains(wanted), "{wanted:?} is not in:\n{shown}");
    }
    // No colours and no cursor movements where there is no terminal.
    assert!(!shown.contains('\u{1b}'), "{shown:?}");

    let left: Vec<_> = own.intersection(&namespaces_in_use()).cloned().collect();
    assert!(left.is_empty(), "namespaces are left: {left:?}");
}

#[tokio::test]
async fn ctrl_c_ends_the_demo_and_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let demo = Demo::start();
        demo.children().await;
        kill(Pid::from_raw(demo.pid()), signal).unwrap();
        let (output, shown, _alone) = demo.end().await;
        assert_eq!(output.status.code(), Some(1), "{shown}");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.starts_with("error: stopped by "), "{errors}");
    }
}

#[tokio::test]
async fn a_service_that_dies_fails_the_demo_by_name() {
    let demo = Demo::start();
    let children = demo.children().await;
    let is_balancer = |pid: &&i32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.contains("\0balancer\0")
    };
    let balancer = children.iter().find(is_balancer).expect("a balancer");
    kill(Pid::from_raw(*balancer), Signal::SIGKILL).unwrap();
    let (output, shown, _alone) = demo.end().await;
    assert_eq!(output.status.code(), Some(1), "{shown}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("the balancer has ended: signal: 9"),
        "{errors}"
    );
}
