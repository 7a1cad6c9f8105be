//! The fixed documents by which clients find out what exists.

use serde_json::{Value, json};

/// One resource: group, kind, plural, short names, namespaced, verbs.
struct Resource {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
    verbs: &'static [&'static str],
}

const READ: &[&str] = &["get", "list", "watch"];
const POD: &[&str] = &["create", "delete", "get", "list", "watch"];
const CREATE: &[&str] = &["create"];

const fn of(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
) -> Resource {
    Resource {
        group,
        kind,
        plural,
        short,
        namespaced: true,
        verbs: READ,
    }
}

const RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        ..of("", "Namespace", "namespaces", &["ns"])
    },
    Resource {
        namespaced: false,
        ..of("", "Node", "nodes", &["no"])
    },
    Resource {
        verbs: POD,
        ..of("", "Pod", "pods", &["po"])
    },
    Resource {
        verbs: &["create", "get"],
        ..of("", "PodExecOptions", "pods/exec", &[])
    },
    of("", "Service", "services", &["svc"]),
    of("apps", "DaemonSet", "daemonsets", &["ds"]),
    of("apps", "Deployment", "deployments", &["deploy"]),
    of("apps", "ReplicaSet", "replicasets", &["rs"]),
    of("apps", "StatefulSet", "statefulsets", &["sts"]),
    of("discovery.k8s.io", "EndpointSlice", "endpointslices", &[]),
    Resource {
        namespaced: false,
        verbs: CREATE,
        ..of(
            "authorization.k8s.io",
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            &[],
        )
    },
    Resource {
        namespaced: false,
        verbs: CREATE,
        ..of(
            "authentication.k8s.io",
            "SelfSubjectReview",
            "selfsubjectreviews",
            &[],
        )
    },
];

/// Plural of a kind.
pub(super) fn plural_of(kind: &str) -> Option<&'static str> {
    RESOURCES.iter().find(|r| r.kind == kind).map(|r| r.plural)
}

/// Kind and `apiVersion` of a resource.
pub(super) fn kind_of(plural: &str) -> Option<(&'static str, String)> {
    let found = RESOURCES.iter().find(|r| r.plural == plural)?;
    Some((found.kind, version_of(found.group)))
}

/// Whether a group serves a resource.
pub(super) fn serves(group: &str, plural: &str) -> bool {
    RESOURCES
        .iter()
        .any(|r| r.group == group && r.plural == plural)
}

fn version_of(group: &str) -> String {
    if group.is_empty() {
        "v1".to_owned()
    } else {
        format!("{group}/v1")
    }
}

/// The document at a path, if the path is one of discovery's.
pub(super) fn document(path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    Some(match parts.as_slice() {
        ["version"] => json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.0+netpath-lab", "gitCommit": "",
            "gitTreeState": "clean", "buildDate": "2026-11-21T00:00:00Z",
            "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
        }),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
        }),
        ["apis"] => {
            let mut names: Vec<&str> = RESOURCES
                .iter()
                .map(|r| r.group)
                .filter(|g| !g.is_empty())
                .collect();
            names.dedup();
            let groups: Vec<Value> = names.into_iter().map(group).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["api", "v1"] => resources(""),
        ["apis", name, "v1"] if known(name) => resources(name),
        ["apis", name] if known(name) => {
            let mut document = group(name);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            document
        }
        _ => return None,
    })
}

fn known(name: &str) -> bool {
    RESOURCES.iter().any(|r| r.group == name)
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn resources(group: &str) -> Value {
    let list: Vec<Value> = RESOURCES
        .iter()
        .filter(|r| r.group == group)
        .map(|r| {
            json!({
                "name": r.plural, "singularName": r.kind.to_lowercase(), "namespaced": r.namespaced,
                "kind": r.kind, "verbs": r.verbs, "shortNames": r.short,
            })
        })
        .collect();
    json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": version_of(group), "resources": list,
    })
}
