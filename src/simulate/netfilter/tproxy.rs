//! TPROXY: an incoming packet is given to a local socket, whatever its destination.
//!
//! Source: net/netfilter/xt_TPROXY.c, nft_tproxy.c, net/ipv4/netfilter/nf_tproxy_ipv4.c and its IPv6 twin (v6.12).

use std::net::IpAddr;

use super::bits::Tri;
use super::chain::Did;
use super::machine::{Eval, Vm};
use super::step::{note, set_mark};
use crate::model::netfilter::{Hook, Rule, Verdict};
use crate::model::packet::{TCP, UDP};
use crate::simulate::fib::section;
use crate::simulate::socket::listener;

/// The target: what no transparent socket takes is dropped.
pub(super) fn xt<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    rule: &'a Rule,
    (value, mask): (u32, u32),
    (addr, port): (IpAddr, u16),
) -> Did {
    let addr = Some(addr).filter(|addr| !addr.is_unspecified());
    match assign(eval, vm, rule, (addr, Some(port))) {
        Tri::Yes => {
            let new = vm.skb.mark.map(|own| own & !mask ^ value);
            set_mark(vm, rule, new);
            Did::Verdict(Verdict::Accept)
        }
        Tri::No => Did::Verdict(Verdict::Drop),
        Tri::Unknown(why) => Did::Blind(why),
    }
}

/// The expression: what no transparent socket takes does not match.
pub(super) fn nft<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    rule: &'a Rule,
    to: (Option<IpAddr>, Option<u16>),
) -> Did {
    match assign(eval, vm, rule, to) {
        Tri::Yes => Did::Next,
        Tri::No => Did::Break,
        Tri::Unknown(why) => Did::Blind(why),
    }
}

/// Looks for the socket: that of the connection, else the listener of the address and port.
fn assign<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    rule: &'a Rule,
    (addr, port): (Option<IpAddr>, Option<u16>),
) -> Tri {
    let mut packet = vm.skb.packet.clone();
    if !matches!(packet.protocol(), TCP | UDP) {
        return Tri::No;
    }
    if eval.at.hook != Hook::Prerouting {
        return Tri::Unknown("a transparent proxy elsewhere than in PREROUTING".to_owned());
    }
    if let Some((ns, transparent)) = &vm.skb.party
        && ns == eval.at.ns
    {
        return Tri::from(*transparent);
    }
    let Some(dev) = eval.at.devices.iif else {
        return Tri::Unknown("a transparent proxy without an incoming device".to_owned());
    };
    let addr = match addr {
        Some(addr) => addr,
        None => match first_addr(eval, packet.src.is_ipv6()) {
            Ok(addr) => addr.unwrap_or(packet.dst),
            Err(why) => return Tri::Unknown(why),
        },
    };
    packet.dst = addr;
    if let Some(port) = port.filter(|port| *port != 0) {
        packet.set_dport(Some(port));
    }
    let sockets = match section(eval.cx, eval.at.ns, &eval.ns.sockets, "sockets") {
        Ok(sockets) => sockets,
        Err(why) => return Tri::Unknown(why),
    };
    let port = packet.dport().unwrap_or_default();
    let socket = match listener(sockets, &packet, dev) {
        Ok(Some(socket)) => socket,
        Ok(None) => return Tri::No,
        Err(what) => {
            return Tri::Unknown(format!(
                "of the transparent proxy's socket on port {port}, {what} was not read"
            ));
        }
    };
    match socket.transparent {
        Some(false) => Tri::No,
        None => Tri::Unknown(format!(
            "whether the socket on {} port {port} is transparent (IP_TRANSPARENT) was not read",
            socket.addr
        )),
        Some(true) => {
            vm.skb.proxy = Some(Box::new(socket.clone()));
            let text = format!("given to the transparent proxy's socket on {addr} port {port}");
            note(vm, rule, text, Vec::new());
            Tri::Yes
        }
    }
}

/// First address of the incoming device (`nf_tproxy_laddr4()`, `nf_tproxy_laddr6()`).
fn first_addr(eval: &Eval<'_, '_>, v6: bool) -> Result<Option<IpAddr>, String> {
    let addrs = eval
        .ns
        .addrs
        .known()
        .ok_or("addresses of the incoming device not read")?;
    let mut own = addrs
        .iter()
        .filter(|own| Some(own.link) == eval.at.devices.iif && own.local.is_ipv6() == v6);
    let first = own.find(|own| if v6 { !own.tentative } else { !own.secondary });
    Ok(first.map(|own| own.local))
}
