//! `anyport history`: who changed what and when.

use anyport_proto::v1;
use serde::Serialize;

use super::{Context, trial::Trial};
use crate::{
    connection::Client,
    console::{Cell, Format, Mood},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many revisions, from the newest
    #[arg(short = 'n', long, value_name = "NUMBER", default_value = "20")]
    limit: usize,
    /// How to write it
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        value_enum,
        default_value = "table"
    )]
    output: Format,
}

/// One revision, as JSON and YAML have it.
#[derive(Debug, Serialize)]
struct Revision {
    revision: u64,
    /// RFC 3339.
    committed_at: Option<String>,
    author: String,
    /// Of the author's certificate; empty without one, and so is the serial number.
    roles: String,
    serial: String,
    /// Address and port that it came from.
    peer: String,
    message: String,
    created: u32,
    updated: u32,
    deleted: u32,
    /// For a rollback, the revision whose state came back.
    #[serde(skip_serializing_if = "Option::is_none")]
    rollback_of: Option<u64>,
    /// Who tried it before all others got it.
    #[serde(skip_serializing_if = "Option::is_none")]
    trial: Option<Trial>,
    /// For a promotion, the revision that some had tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    promotion_of: Option<u64>,
}

impl From<v1::RevisionRecord> for Revision {
    fn from(wire: v1::RevisionRecord) -> Self {
        Self {
            revision: wire.revision,
            committed_at: wire.committed_at.map(|time| time.to_string()),
            author: wire.author,
            roles: wire.roles,
            serial: wire.serial,
            peer: wire.peer,
            message: wire.message,
            created: wire.created,
            updated: wire.updated,
            deleted: wire.deleted,
            rollback_of: (wire.rollback_of > 0).then_some(wire.rollback_of),
            trial: wire.rollout.map(Trial::from),
            promotion_of: (wire.promotion_of > 0).then_some(wire.promotion_of),
        }
    }
}

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let (revisions, oldest) = read(&context, args.limit).await?;
    match args.output {
        Format::Json => context.console.json(&revisions)?,
        Format::Yaml => context.console.yaml(&revisions)?,
        Format::Table => {
            let header = ["REVISION", "WHEN", "WHO", "CHANGES", "WHY"];
            let rows = revisions.iter().map(row).collect();
            context.console.table("", &header, rows)?;
            let ends = revisions.last().is_some_and(|last| last.revision == oldest);
            if ends && oldest > 1 {
                context
                    .console
                    .line(format_args!("older than {oldest}: not kept any more"))?;
            }
        }
    }
    Ok(())
}

/// The latest revisions, and the number of the oldest that is kept.
async fn read(context: &Context, limit: usize) -> Result<(Vec<Revision>, u64), Failure> {
    let mut revisions: Vec<Revision> = Vec::new();
    let mut oldest = 0;
    let mut page_token = String::new();
    while revisions.len() < limit {
        let left = limit - revisions.len();
        let request = v1::HistoryRequest {
            page_size: u32::try_from(left).unwrap_or(u32::MAX).min(1000),
            page_token,
        };
        let call = async |mut client: Client, request| client.history(request).await;
        let page = context
            .connection
            .read("read the history", request, call)
            .await?;
        revisions.extend(page.revisions.into_iter().take(left).map(Revision::from));
        oldest = page.oldest_revision;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok((revisions, oldest))
}

fn row(revision: &Revision) -> Vec<Cell> {
    let counts = [
        ('+', revision.created),
        ('~', revision.updated),
        ('-', revision.deleted),
    ];
    let changes: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(sign, count)| format!("{sign}{count}"))
        .collect();
    let what = match (revision.rollback_of, revision.promotion_of, &revision.trial) {
        (Some(of), _, _) => format!("back to {of}"),
        (None, Some(of), _) => format!("{of} for all"),
        (None, None, Some(trial)) => trial.to_string(),
        (None, None, None) => String::new(),
    };
    let why = match (what.as_str(), revision.message.as_str()) {
        ("", message) => message.to_owned(),
        (_, "") => what,
        (_, message) => format!("{what}: {message}"),
    };
    let when = revision.committed_at.as_deref().unwrap_or("-");
    // Seconds are enough to look at; the rest is in the JSON.
    let when = match when.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => when.to_owned(),
    };
    vec![
        Cell::from(revision.revision),
        Cell::new(when, Mood::Plain),
        Cell::new(&revision.author, Mood::Plain),
        Cell::from(changes.join(" ")),
        Cell::new(why, Mood::Plain),
    ]
}
