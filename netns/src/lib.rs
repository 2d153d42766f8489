//! Network namespaces, and the links, addresses and routes inside them.
//!
//! `anyport demo` and the test lab run whole networks on one machine: a client, an edge and its
//! origins, each with a network stack of its own, so that neither can disturb the host. This crate
//! is only the mechanism. It knows nothing of what runs inside.
//!
//! What always holds:
//!
//! - **Nothing to clean up.** A namespace has no name in the file system; it lives as long as a
//!   handle, a process or a socket that belongs to it. When the last of them is gone, also by
//!   `kill -9`, the kernel removes it with every link, route and rule in it.
//! - **The host is not touched.** Every link is created inside a namespace made here, and both of
//!   its ends stay there. What programs pin in the BPF file system stays in [`Mounts`] of their own.
//!
//! A namespace belongs to a *thread*, not to a process. Code enters one only on a thread made for
//! that purpose ([`Namespace::run`], [`Namespace::block_on`], [`Namespace::spawn_thread`]), never on
//! the caller's own, so that no runtime worker is ever left behind in a foreign namespace. A socket,
//! on the other hand, stays for its whole life in the namespace it was created in: it can be opened
//! inside [`Namespace::run`] and then used from any thread.

pub mod counters;
mod error;
pub mod link;
mod mounts;
mod namespace;
mod netlink;
pub mod route;
pub mod sysctl;
pub mod topology;

pub use error::{Error, Result};
pub use mounts::Mounts;
pub use namespace::Namespace;
pub use topology::Topology;
