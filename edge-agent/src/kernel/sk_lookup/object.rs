//! Bringing the program into the kernel with its claims.

use std::os::fd::AsFd;

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ProgramMut, Result};

use super::image::Image;
use crate::bpf;

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
        let mut open = bpf::open(bpf::STEER)?;
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
            sockets: MapHandle::try_from(&bpf::map(&self.0, "sockets")?)?,
            counters: MapHandle::try_from(&bpf::map(&self.0, "counters")?)?,
        })
    }

    pub(super) fn program(&self) -> Result<ProgramMut<'_>> {
        bpf::program(&self.0)
    }

    /// From here on nobody changes the map, the kernel sees to that.
    fn fill(&mut self, name: &'static str, (keys, values): (Vec<u8>, Vec<u8>)) -> Result<()> {
        let map = MapHandle::try_from(&bpf::map(&self.0, name)?)?;
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
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_kernel_takes_the_program() {
        Loaded::load(&Image::of([]), None).unwrap();
    }
}
