//! Files that are there whole or not at all.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use tempfile::NamedTempFile;

use crate::failure::Failure;

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    Owner,
    Everyone,
}

/// May what is there be replaced?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    Keep,
    Replace,
}

/// Makes a directory for secrets; one that is there stays as it is.
pub(super) fn make_directory(path: &Path) -> Result<(), Failure> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|error| failure("make", path, &error))
}

/// Reads a file that is text.
pub(super) fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| failure("read", path, &error))
}

/// Writes a file, and returns when it would outlive a loss of power.
pub(super) fn write(
    path: &Path,
    text: &str,
    readers: Readers,
    existing: Existing,
) -> Result<(), Failure> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let written = || -> io::Result<()> {
        // Made for its owner only.
        let mut file = NamedTempFile::new_in(directory)?;
        file.write_all(text.as_bytes())?;
        if readers == Readers::Everyone {
            let everyone = Permissions::from_mode(0o644);
            file.as_file().set_permissions(everyone)?;
        }
        file.as_file().sync_all()?;
        match existing {
            Existing::Keep => file.persist_noclobber(path)?,
            Existing::Replace => file.persist(path)?,
        };
        File::open(directory)?.sync_all()
    };
    written().map_err(|error| failure("write", path, &error))
}

fn failure(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::refused(format_args!("cannot {what} {}: {error}", path.display()))
}
