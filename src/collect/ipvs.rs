//! IPVS virtual services, from `/proc/net/ip_vs` of the calling thread's namespace.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::error::{Error, Result};
use crate::model::ipvs::IpvsService;
use crate::model::packet::{SCTP, TCP, UDP};

/// Reads the services; none where the kernel has no IPVS. `proc` is the mount point of proc.
pub fn read(proc: &Path) -> Result<Vec<IpvsService>> {
    let path = proc.join("thread-self/net/ip_vs");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io(format!("read {}", path.display()), &error)),
    }
}

/// Lines of services start with a protocol or `FWM`; those of destinations with an arrow.
fn parse(text: &str) -> Vec<IpvsService> {
    text.lines()
        // Two lines of heading, and one for the columns of destinations.
        .skip(3)
        .filter(|line| !line.trim_start().starts_with("->") && !line.trim().is_empty())
        .map(|line| service(line).unwrap_or_else(|| IpvsService::Other(line.trim().to_owned())))
        .collect()
}

fn service(line: &str) -> Option<IpvsService> {
    let mut words = line.split_whitespace();
    let (kind, place) = (words.next()?, words.next()?);
    let protocol = match kind {
        "TCP" => TCP,
        "UDP" => UDP,
        "SCTP" => SCTP,
        "FWM" => return u32::from_str_radix(place, 16).ok().map(IpvsService::Fwmark),
        _ => return None,
    };
    let (address, port) = place.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = match address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(v6) => IpAddr::V6(v6.parse().ok()?),
        None => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?)),
    };
    Some(IpvsService::Address(protocol, address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format of `ip_vs_info_seq_show()`: addresses of IPv4 and all ports in hexadecimal.
    #[test]
    fn services_are_read_and_destinations_passed_over() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n  \
            -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
            TCP  0A600E03:0050 rr  \n  \
            -> 0AF40109:1F90      Masq    1      0          0         \n\
            UDP  [fd00:0010:0096:0000:0000:0000:0000:0e03]:0035 rr persistent 10800 ffffffff\n\
            FWM  00004000 wlc \n\
            XYZ  what is this\n";
        let v4 = "10.96.14.3".parse().expect("an address");
        let v6 = "fd00:10:96::e03".parse().expect("an address");
        assert_eq!(
            parse(text),
            [
                IpvsService::Address(TCP, v4, 80),
                IpvsService::Address(UDP, v6, 53),
                IpvsService::Fwmark(0x4000),
                IpvsService::Other("XYZ  what is this".to_owned()),
            ]
        );
    }
}
