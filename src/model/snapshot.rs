//! What was read of one node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::NetNsId;
use super::netns::NetNs;

/// One node's facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSnapshot {
    /// Kubernetes node name; the host name in `--local` mode.
    pub node: String,
    /// `uname -r`.
    pub kernel: String,
    /// Seconds since 1970 when the helper began to read.
    pub taken_at: u64,
    /// Namespaces by identity.
    #[serde(with = "as_list")]
    pub netns: BTreeMap<NetNsId, NetNs>,
}

/// JSON keys must be texts; a list keeps both encodings alike.
mod as_list {
    use super::{BTreeMap, NetNs, NetNsId};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<NetNsId, NetNs>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.values())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<NetNsId, NetNs>, D::Error> {
        let list = Vec::<NetNs>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|ns| (ns.identity.id, ns)).collect())
    }
}

impl NodeSnapshot {
    /// A node of which nothing was read yet.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            kernel: String::new(),
            taken_at: 0,
            netns: BTreeMap::new(),
        }
    }

    /// The node's own namespace, where it was read.
    pub fn host(&self) -> Option<&NetNs> {
        self.netns.values().find(|ns| ns.identity.host)
    }

    /// The namespace of a pod, by UID.
    pub fn pod(&self, uid: &str) -> Option<&NetNs> {
        self.netns
            .values()
            .find(|ns| ns.identity.pod_uid.as_deref() == Some(uid))
    }
}
