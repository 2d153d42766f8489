//! Where in which file something stands.

use std::{fmt, sync::Arc};

/// A field of a manifest, as its user would look for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// As given to `-f`.
    pub file: Arc<str>,
    /// Counted from 1; 0: unknown.
    pub line: u64,
    /// `apps[2].edge_ips[0]`; empty for the file as a whole.
    pub path: String,
}

/// `game.yaml:12: apps[2].edge_ips[0]`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        Ok(())
    }
}

/// Something in a manifest that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ManifestFault {
    /// Where it stands.
    pub place: Place,
    /// What the value is and what would be right.
    pub problem: String,
}
