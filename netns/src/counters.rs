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
