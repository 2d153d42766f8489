//! Why the kernel could not be made to do as wanted.

use std::{fmt::Write, io};

/// What went wrong between the agent and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel refused, or could not be asked.
    #[error("{doing}: {}{}", chain(source), hint(source))]
    Netlink {
        doing: String,
        source: Box<nlink::Error>,
    },
    /// The socket's send buffer could not be made large enough for a whole
    /// transaction.
    #[error("raising the send buffer of a netlink socket: {0}; needs root (CAP_NET_ADMIN)")]
    SendBuffer(#[source] io::Error),
    /// A table of our name exists without our mark, so it is not ours to
    /// change.
    #[error(
        "the nftables table \"inet anyport\" was not made by Anyport; rename it, or remove it \
         with `nft delete table inet anyport`"
    )]
    ForeignTable,
    /// The kernel refused the sk_lookup program, its maps or their pins.
    #[error("steering by sk_lookup: {0}")]
    SkLookup(String),
    /// As [`ForeignTable`](Self::ForeignTable), of the table of the way back.
    #[error(
        "the nftables table \"inet anyport_return\" was not made by Anyport; rename it, or remove \
         it with `nft delete table inet anyport_return`"
    )]
    ForeignReturnTable,
    /// Others changed the ruleset faster than it could be read and changed.
    #[error(
        "the nftables ruleset or the local routing table changed under each of {attempts} \
         attempts; find out what changes it all the time with `nft monitor` and `ip monitor route` \
         (the last attempt: {last})"
    )]
    Busy { attempts: u32, last: Box<Self> },
    /// A thread or a namespace for a probe could not be had.
    #[error("{doing}: {source}")]
    System {
        doing: &'static str,
        source: io::Error,
    },
    /// The reconciler has ended; the agent is shutting down.
    #[error("the kernel reconciler has ended")]
    Ended,
}

impl KernelError {
    pub(crate) fn netlink(doing: impl Into<String>, source: nlink::Error) -> Self {
        Self::Netlink {
            doing: doing.into(),
            source: Box::new(source),
        }
    }

    /// What was read is no longer so; reading again and planning anew helps.
    ///
    /// ENOENT and EEXIST come from reading what has just gone, and from adding
    /// a route that has just come. From a transaction, whose generation is
    /// checked first, they mean something else: see [`Self::is_clash`].
    pub(crate) fn is_stale(&self) -> bool {
        let Self::Netlink { source, .. } = self else {
            return false;
        };
        source.is_restart()
            || source.is_dump_interrupted()
            || (!is_refused_batch(source)
                && matches!(source.errno(), Some(libc::ENOENT | libc::EEXIST)))
    }

    /// The kernel refused a route for what it is, not because of the state of
    /// the host as a whole, which would refuse every other as well.
    pub(crate) fn concerns_one_route(&self) -> bool {
        let Self::Netlink { source, .. } = self else {
            return false;
        };
        let of_the_host = [libc::EPERM, libc::ENETDOWN, libc::ENOMEM, libc::ENOBUFS];
        let errno = source.errno();
        !self.is_stale() && errno.is_some_and(|errno| !of_the_host.contains(&errno))
    }

    /// The kernel found two elements of a set to overlap.
    pub(crate) fn is_clash(&self) -> bool {
        let Self::Netlink { source, .. } = self else {
            return false;
        };
        is_refused_batch(source) && source.is_already_exists()
    }
}

fn is_refused_batch(error: &nlink::Error) -> bool {
    matches!(error.detail(), nlink::ErrorDetail::NftBatch { .. })
}

/// nlink tells the operation in its message and the kernel's words in the
/// sources below it; an operator needs both on one line.
fn chain(error: &nlink::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

fn hint(error: &nlink::Error) -> &'static str {
    match error.errno() {
        Some(libc::EPERM) => "; needs root (CAP_NET_ADMIN)",
        Some(libc::EEXIST) if is_refused_batch(error) => {
            "; two of the claims overlap, and they must not"
        }
        // Of a route, this is what IPv6 says that is switched off on `lo`.
        Some(libc::EACCES) => {
            "; is IPv6 off? `sysctl net.ipv6.conf.all.disable_ipv6=0`; else needs root"
        }
        Some(libc::ENETDOWN) => "; is `lo` up? `ip link set lo up`",
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
            "; this kernel lacks a part that steering needs, see `anyport doctor`"
        }
        _ => "",
    }
}
