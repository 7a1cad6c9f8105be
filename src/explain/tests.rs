use super::*;
use crate::model::NetNsId;
use crate::model::names::Names;
use crate::model::packet::{L4, TCP};
use crate::model::topology::Topology;
use crate::trace::{DropReason, Evidence, Hop, RejectWith, Step, StepKind};

fn trace(probability: f64, disposition: Disposition, step: Step) -> Trace {
    let packet = Packet {
        eth: None,
        src: "10.0.0.1".parse().expect("an address"),
        dst: "10.0.0.2".parse().expect("an address"),
        ttl: 64,
        tos: 0,
        df: true,
        len: 60,
        l4: L4::Tcp {
            sport: None,
            dport: Some(80),
            flags: 2,
        },
        inner: None,
    };
    Trace {
        probability,
        disposition,
        hops: vec![Hop {
            ns: NsKey {
                node: "n1".to_owned(),
                netns: NetNsId { dev: 4, ino: 7 },
            },
            iif: Some("eth0".to_owned()),
            oif: None,
            packet: packet.clone(),
            steps: vec![step],
            taps: Vec::new(),
        }],
        packet,
        reply: None,
    }
}

fn explained(traces: &[Trace]) -> Explanation {
    let (topology, names, chains) = (Topology::default(), Names::default(), ChainNames::new());
    explain(&Question {
        source: End::default(),
        destination: End::default(),
        protocol: TCP,
        port: Some(80),
        source_port: None,
        size: 60,
        flows: vec![FlowTraces { share: 1.0, traces }],
        naming: Naming {
            topology: &topology,
            names: &names,
            chains: &chains,
        },
        notes: Vec::new(),
    })
}

fn step(kind: StepKind, text: &str) -> Step {
    Step::new(kind, text)
}

#[test]
fn every_end_that_is_no_arrival_has_a_finding() {
    use DropReason as Drop;
    use RejectWith as Reject;
    let cases = [
        (Disposition::Dropped(Drop::IpRpfilter), "NP0105"),
        (Disposition::Dropped(Drop::ForwardingOff), "NP0104"),
        (Disposition::Dropped(Drop::PktTooBig), "NP0107"),
        (Disposition::Dropped(Drop::VxlanNoRemote), "NP0114"),
        (Disposition::Dropped(Drop::Otherhost), "NP0115"),
        (Disposition::Dropped(Drop::BridgeHairpinOff), "NP0116"),
        (Disposition::Dropped(Drop::NeighFailed), "NP0117"),
        (Disposition::Dropped(Drop::NoSocket), "NP0121"),
        (Disposition::Dropped(Drop::IpInnoroutes), "NP0123"),
        (Disposition::Dropped(Drop::NoRouteToNode), "NP0123"),
        (Disposition::Dropped(Drop::DevReady), "NP0125"),
        (Disposition::Dropped(Drop::BridgeIsolated), "NP0127"),
        (Disposition::Dropped(Drop::NotFromPeer), "NP0129"),
        (Disposition::Dropped(Drop::IpLocalSource), "NP0130"),
        (Disposition::Dropped(Drop::NotSpecified), "NP0133"),
        (Disposition::Dropped(Drop::XfrmPolicy), "NP0134"),
        (Disposition::Dropped(Drop::QdiscDrop), "NP0133"),
        (Disposition::Rejected(Reject::PortClosed), "NP0121"),
        (Disposition::Rejected(Reject::NetUnreachable), "NP0123"),
        (Disposition::Rejected(Reject::HostUnreachable), "NP0117"),
        (Disposition::Rejected(Reject::TooBig(1400)), "NP0107"),
        (Disposition::Rejected(Reject::TtlExceeded), "NP0128"),
        (Disposition::Loop, "NP0128"),
        (Disposition::Inconclusive(vec!["x".to_owned()]), "NP0132"),
    ];
    for (disposition, code) in cases {
        let answer = explained(&[trace(
            1.0,
            disposition.clone(),
            step(StepKind::Forward, "s"),
        )]);
        let codes: Vec<&str> = answer
            .findings
            .iter()
            .map(|found| found.code.code)
            .collect();
        assert_eq!(codes, [code], "{disposition:?}");
        assert!(!answer.findings.iter().any(|found| found.mend.is_empty()));
        assert_eq!(answer.verdict, Verdict::of(&disposition));
    }
}

#[test]
fn the_same_fault_of_two_branches_is_one_finding() {
    let dropped = || {
        let disposition = Disposition::Dropped(DropReason::ForwardingOff);
        trace(
            0.25,
            disposition,
            step(StepKind::Forward, "forwarding is off"),
        )
    };
    let mut fine = trace(0.5, Disposition::Delivered, step(StepKind::Socket, "taken"));
    fine.reply = Some(Box::new(trace(
        1.0,
        Disposition::Delivered,
        step(StepKind::Socket, "taken"),
    )));
    let answer = explained(&[dropped(), fine, dropped()]);
    assert_eq!(answer.verdict, Verdict::Mixed);
    assert_eq!(answer.findings.len(), 1);
    assert_eq!(answer.findings[0].branches, [0, 2]);
}

#[test]
fn a_branch_whose_answer_is_lost_is_not_delivered() {
    let mut lost = trace(1.0, Disposition::Delivered, step(StepKind::Socket, "taken"));
    lost.reply = Some(Box::new(trace(
        1.0,
        Disposition::Dropped(DropReason::IpRpfilter),
        step(StepKind::RpFilter, "answers leave elsewhere"),
    )));
    let answer = explained(&[lost]);
    assert_eq!(answer.verdict, Verdict::Dropped);
    assert_eq!(answer.findings[0].code, codes::RP_FILTER);
}

#[test]
fn what_is_missing_is_said_once_with_its_place() {
    let what = "rule 7 can't be decoded".to_owned();
    let unknown =
        step(StepKind::Unknown, "can't be known").with(Evidence::Unreadable { what: what.clone() });
    let answer = explained(&[trace(1.0, Disposition::Inconclusive(vec![what]), unknown)]);
    assert_eq!(answer.unknown, ["rule 7 can't be decoded (net:[7] on n1)"]);
    assert_eq!(answer.verdict, Verdict::Inconclusive);
}
