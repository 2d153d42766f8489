//! The order to drain on disk: a file that is there or not.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

const FILE: &str = "drained";

const TEXT: &str = "This edge was taken out of service by `anyport drain edge`.\n\
    It takes no connections until `anyport undrain edge`, or until this file is\n\
    removed and the agent starts again.\n";

/// Where it is kept.
#[derive(Debug)]
pub struct Kept(PathBuf);

impl Kept {
    pub fn in_directory(directory: &Path) -> Self {
        Self(directory.join(FILE))
    }

    pub fn is_there(&self) -> bool {
        self.0.exists()
    }

    /// An order that cannot be kept is carried out all the same.
    pub async fn keep(&self) {
        let kept = write(&self.0).await;
        self.complain(kept, "the order to drain will not outlive this process");
    }

    pub async fn discard(&self) {
        let discarded = match tokio::fs::remove_file(&self.0).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            discarded => discarded,
        };
        self.complain(discarded, "the next start will find the order to drain");
    }

    fn complain(&self, done: io::Result<()>, what: &str) {
        if let Err(error) = done {
            tracing::error!(path = %self.0.display(), %error, "{what}");
        }
    }
}

async fn write(path: &Path) -> io::Result<()> {
    let mut file = tokio::fs::File::create(path).await?;
    tokio::io::AsyncWriteExt::write_all(&mut file, TEXT.as_bytes()).await?;
    file.sync_all().await
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}
