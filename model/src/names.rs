//! Names that users give to things. One rule for all of them; one type for
//! each, so that a pool's name cannot stand where an app's is meant.

use std::{fmt, str::FromStr, sync::Arc};

/// Longest name in bytes: fits a DNS label, a metric label and a table column.
pub const NAME_MAX: usize = 63;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("is empty; a name has 1 to {NAME_MAX} letters, digits, '-', '_' or '.'")]
    Empty,
    #[error("{0:?} is longer than {NAME_MAX} bytes")]
    TooLong(String),
    #[error(
        "{0:?} is no name; a name starts with a letter or digit and has only letters, digits, '-', '_' and '.'"
    )]
    Character(String),
}

fn check(text: &str) -> Result<(), NameError> {
    let word = |byte: u8| byte.is_ascii_alphanumeric();
    let bytes = text.as_bytes();
    match bytes.first() {
        None => Err(NameError::Empty),
        Some(_) if bytes.len() > NAME_MAX => {
            Err(NameError::TooLong(text.chars().take(NAME_MAX).collect()))
        }
        Some(&first) if !word(first) => Err(NameError::Character(text.to_owned())),
        Some(_) if !bytes.iter().all(|&b| word(b) || b"-_.".contains(&b)) => {
            Err(NameError::Character(text.to_owned()))
        }
        Some(_) => Ok(()),
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )+};
}

names! {
    /// Name of an app.
    AppName,
    /// Name of a pool.
    PoolName,
    /// Name of an origin; unique in its pool only.
    OriginName,
    /// Name of a certificate.
    CertificateName,
    /// Name of a monitor.
    MonitorName,
    /// Name of an edge or a balancer.
    NodeName,
}

/// Number of one committed state of all resources. The first commit makes 1;
/// 0 is the empty state before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// Before anything was declared.
    pub const EMPTY: Revision = Revision(0);

    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_the_rule() {
        for good in ["a", "0", "my-app_1.x", "A", &"x".repeat(NAME_MAX)] {
            assert!(good.parse::<AppName>().is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "-a",
            ".a",
            "a b",
            "a/b",
            "ä",
            "a\n",
            &"x".repeat(NAME_MAX + 1),
        ] {
            assert!(bad.parse::<AppName>().is_err(), "{bad:?}");
        }
    }
}
