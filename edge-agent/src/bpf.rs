//! The compiled BPF programs, and what bringing any of them into the kernel has
//! in common. Their sources are in `bpf/`; building the agent compiles none.

use std::{io, sync::Once};

use libbpf_rs::{
    Error, Map, MapCore, Object, ObjectBuilder, OpenObject, PrintLevel, ProgramMut, Result,
    set_print,
};
use tracing::debug;

/// Compiled from `bpf/steer.bpf.c`.
pub(crate) const STEER: &[u8] = include_bytes!("../bpf/steer.bpf.o");

/// Compiled from `bpf/spread.bpf.c`.
pub(crate) const SPREAD: &[u8] = include_bytes!("../bpf/spread.bpf.o");

/// Reads an object, so that its maps can be given their sizes before it is
/// loaded.
pub(crate) fn open(object: &[u8]) -> Result<OpenObject> {
    quieten();
    ObjectBuilder::default()
        .name("anyport")?
        .open_memory(object)
}

/// A map of an object in the kernel.
pub(crate) fn map<'a>(object: &'a Object, name: &'static str) -> Result<Map<'a>> {
    let mut maps = object.maps();
    let map = maps.find(|map| map.name() == name);
    map.ok_or_else(|| lacks(name))
}

/// The program of an object in the kernel; each has one.
pub(crate) fn program(object: &Object) -> Result<ProgramMut<'_>> {
    object.progs_mut().next().ok_or_else(|| lacks("program"))
}

fn lacks(what: &str) -> Error {
    let text = format!("the compiled object lacks its {what}");
    io::Error::new(io::ErrorKind::InvalidData, text).into()
}

/// libbpf writes what it finds wrong to standard error; here it is in the
/// error, and the kernel's own words are for whoever looks into it.
pub(crate) fn quieten() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        set_print(Some((PrintLevel::Info, |_, text| {
            debug!("{}", text.trim_end())
        })));
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, path::Path, process::Command};

    use sha2::{Digest, Sha256};

    use super::*;

    const OBJECTS: [(&str, &[u8]); 2] = [("steer", STEER), ("spread", SPREAD)];

    fn file(name: &str) -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf").join(name)).unwrap()
    }

    /// What an object was made from: clang's version, then each source file.
    fn note(of: &str) -> String {
        String::from_utf8(file(&format!("{of}.bpf.o.from"))).unwrap()
    }

    #[test]
    fn the_objects_were_compiled_from_these_sources() {
        for (object, _) in OBJECTS {
            let note = note(object);
            let sources = note
                .lines()
                .skip(1)
                .map(|line| line.split_once("  ").unwrap());
            let mut names = Vec::new();
            for (digest, name) in sources {
                let now: String = (Sha256::digest(file(name)).iter())
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                assert_eq!(now, digest, "{name} was changed: make bpf");
                names.push(name);
            }
            assert_eq!(names, ["helpers.h", &format!("{object}.bpf.c")]);
        }
    }

    /// Maps and instructions: what the kernel gets. Other parts of the object
    /// depend on the kernel headers' line numbers.
    fn essence(object: &[u8]) -> (Vec<String>, Vec<[u8; 8]>) {
        let open = open(object).unwrap();
        let maps = open.maps().map(|map| {
            let (keys, values) = (map.key_size(), map.value_size());
            let (kind, flags) = (map.map_type(), map.map_flags());
            let entries = map.max_entries();
            format!(
                "{:?} {kind:?} {keys} {values} {entries} {flags}",
                map.name()
            )
        });
        let program = open.progs().next().unwrap();
        let bytes = |insn: &libbpf_rs::libbpf_sys::bpf_insn| {
            let mut bytes = [
                insn.code,
                insn.dst_reg() | insn.src_reg() << 4,
                0,
                0,
                0,
                0,
                0,
                0,
            ];
            bytes[2..4].copy_from_slice(&insn.off.to_ne_bytes());
            bytes[4..].copy_from_slice(&insn.imm.to_ne_bytes());
            bytes
        };
        (maps.collect(), program.insns().iter().map(bytes).collect())
    }

    #[test]
    fn the_compiler_makes_the_objects_again() {
        let clang = Command::new("clang").arg("--version").output().unwrap();
        let clang = String::from_utf8(clang.stdout).unwrap();
        if clang.lines().next() != note("steer").lines().next() {
            // Another one has its own idea of the best instructions.
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let compile = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf/compile");
        let compiled = Command::new(compile).arg(directory.path()).status();
        assert!(compiled.unwrap().success());
        for (object, committed) in OBJECTS {
            let made = directory.path().join(format!("{object}.bpf.o"));
            assert_eq!(essence(&fs::read(made).unwrap()), essence(committed));
        }
    }
}
