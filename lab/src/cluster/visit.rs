//! A client of the cluster, for tests that look at single connections.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;

use anyport_netns::Namespace;

use super::{Cluster, Error, PATIENCE, Result};
use crate::load::serve::{self, Mode, Server, datagram};
use crate::load::{Tag, Who};

impl Cluster {
    /// Connects from the client's namespace. Reads and writes end after [`PATIENCE`].
    ///
    /// # Errors
    ///
    /// Of the connect, as it was.
    pub fn dial(&self, to: SocketAddr) -> Result<TcpStream> {
        self.dial_from(self.topology().client(), to)
    }

    /// As [`dial`](Self::dial), from another namespace.
    ///
    /// # Errors
    ///
    /// Of the connect, as it was.
    pub fn dial_from(&self, from: &Namespace, to: SocketAddr) -> Result<TcpStream> {
        let failed = |source| Error::io(format!("connecting to {to}"), source);
        let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        let stream = stream.map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(stream)
    }

    /// Whether a connection is refused, as at a closed port.
    ///
    /// # Errors
    ///
    /// Of the connect, where it failed otherwise.
    pub fn refuses(&self, to: SocketAddr) -> Result<bool> {
        match self.dial(to) {
            Ok(_) => Ok(false),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::ConnectionRefused => {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Asks which server answers behind `to`, and what it sees.
    ///
    /// # Errors
    ///
    /// Where there is no connection or no answer.
    pub fn who(&self, to: SocketAddr) -> Result<Who> {
        self.who_from(self.topology().client(), to)
    }

    /// As [`who`](Self::who), from another namespace.
    ///
    /// # Errors
    ///
    /// Where there is no connection or no answer.
    pub fn who_from(&self, from: &Namespace, to: SocketAddr) -> Result<Who> {
        ask_who(&self.dial_from(from, to)?)
            .map_err(|source| Error::io(format!("asking who answers at {to}"), source))
    }

    /// Starts a server of the origin number `index`, from 0, which says that it is `tag`: an echo,
    /// on these ports of both of the origin's addresses.
    ///
    /// # Errors
    ///
    /// Where there is no such origin, or it cannot listen.
    pub fn echo(
        &self,
        index: usize,
        tag: &str,
        ports: impl IntoIterator<Item = u16>,
    ) -> Result<Server> {
        self.serve(index, tag, ports, |listen, tag| {
            serve::start(&serve::Plan {
                listen,
                mode: Mode::Echo { tag: Some(tag) },
                threads: NonZeroUsize::MIN,
            })
        })
    }

    /// As [`echo`](Self::echo), for datagrams.
    ///
    /// # Errors
    ///
    /// Where there is no such origin, or it cannot listen.
    pub fn echo_datagrams(
        &self,
        index: usize,
        tag: &str,
        ports: impl IntoIterator<Item = u16>,
    ) -> Result<datagram::Server> {
        self.serve(index, tag, ports, |listen, tag| {
            datagram::start(&datagram::Plan {
                listen,
                tag: Some(tag),
                threads: NonZeroUsize::MIN,
            })
        })
    }

    fn serve<S: Send, E: std::error::Error + Send>(
        &self,
        index: usize,
        tag: &str,
        ports: impl IntoIterator<Item = u16>,
        start: impl FnOnce(Vec<SocketAddr>, Tag) -> std::result::Result<S, E> + Send,
    ) -> Result<S> {
        let failed = |why: &dyn std::error::Error| {
            let why = super::error::with_causes(why);
            Error::io(format!("serving as {tag}"), io::Error::other(why))
        };
        let origin = self.topology().origins().get(index).ok_or_else(|| {
            let why = format!("there is no origin {index}");
            Error::io(format!("serving as {tag}"), io::Error::other(why))
        })?;
        let tag: Tag = tag.parse().map_err(|error| failed(&error))?;
        let addresses = origin.addresses();
        let on_both = |port| addresses.map(|address| SocketAddr::new(address, port));
        let listen = ports.into_iter().flat_map(on_both).collect();
        let server = origin.namespace.run(|| start(listen, tag))?;
        server.map_err(|error| failed(&error))
    }
}

/// Ten bytes there and back.
///
/// # Errors
///
/// Of the connection, as it was, or where something else comes back.
pub fn echoes(stream: &mut TcpStream) -> io::Result<()> {
    const SENT: &[u8; 10] = b"still here";
    stream.write_all(SENT)?;
    let mut back = [0; SENT.len()];
    stream.read_exact(&mut back)?;
    match back == *SENT {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{back:?}"),
        )),
    }
}

fn ask_who(mut stream: &TcpStream) -> io::Result<Who> {
    stream.write_all(b"who\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    line.parse().map_err(invalid)
}
