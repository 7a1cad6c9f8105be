//! What the kernel answers to RTM_GETROUTE.
//!
//! Read first: `inet_rtm_getroute()` (net/ipv4/route.c), `inet6_rtm_getroute()` (net/ipv6/route.c).

use std::fmt;
use std::net::IpAddr;

use netpath::collect::Error;
use netpath::collect::netlink::Netlink;
use netpath::collect::nla::{Attrs, Writer, ip, u32_at};

const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTA_UID: u16 = 25;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
/// RTM_F_LOOKUP_TABLE: the table that was found, not main.
const LOOKUP_TABLE: u32 = 0x1000;
/// RTM_F_FIB_MATCH: the route itself, not what a packet gets.
const FIB_MATCH: u32 = 0x2000;

/// What is looked up.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub dst: IpAddr,
    pub src: Option<IpAddr>,
    pub iif: Option<u32>,
    pub oif: Option<u32>,
    pub mark: u32,
    pub tos: u8,
    pub protocol: u8,
    pub sport: u16,
    pub dport: u16,
    pub uid: u32,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "get {}", self.dst)?;
        let opt = |f: &mut fmt::Formatter<'_>, word: &str, value: Option<String>| match value {
            Some(value) => write!(f, " {word} {value}"),
            None => Ok(()),
        };
        opt(f, "from", self.src.map(|src| src.to_string()))?;
        opt(f, "iif", self.iif.map(|dev| dev.to_string()))?;
        opt(f, "oif", self.oif.map(|dev| dev.to_string()))?;
        write!(
            f,
            " mark {:#x} tos {:#x} ipproto {} sport {} dport {} uid {}",
            self.mark, self.tos, self.protocol, self.sport, self.dport, self.uid
        )
    }
}

/// A route as RTM_NEWROUTE tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub kind: u8,
    pub table: u32,
    pub dst_len: u8,
    pub metric: u32,
    pub oif: Option<u32>,
    pub via: Option<IpAddr>,
    pub prefsrc: Option<IpAddr>,
}

/// Asks; `Err` is an errno.
pub fn ask(socket: &mut Netlink, question: &Question, fib_match: bool) -> Result<Answer, i32> {
    let v6 = question.dst.is_ipv6();
    let bits = if v6 { 128 } else { 32 };
    let flags = LOOKUP_TABLE | if fib_match { FIB_MATCH } else { 0 };
    let src_len = if question.src.is_some() { bits } else { 0 };
    let family = if v6 { 10 } else { 2 };
    let mut body = vec![family, bits, src_len, question.tos, 0, 0, 0, 0];
    body.extend(flags.to_ne_bytes());
    let mut body = Writer::new(&body);
    let mut put = |kind: u16, value: &[u8]| {
        body.put(kind, value);
    };
    let bytes = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    put(RTA_DST, &bytes(question.dst));
    if let Some(src) = question.src {
        put(RTA_SRC, &bytes(src));
    }
    for (kind, dev) in [(RTA_IIF, question.iif), (RTA_OIF, question.oif)] {
        if let Some(dev) = dev {
            put(kind, &dev.to_ne_bytes());
        }
    }
    put(RTA_MARK, &question.mark.to_ne_bytes());
    put(RTA_UID, &question.uid.to_ne_bytes());
    put(RTA_IP_PROTO, &[question.protocol]);
    put(RTA_SPORT, &question.sport.to_be_bytes());
    put(RTA_DPORT, &question.dport.to_be_bytes());
    let answer = match socket.get(RTM_GETROUTE, body.bytes(), "look a route up") {
        Ok(Some(answer)) => answer,
        Ok(None) => return Err(libc::ENOENT),
        Err(Error::Errno { errno, .. }) => return Err(errno),
        Err(error) => panic!("{question}: {error}"),
    };
    let attrs = Attrs(answer.get(12..).expect("a route message"));
    let number = |kind| attrs.find(kind).and_then(|value| u32_at(value, 0));
    let via = attrs.find(RTA_VIA).and_then(|value| ip(value.get(2..)?));
    Ok(Answer {
        kind: answer[7],
        table: number(RTA_TABLE).unwrap_or(u32::from(answer[4])),
        dst_len: answer[1],
        metric: number(RTA_PRIORITY).unwrap_or(0),
        oif: number(RTA_OIF),
        via: attrs.find(RTA_GATEWAY).and_then(ip).or(via),
        prefsrc: attrs.find(RTA_PREFSRC).and_then(ip),
    })
}
