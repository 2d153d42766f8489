//! Wire messages to model types and back: the one door. Reading names every
//! fault of a message by field path; writing cannot fail.

mod app;
mod balancers;
mod certificate;
mod dns;
mod fields;
mod guards;
mod health;
mod identity;
mod monitor;
mod pool;
mod prefix;
mod reference;
mod resource;
mod rollout;
mod time;
mod tls;
mod update;

pub use balancers::{read_balancer_set, write_balancer_set};
pub use certificate::REDACTED;
pub use fields::Unreadable;
pub use health::{read_pool_weights, write_pool_health, write_pool_weights};
pub use reference::{read_kind, read_reference, write_kind, write_reference};
pub use resource::{read_resource, write_redacted, write_resource};
pub use rollout::{
    read_app_trial, read_canary, read_outcomes, read_rollout, write_outcomes, write_rollout,
};
pub use time::{read_duration, write_duration, write_timestamp};
pub(crate) use update::split_hash;
pub use update::{read_update, write_full_update, write_rejections};
