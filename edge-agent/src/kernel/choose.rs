//! Which way of steering this host gets.

use tracing::info;

use super::{desired::Steering, error::KernelError, sk_lookup::SkLookup};

/// The way that is `asked` for, or, if none is, sk_lookup where the kernel lets
/// us and else TPROXY. sk_lookup is tried, in the network namespace of the
/// calling thread: its program is loaded and pinned for a moment, and not
/// attached.
///
/// # Errors
///
/// Where sk_lookup is asked for and cannot be had.
pub fn choose(asked: Option<Steering>) -> Result<Steering, KernelError> {
    if asked == Some(Steering::Tproxy) {
        return Ok(Steering::Tproxy);
    }
    let tried = SkLookup::open().and_then(|sk_lookup| sk_lookup.try_out());
    match (tried, asked) {
        (Ok(()), _) => Ok(Steering::SkLookup),
        (Err(error), Some(_)) => Err(error),
        (Err(why), None) => {
            info!(%why, "sk_lookup cannot be had here; steering by tproxy");
            Ok(Steering::Tproxy)
        }
    }
}
