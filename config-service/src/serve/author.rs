//! Who writes.

use tonic::Request;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The common name of the caller's certificate. `None` where the caller has
/// none, or it names nobody.
pub(super) fn certified<T>(request: &Request<T>) -> Option<String> {
    let certificates = request.peer_certs()?;
    common_name(certificates.first()?)
}

fn common_name(der: &[u8]) -> Option<String> {
    // The transport has verified it; what cannot be read names nobody.
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    #[test]
    fn the_common_name_is_who_writes() {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["host.example".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, "ana");
        let certificate = params.self_signed(&key).expect("a certificate");
        assert_eq!(common_name(certificate.der()).as_deref(), Some("ana"));
        assert_eq!(common_name(b"no certificate"), None);
    }
}
