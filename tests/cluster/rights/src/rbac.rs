//! docs/rbac.yaml suffices, and each right in it is needed: without it an error names it, or an answer says what
//! is missing in it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, HELPERS, NAMESPACE, Said, text, until};

/// Who has the roles and nothing else.
pub const PERSON: &str = "system:serviceaccount:netpath-rights:person";
const ROLES: &str = "docs/rbac.yaml";

/// One verb on one resource of one role.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Right {
    kind: String,
    resource: String,
    verb: String,
}

/// What becomes of a command when a right is missing.
enum Without {
    /// It fails with code 2; these are in the error, the first of them once.
    Fails(&'static str, &'static [&'static str]),
    /// It ends with this code, and these are in its output or its warnings.
    Tells(&'static str, i32, &'static [&'static str]),
    /// It proposes nothing.
    Nothing(&'static str),
}

/// Kubeconfig of a service account of this program's namespace.
pub fn kubeconfig(cluster: &Cluster, account: &str) -> Result<PathBuf> {
    let token = cluster.kubectl(&format!(
        "create token {account} -n {NAMESPACE} --duration=2h"
    ))?;
    let path = cluster.file(&format!("{account}.kubeconfig"));
    let admin = cluster.kubectl("config view --raw -o json")?;
    let mut config: Value = serde_json::from_str(&admin).context("read the kubeconfig")?;
    config["users"] = json!([{"name": account, "user": {"token": token.trim()}}]);
    config["contexts"][0]["context"]["user"] = json!(account);
    std::fs::write(&path, config.to_string()).context("write a kubeconfig")?;
    Ok(path)
}

/// The objects of docs/rbac.yaml.
fn objects(cluster: &Cluster) -> Result<Vec<Value>> {
    let text = cluster.kubectl(&format!("create --dry-run=client -o json -f {ROLES}"))?;
    let parts = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let mut all = Vec::new();
    for part in parts {
        let part = part.with_context(|| format!("read {ROLES}"))?;
        match part["items"].as_array() {
            Some(items) => all.extend(items.iter().cloned()),
            None => all.push(part),
        }
    }
    Ok(all)
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// All rights that the roles give.
fn rights(objects: &[Value]) -> Vec<Right> {
    let mut all = Vec::new();
    for object in objects {
        for rule in object["rules"].as_array().into_iter().flatten() {
            for resource in strings(&rule["resources"]) {
                for verb in strings(&rule["verbs"]) {
                    all.push(Right {
                        kind: object["kind"].as_str().unwrap_or_default().to_owned(),
                        resource: resource.clone(),
                        verb,
                    });
                }
            }
        }
    }
    all
}

/// The objects with one right less.
fn without(objects: &[Value], right: &Right) -> Vec<Value> {
    let mut objects = objects.to_vec();
    for object in objects
        .iter_mut()
        .filter(|object| object["kind"] == *right.kind)
    {
        let mut rules = Vec::new();
        for rule in object["rules"].as_array().into_iter().flatten() {
            for resource in strings(&rule["resources"]) {
                let mut verbs = strings(&rule["verbs"]);
                verbs.retain(|verb| resource != right.resource || *verb != right.verb);
                if !verbs.is_empty() {
                    rules.push(json!({"apiGroups": rule["apiGroups"], "resources": [resource], "verbs": verbs}));
                }
            }
        }
        object["rules"] = json!(rules);
    }
    objects
}

/// Applies the roles and binds them to [`PERSON`].
pub fn give(cluster: &Cluster) -> Result<()> {
    let objects = objects(cluster)?;
    cluster.apply(&objects)?;
    cluster.apply(&bindings(&objects))?;
    for right in rights(&objects) {
        settle(cluster, &right, true)?;
    }
    Ok(())
}

/// Takes everything of [`give`] away again.
pub fn take(cluster: &Cluster) -> Result<()> {
    cluster.kubectl("delete clusterrolebinding netpath-rights --ignore-not-found")?;
    cluster
        .kubectl(&format!("delete -f {ROLES} --ignore-not-found"))
        .map(drop)
}

fn bindings(objects: &[Value]) -> Vec<Value> {
    let roles = objects.iter().filter(|object| object["rules"].is_array());
    roles
        .map(|role| {
            let kind = format!("{}Binding", role["kind"].as_str().unwrap_or_default());
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
                "metadata": {"name": "netpath-rights", "namespace": role["metadata"]["namespace"]},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role["kind"], "name": role["metadata"]["name"]},
                "subjects": [{"kind": "ServiceAccount", "name": "person", "namespace": NAMESPACE}],
            })
        })
        .collect()
}

/// Waits until the API server's authorizer has seen a change.
fn settle(cluster: &Cluster, right: &Right, has: bool) -> Result<()> {
    let (resource, sub) = match right.resource.split_once('/') {
        Some((resource, sub)) => (resource, format!("--subresource={sub}")),
        None => (right.resource.as_str(), String::new()),
    };
    let place = match right.kind.as_str() {
        "Role" => format!("-n {HELPERS}"),
        _ => "--all-namespaces".to_owned(),
    };
    let line = format!(
        "auth can-i {} {resource} {sub} {place} --as {PERSON}",
        right.verb
    );
    until(&line, Duration::from_secs(10), || {
        // can-i fails where the answer is no.
        Ok(cluster.kubectl(&line).is_ok() == has)
    })
}

/// A user with these roles and no other can do everything.
pub fn suffices(cluster: &Cluster) -> Result<()> {
    let person = kubeconfig(cluster, "person")?;
    let file = text(&cluster.file("rights.json"));
    for line in [
        "trace client svc/web",
        "trace client web-2:8080 --protocol udp",
        "trace deploy/front svc/web",
        "trace node/node-1 svc/web",
        "trace client node/node-2:19999 --keep 1m",
        "map",
        "map client",
        "map node/node-2",
        "dump routes node/node-1",
        "dump netfilter client",
        &format!("snapshot save {file}"),
    ] {
        let said = cluster.run_as(&person, line).context(line.to_owned())?;
        let refused = line.contains("19999");
        said.exits(i32::from(refused))
            .and_then(Said::silent)
            .context(line.to_owned())?;
    }
    let removed = cluster.run_as(&person, "cleanup")?.exits(0)?;
    removed.says(&["removed helper pod netpath/netpath-"])?;
    let words = |line: &str| cluster.run_as(&person, line)?.exits(0);
    words("__complete trace -n netpath-rights cli")?.says(&["client\tpod"])?;
    words("__complete trace -n netpath-rights client we")?.says(&["web\tService"])?;
    words("__complete dump routes node/")?.says(&["node/node-1", "node/node-2"])?;
    words(NAMESPACES)?.says(&["netpath-rights"])?;
    cluster.clean()
}

const TRACE: &str = "trace client svc/web";
/// Completion of a namespace.
const NAMESPACES: &str = "__complete trace -n netpath-r";

/// What is expected without a right; a right that nobody expects anything of is a mistake.
fn expected(right: &Right) -> Result<Vec<Without>> {
    use Without::{Fails, Nothing, Tells};
    Ok(match (right.verb.as_str(), right.resource.as_str()) {
        ("list", "pods") => vec![
            Fails(
                TRACE,
                &[
                    "cannot list resource \"pods\" in API group \"\" in the namespace \"netpath-rights\"",
                    "ask for the right to list pods",
                ],
            ),
            Tells(
                "map",
                3,
                &["not all pods could be listed", "can-i list pods"],
            ),
            Tells("dump routes node/node-2", 0, &[]),
            Fails(
                "cleanup",
                &[
                    "the right \"list pods\" in namespace netpath",
                    "can-i list pods",
                ],
            ),
        ],
        ("list", "services") => vec![
            Fails(
                TRACE,
                &[
                    "cannot list resource \"services\" in API group \"\" in the namespace \"netpath-rights\"",
                    "ask for the right to list services",
                ],
            ),
            Tells("trace client web-2:8080", 0, &[]),
        ],
        ("list", "nodes") => vec![
            Tells(TRACE, 0, &[]),
            Tells("trace node/node-1 web-2:8080", 0, &[]),
            Tells(
                "map",
                3,
                &[
                    "not all nodes could be listed",
                    "can-i list nodes",
                    "node-2",
                ],
            ),
        ],
        ("list", "endpointslices") => vec![Tells(
            TRACE,
            0,
            &[
                "the endpoints of Service netpath-rights/web could not be read",
                "cannot list resource \"endpointslices\"",
            ],
        )],
        ("list", "namespaces") => vec![Tells(TRACE, 0, &[]), Nothing(NAMESPACES)],
        ("list", "deployments") => vec![Fails(
            "trace deploy/front svc/web",
            &[
                "cannot list resource \"deployments\"",
                "ask for the right to list deployments",
            ],
        )],
        ("list", "statefulsets") => vec![Fails(
            "trace sts/front svc/web",
            &["cannot list resource \"statefulsets\""],
        )],
        ("list", "daemonsets") => vec![Fails(
            "trace ds/front svc/web",
            &["cannot list resource \"daemonsets\""],
        )],
        ("list", "replicasets") => vec![Fails(
            "trace rs/front svc/web",
            &["cannot list resource \"replicasets\""],
        )],
        ("create", "pods") => vec![
            Fails(
                TRACE,
                &[
                    "the right \"create pods\" in namespace netpath",
                    "can-i create pods -n netpath",
                    PERSON,
                ],
            ),
            Fails("map", &["the right \"create pods\" in namespace netpath"]),
        ],
        ("watch", "pods") => vec![Fails(
            TRACE,
            &[
                "the right \"watch pods\" in namespace netpath",
                "can-i watch pods",
            ],
        )],
        ("delete", "pods") => vec![Fails(
            TRACE,
            &[
                "the right \"delete pods\" in namespace netpath",
                "remove helper pod netpath/netpath-",
                "run kubectl delete pod -n netpath netpath-",
            ],
        )],
        ("get", "pods/exec") => vec![
            Fails(
                TRACE,
                &[
                    "the right \"get pods/exec\" in namespace netpath",
                    "can-i get pods --subresource=exec",
                ],
            ),
            Fails("map", &["the right \"get pods/exec\" in namespace netpath"]),
        ],
        // The server gives no reason for this one.
        ("create", "pods/exec") => vec![
            Fails(
                TRACE,
                &[
                    "the right \"create pods/exec\" in namespace netpath",
                    "can-i create pods --subresource=exec",
                ],
            ),
            Fails(
                "map",
                &["the right \"create pods/exec\" in namespace netpath"],
            ),
        ],
        _ => bail!(
            "nothing is expected without the right {right:?}: say in rbac.rs what becomes of it"
        ),
    })
}

/// Each right taken away in turn.
pub fn each_is_needed(cluster: &Cluster) -> Result<()> {
    let person = kubeconfig(cluster, "person")?;
    let objects = objects(cluster)?;
    let all = rights(&objects);
    ensure!(all.len() >= 10, "{ROLES} gives {} rights", all.len());
    let mut wrong = Vec::new();
    for right in all {
        cluster.apply(&without(&objects, &right))?;
        settle(cluster, &right, false)?;
        let judged = expected(&right).and_then(|expected| {
            expected
                .iter()
                .try_for_each(|without| judge(cluster, &person, &right, without))
        });
        if let Err(error) = judged {
            wrong.push(format!(
                "without {} {}: {error:#}",
                right.verb, right.resource
            ));
        }
        cluster.apply(&objects)?;
        settle(cluster, &right, true)?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n      "));
    Ok(())
}

fn judge(
    cluster: &Cluster,
    person: &std::path::Path,
    right: &Right,
    without: &Without,
) -> Result<()> {
    let line = match without {
        Without::Fails(line, _) | Without::Tells(line, ..) | Without::Nothing(line) => *line,
    };
    let said = cluster.run_as(person, line)?;
    let judged = match without {
        Without::Fails(_, parts) => said
            .exits(2)
            .and_then(|said| said.complains(parts))
            .and_then(|said| said.once(parts.first().copied().unwrap_or_default())),
        Without::Nothing(_) => said.exits(0).and_then(|said| {
            ensure!(!said.out.contains(NAMESPACE), "it proposes: {}", said.out);
            Ok(said)
        }),
        Without::Tells(_, code, parts) => said.exits(*code).and_then(|said| {
            let all = format!("{}{}", said.out, said.err);
            for part in *parts {
                ensure!(all.contains(part), "{part:?} is not in: {all}");
            }
            Ok(said)
        }),
    };
    let left = cluster.helpers()?;
    let said = judged.with_context(|| line.to_owned())?;
    if right.verb == "delete" && line == TRACE {
        // They stay, each is named, and the command that was printed removes them.
        ensure!(left.len() == 2, "{left:?}");
        for pod in &left {
            ensure!(
                said.err.contains(pod.as_str()),
                "{pod} is not in {}",
                said.err
            );
        }
        let command = said
            .err
            .split_once("; run kubectl ")
            .map(|(_, command)| command.trim());
        cluster.kubectl(command.context("a command is printed")?)?;
    }
    cluster.clean().with_context(|| line.to_owned())
}

/// Rights in one namespace only: its names are known, and nothing else is asked for.
pub fn one_namespace(cluster: &Cluster) -> Result<()> {
    let local = kubeconfig(cluster, "local")?;
    let bind = |name: &str, kind: &str, role: &str, namespace: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "local", "namespace": NAMESPACE}],
        })
    };
    cluster.apply(&[
        bind(
            "netpath-rights-local",
            "ClusterRole",
            "netpath-read",
            NAMESPACE,
        ),
        bind(
            "netpath-rights-local",
            "ClusterRole",
            "netpath-read",
            HELPERS,
        ),
        bind("netpath-rights-launch", "Role", "netpath-launch", HELPERS),
    ])?;
    let can =
        format!("auth can-i create pods -n {HELPERS} --as system:serviceaccount:{NAMESPACE}:local");
    until(&can, Duration::from_secs(10), || {
        Ok(cluster.kubectl(&can).is_ok())
    })?;
    for line in [
        TRACE,
        "trace client svc/web --keep 1m",
        "trace client svc/web --keep 1m",
        "map client",
    ] {
        let said = cluster.run_as(&local, line)?;
        said.exits(0)
            .and_then(Said::silent)
            .with_context(|| line.to_owned())?;
    }
    let warm = cluster.helpers()?;
    ensure!(warm.len() == 2, "warm helpers are used again: {warm:?}");
    let removed = cluster.run_as(&local, "cleanup")?.exits(0)?;
    removed.says(&["removed helper pod netpath/netpath-"])?;
    cluster.clean()
}

/// Who may only get objects by name traces between those that he names.
pub fn by_name(cluster: &Cluster) -> Result<()> {
    let gets = kubeconfig(cluster, "gets")?;
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let bind = |kind: &str, name: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "netpath-rights-gets", "namespace": if name == "netpath-launch" { HELPERS } else { NAMESPACE }},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "gets", "namespace": NAMESPACE}],
        })
    };
    cluster.apply(&[
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "netpath-rights-gets", "namespace": NAMESPACE},
            "rules": [rule("", "pods", &["get"]), rule("", "services", &["get"])]}),
        bind("Role", "netpath-rights-gets"),
        bind("Role", "netpath-launch"),
    ])?;
    let can =
        format!("auth can-i create pods -n {HELPERS} --as system:serviceaccount:{NAMESPACE}:gets");
    until(&can, Duration::from_secs(10), || {
        Ok(cluster.kubectl(&can).is_ok())
    })?;
    for line in ["trace client web-2:8080", "dump routes client", "map web-2"] {
        let said = cluster.run_as(&gets, line)?;
        said.exits(0)
            .and_then(Said::silent)
            .with_context(|| line.to_owned())?;
    }
    // The pods behind the Service are not known by name; what is known is right, the rest is said.
    let said = cluster.run_as(&gets, TRACE)?;
    ensure!(
        matches!(said.code, Some(0 | 3)),
        "exit code {:?}: {}{}",
        said.code,
        said.err,
        said.out
    );
    said.says(&["endpointslices"])?;
    let said = cluster.run_as(&gets, "trace client absent:80")?.exits(2)?;
    said.complains(&["ask for the right to list"])?;
    cluster.clean()
}

/// To wait for a helper pod, the right to get it does as well as that to watch it.
pub fn get_instead_of_watch(cluster: &Cluster) -> Result<()> {
    let person = kubeconfig(cluster, "person")?;
    let objects = objects(cluster)?;
    let right = |verb: &str| Right {
        kind: "Role".to_owned(),
        resource: "pods".to_owned(),
        verb: verb.to_owned(),
    };
    let mut changed = without(&objects, &right("watch"));
    for object in changed.iter_mut().filter(|object| object["kind"] == "Role") {
        if let Some(rules) = object["rules"].as_array_mut() {
            rules.push(json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}));
        }
    }
    cluster.apply(&changed)?;
    settle(cluster, &right("watch"), false)?;
    settle(cluster, &right("get"), true)?;
    let answers = [TRACE, "map client"].map(|line| {
        let said = cluster.run_as(&person, line)?.exits(0)?;
        said.silent().with_context(|| line.to_owned())
    });
    cluster.apply(&objects)?;
    settle(cluster, &right("watch"), true)?;
    for answer in answers {
        answer?;
    }
    cluster.clean()
}
