//! `anyport doctor`: what will hurt on this host, before it does.

use std::time::Duration;

use anyport_edge_agent::kernel::{Finding, Severity, doctor};
use anyport_model::resource::Kind;
use anyport_proto::v1::resource::Kind as Wire;
use ipnet::IpNet;
use serde::Serialize;
use tokio::time::timeout;

use super::Context;
use crate::{
    connection::Connection,
    console::{Cell, Console, Format, Mood},
    failure::Failure,
};

/// The ports that an edge agent binds by number where its flags say nothing else:
/// gRPC and the admin pages.
const FIXED_PORTS: [u16; 2] = [7420, 7421];
/// A doctor is of use before there is a config service, so none is waited for.
const CONFIG_SERVICE_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address space that this edge is to answer for; may be given several times
    /// [default: what the config service has, where it can be reached]
    #[arg(long = "prefix", value_name = "CIDR")]
    prefixes: Vec<IpNet>,
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

/// The whole of it, as JSON and YAML have it.
#[derive(Debug, Serialize)]
struct Report {
    prefixes: Vec<IpNet>,
    /// `command line`, `config service`, or `none` where none are known.
    prefixes_from: &'static str,
    /// Counts of findings.
    ok: usize,
    warn: usize,
    fail: usize,
    /// The worst come first.
    findings: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    /// `ok`, `warn`, `fail`.
    severity: String,
    topic: &'static str,
    found: String,
    /// Empty where there is nothing to do.
    advice: String,
    #[serde(skip)]
    mood: Mood,
}

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let (prefixes, from) = match args.prefixes {
        given if !given.is_empty() => (given.iter().map(IpNet::trunc).collect(), "command line"),
        _ => match declared(&context.connection).await {
            Some(declared) => (declared, "config service"),
            None => (Vec::new(), "none"),
        },
    };
    let findings = doctor(&prefixes, &FIXED_PORTS).await;
    let report = Report::new(prefixes, from, findings);
    match args.output {
        Format::Json => context.console.json(&report)?,
        Format::Yaml => context.console.yaml(&report)?,
        Format::Table => report.print(&mut context.console)?,
    }
    report.verdict()
}

/// The prefixes of the config service, if it can be asked.
async fn declared(connection: &Connection) -> Option<Vec<IpNet>> {
    let listed = timeout(CONFIG_SERVICE_PATIENCE, connection.list(Some(Kind::Prefix)));
    let resources = listed.await.ok()?.ok()?.resources;
    let prefixes = resources
        .into_iter()
        .filter_map(|resource| match resource.kind? {
            Wire::Prefix(prefix) => prefix.cidr.parse().ok(),
            _ => None,
        });
    Some(prefixes.collect())
}

impl Report {
    fn new(prefixes: Vec<IpNet>, prefixes_from: &'static str, mut findings: Vec<Finding>) -> Self {
        let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
        let (ok, warn, fail) = (
            count(Severity::Ok),
            count(Severity::Warn),
            count(Severity::Fail),
        );
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let entry = |finding: Finding| Entry {
            severity: finding.severity.to_string(),
            topic: finding.topic,
            found: finding.found,
            advice: finding.advice,
            mood: match finding.severity {
                Severity::Ok => Mood::Good,
                Severity::Warn => Mood::Notable,
                Severity::Fail => Mood::Bad,
            },
        };
        Self {
            prefixes,
            prefixes_from,
            ok,
            warn,
            fail,
            findings: findings.into_iter().map(entry).collect(),
        }
    }

    fn print(&self, console: &mut Console) -> Result<(), Failure> {
        let mut rows = Vec::new();
        for entry in &self.findings {
            rows.push(vec![
                Cell::new(&entry.severity, entry.mood),
                Cell::from(entry.topic),
                Cell::from(&entry.found),
            ]);
            if !entry.advice.is_empty() {
                rows.push(vec![
                    Cell::from(""),
                    Cell::from(""),
                    Cell::new(format_args!("→ {}", entry.advice), Mood::Faint),
                ]);
            }
        }
        console.table("", &["", "TOPIC", "FOUND"], rows)?;
        let Self { ok, warn, fail, .. } = self;
        console.line(format_args!(
            "\n{ok} ok, {warn} to look at, {fail} failed.\n{}",
            self.about()
        ))?;
        Ok(())
    }

    /// What was looked at.
    fn about(&self) -> String {
        match &self.prefixes[..] {
            [] => "No prefixes are known: --prefix CIDR checks against one.".to_owned(),
            prefixes => {
                let prefixes: Vec<String> = prefixes.iter().map(IpNet::to_string).collect();
                format!(
                    "Checked for {}, from the {}.",
                    prefixes.join(", "),
                    self.prefixes_from
                )
            }
        }
    }

    fn verdict(&self) -> Result<(), Failure> {
        match self.fail {
            0 => Ok(()),
            count => Err(Failure::refused(format_args!(
                "an edge agent cannot work on this host: {count} of {} checks failed",
                self.findings.len()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, topic: &'static str) -> Finding {
        Finding {
            severity,
            topic,
            found: "found".to_owned(),
            advice: String::new(),
        }
    }

    #[test]
    fn what_is_worst_comes_first_and_else_the_order_stays() {
        let findings = [
            finding(Severity::Ok, "a"),
            finding(Severity::Warn, "b"),
            finding(Severity::Fail, "c"),
            finding(Severity::Ok, "d"),
            finding(Severity::Fail, "e"),
        ];
        let report = Report::new(Vec::new(), "none", findings.into());
        let topics: Vec<_> = report.findings.iter().map(|entry| entry.topic).collect();
        assert_eq!(topics, ["c", "e", "b", "a", "d"]);
        assert_eq!((report.ok, report.warn, report.fail), (2, 1, 2));
    }

    #[test]
    fn only_a_failure_fails() {
        let report = |severity| Report::new(Vec::new(), "none", vec![finding(severity, "a")]);
        assert!(report(Severity::Ok).verdict().is_ok());
        assert!(report(Severity::Warn).verdict().is_ok());
        assert!(report(Severity::Fail).verdict().is_err());
    }
}
