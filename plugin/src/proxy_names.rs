//! Which Service a chain of kube-proxy's iptables mode belongs to.
//!
//! Comments say so, too, but kube-proxy leaves them out in large clusters, so the names' hashes are
//! made again. Source: `portProtoHash()` and `servicePortEndpointChainName()`,
//! pkg/proxy/iptables/proxier.go (Kubernetes 1.36).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpath::explain::ChainNames;
use netpath::explain::words;
use netpath::model::names::{Names, ServiceName, ServicePort};
use netpath::model::topology::Topology;
use sha2::{Digest, Sha256};

/// Prefixes of chains that are named by Service port alone.
const OF_PORT: [&str; 5] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-XLB-",
];
/// Prefix of chains that are named by Service port and endpoint.
const OF_ENDPOINT: &str = "KUBE-SEP-";

/// Names for those of `chains` that belong to a Service in `names`.
pub fn chain_names(names: &Names, chains: &BTreeSet<String>) -> ChainNames {
    // By hash, since several prefixes share one.
    let mut wanted: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for chain in chains {
        let prefixes = OF_PORT.iter().chain([&OF_ENDPOINT]);
        for hash in prefixes.filter_map(|prefix| chain.strip_prefix(prefix)) {
            wanted.entry(hash).or_default().push(chain);
        }
    }
    let mut found = ChainNames::new();
    if wanted.is_empty() {
        return found;
    }
    let with_endpoints = chains.iter().any(|chain| chain.starts_with(OF_ENDPOINT));
    for service in &names.services {
        for port in &service.ports {
            let base = port_name(service, port);
            let protocol = words::protocol(port.protocol);
            if let Some(chains) = wanted.get(hash(&format!("{base}{protocol}")).as_str()) {
                for chain in chains {
                    found.insert((*chain).to_owned(), base.clone());
                }
            }
            if !with_endpoints {
                continue;
            }
            let of_port = service
                .endpoints
                .iter()
                .filter(|e| e.port_name == port.name && e.protocol == port.protocol);
            for endpoint in of_port {
                let address = endpoint_name(endpoint.ip, endpoint.port);
                let text = format!("{base}{protocol}{address}");
                if let Some(chains) = wanted.get(hash(&text).as_str()) {
                    for chain in chains {
                        found.insert((*chain).to_owned(), format!("{base} at {address}"));
                    }
                }
            }
        }
    }
    found
}

/// Names for all chains that were read and belong to a Service in `names`.
pub fn all_chain_names(topology: &Topology, names: &Names) -> ChainNames {
    let spaces = topology.all().map(|(_, ns)| ns);
    let rulesets = spaces.flat_map(|ns| [ns.nft.known(), ns.legacy.known()]);
    let tables = rulesets.flatten().flat_map(|rules| &rules.tables);
    let chains = tables.flat_map(|table| table.chains.keys().cloned());
    chain_names(names, &chains.collect())
}

/// kube-proxy's ServicePortName: `ns/name:port`, without the port where it has no name.
fn port_name(service: &ServiceName, port: &ServicePort) -> String {
    if port.name.is_empty() {
        format!("{}/{}", service.namespace, service.name)
    } else {
        format!("{}/{}:{}", service.namespace, service.name, port.name)
    }
}

fn endpoint_name(ip: IpAddr, port: Option<u16>) -> String {
    words::socket_addr(ip, Some(port.unwrap_or_default()))
}

/// The first 16 characters of the base32 of the SHA-256.
fn hash(text: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(text.as_bytes());
    // 16 characters are 80 bits: the first ten bytes.
    let mut bits = digest
        .iter()
        .take(10)
        .fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    let mut text = [0u8; 16];
    for place in text.iter_mut().rev() {
        // Five bits are at most 31, an index of the 32 characters.
        *place = ALPHABET[(bits & 31) as usize];
        bits >>= 5;
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpath::model::names::Endpoint;

    #[test]
    fn hashes_are_those_of_kube_proxy() {
        assert_eq!(hash("ns1/svc1:p80tcp"), "XPGD46QRK7WJZT7O");
        assert_eq!(hash("ns2/svc2:p80tcp"), "GNZBNJ2PO5MGZ6GT");
        assert_eq!(hash("ns1/svc1:p80tcp10.180.0.1:80"), "SXIVWICOYRO3J4NJ");
    }

    #[test]
    fn chains_get_their_services_name() {
        let names = Names {
            services: vec![ServiceName {
                namespace: "ns1".to_owned(),
                name: "svc1".to_owned(),
                ports: vec![ServicePort {
                    name: "p80".to_owned(),
                    port: 80,
                    protocol: 6,
                    node_port: None,
                }],
                endpoints: vec![Endpoint {
                    ip: "10.180.0.1".parse().unwrap(),
                    port: Some(80),
                    port_name: "p80".to_owned(),
                    protocol: 6,
                    node: None,
                    pod: None,
                    ready: true,
                    serving: true,
                    terminating: false,
                    hint_zones: Vec::new(),
                    hint_nodes: Vec::new(),
                    disputed: false,
                }],
                ..ServiceName::default()
            }],
            ..Names::default()
        };
        let chains = [
            "KUBE-SERVICES",
            "KUBE-SVC-XPGD46QRK7WJZT7O",
            "KUBE-EXT-XPGD46QRK7WJZT7O",
            "KUBE-SEP-SXIVWICOYRO3J4NJ",
            "KUBE-SVC-AAAAAAAAAAAAAAAA",
        ];
        let found = chain_names(&names, &chains.map(str::to_owned).into());
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("KUBE-EXT-XPGD46QRK7WJZT7O", "ns1/svc1:p80"),
                ("KUBE-SEP-SXIVWICOYRO3J4NJ", "ns1/svc1:p80 at 10.180.0.1:80"),
                ("KUBE-SVC-XPGD46QRK7WJZT7O", "ns1/svc1:p80"),
            ]
        );
    }
}
