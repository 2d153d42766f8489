use anyport_model::{
    certificate::{Certificate, Chain, PrivateKey},
    resource::Kind,
};

use super::fields::{Faults, Unreadable};
use crate::v1;

/// What stands for a key where it is shown.
pub const REDACTED: &str = "redacted";

pub(super) fn read(wire: v1::Certificate) -> Result<Certificate, Unreadable> {
    let mut faults = Faults::default();
    let name = faults.parse("name", &wire.name);
    let chain = faults.take("cert", Chain::from_pem(&wire.cert));
    let key = match wire.key.trim() {
        "" => {
            faults.add(
                "key",
                "is not set; right is the private key of the certificate in PEM",
            );
            None
        }
        REDACTED => {
            faults.add(
                "key",
                "is redacted, as it always is where it is shown; give the key itself, or leave \
                 the certificate out: what is not in a request stays as it is",
            );
            None
        }
        key => faults.take("key", PrivateKey::from_pem(key)),
    };
    let certificate = (|| {
        let certificate = Certificate::new(name?, chain?, key?);
        faults.take("key", certificate)
    })();
    let reference = super::reference::of_message(Kind::Certificate, &wire.name);
    faults.finish(reference, certificate)
}

pub(super) fn write(certificate: &Certificate) -> v1::Certificate {
    v1::Certificate {
        key: certificate.key().to_pem(),
        ..write_redacted(certificate)
    }
}

pub(super) fn write_redacted(certificate: &Certificate) -> v1::Certificate {
    v1::Certificate {
        name: certificate.name.to_string(),
        cert: certificate.chain().to_pem(),
        key: REDACTED.to_owned(),
    }
}
