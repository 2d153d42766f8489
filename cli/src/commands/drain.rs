//! `anyport drain` and `anyport undrain`: an edge or an origin gets no new
//! connections, and those that are open end well.

mod edge;
mod origin;

use super::Context;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    #[command(subcommand)]
    what: Drain,
}

#[derive(Debug, clap::Subcommand)]
enum Drain {
    /// Takes an edge out of service: /readyz says so at once, new connections are
    /// refused after --grace, and those that are open are then closed within
    /// their app's timeouts.drain. The agent goes on, and the order outlives its
    /// restarts and upgrades, until `anyport undrain edge`
    Edge(edge::DrainArgs),
    /// Declares an origin as not enabled: it gets no new connections, those that
    /// are open go on, and it is no longer probed
    Origin(origin::Args),
}

#[derive(Debug, clap::Args)]
pub struct UndrainArgs {
    #[command(subcommand)]
    what: Undrain,
}

#[derive(Debug, clap::Subcommand)]
enum Undrain {
    /// Takes an edge back into service; what was not closed yet goes on
    Edge(edge::UndrainArgs),
    /// Declares an origin as enabled
    Origin(origin::Args),
}

pub async fn drain(args: DrainArgs, context: Context) -> Result<(), Failure> {
    match args.what {
        Drain::Edge(args) => edge::drain(args, context).await,
        Drain::Origin(args) => origin::set_enabled(args, false, context).await,
    }
}

pub async fn undrain(args: UndrainArgs, context: Context) -> Result<(), Failure> {
    match args.what {
        Undrain::Edge(args) => edge::undrain(args, context).await,
        Undrain::Origin(args) => origin::set_enabled(args, true, context).await,
    }
}
