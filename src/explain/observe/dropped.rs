//! What the kernels say that they dropped of a probe, and why, beside the prediction.

use super::verdict::predicted;
use super::{Agreement, Observed, Sighting, recognise};
use crate::explain::words;
use crate::model::NsKey;
use crate::model::capture::{Dropped, Probed};
use crate::trace::{Disposition, Trace};

/// A packet that a kernel dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The packet, and the device that it was last at; without a name where it was at none.
    pub seen: Sighting,
    /// The kernel's word.
    pub why: Dropped,
}

/// Packets of a probe that were dropped in one place for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Namespace.
    pub ns: NsKey,
    /// Device that they were last at; `None`: at none yet.
    pub dev: Option<String>,
    /// Which packet of the exchange, as in [`super::Spot::turn`].
    pub turn: usize,
    /// The kernel's word.
    pub why: Dropped,
    /// How many: TCP repeats itself.
    pub count: usize,
}

impl Loss {
    /// In words; the namespace as its key.
    pub fn text(&self) -> String {
        let what = match self.turn {
            0 => "it",
            1 => "its answer",
            _ => "a packet of the connection",
        };
        let at = match &self.dev {
            Some(dev) => format!(" at device {dev}"),
            None => String::new(),
        };
        let often = match self.count {
            1 => String::new(),
            count => format!(", {count} times"),
        };
        format!(
            "the kernel dropped {what}: {}, in {}{at}{often}",
            words::dropped(&self.why),
            self.ns
        )
    }
}

/// Those of the dropped packets that are a probe's or its answer's, in order of turns and times.
pub fn losses(traces: &[Trace], probed: &Probed, seen: &[Sighting], gone: &[Gone]) -> Vec<Loss> {
    // What was dropped before any device saw it may be the only sight of it.
    let mut all: Vec<Sighting> = seen.to_vec();
    all.extend(gone.iter().map(|one| one.seen.clone()));
    let turns = recognise::turns(traces, probed, &all);
    let mut losses: Vec<Loss> = Vec::new();
    for (turn, packets) in turns.iter().enumerate() {
        let dropped = all.iter().skip(seen.len()).zip(gone);
        let own = dropped.filter(|(sight, _)| packets.iter().any(|one| std::ptr::eq(*one, *sight)));
        for (sight, gone) in own {
            let loss = Loss {
                ns: sight.ns.clone(),
                dev: Some(sight.dev.clone()).filter(|dev| !dev.is_empty()),
                turn,
                why: gone.why.clone(),
                count: 1,
            };
            let known = losses.iter_mut().find(|known| {
                (&known.ns, &known.dev, known.turn, &known.why)
                    == (&loss.ns, &loss.dev, loss.turn, &loss.why)
            });
            match known {
                Some(known) => known.count = known.count.saturating_add(1),
                None => losses.push(loss),
            }
        }
    }
    losses
}

/// Reasons that exclude one another: what gives one of them gives no other for the same cause. Others are too general,
/// or kernels before some version gave them for more.
const TELLING: [&str; 20] = [
    "NETFILTER_DROP",
    "IP_RPFILTER",
    "IP_LOCAL_SOURCE",
    "IP_INVALID_SOURCE",
    "IP_LOCALNET",
    "IP_INNOROUTES",
    "IP_OUTNOROUTES",
    "NEIGH_FAILED",
    "OTHERHOST",
    "PKT_TOO_BIG",
    "XFRM_POLICY",
    "NO_SOCKET",
    "VXLAN_VNI_NOT_FOUND",
    "TC_INGRESS",
    "TC_EGRESS",
    "QDISC_DROP",
    "XDP",
    "SECURITY_HOOK",
    "BPF_CGROUP_EGRESS",
    "SOCKET_FILTER",
];

/// Takes over that the kernel's reason is another than the predicted one, where that can be told: not where the kernel
/// told only some of what it dropped.
pub fn beside(
    observed: &mut Observed,
    traces: &[Trace],
    probed: &Probed,
    (losses, all): (&[Loss], bool),
) {
    if observed.difference.is_some() || !all {
        return;
    }
    let Some(trace) = traces.get(observed.branch) else {
        return;
    };
    if let Some(difference) = contradiction(trace, probed, losses) {
        observed.difference = Some(difference);
        observed.agreement = Agreement::Differs;
    }
}

fn contradiction(trace: &Trace, probed: &Probed, losses: &[Loss]) -> Option<String> {
    let (turn, ended) = predicted(trace, probed);
    let Disposition::Dropped(reason) = &ended.disposition else {
        return None;
    };
    let reason = reason.to_string();
    let last = ended.hops.last()?;
    // Elsewhere copies of it may end, as those that bridges flood.
    let mut there = losses
        .iter()
        .filter(|loss| loss.turn == turn && loss.ns == last.ns)
        .peekable();
    let first = *there.peek()?;
    let telling = |name: &str| TELLING.contains(&name);
    let other = |loss: &Loss| {
        let name = loss.why.name.as_deref();
        name.is_some_and(|name| name != reason && telling(name))
    };
    (telling(&reason) && there.all(other)).then(|| {
        format!(
            "the kernel dropped it for {}, where {reason} was predicted",
            words::dropped(&first.why)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NetNsId;
    use crate::model::capture::{Answer, Mark};
    use crate::model::packet::{L4, Packet};
    use crate::trace::{DropReason, Hop};

    fn key(ino: u64) -> NsKey {
        NsKey {
            node: "n1".to_owned(),
            netns: NetNsId { dev: 4, ino },
        }
    }

    fn syn(dport: u16) -> Packet {
        let l4 = L4::Tcp {
            sport: Some(40_000),
            dport: Some(dport),
            flags: 2,
        };
        Packet::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), l4)
    }

    fn gone(ns: NsKey, packet: Packet, seq: u32, name: &str) -> Gone {
        Gone {
            seen: Sighting {
                ns,
                dev: "eth0".to_owned(),
                out: false,
                time: 0,
                packet,
                mark: Some(Mark::Tcp { seq, ack: 0 }),
            },
            why: Dropped {
                reason: 1,
                name: Some(name.to_owned()),
                function: Some("nf_hook_slow".to_owned()),
            },
        }
    }

    fn trace(reason: DropReason) -> Trace {
        let hop = Hop {
            ns: key(1),
            iif: None,
            oif: None,
            packet: syn(80),
            steps: Vec::new(),
            taps: Vec::new(),
        };
        Trace {
            probability: 1.0,
            disposition: Disposition::Dropped(reason),
            hops: vec![hop],
            packet: syn(80),
            reply: None,
        }
    }

    fn probed() -> Probed {
        Probed {
            from: Some(([10, 0, 0, 1].into(), 40_000)),
            answer: Answer::Silent,
            micros: 1,
            expects: None,
        }
    }

    #[test]
    fn drops_of_the_probe_are_told_and_others_are_not() {
        let traces = [trace(DropReason::NetfilterDrop)];
        let all = [
            gone(key(1), syn(80), 7, "NETFILTER_DROP"),
            gone(key(1), syn(80), 7, "NETFILTER_DROP"),
            gone(key(1), syn(80), 8, "NETFILTER_DROP"),
            gone(key(2), syn(8080), 7, "OTHERHOST"),
            gone(key(2), syn(80), 9, "NETFILTER_DROP"),
        ];
        let losses = losses(&traces, &probed(), &[], &all);
        let texts: Vec<String> = losses.iter().map(Loss::text).collect();
        assert_eq!(
            texts,
            [
                "the kernel dropped it: NETFILTER_DROP in nf_hook_slow, in n1/net:[1] at device eth0, 2 times",
                // Translated on its way: the same by its sequence number.
                "the kernel dropped it: OTHERHOST in nf_hook_slow, in n1/net:[2] at device eth0",
            ]
        );
    }

    #[test]
    fn another_reason_in_the_same_place_contradicts() {
        let told = |reason: DropReason, names: &[&str], ns: u64| {
            let traces = [trace(reason)];
            let all: Vec<Gone> = names
                .iter()
                .map(|name| gone(key(ns), syn(80), 7, name))
                .collect();
            let first = gone(key(1), syn(80), 7, "");
            let losses = losses(&traces, &probed(), &[first.seen], &all);
            contradiction(&traces[0], &probed(), &losses)
        };
        let netfilter = DropReason::NetfilterDrop;
        assert_eq!(told(netfilter, &["NETFILTER_DROP"], 1), None);
        assert_eq!(
            told(netfilter, &["IP_RPFILTER"], 1).as_deref(),
            Some(
                "the kernel dropped it for IP_RPFILTER in nf_hook_slow, where NETFILTER_DROP was predicted"
            )
        );
        // Another of them is as predicted; too general a word; elsewhere; not the kernel's word.
        assert_eq!(told(netfilter, &["OTHERHOST", "NETFILTER_DROP"], 1), None);
        assert_eq!(told(netfilter, &["NOT_SPECIFIED"], 1), None);
        assert_eq!(told(netfilter, &["OTHERHOST"], 2), None);
        assert_eq!(told(DropReason::ForwardingOff, &["OTHERHOST"], 1), None);
    }
}
