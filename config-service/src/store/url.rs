//! `--store`: which back end, and where.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

/// Where revisions are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// One file in this directory, for one process.
    Embedded(PathBuf),
    /// An etcd cluster, for several replicas.
    Etcd(EtcdUrl),
}

/// Members of one etcd cluster, and the part of its keys that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdUrl {
    /// `HOST:PORT` each; at least one.
    members: Vec<String>,
    /// Starts with a slash and does not end with one.
    prefix: String,
}

/// Keys below this, where the URL names nothing else.
const DEFAULT_PREFIX: &str = "/anyport";

/// The text names no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreUrlError {
    #[error("{0:?} is no store; right is embedded:DIR or etcd://HOST:PORT[,HOST:PORT…][/PREFIX]")]
    Scheme(String),
    #[error("embedded: names no directory; right is such as embedded:/var/lib/anyport")]
    NoDirectory,
    #[error("{0:?} is no member of an etcd cluster; right is HOST:PORT such as 127.0.0.1:2379")]
    Member(String),
    #[error(
        "{0:?} is no prefix of keys; right is one or more words of letters, digits, '-', '_' and '.' with slashes between"
    )]
    Prefix(String),
}

impl EtcdUrl {
    pub fn members(&self) -> &[String] {
        &self.members
    }

    /// Starts with a slash and does not end with one.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Would clear text to every member stay on this host?
    pub fn is_loopback(&self) -> bool {
        self.members.iter().all(|member| {
            let host = member
                .rsplit_once(':')
                .map_or(member.as_str(), |(host, _)| host);
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost"
                || bare
                    .parse::<IpAddr>()
                    .is_ok_and(|ip| ip.to_canonical().is_loopback())
        })
    }
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, StoreUrlError> {
        if let Some(directory) = text.strip_prefix("embedded:") {
            return if directory.is_empty() {
                Err(StoreUrlError::NoDirectory)
            } else {
                Ok(Self::Embedded(directory.into()))
            };
        }
        match text.strip_prefix("etcd://") {
            Some(rest) => rest.parse().map(Self::Etcd),
            None => Err(StoreUrlError::Scheme(text.to_owned())),
        }
    }
}

/// What follows `etcd://`.
impl FromStr for EtcdUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, StoreUrlError> {
        let (members, prefix) = match text.split_once('/') {
            Some((members, prefix)) if !prefix.is_empty() => (members, format!("/{prefix}")),
            Some((members, _)) => (members, DEFAULT_PREFIX.to_owned()),
            None => (text, DEFAULT_PREFIX.to_owned()),
        };
        let word = |word: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !word.is_empty() && word.bytes().all(allowed)
        };
        if !prefix.split('/').skip(1).all(word) {
            return Err(StoreUrlError::Prefix(prefix));
        }
        let members = members
            .split(',')
            .map(|member| {
                let parts = member.rsplit_once(':');
                let sound = parts.is_some_and(|(host, port)| {
                    !host.is_empty()
                        && !host.contains(|c: char| c.is_whitespace() || c == '@')
                        && port.parse::<u16>().is_ok_and(|port| port != 0)
                });
                if sound {
                    Ok(member.to_owned())
                } else {
                    Err(StoreUrlError::Member(member.to_owned()))
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { members, prefix })
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(directory) => write!(f, "embedded:{}", directory.display()),
            Self::Etcd(url) => write!(f, "etcd://{}{}", url.members.join(","), url.prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_read_and_shown_alike() {
        for (text, shown) in [
            ("embedded:/var/lib/anyport", "embedded:/var/lib/anyport"),
            ("embedded:data", "embedded:data"),
            ("etcd://127.0.0.1:2379", "etcd://127.0.0.1:2379/anyport"),
            ("etcd://127.0.0.1:2379/", "etcd://127.0.0.1:2379/anyport"),
            (
                "etcd://a:1,[::1]:2/fleets/one",
                "etcd://a:1,[::1]:2/fleets/one",
            ),
        ] {
            let url: StoreUrl = text.parse().expect(text);
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse(), Ok(url));
        }
    }

    #[test]
    fn what_is_no_store_is_refused_with_what_would_be() {
        for (text, problem) in [
            ("", "is no store"),
            ("redis://a:1", "is no store"),
            ("embedded:", "names no directory"),
            ("etcd://", "is no member"),
            ("etcd://a", "is no member"),
            ("etcd://a:0", "is no member"),
            ("etcd://a:1,,b:2", "is no member"),
            ("etcd://u@a:1", "is no member"),
            ("etcd://a:1//x", "is no prefix"),
            ("etcd://a:1/x/", "is no prefix"),
            ("etcd://a:1/x y", "is no prefix"),
        ] {
            let error = text.parse::<StoreUrl>().expect_err(text).to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn only_members_on_this_host_are_loopback() {
        let loopback = |text: &str| match text.parse() {
            Ok(StoreUrl::Etcd(url)) => url.is_loopback(),
            other => panic!("{text}: {other:?}"),
        };
        assert!(loopback("etcd://127.0.0.1:1,[::1]:2,localhost:3"));
        assert!(!loopback("etcd://127.0.0.1:1,10.0.0.1:2"));
        assert!(!loopback("etcd://store:1"));
    }
}
