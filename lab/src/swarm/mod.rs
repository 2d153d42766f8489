//! A fleet on one machine: a real etcd, two replicas of the config service, and edges that are
//! simulated from the wire inwards. They subscribe over gRPC, each on a connection of its own, with
//! the code that real ones subscribe with, and acknowledge at once; there is no kernel behind them.
//!
//! Edges are in the client's namespace and the control plane in the edge's, so that whatever crosses
//! the link between the two was said by or to an edge.

mod book;
mod declared;
mod edge;
mod measure;
mod plot;
mod process;
mod report;
mod stage;

pub use book::{Book, Standing};
pub use declared::{app, apps, prefix};
pub use measure::{Measured, Point, Progress, measure};
pub use plot::plot;
pub use report::{Document, table};
pub use stage::{Fleet, Held, Stage};
