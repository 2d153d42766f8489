//! Who shows which certificate, where a cluster has them.

use std::ffi::OsString;

use anyport_node::identity::TlsArgs;

use super::Service;

/// Of whom `anyport` is run by.
pub(super) const OPERATOR: &str = "operator";

/// Role and name of a process.
pub(super) fn of(service: Service) -> (&'static str, String) {
    match service {
        Service::Etcd | Service::ConfigService(_) => ("config-service", service.to_string()),
        Service::Balancer => ("balancer", "balancer1".to_owned()),
        Service::EdgeAgent => ("edge", "edge1".to_owned()),
    }
}

/// The files, as programs are told of them.
pub(super) fn environment(tls: &TlsArgs) -> impl Iterator<Item = (&'static str, OsString)> {
    let files = [
        ("ANYPORT_TLS_CERT", &tls.tls_cert),
        ("ANYPORT_TLS_KEY", &tls.tls_key),
        ("ANYPORT_TLS_CA", &tls.tls_ca),
    ];
    let files = files.map(|(name, path)| Some((name, path.as_ref()?.clone().into_os_string())));
    files.into_iter().flatten()
}
