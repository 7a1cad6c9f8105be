//! Sees packets, and sends some so that they are seen. Linux only, needs libpcap.
//!
//! A [`Tap`] captures at one device of one namespace, with a filter that the kernel runs. It is opened
//! inside the namespace and read from outside. It never waits: libpcap's read timeout does not end on
//! an idle device (crates' notes, TPACKET_V2), so handles are non-blocking and the caller polls.
//! [`Taps`] is all that the helper watches for one client; [`probe`] sends.

#![allow(
    clippy::disallowed_methods,
    reason = "a probe waits for its answer, and no longer"
)]

pub mod decode;
mod dropped;
mod filter;
pub mod probe;
pub mod tunnel;
mod watcher;

use std::os::fd::{AsFd, BorrowedFd};

use pcap::{Active, Capture, Linktype, Precision};

use crate::collect::netns::{Hopper, NsFile};
use crate::model::capture::{ANY, Losses};

pub use decode::decode;
pub use watcher::Taps;

/// Bytes kept of each packet: headers of a tunnel packet and of the packet inside.
pub const SNAPLEN: u32 = 192;
/// Bytes of the kernel's ring for one tap.
pub const RING: u32 = 256 << 10;

/// Why packets can't be seen.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The namespace can't be entered.
    #[error("capture on {dev}: enter its namespace: {why}")]
    Namespace {
        /// Device.
        dev: String,
        /// Cause.
        why: String,
    },
    /// libpcap refuses.
    #[error("capture on {dev}: {operation}: {source}{}", remedy(.source))]
    Pcap {
        /// Device.
        dev: String,
        /// What was done.
        operation: String,
        /// Cause.
        source: pcap::Error,
    },
}

fn remedy(error: &pcap::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("ermission") || text.contains("ermitted") {
        " (the helper needs CAP_NET_RAW)"
    } else {
        ""
    }
}

/// A frame that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Nanoseconds since 1970.
    pub time: i64,
    /// Length on the wire in bytes, link-layer header included.
    pub len: u32,
    /// The first bytes.
    pub bytes: Vec<u8>,
}

/// What a tap is to take.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Device, or [`ANY`].
    pub dev: String,
    /// In pcap's language; empty takes everything.
    pub filter: String,
    /// Most bytes of each packet.
    pub snaplen: u32,
    /// Bytes of the kernel's ring.
    pub ring: u32,
    /// Also packets for other stations.
    pub promiscuous: bool,
}

impl Setup {
    /// Headers of packets of a filter at a device.
    pub fn new(dev: &str, filter: &str) -> Self {
        Self {
            dev: dev.to_owned(),
            filter: filter.to_owned(),
            snaplen: SNAPLEN,
            ring: RING,
            promiscuous: false,
        }
    }
}

/// A capture at one device.
pub struct Tap {
    dev: String,
    capture: Capture<Active>,
    link: u32,
}

impl Tap {
    /// Opens a tap in a namespace.
    pub fn open(hopper: &Hopper, ns: &NsFile, setup: Setup) -> Result<Self, CaptureError> {
        let dev = setup.dev.clone();
        let opened = hopper.run(ns, move || open(&setup));
        let capture = opened.map_err(|error| CaptureError::Namespace {
            dev: dev.clone(),
            why: error.to_string(),
        })??;
        let link = match u32::try_from(capture.get_datalink().0) {
            // Its number in files.
            Ok(12) => decode::RAW,
            Ok(link) => link,
            Err(_) => u32::MAX,
        };
        Ok(Self { dev, capture, link })
    }

    /// Device it is on.
    pub fn dev(&self) -> &str {
        &self.dev
    }

    /// LINKTYPE_* of its frames.
    pub fn link(&self) -> u32 {
        self.link
    }

    /// Takes what has come since the last call, in order, at most `frames` and none once those taken have `bytes`
    /// bytes. Never waits. What came before an error is taken, too.
    pub fn take(
        &mut self,
        frames: usize,
        bytes: usize,
        all: &mut Vec<Frame>,
    ) -> Result<(), CaptureError> {
        let most = all.len().saturating_add(frames);
        let mut taken = 0_usize;
        while all.len() < most && taken < bytes {
            match self.capture.next_packet() {
                Ok(packet) => {
                    let stamp = packet.header.ts;
                    taken = taken.saturating_add(packet.data.len());
                    all.push(Frame {
                        // The handle's precision is nanoseconds, whatever the field is called.
                        time: stamp.tv_sec * 1_000_000_000 + stamp.tv_usec,
                        len: packet.header.len,
                        bytes: packet.data.to_vec(),
                    });
                }
                Err(pcap::Error::TimeoutExpired | pcap::Error::NoMorePackets) => break,
                Err(source) => {
                    return Err(CaptureError::Pcap {
                        dev: self.dev.clone(),
                        operation: "read packets".to_owned(),
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// What was lost so far.
    pub fn losses(&mut self) -> Result<Losses, CaptureError> {
        let stats = self.capture.stats().map_err(|source| CaptureError::Pcap {
            dev: self.dev.clone(),
            operation: "read statistics".to_owned(),
            source,
        })?;
        Ok(Losses {
            received: stats.received,
            dropped: stats.dropped,
            if_dropped: stats.if_dropped,
        })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.capture.as_fd()
    }
}

fn open(setup: &Setup) -> Result<Capture<Active>, CaptureError> {
    let failed = |operation: &str| {
        let operation = operation.to_owned();
        move |source| CaptureError::Pcap {
            dev: setup.dev.clone(),
            operation,
            source,
        }
    };
    let inactive = Capture::from_device(&*setup.dev).map_err(failed("find the device"))?;
    let active = inactive
        .promisc(setup.promiscuous)
        .immediate_mode(true)
        .precision(Precision::Nano)
        .snaplen(i32::try_from(setup.snaplen).unwrap_or(i32::MAX))
        .buffer_size(i32::try_from(setup.ring).unwrap_or(i32::MAX))
        .open()
        .map_err(failed("open the device"))?;
    let mut active = active
        .setnonblock()
        .map_err(failed("make the handle non-blocking"))?;
    if setup.dev == ANY {
        active
            .set_datalink(Linktype::LINUX_SLL2)
            .map_err(failed("ask for the device of each packet"))?;
    }
    active
        .filter(&setup.filter, true)
        .map_err(failed(&format!("set the filter {:?}", setup.filter)))?;
    Ok(active)
}
