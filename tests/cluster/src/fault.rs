//! Faults inside nodes: each is made, judged and mended.

use anyhow::{Context, Result};
use netpath_lab::{Outcome, Place};

use crate::expect::Expect;
use crate::flows::{Case, Maker};
use crate::inside::{Inside, exchange};
use crate::judge::Judge;
use crate::kubectl::{self, NAMESPACE};
use crate::settle;
use crate::tell::tell;
use crate::workload::of_family;
use netpath_cluster::undo::Undo;

/// Makes every fault that the cluster's variant can have.
pub fn all(judge: &mut Judge<'_>, inside: &Inside) -> Result<()> {
    late_service(judge, inside)?;
    if inside.variant.has_policies() {
        policies(judge)?;
    }
    // flannel accepts what a policy would drop, and puts routes and rules right again: it stands still.
    let mut still = Vec::new();
    if inside.variant.overlay != "routes" {
        for node in &judge.objects.nodes {
            still.push(inside.stop(&node.name, "flanneld")?);
        }
    }
    for &v6 in judge.objects.families() {
        forwarding(judge, inside, v6)?;
        routes(judge, inside, v6)?;
    }
    if inside.variant.overlay == "vxlan" {
        tunnel(judge, inside)?;
    }
    still.into_iter().try_for_each(Undo::now)
}

/// A command in a node's network.
fn on(inside: &Inside, node: &str, command: &str) -> Result<()> {
    let words: Vec<&str> = command.split_whitespace().collect();
    inside.node(node)?.run(words).map(|_| ())
}

/// Judges a case as it stands now.
fn told(judge: &mut Judge<'_>, case: &Case) -> Result<()> {
    let told = tell(&judge.objects, case, true);
    judge.case(case, told)
}

/// Runs one command in a node's network, the other to mend it, and judges a case in between.
fn broken(
    judge: &mut Judge<'_>,
    inside: &Inside,
    node: &str,
    [make, mend]: [&str; 2],
    case: &Case,
) -> Result<()> {
    let undo = Undo::new(format!("{mend} on {node}"), || on(inside, node, mend));
    on(inside, node, make)?;
    // What the fault makes of neighbours stands before the trace reads it.
    let from = inside.pod(&judge.objects, &case.pod)?;
    exchange(&from, case.to, case.udp, settle::ANSWER)?;
    told(judge, case)?;
    undo.now()
}

fn names(judge: &Judge<'_>) -> Result<[String; 2]> {
    let [first, second] = &judge.objects.nodes[..] else {
        anyhow::bail!("two nodes are wanted");
    };
    Ok([first.name.clone(), second.name.clone()])
}

/// A case that is expected to fail.
fn case(
    judge: &Judge<'_>,
    v6: bool,
    (name, source, destination): (&str, &str, &str),
    expect: Expect,
) -> Result<Case> {
    let mut case = Maker::new(&judge.objects, v6).case(name, source, destination, false)?;
    case.expect = expect;
    Ok(case)
}

fn forwarding(judge: &mut Judge<'_>, inside: &Inside, v6: bool) -> Result<()> {
    let [_, second] = names(judge)?;
    let program = if v6 { "ip6tables" } else { "iptables" };
    let expect = Expect::fault("dropped", &second, "FORWARD")
        .code("NP0101")
        .dropped("NETFILTER_DROP");
    if inside.variant.overlay == "routes" {
        let flow = ("FORWARD policy DROP", "client-1", "web-2:8080");
        let case = case(judge, v6, flow, expect)?;
        let make = format!("{program} -w -P FORWARD DROP");
        let mend = format!("{program} -w -P FORWARD ACCEPT");
        broken(judge, inside, &second, [&make, &mend], &case)?;
    } else {
        let flow = ("a rule that drops in FORWARD", "client-1", "web-2:8080");
        let case = case(judge, v6, flow, expect)?;
        let rule = format!("FORWARD -d {} -j DROP", case.to.ip());
        let make = format!("{program} -w -I {rule}");
        let mend = format!("{program} -w -D {rule}");
        broken(judge, inside, &second, [&make, &mend], &case)?;
    }
    let switch = if v6 {
        "net.ipv6.conf.all.forwarding"
    } else {
        "net.ipv4.ip_forward"
    };
    let expect = Expect::fault("dropped", &second, "forwarding = 0").code("NP0104");
    let flow = ("forwarding switched off", "client-1", "web-2:8080");
    let case = case(judge, v6, flow, expect)?;
    let make = format!("sysctl -qw {switch}=0");
    let mend = format!("sysctl -qw {switch}=1");
    broken(judge, inside, &second, [&make, &mend], &case)
}

/// The route of a node to a prefix, as `ip route` takes it again.
fn route(node: &Place, v6: bool, to: &str) -> Result<String> {
    let family = if v6 { "-6" } else { "-4" };
    let list = node.run(["ip", family, "route", "show", to])?;
    let line = list
        .lines()
        .next()
        .with_context(|| format!("find the route to {to}"))?;
    Ok(line.replace(" linkdown", "").trim().to_owned())
}

fn routes(judge: &mut Judge<'_>, inside: &Inside, v6: bool) -> Result<()> {
    let family = if v6 { "-6" } else { "-4" };
    let [first, second] = names(judge)?;
    for (on, other, pod, flow, verdict) in [
        (
            &second,
            &first,
            "client-1",
            ("no route back", "client-1", "web-2:8080"),
            "dropped",
        ),
        (
            &first,
            &second,
            "web-2",
            ("no route there, one backend", "client-1", "svc/web:http"),
            "mixed",
        ),
    ] {
        let cidr = judge.objects.pod_cidr(other, v6)?;
        let back = route(&inside.node(on)?, v6, &cidr)?;
        let lacking = of_family(&judge.objects.pod(pod)?.ips, v6)?;
        let lacking = format!("not there: a route to {lacking}");
        let case = case(judge, v6, flow, Expect::fault(verdict, on, &lacking))?;
        let make = format!("ip {family} route del {back}");
        let mend = format!("ip {family} route replace {back}");
        broken(judge, inside, on, [&make, &mend], &case)?;
    }
    Ok(())
}

fn tunnel(judge: &mut Judge<'_>, inside: &Inside) -> Result<()> {
    let [first, second] = names(judge)?;
    let links = inside
        .node(&second)?
        .run(["ip", "-o", "link", "show", "flannel.1"])?;
    let mac = links
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1);
    let mac = mac.context("find the link-layer address of flannel.1")?;
    let peer = judge.objects.nodes.get(1).context("find the second node")?;
    let peer = of_family(&peer.ips, false)?;
    let right = format!("bridge fdb replace {mac} dev flannel.1 dst {peer} self permanent");

    let flow = ("FDB entry of flannel.1 deleted", "client-1", "svc/web:http");
    let expect = Expect::fault("mixed", &first, mac).code("NP0114");
    let case_ = case(judge, false, flow, expect)?;
    let make = format!("bridge fdb del {mac} dev flannel.1");
    broken(judge, inside, &first, [&make, &right], &case_)?;

    let flow = (
        "FDB entry of flannel.1 leads nowhere",
        "client-1",
        "web-2:8080",
    );
    let expect = Expect::fault("dropped", &first, "10.88.0.77");
    let case_ = case(judge, false, flow, expect)?;
    let make = format!("bridge fdb replace {mac} dev flannel.1 dst 10.88.0.77 self permanent");
    broken(judge, inside, &first, [&make, &right], &case_)
}

/// A Service that is made while kube-proxy of one node stands still.
fn late_service(judge: &mut Judge<'_>, inside: &Inside) -> Result<()> {
    let [first, _] = names(judge)?;
    let undo = inside.stop(&first, "kube-proxy")?;
    let expose = ["expose", "pod", "web-2", "--name", "late", "--port", "80"];
    let expose = [
        &expose[..],
        &["--target-port", "8080", "--namespace", NAMESPACE],
    ]
    .concat();
    kubectl::run(&expose, "")?;
    judge.objects.read_services()?;
    let flow = (
        "Service made while kube-proxy stood still, other node",
        "client-2",
        "svc/late",
    );
    let there = case(judge, false, flow, Expect::verdict("delivered"))?;
    settle::until(judge, &there, settle::ANSWER, |outcome| {
        outcome.pod() == Some("web-2")
    })?;
    told(judge, &there)?;
    // No kernel here says what becomes of a Service's address that leaves its node as it is; kube-proxy's
    // nftables mode drops it before that.
    let verdict = if inside.variant.proxy == "iptables" {
        "inconclusive"
    } else {
        "dropped"
    };
    let flow = (
        "Service made while kube-proxy stood still",
        "client-1",
        "svc/late",
    );
    let mut expect = Expect::verdict(verdict).code("NP0137");
    if verdict == "inconclusive" {
        expect = expect.probe("seen");
    }
    expect.node = Some(first);
    let here = case(judge, false, flow, expect)?;
    told(judge, &here)?;
    undo.now()
}

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody, namespace: netpath-test}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: lonely}}}]
";

/// A NetworkPolicy that lets nobody but one pod in.
fn policies(judge: &mut Judge<'_>) -> Result<()> {
    let undo = Undo::new("remove the NetworkPolicy", || {
        let delete = ["delete", "networkpolicy", "nobody", "--ignore-not-found"];
        kubectl::run(&[&delete[..], &["--namespace", NAMESPACE]].concat(), "").map(|_| ())
    });
    kubectl::run(&["apply", "-f", "-"], POLICY)?;
    let [first, second] = names(judge)?;
    for &v6 in judge.objects.families() {
        for (name, source, destination, node) in [
            (
                "denied by a NetworkPolicy, same node",
                "client-1",
                "web-1:8080",
                Some(&first),
            ),
            (
                "denied by a NetworkPolicy, across nodes",
                "client-1",
                "web-2:8080",
                Some(&second),
            ),
            (
                "denied by a NetworkPolicy, ClusterIP",
                "client-2",
                "svc/web:http",
                None,
            ),
        ] {
            let expect = Expect {
                node: node.cloned(),
                object: Some("KUBE-POD-FW-".to_owned()),
                // The engine only rejects.
                ..Expect::verdict("rejected")
            };
            let denied = case(judge, v6, (name, source, destination), expect)?;
            settle::until(judge, &denied, settle::REFUSAL, |outcome| {
                !outcome.connected()
            })?;
            told(judge, &denied)?;
        }
        for (name, destination) in [
            ("allowed by a NetworkPolicy, across nodes", "web-1:8080"),
            ("allowed by a NetworkPolicy, same node", "web-2:8080"),
        ] {
            let flow = (name, "lonely", destination);
            let allowed = case(judge, v6, flow, Expect::verdict("delivered"))?;
            told(judge, &allowed)?;
        }
    }
    undo.now()?;
    for destination in ["web-1:8080", "web-2:8080"] {
        let flow = ("without the NetworkPolicy", "client-1", destination);
        let again = case(judge, false, flow, Expect::verdict("delivered"))?;
        settle::until(judge, &again, settle::ANSWER, Outcome::connected)?;
    }
    Ok(())
}
