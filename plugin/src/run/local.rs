//! Ends and names without Kubernetes: this machine's namespaces, or those of a file saved there.

use std::net::IpAddr;
use std::path::Path;

use anyhow::bail;
use netpath::explain::{End, Naming, naming::ChainNames};
use netpath::model::names::Names;
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget, Want};
use netpath::model::{NetNsId, NsKey};
use netpath::simulate::Wants;

use super::fleet::Fleet;
use crate::resolve::{EndSpec, Family, PortSpec, Protocol, parse_local};

/// Name of this machine, as its kernel gives it.
pub fn host_name() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname");
    match read.as_deref().map(str::trim) {
        Ok(name) if !name.is_empty() => name.to_owned(),
        // A name is needed only to head lines; every machine is this one.
        _ => "localhost".to_owned(),
    }
}

/// Wants for the namespaces that a place needs, so that processes are found by pid.
pub fn wants(node: &str, depth: Depth) -> Wants {
    let want = Want::NetNs {
        target: NsTarget::All,
        depth,
    };
    [(node.to_owned(), [want].into())].into()
}

/// Tells a process that is not there from one whose namespace may not be read, which the helper can't.
/// Errors: its namespace was not found, and it is not there.
pub fn found(typed: &str, pid: u32, netns: Option<NetNsId>) -> anyhow::Result<()> {
    if netns.is_none() && !Path::new(&format!("/proc/{pid}")).exists() {
        bail!("end {typed:?}: no such process");
    }
    Ok(())
}

/// Checks what stayed unknown of this machine. Errors: some of it for want of a right, in one line that
/// says which.
pub fn permitted<'a>(unknown: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
    if unknown.into_iter().any(refused) {
        bail!(
            "--local needs root to read this machine's namespaces: run it with sudo (in a container: with CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_SYS_PTRACE)"
        );
    }
    Ok(())
}

/// Whether it was a right that was lacking.
fn refused(why: &str) -> bool {
    ["EPERM", "EACCES", "permission denied"]
        .iter()
        .any(|word| why.contains(word))
}

/// Namespace of a process, asked of the helper, because a listing may leave processes out.
pub async fn by_pid(fleet: &mut Fleet<'_>, node: &str, pid: u32) -> Option<NetNsId> {
    let want = Want::NetNs {
        target: NsTarget::Pid(pid),
        depth: Depth::Identity,
    };
    if !fleet.ask([(node.to_owned(), [want].into())].into()).await {
        return None;
    }
    let snapshot = fleet.topology.nodes.get(node)?;
    let holds = |ns: &&netpath::model::netns::NetNs| {
        ns.identity
            .processes
            .iter()
            .any(|process| process.pid == pid)
    };
    let found = snapshot.netns.values().find(holds);
    // The answer to this one want is one namespace, listed processes or not.
    let only = || match snapshot.netns.len() {
        1 => snapshot.netns.values().next(),
        _ => None,
    };
    found.or_else(only).map(|ns| ns.identity.id)
}

/// Two ends of a local trace.
#[derive(Clone, Debug)]
pub struct LocalEnds {
    /// Where it starts.
    pub from: NsKey,
    /// Source, for the answer.
    pub source: End,
    /// Source address, where an address was typed.
    pub src: Option<IpAddr>,
    /// Source port, where one was typed.
    pub source_port: Option<u16>,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port.
    pub port: Option<u16>,
    /// Destination, for the answer.
    pub destination: End,
    /// Protocol.
    pub protocol: Protocol,
}

/// A namespace that was named, with its key.
pub fn place(
    topology: &Topology,
    node: &str,
    typed: &str,
    spec: &EndSpec,
    pid: Option<NetNsId>,
) -> anyhow::Result<NsKey> {
    let key = |id: NetNsId| NsKey {
        node: node.to_owned(),
        netns: id,
    };
    let Some(snapshot) = topology.nodes.get(node) else {
        bail!("end {typed:?}: nothing was read of {node}");
    };
    match spec {
        EndSpec::Host { .. } => {
            if let Some(host) = topology.host(node) {
                return Ok(host);
            }
            let why = why(topology, &NsTarget::Host);
            permitted([why.as_str()])?;
            bail!("end {typed:?}: the machine's own namespace was not read{why}")
        }
        EndSpec::Netns { name, .. } => {
            let fits = |path: &String| path.rsplit('/').next() == Some(name.as_str());
            let found = snapshot
                .netns
                .values()
                .find(|ns| ns.identity.paths.iter().any(fits));
            if let Some(ns) = found {
                return Ok(key(ns.identity.id));
            }
            let mut names: Vec<&str> = snapshot
                .netns
                .values()
                .flat_map(|ns| &ns.identity.paths)
                .filter_map(|path| path.rsplit('/').next())
                .collect();
            names.sort_unstable();
            names.dedup();
            let more = names.len().saturating_sub(12);
            names.truncate(12);
            let has = match (names.is_empty(), more) {
                (true, _) => "there are no named namespaces (ip netns add NAME)".to_owned(),
                (false, 0) => format!("there are {}", names.join(", ")),
                (false, more) => format!("there are {} and {more} more", names.join(", ")),
            };
            bail!("end {typed:?}: no namespace of that name; {has}")
        }
        EndSpec::Pid { pid: number, .. } => {
            let listed = snapshot.netns.values().find(|ns| {
                ns.identity
                    .processes
                    .iter()
                    .any(|process| process.pid == *number)
            });
            match pid.or_else(|| listed.map(|ns| ns.identity.id)) {
                Some(id) if snapshot.netns.contains_key(&id) => Ok(key(id)),
                _ => {
                    let why = why(topology, &NsTarget::Pid(*number));
                    permitted([why.as_str()])?;
                    bail!("end {typed:?}: no such process was found{why}")
                }
            }
        }
        EndSpec::Address { ip, .. } => {
            let names = Names::default();
            let chains = ChainNames::new();
            let naming = Naming {
                topology,
                names: &names,
                chains: &chains,
            };
            match naming.holders(*ip).as_slice() {
                [only] => Ok(only.clone()),
                [] => bail!(
                    "end {typed:?}: no namespace of this machine holds that address; name one: netns/NAME, pid/N or host"
                ),
                several => {
                    let list: Vec<String> = several.iter().map(|key| naming.netns(key)).collect();
                    bail!(
                        "end {typed:?}: {} hold that address; name one: netns/NAME, pid/N or host",
                        list.join(" and ")
                    )
                }
            }
        }
        EndSpec::Object { .. } | EndSpec::Url { .. } => {
            bail!(
                "end {typed:?}: without Kubernetes an end is netns/NAME, pid/N, host or an address"
            )
        }
    }
}

fn why(topology: &Topology, wanted: &NsTarget) -> String {
    let absent = topology
        .absent
        .iter()
        .find(|(_, target, _)| target == wanted);
    absent
        .map(|(_, _, why)| format!(": {why}"))
        .unwrap_or_default()
}

/// Resolves both ends of a local trace.
pub fn ends(
    topology: &Topology,
    node: &str,
    typed: (&str, &str),
    pids: (Option<NetNsId>, Option<NetNsId>),
    protocol: Option<Protocol>,
    family: Option<Family>,
) -> anyhow::Result<LocalEnds> {
    let source = parse_local(typed.0)?;
    let destination = parse_local(typed.1)?.of_sender(family);
    let from = place(topology, node, typed.0, &source, pids.0)?;
    let src = match source {
        EndSpec::Address { ip, .. } => Some(ip),
        _ => None,
    };
    let (dst, holder) = match &destination {
        EndSpec::Address { ip, .. } => (*ip, None),
        EndSpec::Url { host, .. } => match host.parse() {
            Ok(ip) => (ip, None),
            Err(_) => bail!(
                "end {:?}: names are not looked up with --local; give the address",
                typed.1
            ),
        },
        other => {
            let key = place(topology, node, typed.1, other, pids.1)?;
            let wanted = family.or(src.map(Family::of));
            (address_of(topology, &key, wanted, typed.1)?, Some(key))
        }
    };
    if let Some(family) = family.filter(|family| *family != Family::of(dst)) {
        bail!(
            "end {:?}: {dst} is no {} address, which was asked for",
            typed.1,
            family.as_str()
        );
    }
    let port = match destination.port() {
        None => None,
        Some(PortSpec::Number(number)) => Some(number.get()),
        Some(PortSpec::Name(name)) => {
            bail!(
                "end {:?}: a port is a number here, not the name {name:?}",
                typed.1
            )
        }
    };
    let source_port = match source.port() {
        None => None,
        Some(PortSpec::Number(number)) => Some(number.get()),
        Some(PortSpec::Name(name)) => {
            bail!(
                "end {:?}: a source port is a number, not the name {name:?}",
                typed.0
            )
        }
    };
    let protocol = protocol.unwrap_or(if port.is_some() {
        Protocol::Tcp
    } else {
        Protocol::Icmp
    });
    match (protocol, port) {
        (Protocol::Icmp, Some(port)) => bail!(
            "end {:?}: an echo request has no port; leave out :{port}, or --protocol icmp",
            typed.1
        ),
        (Protocol::Tcp | Protocol::Udp | Protocol::Sctp, None) => bail!(
            "end {:?}: {protocol} needs a port, for instance {}:80; without --protocol it is an echo request",
            typed.1,
            typed.1
        ),
        _ => {}
    }
    let names = Names::default();
    let chains = ChainNames::new();
    let naming = Naming {
        topology,
        names: &names,
        chains: &chains,
    };
    let holder = holder.or_else(|| match naming.holders(dst).as_slice() {
        [only] => Some(only.clone()),
        _ => None,
    });
    Ok(LocalEnds {
        source: end(&naming, typed.0, &source, Some(&from), src),
        destination: end(&naming, typed.1, &destination, holder.as_ref(), Some(dst)),
        from,
        src,
        source_port,
        dst,
        port,
        protocol,
    })
}

fn end(
    naming: &Naming<'_>,
    typed: &str,
    spec: &EndSpec,
    key: Option<&NsKey>,
    ip: Option<IpAddr>,
) -> End {
    let kind = match spec {
        EndSpec::Netns { .. } => "netns",
        EndSpec::Pid { .. } => "pid",
        EndSpec::Host { .. } => "host",
        _ => "address",
    };
    End {
        typed: typed.to_owned(),
        kind: kind.to_owned(),
        name: key.map(|key| naming.netns(key)),
        ip,
        node: key.map(|key| key.node.clone()),
    }
}

/// An address by which others reach a namespace: the first that is no loopback or link-local one.
fn address_of(
    topology: &Topology,
    key: &NsKey,
    family: Option<Family>,
    typed: &str,
) -> anyhow::Result<IpAddr> {
    let addrs = topology.netns(key).and_then(|ns| ns.addrs.known());
    let usable = |addr: &&netpath::model::addr::Addr| {
        addr.scope == 0 && family.is_none_or(|family| family == Family::of(addr.local))
    };
    let mut found: Vec<IpAddr> = addrs
        .into_iter()
        .flatten()
        .filter(usable)
        .map(|addr| addr.local)
        .collect();
    found.sort_by_key(IpAddr::is_ipv6);
    match found.first() {
        Some(ip) => Ok(*ip),
        None => bail!(
            "end {typed:?}: that namespace has no {}address that others could reach",
            family.map_or(String::new(), |family| format!("{} ", family.as_str()))
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_root_may_read_is_one_error() {
        let lines = [
            "addrs of host on vm: return to the helper's own namespace: EPERM (Operation not permitted)",
            "links of host on vm: EACCES (Permission denied)",
        ];
        let error = permitted(lines)
            .expect_err("a right is lacking")
            .to_string();
        assert!(
            error.contains("needs root") && error.contains("sudo"),
            "{error}"
        );
        assert!(
            !error.contains("--privileged") && !error.contains('\n'),
            "{error}"
        );
        permitted(["rule 7 can't be decoded"]).expect("no right is lacking");
    }

    #[test]
    fn a_process_that_is_not_there_is_said_in_one_line() {
        let lost = found("pid/4194305", 4_194_305, None);
        let error = lost.expect_err("pids end at 4194304").to_string();
        assert_eq!(error, "end \"pid/4194305\": no such process");
    }
}
