//! Files that are there, or gone, also after a loss of power. All of it blocks.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Puts a file that is for its owner only in place of what is at `path`, whole or
/// not at all, also if the machine fails in between. One at a time.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = new_of(path);
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory_of(path)
}

/// Removes what is at `path`, if something is.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // Also where an earlier removal was not seen to its end.
        _ => sync_directory_of(path),
    }
}

fn new_of(path: &Path) -> PathBuf {
    let mut new = OsString::from(path);
    new.push(".new");
    new.into()
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_replaced_is_never_half_written() {
        let directory = tempfile::tempdir().unwrap();
        let [path, before] = ["order", "before"].map(|name| directory.path().join(name));
        replace(&path, b"one").unwrap();
        // Whoever has it open reads it to its end.
        fs::hard_link(&path, &before).unwrap();
        replace(&path, b"two").unwrap();
        let read = |path| fs::read_to_string(path).unwrap();
        assert_eq!((read(&before), read(&path)), ("one".into(), "two".into()));
        assert!(!new_of(&path).exists());
        for _ in 0..2 {
            remove(&path).unwrap();
            assert!(!path.exists());
        }
        assert!(remove(&directory.path().join("none/order")).is_err());
    }
}
