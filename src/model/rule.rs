//! Policy routing rules, as `ip rule` shows them.

use serde::{Deserialize, Serialize};

use super::Prefix;

/// One policy rule. Source: RTM_NEWRULE, include/uapi/linux/fib_rules.h.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Whether it is in the IPv6 list.
    pub v6: bool,
    /// Lower comes first (FRA_PRIORITY).
    pub priority: u32,
    /// Matches when the conditions do not (FIB_RULE_INVERT).
    pub invert: bool,
    /// `from` (FRA_SRC).
    pub src: Option<Prefix>,
    /// `to` (FRA_DST).
    pub dst: Option<Prefix>,
    /// `iif` by name (FRA_IIFNAME); `lo` means locally generated.
    pub iif: Option<String>,
    /// `oif` by name (FRA_OIFNAME): sockets bound to a device.
    pub oif: Option<String>,
    /// `fwmark VALUE/MASK`.
    pub fwmark: Option<(u32, u32)>,
    /// `tos`, or `dscp` shifted to its place in the TOS byte. 0 matches anything.
    pub tos: u8,
    /// It is a `dscp` (FRA_DSCP), which is compared with all six bits; IPv4's `tos` sees three of them.
    #[serde(default)]
    pub dscp: bool,
    /// `ipproto`.
    pub ip_proto: Option<u8>,
    /// `sport FROM-TO`.
    pub sport: Option<(u16, u16)>,
    /// `dport FROM-TO`.
    pub dport: Option<(u16, u16)>,
    /// `uidrange FROM-TO`.
    pub uid: Option<(u32, u32)>,
    /// `l3mdev`: the table of the VRF of the packet's device.
    pub l3mdev: bool,
    /// Results with a prefix this long or shorter are refused (FRA_SUPPRESS_PREFIXLEN).
    pub suppress_prefixlen: Option<u32>,
    /// Results through a device of this group are refused (FRA_SUPPRESS_IFGROUP).
    pub suppress_ifgroup: Option<u32>,
    /// Realms that packets get where it matches (FRA_FLOW), where it names any.
    #[serde(default)]
    pub realm: Option<u32>,
    /// What it does.
    pub action: RuleAction,
    /// Selectors that this program can't evaluate, by name: the rule may or may not match.
    pub unknown: Vec<String>,
}

impl Rule {
    /// One that leads every packet to a table.
    pub fn bare(v6: bool, priority: u32, table: u32) -> Self {
        Self {
            v6,
            priority,
            invert: false,
            src: None,
            dst: None,
            iif: None,
            oif: None,
            fwmark: None,
            tos: 0,
            dscp: false,
            ip_proto: None,
            sport: None,
            dport: None,
            uid: None,
            l3mdev: false,
            suppress_prefixlen: None,
            suppress_ifgroup: None,
            realm: None,
            action: RuleAction::Table(table),
            unknown: Vec::new(),
        }
    }
}

/// What a policy rule does (FR_ACT_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RuleAction {
    /// Look in this table.
    Table(u32),
    /// Continue at the rule of this priority.
    Goto(u32),
    /// Do nothing.
    Nop,
    /// Drop silently.
    Blackhole,
    /// Answer "host unreachable".
    Unreachable,
    /// Answer "administratively prohibited".
    Prohibit,
    /// An action this program does not know.
    Other(u8),
}
