//! Kinds of devices that not every kernel has: which of them networks are drawn with.
//!
//! They are a parameter of a network beside its seed, so that a kernel without them, and the fixed set anywhere, get the
//! networks that they always got.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

use super::places::Places;
use crate::command::output;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// A device that swallows what it is given.
    Dummy,
    /// Frames in UDP.
    Geneve,
    /// IP in GRE.
    Gre,
    /// IPv4 in IPv4.
    Ipip,
    /// IPv6, and with `mode any` IPv4, in IPv4.
    Sit,
    /// 802.1Q.
    Vlan,
    /// A bridge that filters VLANs, and devices for these.
    VlanFiltering,
    /// A table of its own for some devices.
    Vrf,
    /// IP in UDP, encrypted.
    Wireguard,
}

/// All, with their names as `ip` has them and what else a line that makes one needs.
const ALL: [(DeviceKind, &str, &str); 9] = [
    (DeviceKind::Dummy, "dummy", ""),
    (DeviceKind::Geneve, "geneve", "id 1 remote 192.0.2.1"),
    (DeviceKind::Gre, "gre", "local 192.0.2.2 remote 192.0.2.1"),
    (DeviceKind::Ipip, "ipip", "local 192.0.2.2 remote 192.0.2.1"),
    (DeviceKind::Sit, "sit", "local 192.0.2.2 remote 192.0.2.1"),
    (DeviceKind::Vlan, "vlan", "id 1"),
    (DeviceKind::VlanFiltering, "vlan_filtering", ""),
    (DeviceKind::Vrf, "vrf", "table 1"),
    (DeviceKind::Wireguard, "wireguard", ""),
];

/// Those that networks are drawn with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kinds(BTreeSet<DeviceKind>);

impl Kinds {
    /// None of them.
    pub fn none() -> Self {
        Self::default()
    }

    /// Those that this kernel makes, which loads what it needs for that.
    ///
    /// # Errors
    ///
    /// Where no namespace can be made to try it in.
    pub fn of_kernel() -> Result<Self> {
        let places = Places::make("npk", ["kinds"])?;
        places.place("kinds")?.enter(|| {
            // What a VLAN sits on.
            let line = |text: String| -> Result<bool> {
                let argv = ["ip", "-batch", "-"];
                Ok(output(&argv, &(text + "\n"))?.status.success())
            };
            if !line("link add below type veth peer name other".to_owned())? {
                bail!("make a veth pair: refused");
            }
            let mut own = BTreeSet::new();
            for (kind, name, more) in ALL {
                let link = if kind == DeviceKind::Vlan {
                    "link below "
                } else {
                    ""
                };
                // Nothing but its own program sets one up.
                let program =
                    kind != DeviceKind::Wireguard || output(&["wg", "--version"], "").is_ok();
                let what = match kind {
                    DeviceKind::VlanFiltering => "bridge vlan_filtering 1".to_owned(),
                    _ => format!("{name} {more}"),
                };
                if program && line(format!("link add {link}name tried type {what}"))? {
                    // A kernel that can't filter passes that wish over, and refuses VLANs.
                    let member = ["bridge", "vlan", "add", "dev", "tried", "vid", "2", "self"];
                    let filters = kind != DeviceKind::VlanFiltering
                        || own.contains(&DeviceKind::Vlan) && output(&member, "")?.status.success();
                    line("link del tried".to_owned())?;
                    if filters {
                        own.insert(kind);
                    }
                }
            }
            Ok(Self(own))
        })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one is among them.
    pub fn has(&self, kind: DeviceKind) -> bool {
        self.0.contains(&kind)
    }
}

impl fmt::Display for Kinds {
    /// As [`Kinds::from_str`] takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "none");
        }
        let own = ALL.iter().filter(|(kind, ..)| self.has(*kind));
        let names: Vec<&str> = own.map(|(_, name, _)| *name).collect();
        write!(f, "{}", names.join(","))
    }
}

impl FromStr for Kinds {
    type Err = anyhow::Error;

    /// Names with commas between them, `all`, or `none`.
    fn from_str(text: &str) -> Result<Self> {
        let mut own = BTreeSet::new();
        for name in text.split(',').filter(|name| *name != "none") {
            let found = ALL
                .iter()
                .filter(|(_, own, _)| *own == name || name == "all");
            let before = own.len();
            let found: Vec<DeviceKind> = found.map(|(kind, ..)| *kind).collect();
            own.extend(&found);
            if found.is_empty() || own.len() == before {
                bail!("{name}: no kind of device that networks are drawn with, or named twice");
            }
        }
        Ok(Self(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::generate;

    #[test]
    fn kinds_are_what_they_are_called() {
        for text in [
            "none",
            "dummy",
            "geneve,ipip",
            "dummy,geneve,gre,ipip,sit,vlan,vlan_filtering,vrf,wireguard",
        ] {
            let kinds: Kinds = text.parse().unwrap();
            assert_eq!(kinds.to_string(), text);
        }
        let all: Kinds = "all".parse().unwrap();
        assert!(ALL.iter().all(|(kind, ..)| all.has(*kind)));
        for text in ["", "bond", "gre,gre", "gre,", "all,gre"] {
            assert!(text.parse::<Kinds>().is_err(), "{text:?}");
        }
    }

    /// Each kind is drawn where it is asked for, and no other is.
    #[test]
    fn networks_have_the_kinds_that_they_are_drawn_with() {
        for (kind, ..) in ALL {
            let kinds = Kinds(BTreeSet::from([kind]));
            let mut met = BTreeSet::new();
            for seed in 0..60 {
                let (world, _) = generate(seed, 1, &kinds);
                let places = world.places.iter();
                let links = places.flat_map(|place| place.links.iter().chain(&place.ip));
                for line in links {
                    let of = |name: &str| line.contains(&format!(" type {name} "));
                    let bare = |name: &str| line.ends_with(&format!(" type {name}"));
                    let filters = |name: &str| line.contains(&format!(" {name} 1"));
                    let own = ALL
                        .iter()
                        .filter(|(_, name, _)| of(name) || bare(name) || filters(name));
                    met.extend(own.map(|(kind, ..)| *kind));
                }
            }
            let mut drawn = BTreeSet::from([kind]);
            if kind == DeviceKind::VlanFiltering {
                drawn.insert(DeviceKind::Vlan);
            }
            assert_eq!(met, drawn);
        }
    }

    /// FNV-1a of the network below, as it was before there were kinds.
    const SUM: u64 = 2_353_973_219_443_501_553;

    /// What a seed gives without them does not follow from what this program can draw besides.
    #[test]
    fn a_seed_without_kinds_gives_the_network_that_it_always_gave() {
        let (world, probes) = generate(0x12_34ab, 40, &Kinds::none());
        let text = serde_json::to_string(&(world, probes)).unwrap();
        let sum = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!(sum, SUM);
    }
}
