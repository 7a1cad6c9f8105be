//! The API server as kubectl sees it. Nothing here needs root: the nodes have no namespaces.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use netpath_lab::api::{Misbehave, Options, Rule, Server};
use netpath_lab::state::NodeState;
use serde_json::{Value, json};

fn objects() -> Vec<Value> {
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "nodeName": "node-1"});
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.11"}],
            "conditions": [{"type": "Ready", "status": "True"}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop", "labels": {"app": "web"}},
            "spec": spec, "status": {"phase": "Running", "podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}],
            "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {}}}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": "shop"},
            "spec": {"type": "NodePort", "clusterIP": "10.96.14.3", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}], "selector": {"app": "api"}}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "api", "namespace": "shop"}}),
    ]
}

struct Lab {
    server: Server,
    dir: tempfile::TempDir,
}

impl Lab {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let helper = dir.path().join("helper");
        std::fs::write(
            &helper,
            "#!/bin/sh\ncase $1 in\nidle) exec sleep 60;;\necho) shift; echo \"$@\";;\ncat) cat;;\nfail) echo oops >&2; exit 3;;\nesac\n",
        )
        .expect("a helper");
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).expect("rights");
        let options = Options {
            helper,
            kubeconfig: Some(dir.path().join("kubeconfig")),
            ..Options::default()
        };
        let node = NodeState {
            name: "node-1".to_owned(),
            holder_pid: 0,
            ips: vec!["192.0.2.11".parse().expect("an address")],
        };
        let server = Server::start_fixed(vec![node], objects(), &options)
            .await
            .expect("a server");
        Self { server, dir }
    }

    async fn kubectl(&self, args: &[&str], input: Option<&Path>) -> Output {
        let kubeconfig = self.dir.path().join("kubeconfig");
        let home = self.dir.path().to_owned();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let input = input.map(|path| std::fs::File::open(path).expect("an input"));
        tokio::task::spawn_blocking(move || {
            let mut command = Command::new("kubectl");
            command
                .env("KUBECONFIG", kubeconfig)
                .env("HOME", home)
                .args(args);
            if let Some(input) = input {
                command.stdin(input);
            }
            command.output().expect("kubectl runs")
        })
        .await
        .expect("kubectl ends")
    }

    async fn prints(&self, args: &[&str]) -> String {
        let output = self.kubectl(args, None).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {args:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }
}

/// kubectl is a tool of the developer's machine; where it is missing there is nothing to show.
fn has_kubectl() -> bool {
    let found = Command::new("kubectl")
        .args(["version", "--client"])
        .output()
        .is_ok();
    if !found {
        eprintln!("kubectl is not installed: not tested");
    }
    found
}

fn words(line: Option<&str>) -> Vec<String> {
    line.unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_reads() {
    if !has_kubectl() {
        return;
    }
    let lab = Lab::start().await;
    let pods = lab.prints(&["get", "pods", "-A", "-o", "wide"]).await;
    assert_eq!(
        words(pods.lines().nth(1)),
        [
            "shop",
            "web-0",
            "1/1",
            "Running",
            "0",
            "lab",
            "10.244.1.7",
            "node-1",
            "<none>",
            "<none>"
        ]
    );
    let nodes = lab.prints(&["get", "nodes"]).await;
    assert_eq!(words(nodes.lines().nth(1))[..2], ["node-1", "Ready"]);
    let services = lab.prints(&["get", "svc", "-n", "shop"]).await;
    assert_eq!(
        words(services.lines().nth(1))[..5],
        ["api", "NodePort", "10.96.14.3", "<none>", "80:30080/TCP"]
    );
    assert!(
        lab.prints(&["get", "deploy,rs", "-n", "shop"])
            .await
            .contains("deployment.apps/api")
    );
    let one = lab
        .prints(&[
            "get",
            "pod/web-0",
            "-n",
            "shop",
            "-o",
            "jsonpath={.status.podIP}",
        ])
        .await;
    assert_eq!(one, "10.244.1.7");
    let selected = lab
        .prints(&["get", "pods", "-A", "-l", "app=web", "-o", "name"])
        .await;
    assert_eq!(selected.trim(), "pod/web-0");
    let none = lab
        .prints(&[
            "get",
            "pods",
            "-A",
            "--field-selector",
            "spec.nodeName=other",
            "-o",
            "name",
        ])
        .await;
    assert_eq!(none.trim(), "");
    assert!(lab.prints(&["version"]).await.contains("netpath-lab"));
    assert!(
        lab.prints(&["api-resources"])
            .await
            .contains("endpointslices")
    );
    assert_eq!(
        lab.prints(&["auth", "can-i", "create", "pods"])
            .await
            .trim(),
        "yes"
    );
    lab.server.misbehave(Misbehave {
        forbid: vec![Rule::new("create", "pods"), Rule::new("list", "nodes")],
        ..Misbehave::default()
    });
    let output = lab
        .kubectl(&["auth", "can-i", "create", "pods"], None)
        .await;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "no");
    let output = lab.kubectl(&["get", "nodes"], None).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("nodes is forbidden: User \"lab\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_runs_programs_in_pods() {
    if !has_kubectl() {
        return;
    }
    let lab = Lab::start().await;
    let manifest = lab.dir.path().join("pod.json");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "helper"}, "spec": {
        "nodeName": "node-1", "hostPID": true, "hostNetwork": true,
        "containers": [{"name": "helper", "image": "i", "command": ["/netpath-helper", "idle"]}]}});
    std::fs::write(&manifest, pod.to_string()).expect("a manifest");
    let path = manifest.to_str().expect("a path");
    lab.prints(&["create", "--validate=false", "-f", path])
        .await;
    lab.prints(&[
        "wait",
        "--for=condition=Ready",
        "pod/helper",
        "--timeout=10s",
    ])
    .await;
    assert_eq!(lab.server.processes().len(), 1);
    let said = lab
        .prints(&["exec", "helper", "--", "x", "echo", "a", "b c&d=e"])
        .await;
    assert_eq!(said, "a b c&d=e\n");
    let bytes: Vec<u8> = (0..500_000_u32).map(|n| (n % 253) as u8).collect();
    let input = lab.dir.path().join("input");
    std::fs::write(&input, &bytes).expect("an input");
    let output = lab
        .kubectl(&["exec", "-i", "helper", "--", "x", "cat"], Some(&input))
        .await;
    assert!(
        output.stdout == bytes,
        "{} bytes came back",
        output.stdout.len()
    );
    let output = lab
        .kubectl(&["exec", "helper", "--", "x", "fail"], None)
        .await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.starts_with("oops\n"), "{error}");
    lab.prints(&["delete", "pod", "helper", "--grace-period=0", "--force"])
        .await;
    assert_eq!(lab.server.helper_pods().len(), 0);
    assert_eq!(lab.server.processes().len(), 0);
    lab.server.stop().await.expect("an end");
}
