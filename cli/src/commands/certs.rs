//! `anyport certs`: an authority for a fleet, and what it issues. Any other
//! authority does as well, if it writes the same subjects.

mod authority;
mod files;
mod show;

use std::path::PathBuf;

use crate::{console::Console, failure::Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Certs,
}

#[derive(Debug, clap::Subcommand)]
enum Certs {
    /// Makes an authority: DIR/ca.pem, which everyone is given, and DIR/ca.key, which
    /// nobody is
    Init {
        /// Where to
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Issues a certificate: DIR/NAME.pem and DIR/NAME.key
    Issue(authority::IssueArgs),
    /// Says whose certificates these are, what for, and until when
    Show(show::Args),
}

pub fn run(args: Args, mut console: Console) -> Result<(), Failure> {
    match args.what {
        Certs::Init { dir } => authority::init(&dir, &mut console),
        Certs::Issue(args) => authority::issue(args, &mut console),
        Certs::Show(args) => show::run(args, &mut console),
    }
}
