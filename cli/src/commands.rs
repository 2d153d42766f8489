//! One file per command.

pub mod apply;
mod certificates;
pub mod certs;
mod changes;
pub mod connections;
pub mod delete;
pub mod demo;
pub mod doctor;
pub mod drain;
mod edges;
pub mod events;
pub mod explain;
pub mod get;
pub mod history;
mod nodes;
mod pools;
pub mod promote;
pub mod rollback;
pub mod status;
mod trial;
pub mod up;
mod wait;

use anyport_node::{identity::TlsArgs, rpc::Urls};

use crate::{
    args::{Cli, Command},
    connection::Connection,
    console::Console,
    failure::Failure,
};

/// What every command works with.
pub struct Context {
    pub connection: Connection,
    pub console: Console,
}

/// What every write tells of itself.
#[derive(Debug, Default, clap::Args)]
struct Why {
    /// Why, for the history
    #[arg(
        short,
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    message: String,
}

impl Context {
    /// The config service at `server`, which may be several replicas, and standard output.
    pub fn new(server: &Urls, tls: &TlsArgs) -> Result<Self, Failure> {
        Ok(Self {
            connection: Connection::new(server, tls)?,
            console: Console::stdout(),
        })
    }
}

pub async fn run(cli: Cli) -> Result<(), Failure> {
    let context = || Context::new(&cli.server, &cli.tls);
    match cli.command {
        Command::Apply(args) => apply::run(args, context()?).await,
        Command::Get(args) => get::run(args, context()?).await,
        Command::Delete(args) => delete::run(args, context()?).await,
        Command::History(args) => history::run(args, context()?).await,
        Command::Rollback(args) => rollback::run(args, context()?).await,
        Command::Promote(args) => promote::run(args, context()?).await,
        Command::Status(args) => status::run(args, context()?).await,
        Command::Explain(args) => explain::run(args, context()?).await,
        Command::Connections(args) => connections::run(args, context()?).await,
        Command::Events(args) => events::run(args, context()?).await,
        Command::Drain(args) => drain::drain(args, context()?).await,
        Command::Undrain(args) => drain::undrain(args, context()?).await,
        Command::Up(args) => up::run(args, cli.tls).await,
        Command::Doctor(args) => doctor::run(args, context()?).await,
        Command::Certs(args) => certs::run(args, Console::stdout()),
        Command::Demo(args) => demo::run(args, Console::stdout()).await,
    }
}
