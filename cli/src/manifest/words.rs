//! Enums of the wire as words.

use anyport_proto::v1;

/// An enum of the wire whose values users write as words.
pub trait Word: Copy + Into<i32> + 'static {
    /// What one of them is.
    const NOUN: &'static str;
    /// Without the unspecified one.
    const WORDS: &'static [(&'static str, Self)];
}

impl Word for v1::MonitorType {
    const NOUN: &'static str = "monitor type";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("tcp", Self::Tcp),
        ("tls", Self::Tls),
        ("http", Self::Http),
        ("https", Self::Https),
        ("grpc", Self::Grpc),
        ("udp", Self::Udp),
        ("icmp", Self::Icmp),
    ];
}

impl Word for v1::Policy {
    const NOUN: &'static str = "policy of this version of Anyport";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("weighted", Self::Weighted),
        ("round_robin", Self::RoundRobin),
        ("least_connections", Self::LeastConnections),
        ("latency", Self::Latency),
        ("hash", Self::Hash),
    ];
}

impl Word for v1::OriginDnsType {
    const NOUN: &'static str = "type of origin_dns";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("", Self::Unspecified),
        ("A", Self::A),
        ("AAAA", Self::Aaaa),
        ("SRV", Self::Srv),
    ];
}

impl Word for v1::disable::Close {
    const NOUN: &'static str = "way to treat open connections";
    const WORDS: &'static [(&'static str, Self)] = &[("keep", Self::Keep), ("now", Self::Now)];
}

impl Word for v1::ProxyProtocol {
    const NOUN: &'static str = "form of the PROXY protocol";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("v1", Self::V1),
        ("v2", Self::V2),
        ("simple", Self::Simple),
    ];
}

impl Word for v1::TlsMode {
    const NOUN: &'static str = "tls mode";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("flexible", Self::Flexible),
        ("full", Self::Full),
        ("strict", Self::Strict),
    ];
}

impl Word for v1::ClientIp {
    const NOUN: &'static str = "choice of the address that origins see";
    const WORDS: &'static [(&'static str, Self)] =
        &[("edge", Self::Edge), ("transparent", Self::Transparent)];
}

impl Word for v1::AccessAction {
    const NOUN: &'static str = "access action";
    const WORDS: &'static [(&'static str, Self)] = &[("allow", Self::Allow), ("deny", Self::Deny)];
}

/// The word for a value of an enum; `None` for the unspecified one.
pub fn word<T: Word>(value: i32) -> Option<String> {
    let known = T::WORDS
        .iter()
        .find(|(_, choice)| (*choice).into() == value);
    match (value, known) {
        (0, _) => None,
        (_, Some((word, _))) => Some((*word).to_owned()),
        (other, None) => Some(format!("unknown_{other}")),
    }
}
