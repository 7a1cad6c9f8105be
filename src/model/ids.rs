//! Identities: interfaces, network namespaces, and where a namespace is.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An interface index, unique within one network namespace at one time. Never 0.
///
/// It means nothing without its namespace: pods commonly all have `eth0` at index 2.
/// Source: `ifinfomsg.ifi_index`, include/uapi/linux/rtnetlink.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IfIndex(NonZeroU32);

impl IfIndex {
    /// The index, unless it is 0, which the kernel uses for "none".
    pub fn new(index: u32) -> Option<Self> {
        NonZeroU32::new(index).map(Self)
    }

    /// The number as the kernel gives it.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of a network namespace on one running kernel: device and inode of its nsfs file.
///
/// Pids and bind mounts come and go; this pair names the namespace for as long as it lives.
/// Source: `stat(2)` of `/proc/PID/ns/net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetNsId {
    /// `st_dev` of the nsfs file.
    pub dev: u64,
    /// `st_ino` of the nsfs file; the number in `net:[4026531840]`.
    pub ino: u64,
}

impl fmt::Display for NetNsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dev, self.ino)
    }
}

/// Why a text is not a [`NetNsId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a namespace identity (want DEVICE:INODE, two decimal numbers)")]
pub struct ParseNetNsIdError(String);

impl FromStr for NetNsId {
    type Err = ParseNetNsIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseNetNsIdError(text.chars().take(40).collect());
        let (dev, ino) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self {
            dev: dev.parse().map_err(|_| wrong())?,
            ino: ino.parse().map_err(|_| wrong())?,
        })
    }
}

impl Serialize for NetNsId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.dev, self.ino).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NetNsId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?
                .parse()
                .map_err(serde::de::Error::custom)
        } else {
            let (dev, ino) = <(u64, u64)>::deserialize(deserializer)?;
            Ok(Self { dev, ino })
        }
    }
}

/// A namespace somewhere in the cluster: the node it is on, and its identity there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NsKey {
    /// Kubernetes node name; the host name in `--local` mode.
    pub node: String,
    /// Identity on that node's kernel.
    pub netns: NetNsId,
}

impl fmt::Display for NsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/net:[{}]", self.node, self.netns.ino)
    }
}
