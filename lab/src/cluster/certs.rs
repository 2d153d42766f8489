//! Who shows which certificate, where a cluster has them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyport_node::identity::TlsArgs;

use super::Service;

/// Of whom `anyport` is run by.
pub(super) const OPERATOR: &str = "operator";

/// What a process is certified as.
pub(super) fn role(service: Service) -> &'static str {
    match service {
        Service::Etcd | Service::ConfigService(_) => "config-service",
        Service::Balancer | Service::BalancerApart(_) => "balancer",
        Service::EdgeAgent | Service::EdgeApart(_) => "edge",
    }
}

/// Where the certificates of a cluster are, whose files are in `directory`.
pub(super) fn directory(directory: &Path) -> PathBuf {
    directory.join("certificates")
}

/// The files that `anyport certs` makes of a name.
pub(crate) fn files(directory: &Path, name: &str) -> TlsArgs {
    let below = |file: String| Some(directory.join(file));
    TlsArgs {
        tls_cert: below(format!("{name}.pem")),
        tls_key: below(format!("{name}.key")),
        tls_ca: below("ca.pem".to_owned()),
        insecure: false,
    }
}

/// Flags of a member of etcd that shows the certificate of this name, and takes only clients that
/// show one of the same authority.
pub(crate) fn of_etcd(directory: &Path, name: &str) -> Vec<String> {
    let flag = |flag: &str, file: &str| format!("--{flag}={}", directory.join(file).display());
    vec![
        flag("cert-file", &format!("{name}.pem")),
        flag("key-file", &format!("{name}.key")),
        flag("trusted-ca-file", "ca.pem"),
        "--client-cert-auth".to_owned(),
    ]
}

/// The files, as programs are told of them.
pub(crate) fn environment(tls: &TlsArgs) -> impl Iterator<Item = (&'static str, OsString)> {
    let files = [
        ("ANYPORT_TLS_CERT", &tls.tls_cert),
        ("ANYPORT_TLS_KEY", &tls.tls_key),
        ("ANYPORT_TLS_CA", &tls.tls_ca),
    ];
    let files = files.map(|(name, path)| Some((name, path.as_ref()?.clone().into_os_string())));
    files.into_iter().flatten()
}
