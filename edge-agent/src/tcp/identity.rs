//! Who a connection is from: what a trusted sender says before the stream,
//! and what the origin is told.
//!
//! A connection that has to come with a PROXY header is refused without one,
//! and so is one from a sender that is not trusted: where a header is optional,
//! whoever reaches the edge can be whoever it likes.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use anyport_model::{identity::ProxyProtocol, net_set::NetSet, outcome::Status};
use anyport_node::telemetry::current_trace_id;
use ipnet::IpNet;
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::{net::TcpStream, time::timeout};

use crate::proxy_protocol::{
    Decoded, Endpoints, Header, Malformed, Protocol, Tlv, decode, encode_v1, encode_v2,
};

/// For a whole header, from the accept on. In all and not per byte, so that a
/// sender that dribbles gains nothing.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);

/// Of a header, how much is looked at together. All that senders write in
/// practice fits.
const LOOK: usize = 256;

/// The ends of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    ends: Endpoints,
}

impl Identity {
    /// Of a connection that speaks for itself.
    pub(crate) fn of(peer: SocketAddr, edge: SocketAddr) -> Self {
        Self {
            ends: Endpoints::new(peer, edge),
        }
    }

    /// The client: the peer, or whom a trusted sender says that it speaks for.
    /// An IPv4 address is one however it was written, so that rules for it
    /// cannot be gone around.
    pub(crate) fn client(&self) -> SocketAddr {
        let source = self.ends.source();
        SocketAddr::new(source.ip().to_canonical(), source.port())
    }

    /// The header for an origin; none where it wants none.
    pub(crate) fn header(&self, form: ProxyProtocol) -> Option<Vec<u8>> {
        match form {
            // Simple is for datagrams.
            ProxyProtocol::Off | ProxyProtocol::Simple => None,
            ProxyProtocol::V1 => Some(encode_v1(self.ends)),
            ProxyProtocol::V2 => {
                let id = Some(Tlv::UniqueId(rand::random()));
                let trace = current_trace_id().and_then(|id| u128::from_str_radix(&id, 16).ok());
                let tlvs: Vec<_> = id.into_iter().chain(trace.map(Tlv::TraceId)).collect();
                Some(encode_v2(Protocol::Stream, self.ends, &tlvs))
            }
        }
    }
}

/// A connection that had to come with a PROXY header, and why it is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoIdentity {
    #[error("{0} is none of the senders in accept_proxy_protocol")]
    Untrusted(std::net::IpAddr),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the connection ended before its PROXY protocol header was whole")]
    CutShort,
    #[error("no whole PROXY protocol header within {HEADER_DEADLINE:?}")]
    Late,
    #[error("reading the PROXY protocol header: {0}")]
    Failed(#[from] io::Error),
}

impl NoIdentity {
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Untrusted(_) | Self::Malformed(_) | Self::CutShort => Status::Denied,
            Self::Late => Status::ClientTimedOut,
            Self::Failed(error) => Status::of_client_error(error.kind()),
        }
    }

    /// The label `reason` of `anyport_proxy_header_refused_total`.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Untrusted(_) => "untrusted",
            Self::Malformed(_) => "malformed",
            Self::CutShort | Self::Failed(_) => "cut_short",
            Self::Late => "late",
        }
    }
}

/// Takes the PROXY header, and not a byte more, off a connection that has to
/// come with one from `trusted`.
pub(crate) async fn receive(
    stream: &TcpStream,
    peer: SocketAddr,
    edge: SocketAddr,
    trusted: &NetSet,
) -> Result<Identity, NoIdentity> {
    if trusted.covering(&IpNet::from(peer.ip())).is_none() {
        return Err(NoIdentity::Untrusted(peer.ip()));
    }
    let header = timeout(HEADER_DEADLINE, read_header(stream)).await;
    Ok(match header.map_err(|_| NoIdentity::Late)?? {
        Header::Proxied {
            protocol: Protocol::Stream,
            endpoints,
        } => Identity { ends: endpoints },
        // The specification has a receiver take what it cannot use for
        // unspecified.
        Header::Proxied { .. } | Header::Unspecified => Identity::of(peer, edge),
    })
}

/// Bytes are looked at first and taken when they are known to belong to the
/// header, so that the client's own stay where they are, for whoever reads
/// next.
async fn read_header(stream: &TcpStream) -> Result<Header, NoIdentity> {
    let mut bytes = Vec::new();
    loop {
        let known = bytes.len();
        bytes.resize(known + LOOK, 0);
        let seen = stream
            .peek(bytes.get_mut(known..).unwrap_or_default())
            .await?;
        if seen == 0 {
            return Err(NoIdentity::CutShort);
        }
        bytes.truncate(known + seen);
        let (taken, whole) = match decode(&bytes)? {
            Decoded::Incomplete => (bytes.len(), None),
            Decoded::Complete { len, header } => (len, Some(header)),
        };
        bytes.truncate(taken);
        take(stream, bytes.get_mut(known..).unwrap_or_default()).await?;
        if let Some(header) = whole {
            return Ok(header);
        }
    }
}

async fn take(stream: &TcpStream, mut bytes: &mut [u8]) -> Result<(), NoIdentity> {
    while !bytes.is_empty() {
        stream.readable().await?;
        match stream.try_read(bytes) {
            Ok(0) => return Err(NoIdentity::CutShort),
            Ok(count) => bytes = bytes.get_mut(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sends the header ahead of everything else on a new connection to an origin.
/// With `more` it waits for what follows at once and leaves with it in one
/// packet; without, it leaves now, since an origin may want to speak first.
pub(crate) fn announce(origin: &impl AsFd, header: &[u8], more: bool) -> io::Result<()> {
    let flags = if more {
        MsgFlags::MSG_NOSIGNAL | MsgFlags::from_bits_retain(libc::MSG_MORE)
    } else {
        MsgFlags::MSG_NOSIGNAL
    };
    // A header is far smaller than the least send buffer there is, and this
    // one is empty.
    match send(origin.as_fd().as_raw_fd(), header, flags)? {
        sent if sent == header.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Whether bytes of the client are there to be read.
pub(crate) fn has_sent(client: &impl AsFd) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(client.as_fd().as_raw_fd(), &mut [0], flags).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{Ipv4Addr, TcpStream as StdStream};

    use proptest::prelude::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn trusted(nets: &[&str]) -> NetSet {
        NetSet::new(nets.iter().map(|net| net.parse().unwrap()))
    }

    fn header_of_v4() -> Vec<u8> {
        let client = "203.0.113.5:40000".parse().unwrap();
        let edge = "198.51.100.10:25565".parse().unwrap();
        encode_v1(Endpoints::new(client, edge))
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let sender = TcpStream::connect(listener.local_addr().unwrap());
        let (sender, accepted) = tokio::join!(sender, listener.accept());
        let sender = sender.unwrap();
        sender.set_nodelay(true).unwrap();
        (sender, accepted.unwrap().0)
    }

    async fn received(stream: &TcpStream, nets: &[&str]) -> Result<SocketAddr, NoIdentity> {
        let (peer, edge) = (stream.peer_addr().unwrap(), stream.local_addr().unwrap());
        let identity = receive(stream, peer, edge, &trusted(nets)).await?;
        Ok(identity.client())
    }

    #[tokio::test]
    async fn a_header_in_single_bytes_is_taken_and_nothing_after_it() {
        let (mut sender, mut stream) = pair().await;
        let sending = async {
            for byte in header_of_v4().iter().chain(b"hello") {
                sender.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            sender.shutdown().await.unwrap();
        };
        let receiving = received(&stream, &["127.0.0.0/8"]);
        let (client, ()) = tokio::join!(receiving, sending);
        assert_eq!(client.unwrap(), "203.0.113.5:40000".parse().unwrap());
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
    }

    #[tokio::test]
    async fn header_and_first_bytes_may_come_together() {
        let (mut sender, mut stream) = pair().await;
        let together = [&header_of_v4()[..], b"hello"].concat();
        sender.write_all(&together).await.unwrap();
        sender.shutdown().await.unwrap();
        received(&stream, &["127.0.0.1/32"]).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
    }

    #[tokio::test]
    async fn whoever_is_not_trusted_is_not_waited_for() {
        let (_sender, stream) = pair().await;
        let refused = received(&stream, &["203.0.113.0/24", "::1/128"]).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.status(), Status::Denied);
        assert_eq!(
            refused.to_string(),
            "127.0.0.1 is none of the senders in accept_proxy_protocol"
        );
    }

    #[tokio::test]
    async fn an_end_within_a_header_and_bytes_that_are_none_are_refused() {
        for (bytes, label) in [
            (&b""[..], "cut_short"),
            (b"PROXY TCP4 203.0.113.5", "cut_short"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "malformed"),
            (b"PROXY TCP4 nobody nowhere 1 2\r\n", "malformed"),
        ] {
            let (mut sender, stream) = pair().await;
            sender.write_all(bytes).await.unwrap();
            sender.shutdown().await.unwrap();
            let refused = received(&stream, &["127.0.0.0/8"]).await.unwrap_err();
            assert_eq!((refused.status(), refused.label()), (Status::Denied, label));
        }
    }

    #[tokio::test]
    async fn a_sender_that_names_nobody_speaks_for_itself() {
        let (mut sender, stream) = pair().await;
        sender.write_all(b"PROXY UNKNOWN\r\n").await.unwrap();
        let client = received(&stream, &["127.0.0.0/8"]).await.unwrap();
        assert_eq!(client, sender.local_addr().unwrap());
    }

    #[test]
    fn an_ipv4_client_is_one_however_it_was_written() {
        let peer = "[::ffff:203.0.113.5]:1".parse().unwrap();
        let identity = Identity::of(peer, "[2001:db8::1]:2".parse().unwrap());
        assert_eq!(identity.client(), "203.0.113.5:1".parse().unwrap());
    }

    #[test]
    fn a_header_leaves_at_once_or_with_what_follows() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let edge = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        let (origin, _) = listener.accept().unwrap();
        assert!(!has_sent(&origin));
        announce(&edge, b"held back", true).unwrap();
        assert!(!has_sent(&origin));
        announce(&edge, b", sent", false).unwrap();
        let mut bytes = [0; 32];
        let count = recv(origin.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
        assert_eq!(&bytes[..count], b"held back, sent");
    }

    proptest! {
        #[test]
        fn the_header_for_an_origin_says_who_the_client_is(port in any::<u16>()) {
            let client = SocketAddr::from(([203, 0, 113, 5], port));
            let identity = Identity::of(client, "198.51.100.10:22".parse().unwrap());
            for form in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let header = identity.header(form).unwrap();
                let protocol = Protocol::Stream;
                let endpoints = identity.ends;
                prop_assert_eq!(decode(&header), Ok(Decoded::Complete {
                    len: header.len(),
                    header: Header::Proxied { protocol, endpoints },
                }));
            }
        }
    }
}
