//! Who the origin is told that a connection is from, and whom the edge
//! believes about it.

use ipnet::IpNet;

use crate::resource::Transport;

/// How an app deals with the identity of its clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// What the origin is told.
    pub proxy_protocol: ProxyProtocol,
    /// Whose address the origin sees.
    pub client_ip: ClientIp,
    /// Networks, without host bits and none twice, of the proxies in front of
    /// the edge. Where there are any, every connection has to come from one of
    /// them and to start with a PROXY protocol header; there is no "if
    /// present", which would let anyone be anyone.
    pub trusted_senders: Vec<IpNet>,
}

/// How an origin is told of the client before the client's own bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    #[default]
    Off,
    /// One line of text before the stream.
    V1,
    /// A binary header, before the stream or the first datagram.
    V2,
    /// Cloudflare's Simple Proxy Protocol, on every datagram.
    Simple,
}

/// A form of the PROXY protocol that a transport does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{} is not for {transport}; right is {}", given.as_str(), words(*transport))]
pub struct ProxyProtocolError {
    pub given: ProxyProtocol,
    pub transport: Transport,
}

impl ProxyProtocol {
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyProtocol::Off => "off",
            ProxyProtocol::V1 => "v1",
            ProxyProtocol::V2 => "v2",
            ProxyProtocol::Simple => "simple",
        }
    }

    /// The forms that a transport has.
    pub fn of(transport: Transport) -> &'static [Self] {
        match transport {
            Transport::Tcp => &[Self::Off, Self::V1, Self::V2],
            Transport::Udp => &[Self::Off, Self::V2, Self::Simple],
        }
    }

    /// Itself, if `transport` has it.
    pub fn over(self, transport: Transport) -> Result<Self, ProxyProtocolError> {
        if Self::of(transport).contains(&self) {
            Ok(self)
        } else {
            let given = self;
            Err(ProxyProtocolError { given, transport })
        }
    }
}

fn words(transport: Transport) -> String {
    let words: Vec<_> = ProxyProtocol::of(transport)
        .iter()
        .map(|form| form.as_str())
        .collect();
    words.join(", ")
}

/// Whose address an origin sees as that of its peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientIp {
    /// The edge's own.
    #[default]
    Edge,
    /// The client's own address and port. Origins have to be of the client's
    /// address family, and to route their answers through the edge.
    Transparent,
}

impl ClientIp {
    pub fn as_str(self) -> &'static str {
        match self {
            ClientIp::Edge => "edge",
            ClientIp::Transparent => "transparent",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_has_its_own_forms() {
        use ProxyProtocol::{Off, Simple, V1, V2};
        for (transport, forms) in [
            (Transport::Tcp, [Off, V1, V2]),
            (Transport::Udp, [Off, V2, Simple]),
        ] {
            assert!(forms.iter().all(|form| form.over(transport) == Ok(*form)));
        }
        let fault = ProxyProtocol::Simple.over(Transport::Tcp);
        assert_eq!(
            fault.map_err(|fault| fault.to_string()),
            Err("simple is not for tcp; right is off, v1, v2".to_owned())
        );
    }
}
