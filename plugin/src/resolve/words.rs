//! The words of an end: protocols, kinds of objects, ports.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Transport of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
    /// IP protocol 1, or 58 for IPv6: an echo request. Has no port.
    Icmp,
}

impl Protocol {
    /// Lower-case name, as the command line and the JSON output spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }

    /// Reads the API's spelling (`ports[].protocol`); an absent or unknown value is TCP, the API's default.
    pub fn from_api(text: Option<&str>) -> Self {
        match text {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            "icmp" | "icmpv6" | "ping" => Ok(Self::Icmp),
            _ => Err(format!(
                "unknown protocol {text:?}; use tcp, udp, sctp or icmp"
            )),
        }
    }
}

/// Kind of object that an end can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectKind {
    /// v1 Pod.
    Pod,
    /// v1 Service.
    Service,
    /// v1 Node.
    Node,
    /// apps/v1 Deployment.
    Deployment,
    /// apps/v1 StatefulSet.
    StatefulSet,
    /// apps/v1 DaemonSet.
    DaemonSet,
    /// apps/v1 ReplicaSet.
    ReplicaSet,
}

impl ObjectKind {
    /// The short name that kubectl accepts and that this program prints.
    pub fn short(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Service => "svc",
            Self::Node => "node",
            Self::Deployment => "deploy",
            Self::StatefulSet => "sts",
            Self::DaemonSet => "ds",
            Self::ReplicaSet => "rs",
        }
    }

    /// The kind as the API spells it.
    pub fn api_kind(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::Node => "Node",
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::ReplicaSet => "ReplicaSet",
        }
    }

    /// The resource's plural name, as in a URL or an RBAC rule.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::Service => "services",
            Self::Node => "nodes",
            Self::Deployment => "deployments",
            Self::StatefulSet => "statefulsets",
            Self::DaemonSet => "daemonsets",
            Self::ReplicaSet => "replicasets",
        }
    }

    /// True for the kinds that own pods: one of their ready pods is chosen.
    pub fn is_workload(self) -> bool {
        !matches!(self, Self::Pod | Self::Service | Self::Node)
    }

    pub(super) fn from_prefix(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "pod" | "pods" | "po" => Self::Pod,
            "service" | "services" | "svc" => Self::Service,
            "node" | "nodes" | "no" => Self::Node,
            "deployment" | "deployments" | "deploy" | "deployment.apps" | "deployments.apps" => {
                Self::Deployment
            }
            "statefulset" | "statefulsets" | "sts" | "statefulset.apps" => Self::StatefulSet,
            "daemonset" | "daemonsets" | "ds" | "daemonset.apps" => Self::DaemonSet,
            "replicaset" | "replicasets" | "rs" | "replicaset.apps" => Self::ReplicaSet,
            _ => return None,
        })
    }
}

/// Port of an end, by number or by the name that a Service or container gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortSpec {
    /// 1 to 65535, host order.
    Number(NonZeroU16),
    /// `ports[].name`: at most 15 lower-case letters, digits and dashes, with at least one letter.
    Name(String),
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}
