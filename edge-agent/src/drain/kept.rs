//! The order to drain on disk: a file that is there or not, and says for how long
//! connections are still taken.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::disk;

const FILE: &str = "drained";

const TEXT: &str = "This edge was taken out of service by `anyport drain edge`.\n\
    It is brought back by `anyport undrain edge`, or when this file is removed and\n\
    the agent starts again.\n";

/// Where it is kept.
#[derive(Debug)]
pub struct Kept(PathBuf);

impl Kept {
    pub fn in_directory(directory: &Path) -> Self {
        Self(directory.join(FILE))
    }

    /// How much of the grace of the order is left, if there is an order. A clock
    /// that was put back makes it no longer than it was.
    pub fn grace_left(&self) -> Option<Duration> {
        match std::fs::read_to_string(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // What cannot be read is an order all the same.
            said => Some(grace_left(&said.unwrap_or_default(), SystemTime::now())),
        }
    }

    /// Keeps the order, with what is left of its grace. One that cannot be kept is
    /// carried out all the same.
    pub async fn keep(&self, grace: Duration) {
        let text = text(grace, SystemTime::now());
        let write = move |path: &Path| disk::replace(path, text.as_bytes());
        let kept = self.on_disk(write).await;
        self.complain(kept, "the order to drain will not outlive this process");
    }

    pub async fn discard(&self) {
        let discarded = self.on_disk(disk::remove).await;
        self.complain(discarded, "the next start will find the order to drain");
    }

    async fn on_disk(
        &self,
        work: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let path = self.0.clone();
        tokio::task::spawn_blocking(move || work(&path)).await?
    }

    fn complain(&self, done: io::Result<()>, what: &str) {
        if let Err(error) = done {
            tracing::error!(path = %self.0.display(), %error, "{what}");
        }
    }
}

/// The line with what is left of the grace, when that was, in seconds since 1970.
const GRACE: &str = "Connections are taken for ";

fn text(grace: Duration, now: SystemTime) -> String {
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    let (grace, now) = (grace.as_secs(), now.unwrap_or_default().as_secs());
    format!("{TEXT}{GRACE}{grace} s from {now}\n")
}

fn grace_left(text: &str, now: SystemTime) -> Duration {
    let read = || {
        let line = text.lines().find_map(|line| line.strip_prefix(GRACE))?;
        let (grace, from) = line.split_once(" s from ")?;
        let grace = Duration::from_secs(grace.parse().ok()?);
        let from = Duration::from_secs(from.trim().parse().ok()?);
        let from = SystemTime::UNIX_EPOCH.checked_add(from)?;
        Some(grace.saturating_sub(now.duration_since(from).unwrap_or_default()))
    };
    read().unwrap_or_default()
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn an_order_takes_the_place_of_another_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::in_directory(directory.path());
        kept.keep(Duration::from_secs(3600)).await;
        let before = directory.path().join("before");
        std::fs::hard_link(&kept.0, &before).unwrap();
        kept.keep(Duration::ZERO).await;
        let of = |path| {
            grace_left(
                &std::fs::read_to_string(path).unwrap(),
                SystemTime::UNIX_EPOCH,
            )
        };
        assert_eq!((of(&before).as_secs(), of(&kept.0).as_secs()), (3600, 0));
        kept.discard().await;
        assert_eq!(kept.grace_left(), None);
    }

    #[test]
    fn the_rest_of_a_grace_outlives_the_process() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let said = text(Duration::from_secs(3600), at(1_000));
        let left = |seconds| grace_left(&said, at(seconds)).as_secs();
        assert_eq!((left(1_000), left(1_600), left(9_000)), (3600, 3000, 0));
        assert_eq!(left(10), 3600, "the clock was put back");
        for other in ["", TEXT, "Connections are taken for x s from 1"] {
            assert!(grace_left(other, at(0)).is_zero(), "{other}");
        }
    }
}
