//! Work that takes as long as there are resources, kept off the threads that serve.

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::JoinError,
};

/// Does it on a thread of its own; where there is one thread only, on that: nobody else
/// is kept from it.
///
/// # Errors
/// Where it panicked.
pub(crate) async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}
