//! Messages between an agent and its successor, over a Unix socket that keeps
//! their boundaries (SOCK_SEQPACKET). Each has its length and the version of
//! the protocol in front and is read whole or refused.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::sys;

/// Changes when an agent of the version before could not make sense of the
/// messages.
const VERSION: u16 = 1;

/// The header: what this is, its version, and the length of what follows.
const MAGIC: [u8; 4] = *b"APHO";
const HEADER: usize = MAGIC.len() + 2 + 4;

/// The longest message, header and all. Names of [`sys::FDS_MAX`] descriptors
/// take a few kilobytes.
const LONGEST: usize = 64 << 10;

/// For a message that the peer should send at once.
pub(super) const PROMPTLY: Duration = Duration::from_secs(5);

/// What is said, in this order: hello, offer (or refusal), as many goods as
/// there are, ready, yours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub enum Message {
    /// A successor asks to take over.
    Hello {
        /// The edge's name, which has to be the same.
        name: String,
        program_version: String,
    },
    Refused {
        reason: String,
    },
    /// The agent stands still for its successor: until it hears more it
    /// applies no configuration and leaves kernel and disk as they are.
    Offer {
        program_version: String,
        /// Of the configuration that it serves by.
        revision: u64,
        /// Descriptors that follow.
        descriptors: usize,
    },
    /// Descriptors, with the name of each in the same order.
    Goods {
        keys: Vec<String>,
    },
    /// The successor has everything that it needs to serve.
    Ready,
    /// The agent gives everything up; that it has done so shows by the end of
    /// the connection.
    Yours,
}

/// The other side cannot be understood, or did not keep to the protocol.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the other agent is gone")]
    Gone,
    #[error("the other agent says nothing")]
    Silent,
    #[error("the other agent runs as user {theirs} and this one as {ours}")]
    OtherUser { theirs: u32, ours: u32 },
    #[error(
        "the other agent's hand-over has version {0} and this one's {VERSION}; \
         stop the other agent and start this one then"
    )]
    OtherVersion(u16),
    #[error("the other agent sends what is no message of a hand-over: {0}")]
    Malformed(String),
    #[error("talking to the other agent: {0}")]
    Io(#[from] io::Error),
}

/// A connection to the other agent.
#[derive(Debug)]
pub struct Wire {
    socket: AsyncFd<OwnedFd>,
    pid: i32,
}

impl Wire {
    /// Connects to the agent that listens at `path`.
    pub fn connect(path: &Path) -> io::Result<Result<Self, WireError>> {
        let socket = seqpacket()?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self::new(socket.into()))
    }

    /// Checks who is on the other side.
    fn new(socket: OwnedFd) -> Result<Self, WireError> {
        let peer = getsockopt(&socket, PeerCredentials).map_err(io::Error::from)?;
        let (theirs, ours) = (peer.uid(), geteuid().as_raw());
        if theirs != ours {
            return Err(WireError::OtherUser { theirs, ours });
        }
        Ok(Self {
            socket: sys::readable(socket)?,
            pid: peer.pid(),
        })
    }

    /// The other agent's process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        let bytes = encode(message)?;
        match sys::send(self.socket.get_ref().as_fd(), &bytes, fds) {
            Err(error) if is_gone(&error) => Err(WireError::Gone),
            sent => Ok(sent?),
        }
    }

    /// The next message, if it comes within `patience`.
    pub async fn receive(&self, patience: Duration) -> Result<(Message, Vec<OwnedFd>), WireError> {
        let received = tokio::time::timeout(patience, self.next()).await;
        received.map_err(|_| WireError::Silent)?
    }

    async fn next(&self) -> Result<(Message, Vec<OwnedFd>), WireError> {
        let mut buffer = vec![0; LONGEST];
        loop {
            let mut ready = self.socket.readable().await?;
            let received =
                ready.try_io(|socket| sys::receive(socket.get_ref().as_fd(), &mut buffer));
            match received {
                Err(_would_block) => {}
                Ok(Ok((0, _))) => return Err(WireError::Gone),
                Ok(Ok((length, fds))) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    return Ok((decode(bytes)?, fds));
                }
                Ok(Err(error)) if is_gone(&error) => return Err(WireError::Gone),
                Ok(Err(error)) => return Err(error.into()),
            }
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

fn seqpacket() -> io::Result<Socket> {
    Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)
}

/// Where successors ask.
#[derive(Debug)]
pub struct Door {
    socket: AsyncFd<Socket>,
}

impl Door {
    /// Listens at `path`, in place of whoever did before. The caller owns the
    /// directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = seqpacket()?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Nobody can connect before it listens.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        socket.listen(8)?;
        Ok(Self {
            socket: sys::readable(socket)?,
        })
    }

    pub async fn accept(&self) -> Result<Wire, WireError> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| socket.get_ref().accept()) {
                Err(_would_block) => {}
                Ok(Ok((peer, _))) => {
                    peer.set_nonblocking(true)?;
                    return Wire::new(peer.into());
                }
                Ok(Err(error)) => return Err(error.into()),
            }
        }
    }
}

fn encode(message: &Message) -> Result<Vec<u8>, WireError> {
    let body = serde_json::to_vec(message).map_err(io::Error::from)?;
    let too_long = || WireError::Malformed(format!("{} bytes", body.len()));
    if body.len() > LONGEST - HEADER {
        return Err(too_long());
    }
    let length = u32::try_from(body.len()).map_err(|_| too_long())?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Message, WireError> {
    let malformed = |what: &str| WireError::Malformed(what.to_owned());
    let rest = bytes.strip_prefix(&MAGIC);
    let rest = rest.ok_or_else(|| malformed("it does not begin like one"))?;
    let short = || malformed("it is cut off");
    let (version, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let version = u16::from_be_bytes(*version);
    if version != VERSION {
        return Err(WireError::OtherVersion(version));
    }
    let (length, body) = rest.split_first_chunk().ok_or_else(short)?;
    if u32::from_be_bytes(*length) as usize != body.len() {
        return Err(malformed("its length is not what it says"));
    }
    serde_json::from_slice(body).map_err(|error| malformed(&error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Message {
        Message::Hello {
            name: "edge1".to_owned(),
            program_version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let whole = encode(&hello()).unwrap();
        assert_eq!(decode(&whole).unwrap(), hello());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "cut to {length}");
        }
        let longer = [&whole[..], b" "].concat();
        assert!(decode(&longer).is_err());
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = encode(&hello()).unwrap();
        bytes[5] = 9;
        let error = decode(&bytes).unwrap_err();
        assert!(matches!(error, WireError::OtherVersion(9)), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200), sound in any::<bool>()) {
            let bytes = if sound { [&MAGIC[..], &bytes].concat() } else { bytes };
            let _ = decode(&bytes);
        }
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_message_and_no_child_inherits_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let door = Door::open(&path).unwrap();
        let one = Wire::connect(&path).unwrap().unwrap();
        let other = door.accept().await.unwrap();
        assert_eq!(other.pid(), i32::try_from(std::process::id()).unwrap());
        let (read, write) = std::io::pipe().unwrap();
        one.send(&hello(), &[]).unwrap();
        one.send(&Message::Ready, &[write.as_fd()]).unwrap();
        assert_eq!(other.receive(PROMPTLY).await.unwrap().0, hello());
        let (message, fds) = other.receive(PROMPTLY).await.unwrap();
        assert_eq!((message, fds.len()), (Message::Ready, 1));
        let flags = nix::fcntl::fcntl(&fds[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        // It is the same pipe: it ends with the last copy of its writing end.
        drop(write);
        nix::unistd::write(&fds[0], b"x").unwrap();
        drop(fds);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut { read }, &mut text).unwrap();
        assert_eq!(text, "x");
        drop(one);
        let gone = other.receive(PROMPTLY).await.unwrap_err();
        assert!(matches!(gone, WireError::Gone), "{gone}");
    }
}
