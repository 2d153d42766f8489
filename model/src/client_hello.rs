//! The first message of a TLS client (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2), as
//! far as the edge decides by it: which name is asked for, and which protocols
//! (ALPN, RFC 7301) are offered. Bytes in, outcome out.

use std::borrow::Cow;

use crate::server_name::ServerName;

/// No ClientHello that is let in takes more bytes than this, records and all.
/// One of a browser, with a post-quantum share, has two thousand.
pub const HELLO_MAX: usize = 16 << 10;

/// Longest record without encryption (RFC 8446 §5.1).
const RECORD_MAX: usize = 1 << 14;

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// What a stream begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// A beginning of a ClientHello, or nothing yet.
    Incomplete,
    Hello(ClientHello),
    NotTls(NotTls),
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    pub server_name: Option<ServerName>,
    /// Protocols in the client's order of preference, as they are on the wire.
    pub alpn: Vec<Vec<u8>>,
}

/// Why bytes are no ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTls {
    #[error("the first byte is none of TLS")]
    NoHandshake,
    #[error("the version of a record is none of TLS")]
    Version,
    #[error("the length of a record is not allowed")]
    RecordLength,
    #[error("the first message is no ClientHello")]
    NoClientHello,
    #[error("the ClientHello is longer than {HELLO_MAX} bytes")]
    TooLong,
    #[error("the ClientHello is malformed")]
    Malformed,
    #[error("the name in the ClientHello is no host name")]
    ServerName,
}

impl From<NotTls> for Start {
    fn from(why: NotTls) -> Self {
        Start::NotTls(why)
    }
}

/// Reads the beginning of a stream. What more bytes would not change is said at
/// once; the cost of an incomplete one is that of its record headers.
pub fn read(bytes: &[u8]) -> Start {
    match message(bytes) {
        Ok(Some(message)) => match hello(&message) {
            Ok(hello) => Start::Hello(hello),
            Err(why) => why.into(),
        },
        Ok(None) => Start::Incomplete,
        Err(why) => why.into(),
    }
}

/// The body of the ClientHello, once it is whole. It may be cut over records in
/// any way (RFC 8446 §5.1).
fn message(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, NotTls> {
    // Of the records that there are; the last may be cut short.
    let mut payloads: Vec<&[u8]> = Vec::new();
    let mut have = 0;
    let mut rest = bytes;
    while let Some(record) = record(rest)? {
        have += record.payload.len();
        payloads.push(record.payload);
        rest = record.rest;
        // What follows the message is not looked at.
        if let Some(end) = end_of_message(&payloads)?
            && have >= end
        {
            return Ok(Some(match payloads.as_slice() {
                [only] => Cow::Borrowed(only.get(4..end).unwrap_or_default()),
                several => {
                    let whole = several.concat();
                    Cow::Owned(whole.get(4..end).unwrap_or_default().to_vec())
                }
            }));
        }
    }
    if bytes.len() >= HELLO_MAX {
        return Err(NotTls::TooLong);
    }
    Ok(None)
}

/// Length of the message with its header; `None` until the header is there.
fn end_of_message(payloads: &[&[u8]]) -> Result<Option<usize>, NotTls> {
    let mut head = payloads.iter().copied().flatten().copied();
    if head.next().is_some_and(|kind| kind != CLIENT_HELLO) {
        return Err(NotTls::NoClientHello);
    }
    let (Some(a), Some(b), Some(c)) = (head.next(), head.next(), head.next()) else {
        return Ok(None);
    };
    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    if length > HELLO_MAX {
        return Err(NotTls::TooLong);
    }
    Ok(Some(4 + length))
}

struct Record<'a> {
    /// As far as it is there.
    payload: &'a [u8],
    /// What follows.
    rest: &'a [u8],
}

/// The first record.
fn record(bytes: &[u8]) -> Result<Option<Record<'_>>, NotTls> {
    match bytes.first() {
        None => return Ok(None),
        Some(&HANDSHAKE_RECORD) => {}
        Some(_) => return Err(NotTls::NoHandshake),
    }
    // 3.1 to 3.4; a ClientHello says what it really is inside.
    if bytes.get(1).is_some_and(|&major| major != 3) {
        return Err(NotTls::Version);
    }
    let Some((header, rest)) = bytes.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length == 0 || length > RECORD_MAX {
        return Err(NotTls::RecordLength);
    }
    let (payload, rest) = rest.split_at_checked(length).unwrap_or((rest, &[]));
    Ok(Some(Record { payload, rest }))
}

fn hello(body: &[u8]) -> Result<ClientHello, NotTls> {
    let mut fields = Fields(body);
    let fields = &mut fields;
    // legacy_version, random
    fields.take(2 + 32)?;
    // legacy_session_id, cipher_suites, legacy_compression_methods
    fields.vector8()?;
    fields.vector16()?;
    fields.vector8()?;
    let mut hello = ClientHello::default();
    // Before TLS 1.3 a ClientHello may end here.
    if fields.0.is_empty() {
        return Ok(hello);
    }
    let mut extensions = Fields(fields.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let value = extensions.vector16()?;
        match kind {
            SERVER_NAME => hello.server_name = server_name(value)?,
            ALPN => hello.alpn = alpn(value)?,
            _ => {}
        }
    }
    Ok(hello)
}

/// The host name of the list (RFC 6066 §3).
fn server_name(value: &[u8]) -> Result<Option<ServerName>, NotTls> {
    const HOST_NAME: u8 = 0;
    let mut list = Fields(Fields(value).vector16()?);
    while !list.0.is_empty() {
        let kind = list.take(1)?;
        let name = list.vector16()?;
        if kind == [HOST_NAME] {
            let name = std::str::from_utf8(name).map_err(|_| NotTls::ServerName)?;
            return name.parse().map(Some).map_err(|_| NotTls::ServerName);
        }
    }
    Ok(None)
}

fn alpn(value: &[u8]) -> Result<Vec<Vec<u8>>, NotTls> {
    let mut list = Fields(Fields(value).vector16()?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        match list.vector8()? {
            [] => return Err(NotTls::Malformed),
            protocol => protocols.push(protocol.to_vec()),
        }
    }
    Ok(protocols)
}

/// Takes fields off the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], NotTls> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(NotTls::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number16(&mut self) -> Result<u16, NotTls> {
        match self.take(2)? {
            &[high, low] => Ok(u16::from_be_bytes([high, low])),
            _ => Err(NotTls::Malformed),
        }
    }

    fn vector8(&mut self) -> Result<&'a [u8], NotTls> {
        let length = self.take(1)?.first().copied().unwrap_or_default();
        self.take(length.into())
    }

    fn vector16(&mut self) -> Result<&'a [u8], NotTls> {
        let length = self.number16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn vector16(bytes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(bytes.len()).unwrap();
        [&length.to_be_bytes()[..], bytes].concat()
    }

    fn vector8(bytes: &[u8]) -> Vec<u8> {
        [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector16(value)].concat()
    }

    fn named(name: &str) -> Vec<u8> {
        let entry = [&[0], &vector16(name.as_bytes())[..]].concat();
        extension(SERVER_NAME, &vector16(&entry))
    }

    /// A ClientHello message, header and all.
    fn message_of(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(vector8(&[1; 32]));
        body.extend(vector16(&[0x13, 0x01]));
        body.extend(vector8(&[0]));
        body.extend(extensions.map(vector16).unwrap_or_default());
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1], &length[1..], &body].concat()
    }

    fn records(message: &[u8], cut: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[22, 3, 1], &vector16(part)[..]].concat();
        message.chunks(cut).flat_map(record).collect()
    }

    fn usual() -> (Vec<u8>, ClientHello) {
        let protocols = [vector8(b"h2"), vector8(b"http/1.1")].concat();
        let extensions = [
            extension(43, &[2, 3, 4]),
            named("Mail.Example.com"),
            extension(ALPN, &vector16(&protocols)),
            extension(0xff01, &[0]),
        ];
        let hello = ClientHello {
            server_name: Some("mail.example.com".parse().unwrap()),
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        (message_of(Some(&extensions.concat())), hello)
    }

    #[test]
    fn name_and_protocols_are_found_however_the_message_is_cut() {
        let (message, hello) = usual();
        for cut in [1, 2, 3, 7, 100, message.len()] {
            let mut bytes = records(&message, cut);
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Start::Incomplete, "{end} of cut {cut}");
            }
            assert_eq!(read(&bytes), Start::Hello(hello.clone()));
            bytes.extend(b"what follows does not matter");
            assert_eq!(read(&bytes), Start::Hello(hello.clone()));
        }
    }

    #[test]
    fn a_client_hello_without_extensions_asks_for_no_name() {
        let plain = Start::Hello(ClientHello::default());
        assert_eq!(read(&records(&message_of(None), 100)), plain);
        assert_eq!(read(&records(&message_of(Some(&[])), 100)), plain);
    }

    #[test]
    fn what_cannot_become_a_client_hello_is_told_at_once() {
        for (bytes, why) in [
            (&b"GET / HTTP/1.1"[..], NotTls::NoHandshake),
            (b"\x16\x02", NotTls::Version),
            (b"\x16\x03\x01\x00\x00", NotTls::RecordLength),
            (b"\x16\x03\x01\x40\x01", NotTls::RecordLength),
            (b"\x16\x03\x01\x00\x04\x02", NotTls::NoClientHello),
            (b"\x16\x03\x01\x00\x04\x01\x00\x40\x01", NotTls::TooLong),
            (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", NotTls::Malformed),
        ] {
            assert_eq!(read(bytes), Start::NotTls(why), "{bytes:?}");
        }
        let address = message_of(Some(&named("203.0.113.1")));
        assert_eq!(
            read(&records(&address, 1000)),
            Start::NotTls(NotTls::ServerName)
        );
        // Tiny records, without end.
        let (message, _) = usual();
        let padded = message_of(Some(&extension(21, &vec![0; 14_000])));
        assert!(matches!(read(&records(&padded, 5000)), Start::Hello(_)));
        let trickle = &records(&padded, 1)[..HELLO_MAX];
        assert_eq!(read(trickle), Start::NotTls(NotTls::TooLong));
        let cut_short = &message[..message.len() - 3];
        let mut lying = cut_short.to_vec();
        let length = u32::try_from(cut_short.len() - 4).unwrap().to_be_bytes();
        lying[1..4].copy_from_slice(&length[1..]);
        assert_eq!(
            read(&records(&lying, 1000)),
            Start::NotTls(NotTls::Malformed)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_more_of_them_change_no_verdict(
            bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1usize..40
        ) {
            read(&bytes);
            let framed = records(&[&[1, 0, 0, 150][..], &bytes].concat(), cut);
            let verdict = |end| match read(&framed[..end]) {
                Start::Incomplete => 0,
                Start::Hello(_) => 1,
                Start::NotTls(_) => 2,
            };
            let first = (0..framed.len()).map(verdict).find(|v| *v != 0);
            if let Some(first) = first {
                prop_assert!(verdict(framed.len()) == first);
            }
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0usize..200, value: u8) {
            let (message, _) = usual();
            let mut bytes = records(&message, 50);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            read(&bytes);
        }
    }
}
