//! Who calls, as the transport vouches for it.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::Extensions;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tonic::Status;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::role::{Role, Roles};

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// `CN=fra-1, O=anyport:edge`.
    pub subject: String,
    /// The common name; empty where there is none.
    pub name: String,
    /// From the organizations.
    pub roles: Roles,
    /// In hexadecimal, `0a:1b`.
    pub serial: String,
    /// Who issued it, as [`subject`](field@Self::subject).
    pub issuer: String,
    /// When it ends.
    pub expires: SystemTime,
}

/// Who calls. Found out once for each connection; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Where from; `None` on a Unix socket.
    pub address: Option<SocketAddr>,
    /// `None` in clear text.
    pub certified: Option<Arc<Certified>>,
}

impl Certified {
    /// `None` for bytes that are no certificate.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next();
        let organizations = subject.iter_organization();
        let after = certificate.validity().not_after.timestamp();
        let after = Duration::from_secs(u64::try_from(after).unwrap_or_default());
        Some(Self {
            subject: subject.to_string(),
            name: name
                .and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            roles: organizations
                .filter_map(|organization| organization.as_str().ok())
                .map(Roles::of_organization)
                .fold(Roles::default(), Roles::and),
            serial: certificate.raw_serial_as_string(),
            issuer: certificate.issuer().to_string(),
            expires: SystemTime::UNIX_EPOCH + after,
        })
    }

    /// Of the first certificate in a PEM text; `None` where there is none.
    pub fn from_pem(pem: &str) -> Option<Self> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        Self::from_der(&der)
    }

    /// What a verified peer presented. What cannot be read names nobody and has no
    /// role, so that it is refused.
    pub(crate) fn of_peer(der: Option<&[u8]>) -> Self {
        der.and_then(Self::from_der).unwrap_or_else(|| Self {
            subject: "unreadable".to_owned(),
            name: String::new(),
            roles: Roles::default(),
            serial: String::new(),
            issuer: String::new(),
            expires: SystemTime::UNIX_EPOCH,
        })
    }
}

impl Caller {
    /// Who sent the request that has these extensions.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// The common name of the certificate, where it has one.
    pub fn name(&self) -> Option<&str> {
        let name = self.certified.as_ref().map(|certified| &*certified.name);
        name.filter(|name| !name.is_empty())
    }

    /// May the caller speak as the `role` of that `name`? In clear text, yes.
    ///
    /// # Errors
    /// PERMISSION_DENIED, saying what would be right.
    pub fn check_is(&self, role: Role, name: &str) -> Result<(), Status> {
        let Some(certified) = &self.certified else {
            return Ok(());
        };
        if certified.roles.has(role) && certified.name == name {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "the certificate `{}` may not speak as {role} `{name}`: needs O={} and CN={name}",
            certified.subject,
            role.organization(),
        )))
    }
}
