//! What a comparison ran on, without which its figures say nothing.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::programs::Programs;

/// Versions and machine.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Setting {
    haproxy: String,
    nginx: String,
    anyport: &'static str,
    /// Where Anyport's programs are: whether they are built for release shows there.
    programs: PathBuf,
    kernel: String,
    processors: usize,
}

impl Setting {
    /// Asks the programs and the system.
    pub fn of(programs: &Programs, directory: &Path) -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            haproxy: version(&programs.haproxy, "version "),
            nginx: version(&programs.nginx, "nginx/"),
            anyport: env!("CARGO_PKG_VERSION"),
            programs: directory.to_owned(),
            kernel: kernel.trim_end().to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// What follows `mark`, up to a blank, in what the program says of itself.
fn version(program: &Path, mark: &str) -> String {
    let output = Command::new(program).arg("-v").output();
    let said = output.map(|output| [output.stdout, output.stderr].concat());
    let said = said.unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let version = said
        .split_once(mark)
        .and_then(|(_, rest)| rest.split_ascii_whitespace().next());
    version.unwrap_or("of unknown version").to_owned()
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let processors = match self.processors {
            1 => "1 processor".to_owned(),
            many => format!("{many} processors"),
        };
        write!(
            f,
            "HAProxy {}, nginx {}, Anyport {} ({}), Linux {}, {processors}",
            self.haproxy,
            self.nginx,
            self.anyport,
            self.programs.display(),
            self.kernel,
        )
    }
}
