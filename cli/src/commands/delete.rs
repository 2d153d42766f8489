//! `anyport delete`: one declared thing goes.

use anyport_model::resource::Kind;
use anyport_proto::{convert::write_kind, v1};

use super::{Context, Why};
use crate::{
    connection::{Client, author, request_id},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What kind of thing
    #[arg(value_name = "KIND")]
    kind: Declared,
    /// Its name; a prefix is named by its CIDR
    name: String,
    #[command(flatten)]
    why: Why,
}

/// The kinds that are declared.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Declared {
    #[value(alias = "app")]
    Apps,
    #[value(alias = "pool")]
    Pools,
    #[value(alias = "monitor")]
    Monitors,
    #[value(alias = "certificate")]
    Certificates,
    #[value(alias = "prefix")]
    Prefixes,
}

impl From<Declared> for Kind {
    fn from(kind: Declared) -> Self {
        match kind {
            Declared::Apps => Kind::App,
            Declared::Pools => Kind::Pool,
            Declared::Monitors => Kind::Monitor,
            Declared::Certificates => Kind::Certificate,
            Declared::Prefixes => Kind::Prefix,
        }
    }
}

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let kind = Kind::from(args.kind);
    let request = v1::DeleteRequest {
        resource: Some(v1::ResourceRef {
            kind: write_kind(kind).into(),
            name: args.name.clone(),
        }),
        expected_revision: None,
        request_id: request_id(),
        message: args.why.message,
        author: author(),
    };
    let call = async |mut client: Client, request| client.delete(request).await;
    let answer = context.connection.write(request, call).await;
    let what = format!("delete {} {:?}", kind.singular(), args.name);
    let response =
        answer.map_err(|unwritten| context.connection.write_failure(&what, &unwritten))?;
    let change = v1::Change {
        resource: Some(v1::ResourceRef {
            kind: write_kind(kind).into(),
            name: args.name,
        }),
        action: v1::change::Action::Deleted.into(),
        ..Default::default()
    };
    super::changes::print(&mut context.console, &[change], false)?;
    let revision = response.revision;
    context.console.line(format_args!("revision {revision}"))?;
    Ok(())
}
