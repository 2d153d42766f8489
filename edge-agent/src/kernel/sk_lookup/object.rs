//! The compiled program, and bringing it into the kernel with its claims.

use std::{os::fd::AsFd, sync::Once};

use libbpf_rs::{
    Error, Map, MapCore, MapFlags, MapHandle, Object, ObjectBuilder, PrintLevel, ProgramMut,
    Result, set_print,
};
use tracing::debug;

use super::image::Image;

/// Compiled from `bpf/steer.bpf.c`.
pub(super) const OBJECT: &[u8] = include_bytes!("../../../bpf/steer.bpf.o");

/// The maps that every program shares, whichever claims it has.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) sockets: MapHandle,
    pub(super) counters: MapHandle,
}

/// A program with its claims, in the kernel and not attached.
pub(super) struct Loaded(Object);

impl Loaded {
    /// `shared`: the maps to use, or `None` to make them too.
    pub(super) fn load(image: &Image, shared: Option<&Shared>) -> Result<Self> {
        let mut open = ObjectBuilder::default()
            .name("anyport")?
            .open_memory(OBJECT)?;
        for mut map in open.maps_mut() {
            match (map.name().to_str(), shared) {
                (Some("networks"), _) => map.set_max_entries(image.networks().max(1))?,
                (Some("ports"), _) => map.set_max_entries(image.nodes())?,
                (Some("sockets"), Some(shared)) => map.reuse_fd(shared.sockets.as_fd())?,
                (Some("counters"), Some(shared)) => map.reuse_fd(shared.counters.as_fd())?,
                _ => {}
            }
        }
        let mut loaded = Self(open.load()?);
        loaded.fill("networks", image.network_entries())?;
        loaded.fill("ports", image.node_entries())?;
        Ok(loaded)
    }

    pub(super) fn shared(&self) -> Result<Shared> {
        Ok(Shared {
            sockets: MapHandle::try_from(&self.map("sockets")?)?,
            counters: MapHandle::try_from(&self.map("counters")?)?,
        })
    }

    pub(super) fn program(&self) -> Result<ProgramMut<'_>> {
        self.0.progs_mut().next().ok_or_else(|| lacks("program"))
    }

    /// From here on nobody changes the map, the kernel sees to that.
    fn fill(&mut self, name: &'static str, (keys, values): (Vec<u8>, Vec<u8>)) -> Result<()> {
        let map = MapHandle::try_from(&self.map(name)?)?;
        let (key_size, value_size) = (map.key_size() as usize, map.value_size() as usize);
        let count = u32::try_from(keys.len() / key_size).unwrap_or(u32::MAX);
        let (exists, any) = (MapFlags::empty(), MapFlags::ANY);
        // Kernels before 5.6 know no batches of arrays, before 5.13 none of
        // prefixes.
        if count > 0
            && map
                .update_batch(&keys, &values, count, any, exists)
                .is_err()
        {
            let entries = keys.chunks(key_size).zip(values.chunks(value_size));
            for (key, value) in entries {
                map.update(key, value, any)?;
            }
        }
        map.freeze()
    }

    fn map(&self, name: &'static str) -> Result<Map<'_>> {
        let mut maps = self.0.maps();
        maps.find(|map| map.name() == name)
            .ok_or_else(|| lacks(name))
    }
}

fn lacks(what: &str) -> Error {
    let text = format!("the compiled object lacks its {what}");
    std::io::Error::new(std::io::ErrorKind::InvalidData, text).into()
}

/// libbpf writes what it finds wrong to standard error; here it is in the
/// error, and the kernel's own words are for whoever looks into it.
pub(super) fn quieten() {
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

    fn file(name: &str) -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf").join(name)).unwrap()
    }

    /// What the object was made from: clang's version, then each source file.
    fn note() -> String {
        String::from_utf8(file("steer.bpf.o.from")).unwrap()
    }

    #[test]
    fn the_object_was_compiled_from_these_sources() {
        let note = note();
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
        assert_eq!(names, ["helpers.h", "steer.bpf.c"]);
    }

    /// Maps and instructions: what the kernel gets. Other parts of the object
    /// depend on the kernel headers' line numbers.
    fn essence(object: &[u8]) -> (Vec<String>, Vec<[u8; 8]>) {
        let open = ObjectBuilder::default().open_memory(object).unwrap();
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
    fn the_compiler_makes_the_object_again() {
        let clang = Command::new("clang").arg("--version").output().unwrap();
        let clang = String::from_utf8(clang.stdout).unwrap();
        if clang.lines().next() != note().lines().next() {
            // Another one has its own idea of the best instructions.
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let made = directory.path().join("steer.bpf.o");
        let compile = Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf/compile");
        assert!(Command::new(compile).arg(&made).status().unwrap().success());
        assert_eq!(essence(&fs::read(made).unwrap()), essence(OBJECT));
    }

    #[test]
    fn the_kernel_takes_the_program() {
        Loaded::load(&Image::of([]), None).unwrap();
    }
}
