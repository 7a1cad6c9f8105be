//! Pod and container of a process, from the text of `/proc/PID/cgroup`.
//!
//! Pure. Spellings differ by cgroup version (v1, v2, hybrid), driver (cgroupfs, systemd), runtime
//! (containerd, CRI-O, docker, podman) and nesting (kind, docker in a pod); from a private cgroup
//! namespace paths start with `/../..`. So nothing is anchored: the last path component that holds a pod
//! UID names the pod, the last 64 hexadecimal digits name the container.

/// What a cgroup path says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupIdentity {
    /// Pod UID with dashes, or the 32 hexadecimal digits of a static pod's hash.
    pub pod_uid: Option<String>,
    /// Container id, 64 hexadecimal digits.
    pub container_id: Option<String>,
    /// Path components behind the pod's: 1 for its containers, more for what they nest.
    pub depth: usize,
    /// No line names anything but a root: cgroups are not used, or not to be seen from here.
    pub hidden: bool,
}

/// Reads the identity out of a whole cgroup file.
///
/// On v1 any controller's line will do; those of `name=systemd`, `pids` and v2 come first, because
/// some runtimes leave other controllers at the root.
pub fn parse(text: &str) -> CgroupIdentity {
    let mut lines: Vec<(u8, &str)> = text.lines().filter_map(line).collect();
    let root = |path: &str| path.split('/').all(|part| part.is_empty() || part == "..");
    let mut best = CgroupIdentity {
        hidden: lines.iter().all(|(_, path)| root(path)),
        ..CgroupIdentity::default()
    };
    lines.sort_by_key(|(rank, _)| *rank);
    for (_, path) in lines {
        let found = path_identity(path);
        let better = (found.pod_uid.is_some(), found.container_id.is_some())
            > (best.pod_uid.is_some(), best.container_id.is_some());
        if better {
            best = found;
        }
    }
    best
}

/// `hierarchy:controllers:path`, with the rank of the controller.
fn line(text: &str) -> Option<(u8, &str)> {
    let (_, rest) = text.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let rank = match controllers {
        "name=systemd" => 0,
        "" | "pids" => 1,
        _ => 2,
    };
    Some((rank, path))
}

/// Reads the identity out of one path.
fn path_identity(path: &str) -> CgroupIdentity {
    let components: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let pod = components
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, part)| Some((at, uid_in(part)?)));
    let container_id = components.iter().rev().find_map(|part| hex_run(part, 64));
    CgroupIdentity {
        hidden: false,
        depth: pod
            .as_ref()
            .map_or(0, |(at, _)| components.len().saturating_sub(at + 1)),
        pod_uid: pod.map(|(_, uid)| uid),
        container_id,
    }
}

/// The UID behind the last `pod` of a component that is followed by one.
fn uid_in(component: &str) -> Option<String> {
    component
        .match_indices("pod")
        .filter_map(|(at, word)| uid_at(component.get(at + word.len()..)?))
        .last()
}

/// A UID at the start of a text: 8-4-4-4-12 digits with `-` or `_`, or 32 digits.
fn uid_at(text: &str) -> Option<String> {
    let end = text
        .find(|c: char| !(c.is_ascii_hexdigit() || c == '-' || c == '_'))
        .unwrap_or(text.len());
    let run = text.get(..end)?;
    let dashed: String = run
        .chars()
        .map(|c| if c == '_' { '-' } else { c })
        .collect();
    let groups: Vec<usize> = dashed.split('-').map(str::len).collect();
    if groups == [8, 4, 4, 4, 12] || groups == [32] {
        Some(dashed.to_ascii_lowercase())
    } else {
        None
    }
}

/// The first run of exactly `len` hexadecimal digits.
fn hex_run(text: &str, len: usize) -> Option<String> {
    text.split(|c: char| !c.is_ascii_hexdigit())
        .find(|run| run.len() == len)
        .map(str::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f5b2d1c-5b8e-4c5e-9d5c-0a1b2c3d4e5f";
    const ID: &str = "3a1f0c9d8b7e6f5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a";
    const OUTER: &str = "9999999999999999999999999999999999999999999999999999999999999999";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    fn check(text: &str, uid: &str, id: Option<&str>, depth: usize) {
        let found = parse(text);
        assert_eq!(found.pod_uid.as_deref(), Some(uid), "{text}");
        assert_eq!(found.container_id.as_deref(), id, "{text}");
        assert_eq!(found.depth, depth, "{text}");
    }

    #[test]
    fn cgroupfs_containerd_and_docker() {
        for class in ["", "/burstable", "/besteffort"] {
            check(
                &format!("0::/kubepods{class}/pod{UID}/{ID}"),
                UID,
                Some(ID),
                1,
            );
            check(
                &format!(
                    "12:pids:/kubepods{class}/pod{UID}/{ID}\n1:name=systemd:/kubepods{class}/pod{UID}/{ID}\n0::/\n"
                ),
                UID,
                Some(ID),
                1,
            );
        }
    }

    #[test]
    fn cgroupfs_crio() {
        check(
            &format!("0::/kubepods/burstable/pod{UID}/crio-{ID}"),
            UID,
            Some(ID),
            1,
        );
        check(
            &format!("0::/kubepods/burstable/pod{UID}/crio-conmon-{ID}"),
            UID,
            Some(ID),
            1,
        );
    }

    #[test]
    fn systemd_with_every_runtime() {
        let uid = UID.replace('-', "_");
        for class in ["", "-burstable", "-besteffort"] {
            let parent = if class.is_empty() {
                String::new()
            } else {
                format!("/kubepods{class}.slice")
            };
            for leaf in [
                format!("cri-containerd-{ID}.scope"),
                format!("crio-{ID}.scope"),
                format!("docker-{ID}.scope"),
                format!("libpod-{ID}.scope"),
            ] {
                check(
                    &format!("0::/kubepods.slice{parent}/kubepods{class}-pod{uid}.slice/{leaf}"),
                    UID,
                    Some(ID),
                    1,
                );
            }
        }
        check(
            &format!("0::/kubepods.slice/kubepods-pod{uid}.slice/crio-{ID}.scope/container"),
            UID,
            Some(ID),
            2,
        );
    }

    #[test]
    fn containerd_whose_driver_differs_from_the_kubelets() {
        let uid = UID.replace('-', "_");
        check(
            &format!(
                "1:name=systemd:/system.slice/containerd.service/kubepods-besteffort-pod{uid}.slice:cri-containerd:{ID}"
            ),
            UID,
            Some(ID),
            0,
        );
    }

    #[test]
    fn kind_and_cgroup_roots() {
        let uid = UID.replace('-', "_");
        check(
            &format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{uid}.slice/cri-containerd-{ID}.scope"
            ),
            UID,
            Some(ID),
            1,
        );
        check(
            &format!("11:memory:/docker/{OUTER}/kubelet/kubepods/besteffort/pod{UID}/{ID}"),
            UID,
            Some(ID),
            1,
        );
    }

    #[test]
    fn static_pods_and_private_cgroup_namespaces() {
        check(
            &format!("0::/kubepods/burstable/pod{STATIC}/{ID}"),
            STATIC,
            Some(ID),
            1,
        );
        check(
            &format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/cri-containerd-{ID}.scope"
            ),
            STATIC,
            Some(ID),
            1,
        );
        let uid = UID.replace('-', "_");
        check(
            &format!("0::/../../../kubepods-pod{uid}.slice/cri-containerd-{ID}.scope"),
            UID,
            Some(ID),
            1,
        );
    }

    #[test]
    fn hybrid_with_controllers_left_at_the_root() {
        let uid = UID.replace('-', "_");
        check(
            &format!(
                "9:hugetlb:/\n5:devices:/system.slice\n1:name=systemd:/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{ID}.scope\n0::/system.slice/containerd.service"
            ),
            UID,
            Some(ID),
            1,
        );
    }

    #[test]
    fn docker_inside_a_pod_is_nested() {
        check(
            &format!("0::/kubepods/pod{UID}/{OUTER}/docker/{ID}"),
            UID,
            Some(ID),
            3,
        );
    }

    #[test]
    fn what_is_no_pod() {
        for text in [
            "",
            "0::/",
            "0::/init.scope",
            "0::/user.slice/user-1000.slice/session-3.scope",
            "0::/system.slice/podman-api.service",
            "nonsense",
        ] {
            assert_eq!(parse(text).pod_uid, None, "{text}");
        }
        assert!(
            parse("0::/").hidden && parse("0::/../..").hidden && !parse("0::/init.scope").hidden
        );
        let plain = parse(&format!("0::/system.slice/docker-{ID}.scope"));
        assert_eq!(
            (plain.pod_uid, plain.container_id.as_deref()),
            (None, Some(ID))
        );
    }
}
