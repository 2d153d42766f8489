//! Edges and balancers that are connected, here or to another replica, and what
//! each of them last said; and the set of balancers, which follows from that.

mod balancers;
mod registry;
mod roster;
mod share;

pub use balancers::{Balancers, keep};
pub use registry::{NodeKey, Nodes, Role, Session};
pub use share::share;
