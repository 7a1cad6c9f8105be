//! `dump`: what a kernel holds, of one namespace.

use anyhow::bail;
use netpath::explain::Naming;
use netpath::model::NsKey;
use netpath::model::conntrack::ConntrackFilter;
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget, Want};
use netpath::simulate::Wants;

use super::cluster::{self, Cluster};
use super::place::{Done, Wish, everywhere, read};
use super::{local, saved};
use crate::cli::{DumpArgs, DumpWhat, Format, GlobalFlags};
use crate::proxy_names::all_chain_names;
use crate::render;
use crate::request::{Facts, file_flags};
use crate::resolve::{ClusterView, EndSpec, Source, parse_local, resolve_place};

/// Does it and gives the exit code.
pub async fn run(args: &DumpArgs, global: &GlobalFlags) -> anyhow::Result<u8> {
    if args.syntax.is_some() && args.what != DumpWhat::Netfilter {
        bail!("--syntax: only `dump netfilter` prints rules");
    }
    if args.syntax.is_some() && matches!(args.output, Format::Json | Format::Yaml) {
        bail!("--syntax: it is the text that has words of a program; leave out -o json or yaml");
    }
    let filter = args.conntrack.filter()?;
    if args.conntrack.any() && args.what != DumpWhat::Conntrack {
        bail!(
            "only `dump conntrack` takes --stats and options that choose entries (--src, --dst, --state, ...)"
        );
    }
    if args.conntrack.stats && filter != ConntrackFilter::default() {
        bail!("--stats: counts are of all entries; leave out what chooses some");
    }
    let facts = Facts::of(&args.access)?;
    let depth = match args.what {
        DumpWhat::Netfilter => Depth::Full,
        _ => Depth::NoRules,
    };
    // A file tells itself whether its words are those of a cluster.
    let of_cluster = match &facts {
        Facts::Cluster(_) => true,
        Facts::Local => false,
        Facts::File(path) => !saved::is_local(&saved::read(path)?),
    };
    let spec = if of_cluster {
        cluster::parse(&args.place)?
    } else {
        parse_local(&args.place)?
    };
    let pid = match spec {
        EndSpec::Pid { pid, .. } => Some(pid),
        _ => None,
    };
    let namespace = |cluster: &Cluster| cluster.kube.namespace.clone();
    let wish = Wish {
        ends: &[&spec],
        cluster: &|cluster| {
            let flags = cluster.kube.typed_flags.clone();
            let source = place(&cluster.view, args, &namespace(cluster), flags)?;
            let (node, target) = target(&source)?;
            let mut wants = everywhere([node.clone()], &target, depth);
            if let Some(all) = whole(args, &filter, target) {
                wants.entry(node).or_default().insert(all);
            }
            Ok(wants)
        },
        names: &[],
        sections: Some(&[]),
        depth,
        pid,
        more: &|topology| {
            if !matches!(args.what, DumpWhat::Conntrack | DumpWhat::Ipvs) {
                return Ok(Wants::new());
            }
            // Of the one namespace only, which an address names once all are known.
            let key = local_key(topology, args, &spec)?;
            let all = whole(args, &filter, NsTarget::Id(key.netns));
            Ok([(key.node, all.into_iter().collect())].into())
        },
    };
    let read = match read(&facts, global, &wish).await? {
        Done::Read(read) => *read,
        Done::Ended(code) => return Ok(code),
    };
    let topology = &read.topology;
    let key = if of_cluster {
        // Names alone decide, so that a file and a cluster are searched alike.
        let view = saved::view(&read.names);
        let default = global.connection.namespace.as_deref().unwrap_or("default");
        let found = match &facts {
            Facts::File(path) => place(&view, args, default, file_flags(path))?,
            _ => return show_cluster(args, global, &read),
        };
        namespace_of(topology, &found)?
    } else {
        local_key(topology, args, &spec)?
    };
    show(args, global, topology, &read.names, &key, read.code)
}

/// What a namespace's sections do not hold: a table that may be large.
fn whole(args: &DumpArgs, filter: &ConntrackFilter, target: NsTarget) -> Option<Want> {
    match args.what {
        DumpWhat::Conntrack if args.conntrack.stats => Some(Want::ConntrackStats { target }),
        DumpWhat::Conntrack => Some(Want::ConntrackTable {
            target,
            filter: filter.clone(),
        }),
        DumpWhat::Ipvs => Some(Want::Ipvs { target }),
        _ => None,
    }
}

/// The namespace of a machine's own that was named.
fn local_key(topology: &Topology, args: &DumpArgs, spec: &EndSpec) -> anyhow::Result<NsKey> {
    let node = match topology.nodes.keys().next() {
        Some(node) => node.clone(),
        None => local::host_name(),
    };
    local::place(topology, &node, &args.place, spec, None)
}

/// In a cluster only the one namespace was asked for, so that it is the one that was read.
fn show_cluster(
    args: &DumpArgs,
    global: &GlobalFlags,
    read: &super::place::Read,
) -> anyhow::Result<u8> {
    let found: Vec<_> = read.topology.all().collect();
    if let [(key, _)] = found.as_slice() {
        return show(args, global, &read.topology, &read.names, key, read.code);
    }
    let absent = read.topology.absent.iter();
    let whys: Vec<&str> = absent.map(|(_, _, why)| why.as_str()).collect();
    bail!(
        "{}: its network namespace was not found: {}",
        args.place,
        whys.join("; ")
    )
}

fn place(
    view: &ClusterView,
    args: &DumpArgs,
    namespace: &str,
    flags: Vec<String>,
) -> anyhow::Result<Source> {
    let what = clap::ValueEnum::to_possible_value(&args.what);
    let command = format!("dump {}", what.as_ref().map_or("", |what| what.get_name()));
    let ask = cluster::ask(&args.place, "", namespace, &command, flags, None, None);
    Ok(resolve_place(view, &ask)?.0)
}

/// Node and namespace of a pod or node.
pub fn target(source: &Source) -> anyhow::Result<(String, NsTarget)> {
    let Some(node) = source.node() else {
        bail!("{}: it is on no node", source.describe());
    };
    let target = match source {
        Source::Pod { pod } if !pod.host_network => NsTarget::PodUid(pod.cgroup_uid.clone()),
        _ => NsTarget::Host,
    };
    Ok((node.to_owned(), target))
}

fn namespace_of(topology: &Topology, source: &Source) -> anyhow::Result<NsKey> {
    let (node, wanted) = target(source)?;
    match topology.find(&node, &wanted) {
        Some(key) => Ok(key),
        None => bail!(
            "{}: the file holds nothing of its namespace on {node}",
            source.describe()
        ),
    }
}

fn show(
    args: &DumpArgs,
    global: &GlobalFlags,
    topology: &Topology,
    names: &netpath::model::names::Names,
    key: &NsKey,
    code: u8,
) -> anyhow::Result<u8> {
    let dump = render::dump::Dump::of(topology, names, key, args.what, args.syntax)?;
    match args.output {
        Format::Text | Format::Wide => {
            let options = super::options(global);
            let mut text = dump.text();
            if args.output == Format::Wide {
                let chains = all_chain_names(topology, names);
                let naming = Naming {
                    topology,
                    names,
                    chains: &chains,
                };
                text.push_str(&dump.labels(&naming));
            }
            super::print(&options.plain(&text))?;
        }
        Format::Json | Format::Yaml => super::print_data(&dump.data(), args.output)?,
    }
    // What has no words stands in comments, which a program that loads the text passes over.
    let lost = dump.lost();
    for line in &lost {
        super::say(&format!("warning: not printed: {line}"));
    }
    if dump.is_missing() || !lost.is_empty() {
        return Ok(super::INCONCLUSIVE);
    }
    Ok(code)
}
