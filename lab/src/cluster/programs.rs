//! The programs under test, as cargo builds them from the source that the test was built from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::error::{Error, Result};

/// The packages that have them.
const PACKAGES: [&str; 5] = [
    "anyport-config-service",
    "anyport-balancer",
    "anyport-edge-agent",
    "anyport-cli",
    "anyport-example",
];

/// Where the programs are.
#[derive(Debug)]
pub(super) struct Programs {
    built: BTreeMap<String, PathBuf>,
}

/// Builds them, once in a process.
pub(super) fn built() -> Result<&'static Programs> {
    static BUILT: OnceLock<std::result::Result<Programs, String>> = OnceLock::new();
    BUILT
        .get_or_init(build)
        .as_ref()
        .map_err(|why| Error::Build(why.clone()))
}

/// The file of one of them, once they are built.
pub(crate) fn file(program: &str) -> Result<PathBuf> {
    built()?.path(program)
}

impl Programs {
    /// A program's file: cargo's, or for one that is not ours the name to be found in `PATH`.
    pub(super) fn path(&self, program: &str) -> Result<PathBuf> {
        if let Some(path) = self.built.get(program) {
            return Ok(path.clone());
        }
        let installed = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&installed)
            .map(|directory| directory.join(program))
            .find(|path| path.is_file())
            .ok_or_else(|| Error::NoProgram(program.to_owned()))
    }
}

fn build() -> std::result::Result<Programs, String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace)
        .args([
            "build",
            "--bins",
            "--message-format=json-render-diagnostics",
        ])
        .args(PACKAGES.map(|package| format!("--package={package}")))
        .stdin(Stdio::null());
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    // What cargo says of the test's own package is not meant for another build.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_"))
        {
            command.env_remove(name);
        }
    }
    let output = command
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let built = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter_map(|message| executable(&message))
        .collect();
    Ok(Programs { built })
}

/// The name and file of a program, if that is what cargo's message is about.
fn executable(message: &serde_json::Value) -> Option<(String, PathBuf)> {
    let path = message.get("executable")?.as_str()?;
    let name = message.get("target")?.get("name")?.as_str()?;
    Some((name.to_owned(), path.into()))
}
