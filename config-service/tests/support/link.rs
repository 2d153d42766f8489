//! A TCP link that can be cut and mended.

use std::sync::Arc;

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};

/// Forwards a port of its own to another one.
pub struct Link {
    port: u16,
    whole: Arc<watch::Sender<bool>>,
    task: AbortHandle,
}

impl Link {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let whole = Arc::new(watch::Sender::new(true));
        let state = Arc::clone(&whole);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                // Dropped at once while the link is cut.
                if *state.borrow() {
                    tokio::spawn(forward(client, target, state.subscribe()));
                }
            }
        });
        Self {
            port,
            whole,
            task: task.abort_handle(),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Breaks every connection, and every new one.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut client: TcpStream, target: u16, mut whole: watch::Receiver<bool>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = whole.wait_for(|whole| !whole) => {}
    }
}
