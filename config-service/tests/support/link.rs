//! A TCP link that can be cut and mended, and that can be made to hold back what is sent.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::AbortHandle,
};

/// Forwards a port of its own to another one.
pub struct Link {
    port: u16,
    state: State,
    task: AbortHandle,
}

#[derive(Clone)]
struct State {
    whole: Arc<watch::Sender<bool>>,
    /// Bytes from clients that still pass; `None`: any number.
    left: Arc<watch::Sender<Option<usize>>>,
}

impl Link {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State {
            whole: Arc::new(watch::Sender::new(true)),
            left: Arc::new(watch::Sender::new(None)),
        };
        let of_task = state.clone();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                // Dropped at once while the link is cut.
                if *of_task.whole.borrow() {
                    tokio::spawn(forward(client, target, of_task.clone()));
                }
            }
        });
        Self {
            port,
            state,
            task: task.abort_handle(),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Breaks every connection, and every new one.
    pub fn cut(&self) {
        self.state.whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.state.whole.send_replace(true);
    }

    /// About so many bytes more pass from clients; what they send then waits for
    /// [`release`](Self::release).
    pub fn hold_after(&self, bytes: usize) {
        self.state.left.send_replace(Some(bytes));
    }

    pub fn release(&self) {
        self.state.left.send_replace(None);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(client: TcpStream, target: u16, state: State) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    let back = async {
        copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    let both = async { tokio::try_join!(onward(from_client, to_server, &state), back) };
    let mut whole = state.whole.subscribe();
    tokio::select! {
        _ = both => {}
        _ = whole.wait_for(|whole| !whole) => {}
    }
}

async fn onward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    State { left, .. }: &State,
) -> io::Result<()> {
    let mut changes = left.subscribe();
    let mut bytes = [0; 4096];
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        // Cannot fail: the sender is held by the argument.
        let _ = changes.wait_for(|left| *left != Some(0)).await;
        left.send_modify(|left| *left = left.map(|left| left.saturating_sub(count)));
        to.write_all(&bytes[..count]).await?;
    }
}
