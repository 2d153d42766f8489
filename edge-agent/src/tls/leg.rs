//! A socket with TLS on it, as a leg of the relay.
//!
//! Records are read into, and made in, one buffer that a worker's connections
//! share: many at once where there are many, and an idle connection holds none.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::{
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, WriteTraffic},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::session::Session;
use crate::tcp::{Leg, Pending};

/// The longest record (RFC 8446 §5.2, RFC 5246 §6.2.3), with its header.
const RECORD: usize = (16 << 10) + 2048 + 5;

/// What a record is longer than what is in it, with the ciphers in use.
const OVERHEAD: usize = 32;

/// Of the library's own limit for a message of a handshake, which may come in
/// many records, and of one record more.
const UNFINISHED: usize = (64 << 10) + RECORD;

/// Plain bytes that are made records of, and written, at once.
const AT_ONCE: usize = 64 << 10;

/// Room for a full read of the relay as it comes in records, after what is
/// unfinished.
const RECORDS: usize = UNFINISHED + (256 << 10) + 17 * OVERHEAD;

thread_local! {
    static RECORD_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; RECORDS].into_boxed_slice());
}

/// One side of a terminated connection. Boxed, so that what has no TLS pays
/// nothing for it.
pub struct TlsLeg<S>(Box<Inner<S>>);

/// Towards the client.
pub type ClientLeg = TlsLeg<UnbufferedServerConnection>;

/// Towards the origin.
pub type OriginLeg = TlsLeg<UnbufferedClientConnection>;

struct Inner<S> {
    socket: TcpStream,
    session: S,
    /// Of a record, or a message of the handshake, that has not come as a whole.
    received: Vec<u8>,
    /// Plain bytes that the reader had no room for.
    decrypted: Pending,
    /// Records that the socket did not take.
    unsent: Pending,
    /// What the next read ends with: it came after something that was read.
    fault: Option<io::Error>,
    /// The peer said close_notify.
    has_ended: bool,
    /// We did.
    is_closed: bool,
    /// The session is not to be asked any more.
    has_failed: bool,
}

impl<S: Session> TlsLeg<S> {
    pub fn new(socket: TcpStream, session: S) -> Self {
        Self(Box::new(Inner {
            socket,
            session,
            received: Vec::new(),
            decrypted: Pending::default(),
            unsent: Pending::default(),
            fault: None,
            has_ended: false,
            is_closed: false,
            has_failed: false,
        }))
    }

    /// The handshake, as far as it goes with what has come.
    pub fn poll_shake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0;
        loop {
            inner.settle()?;
            ready!(inner.poll_send(cx))?;
            if !inner.session.common().is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if inner.has_ended {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            // What may come with the last message of the handshake.
            let mut early = Pending::default();
            let received = inner.poll_receive(cx, 0, &mut |plain| early.keep(plain));
            inner.decrypted.keep(early.unwritten());
            ready!(received)?;
        }
    }

    /// The protocol that was agreed on (ALPN).
    pub fn protocol(&self) -> Option<&[u8]> {
        self.0.session.common().alpn_protocol()
    }

    /// As the event log writes it: `TLSv1.3`.
    pub fn version(&self) -> &'static str {
        match self.0.session.common().protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "unknown",
        }
    }

    /// The name of the cipher suite.
    pub fn cipher(&self) -> &'static str {
        let suite = self.0.session.common().negotiated_cipher_suite();
        suite
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("unknown")
    }
}

impl<S: Session> Inner<S> {
    /// Takes in records, gives what they say to `plain`, and keeps what they
    /// call for with what is unsent. Returns how many bytes it is done with: the
    /// rest has to come again, with what follows it, and nothing else may.
    fn process(&mut self, records: &mut [u8], plain: &mut impl FnMut(&[u8])) -> io::Result<usize> {
        if self.has_failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut done = 0;
        loop {
            let rest = records.get_mut(done..).unwrap_or_default();
            let status = self.session.process(rest);
            done += status.discard;
            match status.state {
                Ok(ConnectionState::EncodeTlsData(message)) => {
                    self.unsent.keep(&encoded(message)?);
                }
                // It will be, in its order.
                Ok(ConnectionState::TransmitTlsData(sending)) => sending.done(),
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        done += record.discard;
                        plain(record.payload);
                    }
                }
                Ok(ConnectionState::PeerClosed) => self.has_ended = true,
                // The rest waits: for more records, or for something to send.
                Ok(_) => return Ok(done),
                Err(error) => {
                    self.has_failed = true;
                    self.say_why(records.get_mut(done..).unwrap_or_default());
                    return Err(invalid(error));
                }
            }
        }
    }

    /// Tells the peer what was wrong with `records`, if that can be done at once.
    /// They are not looked at again.
    fn say_why(&mut self, records: &mut [u8]) {
        while self.session.common().wants_write() {
            let Ok(ConnectionState::EncodeTlsData(alert)) = self.session.process(records).state
            else {
                break;
            };
            if let Ok(alert) = encoded(alert) {
                self.unsent.keep(&alert);
            }
        }
        if let Ok(count) = self.socket.try_write(self.unsent.unwritten()) {
            self.unsent.wrote(count);
        }
    }

    /// Keeps what the session has to say by itself with what is unsent.
    fn settle(&mut self) -> io::Result<()> {
        let mut received = std::mem::take(&mut self.received);
        // All that could be read of it was read when it came.
        let done = self.process(&mut received, &mut |_| {})?;
        received.drain(..done.min(received.len()));
        self.received = received;
        Ok(())
    }

    /// Has something sent that is no part of a handshake.
    fn write<T>(
        &mut self,
        send: impl FnOnce(&mut WriteTraffic<'_, S::Data>) -> Result<T, EncryptError>,
    ) -> io::Result<T> {
        self.settle()?;
        match self.session.process(&mut self.received).state {
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                send(&mut traffic).map_err(io::Error::other)
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Reads once, about as much as `wanted` bytes are in records, and takes it
    /// in.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
        plain: &mut impl FnMut(&[u8]),
    ) -> Poll<io::Result<()>> {
        RECORD_BUFFER.with_borrow_mut(|records| {
            let kept = self.received.len();
            if kept > UNFINISHED {
                return Poll::Ready(Err(invalid("a message of TLS that is too long")));
            }
            let most = wanted + (wanted / (16 << 10) + 1) * OVERHEAD;
            let most = most.max(kept + RECORD).min(RECORDS);
            let records = records.get_mut(..most).unwrap_or_default();
            let (front, room) = records.split_at_mut(kept);
            let mut room = ReadBuf::new(room);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut room))?;
            let count = room.filled().len();
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            front.copy_from_slice(&self.received);
            let records = records.get_mut(..kept + count).unwrap_or_default();
            let done = self.process(records, plain)?;
            let rest = records.get(done..).unwrap_or_default();
            self.received.clear();
            if rest.is_empty() || self.has_ended {
                self.received = Vec::new();
            } else {
                self.received.extend_from_slice(rest);
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = Pin::new(&mut self.socket).poll_write(cx, self.unsent.unwritten());
            match ready!(sent)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.unsent.wrote(count),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn close_notify(&mut self) -> io::Result<()> {
        let mut record = [0; 128];
        let length = self.write(|traffic| traffic.queue_close_notify(&mut record))?;
        self.unsent.keep(record.get(..length).unwrap_or_default());
        Ok(())
    }
}

fn encoded<D>(mut message: EncodeTlsData<'_, D>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // How long it is, is known by asking.
    if let Err(EncodeError::InsufficientSize(short)) = message.encode(&mut bytes) {
        bytes.resize(short.required_size, 0);
        message.encode(&mut bytes).map_err(io::Error::other)?;
    }
    Ok(bytes)
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl<S: Session> Leg for TlsLeg<S> {
    /// A close tells nothing: the end of the stream is a message of TLS.
    const CLOSE_ENDS: bool = false;
    const CAN_BE_CUT: bool = true;

    fn socket(&self) -> &TcpStream {
        &self.0.socket
    }

    fn holds(&self) -> bool {
        !self.0.unsent.is_empty()
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.0.poll_send(cx))?;
        Pin::new(&mut self.0.socket).poll_shutdown(cx)
    }
}

impl<S: Session> AsyncRead for TlsLeg<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let inner = &mut *self.0;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if !inner.decrypted.is_empty() {
                let bytes = inner.decrypted.unwritten();
                let count = bytes.len().min(buffer.remaining());
                buffer.put_slice(bytes.get(..count).unwrap_or_default());
                inner.decrypted.wrote(count);
                return Poll::Ready(Ok(()));
            }
            if let Some(fault) = inner.fault.take() {
                return Poll::Ready(Err(fault));
            }
            if inner.has_ended {
                return Poll::Ready(Ok(()));
            }
            let before = buffer.filled().len();
            let mut more = Pending::default();
            let received = inner.poll_receive(cx, buffer.remaining(), &mut |plain| {
                let (fits, rest) = plain.split_at(plain.len().min(buffer.remaining()));
                buffer.put_slice(fits);
                more.keep(rest);
            });
            inner.decrypted = more;
            match received {
                Poll::Ready(received) => inner.fault = received.err(),
                Poll::Pending => return Poll::Pending,
            }
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: Session> AsyncWrite for TlsLeg<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0;
        ready!(inner.poll_send(cx))?;
        let bytes = bytes.get(..bytes.len().min(AT_ONCE)).unwrap_or_default();
        RECORD_BUFFER.with_borrow_mut(|records| {
            let length = inner.write(|traffic| traffic.encrypt(bytes, records))?;
            let records = records.get(..length).unwrap_or_default();
            let mut sent = 0;
            if inner.unsent.is_empty() {
                match Pin::new(&mut inner.socket).poll_write(cx, records) {
                    Poll::Ready(count) => sent = count?,
                    Poll::Pending => {}
                }
            }
            let rest = records.get(sent..).unwrap_or_default();
            inner.unsent.keep(rest);
            Poll::Ready(Ok(bytes.len()))
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0;
        if !inner.is_closed {
            inner.is_closed = true;
            inner.close_notify()?;
        }
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
