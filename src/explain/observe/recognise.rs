//! Which of the packets seen are a probe's.
//!
//! The first packet is known by what no translation changes (TCP's sequence number, the payload) once it was seen where
//! it was sent; the answer by being the reverse of a form that the probe had somewhere; what follows by these forms.

use std::net::IpAddr;

use super::{Sighting, innermost};
use crate::model::capture::Probed;
use crate::model::packet::{ICMP, ICMPV6, L4, Packet, TCP};
use crate::trace::Trace;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Both ends; of an echo, its id is both ports.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Form {
    from: (IpAddr, Option<u16>),
    to: (IpAddr, Option<u16>),
}

impl Form {
    fn of(packet: &Packet) -> Self {
        let (sport, dport) = match packet.l4 {
            L4::Icmp { id, .. } => (id, id),
            _ => (packet.sport(), packet.dport()),
        };
        Self {
            from: (packet.src, sport),
            to: (packet.dst, dport),
        }
    }

    fn reverse(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
        }
    }
}

/// The probe's packets, its answer's, and those that follow from each side.
pub(super) fn turns<'a>(
    traces: &[Trace],
    probed: &Probed,
    sightings: &'a [Sighting],
) -> [Vec<&'a Sighting>; 4] {
    let mut turns = [const { Vec::new() }; 4];
    let (Some(own), Some(first)) = (
        probed.from,
        traces.first().and_then(|trace| trace.hops.first()),
    ) else {
        return turns;
    };
    // As its socket sent it, or as the rules of its own namespace left it.
    let own_form = (own.0, Some(own.1));
    let left = probed.expects.map(|tuple| match tuple.protocol {
        // The id stands where ports do.
        ICMP | ICMPV6 => (tuple.dst, tuple.sport),
        _ => (tuple.dst, tuple.dport),
    });
    let begins = |seen: &&Sighting| {
        let packet = innermost(&seen.packet);
        let from = Form::of(packet).from;
        is_question(packet)
            && (from == own_form || Some(from) == left)
            && packet.protocol() == innermost(&first.packet).protocol()
    };
    // Where nobody watched the sender, the first sight of it counts.
    let at_home = |seen: &&Sighting| seen.ns == first.ns && begins(seen);
    let origin = sightings.iter().find(at_home);
    let Some(origin) = origin.or_else(|| sightings.iter().find(begins)) else {
        return turns;
    };
    let asked = innermost(&origin.packet);
    let [probe, answer, next, last] = &mut turns;
    *probe = of(sightings, |one, packet| {
        // Programs may answer UDP with what they were sent.
        let back = Form::of(packet).from == Form::of(asked).to && packet.protocol() != TCP;
        packet.protocol() == asked.protocol()
            && is_question(packet)
            && one.mark == origin.mark
            && (is_echo(packet) || !back)
    });
    let mut forms: Vec<Form> = probe
        .iter()
        .map(|one| Form::of(innermost(&one.packet)))
        .collect();
    // As its socket knows it, which may be seen of answers alone.
    let sent = Form::of(innermost(&first.packet));
    forms.push(Form {
        from: own_form,
        to: sent.to,
    });
    // Each end may be translated without the other: an answer may be seen between.
    let forth = |form: Form| {
        let has = |fits: &dyn Fn(&Form) -> bool| forms.iter().any(fits);
        has(&|own| own.from == form.from) && has(&|own| own.to == form.to)
    };
    let back = |packet: &Packet| forth(Form::of(packet).reverse());
    let forth = |packet: &Packet| forth(Form::of(packet));
    let of_kind = |packet: &Packet| packet.protocol() == asked.protocol();
    *answer = of(sightings, |_, packet| {
        let kind = match packet.l4 {
            L4::Icmp { kind, .. } => matches!(kind, 0 | 129),
            // What answers the SYN, not what comes later.
            L4::Tcp { flags, .. } => flags & (SYN | ACK) == SYN | ACK || flags & RST != 0,
            _ => true,
        };
        kind && of_kind(packet) && back(packet)
    });
    let established = |packet: &Packet| matches!(packet.l4, L4::Tcp { flags, .. } if flags & (SYN | RST | ACK) == ACK);
    *next = of(sightings, |_, packet| established(packet) && forth(packet));
    // A server that takes a connection may reset it at once.
    let taken = |one: &&Sighting| {
        let flags = innermost(&one.packet).l4;
        matches!(flags, L4::Tcp { flags, .. } if flags & (SYN | ACK) == SYN | ACK)
    };
    let taken = answer.iter().any(taken);
    *last = of(sightings, |_, packet| {
        (established(packet) || taken && is_reset(packet)) && back(packet)
    });
    turns
}

fn of(sightings: &[Sighting], fits: impl Fn(&Sighting, &Packet) -> bool) -> Vec<&Sighting> {
    let all = sightings.iter();
    all.filter(|one| fits(one, innermost(&one.packet)))
        .collect()
}

/// Whether it ends a connection, or refuses one.
pub(super) fn is_reset(packet: &Packet) -> bool {
    matches!(packet.l4, L4::Tcp { flags, .. } if flags & RST != 0)
}

fn is_echo(packet: &Packet) -> bool {
    matches!(packet.l4, L4::Icmp { .. })
}

/// Whether it is of the kind that a probe begins with: a SYN (again where it was repeated), a datagram, an echo request.
fn is_question(packet: &Packet) -> bool {
    match packet.l4 {
        L4::Tcp { flags, .. } => flags & (SYN | ACK | RST) == SYN,
        L4::Icmp { kind, .. } => matches!(kind, 8 | 128),
        L4::Udp { .. } => true,
        _ => false,
    }
}
