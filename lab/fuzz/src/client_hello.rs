//! The ClientHello of a TLS client.

use anyport_model::client_hello::{HELLO_MAX, Start, read};

/// What was decided on some bytes stays so when more come; and it is decided in the end.
pub fn client_hello(bytes: &[u8]) {
    // The edge looks at no more of a stream.
    let bytes = &bytes[..bytes.len().min(HELLO_MAX)];
    let whole = read(bytes);
    let step = (bytes.len() / 16).max(1);
    for end in (0..bytes.len()).step_by(step) {
        match read(&bytes[..end]) {
            Start::Incomplete => {}
            decided => assert_eq!(decided, whole, "at {end} of {}", bytes.len()),
        }
    }
    assert!(bytes.len() < HELLO_MAX || whole != Start::Incomplete);
}
