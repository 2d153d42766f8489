//! Who this process is, and whom it talks to: one certificate, one key, one CA.
//!
//! The flags are all or nothing. With them everything is mutual TLS, both ways:
//! listeners ask for a client certificate from the same CA, and dialling presents
//! this one. Without them clear text stays on loopback, unless the user says
//! `--insecure` in so many words.
//!
//! The files are read again when they change; new connections use the new ones.

mod follow;
mod material;

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};

use crate::access::{Certified, Role};
pub(crate) use material::ALPN;
use material::{Files, Material};

use follow::Marks;
pub use follow::{Expiry, follow};

/// A peer that has not finished its handshake by then is not going to.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The flags, to be flattened into each service's own.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TlsArgs {
    /// Certificate chain of this process, PEM; needs --tls-key and --tls-ca too
    #[arg(long, env = "ANYPORT_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, PEM
    #[arg(long, env = "ANYPORT_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Certificate authority that the other side's certificate must come from, PEM
    #[arg(long, env = "ANYPORT_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Allow clear text beyond loopback
    #[arg(long, env = "ANYPORT_INSECURE")]
    pub insecure: bool,
}

/// The identity of this process, checked. Clones share it.
#[derive(Clone)]
pub struct Identity {
    tls: Option<Arc<Tls>>,
    insecure: bool,
}

struct Tls {
    files: Files,
    /// Taken before they were first read.
    read: Marks,
    needed: Option<Needed>,
    current: ArcSwap<Material>,
}

/// What the certificate of a process has to say of it, or nobody would listen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Needed {
    role: Role,
    /// The common name; `None`: any.
    name: Option<String>,
}

/// The flags do not make an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Some of the three flags are given and some not.
    #[error("{} given without {}: give all three of --tls-cert, --tls-key and --tls-ca, or none", .given.join(" and "), .missing.join(" and "))]
    Incomplete {
        /// The flags that are there.
        given: Vec<&'static str>,
        /// The flags that are not.
        missing: Vec<&'static str>,
    },
    /// A file cannot be read.
    #[error("{flag} {}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The flag that named the file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file holds something else than its flag asks for.
    #[error("{flag} {}: holds no PEM block `{wanted}`", path.display())]
    NotPem {
        /// The flag that named the file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The kind of block that should be there.
        wanted: &'static str,
    },
    /// The files are PEM, but do not fit together or are damaged.
    #[error("{flags}: cannot be used: {reason}")]
    Unusable {
        /// The flags and files at fault.
        flags: String,
        /// What the TLS library said.
        reason: String,
    },
    /// The certificate is for something else than what this process does.
    #[error(
        "--tls-cert {}: its subject is `{subject}`, and others would refuse this {needed}; \
         `anyport certs issue` makes one that is right",
        path.display()
    )]
    WrongSubject {
        /// The certificate file.
        path: PathBuf,
        /// What it says.
        subject: String,
        /// What it should say.
        needed: String,
    },
}

/// Clear text would have been offered beyond loopback.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{flag} {address}: refusing clear text beyond loopback; {remedy}, listen on 127.0.0.1 or [::1], or allow it with --insecure"
)]
pub struct ClearTextRefused {
    flag: &'static str,
    address: SocketAddr,
    remedy: &'static str,
}

impl TlsArgs {
    /// Reads and checks the files, of somebody who only dials.
    ///
    /// # Errors
    /// [`IdentityError`], naming the flag and the file at fault.
    pub fn load(&self) -> Result<Identity, IdentityError> {
        self.load_for(None)
    }

    /// As [`load`](Self::load), of a process whose peers ask its certificate for
    /// that `role` and, where it has one there, for its `name`.
    ///
    /// # Errors
    /// [`IdentityError`], naming the flag and the file at fault.
    pub fn load_as(&self, role: Role, name: Option<&str>) -> Result<Identity, IdentityError> {
        self.load_for(Some(Needed {
            role,
            name: name.map(str::to_owned),
        }))
    }

    fn load_for(&self, needed: Option<Needed>) -> Result<Identity, IdentityError> {
        let files = match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (None, None, None) => {
                return Ok(Identity {
                    tls: None,
                    insecure: self.insecure,
                });
            }
            (Some(cert), Some(key), Some(ca)) => Files {
                cert: cert.clone(),
                key: key.clone(),
                ca: ca.clone(),
            },
            _ => return Err(self.incomplete()),
        };
        let read = files.marks();
        let material = files.read(needed.as_ref())?;
        Ok(Identity {
            tls: Some(Arc::new(Tls {
                files,
                read,
                needed,
                current: ArcSwap::from_pointee(material),
            })),
            insecure: self.insecure,
        })
    }

    fn incomplete(&self) -> IdentityError {
        let flags = [
            ("--tls-cert", self.tls_cert.is_some()),
            ("--tls-key", self.tls_key.is_some()),
            ("--tls-ca", self.tls_ca.is_some()),
        ];
        let named = |wanted| {
            let chosen = flags.iter().filter(move |(_, given)| *given == wanted);
            chosen.map(|(flag, _)| *flag).collect()
        };
        IdentityError::Incomplete {
            given: named(true),
            missing: named(false),
        }
    }
}

impl Identity {
    /// Neither TLS nor `--insecure`: clear text on loopback only.
    pub fn none() -> Self {
        Self {
            tls: None,
            insecure: false,
        }
    }

    /// Is everything mutual TLS?
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// May clear text leave the host?
    pub fn is_insecure(&self) -> bool {
        self.insecure
    }

    /// What the certificate in use says of this process. `None` without TLS.
    pub fn certified(&self) -> Option<Certified> {
        Some(self.current()?.certified.clone())
    }

    /// Does the certificate no longer hold at `now`?
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.current()
            .is_some_and(|material| material.certified.expires < now)
    }

    /// For listeners: this certificate, and a client certificate from the CA is
    /// required. `None` without TLS. Asked for each connection, as it may change.
    pub(crate) fn server(&self) -> Option<Arc<ServerConfig>> {
        Some(Arc::clone(&self.current()?.server))
    }

    /// For dialling: the server's certificate must come from the CA and name the
    /// host that was dialled, and this certificate is presented. `None` without TLS.
    /// Asked for each connection, as it may change.
    pub(crate) fn client(&self) -> Option<Arc<ClientConfig>> {
        Some(Arc::clone(&self.current()?.client))
    }

    fn current(&self) -> Option<Arc<Material>> {
        Some(self.tls.as_ref()?.current.load_full())
    }

    /// May a listener that uses TLS where there is one listen on `address`, which
    /// `flag` gave?
    ///
    /// # Errors
    /// [`ClearTextRefused`], which says what to do.
    pub fn check_listen(
        &self,
        flag: &'static str,
        address: SocketAddr,
    ) -> Result<(), ClearTextRefused> {
        if self.is_tls() {
            return Ok(());
        }
        self.refuse_beyond_loopback(flag, address, "give --tls-cert, --tls-key and --tls-ca")
    }

    /// As [`check_listen`](Self::check_listen), for a listener that never uses TLS.
    ///
    /// # Errors
    /// [`ClearTextRefused`], which says what to do.
    pub fn check_clear_text(
        &self,
        flag: &'static str,
        address: SocketAddr,
    ) -> Result<(), ClearTextRefused> {
        self.refuse_beyond_loopback(
            flag,
            address,
            "this listener has no TLS: put a proxy before it",
        )
    }

    fn refuse_beyond_loopback(
        &self,
        flag: &'static str,
        address: SocketAddr,
        remedy: &'static str,
    ) -> Result<(), ClearTextRefused> {
        // `::ffff:127.0.0.1` is loopback too.
        if self.insecure || address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        Err(ClearTextRefused {
            flag,
            address,
            remedy,
        })
    }
}

/// Never the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("tls", &self.is_tls())
            .field("insecure", &self.insecure)
            .finish()
    }
}

impl Needed {
    fn is_met_by(&self, certified: &Certified) -> bool {
        let named = |name: &String| *name == certified.name;
        certified.roles.has(self.role) && self.name.as_ref().is_none_or(named)
    }
}

/// `edge `fra-1`, who needs O=anyport:edge and CN=fra-1`.
impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, name } = self;
        let organization = role.organization();
        match name {
            Some(name) => write!(
                f,
                "{role} `{name}`, who needs O={organization} and CN={name}"
            ),
            None => write!(f, "{role}, who needs O={organization}"),
        }
    }
}
