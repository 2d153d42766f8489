//! What on this host will hurt, in plain words, before it does.
//!
//! [`doctor`] only looks. What it has to try, it tries in a network namespace
//! that is thrown away. The facts are gathered first and judged after, so that
//! every judgement can be tested without a host that has the fault.

mod facts;
mod judge;
mod probe;
mod sockets;

use std::fmt;

use ipnet::IpNet;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, or may work, but will hurt under some condition that the finding
    /// names.
    Warn,
    /// Steering cannot work.
    Fail,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Ok => "ok",
            Severity::Warn => "warn",
            Severity::Fail => "fail",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// One or two words, the same on every host: `rp_filter`, `conntrack`, …
    pub topic: &'static str,
    /// What was found, and what it means.
    pub found: String,
    /// What to do about it; empty where there is nothing to do.
    pub advice: String,
}

/// Looks at the host, in the network namespace of the calling thread.
///
/// `prefixes` are the address space that this edge answers for, as far as it
/// is known. `fixed_ports` are the ports that the agent binds by number, as
/// against its steered listeners, which take what they get.
///
/// Everything that can be looked at without privileges is; what cannot be read
/// is a finding, not an error.
pub async fn doctor(prefixes: &[IpNet], fixed_ports: &[u16]) -> Vec<Finding> {
    let facts = facts::gather().await;
    judge::judge(&facts, prefixes, fixed_ports)
}
