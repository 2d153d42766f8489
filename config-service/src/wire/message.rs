//! Messages of a gRPC stream.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use prost::{
    Message,
    bytes::{BufMut, Bytes, BytesMut},
};
use tonic::codegen::http::{HeaderMap, HeaderValue};

/// Bytes that go before each message.
pub(crate) const PREFIX: usize = 5;

/// Shorter ones are not worth it.
const COMPRESS_FROM: usize = 16 << 10;
/// States are text that repeats itself: more effort takes several times as long and
/// saves little.
const EFFORT: Compression = Compression::fast();

/// How long messages of an answer are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
}

impl Coding {
    /// The best that a client takes, by the headers of its request.
    pub(crate) fn accepted(headers: &HeaderMap) -> Self {
        let accepted = headers.get_all("grpc-accept-encoding").iter();
        let mut accepted = accepted.filter_map(|value| value.to_str().ok());
        let gzip = accepted.any(|value| value.split(',').any(|coding| coding.trim() == "gzip"));
        if gzip { Self::Gzip } else { Self::Identity }
    }

    /// `grpc-encoding` of an answer.
    pub(crate) fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
        }
    }
}

/// What goes before a message of this length: one byte that says whether it is
/// compressed, and the length, most significant byte first.
pub(crate) fn prefix(compressed: bool, length: usize) -> [u8; PREFIX] {
    // No message is that long: no state is (`admit`), and what is longer is not sent.
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [compressed.into(), a, b, c, d]
}

/// A message with its prefix, compressed where it is long, and shorter for it.
pub(crate) fn message(message: &impl Message, coding: Coding) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_slice(&prefix(false, length));
    // Cannot fail: a buffer that grows has room.
    let _ = message.encode(&mut bytes);
    let plain = bytes.freeze();
    match coding {
        Coding::Gzip if length >= COMPRESS_FROM => compressed(&plain).unwrap_or(plain),
        _ => plain,
    }
}

fn compressed(plain: &Bytes) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(vec![0; PREFIX], EFFORT);
    // Neither can fail: a vector grows.
    encoder.write_all(plain.get(PREFIX..)?).ok()?;
    let mut bytes = encoder.finish().ok()?;
    if bytes.len() >= plain.len() {
        return None;
    }
    let length = bytes.len() - PREFIX;
    bytes
        .get_mut(..PREFIX)?
        .copy_from_slice(&prefix(true, length));
    bytes.shrink_to_fit();
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;

    use anyport_proto::v1;

    use super::*;

    #[test]
    fn what_a_client_takes_is_in_its_headers() {
        let accepted = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("grpc-accept-encoding", HeaderValue::from_static(value));
            }
            Coding::accepted(&headers)
        };
        for gzip in [
            &["gzip,identity"][..],
            &["identity, gzip"],
            &["zstd", "gzip"],
        ] {
            assert_eq!(accepted(gzip), Coding::Gzip, "{gzip:?}");
        }
        for plain in [&[][..], &["identity"], &["gzipped"], &["zstd,deflate"]] {
            assert_eq!(accepted(plain), Coding::Identity, "{plain:?}");
        }
    }

    #[test]
    fn what_is_long_is_compressed_and_shorter_for_it() {
        let of = |state_hash| v1::Ack {
            state_hash,
            ..Default::default()
        };
        let noise = (0..COMPRESS_FROM).map(|_| rand::random()).collect();
        for (sent, is_compressed) in [
            (vec![7; COMPRESS_FROM], true),
            (vec![7; COMPRESS_FROM - 100], false),
            (noise, false),
        ] {
            let sent = of(sent);
            let bytes = message(&sent, Coding::Gzip);
            let said = u32::from_be_bytes(bytes[1..PREFIX].try_into().unwrap());
            assert_eq!(said as usize, bytes.len() - PREFIX);
            assert_eq!(bytes[0], u8::from(is_compressed));
            let mut read = Vec::new();
            match is_compressed {
                true => flate2::read::GzDecoder::new(&bytes[PREFIX..]).read_to_end(&mut read),
                false => (&bytes[PREFIX..]).read_to_end(&mut read),
            }
            .unwrap();
            assert_eq!(v1::Ack::decode(&read[..]).unwrap(), sent);
            let plain = message(&sent, Coding::Identity);
            assert_eq!((plain[0], plain.len()), (0, PREFIX + sent.encoded_len()));
        }
    }
}
