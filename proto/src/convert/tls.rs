//! The TLS of an app.

use std::collections::HashSet;

use anyport_model::{
    certificate::CaCertificates,
    resource::Transport,
    server_name::NamePattern,
    tls::{OriginTls, Roots, Tls},
};

use super::fields::Faults;
use crate::v1;

/// Names that one app is routed by.
const NAMES_MAX: usize = 1000;

pub(super) fn read(
    faults: &mut Faults,
    wire: &v1::App,
    transport: Option<Transport>,
) -> Option<Tls> {
    let mode = faults.take("tls", v1::TlsMode::try_from(wire.tls));
    let certificate = faults.parse_optional("certificate", &wire.certificate);
    let names = names(faults, &wire.sni);
    let authorities = match wire.origin_ca.as_str() {
        "" => Some(None),
        pem => faults
            .take("origin_ca", CaCertificates::from_pem(pem))
            .map(Some),
    };
    let (mode, certificate) = (mode?, certificate?);
    let passes = matches!(mode, v1::TlsMode::Unspecified | v1::TlsMode::Off);
    if transport == Some(Transport::Udp) && !(passes && wire.sni.is_empty()) {
        let field = if passes { "sni" } else { "tls" };
        faults.add(field, "is set, but TLS is for tcp only");
    }
    if passes && certificate.is_some() {
        faults.add(
            "certificate",
            "is set, but tls is off, so the edge shows none; leave it out, or set tls to \
             flexible, full or strict",
        );
    }
    if !passes && certificate.is_none() {
        faults.add(
            "certificate",
            "is not set; with tls flexible, full or strict the edge shows one to clients",
        );
    }
    if !passes && !wire.sni.is_empty() {
        faults.add(
            "sni",
            "is set, but tls is not off: connections are routed by name only where their TLS \
             passes through untouched",
        );
    }
    if mode != v1::TlsMode::Strict && !wire.origin_ca.is_empty() {
        faults.add(
            "origin_ca",
            "is set, but only tls strict checks the origin's certificate",
        );
    }
    let origin = match mode {
        v1::TlsMode::Unspecified | v1::TlsMode::Off => return Some(Tls::Off { sni: names? }),
        v1::TlsMode::Flexible => OriginTls::Clear,
        v1::TlsMode::Full => OriginTls::Unchecked,
        v1::TlsMode::Strict => {
            OriginTls::Verified(authorities?.map_or(Roots::System, Roots::Given))
        }
    };
    Some(Tls::Terminate {
        certificate: certificate?,
        origin,
    })
}

fn names(faults: &mut Faults, texts: &[String]) -> Option<Vec<NamePattern>> {
    if texts.len() > NAMES_MAX {
        let count = texts.len();
        faults.add(
            "sni",
            format_args!("has {count} entries; right is at most {NAMES_MAX}"),
        );
        return None;
    }
    let mut seen = HashSet::new();
    let mut names = Some(Vec::with_capacity(texts.len()));
    for (index, text) in texts.iter().enumerate() {
        let field = format!("sni[{index}]");
        match text.parse::<NamePattern>() {
            Err(problem) => {
                faults.add(field, problem);
                names = None;
            }
            Ok(name) if !seen.insert(name.clone()) => {
                faults.add(field, format_args!("{name} is listed twice"));
            }
            Ok(name) => names.iter_mut().for_each(|names| names.push(name.clone())),
        }
    }
    names
}

pub(super) fn write(tls: &Tls, wire: v1::App) -> v1::App {
    let (mode, origin_ca) = match tls {
        Tls::Off { .. } => (v1::TlsMode::Off, None),
        Tls::Terminate { origin, .. } => match origin {
            OriginTls::Clear => (v1::TlsMode::Flexible, None),
            OriginTls::Unchecked => (v1::TlsMode::Full, None),
            OriginTls::Verified(Roots::System) => (v1::TlsMode::Strict, None),
            OriginTls::Verified(Roots::Given(given)) => (v1::TlsMode::Strict, Some(given.to_pem())),
        },
    };
    v1::App {
        tls: mode.into(),
        certificate: tls
            .certificate()
            .map(ToString::to_string)
            .unwrap_or_default(),
        sni: tls.sni().iter().map(ToString::to_string).collect(),
        origin_ca: origin_ca.unwrap_or_default(),
        ..wire
    }
}
