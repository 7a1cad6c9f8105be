//! What a bulk flow between two pods loses while other flows are captured or probed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::report::Report;
use super::trace::Client;
use super::{BenchArgs, ENDS, Lab};
use crate::random::cpu;
use crate::{Cluster, Overlay, Proxy, Spec};

/// How long bytes are counted for one figure.
const WINDOW: Duration = Duration::from_secs(1);
/// Least ratio to the throughput without.
const GOAL: f64 = 0.98;
/// Pods on different nodes, and of neither end of the flow that is watched.
const BULK: [&str; 2] = ["shop/web-0", "shop/web-1"];

/// What goes on meanwhile.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    Capture,
    Dropped,
    Probes,
}

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing, once more",
            Self::Capture => "capture of another flow",
            Self::Dropped => "capture --dropped of another flow",
            Self::Probes => "trace --probe of another flow, again and again",
        }
    }
}

/// Takes the figures and prints them: throughput with each beside that without, before and after it.
pub(super) fn figures(args: &BenchArgs) -> Result<()> {
    let lab = Lab::up(args, Spec::new(Overlay::Vxlan, Proxy::IptablesNft))?;
    let bulk = Bulk::start(&lab.cluster)?;
    let mut report = Report::new([
        "beside a bulk flow",
        "ratio, median",
        "95 % interval of the median",
        "goal",
    ]);
    for beside in [
        Beside::Nothing,
        Beside::Capture,
        Beside::Dropped,
        Beside::Probes,
    ] {
        let mut ratios = Vec::new();
        let mut before = bulk.rate()?;
        for _ in 0..args.runs() {
            let during = with(beside, &lab.client, &bulk)?;
            let after = bulk.rate()?;
            ratios.push(2.0 * during / (before + after));
            before = after;
        }
        ratios.sort_by(f64::total_cmp);
        let at = |index: usize| ratios.get(index).copied().unwrap_or_default();
        let median = at(ratios.len() / 2);
        let [least, most] = interval(ratios.len()).map(at);
        let judged = if least >= GOAL {
            "met"
        } else if most < GOAL {
            "MISSED"
        } else {
            "not decided; more --runs"
        };
        report.push(vec![
            beside.name().to_owned(),
            format!("{median:.3}"),
            format!("{least:.3} to {most:.3}"),
            format!("{GOAL}: {judged}"),
        ]);
    }
    println!("{report}");
    bulk.stop()?;
    lab.down()
}

/// Positions among so many sorted figures between which the median lies, at 95 % at least, where there are six or more:
/// the chance that fewer figures than the lower one's rank are below the median is 2.5 % at most.
#[expect(clippy::cast_precision_loss, reason = "few figures")]
fn interval(count: usize) -> [usize; 2] {
    let mut chance = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let (mut below, mut least) = (0.0, 0);
    for rank in 0..count / 2 {
        below += chance;
        if below > 0.025 {
            break;
        }
        least = rank;
        chance *= (count - rank) as f64 / (rank + 1) as f64;
    }
    [least, count.saturating_sub(least + 1)]
}

/// Throughput while something goes on.
fn with(beside: Beside, client: &Client, bulk: &Bulk) -> Result<f64> {
    let more: &[&str] = match beside {
        Beside::Nothing => return bulk.rate(),
        Beside::Capture => &[],
        Beside::Dropped => &["--dropped"],
        Beside::Probes => return probing(client, bulk),
    };
    let mut arguments = vec!["capture", ENDS[0], ENDS[1]];
    arguments.extend(more);
    let mut command = client.command(&arguments);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start a capture")?;
    let mut said = BufReader::new(child.stderr.take().context("take its messages")?);
    let mut text = String::new();
    while !text.contains("capturing ") {
        let read = said.read_line(&mut text).context("read its messages")?;
        ensure!(read > 0, "the capture ended: {text}");
    }
    let rate = bulk.rate();
    interrupt(&child)?;
    said.read_to_string(&mut text)
        .context("read its messages")?;
    let status = child.wait().context("wait for the capture")?;
    ensure!(status.success(), "the capture failed: {text}");
    rate
}

fn interrupt(child: &Child) -> Result<()> {
    let pid = i32::try_from(child.id()).context("a process id")?;
    kill(Pid::from_raw(pid), Signal::SIGINT).context("end the capture")
}

/// Probes one after the other, by one client: bytes are counted as long as it runs.
fn probing(client: &Client, bulk: &Bulk) -> Result<f64> {
    let mut command = client.command(&["trace", ENDS[0], ENDS[1], "--probe", "--count", "8"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (begin, before) = (Instant::now(), bulk.bytes.load(Ordering::Relaxed));
    let status = command.status().context("run a probe")?;
    let rate = per_second(bulk.bytes.load(Ordering::Relaxed) - before, begin.elapsed());
    ensure!(status.success(), "the probes failed");
    Ok(rate)
}

#[expect(clippy::cast_precision_loss, reason = "ratios have three digits")]
fn per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64()
}

/// A TCP connection that is always full.
struct Bulk {
    bytes: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    ends: [JoinHandle<std::io::Result<()>>; 2],
}

impl Bulk {
    fn start(cluster: &Cluster) -> Result<Self> {
        let [from, to] = BULK;
        let own = cpu::own()?;
        let (Some(first), Some(second)) = (own.first().copied(), own.last().copied()) else {
            bail!("find a CPU for the bulk flow: none may be used");
        };
        let ip = cluster.pod_state(to)?.ips.iter().find(|ip| ip.is_ipv4());
        let ip: IpAddr = *ip.with_context(|| format!("{to} has no IPv4 address"))?;
        // Sockets stay in the namespace in which they are opened.
        let listener = cluster
            .pod(to)?
            .enter(move || TcpListener::bind((ip, 0)).context("listen for the bulk flow"))?;
        let address = listener.local_addr().context("read its address")?;
        let mut sender = cluster
            .pod(from)?
            .enter(move || TcpStream::connect(address).context("connect the bulk flow"))?;
        let (mut receiver, _) = listener.accept().context("accept the bulk flow")?;
        let (bytes, over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, until) = (Arc::clone(&bytes), Arc::clone(&over));
        // Left to the scheduler, the two would share a CPU now and then, which is a larger difference than any
        // that is measured here.
        let sending = thread::spawn(move || {
            cpu::keep_to(first).map_err(std::io::Error::other)?;
            let chunk = vec![0; 128 << 10];
            while !until.load(Ordering::Relaxed) {
                sender.write_all(&chunk)?;
            }
            Ok(())
        });
        let receiving = thread::spawn(move || {
            cpu::keep_to(second).map_err(std::io::Error::other)?;
            let mut chunk = vec![0; 256 << 10];
            loop {
                let len = receiver.read(&mut chunk)?;
                if len == 0 {
                    return Ok(());
                }
                count.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
        Ok(Self {
            bytes,
            over,
            ends: [sending, receiving],
        })
    }

    /// Bytes per second now.
    fn rate(&self) -> Result<f64> {
        let (begin, before) = (Instant::now(), self.bytes.load(Ordering::Relaxed));
        #[allow(clippy::disallowed_methods, reason = "a rate is counted over a time")]
        thread::sleep(WINDOW);
        let bytes = self.bytes.load(Ordering::Relaxed) - before;
        ensure!(bytes > 0, "the bulk flow stands still");
        Ok(per_second(bytes, begin.elapsed()))
    }

    fn stop(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        for end in self.ends {
            let done = end.join();
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .context("end the bulk flow")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_between_these_at_95_percent() {
        // The ranks that tables of the sign test give.
        for (count, ranks) in [
            (6, [0, 5]),
            (7, [0, 6]),
            (8, [0, 7]),
            (9, [1, 7]),
            (21, [5, 15]),
            (41, [13, 27]),
        ] {
            assert_eq!(interval(count), ranks, "{count}");
        }
    }
}
