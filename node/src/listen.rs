//! Listening sockets, and errors that say which flag to change.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use nix::sys::socket::{Backlog, listen};

use crate::identity::{ClearTextRefused, Identity};

/// Connections that wait to be accepted; the kernel's `somaxconn` may allow less.
const BACKLOG: i32 = 4_096;

/// A service could not listen where its flags said.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is not loopback and there is no TLS.
    #[error(transparent)]
    ClearText(#[from] ClearTextRefused),
    /// The operating system refused.
    #[error("{flag} {address}: cannot listen: {source}{}", hint(source))]
    Bind {
        /// The flag that named the address, such as `--listen`.
        flag: &'static str,
        /// The address that was asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
}

/// What protects the bytes on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// TLS wherever the identity has it.
    WhenConfigured,
    /// Never TLS: plain HTTP.
    None,
}

/// Listens on `address`, which the user gave with `flag`, unless that would offer
/// clear text to the network. A listener that was `inherited` is used where it
/// listens there already, and closed otherwise.
pub(crate) fn bind(
    flag: &'static str,
    address: SocketAddr,
    identity: &Identity,
    protection: Protection,
    inherited: Option<TcpListener>,
) -> Result<TcpListener, ListenError> {
    match protection {
        Protection::WhenConfigured => identity.check_listen(flag, address)?,
        Protection::None => identity.check_clear_text(flag, address)?,
    }
    let inherited = inherited.filter(|listener| listens_at(listener, address));
    let listener = inherited.map_or_else(|| TcpListener::bind(address), Ok);
    let bound = listener.and_then(|listener| {
        listener.set_nonblocking(true)?;
        // The standard library's is 128, and a fleet comes back all at once.
        listen(&listener, Backlog::new(BACKLOG)?)?;
        Ok(listener)
    });
    bound.map_err(|source| ListenError::Bind {
        flag,
        address,
        source,
    })
}

fn listens_at(listener: &TcpListener, address: SocketAddr) -> bool {
    listener.local_addr().is_ok_and(|own| {
        let any_port = address.port() == 0;
        own.ip() == address.ip() && (any_port || own.port() == address.port())
    })
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there, or give another port",
        io::ErrorKind::AddrNotAvailable => "; no interface of this host has that address",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE, or give a higher one"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_flag() {
        let clear = Identity::none();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first =
            bind("--listen", any, &clear, Protection::WhenConfigured, None).expect("a free port");
        let taken = first.local_addr().expect("bound");
        let error = bind("--admin", taken, &clear, Protection::None, None)
            .expect_err("taken")
            .to_string();
        assert!(
            error.starts_with(&format!("--admin {taken}: cannot listen: ")),
            "{error}"
        );
        assert!(error.contains("another process listens there"), "{error}");
    }

    #[test]
    fn an_inherited_listener_is_used_where_it_listens_as_asked() {
        let clear = Identity::none();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = TcpListener::bind(any).expect("a free port");
        let taken = first.local_addr().expect("bound");
        let copy = || Some(first.try_clone().expect("a descriptor"));
        let again = bind("--admin", taken, &clear, Protection::None, copy()).expect("adopted");
        assert_eq!(again.local_addr().expect("bound"), taken);
        let elsewhere = SocketAddr::from(([127, 0, 0, 2], 0));
        let other = bind("--admin", elsewhere, &clear, Protection::None, copy()).expect("bound");
        assert_ne!(other.local_addr().expect("bound"), taken);
    }
}
