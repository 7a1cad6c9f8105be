//! What a user typed for one end of a flow, taken apart without asking anybody.
//!
//! Grammar: `[TYPE/]NAME[.NAMESPACE][:PORT]`, `NAMESPACE/NAME[:PORT]` where NAMESPACE is no type, an
//! address with or without a port, or a URL; with `--local` also `netns/NAME`, `pid/N` and `host`. Whether the name exists is decided later, in
//! [`super::choose`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::ends::Family;
pub use super::words::{ObjectKind, PortSpec, Protocol};

/// One end of a flow as typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EndSpec {
    /// A name, with or without its kind.
    Object {
        /// Kind, where `TYPE/` was typed.
        kind: Option<ObjectKind>,
        /// The name with whatever dots followed it: `api.shop` may be Service `api` in namespace
        /// `shop` or pod `api.shop`; see [`readings`].
        name: String,
        /// Port, where `:PORT` was typed.
        port: Option<PortSpec>,
    },
    /// A literal address.
    Address {
        /// IPv4 or IPv6.
        ip: IpAddr,
        /// Port, where typed.
        port: Option<PortSpec>,
    },
    /// `http://` or `https://`; the path is not part of a packet's way and is dropped.
    Url {
        /// Host name or address without brackets.
        host: String,
        /// The URL's port, else 80 or 443.
        port: NonZeroU16,
    },
    /// `netns/NAME`: a namespace under /run/netns (`--local` only).
    Netns {
        /// File name below /run/netns.
        name: String,
        /// Port, where typed.
        port: Option<PortSpec>,
    },
    /// `pid/N`: the network namespace of a process (`--local` only).
    Pid {
        /// Process id as this machine's root PID namespace numbers it.
        pid: u32,
        /// Port, where typed.
        port: Option<PortSpec>,
    },
    /// `host`: the network namespace that this program runs in (`--local` only).
    Host {
        /// Port, where typed.
        port: Option<PortSpec>,
    },
}

impl EndSpec {
    /// The same as a destination: `localhost` is the sender itself, whatever names there are; a Service
    /// or pod of that name is `svc/localhost` or `pod/localhost`.
    #[must_use]
    pub fn of_sender(self, family: Option<Family>) -> Self {
        let ip = match family {
            Some(Family::V6) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        match self {
            Self::Object {
                kind: None,
                name,
                port,
            } if name == LOCALHOST => Self::Address { ip, port },
            Self::Url { host, port } if host == LOCALHOST => Self::Address {
                ip,
                port: Some(PortSpec::Number(port)),
            },
            other => other,
        }
    }

    /// The port typed, if any.
    pub fn port(&self) -> Option<PortSpec> {
        match self {
            Self::Object { port, .. }
            | Self::Address { port, .. }
            | Self::Netns { port, .. }
            | Self::Pid { port, .. }
            | Self::Host { port } => port.clone(),
            Self::Url { port, .. } => Some(PortSpec::Number(*port)),
        }
    }
}

/// Why a text is not an end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("end {text:?}: {why}")]
pub struct ParseError {
    /// What was typed.
    pub text: String,
    /// What is wrong, and what to type instead.
    pub why: String,
}

const LOCALHOST: &str = "localhost";

const FORMS: &str = "use [TYPE/]NAME[.NAMESPACE][:PORT], ADDRESS[:PORT] or a URL, for instance web-0, \
                     svc/api:http, api.shop:80, node/worker-1 or 10.96.0.10:53";

/// What can stand before the slash.
pub(super) const TYPES: &str = "pod, svc, deploy, sts, ds, rs or node";

/// Reads one end of a trace in a cluster.
///
/// Errors: empty text, unknown type, malformed name, port or address.
pub fn parse(text: &str) -> Result<EndSpec, ParseError> {
    parse_text(text, false).map_err(|why| ParseError {
        text: text.to_owned(),
        why,
    })
}

/// Reads one end of a trace with `--local`, where names are this machine's namespaces.
///
/// Errors: as [`parse`], and any end that only a cluster can resolve.
pub fn parse_local(text: &str) -> Result<EndSpec, ParseError> {
    parse_text(text, true).map_err(|why| ParseError {
        text: text.to_owned(),
        why,
    })
}

fn parse_text(text: &str, local: bool) -> Result<EndSpec, String> {
    if text.is_empty() {
        return Err(format!("it is empty; {FORMS}"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("it contains white space".to_owned());
    }
    if let Some(spec) = parse_url(text)? {
        return somewhere(spec);
    }
    if let Some(spec) = parse_address(text)? {
        return somewhere(spec);
    }
    let (head, rest) = match text.split_once('/') {
        Some((head, rest)) => (Some(head), rest),
        None => (None, text),
    };
    let (name, port) = split_port(rest)?;
    if name.is_empty() {
        return Err(format!("the name is missing; {FORMS}"));
    }
    if local {
        return parse_local_name(head, name, port);
    }
    check_name(name)?;
    let (kind, name) = match head {
        None => (None, name.to_owned()),
        Some("netns" | "pid") => return Err("this end exists with --local only".to_owned()),
        Some(head) => match ObjectKind::from_prefix(head) {
            Some(kind) => (Some(kind), name.to_owned()),
            // As this program and kubectl's descriptions print objects.
            None if !head.contains('.') && check_name(head).is_ok() => {
                (None, format!("{name}.{head}"))
            }
            None => return Err(format!("unknown type {head:?}; use {TYPES}")),
        },
    };
    Ok(EndSpec::Object { kind, name, port })
}

/// Refuses an address that stands for any: programs listen on it, packets are not sent to or from it.
fn somewhere(spec: EndSpec) -> Result<EndSpec, String> {
    let ip = match &spec {
        EndSpec::Address { ip, .. } => Some(*ip),
        EndSpec::Url { host, .. } => host.parse().ok(),
        _ => None,
    };
    match ip {
        Some(ip) if ip.is_unspecified() => {
            let own = if ip.is_ipv4() { "127.0.0.1" } else { "::1" };
            Err(format!(
                "{ip} is what programs listen on, no address of anybody; give that of a pod, Service or node, or {own} for the sender itself"
            ))
        }
        _ => Ok(spec),
    }
}

fn parse_local_name(
    head: Option<&str>,
    name: &str,
    port: Option<PortSpec>,
) -> Result<EndSpec, String> {
    match (head, name) {
        (None, "host") => Ok(EndSpec::Host { port }),
        (None, LOCALHOST) => Ok(EndSpec::Object {
            kind: None,
            name: name.to_owned(),
            port,
        }),
        (Some("netns"), name) => {
            if name.contains('/') || name == "." || name == ".." {
                return Err("a namespace name is one file name below /run/netns".to_owned());
            }
            Ok(EndSpec::Netns {
                name: name.to_owned(),
                port,
            })
        }
        (Some("pid"), number) => match number.parse::<u32>() {
            Ok(pid) if pid > 0 => Ok(EndSpec::Pid { pid, port }),
            _ => Err(format!("{number:?} is not a process id")),
        },
        _ => Err("with --local an end is netns/NAME, pid/N, host or an address".to_owned()),
    }
}

fn parse_url(text: &str) -> Result<Option<EndSpec>, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Ok(None);
    };
    let default = match scheme.to_ascii_lowercase().as_str() {
        "http" | "ws" => 80,
        "https" | "wss" | "grpcs" => 443,
        _ => {
            return Err(format!(
                "unknown scheme {scheme:?}; use http or https, or NAME:PORT"
            ));
        }
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let (host, port) = if let Some(inner) = authority.strip_prefix('[') {
        let (host, after) = inner
            .split_once(']')
            .ok_or_else(|| "the bracket is not closed".to_owned())?;
        host.parse::<Ipv6Addr>()
            .map_err(|_| format!("{host:?} is not an IPv6 address"))?;
        (host, after.strip_prefix(':'))
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() {
        return Err("the URL has no host".to_owned());
    }
    if host.parse::<IpAddr>().is_err() {
        check_name(host)?;
    }
    let number = match port {
        None | Some("") => default,
        Some(port) => match port.parse::<u16>() {
            Ok(number) => number,
            Err(_) => return Err(format!("port {port:?} is not a number from 1 to 65535")),
        },
    };
    let port =
        NonZeroU16::new(number).ok_or_else(|| "port 0 is not a port; use 1 to 65535".to_owned())?;
    Ok(Some(EndSpec::Url {
        host: host.to_owned(),
        port,
    }))
}

fn parse_address(text: &str) -> Result<Option<EndSpec>, String> {
    if let Some(inner) = text.strip_prefix('[') {
        let (host, after) = inner
            .split_once(']')
            .ok_or_else(|| "the bracket is not closed".to_owned())?;
        let ip: Ipv6Addr = host
            .parse()
            .map_err(|_| format!("{host:?} is not an IPv6 address"))?;
        let port = match after {
            "" => None,
            after => {
                let port = after
                    .strip_prefix(':')
                    .ok_or_else(|| format!("{after:?} after the address is not a port"))?;
                Some(parse_port(port)?)
            }
        };
        return Ok(Some(EndSpec::Address {
            ip: IpAddr::V6(ip),
            port,
        }));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Some(EndSpec::Address { ip, port: None }));
    }
    if text.matches(':').count() > 1 {
        return Err("not an IPv6 address; with a port write [ADDRESS]:PORT".to_owned());
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        let port = port.map(parse_port).transpose()?;
        return Ok(Some(EndSpec::Address {
            ip: IpAddr::V4(ip),
            port,
        }));
    }
    // Four dotted numbers were meant as an address: as a name they would give a puzzling "not found".
    let parts: Vec<&str> = host.split('.').collect();
    if parts.len() == 4
        && parts
            .iter()
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(format!("{host:?} is not an IPv4 address"));
    }
    Ok(None)
}

fn split_port(text: &str) -> Result<(&str, Option<PortSpec>), String> {
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((name, port)) => Ok((name, Some(parse_port(port)?))),
    }
}

fn parse_port(text: &str) -> Result<PortSpec, String> {
    if text.is_empty() {
        return Err("the port after the colon is missing".to_owned());
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let number = text.parse::<u16>().ok().and_then(NonZeroU16::new);
        return number
            .map(PortSpec::Number)
            .ok_or_else(|| format!("port {text} is out of range; use 1 to 65535"));
    }
    let fits = text.len() <= 63
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits {
        Ok(PortSpec::Name(text.to_owned()))
    } else {
        Err(format!(
            "port {text:?} is neither a number nor a port name (lower-case letters, digits, dashes)"
        ))
    }
}

/// Accepts what the API accepts as a name (RFC 1123 subdomain), to refuse typing slips early.
fn check_name(name: &str) -> Result<(), String> {
    if name.contains('/') {
        return Err(format!("too many slashes; {FORMS}"));
    }
    if name.len() > 253 {
        return Err("the name is longer than 253 characters".to_owned());
    }
    let good = name.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    });
    if good {
        return Ok(());
    }
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("names have no upper-case letters".to_owned());
    }
    Err(format!(
        "{name:?} is not a Kubernetes name (lower-case letters, digits, dashes, dots)"
    ))
}

/// One way to read a dotted name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Object name.
    pub name: String,
    /// Namespace; `None` means the default one.
    pub namespace: Option<String>,
    /// Kind that the form of the name implies (`NAME.NS.svc` is a Service), if any.
    pub implies: Option<ObjectKind>,
}

/// All ways to read a name, likeliest first: cluster DNS names, `NAME.NAMESPACE` (split at the last
/// dot, since a namespace has none), then the whole as a name in the default namespace.
pub fn readings(name: &str) -> Vec<Reading> {
    let plain = |name: &str| Reading {
        name: name.to_owned(),
        namespace: None,
        implies: None,
    };
    let labels: Vec<&str> = name.split('.').collect();
    let within = |kind, name: &str, namespace: &str| Reading {
        name: name.to_owned(),
        namespace: Some(namespace.to_owned()),
        implies: kind,
    };
    let mut all = Vec::new();
    match labels.as_slice() {
        [service, namespace, "svc"] | [service, namespace, "svc", "cluster", "local"] => {
            all.push(within(Some(ObjectKind::Service), service, namespace));
        }
        [pod, _service, namespace, "svc"]
        | [pod, _service, namespace, "svc", "cluster", "local"] => {
            all.push(within(Some(ObjectKind::Pod), pod, namespace));
        }
        _ => {}
    }
    if let Some((head, namespace)) = name.rsplit_once('.') {
        all.push(within(None, head, namespace));
    }
    all.push(plain(name));
    all
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
