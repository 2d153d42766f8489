//! Whose certificates these are, what for, and until when.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyport_model::certificate::Chain;
use anyport_node::access::Certified;
use serde::Serialize;

use super::{super::certificates::expiry, files::read};
use crate::{
    console::{Cell, Console, Format, Mood},
    failure::{Exit, Failure},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Certificates in PEM
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// All of an authority
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
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

#[derive(Debug, Serialize)]
struct Shown {
    file: String,
    name: String,
    /// As they stand in the subject.
    subject: String,
    roles: String,
    /// Host names and addresses.
    names: Vec<String>,
    serial: String,
    /// RFC 3339.
    expires_at: String,
    expired: bool,
    issuer: String,
    #[serde(skip)]
    expires: Cell,
}

pub(super) fn run(args: Args, console: &mut Console) -> Result<(), Failure> {
    let mut files = args.files;
    if let Some(directory) = &args.dir {
        files.extend(certificates_in(directory)?);
    }
    if files.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            match &args.dir {
                Some(directory) => {
                    format!("--dir {}: there is no certificate", directory.display())
                }
                None => "give a FILE, or --dir DIR for all of an authority".to_owned(),
            },
        ));
    }
    let now = SystemTime::now();
    let shown = files.iter().map(|file| shown(file, now));
    let shown = shown.collect::<Result<Vec<Shown>, Failure>>()?;
    match args.output {
        Format::Json => console.json(&shown)?,
        Format::Yaml => console.yaml(&shown)?,
        Format::Table => {
            let header = ["FILE", "NAME", "ROLES", "FOR", "EXPIRES", "ISSUER"];
            console.table("", &header, shown.iter().map(row).collect())?;
        }
    }
    Ok(())
}

fn certificates_in(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let cannot = |error| {
        let directory = directory.display();
        Failure::refused(format_args!("cannot read {directory}: {error}"))
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn shown(file: &Path, now: SystemTime) -> Result<Shown, Failure> {
    let text = read(file)?;
    let wrong = |what: String| Failure::refused(format_args!("{}: {what}", file.display()));
    let chain = Chain::from_pem(&text).map_err(|error| wrong(error.to_string()))?;
    let certified =
        Certified::from_pem(&text).ok_or_else(|| wrong("is no certificate".to_owned()))?;
    Ok(Shown {
        file: file.display().to_string(),
        expires: expiry(&chain, now),
        expires_at: prost_types::Timestamp::from(certified.expires).to_string(),
        expired: certified.expires < now,
        roles: certified.roles.to_string(),
        name: certified.name,
        subject: certified.subject,
        names: chain.names,
        serial: certified.serial,
        issuer: certified.issuer,
    })
}

fn row(shown: &Shown) -> Vec<Cell> {
    let roles = match shown.roles.as_str() {
        "" => Cell::new("none", Mood::Faint),
        roles => Cell::from(roles),
    };
    let expires = match shown.expired {
        true => Cell::new(format_args!("EXPIRED {}", shown.expires.text()), Mood::Bad),
        false => shown.expires.clone(),
    };
    vec![
        Cell::from(&shown.file),
        Cell::from(&shown.name),
        roles,
        Cell::from(shown.names.join(" ")),
        expires,
        Cell::from(&shown.issuer),
    ]
}
