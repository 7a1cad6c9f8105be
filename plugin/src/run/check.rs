//! `check`: faults that are visible without a flow.

use std::collections::BTreeSet;

use anyhow::bail;
use netpath::explain::{Checkup, Naming, check};
use netpath::model::names::Names;
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget, Want};
use netpath::simulate::{Limits, Prepared, Wants};

use super::place::{Done, Read, Wish, everywhere, read};
use super::progress::Progress;
use super::{BROKEN, INCONCLUSIVE, cluster, saved};
use crate::cli::{CheckArgs, Format, GlobalFlags};
use crate::proxy_names::all_chain_names;
use crate::render;
use crate::request::Facts;

/// Resources that tell what nodes should hold.
const NAMES: [&str; 3] = ["nodes", "services", "endpointslices"];

/// Does it and gives the exit code.
pub async fn run(args: &CheckArgs, global: &GlobalFlags) -> anyhow::Result<u8> {
    let facts = Facts::of(&args.access)?;
    match &facts {
        Facts::Local => bail!(
            "check compares nodes with what Kubernetes says, which --local does not ask; leave it out, or use --snapshot FILE"
        ),
        Facts::File(path) if saved::is_local(&saved::read(path)?) => bail!(
            "snapshot file {}: it was saved with --local and holds no Services to compare with",
            path.display()
        ),
        Facts::File(_) | Facts::Cluster(_) => {}
    }
    let wish = Wish {
        ends: &[],
        cluster: &|cluster| {
            let nodes = cluster::chosen(cluster, &args.nodes)?;
            let mut wants = everywhere(nodes, &NsTarget::Host, Depth::Full);
            for own in wants.values_mut() {
                own.insert(Want::ConntrackStats {
                    target: NsTarget::Host,
                });
            }
            Ok(wants)
        },
        names: &NAMES,
        sections: Some(&[]),
        depth: Depth::Full,
        pid: None,
        more: &|_| Ok(Wants::new()),
    };
    let Read {
        topology,
        names,
        failed,
        code,
    } = match read(&facts, global, &wish).await? {
        Done::Read(read) => *read,
        Done::Ended(code) => return Ok(code),
    };
    let nodes = nodes(args, &topology, &names)?;
    let mut checkup = of(&topology, &names, &nodes);
    if let (Facts::Cluster(flags), false) = (&facts, checkup.findings.is_empty()) {
        // kube-proxy follows the objects after a moment: what differs counts where it does so from the
        // objects as they were before and after the rules were read.
        let progress = Progress::new(global.verbose);
        let after = cluster::read(&global.connection, flags, &[], progress).await?;
        let later = of(&topology, &after.names, &nodes);
        both(&mut checkup, &later);
    }
    for why in failed {
        if !checkup.unknown.contains(&why) {
            checkup.unknown.push(why);
        }
    }
    match args.output {
        Format::Text | Format::Wide => {
            super::print(&render::check::text(&checkup, &super::options(global)))?;
        }
        Format::Json | Format::Yaml => {
            super::print_data(&render::check::data(&checkup), args.output)?;
        }
    }
    Ok(if !checkup.findings.is_empty() {
        BROKEN
    } else if checkup.unknown.is_empty() {
        code
    } else {
        INCONCLUSIVE
    })
}

fn of(topology: &Topology, names: &Names, nodes: &[String]) -> Checkup {
    let chains = all_chain_names(topology, names);
    let naming = Naming {
        topology,
        names,
        chains: &chains,
    };
    let mut prepared = Prepared::new(topology);
    let limits = Limits::default();
    check(&naming, nodes, &mut |arrival| {
        prepared.pass(arrival, &limits)
    })
}

/// The nodes to look at: those typed, else all that are known. Errors: one that a file does not know.
fn nodes(args: &CheckArgs, topology: &Topology, names: &Names) -> anyhow::Result<Vec<String>> {
    let known: BTreeSet<String> = names
        .nodes
        .iter()
        .map(|node| node.name.clone())
        .chain(topology.nodes.keys().cloned())
        .collect();
    if args.nodes.is_empty() {
        // Nodes that were not read stand in the answer, too.
        return Ok(known.into_iter().collect());
    }
    let mut nodes = Vec::new();
    for typed in &args.nodes {
        let name = typed.strip_prefix("node/").unwrap_or(typed);
        if !known.contains(name) && !names.nodes.is_empty() {
            bail!("{}", cluster::no_such_node(name, &known));
        }
        if !nodes.iter().any(|own| own == name) {
            nodes.push(name.to_owned());
        }
    }
    Ok(nodes)
}

/// Keeps what both found.
fn both(checkup: &mut Checkup, later: &Checkup) {
    checkup.findings.retain(|found| {
        later.findings.iter().any(|other| {
            (other.code, &other.place, &other.title) == (found.code, &found.place, &found.title)
        })
    });
    for node in &mut checkup.nodes {
        let own = checkup
            .findings
            .iter()
            .filter(|found| found.place.node == node.node);
        node.findings = own.count();
    }
}
