//! Ports that are one's own.

use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};

/// A port on loopback that nobody else is given as long as this is there. It is bound and
/// not listened on, so that connections to it are refused until a server of the test's
/// choice binds it too, as all do that set SO_REUSEADDR.
pub struct Port {
    _held: Socket,
    number: u16,
}

impl Port {
    pub fn reserve() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        held.set_reuse_address(true).unwrap();
        held.bind(&any.into()).unwrap();
        let bound = held.local_addr().unwrap().as_socket().unwrap();
        Self {
            _held: held,
            number: bound.port(),
        }
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}
