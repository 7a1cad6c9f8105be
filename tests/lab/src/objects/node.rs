//! Node objects.

use serde_json::{Value, json};

use super::{condition, metadata};
use crate::address::{Family, NodePlan};
use crate::names;
use crate::spec::{Overlay, Spec};

pub(super) fn node(spec: &Spec, plan: NodePlan) -> Value {
    let name = plan.name();
    let mut meta = metadata(spec, "Node", "", &name);
    meta["labels"] = json!({
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "topology.kubernetes.io/zone": "lab-a",
    });
    meta["annotations"] = json!({
        "flannel.alpha.coreos.com/backend-type": match spec.overlay {
            Overlay::Vxlan => "vxlan",
            Overlay::Routed => "host-gw",
        },
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/public-ip": plan.node_ip(Family::V4),
        "flannel.alpha.coreos.com/public-ipv6": plan.node_ip(Family::V6),
    });
    if spec.overlay == Overlay::Vxlan {
        for (key, family) in [
            ("backend-data", Family::V4),
            ("backend-v6-data", Family::V6),
        ] {
            let mac = plan.vtep_mac(&spec.name, family);
            meta["annotations"][format!("flannel.alpha.coreos.com/{key}")] =
                json!(format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"));
        }
    }
    let cidrs = Family::BOTH.map(|family| plan.pod_cidr(family));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": meta,
        "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs },
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": plan.node_ip(Family::V4) },
                { "type": "InternalIP", "address": plan.node_ip(Family::V6) },
                { "type": "Hostname", "address": name },
            ],
            "capacity": { "cpu": "2", "memory": "4Gi", "pods": "110" },
            "allocatable": { "cpu": "2", "memory": "4Gi", "pods": "110" },
            "conditions": [
                condition("NetworkUnavailable", "False", "FlannelIsUp"),
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("Ready", "True", "KubeletReady"),
            ],
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": names::uid(&format!("{}/{name}/boot", spec.name)),
                "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": kernel_release(),
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.36.2",
                "machineID": names::hex(&format!("{}/{name}/machine", spec.name), 32),
                "operatingSystem": "linux",
                "osImage": "netpath laboratory",
                "systemUUID": names::uid(&format!("{}/{name}/system", spec.name)),
            },
        },
    })
}

/// Kernel release as `uname -r` prints it; says so where the kernel does not tell.
fn kernel_release() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => release.trim().to_owned(),
        Err(error) => format!("unknown ({error})"),
    }
}
