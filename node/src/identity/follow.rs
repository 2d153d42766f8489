//! Certificates that are replaced while the process runs.

use std::{
    convert::Infallible,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus::IntGauge;

use super::{Identity, IdentityError, Tls, material::Files};
use crate::{
    metrics::{Registry, registered},
    ready::Remark,
};

/// How often the files are looked at. A certificate, its key and its CA are three
/// files, and are replaced one after the other; so they are read once they were the
/// same twice.
const LOOK: Duration = Duration::from_secs(1);

/// `anyport_identity_expires_timestamp_seconds`.
#[derive(Clone, Debug)]
pub struct Expiry(IntGauge);

/// How a file is told from what it was: what is behind the path, when that was
/// written, and its size.
type Mark = Option<(u64, u64, i64, i64, u64)>;

/// Of the three files.
pub(super) type Marks = [Mark; 3];

impl Expiry {
    /// Nothing is registered without TLS: there is nothing that ends.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn register(identity: &Identity, registry: &Registry) -> prometheus::Result<Option<Self>> {
        let Some(certified) = identity.certified() else {
            return Ok(None);
        };
        let gauge = IntGauge::new(
            "anyport_identity_expires_timestamp_seconds",
            "When the certificate that this process identifies itself with expires, as a Unix \
             time.",
        );
        let expiry = Self(registered(registry, gauge)?);
        expiry.set(certified.expires);
        Ok(Some(expiry))
    }

    fn set(&self, expires: SystemTime) {
        let since = expires.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0
            .set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    }
}

/// Takes changed files into use, without end. What is wrong is logged once and said
/// by `remark` as long as it is: new files that cannot be used, in place of which
/// the old ones stay; a certificate that has expired.
pub async fn follow(identity: Identity, expiry: Option<Expiry>, remark: Remark) -> Infallible {
    let Some(tls) = &identity.tls else {
        return std::future::pending().await;
    };
    let (mut used, mut seen) = (tls.read, None);
    let (mut unusable, mut told) = (None, None);
    loop {
        let marks = tls.files.marks();
        if marks != used && seen.as_ref() == Some(&marks) {
            used = marks;
            unusable = tls.take(expiry.as_ref()).err().map(|error| {
                format!("the new certificates cannot be used, the old ones stay in use: {error}")
            });
        }
        seen = Some(marks);
        let wrong = unusable.clone().or_else(|| tls.expired(SystemTime::now()));
        if wrong != told {
            match &wrong {
                Some(wrong) => {
                    tracing::error!("{wrong}");
                    remark.say(wrong);
                }
                None => remark.withdraw(),
            }
            told = wrong;
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Tls {
    fn take(&self, expiry: Option<&Expiry>) -> Result<(), IdentityError> {
        let material = self.files.read(self.needed.as_ref())?;
        let certified = &material.certified;
        tracing::info!(
            subject = certified.subject,
            serial = certified.serial,
            "new certificates are in use"
        );
        if let Some(expiry) = expiry {
            expiry.set(certified.expires);
        }
        self.current.store(material.into());
        Ok(())
    }

    fn expired(&self, now: SystemTime) -> Option<String> {
        let material = self.current.load();
        let expired = material.certified.expires < now;
        expired.then(|| format!("the certificate {} has expired", self.files.cert.display()))
    }
}

impl Files {
    pub(super) fn marks(&self) -> Marks {
        [&self.cert, &self.key, &self.ca].map(|path| mark(path))
    }
}

fn mark(path: &Path) -> Mark {
    let found = fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.mtime(),
        found.mtime_nsec(),
        found.size(),
    ))
}
