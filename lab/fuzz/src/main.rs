//! One target under libFuzzer: `ANYPORT_FUZZ_TARGET=resource anyport-fuzz [libFuzzer's arguments]`.

#![no_main]

use std::sync::LazyLock;

use anyport_fuzz::{TARGETS, Target, target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("ANYPORT_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        panic!("ANYPORT_FUZZ_TARGET is {name:?}; right is one of {names:?}")
    })
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.check)(bytes));
