//! Where the packets of a capture go: lines, or one pcapng, in a file or on stdout.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, bail};
use netpath::model::capture::{Losses, Seen};

use super::watch::{Sink, Watching};
use crate::cli::CaptureArgs;
use crate::render::packets::{Spot, Widths, line};
use crate::render::pcapng::{self, Interface};

/// Names of a namespace's devices by number.
pub type Devices = BTreeMap<u32, String>;

/// Where packets go.
pub struct Out {
    to: Box<dyn Write + Send>,
    name: String,
    pcapng: bool,
    spots: Vec<Spot>,
    /// Of each spot, where that has packets of more than one device.
    devices: Vec<Devices>,
    widths: Widths,
    written: u64,
    bytes: u64,
    count: Option<u64>,
    size: Option<u64>,
    last: i64,
    closed: bool,
}

impl Out {
    /// Opens the file, or stdout, and writes what comes before all packets.
    pub fn new(
        args: &CaptureArgs,
        watching: &Watching,
        (spots, devices): (Vec<Spot>, Vec<Devices>),
        snaplen: u32,
    ) -> anyhow::Result<Self> {
        let (to, name): (Box<dyn Write + Send>, String) = match args.write.as_deref() {
            Some(path) if !is_stdout(path) => {
                let name = path.display().to_string();
                (Box::new(create(path)?), name)
            }
            _ => (Box::new(std::io::stdout()), "stdout".to_owned()),
        };
        let mut out = Self {
            to: Box::new(BufWriter::with_capacity(256 << 10, to)),
            name,
            pcapng: args.write.is_some(),
            widths: Widths::of(&spots).with(devices.iter().flat_map(BTreeMap::values)),
            spots,
            devices,
            written: 0,
            bytes: 0,
            count: args.count,
            size: args.size,
            last: 0,
            closed: false,
        };
        if out.pcapng {
            out.put(&pcapng::section())?;
            for (at, spot) in watching.spots.iter().enumerate() {
                let Some(named) = out.spots.get(at) else {
                    continue;
                };
                let (node, netns, dev) = (&named.node, &named.netns, &named.dev);
                let interface = Interface {
                    link: spot.link,
                    snaplen,
                    name: format!("{node} {netns} {dev}"),
                    description: if spot.point.dropped {
                        format!("what the kernel dropped in {netns} on node {node}")
                    } else {
                        format!("{dev} in {netns} on node {node}")
                    },
                    comment: netns.strip_prefix("pod ").map(|pod| format!("pod {pod}")),
                    filter: spot.point.filter.clone(),
                };
                out.put(&pcapng::interface(&interface))?;
            }
        }
        Ok(out)
    }

    fn put(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.bytes += bytes.len() as u64;
        let written = self.to.write_all(bytes);
        self.done(written)
    }

    /// A reader that has gone away wants no more of it.
    fn done(&mut self, result: std::io::Result<()>) -> anyhow::Result<()> {
        match result {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            other => other.with_context(|| format!("write packets to {}", self.name)),
        }
    }

    fn full(&self) -> bool {
        self.closed
            || self.count.is_some_and(|count| self.written >= count)
            || self.size.is_some_and(|size| self.bytes >= size)
    }

    /// Ends the file; how many packets it has.
    pub fn end(mut self, losses: &[Losses]) -> anyhow::Result<u64> {
        if self.pcapng && !self.closed {
            for (at, losses) in losses.iter().enumerate() {
                let at = u32::try_from(at).unwrap_or(u32::MAX);
                self.put(&pcapng::statistics(at, self.last, losses))?;
            }
        }
        self.flush()?;
        Ok(self.written)
    }
}

impl Sink for Out {
    fn packet(&mut self, at: usize, seen: &Seen) -> anyhow::Result<bool> {
        if self.full() {
            return Ok(false);
        }
        self.last = seen.time;
        let devices = self.devices.get(at);
        let device = seen.ifindex.and_then(|index| devices?.get(&index));
        let device = device.map(String::as_str);
        if self.pcapng {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            self.put(&pcapng::packet(at, seen, device))?;
        } else if let Some(spot) = self.spots.get(at) {
            let text = line(spot, self.widths, seen, device);
            let text = crate::render::without_commands(&text);
            self.put(text.as_bytes())?;
        }
        self.written += 1;
        Ok(!self.full())
    }

    fn flush(&mut self) -> anyhow::Result<bool> {
        let flushed = self.to.flush();
        self.done(flushed)?;
        Ok(!self.full())
    }
}

/// Packets are for their owner alone, until he decides otherwise.
fn create(path: &Path) -> anyhow::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let opened = options.open(path);
    opened.with_context(|| format!("write {}", path.display()))
}

/// Whether a typed path means the program's own output.
pub fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

/// Told before helpers are started.
pub fn writable(path: &Path) -> anyhow::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if path.is_dir() || parent.is_some_and(|parent| !parent.is_dir()) {
        bail!(
            "write {}: it is a directory, or in none; name a file",
            path.display()
        );
    }
    Ok(())
}
