//! Earlier agents of this edge: after an upgrade, each finishes the connections
//! that it has, in a process of its own.
//!
//! Such an agent answers on a Unix socket in the state directory, as long as it
//! runs ([`Finishing`]): its `EdgeService` says what it still has, and it does
//! what is ordered. The one that serves finds all of them there ([`Earlier`]),
//! however many upgrades lie between: it lists their connections after its own,
//! counts them, and passes on every order. A socket that nobody listens at is
//! that of an agent that died.

mod ask;
mod finish;
mod follow;
mod obeyed;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use finish::Finishing;
pub use follow::{Answer, Earlier};

const PREFIX: &str = "earlier-";
const SUFFIX: &str = ".sock";

/// By its process.
fn socket_of(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{PREFIX}{number}{SUFFIX}"))
}

/// All that are in the directory, each with the number that names it.
fn sockets(directory: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name
            .and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX))
            .and_then(|number| number.parse().ok());
        found.extend(number.map(|number| (number, path)));
    }
    Ok(found)
}
