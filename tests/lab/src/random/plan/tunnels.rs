//! Tunnels between two namespaces: lines that make them, and packets to send through them.

use std::net::IpAddr;

use super::{Plan, Station};
use crate::random::dice::Dice;
use crate::random::kinds::DeviceKind;
use crate::random::topic::Ask;

/// What one end of a tunnel has otherwise than the other. At both ends it would make errors about errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Another remote.
    Remote,
    /// Another key or network.
    Number,
    /// Other fields of GRE.
    Fields,
    /// No address of its own.
    Local,
    /// A device that it is bound to.
    Bound,
}

/// Two namespaces, and what each reaches the other by: its own station, and who is next on the way.
pub(super) struct Ends {
    pub(super) places: [usize; 2],
    hops: [Option<(Station, Station)>; 2],
    pub(super) addrs: [IpAddr; 2],
}

impl Plan {
    /// Two namespaces that reach each other, mostly, with an address of each that the other is to send to.
    /// `first`: one of them.
    pub(super) fn ends(&self, dice: &mut Dice, v6: bool, first: Option<usize>) -> Option<Ends> {
        let number = self.world.places.len();
        let mut drawn = None;
        for _ in 0..4 {
            let places = [
                first.unwrap_or_else(|| dice.below(number)),
                dice.below(number),
            ];
            let [one, other] = places;
            if one == other || self.addrs(one, v6).is_empty() || self.addrs(other, v6).is_empty() {
                continue;
            }
            let near = |from: usize, to: usize| self.next_hops(from, &[to]).into_iter().next();
            let hops = [near(one, other), near(other, one)];
            let any = dice.percent(15);
            let addrs = [0, 1].map(|end: usize| match &hops[end] {
                Some((own, _)) if !any => own.addr(v6),
                _ => dice.one(&self.addrs(places[end], v6)),
            });
            let whole = hops.iter().all(Option::is_some);
            drawn = Some(Ends {
                places,
                hops,
                addrs,
            });
            if whole {
                break;
            }
        }
        drawn
    }

    /// Routes between a tunnel's ends that do not lead through the tunnel itself. Without them, errors about its packets
    /// may go round in it for ever: nothing limits how many are sent here.
    pub(super) fn lead(&mut self, dice: &mut Dice, ends: &Ends) {
        for (end, far) in [(0, 1), (1, 0)] {
            let Some((own, next)) = &ends.hops[end] else {
                continue;
            };
            let v6 = ends.addrs[far].is_ipv6();
            // The address that the other sends from where its device names none is another one, maybe.
            let there = ends.hops[far].as_ref().map(|(there, _)| there.addr(v6));
            let mut addrs = vec![ends.addrs[far]];
            addrs.extend(there.filter(|there| *there != ends.addrs[far]));
            let (dash, len) = if v6 { ("-6 ", 128) } else { ("", 32) };
            let via = next.addr(v6);
            let missing = dice.percent(4);
            for addr in addrs.iter().filter(|addr| **addr != via && !missing) {
                let line = format!("{dash}route add {addr}/{len} via {via} dev {}", own.dev);
                self.ip(ends.places[end], line);
            }
        }
    }

    /// A tunnel between two namespaces.
    pub(super) fn between(&mut self, dice: &mut Dice, kind: DeviceKind) -> Vec<Ask> {
        let v6 = kind == DeviceKind::Geneve && self.v6 && dice.percent(25);
        let Some(ends) = self.ends(dice, v6, None) else {
            return Vec::new();
        };
        self.lead(dice, &ends);
        let (segment, number) = (self.segment(), 1 + dice.below(3));
        let mut fields = String::new();
        for (share, field) in [(15, " csum"), (15, " seq")] {
            fields.push_str(if dice.percent(share) { field } else { "" });
        }
        let (keyed, mode) = (dice.percent(45), dice.percent(45));
        let port = if dice.percent(15) {
            " dstport 6082"
        } else {
            ""
        };
        let fault = dice.weighted(&[
            (24, None),
            (1, Some(Fault::Remote)),
            (1, Some(Fault::Number)),
            (1, Some(Fault::Fields)),
            (1, Some(Fault::Local)),
            (1, Some(Fault::Bound)),
        ]);
        let broken = dice.below(2);
        for (end, far) in [(0, 1), (1, 0)] {
            let place = ends.places[end];
            let fault = fault.filter(|_| end == broken);
            let remote = match fault {
                Some(Fault::Remote) => {
                    let third = dice.below(self.world.places.len());
                    self.addrs(third, v6).last().copied()
                }
                _ => None,
            };
            let remote = remote.unwrap_or(ends.addrs[far]);
            let number = number + usize::from(fault == Some(Fault::Number));
            let own = ends.hops[end]
                .as_ref()
                .filter(|_| fault == Some(Fault::Bound));
            let bound = own.map_or_else(String::new, |(own, _)| format!(" dev {}", own.dev));
            let local = match fault {
                Some(Fault::Local) => String::new(),
                _ => format!(" local {}", ends.addrs[end]),
            };
            let outer = outer(dice, kind);
            let (prefix, what) = match kind {
                DeviceKind::Geneve => {
                    let what = format!("geneve id {number} remote {remote}{port}{outer}");
                    ("gv", what)
                }
                DeviceKind::Gre => {
                    let key = if keyed {
                        format!(" key {number}")
                    } else {
                        String::new()
                    };
                    let fields = if fault == Some(Fault::Fields) {
                        " csum"
                    } else {
                        fields.as_str()
                    };
                    let what = format!("gre remote {remote}{local}{bound}{outer}{fields}{key}");
                    ("tg", what)
                }
                DeviceKind::Sit => {
                    let mode = if mode { " mode any" } else { "" };
                    let what = format!("sit remote {remote}{local}{bound}{outer}{mode}");
                    ("ts", what)
                }
                _ => ("ti", format!("ipip remote {remote}{local}{bound}{outer}")),
            };
            let dev = self.device(place, prefix);
            let mtu = dice.weighted(&[(6, ""), (2, " mtu 1400"), (1, " mtu 1300")]);
            // Only Geneve has link-layer addresses.
            let mac = match kind {
                DeviceKind::Geneve => self.mac(),
                _ => String::new(),
            };
            let address = match kind {
                DeviceKind::Geneve => format!(" address {mac}"),
                _ => String::new(),
            };
            // The device that it is bound to may be made by a later namespace's lines.
            self.ip(place, format!("link add {dev}{address}{mtu} type {what}"));
            self.ip(place, format!("link set {dev} up"));
            self.join(place, segment, &dev, &mac);
        }
        self.through(dice, segment)
    }

    /// As Calico has it: one device for all, which sends to whoever the next hop is.
    pub(super) fn without_remote(&mut self, dice: &mut Dice) -> Vec<Ask> {
        let Some(ends) = self.ends(dice, false, None) else {
            return Vec::new();
        };
        self.lead(dice, &ends);
        let segment = self.segment();
        let number = u8::try_from(segment * 4).unwrap_or(u8::MAX);
        let inside = [1, 2].map(|byte| IpAddr::from([10, 1, number, byte]));
        for (end, far) in [(0, 1), (1, 0)] {
            let place = ends.places[end];
            let (dev, local) = (self.device(place, "ti"), ends.addrs[end]);
            self.link(place, format!("link add {dev} type ipip local {local}"));
            self.ip(place, format!("link set {dev} mtu 1480 up"));
            self.ip(place, format!("address add {}/32 dev {dev}", inside[end]));
            let via = ends.addrs[far];
            let mut goals = vec![format!("{}/32", inside[far])];
            let there = self.goals().into_iter().filter(|goal| {
                !goal.v6
                    && goal.owners.contains(&ends.places[far])
                    && !goal.owners.contains(&place)
                    && !ends.owns(self, place, goal.owners.as_slice())
            });
            goals.extend(there.map(|goal| goal.prefix).filter(|_| dice.percent(40)));
            for goal in goals {
                self.ip(
                    place,
                    format!("route add {goal} via {via} dev {dev} onlink"),
                );
            }
            self.loose.push((place, inside[end]));
        }
        let [one, other] = ends.places;
        let mut asks = Ask::usual(one, Some(inside[0]), inside[1]);
        asks.extend(Ask::usual(other, None, inside[0]));
        asks
    }
}

impl Ends {
    /// Whether routes to a segment would lead the tunnel's own packets into it.
    pub(super) fn owns(&self, plan: &Plan, place: usize, owners: &[usize]) -> bool {
        let end = usize::from(self.places[0] != place);
        let far = self.addrs[1 - end];
        let mut stations = plan.stations.iter();
        let segment = stations.find(|own| own.addr(far.is_ipv6()) == far);
        let on = |own: &&Station| Some(own.segment) == segment.map(|far| far.segment);
        let places: Vec<usize> = plan
            .stations
            .iter()
            .filter(on)
            .map(|own| own.place)
            .collect();
        places == owners
    }
}

/// TTL, differentiated services and fragmentation of outer packets.
fn outer(dice: &mut Dice, kind: DeviceKind) -> String {
    let mut text = String::new();
    let ttl = dice.weighted(&[(6, ""), (2, "64"), (1, "2"), (1, "255"), (2, "inherit")]);
    if !ttl.is_empty() {
        text.push_str(&format!(" ttl {ttl}"));
    }
    let tos = dice.weighted(&[(6, ""), (1, "0x10"), (2, "inherit")]);
    if !tos.is_empty() {
        text.push_str(&format!(" tos {tos}"));
    }
    if kind == DeviceKind::Geneve {
        text.push_str(dice.weighted(&[(5, ""), (1, " df set"), (1, " df inherit")]));
    } else if matches!(ttl, "" | "inherit") && dice.percent(12) {
        // With a TTL of its own, the kernel insists on it.
        text.push_str(" nopmtudisc");
    }
    text
}
