//! The other end of a veth or netkit pair.
//!
//! Read first: `rtnl_fill_link_netnsid()`, net/core/rtnetlink.c, and `veth_get_iflink()`,
//! drivers/net/veth.c (v6.12). IFLA_LINK is an index in the peer's namespace, and IFLA_LINK_NETNSID
//! an id in the table of the namespace that was asked; neither means anything alone. Three pods
//! commonly all show `@if2`, so a match needs index, namespace and kind on both ends.

use crate::model::link::{Link, LinkKind};
use crate::model::netns::NetNs;
use crate::model::topology::Topology;
use crate::model::{IfIndex, NetNsId, NsKey};

/// What is known of the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// It is this device.
    Found(NsKey, IfIndex),
    /// It is in this namespace, which exists and was not read yet: ask for it.
    Unread(NsKey),
    /// It is in no namespace that the helper can see (nested, a virtual machine's, of another mount
    /// namespace); why that is concluded.
    OutsideView(String),
    /// Several namespaces hold a device that may be it.
    Ambiguous(Vec<NsKey>),
    /// The device is not one end of a pair.
    NotVeth,
    /// Facts that decide are missing or contradict each other; which.
    Unknown(String),
}

/// Finds the other end of `link`, which is a device of `ns`.
///
/// The namespace's own table of ids ([`NetNs::nsids`]) decides where it names the peer's namespace.
/// Where it does not, namespaces of the same node are searched for a device that points back, and
/// only one whose own table confirms it is taken.
pub fn peer(topology: &Topology, ns: &NsKey, link: &Link) -> Peer {
    if !is_pair(&link.kind) {
        return Peer::NotVeth;
    }
    let Some(index) = link.link else {
        return Peer::Unknown(format!(
            "the kernel told no peer index (IFLA_LINK) of {} in {ns}",
            link.name
        ));
    };
    let Some(own) = topology.netns(ns) else {
        return Peer::Unknown(format!("{ns} was not read"));
    };
    match link.link_netnsid {
        None => within(own, ns, link, index),
        Some(id) if id < 0 => Peer::OutsideView(format!(
            "the peer of {} is in a namespace that has no id in {ns}",
            link.name
        )),
        Some(id) => across(topology, ns, own, link, index, id),
    }
}

fn is_pair(kind: &LinkKind) -> bool {
    matches!(kind, LinkKind::Veth | LinkKind::Netkit)
}

/// Both ends in one namespace: the kernel gives no IFLA_LINK_NETNSID.
fn within(own: &NetNs, ns: &NsKey, link: &Link, index: IfIndex) -> Peer {
    match own.link(index) {
        Some(other)
            if is_pair(&other.kind)
                && other.link == Some(link.index)
                && other.link_netnsid.is_none() =>
        {
            Peer::Found(ns.clone(), index)
        }
        _ => Peer::Unknown(format!(
            "{} in {ns} names device {index} of the same namespace as its peer, which does not point back",
            link.name
        )),
    }
}

fn across(
    topology: &Topology,
    ns: &NsKey,
    own: &NetNs,
    link: &Link,
    index: IfIndex,
    id: i32,
) -> Peer {
    if let Some(target) = name_of(own, id) {
        let key = NsKey {
            node: ns.node.clone(),
            netns: target,
        };
        let Some(other) = topology.netns(&key) else {
            return Peer::Unread(key);
        };
        return match points_back(other, index, own, link) {
            Back::Yes | Back::Perhaps => Peer::Found(key, index),
            Back::NotRead => Peer::Unread(key),
            Back::No => Peer::Unknown(format!(
                "{} in {ns} names device {index} of {key} as its peer, which does not point back",
                link.name
            )),
        };
    }
    search(topology, ns, own, link, index, id)
}

/// The namespace's table does not name the peer's: look for a device that points here.
fn search(
    topology: &Topology,
    ns: &NsKey,
    own: &NetNs,
    link: &Link,
    index: IfIndex,
    id: i32,
) -> Peer {
    let mut sure = Vec::new();
    let mut perhaps = Vec::new();
    for (key, other) in topology.all() {
        if key.node != ns.node || key.netns == ns.netns {
            continue;
        }
        match points_back(other, index, own, link) {
            Back::Yes => sure.push(key),
            Back::Perhaps => perhaps.push(key),
            Back::No | Back::NotRead => {}
        }
    }
    match (sure.as_slice(), perhaps.as_slice()) {
        ([only], _) => Peer::Found(only.clone(), index),
        ([_, _, ..], _) => Peer::Ambiguous(sure),
        ([], [_, _, ..]) => Peer::Ambiguous(perhaps),
        ([], [only]) => Peer::Unknown(format!(
            "device {index} of {only} may be the peer of {} in {ns}, but no table of namespace ids confirms it",
            link.name
        )),
        ([], []) => match own.nsids.known() {
            Some(_) => Peer::OutsideView(format!(
                "the peer of {} is device {index} of a namespace (nsid {id}) that was not found on {}",
                link.name, ns.node
            )),
            None => Peer::Unknown(format!(
                "the namespace ids of {ns} were not read{}",
                own.nsids
                    .missing()
                    .map(|why| format!(": {why}"))
                    .unwrap_or_default()
            )),
        },
    }
}

enum Back {
    /// It does, and its namespace's table says so.
    Yes,
    /// Index and kind agree; its namespace's table does not say which namespace it means.
    Perhaps,
    No,
    /// Its devices were not read.
    NotRead,
}

/// Whether device `index` of `other` has `link` of `own` as its peer.
fn points_back(other: &NetNs, index: IfIndex, own: &NetNs, link: &Link) -> Back {
    if other.links.is_not_asked() {
        return Back::NotRead;
    }
    let Some(device) = other.link(index) else {
        return Back::No;
    };
    let Some(id) = device.link_netnsid else {
        return Back::No;
    };
    if !is_pair(&device.kind) || device.kind != link.kind || device.link != Some(link.index) {
        return Back::No;
    }
    match name_of(other, id) {
        Some(back) if back == own.identity.id => Back::Yes,
        Some(_) => Back::No,
        None => Back::Perhaps,
    }
}

/// The namespace that `ns` calls by this id.
fn name_of(ns: &NetNs, id: i32) -> Option<NetNsId> {
    let table = ns.nsids.known()?;
    table
        .iter()
        .find(|(known, _)| *known == id)
        .map(|(_, target)| *target)
}

#[cfg(test)]
mod tests;
