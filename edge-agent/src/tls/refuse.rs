//! Telling a TLS client that there is nothing for it, in TLS.

use anyport_model::client_hello::HELLO_MAX;
use tokio::net::TcpStream;

use crate::tcp::with_scratch;

/// A fatal alert, unrecognized_name (RFC 6066 §3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Answers a ClientHello that was only peeked at, whose name nobody has.
pub fn unrecognized_name(client: &TcpStream) {
    // Closing a socket with bytes unread resets it, and the alert is lost. A
    // client that is gone, or sends on, does not need it.
    let _ = with_scratch(|scratch| {
        let unread = scratch.get_mut(..HELLO_MAX).unwrap_or_default();
        client.try_read(unread)
    });
    let _ = client.try_write(&UNRECOGNIZED_NAME);
}
