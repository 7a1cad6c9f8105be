//! Recorded kernels: each folder of tests/scenarios holds a snapshot taken by `snapshot save` in the
//! laboratory, the packets that are asked about, and the traces that they must give.
//!
//! `NETPATH_RECORD=1 cargo pure scenarios` writes the traces anew; read the difference before committing.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use netpath::contract::file::{self, SnapshotFile};
use netpath::model::NsKey;
use netpath::simulate::{Flow, Limits, simulate};
use netpath::trace::Trace;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    from: String,
    protocol: u8,
    to: SocketAddr,
}

fn place(file: &SnapshotFile, name: &str) -> NsKey {
    if !name.contains('/') {
        return file
            .topology
            .host(name)
            .expect("the node is in the snapshot");
    }
    let named =
        |pod: &&netpath::model::names::PodName| format!("{}/{}", pod.namespace, pod.name) == name;
    let pod = file
        .names
        .pods
        .iter()
        .find(named)
        .expect("the pod is in the snapshot");
    let node = pod.node.clone().expect("the pod has a node");
    let ns = file.topology.nodes[&node]
        .pod(&pod.uid)
        .expect("its namespace was read");
    NsKey {
        node,
        netns: ns.identity.id,
    }
}

fn show(file: &SnapshotFile, trace: &Trace, indent: &str, out: &mut String) {
    let packet = &trace.packet;
    let _ = writeln!(
        out,
        "{indent}{:.4} {:?}, as {} > {}",
        trace.probability, trace.disposition, packet.src, packet.dst
    );
    // The packets after the answer take the same way, or their end tells.
    let later = indent.len() > 4;
    for hop in trace.hops.iter().filter(|_| !later) {
        let ns = file
            .topology
            .netns(&hop.ns)
            .expect("a namespace of the snapshot");
        let pod = ns
            .identity
            .pod_uid
            .as_deref()
            .and_then(|uid| file.names.pod_by_uid(uid));
        let name = pod.map_or_else(|| hop.ns.node.clone(), |pod| pod.name.clone());
        let taps: Vec<String> = hop
            .taps
            .iter()
            .map(|tap| format!("{} {}", if tap.out { "out" } else { "in" }, tap.dev))
            .collect();
        let _ = writeln!(out, "{indent}  {name}: {}", taps.join(", "));
        for step in &hop.steps {
            let _ = writeln!(out, "{indent}    {}: {}", step.kind.name(), step.result);
        }
    }
    if let Some(reply) = &trace.reply {
        let _ = writeln!(out, "{indent}  answer");
        show(file, reply, &format!("{indent}  "), out);
    }
}

fn traces(dir: &Path) -> String {
    let snapshot = fs::File::open(dir.join("snapshot.json")).expect("a snapshot");
    let file = file::read(std::io::BufReader::new(snapshot)).expect("a good snapshot");
    let asks = fs::read(dir.join("packets.json")).expect("packets");
    let asks: Vec<Ask> = serde_json::from_slice(&asks).expect("good packets");
    let mut out = String::new();
    for ask in asks {
        let flow = Flow {
            from: place(&file, &ask.from),
            src: None,
            sport: None,
            dst: ask.to.ip(),
            dport: Some(ask.to.port()),
            protocol: ask.protocol,
            len: 60,
            uid: Some(0),
            gid: Some(0),
            bound: None,
        };
        let outcome = simulate(&file.topology, &flow, &Limits::default());
        let _ = writeln!(out, "{} > {} protocol {}", ask.from, ask.to, ask.protocol);
        for trace in &outcome.traces {
            show(&file, trace, "  ", &mut out);
        }
    }
    out
}

#[test]
fn recorded_kernels_give_the_recorded_traces() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut count = 0;
    for entry in fs::read_dir(root).expect("tests/scenarios") {
        let dir = entry.expect("an entry").path();
        // Those of random networks have a test of their own.
        if !dir.is_dir() || dir.ends_with("oracle") || dir.ends_with("inconclusive") {
            continue;
        }
        count += 1;
        let (got, at) = (traces(&dir), dir.join("traces.txt"));
        if std::env::var_os("NETPATH_RECORD").is_some() {
            fs::write(&at, &got).expect("written");
        }
        let wanted = fs::read_to_string(&at).expect("traces.txt; NETPATH_RECORD=1 writes it");
        for (line, (got, wanted)) in got.lines().zip(wanted.lines()).enumerate() {
            assert_eq!(got, wanted, "{} line {}", at.display(), line + 1);
        }
        assert_eq!(
            got.lines().count(),
            wanted.lines().count(),
            "{}",
            at.display()
        );
    }
    assert!(count >= 4, "scenarios are there");
}
