//! Waiting for a ClientHello without taking it out of the socket.

use std::{io, os::fd::AsRawFd, time::Duration};

use anyport_model::client_hello::{self, ClientHello, HELLO_MAX, NotTls, Start};
use nix::sys::socket::{MsgFlags, recv};
use tokio::{io::Interest, net::TcpStream, time::timeout};

use crate::tcp::with_scratch;

/// What a client begins with.
#[derive(Debug)]
pub enum Begins {
    Hello(ClientHello),
    Other(NotTls),
}

/// Why it was not seen.
#[derive(Debug, thiserror::Error)]
pub enum Unseen {
    #[error("no whole ClientHello within the time for a handshake")]
    TimedOut,
    #[error("the client ended its stream before a whole ClientHello")]
    Ended,
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// Waits until it is plain what `client` begins with. Nothing is read: whoever
/// reads next gets it all.
pub async fn peek(client: &TcpStream, patience: Duration) -> Result<Begins, Unseen> {
    let seen = timeout(patience, look(client)).await;
    seen.unwrap_or(Err(Unseen::TimedOut))
}

async fn look(client: &TcpStream) -> Result<Begins, Unseen> {
    let mut seen = 0;
    loop {
        let ready = client.ready(Interest::READABLE).await?;
        let no_more = ready.is_read_closed();
        let start = with_scratch(|scratch| {
            let buffer = scratch.get_mut(..HELLO_MAX).unwrap_or_default();
            let looked = client.try_io(Interest::READABLE, || {
                let count = recv(client.as_raw_fd(), buffer, MsgFlags::MSG_PEEK)?;
                // What is not taken stays readable; only more than before is
                // news to wait for.
                if count == seen && !no_more {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(count)
            });
            match looked {
                Ok(count) => {
                    seen = count;
                    let bytes = buffer.get(..count).unwrap_or_default();
                    Ok(client_hello::read(bytes))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Start::Incomplete),
                Err(error) => Err(error),
            }
        })?;
        match start {
            Start::Hello(hello) => return Ok(Begins::Hello(hello)),
            Start::NotTls(why) => return Ok(Begins::Other(why)),
            Start::Incomplete if no_more => return Err(Unseen::Ended),
            Start::Incomplete => {}
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const PATIENCE: Duration = Duration::from_secs(60);

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        let near = near.unwrap();
        near.set_nodelay(true).unwrap();
        (near, far.unwrap().0)
    }

    /// What a real client begins with.
    pub(crate) fn hello_of(name: &'static str) -> Vec<u8> {
        let config = super::super::Configs::default().unchecked().unwrap();
        let name = ServerName::try_from(name).unwrap();
        let mut client = rustls::ClientConnection::new(config, name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn a_hello_in_single_bytes_is_seen_and_stays() {
        let (mut client, mut edge) = pair().await;
        let hello = hello_of("mail.example.com");
        let sent = hello.clone();
        let writer = tokio::spawn(async move {
            for byte in &sent {
                client.write_all(std::slice::from_ref(byte)).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        let Begins::Hello(seen) = peek(&edge, PATIENCE).await.unwrap() else {
            panic!("no ClientHello");
        };
        assert_eq!(seen.server_name.unwrap().as_str(), "mail.example.com");
        let _client = writer.await.unwrap();
        let mut taken = vec![0; hello.len()];
        edge.read_exact(&mut taken).await.unwrap();
        assert_eq!(taken, hello);
    }

    #[tokio::test]
    async fn what_ends_fails_or_never_comes_is_told_apart() {
        let hello = hello_of("mail.example.com");
        let (mut client, edge) = pair().await;
        client.write_all(&hello[..100]).await.unwrap();
        let start = std::time::Instant::now();
        let short = Duration::from_millis(300);
        assert!(matches!(peek(&edge, short).await, Err(Unseen::TimedOut)));
        assert!(start.elapsed() >= short);
        client.shutdown().await.unwrap();
        assert!(matches!(peek(&edge, PATIENCE).await, Err(Unseen::Ended)));

        let (client, edge) = pair().await;
        drop(client);
        assert!(matches!(peek(&edge, PATIENCE).await, Err(Unseen::Ended)));

        let (client, edge) = pair().await;
        client.set_zero_linger().unwrap();
        drop(client);
        assert!(matches!(
            peek(&edge, PATIENCE).await,
            Err(Unseen::Failed(_))
        ));

        let (mut client, edge) = pair().await;
        client.write_all(b"EHLO mail").await.unwrap();
        assert!(matches!(peek(&edge, PATIENCE).await, Ok(Begins::Other(_))));
    }
}
