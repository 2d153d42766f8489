//! Where the programs are.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};

const INSTALL: &str =
    "install it (Debian: apt-get install haproxy nginx-light libnginx-mod-stream)";
const BUILD: &str = "build it (cargo build --release --workspace --bins) or say --bin-dir";
const SYSTEM: &str = "it is part of util-linux";

/// Where administrators' programs are on systems that leave them out of an ordinary user's path.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where a distribution's nginx has its stream module, when it is not built in.
const STREAM_MODULES: [&str; 2] = [
    "/usr/lib/nginx/modules/ngx_stream_module.so",
    "/usr/lib64/nginx/modules/ngx_stream_module.so",
];

/// The files of every program of a comparison.
#[derive(Clone, Debug)]
pub struct Programs {
    pub(super) haproxy: PathBuf,
    pub(super) nginx: PathBuf,
    /// To be loaded; where there is none, it has to be built in.
    pub(super) stream_module: Option<PathBuf>,
    /// Starts nginx so that its workers never outlive it.
    pub(super) unshare: PathBuf,
    pub(super) config_service: PathBuf,
    pub(super) balancer: PathBuf,
    pub(super) edge_agent: PathBuf,
    pub(super) anyport: PathBuf,
    /// Has the bare relay.
    pub(super) load: PathBuf,
}

impl Programs {
    /// Finds Anyport's in `directory`, the others where programs are installed.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], for the first that is not there.
    pub fn find(directory: &Path) -> Result<Self> {
        Ok(Self {
            haproxy: installed("haproxy", INSTALL)?,
            nginx: installed("nginx", INSTALL)?,
            stream_module: STREAM_MODULES
                .map(PathBuf::from)
                .into_iter()
                .find(|module| module.is_file()),
            unshare: installed("unshare", SYSTEM)?,
            config_service: built(directory, "config-service")?,
            balancer: built(directory, "balancer")?,
            edge_agent: built(directory, "edge-agent")?,
            anyport: built(directory, "anyport")?,
            load: built(directory, "anyport-load")?,
        })
    }
}

/// Where the program that runs is.
///
/// # Errors
///
/// Where the system does not tell.
pub(super) fn own_directory() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().map(PathBuf::from);
    directory.ok_or_else(|| io::Error::other(format!("{} has no directory", own.display())))
}

fn built(directory: &Path, program: &'static str) -> Result<PathBuf> {
    let path = directory.join(program);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::Missing {
        program,
        looked_for: path.display().to_string(),
        remedy: BUILD,
    })
}

fn installed(program: &'static str, remedy: &'static str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::Missing {
            program,
            looked_for: format!(
                "it in {} and {}",
                path.display(),
                SYSTEM_DIRECTORIES.join(", ")
            ),
            remedy,
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_place_and_the_remedy() {
        let empty = tempfile::tempdir().unwrap();
        let error = built(empty.path(), "edge-agent").unwrap_err().to_string();
        let place = empty.path().join("edge-agent").display().to_string();
        assert!(
            error.contains(&place) && error.contains("cargo build"),
            "{error}"
        );
        let error = installed("no-such-proxy", INSTALL).unwrap_err().to_string();
        assert!(
            error.contains("no-such-proxy") && error.contains("apt-get"),
            "{error}"
        );
    }
}
