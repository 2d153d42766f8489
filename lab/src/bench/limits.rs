//! Room for the connections of a comparison.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::error::{Error, Result};
use super::plan::Plan;

/// Lets this process, and those that it starts, open as many files as it ever may.
///
/// # Errors
///
/// [`Error::Descriptors`] where that is too few for the plan.
pub fn allow_descriptors(plan: &Plan) -> Result<()> {
    let failed = || Error::system("raising the limit of open files");
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(io::Error::from)
        .map_err(failed())?;
    let needed = plan.descriptors();
    if limit < needed {
        return Err(Error::Descriptors { limit, needed });
    }
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)
        .map_err(io::Error::from)
        .map_err(failed())
}
