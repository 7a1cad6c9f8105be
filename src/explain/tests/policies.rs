//! NetworkPolicies that sets enforce.

use super::*;
use crate::model::netfilter::{Backend, ChainKind, Family, Hook};
use crate::trace::evidence::ChainRef;

#[test]
fn a_denied_flow_names_rule_chain_and_set() {
    let rule = |chain: &str, text: &str| Evidence::NetfilterRule {
        base: ChainRef {
            backend: Backend::Legacy,
            family: Family::Ip,
            table: "filter".to_owned(),
            chain: "FORWARD".to_owned(),
            hook: Hook::Forward,
            priority: 0,
            kind: ChainKind::Filter,
        },
        chain: chain.to_owned(),
        handle: 2,
        text: text.to_owned(),
        comment: None,
        counters: None,
    };
    let mut refused = step(StepKind::Netfilter, "rejected with port unreachable");
    refused.evidence = vec![
        rule("FORWARD", "-d 10.0.0.2/32 -j KUBE-POD-FW-Y"),
        rule("KUBE-POD-FW-Y", "-m mark ! --mark 0x10000 -j REJECT"),
        Evidence::SetElement {
            set: "KUBE-SRC-A".to_owned(),
            text: "10.0.0.1 is no member (2 members), so that rule 1 of chain KUBE-NWPLCY-X does not match"
                .to_owned(),
        },
    ];
    let end = Disposition::Rejected(RejectWith::PortUnreachable);
    let answer = explained(&[trace(1.0, end, refused)]);
    let [finding] = answer.findings.as_slice() else {
        panic!("{:?}", answer.findings);
    };
    assert_eq!(finding.code.code, "NP0119");
    assert_eq!(
        finding.title,
        "a network policy's rules drop the packet in net:[7] on n1 by KUBE-POD-FW-Y (kube-router: network policies of one pod)"
    );
    assert_eq!(
        finding.evidence,
        [
            "rejected with port unreachable",
            "rule: ip filter KUBE-POD-FW-Y (kube-router: network policies of one pod), rule 2: -m mark ! --mark 0x10000 -j REJECT",
            "set KUBE-SRC-A: 10.0.0.1 is no member (2 members), so that rule 1 of chain KUBE-NWPLCY-X does not match",
        ]
    );
}
