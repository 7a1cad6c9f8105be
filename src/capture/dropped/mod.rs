//! Packets that the kernel dropped, and its reasons: `enum skb_drop_reason`, Linux 5.17 and later.
//!
//! One BPF program at the tracepoint kfree_skb ([`program`]), made for this kernel by its own types ([`btf`]), writes
//! what was dropped in the watched namespaces to a ring. Program, ring and all go when this is dropped.

mod btf;
mod program;
mod sys;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nix::time::{ClockId, clock_gettime};

use super::Frame;
use crate::collect::{Error, Result};
use crate::model::capture::Dropped;
use btf::Btf;
use program::{Event, Maps, Places};
use sys::{Kind, Ring};

/// The kernel's types.
const TYPES: &str = "/sys/kernel/btf/vmlinux";
/// Bytes of the ring.
const RING: u32 = 1 << 20;
/// Bytes of a cooked header.
const COOKED: u32 = 20;
const PREFIX: &str = "SKB_DROP_REASON_";
const SUBSYSTEM: &str = "SKB_DROP_REASON_SUBSYS_";
/// What is said to be done, in front of each cause.
const OPERATION: &str = "ask the kernel for what it drops and why";

/// A packet that was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Number of the namespace.
    pub space: u64,
    /// As a cooked frame (LINKTYPE_LINUX_SLL2), from its network header on.
    pub frame: Frame,
    /// Why.
    pub why: Dropped,
}

/// The program at its tracepoint.
pub struct Drops {
    ring: Ring,
    lost: OwnedFd,
    names: &'static BTreeMap<u32, String>,
    spaces: Vec<u32>,
    program: OwnedFd,
    // Ends the program with itself.
    _link: OwnedFd,
}

impl Drops {
    /// Has packets told that are dropped in namespaces of these numbers. Errors: this kernel can't, or must not.
    pub fn open(spaces: &[u64]) -> Result<Self> {
        let Kernel { places, names } = kernel()?;
        let failed = |what: &str| {
            let operation = format!("{OPERATION}: {what}");
            move |error: std::io::Error| Error::io(operation, &error)
        };
        let ring = Ring::new(RING).map_err(failed("make a BPF ring"))?;
        let lost = sys::map(Kind::Array, 8, 1, 0).map_err(failed("make a BPF map"))?;
        let format = sys::map(Kind::Array, 4, 1, sys::READ_ONLY)
            .and_then(|map| sys::fill(&map, b"%ps\0").map(|()| map))
            .map_err(failed("make a BPF map"))?;
        let spaces = numbers(spaces);
        let maps = Maps {
            ring: ring.map().as_raw_fd(),
            lost: lost.as_raw_fd(),
            format: format.as_raw_fd(),
        };
        let code = program::assemble(places, &spaces, maps);
        let program = sys::load(&code).map_err(|(error, last)| {
            let said = if last.is_empty() {
                String::new()
            } else {
                format!(" (the verifier: {last})")
            };
            Error::io(format!("{OPERATION}: load a BPF program{said}"), &error)
        })?;
        let link = sys::attach(c"kfree_skb", &program).map_err(failed("attach a BPF program"))?;
        Ok(Self {
            ring,
            lost,
            names,
            spaces,
            program,
            _link: link,
        })
    }

    /// Takes what has come since the last call, at most so many. Never waits.
    pub fn take(&mut self, most: usize) -> Vec<Lost> {
        let since = since_epoch();
        let (names, spaces) = (self.names, &self.spaces);
        let mut all = Vec::new();
        let mut left = most;
        self.ring.take(|raw| {
            let event = Event::parse(raw);
            all.extend(event.and_then(|event| told(event, spaces, names, since)));
            left = left.saturating_sub(1);
            left > 0
        });
        all
    }

    /// Packets that found no place in the ring, and those of any namespace at which the program was not run, since a CPU
    /// runs it for one packet at a time.
    pub fn lost(&self) -> Result<u64> {
        let failed = |error| Error::io("read how many dropped packets went untold", &error);
        let full = sys::read(&self.lost).map_err(failed)?;
        let missed = sys::missed(&self.program).map_err(failed)?;
        Ok(full.saturating_add(missed))
    }
}

impl AsFd for Drops {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// What this kernel's types tell: read once, since they are some megabytes and stay as they are.
struct Kernel {
    places: Places,
    names: BTreeMap<u32, String>,
}

fn kernel() -> Result<&'static Kernel> {
    static READ: OnceLock<Kernel> = OnceLock::new();
    if let Some(read) = READ.get() {
        return Ok(read);
    }
    let failed = || format!("{OPERATION}: read {TYPES}");
    let types = std::fs::read(TYPES).map_err(|error| Error::io(failed(), &error))?;
    let btf = Btf::parse(types).map_err(|why| Error::malformed(failed(), why))?;
    let places = Places::of(&btf).map_err(|why| Error::malformed(OPERATION, why))?;
    let names = names(&btf);
    Ok(READ.get_or_init(|| Kernel { places, names }))
}

/// Numbers of namespaces as the kernel holds them.
fn numbers(spaces: &[u64]) -> Vec<u32> {
    let mut all: Vec<u32> = spaces
        .iter()
        .filter_map(|space| u32::try_from(*space).ok())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Nanoseconds from 1970 to the beginning of CLOCK_MONOTONIC.
fn since_epoch() -> i64 {
    let nanos = |clock| {
        let time = clock_gettime(clock).ok()?;
        Some(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
    };
    let (now, monotonic) = (
        nanos(ClockId::CLOCK_REALTIME),
        nanos(ClockId::CLOCK_MONOTONIC),
    );
    now.unwrap_or_default()
        .saturating_sub(monotonic.unwrap_or_default())
}

/// Names of reasons without what all of them begin with; of the subsystems that have reasons of their own, in the
/// upper half of the number.
fn names(btf: &Btf) -> BTreeMap<u32, String> {
    let reasons = btf.numbers("skb_drop_reason").unwrap_or_default();
    let own = reasons.into_iter().filter_map(|(name, number)| {
        let name = name.strip_prefix(PREFIX)?;
        (number >> 16 == 0 && name != "MAX").then(|| (number, name.to_owned()))
    });
    let subsystems = btf.numbers("skb_drop_reason_subsys").unwrap_or_default();
    let of_others = subsystems.into_iter().filter_map(|(name, number)| {
        let name = name.strip_prefix(SUBSYSTEM)?;
        (number > 0).then(|| (number.saturating_mul(1 << 16), name.to_owned()))
    });
    own.chain(of_others).collect()
}

fn name(reason: u32, names: &BTreeMap<u32, String>) -> Option<String> {
    if let Some(name) = names.get(&reason) {
        return Some(name.clone());
    }
    let subsystem = names
        .get(&(reason & 0xffff_0000))
        .filter(|_| reason >> 16 > 0)?;
    Some(format!("{subsystem} {}", reason & 0xffff))
}

/// Bytes of a packet from its network header on: as that says, since the kernel counts from where it was at.
fn whole(event: &Event) -> u32 {
    let word = |at: usize| {
        let bytes = event.bytes.get(at..at + 2)?;
        Some(u32::from(u16::from_be_bytes(bytes.try_into().ok()?)))
    };
    let said = match event.bytes.first().map(|byte| byte >> 4) {
        Some(4) => word(2),
        // Without its own header.
        Some(6) => word(4).map(|rest| rest + 40),
        _ => None,
    };
    said.unwrap_or_default().max(event.len)
}

/// An event as a frame. `None`: it is of no namespace that is watched.
fn told(event: Event, spaces: &[u32], names: &BTreeMap<u32, String>, since: i64) -> Option<Lost> {
    let space = *event.spaces.iter().find(|own| spaces.contains(own))?;
    // The device is that of its own namespace alone.
    let by_device = event.spaces.first() == Some(&space);
    let ifindex = if by_device { event.ifindex } else { 0 };
    let protocol = match (event.protocol, event.bytes.first().map(|byte| byte >> 4)) {
        (0, Some(4)) => 0x0800,
        (0, Some(6)) => 0x86dd,
        (protocol, _) => protocol,
    };
    let mut bytes = protocol.to_be_bytes().to_vec();
    bytes.extend([0; 2]);
    bytes.extend(ifindex.to_be_bytes());
    // ARPHRD_ETHER, a packet to this host, no address: the packet's first bytes tell none of it.
    bytes.extend([0, 1, 0, 0]);
    bytes.extend([0; 8]);
    bytes.extend(&event.bytes);
    let time = i64::try_from(event.time).unwrap_or_default();
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let len = len.max(whole(&event).saturating_add(COOKED));
    let symbol = Some(event.symbol).filter(|name| !name.is_empty() && !name.starts_with("0x"));
    Some(Lost {
        space: space.into(),
        frame: Frame {
            time: time.saturating_add(since),
            len,
            bytes,
        },
        why: Dropped {
            reason: event.reason,
            name: name(event.reason, names),
            function: symbol,
        },
    })
}

#[cfg(test)]
mod tests;
