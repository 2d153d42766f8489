//! What the plain modes do with one connection. A connection that waits holds no buffer: all of a
//! thread share one.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::rc::Rc;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::load::pattern;
use crate::load::who::{self, Tag, Who};

/// The buffer of one thread, in bytes.
const SCRATCH: usize = 256 * 1024;

/// A buffer for use between two waits.
#[derive(Clone)]
pub(super) struct Scratch {
    buffer: Rc<RefCell<Box<[u8]>>>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            buffer: Rc::new(RefCell::new(vec![0; SCRATCH].into())),
        }
    }
}

/// Reads what is there into the shared buffer, as soon as something is, and hands it to `take`. No
/// bytes mean that the client has ended.
pub(super) async fn read_into<T>(
    stream: &TcpStream,
    scratch: &Scratch,
    take: impl FnOnce(&[u8]) -> T,
) -> io::Result<T> {
    loop {
        stream.readable().await?;
        let mut buffer = scratch.buffer.borrow_mut();
        match stream.try_read(&mut buffer) {
            Ok(count) => return Ok(take(&buffer[..count])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) async fn write_all(stream: &TcpStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        stream.writable().await?;
        data = &data[write_now(stream, data)?..];
    }
    Ok(())
}

/// Writes what there is room for at once, which may be nothing.
fn write_now(stream: &TcpStream, data: &[u8]) -> io::Result<usize> {
    match stream.try_write(data) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        answer => answer,
    }
}

/// Says that no more will come. The other direction is left as it is.
fn end(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).shutdown(Shutdown::Write)
}

/// What is left to do with what was read.
enum Rest<'a> {
    End,
    Answer(&'a Tag),
    /// Room was short: this is still to be written.
    Write(Vec<u8>),
}

pub(super) async fn echo(
    stream: &TcpStream,
    tag: Option<&Tag>,
    scratch: &Scratch,
) -> io::Result<()> {
    loop {
        let rest = read_into(stream, scratch, |data| match (data, tag) {
            ([], _) => Ok(Rest::End),
            (who::REQUEST, Some(tag)) => Ok(Rest::Answer(tag)),
            (data, _) => {
                write_now(stream, data).map(|written| Rest::Write(data[written..].to_vec()))
            }
        });
        match rest.await?? {
            Rest::End => return end(stream),
            Rest::Answer(tag) => {
                let answer = format!("{}\n", who_is(stream, tag)?);
                write_all(stream, answer.as_bytes()).await?;
            }
            Rest::Write(data) => write_all(stream, &data).await?,
        }
    }
}

pub(super) fn who_is(stream: &TcpStream, tag: &Tag) -> io::Result<Who> {
    Ok(Who {
        tag: tag.clone(),
        peer: stream.peer_addr()?,
        local: stream.local_addr()?,
    })
}

/// Takes everything until the client ends; gives the number of bytes.
pub(super) async fn wait_for_end(stream: &TcpStream, scratch: &Scratch) -> io::Result<u64> {
    let mut total = 0u64;
    loop {
        match read_into(stream, scratch, <[u8]>::len).await? {
            0 => return Ok(total),
            count => total += count as u64,
        }
    }
}

pub(super) async fn sink(stream: &TcpStream, scratch: &Scratch) -> io::Result<()> {
    let total = wait_for_end(stream, scratch).await?;
    write_all(stream, format!("{total}\n").as_bytes()).await?;
    end(stream)
}

pub(super) async fn source(stream: &TcpStream) -> io::Result<()> {
    let mut place = 0u64;
    loop {
        stream.writable().await?;
        place += write_now(stream, pattern::at(place, pattern::LONGEST))? as u64;
    }
}
