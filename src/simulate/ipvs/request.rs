//! Packets that come in for a virtual service, and the server that they get.
//!
//! Read first: `ip_vs_in_hook()`, `ip_vs_schedule()`, `ip_vs_sched_persist()`, `ip_vs_leave()`, v6.1.

use std::net::IpAddr;

use super::table::{self, Found, setting};
use super::{Conn, FTP, Request, Sent, Way, handles, keep_track, schedule, words};
use crate::model::NsKey;
use crate::model::ipvs::{Ipvs, IpvsConnKey, IpvsKey, IpvsMethod, IpvsServer, IpvsService};
use crate::model::packet::{L4, Packet, UDP};
use crate::model::route::RouteKind;
use crate::simulate::Cx;
use crate::simulate::fib::{self, FibAnswer, FibKey};
use crate::simulate::netfilter::HookVerdict;
use crate::simulate::skb::{CtRef, Flows, Skb};
use crate::trace::{DropReason, Evidence, RejectWith, Step, StepKind};

/// FTPDATA
const FTP_DATA: u16 = 20;

/// Whether a packet of TCP may open a connection (`tcp_conn_schedule()`).
fn opens(ns: &NsKey, ipvs: &Ipvs, packet: &Packet) -> Result<bool, String> {
    let L4::Tcp { flags, .. } = packet.l4 else {
        return Ok(true);
    };
    if flags & 4 != 0 {
        return Ok(false);
    }
    Ok(flags & 2 != 0 || setting(&ipvs.sysctls.sloppy_tcp, "sloppy_tcp", ns)?)
}

/// A packet for a virtual service (`ip_vs_in_hook()`), at LOCAL_IN and LOCAL_OUT; `from_here`: no device but
/// loopback brought it. `Err`: what is missing.
pub(crate) fn request(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    from_here: bool,
    skb: &Skb,
    flows: &Flows,
) -> Result<Request, String> {
    if skb.ipvs || !handles(&skb.packet) {
        return Ok(Request::Pass);
    }
    let Some(ipvs) = table::of(cx, ns)? else {
        return Ok(Request::Pass);
    };
    if setting(&ipvs.sysctls.backup_only, "backup_only", ns)? {
        return Ok(Request::Pass);
    }
    let packet = &skb.packet;
    let (protocol, client) = (packet.protocol(), (packet.src, packet.sport()));
    let Some(dport) = packet.dport() else {
        // An answer to one of any free ports: no service is known by such a one.
        return Ok(Request::Pass);
    };
    let virt = (packet.dst, Some(dport));
    let at = At {
        ns,
        ipvs,
        skb,
        flows,
    };
    let own = flows.ipvs(ns).find(|conn| {
        conn.protocol == protocol && conn.client == client && conn.virt == virt && !conn.one_packet
    });
    if let Some(conn) = own.cloned() {
        let step = Step::new(
            StepKind::Ipvs,
            format!("to {}, as the connection has it", words(conn.server)),
        );
        return Ok(Request::To(vec![at.way(cx, 1.0, conn, step)?]));
    }
    let found = table::connection(cx, ns, ipvs, protocol, client, virt, false)?;
    if let Some(found) = found
        && let Some(done) = at.existing(cx, found)?
    {
        return Ok(done);
    }
    if !opens(ns, ipvs, packet)? || client.1 == Some(FTP_DATA) {
        return Ok(Request::Pass);
    }
    // An answer of a server on this host is none of a client (`ip_vs_schedule()`).
    let turned = flows
        .ipvs(ns)
        .any(|conn| conn.protocol == protocol && conn.client == virt && conn.virt == client);
    if turned && from_here {
        return Ok(Request::Pass);
    }
    match table::service(cx, ns, ipvs, skb, dport)? {
        Some(service) => at.schedule(cx, service, dport),
        None => Ok(Request::Pass),
    }
}

/// A packet at IPVS.
struct At<'a, 't> {
    ns: &'a NsKey,
    ipvs: &'t Ipvs,
    skb: &'a Skb,
    flows: &'a Flows,
}

impl At<'_, '_> {
    /// The packet's entry of conntrack is in the table (`ip_vs_conn_uses_old_conntrack()`).
    fn has_old_conntrack(&self) -> bool {
        match self.skb.ct {
            CtRef::Entry { index, .. } => {
                let flow = self.flows.get(self.ns, index);
                flow.is_some_and(|flow| flow.confirmed)
            }
            _ => false,
        }
    }

    /// What becomes of a packet whose connection the kernel has; `None`: it is scheduled anew.
    fn existing(&self, cx: &mut Cx<'_>, found: Found) -> Result<Option<Request>, String> {
        let Found {
            conn,
            state,
            server,
        } = found;
        let sysctls = &self.ipvs.sysctls;
        let nodest = setting(&sysctls.expire_nodest_conn, "expire_nodest_conn", self.ns)?;
        let drops = |why: &str| {
            let text = format!(
                "its connection is with {}, {why}: this packet is dropped",
                words(conn.server)
            );
            let step = Step::new(StepKind::Ipvs, text);
            Some(Request::Gone(
                HookVerdict::Drop(DropReason::NotSpecified),
                step,
            ))
        };
        let Some(server) = server else {
            let gone = "which is no server of the service any more";
            return Ok(if nodest && !self.has_old_conntrack() {
                None
            } else {
                drops(gone)
            });
        };
        let syn = matches!(self.skb.packet.l4, L4::Tcp { flags, .. } if flags & 2 != 0);
        let reuse = table::number(&sysctls.conn_reuse_mode, "conn_reuse_mode", self.ns)?;
        let closed = matches!(state.as_str(), "TIME_WAIT" | "CLOSE");
        if syn && (nodest && server.weight == 0 || reuse & 1 != 0 && closed) {
            return Ok(if self.has_old_conntrack() {
                drops("which is over, and the kernel still has its conntrack entry")
            } else {
                None
            });
        }
        let text = format!(
            "to {}, as an existing connection has it",
            words(conn.server)
        );
        let step = Step::new(StepKind::Ipvs, text);
        Ok(Some(Request::To(vec![self.way(cx, 1.0, conn, step)?])))
    }

    /// Chooses a server (`ip_vs_schedule()`, `ip_vs_sched_persist()`).
    fn schedule(
        &self,
        cx: &mut Cx<'_>,
        service: &IpvsService,
        dport: u16,
    ) -> Result<Request, String> {
        let name = table::name(&service.key);
        let dropping = table::number(&self.ipvs.sysctls.drop_packet, "drop_packet", self.ns)?;
        // 2: automatic, and on since memory is short; 3: always.
        if dropping >= 2 {
            return Err(format!(
                "IPVS drops some new connections (net.ipv4.vs.drop_packet is {dropping}) of {name}"
            ));
        }
        let (port, by_mark) = match service.key {
            IpvsKey::Address(_, _, port) => (port, false),
            IpvsKey::Fwmark(..) => (0, true),
        };
        let kept = if service.persistent() {
            self.template(cx, service, (port, by_mark), dport)?
        } else {
            None
        };
        let choices = match kept {
            Some(server) => vec![(1.0, server, Some(()))],
            None if !service.persistent() && !by_mark && port != dport => Vec::new(),
            None => schedule::choose(service, &self.skb.packet)?
                .into_iter()
                .map(|(share, server)| (share, server, None))
                .collect(),
        };
        if choices.is_empty() {
            return self.nobody(service, &name);
        }
        let doubt = schedule::doubt(service).filter(|_| kept.is_none() && choices.len() > 1);
        let many = choices.len();
        let mut ways = Vec::new();
        for (share, server, kept) in choices {
            let served = match (service.persistent(), server.port) {
                (_, 0) => dport,
                // A persistent service maps its own port alone.
                (true, own) if dport == port => own,
                (true, _) => dport,
                (false, own) => own,
            };
            let conn = Conn {
                protocol: self.skb.packet.protocol(),
                client: (self.skb.packet.src, self.skb.packet.sport()),
                virt: (self.skb.packet.dst, Some(dport)),
                server: (server.addr, Some(served)),
                method: server.method,
                one_packet: service.one_packet() && self.skb.packet.protocol() == UDP,
            };
            let how = match (kept, many) {
                (Some(()), _) => "the server that this client keeps".to_owned(),
                (None, 1) => format!("by {}", service.scheduler),
                (None, many) => format!("one of {many} servers, by {}", service.scheduler),
            };
            let text = format!("{name}: to {}, {how}", words(conn.server));
            let mut step = Step::new(StepKind::Ipvs, text).with(Evidence::IpvsServer {
                service: service.key,
                scheduler: service.scheduler.clone(),
                server,
            });
            if let Some(why) = &doubt {
                step = step.with(Evidence::Assumed { why: why.clone() });
            }
            ways.push(self.way(cx, share, conn, step)?);
        }
        Ok(Request::To(ways))
    }

    /// The server that a client of a persistent service keeps.
    fn template(
        &self,
        cx: &mut Cx<'_>,
        service: &IpvsService,
        (port, by_mark): (u16, bool),
        dport: u16,
    ) -> Result<Option<IpvsServer>, String> {
        if let Some(engine) = &service.engine {
            return Err(format!(
                "the IPVS persistence engine {engine} is not followed"
            ));
        }
        let packet = &self.skb.packet;
        let own_port = dport == port && !by_mark;
        let (protocol, addr) = match service.key {
            IpvsKey::Fwmark(mark, v6) => (0, table::mark_address(mark, v6)),
            IpvsKey::Address(..) => (packet.protocol(), packet.dst),
        };
        let key = IpvsConnKey {
            protocol,
            client: (table::masked(packet.src, service.netmask), 0),
            other: (addr, if own_port && port != FTP { dport } else { 0 }),
            answer: false,
        };
        let Some(conn) = table::in_kernel(cx, self.ns, self.ipvs, &key)? else {
            return Ok(None);
        };
        let server = service.servers.iter().find(|server| {
            server.addr == conn.server.0 && (conn.server.1 == 0 || server.port == conn.server.1)
        });
        let quiet = setting(
            &self.ipvs.sysctls.expire_quiescent_template,
            "expire_quiescent_template",
            self.ns,
        )?;
        Ok(server
            .copied()
            .filter(|server| !(quiet && server.weight == 0)))
    }

    /// There is no server (`ip_vs_leave()`).
    fn nobody(&self, service: &IpvsService, name: &str) -> Result<Request, String> {
        let sysctls = &self.ipvs.sysctls;
        if matches!(service.key, IpvsKey::Fwmark(..))
            && setting(&sysctls.cache_bypass, "cache_bypass", self.ns)?
        {
            return Err(format!(
                "{name} has no server, and cache bypass is not followed"
            ));
        }
        let text = match service.servers.len() {
            0 => format!("{name} has no server"),
            1 => format!("{name} has one server, which takes no new connections"),
            many => format!("{name} has {many} servers, none of which takes it"),
        };
        let step = Step::new(StepKind::Ipvs, text).with(Evidence::IpvsService {
            service: service.clone(),
        });
        Ok(Request::Gone(
            HookVerdict::Reject(RejectWith::PortUnreachable),
            step,
        ))
    }

    /// The packet on its way to a server.
    fn way(&self, cx: &mut Cx<'_>, share: f64, conn: Conn, step: Step) -> Result<Way, String> {
        let (mut skb, mut flows) = (self.skb.clone(), self.flows.clone());
        let name = words(conn.server);
        if conn.server.0.is_ipv4() != skb.packet.dst.is_ipv4() {
            return Err(format!(
                "the IPVS server {name} is of another family, which is not followed"
            ));
        }
        let local = match conn.method {
            IpvsMethod::Local => true,
            IpvsMethod::Masq | IpvsMethod::Direct => self.is_local(cx, conn.server.0)?,
            IpvsMethod::Tunnel => {
                return Err(format!(
                    "the IPVS server {name} is reached by a tunnel, which is not followed"
                ));
            }
            IpvsMethod::Bypass => return Err("IPVS's cache bypass is not followed".to_owned()),
            IpvsMethod::Other(number) => {
                return Err(format!(
                    "the IPVS server {name} is reached by method {number}, which is not known"
                ));
            }
        };
        if conn.method == IpvsMethod::Masq {
            skb.packet.dst = conn.server.0;
            skb.packet.set_dport(conn.server.1);
        }
        skb.ipvs = true;
        let alters = conn.method == IpvsMethod::Masq && !conn.one_packet;
        keep_track(self.ns, self.ipvs, &mut skb, &mut flows, |reply| {
            if alters {
                (reply.src, reply.sport) = conn.server;
            }
        })?;
        let sent = (!local).then_some(Sent {
            to: conn.server.0,
            direct: conn.method == IpvsMethod::Direct,
        });
        let step = step.changing(&self.skb.packet, &skb.packet);
        flows.add_ipvs(self.ns, conn);
        Ok(Way {
            share,
            skb,
            flows,
            step,
            sent,
        })
    }

    /// Whether an address is this host's, by its route alone (`do_output_route4()`).
    fn is_local(&self, cx: &mut Cx<'_>, addr: IpAddr) -> Result<bool, String> {
        match fib::lookup(cx, self.ns, &FibKey::to(addr)) {
            FibAnswer::Found(found) => Ok(matches!(
                found.route.kind,
                RouteKind::Local | RouteKind::Anycast
            )),
            FibAnswer::Unknown(why) => Err(why),
            FibAnswer::NoRoute | FibAnswer::Refused(_) => Ok(false),
        }
    }
}
