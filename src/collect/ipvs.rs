//! IPVS: services and servers by generic netlink, connections and settings from files of the calling thread's
//! namespace.
//!
//! Source: include/uapi/linux/ip_vs.h; net/netfilter/ipvs/ip_vs_ctl.c, `ip_vs_conn_seq_show()` (v6.12). Asking for
//! a generic family that is not there would make the kernel load its module, so `/proc/net/ip_vs` is looked for first.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::error::{Error, Result};
use super::netlink::{GENL_ID_CTRL, Netlink};
use super::nla::{self, Attrs, Writer};
use crate::model::ipvs::{
    Ipvs, IpvsConn, IpvsConnKey, IpvsKey, IpvsMethod, IpvsServer, IpvsService,
};
use crate::model::packet::{SCTP, TCP, UDP};

const CTRL_CMD_GETFAMILY: u8 = 3;
const IPVS_CMD_GET_SERVICE: u8 = 4;
const IPVS_CMD_GET_DEST: u8 = 8;
/// `sizeof(struct genlmsghdr)`
const HEADER: usize = 4;
/// `sizeof(union nf_inet_addr)`
const ADDR: usize = 16;
/// Bytes of `/proc/net/ip_vs` that tell whether there is a service: three lines of heading, and one more.
const HEAD: u64 = 1024;
/// Most services that are read whole, and most connections that are looked through for one.
const MOST: usize = 65_536;
const MOST_CONNS: usize = 4 << 20;

/// Whether there is IPVS with any service, and its settings. `proc` is the mount point of proc.
pub fn read(proc: &Path) -> Result<Option<Ipvs>> {
    let path = proc.join("thread-self/net/ip_vs");
    let operation = || format!("read {}", path.display());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(operation(), &error)),
    };
    let mut head = String::new();
    file.take(HEAD)
        .read_to_string(&mut head)
        .map_err(|error| Error::io(operation(), &error))?;
    if head.lines().nth(3).is_none() {
        return Ok(None);
    }
    Ok(Some(Ipvs {
        sysctls: super::sysctl::ipvs(proc),
        ..Ipvs::default()
    }))
}

/// Type of messages for IPVS; `None`: the kernel has none.
pub fn family(socket: &mut Netlink) -> Result<Option<u16>> {
    named_family(socket, "IPVS")
}

/// Type of messages for a generic family; `None`: the kernel has none such.
pub(super) fn named_family(socket: &mut Netlink, name: &str) -> Result<Option<u16>> {
    let operation = format!("look up the generic netlink family {name}");
    let mut request = Writer::new(&[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    request.put_text(2, name);
    let Some(answer) = socket.get(GENL_ID_CTRL, request.bytes(), &operation)? else {
        return Ok(None);
    };
    let id = attrs(&answer)
        .find(1)
        .and_then(|bytes| nla::u16_at(bytes, 0));
    id.map(Some)
        .ok_or_else(|| Error::malformed(operation, "it has no number"))
}

/// One service with its servers; `None`: there is none such.
pub fn find(socket: &mut Netlink, family: u16, key: &IpvsKey) -> Result<Option<IpvsService>> {
    let operation = format!("look up the IPVS service {key:?}");
    let mut request = Writer::new(&[IPVS_CMD_GET_SERVICE, 1, 0, 0]);
    request.nest(1, |nest| put_key(nest, key));
    let answer = match socket.get(family, request.bytes(), &operation) {
        Err(error) if error.errno() == Some(libc::ESRCH) => return Ok(None),
        other => other?,
    };
    let Some(answer) = answer else {
        return Ok(None);
    };
    let service = attrs(&answer).find(1).and_then(|nest| service(Attrs(nest)));
    let mut service =
        service.ok_or_else(|| Error::malformed(operation, "the service can't be decoded"))?;
    service.servers = servers(socket, family, key)?;
    Ok(Some(service))
}

/// All services with their servers, in the kernel's order.
pub fn all(socket: &mut Netlink, family: u16) -> Result<Vec<IpvsService>> {
    let operation = "list IPVS services";
    let request = Writer::new(&[IPVS_CMD_GET_SERVICE, 1, 0, 0]);
    let mut found = socket.try_dump(
        family,
        request.bytes(),
        operation,
        Vec::new,
        |list, _, payload| {
            if list.len() >= MOST {
                return Err(Error::TooMany {
                    operation: operation.to_owned(),
                    most: MOST,
                    remedy: "trace a flow instead, which reads that flow's service alone",
                });
            }
            let service = attrs(payload).find(1).and_then(|nest| service(Attrs(nest)));
            list.push(
                service.ok_or_else(|| Error::malformed(operation, "a service can't be decoded"))?,
            );
            Ok(())
        },
    )?;
    for service in &mut found {
        service.servers = servers(socket, family, &service.key)?;
    }
    Ok(found)
}

fn servers(socket: &mut Netlink, family: u16, key: &IpvsKey) -> Result<Vec<IpvsServer>> {
    let operation = format!("list the servers of the IPVS service {key:?}");
    let mut request = Writer::new(&[IPVS_CMD_GET_DEST, 1, 0, 0]);
    request.nest(1, |nest| put_key(nest, key));
    socket.try_dump(
        family,
        request.bytes(),
        &operation,
        Vec::new,
        |list, _, payload| {
            let server = attrs(payload).find(2).and_then(|nest| {
                let v6 = key.is_ipv6();
                server(Attrs(nest), v6)
            });
            list.push(
                server.ok_or_else(|| Error::malformed(&*operation, "a server can't be decoded"))?,
            );
            Ok(())
        },
    )
}

fn attrs(answer: &[u8]) -> Attrs<'_> {
    Attrs(answer.get(HEADER..).unwrap_or_default())
}

fn af(v6: bool) -> u16 {
    let number = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    u16::try_from(number).unwrap_or_default()
}

fn put_key(nest: &mut Writer, key: &IpvsKey) {
    nest.put(1, &af(key.is_ipv6()).to_ne_bytes());
    match key {
        IpvsKey::Address(protocol, addr, port) => {
            let mut bytes = match addr {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            bytes.resize(ADDR, 0);
            nest.put(2, &u16::from(*protocol).to_ne_bytes())
                .put(3, &bytes)
                .put(4, &port.to_be_bytes());
        }
        IpvsKey::Fwmark(mark, _) => {
            nest.put(5, &mark.to_ne_bytes());
        }
    }
}

fn address(bytes: &[u8], v6: bool) -> Option<IpAddr> {
    nla::ip(bytes.get(..if v6 { ADDR } else { 4 })?)
}

/// A service without its servers.
pub(super) fn service(attrs: Attrs<'_>) -> Option<IpvsService> {
    let number = |kind| attrs.find(kind).and_then(|bytes| nla::u32_at(bytes, 0));
    let short = |kind| attrs.find(kind).and_then(|bytes| nla::u16_at(bytes, 0));
    let v6 = short(1)? == af(true);
    let key = match number(5) {
        Some(mark) => IpvsKey::Fwmark(mark, v6),
        None => IpvsKey::Address(
            u8::try_from(short(2)?).ok()?,
            address(attrs.find(3)?, v6)?,
            attrs.find(4).and_then(|bytes| nla::be16_at(bytes, 0))?,
        ),
    };
    let mask = attrs.find(9)?;
    // A mask of IPv4, a length of IPv6 in host order.
    let netmask = if v6 {
        nla::u32_at(mask, 0)?
    } else {
        nla::be32(mask)?.leading_ones()
    };
    Some(IpvsService {
        key,
        scheduler: attrs.find(6).map(nla::text)?,
        flags: number(7)?,
        timeout: number(8)?,
        netmask: u8::try_from(netmask).ok()?,
        engine: attrs.find(11).map(nla::text),
        servers: Vec::new(),
    })
}

/// A server of a service of this family.
pub(super) fn server(attrs: Attrs<'_>, v6: bool) -> Option<IpvsServer> {
    let number = |kind| attrs.find(kind).and_then(|bytes| nla::u32_at(bytes, 0));
    // Older than 3.18: that of the service.
    let own = attrs.find(11).and_then(|bytes| nla::u16_at(bytes, 0));
    let v6 = own.map_or(v6, |own| own == af(true));
    Some(IpvsServer {
        addr: address(attrs.find(1)?, v6)?,
        port: attrs.find(2).and_then(|bytes| nla::be16_at(bytes, 0))?,
        method: match number(3)? {
            0 => IpvsMethod::Masq,
            1 => IpvsMethod::Local,
            2 => IpvsMethod::Tunnel,
            3 => IpvsMethod::Direct,
            4 => IpvsMethod::Bypass,
            other => IpvsMethod::Other(other),
        },
        weight: number(4)?.cast_signed(),
        upper: number(5)?,
        lower: number(6)?,
        active: number(7)?,
        inactive: number(8)?,
        persistent: number(9)?,
        tunnel: attrs
            .find(13)
            .and_then(|bytes| bytes.first().copied())
            .unwrap_or(0),
    })
}

/// The connection that a key finds, from `/proc/net/ip_vs_conn` of the calling thread's namespace: a line at a time,
/// so that a large table takes no memory.
pub fn connection(proc: &Path, key: &IpvsConnKey) -> Result<Option<IpvsConn>> {
    let path = proc.join("thread-self/net/ip_vs_conn");
    let operation = || format!("read {}", path.display());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(operation(), &error)),
    };
    let mut lines = BufReader::with_capacity(64 << 10, file);
    let mut line = String::new();
    for number in 0..MOST_CONNS {
        line.clear();
        let read = lines
            .read_line(&mut line)
            .map_err(|error| Error::io(operation(), &error))?;
        if read == 0 {
            return Ok(None);
        }
        // The first line is a heading.
        if number == 0 {
            continue;
        }
        let conn = conn(&line)
            .ok_or_else(|| Error::malformed(operation(), "a line is not as expected"))?;
        if conn.is(key) {
            return Ok(Some(conn));
        }
    }
    Err(Error::TooMany {
        operation: operation(),
        most: MOST_CONNS,
        remedy: "look for it with ipvsadm -Lnc",
    })
}

/// `TCP 0AF40107 9C40 0A600E03 0050 0AF40109 1F90 ESTABLISHED     899`
pub(super) fn conn(line: &str) -> Option<IpvsConn> {
    let mut words = line.split_whitespace();
    let protocol = match words.next()? {
        "TCP" => TCP,
        "UDP" => UDP,
        "SCTP" => SCTP,
        "AH" => 51,
        "ESP" => 50,
        "IP" => 0,
        other => other.strip_prefix("IP_")?.parse().ok()?,
    };
    let mut end = || {
        let (addr, port) = (words.next()?, words.next()?);
        let addr = if addr.contains(':') {
            IpAddr::V6(addr.parse().ok()?)
        } else {
            IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(addr, 16).ok()?))
        };
        Some((addr, u16::from_str_radix(port, 16).ok()?))
    };
    Some(IpvsConn {
        protocol,
        client: end()?,
        virt: end()?,
        server: end()?,
        state: words.next()?.to_owned(),
        expires: words.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `ip_vs_genl_fill_service()` and `ip_vs_genl_fill_dest()` write them; cut short they are nothing.
    #[test]
    fn services_and_servers_are_decoded() {
        let mut bytes = Writer::default();
        put_key(
            &mut bytes,
            &IpvsKey::Address(TCP, IpAddr::from([10, 96, 14, 3]), 80),
        );
        bytes
            .put_text(6, "rr")
            .put(7, &[5, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])
            .put(8, &10_800_u32.to_ne_bytes())
            .put(9, &[255, 255, 255, 0]);
        let found = service(Attrs(bytes.bytes())).expect("a service");
        assert!(found.persistent() && found.one_packet());
        assert_eq!(
            (found.scheduler.as_str(), found.timeout, found.netmask),
            ("rr", 10_800, 24)
        );
        let mut bytes = Writer::default();
        let mut addr = vec![10, 244, 1, 9];
        addr.resize(ADDR, 0);
        bytes.put(1, &addr).put(2, &8080_u16.to_be_bytes());
        for (kind, value) in [
            (3, 0_u32),
            (4, 2),
            (5, 100),
            (6, 10),
            (7, 7),
            (8, 8),
            (9, 9),
        ] {
            bytes.put(kind, &value.to_ne_bytes());
        }
        let whole = bytes.bytes();
        let found = server(Attrs(whole), false).expect("a server");
        assert_eq!(
            (found.addr, found.port),
            (IpAddr::from([10, 244, 1, 9]), 8080)
        );
        assert_eq!((found.method, found.weight), (IpvsMethod::Masq, 2));
        assert_eq!((found.upper, found.lower, found.active), (100, 10, 7));
        for len in 0..whole.len() {
            assert!(server(Attrs(&whole[..len]), false).is_none(), "{len}");
        }
    }

    /// Lines of a 6.1 kernel.
    #[test]
    fn connections_are_read_from_their_lines() {
        let v4 = conn("TCP 0AF40107 9C40 0A600E03 0050 0AF40109 1F90 ESTABLISHED     899\n")
            .expect("a connection");
        let end = |addr: &str, port| (addr.parse().expect("an address"), port);
        assert_eq!(v4.client, end("10.244.1.7", 40000));
        assert_eq!(v4.virt, end("10.96.14.3", 80));
        assert_eq!(v4.server, end("10.244.1.9", 8080));
        assert_eq!(
            (v4.protocol, v4.expires, v4.state.as_str()),
            (TCP, 899, "ESTABLISHED")
        );
        let key = |other, answer| IpvsConnKey {
            protocol: TCP,
            client: v4.client,
            other,
            answer,
        };
        assert!(v4.is(&key(v4.virt, false)) && v4.is(&key(v4.server, true)));
        assert!(!v4.is(&key(v4.virt, true)) && !v4.is(&key(v4.server, false)));
        // A template of a service that goes by mark, and one of IPv6 with a persistence engine.
        let mark = conn("IP  0AF40100 0000 00004000 0000 0AF40109 0000 NONE          42\n");
        assert_eq!(
            mark.map(|conn| (conn.protocol, conn.client.1)),
            Some((0, 0))
        );
        let v6 = conn(
            "UDP fd00:0010:0244:0001:0000:0000:0000:0007 D431 fd00:0010:0096:0000:0000:0000:0000:0e03 0035 \
             fd00:0010:0244:0002:0000:0000:0000:0004 1F75 UDP             299 sip 1234@host\n",
        )
        .expect("a connection");
        assert_eq!(v6.virt, end("fd00:10:96::e03", 53));
        assert!(conn("TCP 0AF40107 9C40").is_none());
        assert!(conn("what is this").is_none());
    }
}
