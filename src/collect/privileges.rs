//! Gives up what this process may do and does not need.
//!
//! Source: capabilities(7), PR_SET_NO_NEW_PRIVS in prctl(2). Both count for the calling thread and the
//! threads that it starts later, so this runs before any other thread is started.

use rustix::thread::{
    CapabilitySet, capabilities, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};

use super::error::{Error, Result};

/// What reading needs; docs/security.md says for what.
const NEEDED: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW);

/// Names of those capabilities that reading needs and this thread has not; `None` where that can't be told.
pub fn lacking() -> Option<Vec<&'static str>> {
    let sets = capabilities(None).ok()?;
    let needed = [
        ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
        ("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE),
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
        ("CAP_NET_RAW", CapabilitySet::NET_RAW),
    ];
    let lacking = needed
        .into_iter()
        .filter(|(_, one)| !sets.effective.contains(*one));
    Some(lacking.map(|(name, _)| name).collect())
}

/// Keeps of the capabilities that this process has those that reading needs, and none of them across an
/// exec.
pub fn keep_needed() -> Result<()> {
    keep(NEEDED)
}

/// Keeps none.
pub fn keep_none() -> Result<()> {
    keep(CapabilitySet::empty())
}

fn keep(kept: CapabilitySet) -> Result<()> {
    let failed = |error: rustix::io::Errno| {
        Error::io(
            "give up capabilities that reading does not need",
            &std::io::Error::from(error),
        )
    };
    set_no_new_privs(true).map_err(failed)?;
    let mut sets = capabilities(None).map_err(failed)?;
    sets.permitted &= kept;
    sets.effective &= kept;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets).map_err(failed)?;
    match clear_ambient_capability_set() {
        // EINVAL: kernels before 4.3 have no ambient set.
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
