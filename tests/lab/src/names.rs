//! Names that Kubernetes and container runtimes derive by hashing, and stand-ins for random ones.
//!
//! What is random in a real cluster (uids, container ids, veth names) is derived from the
//! laboratory's name here, so that two runs of the same laboratory look the same.

use sha2::{Digest, Sha256};

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// The first `length` (at most 48) characters of the base32 form of `text`'s SHA-256.
fn base32_digest(text: &str, length: usize) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut name = String::new();
    let mut bits = 0_u32;
    let mut held = 0;
    for byte in digest(text) {
        bits = (bits << 8) | u32::from(byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            let index = (bits >> held) & 31;
            // The mask keeps the index below 32.
            name.push(char::from(ALPHABET[index as usize]));
        }
        bits &= (1 << held) - 1;
    }
    name.truncate(length);
    name
}

/// The 16 characters that follow `KUBE-SVC-`, `KUBE-EXT-`, ... for a service port.
///
/// `service_port` is `namespace/name:port`, or `namespace/name` for a port without name.
/// Source: kube-proxy, `portProtoHash()` in pkg/proxy/iptables/proxier.go (v1.36).
pub fn iptables_service(service_port: &str, protocol: &str) -> String {
    base32_digest(&format!("{service_port}{protocol}"), 16)
}

/// The 16 characters that follow `KUBE-SEP-`; `endpoint` is `ip:port`, IPv6 in brackets.
///
/// Source: kube-proxy, `servicePortEndpointChainName()` (v1.36).
pub fn iptables_endpoint(service_port: &str, protocol: &str, endpoint: &str) -> String {
    base32_digest(&format!("{service_port}{protocol}{endpoint}"), 16)
}

/// `HASH8-namespace/name/protocol/port`, which follows `service-`, `external-`, ... in nftables mode.
///
/// Source: kube-proxy, `hashAndTruncate()` in pkg/proxy/nftables/proxier.go (v1.36).
pub fn nftables_service(namespace: &str, name: &str, protocol: &str, port: &str) -> String {
    let plain = format!("{namespace}/{name}/{protocol}/{port}");
    format!("{}-{plain}", base32_digest(&plain, 8))
}

/// The first `length` (at most 64) hexadecimal digits of `text`'s SHA-256.
pub fn hex(text: &str, length: usize) -> String {
    let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
    let digits = digest(text)
        .into_iter()
        .flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(digit).take(length).collect()
}

/// A version 4 UUID made from `text`.
pub fn uid(text: &str) -> String {
    let digits = hex(text, 32);
    // `hex` gave 32 ASCII digits, so every slice exists.
    format!(
        "{}-{}-4{}-a{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[13..16],
        &digits[17..20],
        &digits[20..32]
    )
}

/// A locally administered unicast MAC address made from `text`.
pub fn mac(text: &str) -> String {
    let digits = hex(text, 10);
    // `hex` gave 10 ASCII digits, so every slice exists.
    let pairs = [0, 2, 4, 6, 8].map(|at| &digits[at..at + 2]);
    format!("0e:{}", pairs.join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_chain_names_are_kube_proxys() {
        assert_eq!(iptables_service("ns1/svc1:p80", "tcp"), "XPGD46QRK7WJZT7O");
        assert_eq!(iptables_service("ns2/svc2:p80", "tcp"), "GNZBNJ2PO5MGZ6GT");
    }

    #[test]
    fn endpoint_chain_names_are_kube_proxys() {
        assert_eq!(
            iptables_endpoint("ns1/svc1:p80", "tcp", "10.180.0.1:80"),
            "SXIVWICOYRO3J4NJ"
        );
    }

    #[test]
    fn nftables_names_are_kube_proxys() {
        assert_eq!(
            nftables_service("demo", "echo", "tcp", "tcp"),
            "2FUOSRYT-demo/echo/tcp/tcp"
        );
        assert_eq!(
            nftables_service("ns1", "svc1", "tcp", "p80"),
            "ULMVA6XW-ns1/svc1/tcp/p80"
        );
    }

    #[test]
    fn made_up_names_have_the_right_form() {
        let uid = uid("x");
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert_eq!(hex("x", 64).len(), 64);
        assert_eq!(mac("x").len(), 17);
    }
}
