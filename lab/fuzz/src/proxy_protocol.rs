//! PROXY protocol headers of senders, and Simple Proxy Protocol headers of origins.

use anyport_edge_agent::proxy_protocol::{
    Decoded, Header, Protocol, decode, decode_simple, encode_simple, encode_v1, encode_v2,
};

/// Longer than any header that is read.
const LONGEST: usize = 4096;

/// What was decided on some bytes stays so when more come; it is decided in the end; and what was
/// read is read again from what is written of it.
pub fn header(bytes: &[u8]) {
    let whole = decode(bytes);
    let step = (bytes.len() / 64).max(1);
    for end in (0..bytes.len()).step_by(step) {
        match decode(&bytes[..end]) {
            Ok(Decoded::Incomplete) => {}
            decided => assert_eq!(decided, whole, "at {end} of {}", bytes.len()),
        }
    }
    let (len, header) = match whole {
        Ok(Decoded::Complete { len, header }) => (len, header),
        Ok(Decoded::Incomplete) => return assert!(bytes.len() < LONGEST),
        Err(malformed) => return assert!(!malformed.to_string().is_empty()),
    };
    assert!(len <= bytes.len());
    assert_eq!(
        decode(&bytes[..len]),
        whole,
        "what follows is not the header's"
    );
    if let Header::Proxied {
        protocol,
        endpoints,
    } = header
    {
        let written = encode_v2(protocol, endpoints, &[]);
        let len = written.len();
        assert_eq!(decode(&written), Ok(Decoded::Complete { len, header }));
        if protocol == Protocol::Stream {
            let written = encode_v1(endpoints);
            let len = written.len();
            assert_eq!(decode(&written), Ok(Decoded::Complete { len, header }));
        }
    }
}

/// What was read is read again from what is written of it, with the same payload.
pub fn simple(bytes: &[u8]) {
    if let Ok((endpoints, payload)) = decode_simple(bytes) {
        let again = [&encode_simple(endpoints), payload].concat();
        assert_eq!(again.len(), bytes.len());
        assert_eq!(decode_simple(&again), Ok((endpoints, payload)));
    }
}
