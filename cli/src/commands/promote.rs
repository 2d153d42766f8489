//! `anyport promote`: all edges get the revision that some try.

use anyport_proto::v1;

use super::{
    Context, Why,
    wait::{self, Edges, WaitArgs},
};
use crate::{
    connection::{Client, author, request_id},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The revision that is being tried, to be sure that it is that one
    revision: Option<u64>,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    why: Why,
}

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let request = v1::PromoteRequest {
        revision: args.revision.unwrap_or_default(),
        expected_revision: None,
        request_id: request_id(),
        message: args.why.message,
        author: author(),
    };
    let call = async |mut client: Client, request| client.promote(request).await;
    let answer = context.connection.write(request, call).await;
    let answer =
        answer.map_err(|unwritten| context.connection.write_failure("promote", &unwritten));
    let revision = answer?.revision;
    context.console.line(format_args!(
        "revision {revision}, for all, as revision {} was",
        revision.saturating_sub(1)
    ))?;
    match args.wait.limit {
        Some(limit) => wait::until_applied(&mut context, revision, limit, Edges::AnyNumber).await,
        None => Ok(()),
    }
}
