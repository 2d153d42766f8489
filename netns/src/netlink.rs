//! A netlink conversation with one namespace.

use std::future::Future;

use nlink::{Connection, Route};

use crate::error::{Error, Result};
use crate::namespace::Namespace;

/// Opens a connection inside `namespace` and runs `work` on it. `action` names the whole in errors.
///
/// The socket is made on a thread that has entered the namespace, and keeps to it.
pub(crate) fn converse<F, Fut>(namespace: &Namespace, action: &str, work: F) -> Result<()>
where
    F: FnOnce(Connection<Route>) -> Fut + Send,
    Fut: Future<Output = nlink::Result<()>>,
{
    namespace
        .block_on(|| async { work(Connection::<Route>::new()?).await })?
        .map_err(|source| Error::netlink(namespace.label(), action, source))
}
