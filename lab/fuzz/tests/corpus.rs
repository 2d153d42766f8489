//! Replays what fuzzing found worth keeping.

#![allow(clippy::unwrap_used)]

use std::{fs, panic, path::Path};

use anyport_fuzz::TARGETS;

#[test]
fn everything_holds_for_every_input_of_the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let inputs = fs::read_dir(corpus.join(target.name))
            .unwrap_or_else(|error| panic!("the corpus of {}: {error}", target.name));
        let mut count = 0;
        for input in inputs {
            let path = input.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let held = panic::catch_unwind(|| (target.check)(&bytes));
            assert!(held.is_ok(), "{}", path.display());
            count += 1;
        }
        assert!(count > 0, "the corpus of {} is empty", target.name);
    }
}

#[test]
fn each_folder_of_the_corpus_has_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for folder in fs::read_dir(corpus).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        assert!(anyport_fuzz::target(&name).is_some(), "{name}");
    }
}
