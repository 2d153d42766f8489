//! Names that TLS clients ask for (RFC 6066, server_name), and patterns of
//! them that apps are routed by.

use std::{collections::HashMap, fmt, str::FromStr};

/// Longest name in bytes (RFC 1035).
const NAME_MAX: usize = 253;
/// Longest part between two dots.
const LABEL_MAX: usize = 63;

/// The name that a client asks for: lower case, without a dot at its end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerName(Box<str>);

/// A text that is no [`ServerName`] and no [`NamePattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerNameError {
    #[error("{0:?} is no host name; right is mail.example.com")]
    Name(String),
    #[error("{0:?} is no name to route by; right is mail.example.com or *.example.com")]
    Pattern(String),
}

impl ServerName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServerName {
    type Err = ServerNameError;

    fn from_str(text: &str) -> Result<Self, ServerNameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=LABEL_MAX).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // An IP address is no name, and no name ends in a number.
        let last = name.rsplit('.').next().unwrap_or_default();
        let numeric = last.bytes().all(|b| b.is_ascii_digit());
        if name.len() <= NAME_MAX && name.split('.').all(label) && !numeric {
            Ok(Self(name.to_ascii_lowercase().into()))
        } else {
            Err(ServerNameError::Name(text.chars().take(NAME_MAX).collect()))
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// `mail.example.com`, or `*.example.com` for every name below `example.com`,
/// however deep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamePattern {
    Exact(ServerName),
    /// The name that others stand below.
    Below(ServerName),
}

impl FromStr for NamePattern {
    type Err = ServerNameError;

    fn from_str(text: &str) -> Result<Self, ServerNameError> {
        let pattern = match text.strip_prefix("*.") {
            Some(parent) => parent.parse().map(Self::Below),
            None => text.parse().map(Self::Exact),
        };
        pattern.map_err(|_| ServerNameError::Pattern(text.chars().take(NAME_MAX).collect()))
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.pad(name.as_str()),
            Self::Below(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// Values by pattern. Of the patterns that fit a name the exact one wins, then
/// the longest.
#[derive(Debug, Clone)]
pub struct ByName<T> {
    exact: HashMap<ServerName, T>,
    below: HashMap<ServerName, T>,
}

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            below: HashMap::new(),
        }
    }
}

impl<T> ByName<T> {
    /// Gives a pattern a value, unless it has one already; that one is given
    /// back then.
    pub fn insert(&mut self, pattern: NamePattern, value: T) -> Option<&T> {
        let (map, name) = match pattern {
            NamePattern::Exact(name) => (&mut self.exact, name),
            NamePattern::Below(parent) => (&mut self.below, parent),
        };
        if map.contains_key(&name) {
            return map.get(&name);
        }
        map.insert(name, value);
        None
    }

    /// One lookup for the name and one for each of its dots.
    pub fn get(&self, name: &ServerName) -> Option<&T> {
        self.exact.get(name).or_else(|| {
            let mut rest = name.as_str();
            while let Some((_, parent)) = rest.split_once('.') {
                if let Some(value) = self.below.get(&ServerName(parent.into())) {
                    return Some(value);
                }
                rest = parent;
            }
            None
        })
    }

    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_no_name_is_refused() {
        for good in ["a", "mail.example.com", "MAIL.example.com.", "_x.a-b.c"] {
            assert!(good.parse::<ServerName>().is_ok(), "{good:?}");
        }
        let long = format!("{}.com", "a.".repeat(130));
        for bad in [
            "",
            ".",
            "a..b",
            "a b",
            "ä.example.com",
            "*.example.com",
            "203.0.113.1",
            "2001:db8::1",
            "a/b",
            &"x".repeat(64),
            &long,
        ] {
            assert!(bad.parse::<ServerName>().is_err(), "{bad:?}");
        }
        for bad in ["*", "*.", "a.*.com", "**.com", "*a.com"] {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_most_specific_pattern_wins_in_any_case_of_letters() {
        let mut names = ByName::default();
        for (pattern, value) in [
            ("*.Example.com", 1),
            ("*.eu.example.com", 2),
            ("mail.example.com", 3),
        ] {
            assert_eq!(names.insert(pattern.parse().unwrap(), value), None);
        }
        assert_eq!(
            names.insert("MAIL.example.com".parse().unwrap(), 9),
            Some(&3)
        );
        for (name, value) in [
            ("www.example.com", Some(1)),
            ("a.b.example.com", Some(1)),
            ("a.eu.EXAMPLE.com.", Some(2)),
            ("eu.example.com", Some(1)),
            ("mail.example.com", Some(3)),
            ("x.mail.example.com", Some(1)),
            ("example.com", None),
            ("example.org", None),
        ] {
            assert_eq!(names.get(&name.parse().unwrap()).copied(), value, "{name}");
        }
    }
}
