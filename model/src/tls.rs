//! What becomes of TLS on the way through the edge.

use crate::{certificate::CaCertificates, names::CertificateName, server_name::NamePattern};

/// What an app does with the TLS of its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Bytes pass untouched, whatever they are. With names, the app has only
    /// the connections whose ClientHello asks for one of them.
    Off { sni: Vec<NamePattern> },
    /// The client's TLS ends at the edge.
    Terminate {
        certificate: CertificateName,
        origin: OriginTls,
    },
}

/// How the bytes of terminated connections go on to the origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginTls {
    /// `flexible`: without TLS.
    Clear,
    /// `full`: in TLS, whatever certificate the origin shows.
    Unchecked,
    /// `strict`: in TLS, with a certificate for the name that is asked for.
    Verified(Roots),
}

/// Whom an origin's certificate must come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Those that the edge's host trusts.
    System,
    Given(CaCertificates),
}

impl Default for Tls {
    fn default() -> Self {
        Self::Off { sni: Vec::new() }
    }
}

impl Tls {
    /// The manifest's word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Off { .. } => "off",
            Self::Terminate { origin, .. } => match origin {
                OriginTls::Clear => "flexible",
                OriginTls::Unchecked => "full",
                OriginTls::Verified(_) => "strict",
            },
        }
    }

    /// The names that connections are routed by; empty: any connection.
    pub fn sni(&self) -> &[NamePattern] {
        match self {
            Self::Off { sni } => sni,
            Self::Terminate { .. } => &[],
        }
    }

    pub fn certificate(&self) -> Option<&CertificateName> {
        match self {
            Self::Off { .. } => None,
            Self::Terminate { certificate, .. } => Some(certificate),
        }
    }
}
