//! Certificates that the edge shows to clients, and those it trusts origins by.
//!
//! What is kept is written anew from what was read, so that whatever else
//! stands in a PEM file (often enough the private key, beside the certificate)
//! goes nowhere.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};
use x509_parser::{extensions::GeneralName, prelude::*};

use crate::names::CertificateName;

/// Of one chain, and of the CAs of one app.
const CERTIFICATES_MAX: usize = 64;

/// A certificate with its key, which fit each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub name: CertificateName,
    chain: Chain,
    key: PrivateKey,
}

/// A certificate and those that lead from it towards a root, in that order.
#[derive(Clone, PartialEq, Eq)]
pub struct Chain {
    der: Vec<CertificateDer<'static>>,
    /// Host names and addresses of the first one; where it has none, its
    /// common name.
    pub names: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Never shown: not in logs, not in answers.
#[derive(PartialEq, Eq)]
pub struct PrivateKey(PrivateKeyDer<'static>);

/// Authorities that an origin's certificate may come from; at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct CaCertificates(Vec<CertificateDer<'static>>);

/// Why a text is no chain, key or list of authorities, or why two of them do
/// not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("holds no certificate; right is a PEM file with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    #[error("holds {0} certificates; right is at most {CERTIFICATES_MAX}")]
    TooMany(usize),
    #[error("holds no readable PEM: {0}")]
    Pem(&'static str),
    #[error("certificate {position} in it cannot be read: {problem}")]
    Certificate { position: usize, problem: String },
    #[error(
        "certificate {position} in it was issued by {issuer:?}, but the one after it is of \
         {subject:?}; right is the server's own first, then each one's issuer"
    )]
    Order {
        position: usize,
        issuer: String,
        subject: String,
    },
    #[error("certificate {position} in it is no authority: {problem}")]
    NoAuthority { position: usize, problem: String },
    #[error("holds no private key; right is a PEM file with -----BEGIN PRIVATE KEY-----")]
    NoKey,
    #[error("is encrypted; right is a key without a passphrase, as `openssl pkey` writes it")]
    EncryptedKey,
    #[error("cannot be used: {0}")]
    UnusableKey(String),
    #[error("is not the key of the certificate, the first in the chain")]
    OtherKey,
}

impl Certificate {
    /// # Errors
    /// Where the key is not that of the chain's first certificate.
    pub fn new(
        name: CertificateName,
        chain: Chain,
        key: PrivateKey,
    ) -> Result<Self, CertificateError> {
        let certificate = Self { name, chain, key };
        certificate.certified_key()?;
        Ok(certificate)
    }

    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// For handshakes. Checks again what [`new`](Self::new) has checked.
    ///
    /// # Errors
    /// None where this value was made by [`new`](Self::new).
    pub fn certified_key(&self) -> Result<CertifiedKey, CertificateError> {
        let unusable = |error: rustls::Error| CertificateError::UnusableKey(error.to_string());
        let signer = aws_lc_rs::sign::any_supported_type(&self.key.0).map_err(unusable)?;
        let key = CertifiedKey::new(self.chain.der.clone(), signer);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(key)
            }
            Err(rustls::Error::InconsistentKeys(_)) => Err(CertificateError::OtherKey),
            Err(error) => Err(CertificateError::Certificate {
                position: 1,
                problem: error.to_string(),
            }),
        }
    }
}

impl Chain {
    /// # Errors
    /// Where the text holds no certificate, one that cannot be read, or they
    /// are out of order.
    pub fn from_pem(text: &str) -> Result<Self, CertificateError> {
        let der = certificates(text)?;
        let parsed: Vec<X509Certificate<'_>> = der
            .iter()
            .enumerate()
            .map(|(index, der)| parse(index, der))
            .collect::<Result<_, _>>()?;
        for (index, pair) in parsed.windows(2).enumerate() {
            if let [one, next] = pair
                && one.issuer().as_raw() != next.subject().as_raw()
            {
                return Err(CertificateError::Order {
                    position: index + 1,
                    issuer: one.issuer().to_string(),
                    subject: next.subject().to_string(),
                });
            }
        }
        let first = parsed.first().ok_or(CertificateError::NoCertificate)?;
        let (names, validity) = (names(first), first.validity());
        let (not_before, not_after) = (time(validity.not_before), time(validity.not_after));
        Ok(Self {
            names,
            not_before,
            not_after,
            der,
        })
    }

    pub fn to_pem(&self) -> String {
        self.der.iter().map(|der| pem("CERTIFICATE", der)).collect()
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("names", &self.names)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl PrivateKey {
    /// # Errors
    /// Where the text holds no key, or one that is encrypted.
    pub fn from_pem(text: &str) -> Result<Self, CertificateError> {
        match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
            Ok(key) => Ok(Self(key)),
            Err(_) if text.contains("BEGIN ENCRYPTED PRIVATE KEY") => {
                Err(CertificateError::EncryptedKey)
            }
            Err(pem::Error::NoItemsFound) => Err(CertificateError::NoKey),
            Err(error) => Err(CertificateError::Pem(why_unreadable(&error))),
        }
    }

    /// The key itself: for the store and for edges, and for nobody else.
    pub fn to_pem(&self) -> String {
        let label = match &self.0 {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem(label, self.0.secret_der())
    }
}

impl Clone for PrivateKey {
    fn clone(&self) -> Self {
        Self(self.0.clone_key())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl CaCertificates {
    /// # Errors
    /// Where the text holds no certificate, or one that is no authority.
    pub fn from_pem(text: &str) -> Result<Self, CertificateError> {
        let der = certificates(text)?;
        let mut roots = RootCertStore::empty();
        for (index, der) in der.iter().enumerate() {
            roots
                .add(der.clone())
                .map_err(|error| CertificateError::NoAuthority {
                    position: index + 1,
                    problem: error.to_string(),
                })?;
        }
        Ok(Self(der))
    }

    pub fn to_pem(&self) -> String {
        self.0.iter().map(|der| pem("CERTIFICATE", der)).collect()
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.0.iter().cloned());
        roots
    }
}

impl fmt::Debug for CaCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaCertificates({})", self.0.len())
    }
}

/// In words of our own: the library's error repeats the line, and of a key that
/// lost its line breaks, that line is the key.
fn why_unreadable(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a BEGIN line has no END line of its own",
        pem::Error::IllegalSectionStart { .. } => {
            "a BEGIN line does not stand alone; are the line breaks lost?"
        }
        pem::Error::Base64Decode(_) => "something in it is no base64",
        _ => "it cannot be read",
    }
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let der: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| CertificateError::Pem(why_unreadable(&error)))?;
    match der.len() {
        0 => Err(CertificateError::NoCertificate),
        1..=CERTIFICATES_MAX => Ok(der),
        more => Err(CertificateError::TooMany(more)),
    }
}

fn parse(index: usize, der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let position = index + 1;
    let wrong = |problem: String| CertificateError::Certificate { position, problem };
    let (rest, parsed) =
        X509Certificate::from_der(der).map_err(|error| wrong(error.to_string()))?;
    if rest.is_empty() {
        Ok(parsed)
    } else {
        Err(wrong("something follows it in its PEM block".to_owned()))
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let general = alternative.map(|extension| extension.value.general_names.as_slice());
    let names: Vec<String> = general
        .unwrap_or_default()
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress([a, b, c, d]) => {
                Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string())
            }
            GeneralName::IPAddress(bytes) => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
            _ => None,
        })
        .collect();
    if !names.is_empty() {
        return names;
    }
    let common = certificate.subject().iter_common_name();
    common
        .filter_map(|name| name.as_str().ok().map(str::to_owned))
        .collect()
}

/// Times before 1970 are long over, whichever they are.
fn time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64(der).as_bytes().chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() {
                char::from(DIGITS[index as usize])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    struct Made {
        leaf: String,
        ca: String,
        key: String,
    }

    fn made(names: &[&str]) -> Made {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "test ca");
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "leaf");
        let leaf = params.signed_by(&key, &issuer).unwrap();
        Made {
            leaf: leaf.pem(),
            ca: ca.pem(),
            key: key.serialize_pem(),
        }
    }

    fn name() -> CertificateName {
        "mail".parse().unwrap()
    }

    #[test]
    fn a_chain_with_its_key_is_taken_and_written_back() {
        let Made { leaf, ca, key } = made(&["mail.example.com", "203.0.113.1"]);
        // As people keep them: all in one file.
        let file = format!("{key}subject=whatever\n{leaf}{ca}");
        let chain = Chain::from_pem(&file).unwrap();
        assert_eq!(chain.names, ["mail.example.com", "203.0.113.1"]);
        assert!(chain.not_before < SystemTime::now() && SystemTime::now() < chain.not_after);
        let written = chain.to_pem();
        assert!(!written.contains("PRIVATE"), "{written}");
        assert_eq!(Chain::from_pem(&written).unwrap(), chain);
        let private = PrivateKey::from_pem(&file).unwrap();
        assert_eq!(PrivateKey::from_pem(&private.to_pem()).unwrap(), private);
        let certificate = Certificate::new(name(), chain, private).unwrap();
        let shown = format!("{certificate:?}");
        assert!(shown.contains("redacted"), "{shown}");
        let middle = key.lines().nth(1).unwrap();
        assert!(!shown.contains(&middle[..20]), "{shown}");
    }

    #[test]
    fn what_does_not_fit_is_told_as_it_is() {
        let Made { leaf, ca, key } = made(&["a.example.com"]);
        let other = made(&["b.example.com"]);
        let chain = |text: &str| Chain::from_pem(text).unwrap_err();
        assert_eq!(chain(&key), CertificateError::NoCertificate);
        assert_eq!(chain("hello"), CertificateError::NoCertificate);
        assert!(matches!(
            chain(&format!("{ca}{leaf}")),
            CertificateError::Order { position: 1, .. }
        ));
        let cut = leaf.replacen(leaf.lines().nth(3).unwrap(), "", 1);
        assert!(matches!(
            chain(&cut),
            CertificateError::Certificate { position: 1, .. } | CertificateError::Pem(_)
        ));
        let private = |text: &str| PrivateKey::from_pem(text).unwrap_err();
        assert_eq!(private(&leaf), CertificateError::NoKey);
        let locked = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        assert_eq!(private(&locked), CertificateError::EncryptedKey);
        let mixed = Certificate::new(
            name(),
            Chain::from_pem(&leaf).unwrap(),
            PrivateKey::from_pem(&other.key).unwrap(),
        );
        assert_eq!(mixed.unwrap_err(), CertificateError::OtherKey);
        assert_eq!(
            CaCertificates::from_pem(&key).unwrap_err(),
            CertificateError::NoCertificate
        );
        let authorities = CaCertificates::from_pem(&format!("{ca}{}", other.ca)).unwrap();
        assert_eq!(authorities.roots().len(), 2);
        assert_eq!(
            CaCertificates::from_pem(&authorities.to_pem()).unwrap(),
            authorities
        );
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    /// As it comes out of an environment variable, or of a paste.
    #[test]
    fn what_is_said_of_a_key_without_line_breaks_holds_nothing_of_it() {
        let key = made(&["www.example.com"]).key;
        let body = key.lines().nth(1).unwrap();
        for broken in [key.replace('\n', "\\n"), key.replace('\n', "")] {
            let as_key = PrivateKey::from_pem(&broken).unwrap_err().to_string();
            let as_chain = Chain::from_pem(&broken).unwrap_err().to_string();
            for said in [as_key, as_chain] {
                let decimal = format!("{:?}", body.as_bytes());
                let start = decimal.trim_matches(['[', ']']).get(..20).unwrap();
                assert!(!said.contains(body.get(..8).unwrap()), "{said}");
                assert!(!said.contains(start), "{said}");
            }
        }
    }
}
