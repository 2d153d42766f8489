//! `anyport rollback`: back to the state of a revision, as a new revision.

use anyport_proto::v1;

use super::{Context, Why, changes};
use crate::{
    connection::{Client, author, request_id},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The revision whose state is to come back, as `anyport history` shows it
    revision: u64,
    /// Allow it to delete every app, every prefix, or more than half of more than
    /// 10 resources
    #[arg(long)]
    allow_mass_deletion: bool,
    #[command(flatten)]
    why: Why,
}

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let request = v1::RollbackRequest {
        revision: args.revision,
        expected_revision: None,
        request_id: request_id(),
        message: args.why.message,
        author: author(),
        allow_mass_deletion: args.allow_mass_deletion,
    };
    let call = async |mut client: Client, request| client.rollback(request).await;
    let answer = context.connection.write(request, call).await;
    let what = format!("go back to revision {}", args.revision);
    let response =
        answer.map_err(|unwritten| context.connection.write_failure(&what, &unwritten))?;
    changes::print(&mut context.console, &response.changes, false)?;
    let line = format!(
        "revision {}, as revision {} was",
        response.revision, args.revision
    );
    context.console.line(line)?;
    Ok(())
}
