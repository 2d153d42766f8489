//! `anyport apply`: declare what manifests say.
//!
//! A manifest with faults of its own is still sent, as a dry run, so that the
//! user hears of all faults at once and not of one kind after the other.

use std::{
    io::{self, Read},
    sync::Arc,
    time::SystemTime,
};

use anyport_proto::v1;
use tonic::{Code, Status};
use tonic_types::{FieldViolation, StatusExt};

use super::{
    Context, Why, certificates, changes,
    trial::{self, CanaryArgs},
    wait::{self, Edges, WaitArgs},
};
use crate::{
    connection::{Client, Unwritten, author, request_id},
    console::{Mood, printable},
    failure::Failure,
    manifest::{Manifest, ManifestFault},
};

const WHAT: &str = "apply";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A manifest in YAML or JSON; - reads standard input; may be given several
    /// times, and all files together are then one change
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    file: Vec<String>,
    /// Show what would change, field by field, and store nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Delete everything that is declared now and not in the manifest
    #[arg(long)]
    prune: bool,
    /// Allow --prune to delete every app, every prefix, or more than half of more
    /// than 10 resources
    #[arg(long, requires = "prune")]
    allow_mass_deletion: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    canary: CanaryArgs,
    #[command(flatten)]
    why: Why,
}

impl Args {
    /// All of these files, and nothing else asked for.
    pub(super) fn of_files(file: Vec<String>) -> Self {
        Self {
            file,
            dry_run: false,
            prune: false,
            allow_mass_deletion: false,
            wait: WaitArgs::default(),
            canary: CanaryArgs::default(),
            why: Why::default(),
        }
    }
}

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let revision = apply(&args, &mut context).await?;
    let trial = match args.canary.is_given() && !args.dry_run {
        true => trial::begun(&mut context, revision).await?,
        false => None,
    };
    match (args.wait.limit, trial) {
        (Some(limit), Some(trial)) => trial::follow(&mut context, revision, &trial, limit).await,
        (Some(limit), None) => {
            wait::until_applied(&mut context, revision, limit, Edges::AnyNumber).await
        }
        (None, _) => Ok(()),
    }
}

/// Applies and prints what changed; returns the latest revision.
pub(super) async fn apply(args: &Args, context: &mut Context) -> Result<u64, Failure> {
    let manifest = read_files(&args.file)?;
    if !manifest.faults().is_empty() {
        return Err(refuse_with_all_faults(&manifest, args, context).await);
    }
    if args.prune && !args.allow_mass_deletion && manifest.declared().is_empty() {
        return Err(Failure::refused(
            "cannot apply: the manifest declares nothing, so --prune would delete everything",
        )
        .remedy(
            "check the file; to delete something, use `anyport delete`; to delete everything, \
             say --allow-mass-deletion",
        ));
    }
    let response = match send(&manifest, args, args.dry_run, context).await {
        Ok(response) => response,
        Err(unwritten) => return Err(refusal(&manifest, &unwritten, context)),
    };
    changes::print(&mut context.console, &response.changes, args.dry_run)?;
    let now = SystemTime::now();
    for resource in manifest.resources() {
        if let Some(warning) = certificates::warning(&resource, now) {
            let word = context.console.paint("warning", Mood::Notable);
            context
                .console
                .line(format_args!("{word}    {}", printable(&warning)))?;
        }
    }
    if !response.mass_deletion.is_empty() {
        let word = context.console.paint("warning", Mood::Notable);
        let mass = printable(&response.mass_deletion);
        context.console.line(format_args!(
            "{word}    this deletes {mass}, and is refused without --allow-mass-deletion"
        ))?;
    }
    let revision = response.revision;
    let line = if args.dry_run {
        format!("dry run: nothing was stored, the latest revision is still {revision}")
    } else {
        format!("revision {revision}")
    };
    context.console.line(line)?;
    Ok(revision)
}

fn read_files(names: &[String]) -> Result<Manifest, Failure> {
    let mut manifest = Manifest::default();
    for name in names {
        let (shown, text) = if name == "-" {
            let mut text = String::new();
            let read = io::stdin().lock().read_to_string(&mut text);
            ("standard input", read.map(|_| text))
        } else {
            (name.as_str(), std::fs::read_to_string(name))
        };
        let text =
            text.map_err(|error| Failure::refused(format_args!("cannot read {shown}: {error}")))?;
        manifest.append(Manifest::read(shown, &text));
    }
    Ok(manifest)
}

async fn send(
    manifest: &Manifest,
    args: &Args,
    dry_run: bool,
    context: &Context,
) -> Result<v1::ApplyResponse, Unwritten> {
    let request = v1::ApplyRequest {
        resources: manifest.resources(),
        dry_run,
        prune: args.prune,
        allow_mass_deletion: args.allow_mass_deletion,
        expected_revision: None,
        request_id: request_id(),
        message: args.why.message.clone(),
        author: author(),
        canary: args.canary.to_wire(),
    };
    let call = async |mut client: Client, request| client.apply(request).await;
    let answer = context.connection.write(request, call).await;
    answer.map_err(|unwritten| Unwritten {
        outcome_unknown: unwritten.outcome_unknown && !dry_run,
        ..unwritten
    })
}

/// The faults found here, together with those that the config service finds in
/// what could be read.
async fn refuse_with_all_faults(manifest: &Manifest, args: &Args, context: &Context) -> Failure {
    match send(manifest, args, true, context).await {
        Err(unwritten) if unwritten.status.code() == Code::InvalidArgument => {
            refusal(manifest, &unwritten, context)
        }
        Err(Unwritten { status, .. }) => {
            let server = context.connection.failure("check it further", &status);
            faulty(manifest, Found::default()).remedy(server)
        }
        Ok(_) => faulty(manifest, Found::default()),
    }
}

fn refusal(manifest: &Manifest, unwritten: &Unwritten, context: &Context) -> Failure {
    let found = Found::by_server(&unwritten.status);
    if found.named.is_empty() {
        context.connection.write_failure(WHAT, unwritten)
    } else {
        faulty(manifest, found)
    }
}

/// The faults that the config service found.
#[derive(Default)]
struct Found {
    named: Vec<FieldViolation>,
    /// How many more there are.
    unnamed: usize,
}

impl Found {
    /// Where an answer has no room for all faults, its message counts them:
    /// `900 faults; the first 80 are named`.
    fn by_server(status: &Status) -> Self {
        let mut named = status
            .get_details_bad_request()
            .map(|request| request.field_violations)
            .unwrap_or_default();
        let counts = || {
            let (all, rest) = status.message().split_once(" faults; the first ")?;
            let (first, _) = rest.split_once(" are named")?;
            Some((all.parse::<usize>().ok()?, first.parse::<usize>().ok()?))
        };
        let unnamed = counts().map_or(0, |(all, first)| {
            named.truncate(first);
            all.saturating_sub(first)
        });
        Self { named, unnamed }
    }
}

fn faulty(manifest: &Manifest, found: Found) -> Failure {
    let lines = fault_lines(manifest, found.named);
    let faults = |count: usize| match count {
        1 => "1 fault".to_owned(),
        several => format!("{several} faults"),
    };
    let all = faults(lines.len().saturating_add(found.unnamed));
    let rest = (found.unnamed > 0).then(|| {
        let named = lines.len();
        format!("{all} in all; these {named} are named, the others once these are mended")
    });
    Failure::refused(format_args!("cannot apply: {all}, nothing was stored"))
        .details(lines)
        .details(rest)
}

/// All faults at their places in the files; last those of what is in no file.
fn fault_lines(manifest: &Manifest, violations: Vec<FieldViolation>) -> Vec<String> {
    let mut placed = manifest.faults().to_vec();
    let mut elsewhere = Vec::new();
    for FieldViolation {
        field, description, ..
    } in violations
    {
        match manifest.place_of(&field) {
            Some(place) if manifest.is_spoiled(&place) => {}
            Some(place) => placed.push(ManifestFault {
                place,
                problem: description,
            }),
            None if field.is_empty() => elsewhere.push(description),
            None => elsewhere.push(format!("{field}: {description}")),
        }
    }
    let mut files: Vec<Arc<str>> = Vec::new();
    for fault in &placed {
        if !files.contains(&fault.place.file) {
            files.push(Arc::clone(&fault.place.file));
        }
    }
    let position = |file: &Arc<str>| files.iter().position(|known| known == file);
    placed.sort_by_key(|fault| (position(&fault.place.file), fault.place.line));
    let placed = placed.iter().map(ToString::to_string);
    placed.chain(elsewhere).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use tonic_types::ErrorDetails;

    #[test]
    fn faults_that_the_server_does_not_name_are_counted_all_the_same() {
        let manifest = Manifest::read("game.yaml", "apps:\n  - name: a\n    unknown: off\n");
        let named = vec![
            FieldViolation::new("app[\"x\"].protocol", "is empty"),
            FieldViolation::new("app[\"y\"].protocol", "is empty"),
        ];
        let rest = FieldViolation::new("", "898 more faults are not shown");
        let answer = |message: &str, violations: &[FieldViolation]| {
            let details = ErrorDetails::with_bad_request(violations);
            Status::with_error_details(Code::InvalidArgument, message, details)
        };
        let found = Found::by_server(&answer(
            "900 faults; the first 2 are named",
            &[named.clone(), vec![rest]].concat(),
        ));
        let failure = faulty(&manifest, found).to_string();
        let start = "cannot apply: 901 faults, nothing was stored\n";
        assert!(failure.starts_with(start), "{failure}");
        let end = "\n  901 faults in all; these 3 are named, the others once these are mended";
        assert!(failure.ends_with(end), "{failure}");
        let found = Found::by_server(&answer("2 faults", &named));
        let failure = faulty(&manifest, found).to_string();
        let start = "cannot apply: 3 faults, nothing was stored\n";
        assert!(failure.starts_with(start), "{failure}");
        assert_eq!(failure.lines().count(), 4, "{failure}");
    }

    #[test]
    fn faults_of_both_sides_come_in_the_order_of_the_file() {
        let manifest = Manifest::read(
            "game.yaml",
            "pools:\n  - name: game\n    monitor: 5\n    origins: []\napps:\n  - name: a\n    edge_ips: [198.51.101.1]\n    unknown: off\n",
        );
        let violation = FieldViolation::new;
        let lines = fault_lines(
            &manifest,
            vec![
                violation(
                    "resources[1].app.edge_ips[0]",
                    "198.51.101.1/32 is in no declared prefix",
                ),
                violation(
                    "resources[1].app.unknown",
                    "follows from a fault found here",
                ),
                violation(
                    "resources[0].pool.origins",
                    "is empty; a pool has at least one origin",
                ),
                violation("app[\"old\"].origin_pool", "there is no pool \"gone\""),
            ],
        );
        let wanted = "\
game.yaml:3: pools[0].monitor: is the number 5; right is a text, which here needs quotes
game.yaml:4: pools[0].origins: is empty; a pool has at least one origin
game.yaml:7: apps[0].edge_ips[0]: 198.51.101.1/32 is in no declared prefix
game.yaml:8: apps[0].unknown: an app has no field \"unknown\" in this version of Anyport; its fields are name, protocol, edge_ips, origin_pool, origin_direct, origin_dns, origin_port, tls, certificate, sni, origin_ca, origin_ca_file, proxy_protocol, client_ip, accept_proxy_protocol, access, limits, timeouts, disable
app[\"old\"].origin_pool: there is no pool \"gone\"";
        assert_eq!(lines.join("\n"), wanted);
    }
}
