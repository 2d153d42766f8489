//! One error type: what was being done, in which namespace, and what the kernel answered.

use std::io;
use std::path::PathBuf;

use nix::libc;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a namespace, or something in it, could not be made or read.
///
/// The message says what was being done and where; the kernel's own answer is the
/// [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process lacks the privilege.
    #[error("namespace {namespace:?}: {action}: needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)")]
    NotPermitted {
        /// The label of the namespace.
        namespace: String,
        /// What was being done.
        action: String,
        /// The kernel's answer, EPERM or EACCES.
        source: io::Error,
    },
    /// A system call, or a file of `/proc`, refused.
    #[error("namespace {namespace:?}: {action}")]
    System {
        /// The label of the namespace.
        namespace: String,
        /// What was being done.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A netlink request was refused.
    #[error("namespace {namespace:?}: {action}")]
    Netlink {
        /// The label of the namespace.
        namespace: String,
        /// What was being done.
        action: String,
        /// The kernel's answer, with the attribute it objected to where it said so.
        source: nlink::Error,
    },
    /// The kernel gave an answer that is not of the documented form.
    #[error("namespace {namespace:?}: {path:?} holds {found:?}, where {expected} was expected")]
    Unreadable {
        /// The label of the namespace.
        namespace: String,
        /// The file that was read.
        path: PathBuf,
        /// What it held.
        found: String,
        /// What it should have held.
        expected: &'static str,
    },
    /// A kernel setting that is outside the network part, or not a plain path.
    #[error(
        "kernel setting {name:?} is not a path below net/, such as \"net/ipv4/conf/all/rp_filter\""
    )]
    NotANetworkSetting {
        /// The name as given.
        name: String,
    },
    /// An IPv6 route cannot have an IPv4 gateway.
    #[error("route to {to} via {gateway}: an IPv6 route needs an IPv6 gateway")]
    GatewayFamily {
        /// The destination.
        to: ipnet::IpNet,
        /// The gateway as given.
        gateway: std::net::IpAddr,
    },
    /// The address plan of the standard topology ends.
    #[error("a topology with {asked} origins: at most {most} fit the origins' /24")]
    TooManyOrigins {
        /// How many were asked for.
        asked: usize,
        /// How many there can be.
        most: usize,
    },
}

impl Error {
    /// The system's answer to `action` in the namespace labelled `namespace`.
    pub(crate) fn system(
        namespace: &str,
        action: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        let (namespace, action, source) = (namespace.to_owned(), action.into(), source.into());
        match source.raw_os_error() {
            Some(errno) if lacks_privilege(errno) => Self::NotPermitted {
                namespace,
                action,
                source,
            },
            _ => Self::System {
                namespace,
                action,
                source,
            },
        }
    }

    /// The netlink answer to `action` in the namespace labelled `namespace`.
    pub(crate) fn netlink(
        namespace: &str,
        action: impl Into<String>,
        source: nlink::Error,
    ) -> Self {
        match source.errno() {
            Some(errno) if lacks_privilege(errno) => {
                Self::system(namespace, action, io::Error::from_raw_os_error(errno))
            }
            _ => Self::Netlink {
                namespace: namespace.to_owned(),
                action: action.into(),
                source,
            },
        }
    }
}

fn lacks_privilege(errno: i32) -> bool {
    matches!(errno, libc::EPERM | libc::EACCES)
}
