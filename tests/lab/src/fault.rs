//! Ways to break a cluster, by name; each can be undone.

use serde::{Deserialize, Serialize};

/// A fault that is on, with what is needed to undo it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ActiveFault {
    /// Name, as `netpath-lab fault on` takes it.
    pub name: String,
    /// Node, pod (`namespace/name`) or Service (`namespace/name`) that it was applied to.
    pub target: String,
    /// What was done, in words.
    pub description: String,
}
