//! What handshakes need, made once and shared by all connections that are
//! alike: a change of a certificate makes a new one beside it, and connections
//! keep what they began with.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use anyport_model::{
    any_certificate::AnyCertificate,
    certificate::{CaCertificates, Certificate, CertificateError},
    names::CertificateName,
    tls::{OriginTls, Roots},
};
use rustls::{
    ClientConfig, ConfigBuilder, Error, RootCertStore, ServerConfig, WantsVerifier,
    crypto::{CryptoProvider, aws_lc_rs},
    server::NoServerSessionStorage,
    sign::SingleCertAndKey,
};

/// How an app's TLS ends here.
#[derive(Debug, Clone)]
pub struct Termination {
    /// Shared by all apps that show it.
    pub shown: Arc<Shown>,
    pub origin: ToOrigin,
}

/// A certificate as it is shown.
#[derive(Debug)]
pub struct Shown {
    pub certificate: Arc<Certificate>,
    pub config: Arc<ServerConfig>,
}

/// How a terminated connection goes on.
#[derive(Debug, Clone)]
pub enum ToOrigin {
    Clear,
    Tls(Arc<ClientConfig>),
}

/// Makes and keeps the configurations that are in use.
pub struct Configs {
    provider: Arc<CryptoProvider>,
    shown: Mutex<BTreeMap<CertificateName, Weak<Shown>>>,
    unchecked: OnceLock<Arc<ClientConfig>>,
    system: OnceLock<Arc<ClientConfig>>,
    given: Mutex<Vec<(CaCertificates, Weak<ClientConfig>)>>,
}

impl Default for Configs {
    fn default() -> Self {
        Self {
            provider: Arc::new(aws_lc_rs::default_provider()),
            shown: Mutex::default(),
            unchecked: OnceLock::new(),
            system: OnceLock::new(),
            given: Mutex::default(),
        }
    }
}

impl Configs {
    /// # Errors
    /// Where the TLS library takes what validation took for something else.
    pub fn termination(
        &self,
        certificate: &Arc<Certificate>,
        origin: &OriginTls,
    ) -> Result<Termination, CertificateError> {
        let cannot = |error: Error| CertificateError::UnusableKey(error.to_string());
        Ok(Termination {
            shown: self.shown(certificate)?,
            origin: match origin {
                OriginTls::Clear => ToOrigin::Clear,
                OriginTls::Unchecked => ToOrigin::Tls(self.unchecked().map_err(cannot)?),
                OriginTls::Verified(Roots::System) => ToOrigin::Tls(self.system().map_err(cannot)?),
                OriginTls::Verified(Roots::Given(given)) => {
                    ToOrigin::Tls(self.given(given).map_err(cannot)?)
                }
            },
        })
    }

    pub fn unchecked(&self) -> Result<Arc<ClientConfig>, Error> {
        if let Some(config) = self.unchecked.get() {
            return Ok(Arc::clone(config));
        }
        let any = Arc::new(AnyCertificate(Arc::clone(&self.provider)));
        let config = self
            .towards_origins()?
            .dangerous()
            .with_custom_certificate_verifier(any)
            .with_no_client_auth();
        Ok(Arc::clone(self.unchecked.get_or_init(|| Arc::new(config))))
    }

    fn shown(&self, certificate: &Arc<Certificate>) -> Result<Arc<Shown>, CertificateError> {
        let mut all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.get(&certificate.name).and_then(Weak::upgrade);
        if let Some(kept) = kept.filter(|kept| kept.certificate == *certificate) {
            return Ok(kept);
        }
        let shown = Arc::new(Shown {
            certificate: Arc::clone(certificate),
            config: Arc::new(self.server(certificate)?),
        });
        all.retain(|_, kept| kept.strong_count() > 0);
        all.insert(certificate.name.clone(), Arc::downgrade(&shown));
        Ok(shown)
    }

    fn server(&self, certificate: &Certificate) -> Result<ServerConfig, CertificateError> {
        let cannot = |error: Error| CertificateError::UnusableKey(error.to_string());
        let key = SingleCertAndKey::from(certificate.certified_key()?);
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(cannot)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(key));
        // Sessions are resumed by tickets, which cost no memory here. Their
        // keys change by themselves, and with the certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(cannot)?;
        Ok(config)
    }

    fn towards_origins(&self) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
        ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
    }

    fn client(&self, roots: RootCertStore) -> Result<Arc<ClientConfig>, Error> {
        let config = self.towards_origins()?.with_root_certificates(roots);
        Ok(Arc::new(config.with_no_client_auth()))
    }

    fn system(&self) -> Result<Arc<ClientConfig>, Error> {
        if let Some(config) = self.system.get() {
            return Ok(Arc::clone(config));
        }
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some of the host's certificates cannot be used");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::warn!(
                "this host trusts no certificate authority (on Debian, install ca-certificates): \
                 tls strict without origin_ca refuses every origin"
            );
            // Looked for again with the next table.
            return self.client(roots);
        }
        let config = self.client(roots)?;
        Ok(Arc::clone(self.system.get_or_init(|| config)))
    }

    fn given(&self, authorities: &CaCertificates) -> Result<Arc<ClientConfig>, Error> {
        let mut all = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, kept)| kept.strong_count() > 0);
        let kept = all.iter().find(|(of, _)| of == authorities);
        if let Some(kept) = kept.and_then(|(_, kept)| kept.upgrade()) {
            return Ok(kept);
        }
        let config = self.client(authorities.roots())?;
        all.push((authorities.clone(), Arc::downgrade(&config)));
        Ok(config)
    }
}
