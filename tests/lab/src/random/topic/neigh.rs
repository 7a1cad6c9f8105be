//! Who answers for addresses that are not on the segment: routes without a gateway.

use std::net::Ipv4Addr;

use super::{Ask, Plan};
use crate::random::dice::Dice;
use crate::random::plan::Station;

/// Whether all of a segment are asked, and answer at once.
fn is_asked(plan: &Plan, segment: usize) -> bool {
    let mut own = plan.stations.iter().filter(|s| s.segment == segment);
    own.all(|s| s.dev.starts_with('e') || s.dev.starts_with("br"))
}

/// A router that answers for what is behind it.
pub fn proxy(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let ways = plan.ways().into_iter();
    let ways: Vec<_> = ways.filter(|way| is_asked(plan, way.own.segment)).collect();
    if ways.is_empty() {
        return Vec::new();
    }
    let way = dice.one(&ways);
    let Some(dst) = plan.address(way.to, false) else {
        return Vec::new();
    };
    let value = if dice.percent(75) { "1" } else { "0" };
    let name = format!("ipv4/conf/{}/proxy_arp", way.router.dev);
    plan.set(way.router.place, &name, value);
    let line = format!("route replace {dst}/32 dev {}", way.own.dev);
    plan.ip(way.own.place, line);
    let src = Some(way.own.v4.into()).filter(|_| dice.percent(50));
    Ask::usual(way.own.place, src, dst)
}

/// A neighbour that has the address on another device, and may not answer for it. Who asks has other devices, too,
/// where there is such a one: its source follows from the device alone.
pub fn ignore(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let mut pairs: Vec<(Station, Station)> = Vec::new();
    for own in &plan.stations {
        for other in &plan.stations {
            let same = own.segment == other.segment && own.place != other.place;
            if same && is_asked(plan, own.segment) {
                pairs.push((own.clone(), other.clone()));
            }
        }
    }
    let is_later = |own: &Station| {
        let first = plan.stations.iter().find(|s| s.place == own.place);
        first.is_some_and(|first| first.dev != own.dev)
    };
    let later: Vec<_> = pairs.iter().filter(|(own, _)| is_later(own)).collect();
    let Some((own, other)) = (if later.is_empty() || dice.percent(25) {
        (!pairs.is_empty()).then(|| dice.one(&pairs))
    } else {
        Some(dice.one(&later).clone())
    }) else {
        return Vec::new();
    };
    let byte = u8::try_from(other.place).unwrap_or(u8::MAX);
    let dst = Ipv4Addr::new(10, 201, byte, 1);
    plan.ip(other.place, format!("address add {dst}/32 dev lo"));
    let line = format!("route replace {dst}/32 dev {}", own.dev);
    plan.ip(own.place, line);
    let value = dice.weighted(&[(4, "0"), (3, "1"), (2, "2"), (1, "8")]);
    let name = format!("ipv4/conf/{}/arp_ignore", other.dev);
    plan.set(other.place, &name, value);
    // Another device's source is answered by the way that it has.
    let announce = dice.weighted(&[(3, "0"), (1, "1"), (1, "2")]);
    let name = format!("ipv4/conf/{}/arp_announce", own.dev);
    plan.set(own.place, &name, announce);
    let mut asks = Ask::usual(own.place, None, dst.into());
    let first = plan.address(own.place, false);
    asks.extend(Ask::usual(own.place, first, dst.into()).into_iter().take(1));
    asks
}
