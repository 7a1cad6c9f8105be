use serde_json::{Value, json};

use super::ends::{Destination, Entry, Family, Source};
use super::objects::{ClusterView, Unread};
use super::*;

fn pod(ns: &str, name: &str, node: &str, ip: &str) -> Value {
    json!({
        "kind": "Pod",
        "metadata": {"namespace": ns, "name": name, "uid": format!("uid-{name}"), "labels": {"app": name.split('-').next()}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIPs": [{"ip": "192.0.2.11"}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "c", "containerID": format!("containerd://id-{name}")}]}
    })
}

#[allow(clippy::needless_pass_by_value, reason = "called with literals")]
fn service(ns: &str, name: &str, ip: &str, ports: Value) -> Value {
    json!({"kind": "Service", "metadata": {"namespace": ns, "name": name},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": ports, "selector": {"app": name}}})
}

fn slice(
    ns: &str,
    service: &str,
    port_name: &str,
    port: u16,
    ends: &[(&str, &str, &str, bool)],
) -> Value {
    let ends: Vec<Value> = ends
        .iter()
        .map(|(ip, node, pod, ready)| {
            json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": ready},
            "targetRef": {"kind": "Pod", "namespace": ns, "name": pod}})
        })
        .collect();
    json!({"kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": ns, "name": format!("{service}-x"), "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}], "endpoints": ends})
}

fn cluster() -> Vec<Value> {
    let mut owned = pod("shop", "api-5d-x2", "worker-1", "10.244.1.9");
    owned["metadata"]["ownerReferences"] =
        json!([{"kind": "ReplicaSet", "name": "api-5d", "controller": true}]);
    let mut pending = pod("shop", "slow-0", "worker-1", "");
    pending["status"] = json!({"phase": "Pending", "containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]});
    let mut agent = pod("kube-system", "agent", "worker-1", "192.0.2.11");
    agent["spec"]["hostNetwork"] = json!(true);
    let mut two = pod("shop", "two", "worker-2", "10.244.2.8");
    two["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 80}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]);
    vec![
        json!({"kind": "Namespace", "metadata": {"name": "shop"}}),
        json!({"kind": "Namespace", "metadata": {"name": "default"}}),
        json!({"kind": "Namespace", "metadata": {"name": "kube-system"}}),
        json!({"kind": "Node", "metadata": {"name": "worker-1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}], "conditions": [{"type": "Ready", "status": "True"}]}}),
        json!({"kind": "Node", "metadata": {"name": "worker-2"}, "spec": {"podCIDRs": ["10.244.2.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.12"}], "conditions": [{"type": "Ready", "status": "True"}]}}),
        pod("shop", "web-0", "worker-1", "10.244.1.7"),
        owned,
        pending,
        agent,
        two,
        pod("shop", "both", "worker-2", "10.244.2.9"),
        service(
            "shop",
            "api",
            "10.96.14.3",
            json!([{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}]),
        ),
        service("shop", "both", "10.96.14.4", json!([{"port": 80}])),
        service(
            "shop",
            "empty",
            "10.96.14.5",
            json!([{"name": "http", "port": 80, "targetPort": 8080}]),
        ),
        service(
            "kube-system",
            "dns",
            "10.96.0.10",
            json!([
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}, {"name": "metrics", "port": 9153}]),
        ),
        json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "db"},
            "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "sql", "port": 80, "targetPort": 8080}]}}),
        json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "ext"},
            "spec": {"type": "ExternalName", "externalName": "db.example.com"}}),
        json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "alias"},
            "spec": {"type": "ExternalName", "externalName": "api.shop.svc.cluster.local"}}),
        slice(
            "shop",
            "api",
            "http",
            8080,
            &[
                ("10.244.1.9", "worker-1", "api-5d-x2", true),
                ("10.244.2.4", "worker-2", "api-5d-k9", false),
            ],
        ),
        // The same endpoint in two slices, as during an update.
        slice(
            "shop",
            "api",
            "http",
            8080,
            &[("10.244.1.9", "worker-1", "api-5d-x2", true)],
        ),
        slice(
            "shop",
            "db",
            "sql",
            8080,
            &[
                ("10.244.1.9", "worker-1", "db-0", true),
                ("10.244.2.4", "worker-2", "db-1", true),
            ],
        ),
        json!({"kind": "Deployment", "metadata": {"namespace": "shop", "name": "api"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "api"}}}}),
        json!({"kind": "Deployment", "metadata": {"namespace": "shop", "name": "idle"}, "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "idle"}}}}),
    ]
}

fn ask(source: &str, destination: &str) -> Ask {
    Ask {
        source: source.to_owned(),
        destination: destination.to_owned(),
        namespace: "shop".to_owned(),
        protocol: None,
        family: None,
        command: "kubectl netpath trace".to_owned(),
        flags: vec!["-n".to_owned(), "shop".to_owned()],
    }
}

fn view() -> ClusterView {
    ClusterView::from_objects(&cluster()).unwrap()
}

fn go(source: &str, destination: &str) -> Result<Resolved, String> {
    resolve(&view(), &ask(source, destination)).map_err(|error| error.to_string())
}

fn trouble(source: &str, destination: &str) -> String {
    go(source, destination).unwrap_err()
}

#[test]
fn pod_to_service() {
    let found = go("web-0", "api").unwrap();
    let Source::Pod { pod } = &found.source else {
        panic!("{found:?}")
    };
    assert_eq!(pod.containers[0].id.as_deref(), Some("id-web-0"));
    let end = found.destination.service().unwrap();
    assert_eq!(end.entry, Entry::ClusterIp);
    assert_eq!(
        end.endpoints.len(),
        2,
        "two slices carry one endpoint twice"
    );
    assert_eq!(end.usable().len(), 1);
    assert_eq!(found.protocol, Protocol::Tcp);
    assert_eq!(found.flows.len(), 1);
    assert_eq!(found.flows[0].destination.to_string(), "10.96.14.3");
    assert_eq!(found.flows[0].port, Some(80));
    assert_eq!(found.nodes().into_iter().collect::<Vec<_>>(), ["worker-1"]);
}

#[test]
fn ports_by_name_number_and_protocol() {
    assert_eq!(go("web-0", "api:http").unwrap().flows[0].port, Some(80));
    assert_eq!(
        go("web-0", "dns.kube-system:metrics").unwrap().flows[0].port,
        Some(9153)
    );
    let udp = go("web-0", "svc/dns.kube-system:dns").unwrap();
    assert_eq!((udp.protocol, udp.flows[0].port), (Protocol::Udp, Some(53)));
    let mut asked = ask("web-0", "dns.kube-system:53");
    asked.protocol = Some(Protocol::Tcp);
    assert_eq!(resolve(&view(), &asked).unwrap().protocol, Protocol::Tcp);
    let text = trouble("web-0", "dns.kube-system:53");
    assert!(text.contains("port 53 for 2 protocols"), "{text}");
    assert!(
        text.contains("\n  kubectl netpath trace web-0 svc/dns.kube-system:dns-tcp -n shop"),
        "{text}"
    );
    let text = trouble("web-0", "dns.kube-system");
    assert!(text.contains("has 3 ports"), "{text}");
    assert!(trouble("web-0", "empty:8080").contains("8080 is the target port behind port 80"));
    assert!(trouble("web-0", "api:30080").contains("node port of port 80"));
    assert!(trouble("web-0", "api:grpc").contains("has no port \"grpc\""));
}

#[test]
fn pods_as_destination() {
    let found = go("web-0", "pod/api-5d-x2").unwrap();
    assert_eq!(found.flows[0].port, Some(8080), "the only declared port");
    assert_eq!(
        go("web-0", "pod/api-5d-x2:http").unwrap().flows[0].port,
        Some(8080)
    );
    let text = trouble("web-0", "two");
    assert!(text.contains("pod shop/two has 2 ports"), "{text}");
    assert!(
        text.contains("kubectl netpath trace web-0 pod/two:53 -n shop --protocol udp"),
        "{text}"
    );
    assert_eq!(go("web-0", "two:9").unwrap().flows[0].port, Some(9));
    assert_eq!(
        go("web-0", "two:53").unwrap().protocol,
        Protocol::Udp,
        "the declared protocol"
    );
    let text = trouble("web-0", "both:80");
    assert!(text.contains("both a Service and a pod"), "{text}");
    assert!(
        text.contains("\n  kubectl netpath trace web-0 svc/both:80 -n shop"),
        "{text}"
    );
    assert!(
        text.contains("\n  kubectl netpath trace web-0 pod/both:80 -n shop"),
        "{text}"
    );
}

#[test]
fn workloads_choose_a_ready_pod() {
    let found = go("deploy/api", "api").unwrap();
    assert_eq!(found.source.describe(), "pod shop/api-5d-x2");
    assert!(
        found
            .notes
            .iter()
            .any(|n| n.contains("pod api-5d-x2 on worker-1 chosen, one of 1 ready"))
    );
    let text = trouble("deploy/idle", "api");
    assert!(text.contains("scaled to zero"), "{text}");
    let text = trouble("deploy/apii", "api");
    assert!(
        text.contains("kubectl netpath trace deploy/api api -n shop"),
        "{text}"
    );
}

#[test]
fn addresses_are_named() {
    let found = go("10.244.1.7", "10.96.14.3:80").unwrap();
    assert_eq!(found.source.describe(), "pod shop/web-0");
    assert_eq!(found.destination.describe(), "svc shop/api");
    assert_eq!(
        go("web-0", "10.244.2.8:80").unwrap().destination.describe(),
        "pod shop/two"
    );
    // 192.0.2.11 is also the address of a hostNetwork pod: the node owns it.
    assert_eq!(
        go("web-0", "192.0.2.11:22").unwrap().destination.describe(),
        "node worker-1"
    );
    let outside = go("web-0", "203.0.113.5:443").unwrap();
    assert!(matches!(outside.destination, Destination::Address { .. }));
    let ping = go("web-0", "203.0.113.5").unwrap();
    assert_eq!((ping.protocol, ping.flows[0].port), (Protocol::Icmp, None));
    assert_eq!(outside.nodes(), ["worker-1".to_owned()].into());
    let nobody = go("web-0", "10.244.2.77:80").unwrap();
    assert_eq!(
        nobody.nodes(),
        ["worker-1", "worker-2"].map(str::to_owned).into()
    );
    assert!(
        nobody.notes[0].contains("pod range of node worker-2"),
        "{:?}",
        nobody.notes
    );
    let text = trouble("203.0.113.5", "node/worker-1:30080");
    assert!(text.contains("packets from outside"), "{text}");
    assert!(
        text.contains("netpath trace node/worker-2 node/worker-1:30080 -n shop"),
        "{text}"
    );
}

#[test]
fn nodes_and_node_ports() {
    let found = go("node/worker-1", "node/worker-2:30080").unwrap();
    assert_eq!(found.destination.service().unwrap().entry, Entry::NodePort);
    assert_eq!(found.flows[0].destination.to_string(), "192.0.2.12");
    assert_eq!(found.nodes().len(), 2);
    assert!(trouble("node/worker-3", "api").contains("node/worker-1"));
    assert!(trouble("worker-1", "api").contains("kubectl netpath trace node/worker-1 api"));
    assert!(trouble("web-0", "worker-1:80").contains("node/worker-1:80"));
}

#[test]
fn headless_services_give_one_flow_for_each_pod() {
    let found = go("web-0", "db").unwrap();
    assert_eq!(found.flows.len(), 2);
    assert!((found.flows[0].probability - 0.5).abs() < 1e-9);
    assert_eq!(found.flows[0].port, Some(80), "nobody translates the port");
    assert!(
        found
            .notes
            .iter()
            .any(|n| n.contains("port 80 is not translated to 8080")),
        "{:?}",
        found.notes
    );
}

#[test]
fn external_names() {
    let found = go("web-0", "ext:5432").unwrap();
    assert!(
        matches!(&found.destination, Destination::Name { host, .. } if host == "db.example.com")
    );
    assert!(found.flows.is_empty());
    let mut found = go("web-0", "ext:5432").unwrap();
    let address = "203.0.113.9".parse().unwrap();
    found.looked_up(&[address], None, None).unwrap();
    assert_eq!(
        (found.flows[0].destination, found.flows[0].port),
        (address, Some(5432))
    );
    let six = "2001:db8::1".parse().unwrap();
    assert!(found.looked_up(&[six], None, None).is_err());
    assert!(trouble("web-0", "ext").contains("add :PORT"));
    assert_eq!(
        go("web-0", "alias").unwrap().destination.describe(),
        "svc shop/api"
    );
}

#[test]
fn urls_and_dns_names() {
    assert_eq!(
        go("web-0", "http://api.shop/v1")
            .unwrap()
            .destination
            .describe(),
        "svc shop/api"
    );
    assert_eq!(
        go("web-0", "http://api.shop.svc.cluster.local")
            .unwrap()
            .destination
            .describe(),
        "svc shop/api"
    );
    assert_eq!(
        go("web-0", "api.shop.svc:80")
            .unwrap()
            .destination
            .describe(),
        "svc shop/api"
    );
    assert!(matches!(
        go("web-0", "https://example.com").unwrap().destination,
        Destination::Name { .. }
    ));
    assert!(trouble("web-0", "http://apii:80").contains("svc/api:80"));
}

#[test]
fn services_without_ready_endpoints_are_noted_not_refused() {
    let found = go("web-0", "empty").unwrap();
    assert!(
        found
            .notes
            .iter()
            .any(|n| n.contains("no endpoints: no pod matches app=empty")),
        "{:?}",
        found.notes
    );
    assert_eq!(found.flows.len(), 1);
}

#[test]
fn troubles_say_what_to_type() {
    let text = trouble("slow-0", "api");
    assert!(
        text.contains("phase Pending, ImagePullBackOff: no such image"),
        "{text}"
    );
    assert!(
        text.contains("kubectl describe pod -n shop slow-0"),
        "{text}"
    );
    let text = trouble("web-2", "api");
    assert!(
        text.contains("pod \"web-2\": not found in namespace shop; did you mean"),
        "{text}"
    );
    assert!(
        text.contains("kubectl netpath trace pod/web-0 api -n shop"),
        "{text}"
    );
    let text = trouble("web-0", "api.shpo");
    assert!(text.contains("no namespace \"shpo\""), "{text}");
    assert!(text.contains("svc/api.shop"), "{text}");
    let text = trouble("svc/api", "web-0");
    assert!(text.contains("sends no packets"), "{text}");
    assert!(text.contains("pod/api-5d-x2"), "{text}");
    // The right name in another namespace is the nearest of all.
    let text = trouble("web-0", "dns");
    assert!(text.contains("svc/dns.kube-system"), "{text}");
    assert!(trouble("http://x", "api").contains("URL names a destination"));
}

#[test]
fn families() {
    let mut asked = ask("web-0", "api");
    asked.family = Some(Family::V6);
    let text = resolve(&view(), &asked).unwrap_err().to_string();
    assert!(
        text.contains("the source has IPv4 addresses, the destination IPv4; IPv6 was asked for"),
        "{text}"
    );
    let mut objects = cluster();
    objects.push(json!({"kind": "Pod", "metadata": {"namespace": "shop", "name": "dual"}, "spec": {"nodeName": "worker-1"},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.20"}, {"ip": "fd00::20"}]}}));
    objects.push(
        json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "six"},
        "spec": {"clusterIPs": ["10.96.1.1", "fd00:96::1"], "ports": [{"port": 80}]}}),
    );
    let view = ClusterView::from_objects(&objects).unwrap();
    let mut asked = ask("dual", "six");
    assert_eq!(
        resolve(&view, &asked).unwrap().flows[0]
            .destination
            .to_string(),
        "10.96.1.1"
    );
    asked.family = Some(Family::V6);
    let flow = resolve(&view, &asked).unwrap().flows.remove(0);
    assert_eq!(
        (flow.source.to_string(), flow.destination.to_string()),
        ("fd00::20".to_owned(), "fd00:96::1".to_owned())
    );
}

#[test]
fn unreadable_lists_are_not_absence() {
    let mut view = view();
    view.pods.clear();
    view.unread.push(Unread {
        resource: "pods".to_owned(),
        read_instead: vec![],
        why: "pods is forbidden".to_owned(),
    });
    let text = resolve(&view, &ask("web-0", "api"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("pods were not readable"), "{text}");
}

#[test]
fn names_for_the_output() {
    let names = names::names(&view());
    assert_eq!(
        names.pod_by_ip("10.244.1.7".parse().unwrap()).unwrap().name,
        "web-0"
    );
    assert_eq!(names.pod_by_uid("uid-web-0").unwrap().name, "web-0");
    let service = names.service_by_ip("10.96.14.3".parse().unwrap()).unwrap();
    assert_eq!(
        (
            service.name.as_str(),
            service.endpoints.len(),
            service.ports[0].node_port
        ),
        ("api", 2, Some(30080))
    );
    let node = names.node_by_ip("192.0.2.11".parse().unwrap()).unwrap();
    assert_eq!((node.name.as_str(), node.pod_cidrs.len()), ("worker-1", 1));
}

#[test]
fn hostile_objects_are_refused_not_panicked_on() {
    for object in [
        json!({"kind": "Pod", "metadata": {"name": 5}}),
        json!({"kind": "Pod", "spec": 5}),
        json!({"kind": "Service", "spec": {"ports": [{"port": 99_999}]}}),
    ] {
        assert!(
            ClusterView::from_objects(std::slice::from_ref(&object)).is_err(),
            "{object}"
        );
    }
    for object in [
        json!({"kind": "Pod"}),
        json!({"kind": "EndpointSlice"}),
        json!({}),
        json!(null),
    ] {
        assert!(
            ClusterView::from_objects(std::slice::from_ref(&object)).is_ok(),
            "{object}"
        );
    }
}

/// The words of a command as a POSIX shell would take them, as far as these commands need one.
fn words(command: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = false;
    for c in command.chars() {
        match (quote, c) {
            (_, '\'') => {
                quote = !quote;
                word.get_or_insert_default();
            }
            (false, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn proposed_commands_are_understood() {
    let odd = ["-n", "shop", "--context", "'my context'", "--as", "'a b'"].map(str::to_owned);
    let mut seen = 0;
    let ends = [
        "web-0",
        "web",
        "wbe-0",
        "both",
        "worker-1",
        "pod/worker-1",
        "node/worker-9",
        "svc/apii",
        "deploy/apii",
        "deploy/idle",
        "kube-system/dns",
        "dns.kube-system",
        "shpo/web-0",
        "pdo/web-0",
        "api",
        "two",
        "pod/two:sql",
        "api:9999",
        "api:30080",
        "web-0.shpo",
        "slow-0",
        "svc/both:81",
        "http://apii/?a=b&c=d",
        "10.96.14.3",
        "nowhere",
        "203.0.113.5",
    ];
    let mut commands: Vec<(String, bool)> = Vec::new();
    for end in ends {
        for (source, destination) in [
            (end, "api"),
            ("web-0", end),
            ("web-0", "http://apii/?a=b&c=d"),
        ] {
            let asked = Ask {
                flags: odd.to_vec(),
                ..ask(source, destination)
            };
            if let Err(error) = resolve(&view(), &asked) {
                let text = error.to_string();
                let lines = text
                    .lines()
                    .filter_map(|line| line.strip_prefix("  kubectl"));
                commands.extend(lines.map(|line| (format!("kubectl{line}"), true)));
            }
        }
        for command in ["map", "dump routes"] {
            let asked = Ask {
                command: format!("kubectl netpath {command}"),
                flags: odd.to_vec(),
                ..ask(end, "")
            };
            if let Err(error) = resolve_place(&view(), &asked) {
                let text = error.to_string();
                let lines = text
                    .lines()
                    .filter_map(|line| line.strip_prefix("  kubectl"));
                commands.extend(lines.map(|line| (format!("kubectl{line}"), false)));
            }
        }
    }
    for (command, trace) in commands {
        let command = command.split("  #").next().unwrap().trim_end();
        let mut args = words(command);
        assert_eq!(
            args.drain(..2).collect::<Vec<_>>(),
            ["kubectl", "netpath"],
            "{command}"
        );
        args.insert(0, "kubectl-netpath".to_owned());
        let parsed = crate::cli::parse(args.iter().map(Into::into));
        let cli = parsed.unwrap_or_else(|error| panic!("{command}: {error}"));
        assert_eq!(cli.global.connection.context.as_deref(), Some("my context"));
        match cli.command {
            crate::cli::Command::Trace(args) => {
                assert!(trace);
                parse_end(&args.source).unwrap();
                parse_end(&args.destination).unwrap();
            }
            crate::cli::Command::Dump(args) => drop(parse_end(&args.place).unwrap()),
            crate::cli::Command::Map(args) => drop(parse_end(&args.what.unwrap()).unwrap()),
            other => panic!("{other:?}"),
        }
        seen += 1;
    }
    assert!(seen > 20, "only {seen}");
}

#[test]
fn a_namespace_before_the_slash() {
    let found = go("shop/web-0", "kube-system/dns:metrics").unwrap();
    assert_eq!(found.source.describe(), "pod shop/web-0");
    assert_eq!(found.destination.describe(), "svc kube-system/dns");
    let text = trouble("pdo/web-0", "api");
    assert!(
        text.contains("no namespace \"pdo\", nor such a type"),
        "{text}"
    );
    assert!(text.contains("trace pod/web-0 api"), "{text}");
    // A namespace that is called like a type.
    let mut objects = cluster();
    objects.push(json!({"kind": "Namespace", "metadata": {"name": "node"}}));
    objects.push(pod("node", "web-9", "worker-1", "10.244.1.99"));
    let view = ClusterView::from_objects(&objects).unwrap();
    let text = resolve(&view, &ask("node/web-9", "api"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("trace pod/web-9.node api"), "{text}");
}

#[test]
fn localhost_is_the_sender_itself() {
    for (family, typed, wanted, port) in [
        (None, "localhost:30080", "127.0.0.1", Some(30080)),
        (Some(Family::V6), "localhost:30080", "::1", Some(30080)),
        (None, "http://localhost/", "127.0.0.1", Some(80)),
        (None, "localhost", "127.0.0.1", None),
    ] {
        let mut ask = ask("web-0", typed);
        ask.family = family;
        // A pod without an IPv6 address has ::1 all the same.
        let found = resolve(&view(), &ask).unwrap();
        let flow = &found.flows[0];
        assert_eq!(flow.destination.to_string(), wanted, "{typed}");
        assert_eq!(flow.port, port, "{typed}");
    }
}

#[test]
fn a_protocol_that_the_service_does_not_have_is_named() {
    for (typed, why) in [
        ("svc/api:80", "has port 80, but not for sctp"),
        ("svc/api", "has no sctp port"),
    ] {
        let mut ask = ask("web-0", typed);
        ask.protocol = Some(Protocol::Sctp);
        let error = resolve(&view(), &ask).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(
            error.contains("kubectl netpath trace web-0 svc/api"),
            "{error}"
        );
        assert!(!error.contains("has no port \"sctp\""), "{error}");
    }
}
