//! Counts that tests and the demo read from a namespace.

use std::path::Path;

use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::sysctl;

/// How many connections the namespace's connection tracking follows now. `None` where the kernel
/// has no connection tracking loaded, so that there is nothing to follow.
///
/// # Errors
///
/// Where the count is there and cannot be read.
pub fn conntrack_entries(namespace: &Namespace) -> Result<Option<u64>> {
    const NAME: &str = "net/netfilter/nf_conntrack_count";
    let text = match sysctl::get(namespace, NAME) {
        Ok(text) => text,
        Err(Error::System { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    match text.parse() {
        Ok(count) => Ok(Some(count)),
        Err(_) => Err(Error::Unreadable {
            namespace: namespace.label().to_owned(),
            path: Path::new("/proc/sys").join(NAME),
            found: text,
            expected: "a number",
        }),
    }
}

/// Bytes that crossed a link of the namespace, as the kernel counts them: with every header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkBytes {
    /// Towards the namespace.
    pub received: u64,
    /// Out of it.
    pub sent: u64,
}

/// What has crossed a link since it was made.
///
/// # Errors
///
/// Where there is no such link, or the namespace cannot be entered.
pub fn link_bytes(namespace: &Namespace, link: &str) -> Result<LinkBytes> {
    // Of the thread: `/proc/net` is the network of the process's first one.
    const PATH: &str = "/proc/thread-self/net/dev";
    let text = namespace
        .run(|| std::fs::read_to_string(PATH))?
        .map_err(|source| Error::system(namespace.label(), "reading what links carried", source))?;
    read_link(&text, link).ok_or_else(|| Error::Unreadable {
        namespace: namespace.label().to_owned(),
        path: PATH.into(),
        found: text,
        expected: "a line of the link",
    })
}

/// `NAME: BYTES-IN` and seven more of what came in, then `BYTES-OUT` and more.
fn read_link(text: &str, link: &str) -> Option<LinkBytes> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, counts) = lines.find(|(name, _)| name.trim() == link)?;
    let mut counts = counts.split_whitespace().map(str::parse);
    Some(LinkBytes {
        received: counts.next()?.ok()?,
        sent: counts.nth(7)?.ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_found_by_its_name() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs
    lo:       1       2    0    0    0     0          0         0        3       4    0
 edge1:      50       2    0    0    0     0          0         0       60       4    0
  edge: 1234567      20    0    0    0     0          0         0     7654      40    0
";
        let expected = LinkBytes {
            received: 1_234_567,
            sent: 7654,
        };
        assert_eq!(read_link(text, "edge"), Some(expected));
        assert_eq!(read_link(text, "edg"), None);
    }
}
