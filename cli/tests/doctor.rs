//! `anyport doctor`, as a user runs it. Needs root.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Output},
};

use anyport_netns::Namespace;
use serde_json::Value;

const ANYPORT: &str = env!("CARGO_BIN_EXE_anyport");
/// Without any capability.
const NOBODY: u32 = 65534;

/// In a namespace of its own, no config service is there to be asked.
fn doctor(change: impl FnOnce(&mut Command)) -> Output {
    let namespace = Namespace::new("doctor").expect("needs root; run this test as root");
    let mut command = namespace.command(ANYPORT);
    command.args(["doctor", "--prefix", "198.51.100.7/24"]);
    change(&mut command);
    command.output().unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn severity<'a>(report: &'a Value, topic: &str) -> &'a str {
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["topic"] == topic);
    finding.unwrap_or_else(|| panic!("no finding on {topic}"))["severity"]
        .as_str()
        .unwrap()
}

#[test]
fn a_host_that_can_steer_is_no_failure() {
    let output = doctor(|command| _ = command.args(["-o", "json"]));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    let report = report(&output);
    assert_eq!(report["fail"], 0);
    assert_eq!(report["prefixes"][0], "198.51.100.0/24");
    assert_eq!(report["prefixes_from"], "command line");
    assert_eq!(severity(&report, "privileges"), "ok");
    assert_eq!(severity(&report, "sk_lookup"), "ok");
    assert_eq!(severity(&report, "tproxy"), "ok");
}

#[test]
fn without_the_privilege_it_fails_and_says_what_to_do() {
    // Where the binary is may not be for everybody to see.
    let directory = tempfile::tempdir().unwrap();
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), everybody.clone()).unwrap();
    let copy = directory.path().join("anyport");
    fs::copy(ANYPORT, &copy).unwrap();
    fs::set_permissions(&copy, everybody).unwrap();
    let output = Command::new(&copy)
        .args(["doctor", "--prefix", "198.51.100.0/24", "-o", "json"])
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = report(&output);
    assert_eq!(severity(&report, "privileges"), "fail");
    let worst = &report["findings"][0];
    assert_eq!(worst["topic"], "privileges", "the worst comes first");
    assert!(worst["advice"].as_str().unwrap().contains("CAP_NET_ADMIN"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.starts_with("error: an edge agent cannot work on this host: "),
        "{errors}"
    );
}

#[test]
fn the_list_is_plain_text_where_there_is_no_terminal() {
    let output = doctor(|_| {});
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    assert!(shown.contains("ok    privileges"), "{shown}");
    assert!(
        shown.ends_with("0 failed.\nChecked for 198.51.100.0/24, from the command line.\n"),
        "{shown}"
    );
}
