//! sk_lookup programs of others in the same network namespace.

use std::os::fd::AsRawFd;

use libbpf_rs::{ProgramHandle, Result, libbpf_sys};

use super::SkLookup;

/// More than any namespace has: the kernel allows 64.
const MOST: usize = 64;

/// The programs on the namespace of the calling thread that are not ours, each
/// by name and number.
pub(crate) fn foreign_programs() -> std::result::Result<Vec<String>, String> {
    let here = SkLookup::open().map_err(|error| error.to_string())?;
    let ours = here.pins.attached_link();
    let ours = ours.and_then(|link| here.pins.is_attached(&link));
    let ours = ours.map(|info| info.prog_id);
    let all = attached(&here).map_err(|error| error.to_string())?;
    let foreign = all.into_iter().filter(|&program| Some(program) != ours);
    Ok(foreign.map(described).collect())
}

fn attached(here: &SkLookup) -> Result<Vec<u32>> {
    let mut programs = [0; MOST];
    let mut options = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as _,
        prog_ids: programs.as_mut_ptr(),
        ..Default::default()
    };
    options.__bindgen_anon_1.count = MOST as u32;
    // SAFETY: `options` points to room for as many numbers as it says, and
    // both live longer than the call.
    let result = unsafe {
        libbpf_sys::bpf_prog_query_opts(
            here.namespace.as_raw_fd(),
            libbpf_sys::BPF_SK_LOOKUP,
            &raw mut options,
        )
    };
    if result < 0 {
        return Err(std::io::Error::from_raw_os_error(-result).into());
    }
    // SAFETY: the union has one meaning under two names.
    let count = unsafe { options.__bindgen_anon_1.count } as usize;
    Ok(programs.into_iter().take(count).collect())
}

fn described(program: u32) -> String {
    match ProgramHandle::from_prog_id(program) {
        Ok(known) => format!("{} (program {program})", known.name().to_string_lossy()),
        Err(_) => format!("program {program}"),
    }
}
