//! What a monitor asks of an origin, and which answers pass.

use std::{fmt, str::FromStr};

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Connect, then the exchange.
    Tcp(Exchange),
    /// Connect, TLS handshake, then the exchange inside.
    Tls(Exchange),
    /// A request in clear text.
    Http(Request),
    /// A request in TLS.
    Https(Request),
    /// `grpc.health.v1.Health/Check` of `service`, HTTP/2 in clear text. Empty: of
    /// the whole server.
    Grpc { service: String },
    /// A datagram. With nothing to expect, any answer passes, and so does
    /// silence; only ICMP saying that nobody is there fails.
    Udp(Exchange),
    /// An echo request.
    Icmp,
}

/// Send `send`; wait until the reply contains `expect`. Empty ones are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exchange {
    pub send: Vec<u8>,
    pub expect: Vec<u8>,
}

/// A GET request, and the answers that pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    pub path: HttpPath,
    pub expected_codes: StatusCodes,
    /// Is contained in the body, letters of ASCII in either case; empty: the body
    /// is not read.
    pub expected_body: String,
}

/// A path and perhaps a query as they stand in a request: `/healthz?full=1`.
/// At most [`HttpPath::LEN_MAX`] bytes, in the characters of RFC 3986.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpPath(String);

/// A text that is no [`HttpPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpPathError {
    #[error("{0:?} does not start with a slash; right is /healthz")]
    NoSlash(String),
    #[error("{path:?} contains {found:?}, which a URL spells {}", percent_encoded(*.found))]
    Character { path: String, found: char },
    #[error("is {0} bytes long; right is at most {max}", max = HttpPath::LEN_MAX)]
    TooLong(usize),
}

impl HttpPath {
    pub const LEN_MAX: usize = 2048;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for HttpPath {
    fn default() -> Self {
        Self("/".to_owned())
    }
}

impl FromStr for HttpPath {
    type Err = HttpPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > Self::LEN_MAX {
            return Err(HttpPathError::TooLong(text.len()));
        }
        if !text.starts_with('/') {
            return Err(HttpPathError::NoSlash(text.to_owned()));
        }
        let is_right = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/?%".contains(c);
        match text.chars().find(|c| !is_right(*c)) {
            Some(found) => Err(HttpPathError::Character {
                path: text.to_owned(),
                found,
            }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// As bytes of UTF-8, `%C3%A9`.
fn percent_encoded(c: char) -> String {
    let mut bytes = [0; 4];
    let bytes = c.encode_utf8(&mut bytes).bytes();
    bytes.map(|byte| format!("%{byte:02X}")).collect()
}

/// Statuses of final answers: `2xx`, `200`, `200-299`, several separated by
/// commas. Keeps the order in which they were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusCodes(Vec<Codes>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codes {
    /// All that begin with this digit.
    Class(u16),
    From(u16, u16),
}

/// A text that names no [`StatusCodes`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatusCodesError {
    #[error(
        "{0:?} names no status from 200 to 599; right is \"2xx\", \"200\", \"200-299\", or \
         several separated by commas"
    )]
    Unknown(String),
    #[error("{0:?} ends before it begins")]
    Backwards(String),
    #[error("names {0} ranges; right is at most {max}", max = StatusCodes::RANGES_MAX)]
    TooMany(usize),
}

impl StatusCodes {
    pub const RANGES_MAX: usize = 32;

    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|codes| match codes {
            Codes::Class(digit) => status / 100 == *digit,
            Codes::From(first, last) => (*first..=*last).contains(&status),
        })
    }
}

impl Default for StatusCodes {
    fn default() -> Self {
        Self(vec![Codes::Class(2)])
    }
}

impl FromStr for StatusCodes {
    type Err = StatusCodesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let count = text.split(',').count();
        if count > Self::RANGES_MAX {
            return Err(StatusCodesError::TooMany(count));
        }
        let codes: Result<_, _> = text.split(',').map(read_codes).collect();
        codes.map(Self)
    }
}

fn read_codes(text: &str) -> Result<Codes, StatusCodesError> {
    let text = text.trim();
    let unknown = || StatusCodesError::Unknown(text.to_owned());
    if let Some(class) = text.strip_suffix("xx") {
        let class = class.parse().ok().filter(|digit| (2..=5).contains(digit));
        return class.map(Codes::Class).ok_or_else(unknown);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (
        status(first).ok_or_else(unknown)?,
        status(last).ok_or_else(unknown)?,
    );
    if first > last {
        return Err(StatusCodesError::Backwards(text.to_owned()));
    }
    Ok(Codes::From(first, last))
}

fn status(text: &str) -> Option<u16> {
    let digits = text.trim();
    let three = digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let status = digits.parse().ok().filter(|_| three)?;
    (200..=599).contains(&status).then_some(status)
}

/// As it is read.
impl fmt::Display for StatusCodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, codes) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match codes {
                Codes::Class(digit) => write!(f, "{digit}xx")?,
                Codes::From(first, last) if first == last => write!(f, "{first}")?,
                Codes::From(first, last) => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn passing(text: &str) -> Vec<u16> {
        let codes: StatusCodes = text.parse().unwrap();
        (0..1000).filter(|status| codes.contains(*status)).collect()
    }

    #[test]
    fn codes_are_classes_single_ones_and_ranges() {
        assert_eq!(passing("2xx"), Vec::from_iter(200..300));
        assert_eq!(passing("200"), [200]);
        assert_eq!(passing(" 200, 204 "), [200, 204]);
        assert_eq!(passing("200 - 202,301"), [200, 201, 202, 301]);
        assert_eq!(passing("200-299"), passing("2xx"));
        let mut wide = passing("4xx");
        wide.insert(0, 302);
        assert_eq!(passing("4xx,302"), wide);
    }

    #[test]
    fn what_names_no_status_is_refused() {
        for wrong in [
            "", "1xx", "6xx", "xx", "2XX", "20x", "100", "199", "600", "0200", "+200", "200,",
            "200-", "-", "2xx-3xx", "ok",
        ] {
            let error = wrong.parse::<StatusCodes>().unwrap_err();
            assert!(
                matches!(error, StatusCodesError::Unknown(_)),
                "{wrong}: {error}"
            );
        }
        let error = "299-200".parse::<StatusCodes>().unwrap_err();
        assert_eq!(error.to_string(), "\"299-200\" ends before it begins");
        let many = vec!["200"; 33].join(",");
        let error = many.parse::<StatusCodes>().unwrap_err();
        assert_eq!(error.to_string(), "names 33 ranges; right is at most 32");
    }

    #[test]
    fn a_path_is_what_a_request_may_hold() {
        for right in ["/", "/healthz", "/a/b;c?d=e&f=%20", "/~x/@:!$'()*+,"] {
            assert_eq!(right.parse::<HttpPath>().unwrap().as_str(), right);
        }
        for (wrong, said) in [
            ("healthz", "does not start with a slash"),
            ("", "does not start with a slash"),
            ("/a b", "contains ' ', which a URL spells %20"),
            ("/é", "contains 'é', which a URL spells %C3%A9"),
            ("/#top", "contains '#'"),
            ("/a\r\nHost: b", "contains '\\r', which a URL spells %0D"),
            (&format!("/{}", "a".repeat(2048)), "is 2049 bytes long"),
        ] {
            let error = wrong.parse::<HttpPath>().unwrap_err().to_string();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    proptest! {
        #[test]
        fn codes_are_written_as_they_are_read(text in "([2-5]xx,|[2-4][0-9]{2}(-5[0-9]{2})?,){0,4}[2-5]xx") {
            let codes: StatusCodes = text.parse().unwrap();
            prop_assert_eq!(codes.to_string().parse::<StatusCodes>().unwrap(), codes);
        }

        #[test]
        fn no_text_breaks_the_readers(text: String) {
            let _ = text.parse::<StatusCodes>();
            let _ = text.parse::<HttpPath>();
        }
    }
}
