//! Who this process is, and whom it talks to: one certificate, one key, one CA.
//!
//! The flags are all or nothing. With them everything is mutual TLS, both ways:
//! listeners ask for a client certificate from the same CA, and dialling presents
//! this one. Without them clear text stays on loopback, unless the user says
//! `--insecure` in so many words.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tonic::transport::{self, Certificate, ClientTlsConfig, Endpoint, ServerTlsConfig};

/// A peer that has not finished its handshake by then is not going to.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

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
    server: ServerTlsConfig,
    client: ClientTlsConfig,
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
    #[error("--tls-cert {}, --tls-key {}: cannot be used: {reason}", cert.display(), key.display())]
    Unusable {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What the TLS library said.
        reason: String,
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
    /// Reads and checks the files.
    ///
    /// # Errors
    /// [`IdentityError`], naming the flag and the file at fault.
    pub fn load(&self) -> Result<Identity, IdentityError> {
        let (cert, key, ca) = match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (None, None, None) => {
                return Ok(Identity {
                    tls: None,
                    insecure: self.insecure,
                });
            }
            (Some(cert), Some(key), Some(ca)) => (cert, key, ca),
            _ => return Err(self.incomplete()),
        };
        let cert_pem = read_pem("--tls-cert", cert, "CERTIFICATE")?;
        let key_pem = read_pem("--tls-key", key, "PRIVATE KEY")?;
        let ca_pem = read_pem("--tls-ca", ca, "CERTIFICATE")?;
        let tls = Tls::new(cert_pem, key_pem, ca_pem);
        tls.check().map_err(|error| IdentityError::Unusable {
            cert: cert.clone(),
            key: key.clone(),
            reason: innermost(&error),
        })?;
        Ok(Identity {
            tls: Some(Arc::new(tls)),
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

    /// For listeners: this certificate, and a client certificate from the CA is
    /// required. `None` without TLS.
    pub fn server_tls(&self) -> Option<ServerTlsConfig> {
        self.tls.as_ref().map(|tls| tls.server.clone())
    }

    /// For dialling: the server's certificate must come from the CA and name the
    /// host that was dialled, and this certificate is presented. `None` without TLS.
    pub fn client_tls(&self) -> Option<ClientTlsConfig> {
        self.tls.as_ref().map(|tls| tls.client.clone())
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

impl Tls {
    fn new(cert: String, key: String, ca: String) -> Self {
        let identity = transport::Identity::from_pem(cert, key);
        let authority = Certificate::from_pem(ca);
        Self {
            server: ServerTlsConfig::new()
                .identity(identity.clone())
                .client_ca_root(authority.clone())
                .timeout(HANDSHAKE_TIMEOUT),
            client: ClientTlsConfig::new()
                .identity(identity)
                .ca_certificate(authority)
                .timeout(HANDSHAKE_TIMEOUT),
        }
    }

    /// Makes a server and a client of it, so that damage shows at start and not
    /// with the first connection.
    fn check(&self) -> Result<(), transport::Error> {
        transport::Server::builder().tls_config(self.server.clone())?;
        Endpoint::from_static("https://localhost").tls_config(self.client.clone())?;
        Ok(())
    }
}

fn read_pem(
    flag: &'static str,
    path: &Path,
    wanted: &'static str,
) -> Result<String, IdentityError> {
    let text = fs::read_to_string(path).map_err(|source| IdentityError::Unreadable {
        flag,
        path: path.to_owned(),
        source,
    })?;
    // Key blocks come as `PRIVATE KEY`, `EC PRIVATE KEY`, `RSA PRIVATE KEY`.
    let has_block = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-----BEGIN "))
        .any(|rest| {
            rest.strip_suffix("-----")
                .is_some_and(|kind| kind.ends_with(wanted))
        });
    if !has_block {
        return Err(IdentityError::NotPem {
            flag,
            path: path.to_owned(),
            wanted,
        });
    }
    Ok(text)
}

/// The transport's own text is only "transport error"; the cause is what helps.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
