//! Surroundings for tests: a real etcd, a link that can be cut, resources.

#![allow(
    dead_code,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

pub mod etcd;
pub mod frames;
pub mod http2;
pub mod link;
pub mod port;
pub mod program;
pub mod resources;
pub mod service;
pub mod subscriber;

use std::{future::Future, time::Duration};

/// How long anything may take that is awaited here, on a machine with much else to do.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a future, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Asks again until the answer is there.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    soon(what, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
