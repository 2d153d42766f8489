//! Edges and balancers that are connected, here or to another replica, and what
//! each of them last said.

mod registry;
mod share;

pub use registry::{NodeKey, Nodes, Role, Session};
pub use share::share;
