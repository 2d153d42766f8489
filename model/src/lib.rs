//! What Anyport is about, without a socket, a clock or a task.
//!
//! - **prefix**: address space that the fleet answers for ([`resource::Prefix`])
//! - **app**: what arrives where, and where it goes ([`resource::App`])
//! - **pool**, **origin**: servers behind an app ([`resource::Pool`])
//! - **monitor**: how an origin is probed ([`resource::Monitor`], [`check::Check`])
//! - **certificate**: what the edge shows to TLS clients ([`certificate::Certificate`])
//! - **source**: whom limits count as one client ([`limits::Source`])
//! - **claim**: a rectangle of addresses × ports ([`steering::Claim`])
//! - **revision**: a number for one committed state ([`names::Revision`])
//! - **state**: all resources of a revision, which fit each other ([`state::State`])
//! - **rollout**: a revision that a few edges try before all others ([`rollout::Rollout`])
//! - **balancer set**: who shares the probing of origins ([`balancers::BalancerSet`])
//! - **health**, **weights**: what is known of origins, and the share of each
//!
//! Time, randomness and hash seeds are arguments everywhere.

pub mod access;
pub mod any_certificate;
pub mod backoff;
pub mod balancers;
pub mod bucket;
pub mod certificate;
pub mod check;
pub mod client_hello;
pub mod damped;
pub mod diff;
pub mod disabled;
pub mod dns;
pub mod drain;
pub mod duration;
pub mod evidence;
pub mod fault;
pub mod fence;
pub mod health;
pub mod identity;
pub mod latency;
pub mod limits;
pub mod load;
pub mod maglev;
pub mod names;
pub mod net_set;
pub mod opinion;
pub mod outcome;
pub mod pick;
pub mod ports;
pub mod positions;
pub mod replica;
pub mod resource;
pub mod rollout;
pub mod route;
pub mod server_name;
pub mod sip;
pub mod slow_start;
pub mod state;
pub mod steering;
pub mod target;
pub mod tls;
pub mod validate;
pub mod weights;
