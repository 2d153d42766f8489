//! Who is compared.

use std::fmt;

/// One of the ways to get from the client to the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// The proxy's host only forwards packets: what there is to lose.
    Plain,
    /// HAProxy in TCP mode.
    Haproxy,
    /// nginx with its stream module.
    Nginx,
    /// The least that a proxy can do ([`crate::relay`]): what there is to win.
    Bare,
    /// The edge agent, with config service and balancer beside it.
    Anyport,
}

impl Contender {
    /// All, in the order of their turns.
    pub const ALL: [Self; 5] = [
        Self::Plain,
        Self::Haproxy,
        Self::Nginx,
        Self::Bare,
        Self::Anyport,
    ];

    /// Whether it carries datagrams.
    pub fn has_datagrams(self) -> bool {
        !matches!(self, Self::Haproxy | Self::Bare)
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "routing",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Bare => "bare relay",
            Self::Anyport => "Anyport",
        }
    }

    /// Those that Anyport is measured against.
    pub const PEERS: [Self; 2] = [Self::Haproxy, Self::Nginx];
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
