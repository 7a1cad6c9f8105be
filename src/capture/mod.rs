//! Sees packets. Linux only, needs libpcap.
//!
//! A [`Tap`] captures at one device of one namespace, with a filter that the kernel runs. It is opened
//! inside the namespace and read from outside. It never waits: libpcap's read timeout does not end on
//! an idle device (crates' notes, TPACKET_V2), so handles are non-blocking and the caller polls.

pub mod decode;

use std::os::fd::{AsRawFd, RawFd};

use pcap::{Active, Capture};

use crate::collect::netns::{Hopper, NsFile};

pub use decode::decode;

/// Bytes kept of each packet: headers of a tunnel packet and of the packet inside.
pub const SNAPLEN: i32 = 192;
/// Bytes of the kernel's ring for one tap.
const RING: i32 = 256 << 10;

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
    #[error("capture on {dev}: {operation} (the helper needs CAP_NET_RAW)")]
    Pcap {
        /// Device.
        dev: String,
        /// What was done.
        operation: &'static str,
        /// Cause.
        #[source]
        source: pcap::Error,
    },
}

/// A packet that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Nanoseconds since 1970, to the microsecond.
    pub time: i64,
    /// Length on the wire in bytes, link-layer header included.
    pub len: u32,
    /// The first bytes, at most [`SNAPLEN`].
    pub bytes: Vec<u8>,
}

/// Packets and losses of a tap so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Packets that fitted the filter.
    pub received: u32,
    /// Of these, lost because the ring was full.
    pub dropped: u32,
    /// Lost by the device or its driver.
    pub if_dropped: u32,
}

/// A capture at one device.
pub struct Tap {
    dev: String,
    capture: Capture<Active>,
}

impl Tap {
    /// Opens a tap in a namespace. `filter` is in pcap's language; empty takes everything. The device
    /// is not made promiscuous.
    pub fn open(
        hopper: &Hopper,
        ns: &NsFile,
        dev: &str,
        filter: &str,
    ) -> Result<Self, CaptureError> {
        let (name, filter) = (dev.to_owned(), filter.to_owned());
        let opened = hopper.run(ns, move || open(&name, &filter));
        let capture = opened.map_err(|error| CaptureError::Namespace {
            dev: dev.to_owned(),
            why: error.to_string(),
        })??;
        Ok(Self {
            dev: dev.to_owned(),
            capture,
        })
    }

    /// Device it is on.
    pub fn dev(&self) -> &str {
        &self.dev
    }

    /// Takes what has come since the last call, in order. Never waits.
    pub fn take(&mut self) -> Result<Vec<Seen>, CaptureError> {
        let mut all = Vec::new();
        loop {
            match self.capture.next_packet() {
                Ok(packet) => {
                    let stamp = packet.header.ts;
                    all.push(Seen {
                        time: stamp.tv_sec * 1_000_000_000 + stamp.tv_usec * 1_000,
                        len: packet.header.len,
                        bytes: packet.data.to_vec(),
                    });
                }
                Err(pcap::Error::TimeoutExpired | pcap::Error::NoMorePackets) => return Ok(all),
                Err(source) => {
                    let operation = "read packets";
                    return Err(CaptureError::Pcap {
                        dev: self.dev.clone(),
                        operation,
                        source,
                    });
                }
            }
        }
    }

    /// What was lost so far.
    pub fn losses(&mut self) -> Result<Losses, CaptureError> {
        let stats = self.capture.stats().map_err(|source| CaptureError::Pcap {
            dev: self.dev.clone(),
            operation: "read statistics",
            source,
        })?;
        Ok(Losses {
            received: stats.received,
            dropped: stats.dropped,
            if_dropped: stats.if_dropped,
        })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.capture.as_raw_fd()
    }
}

fn open(dev: &str, filter: &str) -> Result<Capture<Active>, CaptureError> {
    let failed = |operation| {
        move |source| CaptureError::Pcap {
            dev: dev.to_owned(),
            operation,
            source,
        }
    };
    let inactive = Capture::from_device(dev).map_err(failed("find the device"))?;
    let active = inactive
        .promisc(false)
        .immediate_mode(true)
        .snaplen(SNAPLEN)
        .buffer_size(RING)
        .open()
        .map_err(failed("open the device"))?;
    let mut active = active
        .setnonblock()
        .map_err(failed("make the handle non-blocking"))?;
    active
        .filter(filter, true)
        .map_err(failed("set the filter"))?;
    Ok(active)
}
