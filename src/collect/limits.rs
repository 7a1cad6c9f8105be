//! Limits of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::error::{Error, Result};

/// Raises the limit of open files to what is allowed: a node with many pods needs one per namespace and
/// some sockets, and container runtimes start processes with 1,024.
pub fn raise_open_files() -> Result<()> {
    let operation = "raise the limit of open files";
    let failed = |errno| Error::nix(operation, errno);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    // More would only let a fault go further.
    let wanted = hard.min(65_536);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map_err(failed)?;
    }
    Ok(())
}
