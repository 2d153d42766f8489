//! The processes of the demo: this same program under other names.
//!
//! The services are linked into it, so that a copy of `anyport` alone is enough.
//! They run as processes of their own all the same, each in its namespace, because
//! that is how they run in earnest, and because one of them is to be killed.

use std::{env, ffi::OsString, iter, net::SocketAddr, process::ExitCode};

use anyhow::Context;
use anyport_node::{boot, drain::Drain};
use clap::Parser;
use tokio::{net::TcpListener, task::JoinSet};

use super::talk;

/// Which process to be.
#[derive(Debug, clap::Subcommand)]
pub enum Role {
    ConfigService(anyport_config_service::Config),
    Balancer(anyport_balancer::Args),
    EdgeAgent(anyport_edge_agent::Config),
    /// A server that says who it is and repeats what it is told
    Origin {
        #[arg(long)]
        name: String,
        #[arg(long)]
        listen: SocketAddr,
    },
}

/// The word that makes this program one of them. It is no command of the user's.
pub const WORD: &str = "demo-role";

#[derive(Debug, clap::Parser)]
#[command(name = "anyport demo-role")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

impl Role {
    /// The role that this process was started for, if a demo started it.
    pub fn requested() -> Option<Self> {
        let mut arguments = env::args_os().skip(1);
        (arguments.next()? == WORD).then(|| {
            let program = iter::once(OsString::from("anyport demo-role"));
            Arguments::parse_from(program.chain(arguments)).role
        })
    }

    /// The whole life of the process.
    pub fn run(self) -> ExitCode {
        match self {
            Role::ConfigService(config) => boot::run("config-service", async |drain| {
                Ok(anyport_config_service::run(config, drain).await?)
            }),
            Role::Balancer(args) => boot::run("balancer", async |drain| {
                Ok(anyport_balancer::run(args.resolve()?, drain).await?)
            }),
            Role::EdgeAgent(config) => boot::run("edge-agent", async |drain| {
                anyport_edge_agent::run(config, drain).await
            }),
            Role::Origin { name, listen } => {
                boot::run("origin", async |drain| origin(&name, listen, drain).await)
            }
        }
    }
}

async fn origin(name: &str, listen: SocketAddr, drain: Drain) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listening on {listen}"))?;
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            () = drain.started() => return Ok(()),
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accepting a connection")?;
                let name = name.to_owned();
                open.spawn(async move { talk::answer(&name, stream).await });
            }
            // How a connection ended is the client's to judge.
            Some(_) = open.join_next() => {}
        }
    }
}
