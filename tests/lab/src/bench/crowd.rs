//! A node as full as nodes get: 110 pods, 1,500 processes.

use std::time::Duration;

use anyhow::{Context, Result};

use super::BenchArgs;
use super::inside::Inside;
use super::report::{Report, Row, Times, Value};
use crate::cluster::pause_of;
use crate::launch;
use crate::namespace::Namespaces;
use crate::spec::PodSpec;
use crate::{Cluster, Overlay, Proxy, Spec};

/// Pods besides the laboratory's own; 110 is what a kubelet takes by default.
const PODS: u8 = 104;
const PROCESSES: usize = 1500;
/// Processes started at once: each holds a descriptor while it starts.
const AT_ONCE: usize = 200;

pub(super) fn figures(args: &BenchArgs, report: &mut Report) -> Result<()> {
    let name = format!("bench{}c", std::process::id());
    let mut spec = Spec::new(Overlay::Routed, Proxy::Nftables).named(&name);
    spec.pods
        .extend((0..PODS).map(|n| PodSpec::new("crowd", &format!("p-{n}"), 1, 100 + n, "crowd")));
    let cluster = Cluster::up(spec)?;
    fill(&cluster)?;
    let program = std::env::current_exe().context("find this program")?;
    let program = program.to_str().context("read the path of this program")?;
    let runs = args.runs().max(50).to_string();
    let output = cluster
        .node("node-1")?
        .run([program, "bench-inside", "--runs", &runs])?;
    let inside: Inside = serde_json::from_str(&output).context("decode the figures")?;
    let times = |all: &[u64]| -> Times { all.iter().copied().map(Duration::from_nanos).collect() };
    let what = format!(
        "finding {} pods among {} processes",
        inside.pods, inside.processes
    );
    report
        .push(Row::of(&what, times(&inside.discover)).goal(Value::Time(Duration::from_millis(10))));
    let each = Value::Time(Duration::from_micros(50));
    let what = "a lone namespace entered, 4 sockets opened";
    report.push(Row::of(what, times(&inside.open)).goal(each));
    let what = format!("the same, each of {} in one go", inside.pods);
    report.push(Row::of(&what, times(&inside.together)).goal(each));
    cluster.down()
}

/// Fills pods with idle processes up to the number. They end with the node.
fn fill(cluster: &Cluster) -> Result<()> {
    let spec = &cluster.state.spec;
    let node = Namespaces::of_node(
        cluster
            .state
            .node("node-1")
            .context("find node-1")?
            .holder_pid,
    )?;
    let crowd = spec.pods.iter().filter(|pod| pod.namespace == "crowd");
    let own = 2 * spec.pods.iter().filter(|pod| pod.node == 1).count();
    let list: Vec<_> = crowd
        .cycle()
        .take(PROCESSES.saturating_sub(own))
        .map(|pod| pause_of(spec, pod))
        .collect();
    for some in list.chunks(AT_ONCE) {
        launch::in_node(&node, &cluster.program, some)?;
    }
    Ok(())
}
