//! The wire contract with programs of others: what the `.proto` files say is well
//! named (`lint`), and what they once said they go on saying (`accepted`).
//!
//! `accepted.txt` holds every field, enum value and RPC that was ever given out.
//! `make proto` adds what is new to it.

#![allow(clippy::unwrap_used, reason = "a test")]

mod accepted;
mod lint;

use std::{env, fs, path::Path};

use prost_types::FileDescriptorSet;
use protox::{
    Compiler,
    file::{File, FileResolver},
};

use accepted::{additions, broken, contract};

const ACCEPTED: &str = "accepted.txt";
/// Set by `make proto`.
const ACCEPT: &str = "ANYPORT_PROTO_ACCEPT";

/// All of the package's files, also those that the build does not name.
fn present() -> FileDescriptorSet {
    let files = fs::read_dir("anyport/v1").unwrap();
    let files = files.map(|file| file.unwrap().path());
    let mut compiler = Compiler::new(["."]).unwrap();
    compiler
        .include_source_info(true)
        .open_files(files)
        .unwrap();
    compiler.file_descriptor_set()
}

/// One source, as if it were `try/v1/try.proto`.
struct Source(String);

impl FileResolver for Source {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        File::from_source(name, &self.0)
    }
}

/// Well named, and with everything that a rule looks at.
const GOOD: &str = r#"
syntax = "proto3";
package try.v1;
// Keeps things.
service ThingService {
  // Stores one.
  rpc Put(PutRequest) returns (PutResponse);
  // Tells of each one.
  rpc Watch(WatchRequest) returns (stream WatchResponse);
}
message PutRequest {
  Thing thing = 1;
}
message PutResponse {}
message WatchRequest {}
message WatchResponse {
  Thing thing = 1;
}
// What is kept.
message Thing {
  reserved 7;
  reserved "gone";
  string name = 1;
  uint32 max_size = 2;
  repeated string labels = 3;
  optional uint64 revision = 4;
  oneof place {
    string shelf = 5;
    Colour colour = 6;
  }
}
// How it looks.
enum Colour {
  COLOUR_UNSPECIFIED = 0;
  COLOUR_RED = 1;
  COLOUR_BLUE = 2;
}
"#;

/// [`GOOD`], changed in one place.
fn changed(from: &str, to: &str) -> FileDescriptorSet {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?} is there once");
    let mut compiler = Compiler::with_file_resolver(Source(GOOD.replace(from, to)));
    let compiler = compiler.include_source_info(true);
    compiler.open_file("try/v1/try.proto").unwrap();
    compiler.file_descriptor_set()
}

#[test]
fn everything_is_well_named() {
    let faults = lint::faults(&present());
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn what_was_given_out_stays() {
    let accepted = fs::read_to_string(ACCEPTED).unwrap_or_default();
    let now = contract(&present());
    let broken = broken(&accepted, &now);
    assert!(
        broken.is_empty(),
        "programs of others would break:\n{}\n",
        broken.join("\n")
    );
    if env::var_os(ACCEPT).is_some() {
        fs::write(Path::new(ACCEPTED), now.text()).unwrap();
        return;
    }
    let new = additions(&accepted, &now);
    assert!(
        new.is_empty() && accepted == now.text(),
        "not in proto/{ACCEPTED} yet; run `make proto` and commit what it writes:\n{}\n",
        new.join("\n")
    );
}

#[test]
fn each_rule_of_naming_finds_its_fault_and_only_that() {
    let whole = lint::faults(&changed("max_size", "most"));
    assert!(whole.is_empty(), "{whole:?}");
    for (from, to, fault) in [
        ("package try.v1", "package try", "package try: no version"),
        (
            "package try.v1",
            "package other.v1",
            "package other.v1: is in try/v1",
        ),
        (
            "ThingService",
            "Things",
            "try.v1.Things: a service ends in Service",
        ),
        ("// Keeps things.", "", "try.v1.ThingService: no comment"),
        ("// Stores one.", "", "try.v1.ThingService.Put: no comment"),
        ("// What is kept.", "", "try.v1.Thing: no comment"),
        ("// How it looks.", "", "try.v1.Colour: no comment"),
        (
            "rpc Watch(",
            "rpc watch(",
            "try.v1.ThingService.watch: not PascalCase",
        ),
        (
            "Put(PutRequest)",
            "Put(Thing)",
            "try.v1.ThingService.Put: its request is Thing",
        ),
        (
            "returns (PutResponse)",
            "returns (Thing)",
            "try.v1.ThingService.Put: its response is Thing",
        ),
        (
            "Watch(WatchRequest)",
            "Watch(PutRequest)",
            "try.v1.PutRequest: used by 2 RPCs",
        ),
        (
            "max_size",
            "maxSize",
            "try.v1.Thing.maxSize: not lower_snake_case",
        ),
        (
            "oneof place",
            "oneof Place",
            "try.v1.Thing.Place: not lower_snake_case",
        ),
        (
            "message WatchRequest {}",
            "message WatchRequest {} // A.\nmessage a_b {}",
            "try.v1.a_b: not PascalCase",
        ),
        (
            "COLOUR_UNSPECIFIED",
            "COLOUR_NONE",
            "try.v1.Colour.COLOUR_NONE: the value 0 is COLOUR_UNSPECIFIED",
        ),
        (
            "COLOUR_RED",
            "RED",
            "try.v1.Colour.RED: does not begin with COLOUR_",
        ),
        (
            "COLOUR_RED",
            "COLOUR_red",
            "try.v1.Colour.COLOUR_red: not UPPER_SNAKE_CASE",
        ),
    ] {
        let faults = lint::faults(&changed(from, to));
        assert!(
            faults.iter().any(|found| found.starts_with(fault)),
            "{from:?} to {to:?}: {faults:?}"
        );
    }
}

#[test]
fn each_break_is_found_and_a_removal_that_is_reserved_is_none() {
    let accepted = contract(&changed("try.v1", "try.v1")).text();
    for (from, to, found) in [
        (
            "string name = 1;",
            "",
            "try.v1.Thing.name: removed; say `reserved 1;`",
        ),
        (
            "string name = 1;",
            "reserved 1;",
            "try.v1.Thing.name: removed; say `reserved \"name\";`",
        ),
        (
            "string name = 1;",
            "string name = 8;",
            "try.v1.Thing.name: was number 1",
        ),
        (
            "string name",
            "bytes name",
            "try.v1.Thing.name: was `string`",
        ),
        (
            "string name",
            "string title",
            "try.v1.Thing.title: was named name",
        ),
        (
            "string name",
            "repeated string name",
            "try.v1.Thing.name: was `string`",
        ),
        (
            "optional uint64",
            "uint64",
            "try.v1.Thing.revision: was `optional uint64`",
        ),
        (
            "  oneof place {\n    string shelf = 5;",
            "  string shelf = 5;\n  oneof place {",
            "try.v1.Thing.shelf: was `string in place`",
        ),
        (
            "reserved 7;",
            "",
            "try.v1.Thing: 7 is not reserved any more",
        ),
        (
            "reserved \"gone\";",
            "",
            "try.v1.Thing: \"gone\" is not reserved any more",
        ),
        (
            "  COLOUR_BLUE = 2;\n",
            "",
            "try.v1.Colour.COLOUR_BLUE: removed",
        ),
        (
            "COLOUR_BLUE = 2",
            "COLOUR_BLUE = 3",
            "try.v1.Colour.COLOUR_BLUE: was number 2",
        ),
        (
            "  rpc Put(PutRequest) returns (PutResponse);",
            "",
            "try.v1.ThingService.Put: removed",
        ),
        (
            "stream WatchResponse",
            "WatchResponse",
            "try.v1.ThingService.Watch: was `try.v1.WatchRequest -> stream try.v1.WatchResponse`",
        ),
        (
            "message PutResponse {}\n",
            "message Put2Response {}\n",
            "try.v1.PutResponse: removed",
        ),
    ] {
        let now = match to {
            // What refers to it has to go along.
            "message Put2Response {}\n" => {
                let text = GOOD.replace("PutResponse", "Put2Response");
                let mut compiler = Compiler::with_file_resolver(Source(text));
                compiler.open_file("try/v1/try.proto").unwrap();
                compiler.file_descriptor_set()
            }
            _ => changed(from, to),
        };
        let broken = broken(&accepted, &contract(&now));
        assert!(
            broken.iter().any(|fault| fault.starts_with(found)),
            "{from:?} to {to:?}: {broken:?}"
        );
    }
    for (from, to) in [
        ("string name = 1;", "reserved 1; reserved \"name\";"),
        ("COLOUR_BLUE = 2;", "reserved 2; reserved \"COLOUR_BLUE\";"),
    ] {
        let broken = broken(&accepted, &contract(&changed(from, to)));
        assert!(broken.is_empty(), "{to}: {broken:?}");
    }
}

#[test]
fn what_is_new_is_no_break_and_has_to_be_accepted() {
    let accepted = contract(&changed("try.v1", "try.v1")).text();
    let now = contract(&changed(
        "string name = 1;",
        "string name = 1; bool new = 9;",
    ));
    assert_eq!(broken(&accepted, &now), Vec::<String>::new());
    assert_eq!(
        additions(&accepted, &now),
        ["field try.v1.Thing 9 new: bool"]
    );
}
