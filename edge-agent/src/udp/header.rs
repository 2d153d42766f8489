//! What an origin is told of a flow's client, before the client's own bytes.

use anyport_model::identity::ProxyProtocol;

use super::sessions::Key;
use crate::proxy_protocol::{Endpoints, Protocol, Tlv, decode_simple, encode_simple, encode_v2};

/// The PROXY protocol of one flow.
pub(super) enum Header {
    None,
    /// Before the first datagram that an origin gets.
    First {
        bytes: Box<[u8]>,
        sent: bool,
    },
    /// Before each datagram, and before each answer.
    Each {
        bytes: Box<[u8]>,
        ends: Endpoints,
    },
}

impl Header {
    pub(super) fn new(form: ProxyProtocol, key: &Key) -> Self {
        let ends = Endpoints::new(key.client, key.edge);
        match form {
            // Version 1 is for streams.
            ProxyProtocol::Off | ProxyProtocol::V1 => Header::None,
            ProxyProtocol::V2 => {
                let id = Tlv::UniqueId(rand::random());
                let bytes = encode_v2(Protocol::Datagram, ends, &[id]).into();
                Header::First { bytes, sent: false }
            }
            ProxyProtocol::Simple => Header::Each {
                bytes: Box::new(encode_simple(ends)),
                ends,
            },
        }
    }

    /// What goes before each of the datagrams that follow the next one.
    pub(super) fn of_each(&self) -> &[u8] {
        match self {
            Header::Each { bytes, .. } => bytes,
            Header::None | Header::First { .. } => &[],
        }
    }

    /// What goes before the next datagram alone; none, if it is as the others.
    pub(super) fn of_first(&self) -> Option<&[u8]> {
        match self {
            Header::First { bytes, sent: false } => Some(bytes),
            _ => None,
        }
    }

    pub(super) fn first_is_sent(&mut self) {
        if let Header::First { sent, .. } = self {
            *sent = true;
        }
    }

    /// Another origin has heard nothing yet.
    pub(super) fn begin_again(&mut self) {
        if let Header::First { sent, .. } = self {
            *sent = false;
        }
    }

    /// How many bytes of an answer are not for the client; none, if it does
    /// not say that it belongs to this flow.
    pub(super) fn of_answer(&self, answer: &[u8]) -> Option<usize> {
        let Header::Each { bytes, ends } = self else {
            return Some(0);
        };
        let (said, _) = decode_simple(answer).ok()?;
        (said == *ends).then_some(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(client: &str) -> Key {
        Key {
            client: client.parse().unwrap(),
            edge: "198.51.100.1:53".parse().unwrap(),
        }
    }

    #[test]
    fn version_2_goes_before_the_first_datagram_of_each_origin() {
        let mut header = Header::new(ProxyProtocol::V2, &key("203.0.113.9:4000"));
        assert!(
            header
                .of_first()
                .unwrap()
                .starts_with(b"\r\n\r\n\0\r\nQUIT\n")
        );
        assert!(header.of_each().is_empty());
        header.first_is_sent();
        assert_eq!(header.of_first(), None);
        header.begin_again();
        assert!(header.of_first().is_some());
        assert_eq!(header.of_answer(b"anything"), Some(0));
    }

    #[test]
    fn an_answer_has_to_carry_the_simple_header_of_its_flow() {
        let header = Header::new(ProxyProtocol::Simple, &key("203.0.113.9:4000"));
        assert_eq!((header.of_each().len(), header.of_first()), (38, None));
        let other = Header::new(ProxyProtocol::Simple, &key("203.0.113.9:4001"));
        let answer = [header.of_each(), b"answer"].concat();
        assert_eq!(header.of_answer(&answer), Some(38));
        assert_eq!(other.of_answer(&answer), None);
        assert_eq!(header.of_answer(&answer[..37]), None);
        assert_eq!(header.of_answer(b""), None);
    }
}
