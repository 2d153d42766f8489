//! What the three files come to.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use super::{IdentityError, Needed};
use crate::access::Certified;

/// gRPC is HTTP/2.
pub(crate) const ALPN: &[u8] = b"h2";

/// Where the identity is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) ca: PathBuf,
}

/// The files, read and found to fit together.
pub(super) struct Material {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    pub(super) certified: Certified,
}

impl Files {
    /// Reads and checks all three.
    ///
    /// # Errors
    /// [`IdentityError`], naming the flag and the file at fault.
    pub(super) fn read(&self, needed: Option<&Needed>) -> Result<Material, IdentityError> {
        let cert = read_pem("--tls-cert", &self.cert, "CERTIFICATE")?;
        let key = read_pem("--tls-key", &self.key, "PRIVATE KEY")?;
        let ca = read_pem("--tls-ca", &self.ca, "CERTIFICATE")?;
        let certified = self.certified(&cert)?;
        if let Some(needed) = needed
            && !needed.is_met_by(&certified)
        {
            return Err(IdentityError::WrongSubject {
                path: self.cert.clone(),
                subject: certified.subject,
                needed: needed.to_string(),
            });
        }
        let roots = Arc::new(self.roots(&ca)?);
        let (server, client) = configurations(&cert, &key, &roots).map_err(|reason| {
            let (cert, key) = (self.cert.display(), self.key.display());
            IdentityError::Unusable {
                flags: format!("--tls-cert {cert}, --tls-key {key}"),
                reason,
            }
        })?;
        Ok(Material {
            server: Arc::new(server),
            client: Arc::new(client),
            certified,
        })
    }

    fn certified(&self, cert: &str) -> Result<Certified, IdentityError> {
        Certified::from_pem(cert).ok_or_else(|| IdentityError::Unusable {
            flags: format!("--tls-cert {}", self.cert.display()),
            reason: "it is no X.509 certificate".to_owned(),
        })
    }

    fn roots(&self, ca: &str) -> Result<RootCertStore, IdentityError> {
        let unusable = |reason: String| IdentityError::Unusable {
            flags: format!("--tls-ca {}", self.ca.display()),
            reason,
        };
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            let der = der.map_err(|error| unusable(error.to_string()))?;
            roots
                .add(der)
                .map_err(|error| unusable(error.to_string()))?;
        }
        Ok(roots)
    }
}

fn configurations(
    cert: &str,
    key: &str,
    roots: &Arc<RootCertStore>,
) -> Result<(ServerConfig, ClientConfig), String> {
    let said = |error: rustls::Error| error.to_string();
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| error.to_string())?;
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| error.to_string())?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(said)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(said)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would not be asked for a certificate again, and one that has
    // expired would go on to open the door. Connections live long; nothing is lost.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(said)?
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(chain, key)
        .map_err(said)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    Ok((server, client))
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
