//! The question which server answered, and its answer.
//!
//! A server with a tag answers the line `who` with `tag=NAME peer=ADDRESS:PORT local=ADDRESS:PORT`:
//! its tag, who it believes has connected, and what it believes was connected to.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The request line.
pub(super) const REQUEST: &[u8] = b"who\n";

/// No answer is longer than this, in bytes, with its newline: a tag of 64, and two addresses of at
/// most 60 with a zone.
pub(super) const LONGEST_ANSWER: usize = 256;

/// A server's name for itself: 1 to 64 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(String);

/// Why a text is not a tag.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("tag {0:?}: a tag is 1 to 64 visible ASCII characters")]
pub struct TagError(String);

/// The answer of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Which server this is.
    pub tag: Tag,
    /// The other end of its connection.
    pub peer: SocketAddr,
    /// Its own end.
    pub local: SocketAddr,
}

/// Why a line is not an answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form \"tag=NAME peer=ADDRESS:PORT local=ADDRESS:PORT\"")]
pub struct WhoError(String);

impl Tag {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let fits =
            (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
            .ok_or_else(|| TagError(text.to_owned()))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Who {
    type Err = WhoError;

    fn from_str(line: &str) -> Result<Self, WhoError> {
        Self::read(line).ok_or_else(|| WhoError(line.to_owned()))
    }
}

impl Who {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.trim_end_matches('\n').split(' ');
        let mut field = |name| words.next()?.strip_prefix(name);
        let who = Self {
            tag: field("tag=")?.parse().ok()?,
            peer: field("peer=")?.parse().ok()?,
            local: field("local=")?.parse().ok()?,
        };
        words.next().is_none().then_some(who)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tag={} peer={} local={}",
            self.tag, self.peer, self.local
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_longest_answer_fits_and_reads_back() {
        let who = Who {
            tag: "x".repeat(64).parse().unwrap(),
            peer: "[1234:1234:1234:1234:1234:1234:1234:1234%4294967295]:65535"
                .parse()
                .unwrap(),
            local: "[1234:1234:1234:1234:1234:1234:1234:1234%4294967295]:65535"
                .parse()
                .unwrap(),
        };
        let line = format!("{who}\n");
        assert!(line.len() <= LONGEST_ANSWER);
        assert_eq!(line.parse::<Who>().unwrap(), who);
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for line in [
            "",
            "who",
            "tag= peer=1.2.3.4:5 local=1.2.3.4:5",
            "tag=a peer=1.2.3.4:5",
            "tag=a peer=1.2.3.4:5 local=1.2.3.4",
            "tag=a peer=1.2.3.4:5 local=1.2.3.4:5 more",
        ] {
            assert_eq!(line.parse::<Who>(), Err(WhoError(line.to_owned())));
        }
        assert!("two words".parse::<Tag>().is_err());
    }
}
