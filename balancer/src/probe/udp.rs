//! A datagram, and perhaps the right one back.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyport_model::check::Exchange;
use tokio::net::UdpSocket;

use super::{
    ANSWER_MAX,
    attempt::Progress,
    converse::contains,
    datagram::{hear_all_errors, receive},
    failure::{Failure, Waiting},
};

/// With nothing to expect, whatever comes back passes, and so does silence, which
/// is the caller's to say when time is up.
pub(super) async fn exchange(
    address: SocketAddr,
    Exchange { send, expect }: &Exchange,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await.map_err(Failure::Datagram)?;
    hear_all_errors(&socket, address.ip()).map_err(Failure::Datagram)?;
    // Of a connected socket, nobody else than the origin is heard.
    let connected = socket.connect(address).await;
    connected.map_err(Failure::Datagram)?;
    socket.send(send).await.map_err(Failure::Datagram)?;
    progress.waiting = Waiting::Reply;
    loop {
        let datagram = receive(&socket, ANSWER_MAX).await;
        let datagram = datagram.map_err(Failure::Datagram)?;
        if contains(&datagram, expect) {
            return Ok(());
        }
        progress.heard = datagram;
    }
}
