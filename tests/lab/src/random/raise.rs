//! Makes a network, and takes it away.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};

use super::places::Places;
use super::wire::{Servers, Wire};
use super::wireguard;
use super::world::{Rules, Setting, World};
use crate::command::{feed, output};
use crate::network::sysctl;

/// A network that stands. It is removed when this is dropped.
pub struct Raised {
    /// Namespaces, in the order of the world.
    pub places: Places,
    /// Lines that the kernel or a tool refused, with what it said.
    pub refused: Vec<String>,
}

impl Raised {
    /// Makes it, without rules. Lines of `ip` and `bridge` and settings that are refused are noted.
    pub fn up(world: &World) -> Result<Self> {
        let names = world.places.iter().map(|place| place.name.as_str());
        let mut raised = Self {
            places: Places::make("npr", names)?,
            refused: Vec::new(),
        };
        let named = |line: &String| {
            let mut line = line.clone();
            for place in &world.places {
                let netns = raised.places.netns(&place.name);
                line = line.replace(&format!("@{}@", place.name), &netns);
            }
            line
        };
        let mut refused = Vec::new();
        // All of them before any device: IPv6 copies its defaults when a device comes, also by another place's line.
        for (at, place) in raised.places.all().iter().zip(&world.places) {
            refused.extend(at.enter(|| Ok(set(&place.early)))?);
        }
        for (at, place) in raised.places.all().iter().zip(&world.places) {
            let lines: Vec<String> = place.links.iter().map(named).collect();
            refused.extend(at.enter(|| batch("ip", &lines))?);
        }
        for (at, place) in raised.places.all().iter().zip(&world.places) {
            let lines: Vec<String> = place.ip.iter().map(named).collect();
            refused.extend(at.enter(|| {
                let mut refused = batch("ip", &lines)?;
                refused.extend(batch("bridge", &place.bridge)?);
                refused.extend(wireguard::set(&place.wireguard)?);
                refused.extend(set(&place.late));
                Ok(refused)
            })?);
        }
        raised.refused = refused;
        Ok(raised)
    }

    /// Loads sets and rules.
    pub fn load_rules(&self, world: &World) -> Result<()> {
        for (at, place) in self.places.all().iter().zip(&world.places) {
            at.enter(|| {
                if !place.ipsets.is_empty() {
                    feed(&["ipset", "restore"], &(place.ipsets.join("\n") + "\n"))?;
                }
                place.rules.iter().try_for_each(load)
            })?;
        }
        Ok(())
    }

    /// Opens the world's sockets, and a capture. `ports` are the devices, by namespace, that pass frames on. Sockets whose
    /// address is not there (gone where a case was made smaller) are said.
    pub fn wire(
        &self,
        world: &World,
        ports: BTreeSet<(String, String)>,
    ) -> Result<(Wire<'_>, Vec<String>)> {
        let mut servers = Servers::default();
        let mut absent = Vec::new();
        for (at, place) in self.places.all().iter().zip(&world.places) {
            for listener in &place.listeners {
                if !servers.open(at, listener)? {
                    let text = format!("listen on {}: no such address", listener.addr);
                    absent.push(text);
                }
            }
        }
        wireguard::shake_hands(&self.places, world)?;
        let mut wire = Wire::up(&self.places, servers, ports)?.passing_over_others();
        wire.watch(&vrfs(world))?;
        let wire = wire.awaiting(wireguard::barriers(&self.places, world)?);
        Ok((wire, absent))
    }

    /// Shows bridges where everyone is; devices have to be up.
    pub fn show_stations(&self) -> Result<()> {
        for at in self.places.all() {
            at.enter(show_stations)?;
        }
        Ok(())
    }
}

/// VRFs, with the namespaces that they are in.
fn vrfs(world: &World) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for place in &world.places {
        let lines = place.links.iter().chain(&place.ip);
        for line in lines.filter(|line| line.contains(" type vrf ")) {
            let dev = line.split(' ').nth(2).unwrap_or_default();
            found.push((place.name.clone(), dev.to_owned()));
        }
    }
    found
}

/// Settings of the namespace that the thread is in; returns what was refused.
fn set(settings: &[Setting]) -> Vec<String> {
    let done = settings
        .iter()
        .map(|Setting(name, value)| sysctl(&format!("net/{name}"), value));
    done.filter_map(|done| Some(format!("{:#}", done.err()?)))
        .collect()
}

/// Runs lines through one `ip` or `bridge`, all of them, and returns what was refused.
fn batch(program: &str, lines: &[String]) -> Result<Vec<String>> {
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    // A line can't say its family, where that is not told by an address.
    let (six, other): (Vec<String>, Vec<String>) = lines
        .iter()
        .cloned()
        .partition(|line| line.starts_with("-6 "));
    let six: Vec<String> = six.iter().map(|line| line.replacen("-6 ", "", 1)).collect();
    let argv = [program, "-force", "-batch", "-"];
    let (neighs, other): (Vec<String>, Vec<String>) = other
        .into_iter()
        .partition(|line| line.starts_with("neigh "));
    let mut refused = family_batch(&argv, &other)?;
    refused.extend(family_batch(
        &[program, "-6", "-force", "-batch", "-"],
        &six,
    )?);
    // At the first neighbour that is refused (a device without IPv6), `ip` ends, whatever follows.
    let text = neighs.join("\n") + "\n";
    if !neighs.is_empty() && !output(&argv, &text)?.status.success() {
        for line in neighs {
            let done = output(&argv, &(line.clone() + "\n"))?;
            if !done.status.success() {
                let said = String::from_utf8_lossy(&done.stderr);
                refused.push(format!(
                    "{line}: {}",
                    said.lines().next().unwrap_or_default()
                ));
            }
        }
    }
    Ok(refused)
}

fn family_batch(argv: &[&str], lines: &[String]) -> Result<Vec<String>> {
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    let text = lines.join("\n") + "\n";
    let output = output(argv, &text)?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        said.trim_end()
            .lines()
            .last()
            .is_none_or(|last| last.starts_with("Command failed")),
        "{} ended before its last line: {said}",
        argv.join(" ")
    );
    let mut refused = Vec::new();
    let mut why = String::new();
    for line in said.lines() {
        match line.strip_prefix("Command failed -:") {
            Some(number) => {
                let number: usize = number.parse().unwrap_or(0);
                let text = lines.get(number.wrapping_sub(1));
                refused.push(format!("{}: {why}", text.map_or("?", String::as_str)));
                why.clear();
            }
            None => why.push_str(line),
        }
    }
    Ok(refused)
}

fn load(rules: &Rules) -> Result<()> {
    match rules {
        Rules::Iptables { legacy, v6, tables } => {
            let family = if *v6 { "ip6tables" } else { "iptables" };
            let backend = if *legacy { "legacy" } else { "nft" };
            for table in tables {
                let text = table.text();
                feed(&[&format!("{family}-{backend}-restore"), "-n"], &text)
                    .with_context(|| format!("rules:\n{text}"))?;
            }
        }
        Rules::Nft(lines) => {
            let text = lines.join("\n") + "\n";
            feed(&["nft", "-f", "-"], &text).with_context(|| format!("rules:\n{text}"))?;
        }
    }
    Ok(())
}

/// Sends one frame to all by every Ethernet device, so that bridges know where everyone is. Its type is no protocol's
/// (IEEE's local experimental one).
fn show_stations() -> Result<()> {
    let own = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("open a packet socket")?;
    for interface in nix::ifaddrs::getifaddrs().context("list interfaces")? {
        let Some(link) = interface
            .address
            .and_then(|addr| addr.as_link_addr().copied())
        else {
            continue;
        };
        let up = interface
            .flags
            .contains(nix::net::if_::InterfaceFlags::IFF_UP);
        let loopback = interface
            .flags
            .contains(nix::net::if_::InterfaceFlags::IFF_LOOPBACK);
        // Tunnels of IP have no switch behind them.
        let ethernet = link.hatype() == libc::ARPHRD_ETHER;
        let Some(mac) = link.addr().filter(|_| up && !loopback && ethernet) else {
            continue;
        };
        let frame = [&[0xff; 6][..], &mac, &[0x88, 0xb5], &[0; 46]].concat();
        // Of the address, only the device counts here (`packet_snd()`). A device without carrier refuses.
        let _ = sendto(own.as_raw_fd(), &frame, &link, MsgFlags::empty());
    }
    Ok(())
}
