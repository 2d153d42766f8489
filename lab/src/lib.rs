//! The laboratory: what it takes to try Anyport on a real kernel and to measure it. For development
//! only; nothing else depends on it.

pub mod bench;
pub mod chance;
pub mod cluster;
pub mod control_plane;
pub mod delay;
pub mod dials;
pub mod failover;
pub mod fault;
pub mod load;
pub mod network;
pub mod relay;
pub mod servers;
pub mod swarm;
pub mod tls;
pub mod weights;
