//! Which server a new connection gets.
//!
//! Read first: net/netfilter/ipvs/ip_vs_{rr,wrr,lc,wlc,sed,nq,sh,dh,fo,mh}.c, v6.1.

use std::net::IpAddr;

use crate::model::ipvs::{IpvsServer, IpvsService};
use crate::model::packet::Packet;

/// IP_VS_SH_TAB_SIZE and IP_VS_DH_TAB_SIZE, as Debian and the default configuration have them.
const TABLE: usize = 256;
/// IP_VS_SVC_F_SCHED_SH_FALLBACK
const FALLBACK: u32 = 8;
/// IP_VS_SVC_F_SCHED_SH_PORT
const WITH_PORT: u32 = 16;

/// The servers that a new connection may get, each with its share of many connections; none: no server takes it.
/// `Err`: what can't be known.
pub(super) fn choose(
    service: &IpvsService,
    packet: &Packet,
) -> Result<Vec<(f64, IpvsServer)>, String> {
    let servers = &service.servers;
    let mut open = Vec::new();
    for server in servers {
        if server.weight > 0 && !is_full(server)? {
            open.push(*server);
        }
    }
    let shared = |weight: &dyn Fn(&IpvsServer) -> i32| {
        let all: f64 = open.iter().map(|server| f64::from(weight(server))).sum();
        let share = |server: &IpvsServer| f64::from(weight(server)) / all;
        open.iter().map(|server| (share(server), *server)).collect()
    };
    let is_open = |server: &IpvsServer| open.contains(server);
    let one = |server: Option<&IpvsServer>| {
        let taken = server.filter(|server| is_open(server));
        taken.map(|server| (1.0, *server)).into_iter().collect()
    };
    Ok(match service.scheduler.as_str() {
        "none" => Vec::new(),
        "rr" | "lc" | "ovf" | "lblc" | "lblcr" => shared(&|_| 1),
        "wrr" | "wlc" | "sed" | "nq" | "mh" | "twos" => shared(&|server| server.weight),
        "fo" => {
            // The first of those with the highest weight.
            let mut best: Option<&IpvsServer> = None;
            for server in &open {
                if best.is_none_or(|best| server.weight > best.weight) {
                    best = Some(server);
                }
            }
            one(best)
        }
        "dh" => one(by_turns(servers).nth(hash(packet.dst, 0))),
        "sh" => return Ok(source_hash(service, packet, &is_open)),
        other => {
            return Err(format!(
                "how the IPVS scheduler {other} chooses is not known"
            ));
        }
    })
}

/// Why shares are not what the next connection meets.
pub(super) fn doubt(service: &IpvsService) -> Option<String> {
    let why = match service.scheduler.as_str() {
        "lc" | "wlc" | "sed" | "nq" | "ovf" => {
            "which server is next depends on how many connections each has then"
        }
        "mh" => "which server a client gets is decided by a hash that is not followed",
        "lblc" | "lblcr" => "which server is next depends on the connections that were before",
        "sh" => "which server a connection gets depends on its source port",
        _ => return None,
    };
    Some(format!("{why}; the shares are those of many connections"))
}

/// IP_VS_DEST_F_OVERLOAD, which is not told: it is set at the upper bound and stays until well below it
/// (`ip_vs_dest_update_overload()`).
fn is_full(server: &IpvsServer) -> Result<bool, String> {
    let conns = u64::from(server.active) + u64::from(server.inactive);
    let upper = u64::from(server.upper);
    let again = match server.lower {
        // `conns << 2 < upper * 3`
        0 => conns * 4 < upper * 3,
        lower => conns < u64::from(lower),
    };
    if upper == 0 || again {
        return Ok(false);
    }
    if conns >= upper {
        return Ok(true);
    }
    Err(format!(
        "whether the IPVS server {} port {} takes connections again is not told: it has {conns}, and {upper} was its bound",
        server.addr, server.port
    ))
}

/// `hash_32(port + address, 8)`
fn hash(addr: IpAddr, port: u16) -> usize {
    let folded = match addr {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(v6) => {
            let all = u128::from(v6);
            let word = |shift: u32| u32::try_from(all >> shift & u128::from(u32::MAX)).unwrap_or(0);
            word(0) ^ word(32) ^ word(64) ^ word(96)
        }
    };
    let mixed = folded
        .wrapping_add(u32::from(port))
        .wrapping_mul(0x61C8_8647);
    usize::try_from(mixed >> 24).unwrap_or(0)
}

/// Buckets of `dh`: servers in turn (`ip_vs_dh_reassign()`).
fn by_turns(servers: &[IpvsServer]) -> impl Iterator<Item = &IpvsServer> {
    servers.iter().cycle().take(TABLE)
}

/// Buckets of `sh`: as many in a row as a server's weight, one at least (`ip_vs_sh_reassign()`).
fn by_weight(servers: &[IpvsServer]) -> Vec<&IpvsServer> {
    let row = |server: &&IpvsServer| usize::try_from(server.weight).unwrap_or(0).clamp(1, TABLE);
    let round = servers
        .iter()
        .flat_map(|server| std::iter::repeat_n(server, row(&server)));
    let mut buckets: Vec<&IpvsServer> = round.take(TABLE).collect();
    let first = buckets.len();
    if first > 0 {
        for at in first..TABLE {
            buckets.extend(buckets.get(at % first).copied());
        }
    }
    buckets
}

/// `ip_vs_sh_schedule()`
fn source_hash(
    service: &IpvsService,
    packet: &Packet,
    is_open: &dyn Fn(&IpvsServer) -> bool,
) -> Vec<(f64, IpvsServer)> {
    let buckets = by_weight(&service.servers);
    let at = |start: usize| -> Option<IpvsServer> {
        let taken = |bucket: usize| buckets.get(bucket % TABLE).copied().copied();
        let first = taken(start)?;
        if is_open(&first) {
            return Some(first);
        }
        if service.flags & FALLBACK == 0 {
            return None;
        }
        // Around the table, from the bucket on that lies as far behind as the bucket's own number.
        (0..TABLE)
            .filter_map(|offset| taken((offset + start) % TABLE + start))
            .find(|server| is_open(server))
    };
    let with_port = service.flags & WITH_PORT != 0;
    match (with_port, packet.sport()) {
        (false, _) => {
            let found = at(hash(packet.src, 0));
            found.map(|server| (1.0, server)).into_iter().collect()
        }
        (true, Some(port)) => {
            let found = at(hash(packet.src, port));
            found.map(|server| (1.0, server)).into_iter().collect()
        }
        (true, None) => {
            let mut shares: Vec<(f64, IpvsServer)> = Vec::new();
            for server in (0..TABLE).filter_map(at) {
                match shares.iter_mut().find(|(_, own)| *own == server) {
                    Some((share, _)) => *share += 1.0,
                    None => shares.push((1.0, server)),
                }
            }
            let all: f64 = shares.iter().map(|(share, _)| share).sum();
            for (share, _) in &mut shares {
                *share /= all;
            }
            shares
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ipvs::{IpvsKey, IpvsMethod};
    use crate::model::packet::L4;

    fn server(last: u8, weight: i32) -> IpvsServer {
        IpvsServer {
            addr: IpAddr::from([10, 0, 0, last]),
            port: 80,
            method: IpvsMethod::Masq,
            weight,
            upper: 0,
            lower: 0,
            active: 0,
            inactive: 0,
            persistent: 0,
            tunnel: 0,
        }
    }

    fn service(scheduler: &str, flags: u32, servers: Vec<IpvsServer>) -> IpvsService {
        IpvsService {
            key: IpvsKey::Address(6, IpAddr::from([10, 96, 0, 1]), 80),
            scheduler: scheduler.to_owned(),
            flags,
            timeout: 0,
            netmask: 32,
            engine: None,
            servers,
        }
    }

    fn from(src: [u8; 4]) -> Packet {
        Packet::new(
            src.into(),
            IpAddr::from([10, 96, 0, 1]),
            L4::Tcp {
                sport: None,
                dport: Some(80),
                flags: 2,
            },
        )
    }

    fn chosen(service: &IpvsService, src: [u8; 4]) -> Vec<(f64, String)> {
        let found = choose(service, &from(src)).expect("a choice");
        let text = |(share, server): &(f64, IpvsServer)| (*share, server.addr.to_string());
        found.iter().map(text).collect()
    }

    #[test]
    fn weight_decides_as_the_scheduler_has_it() {
        let three = || vec![server(1, 1), server(2, 0), server(3, 3)];
        let is = |scheduler: &str, first: f64, last: f64| {
            let expected = [
                (first, "10.0.0.1".to_owned()),
                (last, "10.0.0.3".to_owned()),
            ];
            assert_eq!(
                chosen(&service(scheduler, 0, three()), [10, 1, 1, 1]),
                expected
            );
        };
        is("rr", 0.5, 0.5);
        is("lc", 0.5, 0.5);
        is("wrr", 0.25, 0.75);
        is("wlc", 0.25, 0.75);
        let fo = service("fo", 0, three());
        assert_eq!(chosen(&fo, [10, 1, 1, 1]), [(1.0, "10.0.0.3".to_owned())]);
        assert!(choose(&service("new", 0, three()), &from([10, 1, 1, 1])).is_err());
        let quiet = service("rr", 0, vec![server(1, 0)]);
        assert!(chosen(&quiet, [10, 1, 1, 1]).is_empty());
    }

    #[test]
    fn a_server_at_its_bound_takes_nothing_until_well_below() {
        let full = |conns: u32, lower: u32| {
            is_full(&IpvsServer {
                upper: 100,
                lower,
                active: conns,
                ..server(1, 1)
            })
            .ok()
        };
        assert_eq!(full(100, 0), Some(true));
        assert_eq!(full(74, 0), Some(false));
        assert_eq!(full(80, 0), None);
        assert_eq!(full(80, 90), Some(false));
        assert_eq!(full(95, 90), None);
    }

    /// One client keeps its server; all clients together meet servers by their weight.
    #[test]
    fn a_source_hash_is_a_table_of_weights() {
        let two = service("sh", 0, vec![server(1, 1), server(2, 3)]);
        let many = (0..=u8::MAX).map(|last| chosen(&two, [10, 244, 1, last]));
        let first = many.filter(|found| found[0].1 == "10.0.0.1").count();
        assert!((40..90).contains(&first), "{first} of 256");
        // Without a server in its bucket a client has none, but for the fallback.
        let quiet = |flags| service("sh", flags, vec![server(1, 1), server(2, 0)]);
        let lonely = (0..=u8::MAX).find(|last| chosen(&quiet(0), [10, 244, 1, *last]).is_empty());
        let client = [10, 244, 1, lonely.expect("a client")];
        assert_eq!(
            chosen(&quiet(FALLBACK), client),
            [(1.0, "10.0.0.1".to_owned())]
        );
        // With the port, which is any: both.
        let ports = service("sh", WITH_PORT, vec![server(1, 1), server(2, 1)]);
        assert_eq!(chosen(&ports, [10, 244, 1, 7]).len(), 2);
    }
}
