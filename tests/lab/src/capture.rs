//! Captures packets on every interface of every namespace at once: the oracle for predicted paths.
//!
//! One packet socket per namespace sees all of its interfaces. Nothing is filtered and nothing may
//! be lost: if a socket's buffer was too small, [`Capture::stop`] is an error.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netpath::capture::{Setup, Tap};
use netpath::collect::netns::{Hopper, NsFile};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::net::if_::if_nameindex;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns, RxqOvfl, Timestamping};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    TimestampingFlag, recvmsg, setsockopt, socket,
};
use nix::sys::time::TimeSpec;

use crate::cluster::{Cluster, Place};
use crate::packet::Frame;

/// Receive buffer of each socket in bytes; some 30,000 small frames.
const BUFFER: usize = 32 << 20;

/// ARPHRD_* of devices whose packets have no link-layer header: TUNNEL, TUNNEL6, SIT, IPGRE, IP6GRE, NONE.
const BARE: [u16; 6] = [768, 769, 776, 778, 823, 0xfffe];

/// Which way a frame went on its interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// The namespace received it.
    In,
    /// The namespace sent it.
    Out,
}

/// One frame seen on one interface.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Nanoseconds since 1970 when the kernel took it.
    pub time: i128,
    /// Namespace: `node-1`, `shop/web-0` or `underlay`.
    pub place: String,
    /// Interface.
    pub ifname: String,
    /// Received or sent.
    pub direction: Direction,
    /// Whether the frame's destination MAC address was another host's (`PACKET_OTHERHOST`).
    pub for_other_host: bool,
    /// What it was.
    pub frame: Frame,
}

/// Packet sockets that are open and collecting.
pub struct Capture {
    points: Vec<Point>,
    /// At single devices; never read.
    watching: Vec<Tap>,
}

#[derive(Debug)]
struct Point {
    place: Place,
    socket: OwnedFd,
    names: BTreeMap<usize, String>,
}

impl Capture {
    /// Starts to capture in `places`; frames are kept by the kernel until [`Capture::stop`].
    pub fn start(places: Vec<Place>) -> Result<Self> {
        let points = places
            .into_iter()
            .map(|place| {
                let (socket, names) = place.enter(|| Ok((open()?, names()?)))?;
                Ok(Point {
                    place,
                    socket,
                    names,
                })
            })
            .collect::<Result<Vec<Point>>>()?;
        if let Some(point) = points.first() {
            point.place.enter(await_stamping)?;
        }
        for point in &points {
            drain(point, &mut Vec::new())
                .with_context(|| format!("empty the capture of {}", point.place.name))?;
        }
        Ok(Self {
            points,
            watching: Vec::new(),
        })
    }

    /// Sees what comes in by a VRF, too, which shows that to packet sockets only where one is bound to it
    /// (`vrf_ip_rcv()`: `ptype_all`, v6.12).
    ///
    /// # Errors
    ///
    /// Where the device is not there.
    pub fn watch(&mut self, place: &str, dev: &str) -> Result<()> {
        let Some(point) = self.points.iter().find(|point| point.place.name == place) else {
            return Ok(());
        };
        let own = Path::new("/proc/thread-self/ns/net");
        let ns = point.place.enter(|| Ok(NsFile::open(own)?))?;
        let hopper = Hopper::start().context("start a thread")?;
        // Nothing passes.
        let setup = Setup {
            ring: 1 << 16,
            ..Setup::new(dev, "less 1")
        };
        let tap = Tap::open(&hopper, &ns, setup).with_context(|| format!("watch {dev}"))?;
        self.watching.push(tap);
        Ok(())
    }

    /// Starts to capture everywhere in `cluster`.
    pub fn of_cluster(cluster: &Cluster) -> Result<Self> {
        Self::start(cluster.places()?)
    }

    /// Ends the capture and returns all frames in order of time.
    pub fn stop(mut self) -> Result<Vec<Seen>> {
        self.take()
    }

    /// Returns the frames since the start or the last call in order of time, and goes on.
    pub fn take(&mut self) -> Result<Vec<Seen>> {
        let mut all = Vec::new();
        for point in &mut self.points {
            // Interfaces may have come since the start.
            point.names.extend(point.place.enter(names)?);
            drain(point, &mut all)
                .with_context(|| format!("read captured frames of {}", point.place.name))?;
        }
        all.sort_by_key(|seen| seen.time);
        Ok(all)
    }
}

fn open() -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )
    .context("open a packet socket")?;
    setsockopt(&socket, RcvBufForce, &BUFFER).context("set the buffer of a packet socket")?;
    setsockopt(&socket, ReceiveTimestampns, &true).context("ask a packet socket for timestamps")?;
    setsockopt(&socket, RxqOvfl, &1).context("ask a packet socket for losses")?;
    Ok(socket)
}

/// Waits until the kernel stamps packets as they come.
///
/// It begins a while after the first socket asks (`net_enable_timestamp()` defers to a work queue), and
/// a packet without stamp gets the time at which it is read, behind all others. A socket that asks by
/// SO_TIMESTAMPING shows which: it tells no time for a packet without stamp.
fn await_stamping() -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").context("open a socket on loopback")?;
    let own = socket.local_addr().context("ask for a socket's address")?;
    let flags = TimestampingFlag::SOF_TIMESTAMPING_RX_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
    setsockopt(&socket, Timestamping, &flags).context("ask a socket for stamps")?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        socket.send_to(&[0], own).context("send on loopback")?;
        let mut buffer = [0; 1];
        let mut control = cmsg_space!([TimeSpec; 3]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        )
        .context("receive on loopback")?;
        let stamped = |cmsg| matches!(cmsg, ControlMessageOwned::ScmTimestampsns(_));
        if message.cmsgs().context("read a stamp")?.any(stamped) {
            return Ok(());
        }
    }
    bail!("wait for the kernel to stamp packets: it does not after 5 s");
}

fn names() -> Result<BTreeMap<usize, String>> {
    let list = if_nameindex().context("list interfaces")?;
    Ok(list
        .iter()
        .map(|interface| {
            // An interface index fits in every usize that Linux runs on.
            let index = interface.index() as usize;
            (index, interface.name().to_string_lossy().into_owned())
        })
        .collect())
}

fn drain(point: &Point, all: &mut Vec<Seen>) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut control = cmsg_space!(TimeSpec, u32);
    loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = match recvmsg::<LinkAddr>(
            point.socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        ) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error).context("receive"),
        };
        let address = message.address.context("a frame came without interface")?;
        let length = message.bytes;
        let mut time = None;
        for part in message.cmsgs().context("decode a frame's control data")? {
            match part {
                ControlMessageOwned::ScmTimestampns(at) => {
                    time = Some(i128::from(at.tv_sec()) * 1_000_000_000 + i128::from(at.tv_nsec()));
                }
                ControlMessageOwned::RxqOvfl(lost) if lost > 0 => {
                    bail!("{lost} frames were lost: the buffer of {BUFFER} bytes was too small");
                }
                _ => {}
            }
        }
        let kind = libc::c_uchar::from(address.pkttype());
        let index = address.ifindex();
        let bytes = buffer.get(..length);
        let frame = if BARE.contains(&address.hatype()) {
            bytes.and_then(Frame::bare)
        } else {
            bytes.and_then(Frame::decode)
        };
        let Some(frame) = frame else {
            continue;
        };
        all.push(Seen {
            time: time.context("a frame came without timestamp")?,
            place: point.place.name.clone(),
            ifname: point
                .names
                .get(&index)
                .cloned()
                .unwrap_or_else(|| format!("ifindex {index}")),
            direction: if kind == libc::PACKET_OUTGOING {
                Direction::Out
            } else {
                Direction::In
            },
            for_other_host: kind == libc::PACKET_OTHERHOST,
            frame,
        });
    }
}
