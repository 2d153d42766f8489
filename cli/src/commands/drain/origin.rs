//! An origin, which is declared as enabled or not.

use std::str::FromStr;

use anyport_model::resource::Kind;
use anyport_proto::{
    convert::write_kind,
    v1::{self, resource::Kind as Wire},
};

use crate::{
    commands::{Context, Why, changes},
    connection::{Client, author, request_id},
    console::Mood,
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The pool and the origin in it, as in game/a
    #[arg(value_name = "POOL/ORIGIN")]
    origin: Name,
    #[command(flatten)]
    why: Why,
}

#[derive(Debug, Clone)]
struct Name {
    pool: String,
    origin: String,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((pool, origin)) if !pool.is_empty() && !origin.is_empty() => Ok(Self {
                pool: pool.to_owned(),
                origin: origin.to_owned(),
            }),
            _ => Err("right is the name of a pool, a slash and the name of an origin".to_owned()),
        }
    }
}

pub(super) async fn set_enabled(
    args: Args,
    enabled: bool,
    mut context: Context,
) -> Result<(), Failure> {
    let Name { pool, origin } = &args.origin;
    let verb = if enabled { "undrain" } else { "drain" };
    let what = format!("{verb} origin {pool}/{origin}");
    let (mut declared, revision) = get(&context, &what, pool).await?;
    let known: Vec<_> = declared
        .origins
        .iter()
        .map(|one| one.name.clone())
        .collect();
    let Some(found) = declared.origins.iter_mut().find(|one| one.name == *origin) else {
        let refused = format!("cannot {what}: pool {pool:?} has no origin {origin:?}");
        let remedy = format!("it has {}", known.join(", "));
        return Err(Failure::refused(refused).remedy(remedy));
    };
    found.enabled = Some(enabled);
    let none_is_left = declared
        .origins
        .iter()
        .all(|one| one.enabled == Some(false));
    let message = match args.why.message.as_str() {
        "" => what.clone(),
        message => message.to_owned(),
    };
    let request = v1::ApplyRequest {
        resources: vec![v1::Resource {
            kind: Some(Wire::Pool(declared)),
        }],
        expected_revision: Some(revision),
        request_id: request_id(),
        message,
        author: author(),
        ..v1::ApplyRequest::default()
    };
    let call = async |mut client: Client, request| client.apply(request).await;
    let answer = context.connection.write(request, call).await;
    let response =
        answer.map_err(|unwritten| context.connection.write_failure(&what, &unwritten))?;
    changes::print(&mut context.console, &response.changes, true)?;
    if none_is_left && !enabled {
        let word = context.console.paint("warning", Mood::Notable);
        context.console.line(format_args!(
            "{word}    no origin of pool {pool} is left; new connections to it are refused"
        ))?;
    }
    let revision = response.revision;
    context.console.line(format_args!("revision {revision}"))?;
    Ok(())
}

async fn get(context: &Context, what: &str, pool: &str) -> Result<(v1::Pool, u64), Failure> {
    let request = v1::GetRequest {
        resource: Some(v1::ResourceRef {
            kind: write_kind(Kind::Pool).into(),
            name: pool.to_owned(),
        }),
    };
    let call = async |mut client: Client, request| client.get(request).await;
    let answer = context.connection.read(what, request, call).await?;
    match answer.resource.and_then(|resource| resource.kind) {
        Some(Wire::Pool(pool)) => Ok((pool, answer.revision)),
        _ => Err(Failure::refused(format_args!(
            "cannot {what}: the config service answered with no pool"
        ))),
    }
}
