//! Where a service is to be found: flags such as `--config-service URL[,URL…]`.

use std::{fmt, net::SocketAddr, str::FromStr};

use http::{Uri, uri::Scheme};

use crate::identity::Identity;

/// The URL of one server: `http` or `https`, a host, perhaps a port, nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    uri: Uri,
    secure: bool,
}

/// One or more servers that are all as good as each other, as they came in a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Urls(Vec<ServerUrl>);

/// The text is no list of server URLs.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UrlError {
    /// There is no URL in it, or nothing between two commas.
    #[error("an empty URL; give one such as http://127.0.0.1:7400, or several with commas between")]
    Empty,
    /// It does not parse.
    #[error("{url:?} is no URL: {reason}; give one such as http://127.0.0.1:7400")]
    Malformed {
        /// What was given.
        url: String,
        /// What the parser said.
        reason: String,
    },
    /// Neither `http` nor `https`.
    #[error("{url:?} must begin with http:// or https://")]
    Scheme {
        /// What was given.
        url: String,
    },
    /// A path, a query, or a user: gRPC has no use for them.
    #[error(
        "{url:?} holds more than scheme, host and port; give one such as http://127.0.0.1:7400"
    )]
    TooMuch {
        /// What was given.
        url: String,
    },
    /// The same server twice.
    #[error("{url} is given twice")]
    Twice {
        /// Which.
        url: String,
    },
}

impl ServerUrl {
    /// Is it `https`?
    pub fn is_https(&self) -> bool {
        self.secure
    }

    /// As the HTTP libraries have it.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The host, without the brackets around an IPv6 address.
    pub(super) fn host(&self) -> &str {
        let host = self.uri.host().unwrap_or_default();
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port, or the one that the scheme stands for.
    pub(super) fn port(&self) -> u16 {
        let default = if self.secure { 443 } else { 80 };
        self.uri.port_u16().unwrap_or(default)
    }

    /// The same server in clear text: for a transport that is given its TLS.
    pub(super) fn clear_uri(&self) -> Uri {
        let mut parts = self.uri.clone().into_parts();
        parts.scheme = Some(Scheme::HTTP);
        // Only a scheme without an authority would be refused.
        Uri::from_parts(parts).unwrap_or_else(|_| self.uri.clone())
    }
}

impl FromStr for ServerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let url = || text.to_owned();
        if text.is_empty() {
            return Err(UrlError::Empty);
        }
        let uri: Uri =
            text.parse()
                .map_err(|error: http::uri::InvalidUri| UrlError::Malformed {
                    url: url(),
                    reason: error.to_string(),
                })?;
        let secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(UrlError::Scheme { url: url() }),
        };
        // `http` keeps the text after the colon as it is.
        if let Some(authority) = uri.authority()
            && !authority.as_str().ends_with(authority.host())
            && authority.port_u16().unwrap_or(0) == 0
        {
            return Err(UrlError::Malformed {
                url: url(),
                reason: "the port is no number from 1 to 65535".to_owned(),
            });
        }
        let has_user = uri.authority().is_some_and(|a| a.as_str().contains('@'));
        if has_user || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(UrlError::TooMuch { url: url() });
        }
        Ok(Self { uri, secure })
    }
}

/// URL of the gRPC service at `address` for those elsewhere: the `given` one, or the
/// address itself; empty where that is every address of the host.
pub fn advertised(given: Option<&ServerUrl>, address: SocketAddr, identity: &Identity) -> String {
    if let Some(url) = given {
        return url.to_string();
    }
    if address.ip().is_unspecified() {
        return String::new();
    }
    let scheme = if identity.is_tls() { "https" } else { "http" };
    format!("{scheme}://{address}")
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        write!(f, "{scheme}://{authority}")
    }
}

impl Urls {
    /// In the order given.
    pub fn iter(&self) -> std::slice::Iter<'_, ServerUrl> {
        self.0.iter()
    }
}

impl From<ServerUrl> for Urls {
    fn from(url: ServerUrl) -> Self {
        Self(vec![url])
    }
}

impl<'a> IntoIterator for &'a Urls {
    type Item = &'a ServerUrl;
    type IntoIter = std::slice::Iter<'a, ServerUrl>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromStr for Urls {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let mut urls: Vec<ServerUrl> = Vec::new();
        for part in text.split(',') {
            let url: ServerUrl = part.trim().parse()?;
            if urls.contains(&url) {
                return Err(UrlError::Twice {
                    url: url.to_string(),
                });
            }
            urls.push(url);
        }
        Ok(Self(urls))
    }
}

impl fmt::Display for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, url) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{url}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> UrlError {
        text.parse::<Urls>().expect_err(text)
    }

    #[test]
    fn one_or_several_are_kept_in_order() {
        let urls: Urls = "http://127.0.0.1:7400, https://[::1]:7400/"
            .parse()
            .expect("two good URLs");
        assert_eq!(urls.to_string(), "http://127.0.0.1:7400,https://[::1]:7400");
        let secure: Vec<_> = urls.iter().map(ServerUrl::is_https).collect();
        assert_eq!(secure, [false, true]);
    }

    #[test]
    fn what_is_listened_on_is_what_is_told_unless_it_is_every_address_or_another_is_given() {
        let told = |given: Option<&str>, address: &str| {
            let given: Option<ServerUrl> = given.map(|url| url.parse().expect(url));
            let address = address.parse().expect(address);
            advertised(given.as_ref(), address, &Identity::none())
        };
        assert_eq!(told(None, "10.0.0.4:7410"), "http://10.0.0.4:7410");
        assert_eq!(told(None, "[2001:db8::4]:1"), "http://[2001:db8::4]:1");
        assert_eq!(told(None, "0.0.0.0:7410"), "");
        assert_eq!(told(None, "[::]:7410"), "");
        let given = "https://lb-1.example:7410";
        assert_eq!(told(Some(given), "0.0.0.0:7410"), given);
    }

    #[test]
    fn whatever_is_no_server_is_refused_with_the_reason() {
        assert_eq!(refused(""), UrlError::Empty);
        assert_eq!(refused("http://a:1,"), UrlError::Empty);
        for text in [
            "127.0.0.1:7400",
            "config:7400",
            "config",
            "/run/socket",
            "etcd://a:1",
        ] {
            assert!(matches!(refused(text), UrlError::Scheme { .. }), "{text}");
        }
        for text in ["http://a:1/path", "http://a:1?x=1", "http://me@a:1"] {
            assert!(matches!(refused(text), UrlError::TooMuch { .. }), "{text}");
        }
        for text in [
            "http://",
            "http://a b",
            "http://a:99999",
            "http://a:0",
            "http://a:",
            "http://[::1]:x",
        ] {
            assert!(
                matches!(refused(text), UrlError::Malformed { .. }),
                "{text}"
            );
        }
        assert!(matches!(
            refused("http://a:1,http://a:1/"),
            UrlError::Twice { .. }
        ));
    }
}
