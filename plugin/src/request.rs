//! What was typed, checked and with all defaults filled in.

use std::path::{Path, PathBuf};

use anyhow::bail;
use netpath::model::packet;

use crate::cli::{AccessFlags, ProtocolName, TraceArgs};
use crate::kube_flags::quoted;
use crate::launch::HelperFlags;
use crate::resolve::{Family, Protocol};

/// Where facts come from.
#[derive(Clone, Debug)]
pub enum Facts {
    /// Helpers on the cluster's nodes.
    Cluster(HelperFlags),
    /// A helper on this machine.
    Local,
    /// A file that was saved.
    File(PathBuf),
}

impl Facts {
    /// From the flags. Errors: `--local` where there is no Linux kernel to look at.
    pub fn of(flags: &AccessFlags) -> anyhow::Result<Self> {
        if flags.helper.dry_run && (flags.local || flags.snapshot.is_some()) {
            bail!(
                "--dry-run shows the helper pods of a cluster; with --local and --snapshot there are none"
            );
        }
        if let Some(file) = &flags.snapshot {
            return Ok(Self::File(file.clone()));
        }
        if !flags.local {
            return Ok(Self::Cluster(flags.helper.clone()));
        }
        if !cfg!(target_os = "linux") {
            bail!(
                "--local looks at this machine's kernel, which is no Linux; use it on the machine in question, or --snapshot FILE here"
            );
        }
        Ok(Self::Local)
    }
}

/// The flag that names a file, for commands that are printed to be pasted.
pub fn file_flags(path: &Path) -> Vec<String> {
    vec!["--snapshot".to_owned(), quoted(&path.display().to_string())]
}

/// A trace to make.
#[derive(Clone, Debug)]
pub struct TraceRequest {
    /// Source as typed.
    pub source: String,
    /// Destination as typed.
    pub destination: String,
    /// Protocol, where it was typed.
    pub protocol: Option<Protocol>,
    /// Source port, where it was typed.
    pub source_port: Option<u16>,
    /// Bytes of the packet, where they were typed.
    pub size: Option<u32>,
    /// Bytes that a datagram carries, where they are known.
    pub data: Option<u32>,
    /// Family, where it was typed.
    pub family: Option<Family>,
    /// Where facts come from.
    pub facts: Facts,
}

impl TraceRequest {
    /// Checks what was typed. Errors: flags that contradict each other.
    pub fn of(args: &TraceArgs) -> anyhow::Result<Self> {
        let protocol = args.protocol.map(|name| match name {
            ProtocolName::Tcp => Protocol::Tcp,
            ProtocolName::Udp => Protocol::Udp,
            ProtocolName::Icmp => Protocol::Icmp,
            ProtocolName::Sctp => Protocol::Sctp,
        });
        if protocol == Some(Protocol::Icmp) && args.source_port.is_some() {
            bail!("--source-port with --protocol icmp: echo requests have no ports; leave it out");
        }
        let family = match (args.ipv4, args.ipv6) {
            (true, _) => Some(Family::V4),
            (_, true) => Some(Family::V6),
            _ => None,
        };
        Ok(Self {
            source: args.source.clone(),
            destination: args.destination.clone(),
            protocol,
            source_port: args.source_port,
            size: args.size,
            data: args
                .data
                .as_ref()
                .and_then(|data| u32::try_from(data.len()).ok()),
            family,
            facts: Facts::of(&args.access)?,
        })
    }

    /// Bytes of the packet: as typed, else those of the data to send, a SYN without data or a small echo request.
    pub fn size(&self, protocol: Protocol, v6: bool) -> u32 {
        let header = if v6 { 40 } else { 20 };
        self.size.unwrap_or(match protocol {
            Protocol::Icmp => header + 64,
            Protocol::Udp if self.data.is_some() => {
                let data = self.data.unwrap_or_default();
                data.saturating_add(header + 8)
            }
            Protocol::Tcp | Protocol::Udp | Protocol::Sctp => header + 40,
        })
    }
}

/// IPPROTO_* number of a protocol towards an address family.
pub fn protocol_number(protocol: Protocol, v6: bool) -> u8 {
    match protocol {
        Protocol::Tcp => packet::TCP,
        Protocol::Udp => packet::UDP,
        Protocol::Sctp => packet::SCTP,
        Protocol::Icmp if v6 => packet::ICMPV6,
        Protocol::Icmp => packet::ICMP,
    }
}
