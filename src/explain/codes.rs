//! All findings that exist. A code never changes its meaning; docs/findings holds a page for each.

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The flow fails because of it.
    Error,
    /// The flow may fail because of it, or another flow will.
    Warning,
}

impl Severity {
    /// The word used in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// `NP` and four digits. NP0101 to NP0120 follow the numbering of the well-known failures.
    pub code: &'static str,
    /// What is wrong, in one line.
    pub title: &'static str,
    /// What it means and how to mend it, in Markdown.
    pub page: &'static str,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident $code:literal $title:literal;)*) => {
        $($(#[$doc])* pub const $name: Code = Code {
            code: $code,
            title: $title,
            page: include_str!(concat!("../../docs/findings/", $code, ".md")),
        };)*
        /// Every code, in order.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

codes! {
    /// Rules or a policy at the forward hook drop or reject.
    FORWARD_FILTERED "NP0101" "forwarding is filtered";
    /// nf_tables and legacy x_tables both hold rules.
    TWO_BACKENDS "NP0102" "two rule backends are in use at once";
    /// Bridged replies bypass netfilter, so that they are not translated back.
    BRIDGE_NF_OFF "NP0103" "bridged traffic bypasses netfilter";
    /// The forwarding switch is off.
    FORWARDING_OFF "NP0104" "forwarding is switched off";
    /// Reverse-path filter.
    RP_FILTER "NP0105" "the reverse-path filter drops";
    /// Larger than an MTU on the way.
    MTU "NP0107" "the packet is larger than an MTU on the way";
    /// The conntrack table is full or nearly so.
    CONNTRACK_FULL "NP0108" "the conntrack table is full or nearly full";
    /// An existing conntrack entry leads to an address that is no endpoint now.
    STALE_CONNTRACK "NP0110" "a conntrack entry leads to an address that is no endpoint";
    /// The Service has no usable endpoint from here.
    NO_ENDPOINT "NP0112" "the Service has no usable endpoint from here";
    /// Forwarding entry or neighbour of a tunnel leads nowhere or to the wrong place.
    STALE_TUNNEL "NP0114" "a tunnel's forwarding or neighbour entry is stale or missing";
    /// The frame carries another station's address.
    WRONG_MAC "NP0115" "the frame is addressed to another station";
    /// Hairpin is off.
    HAIRPIN_OFF "NP0116" "a pod cannot reach itself through its Service";
    /// Nobody answers for the next hop.
    NEIGH_UNRESOLVED "NP0117" "the next hop does not answer";
    /// The tunnel packet itself is filtered.
    TUNNEL_FILTERED "NP0118" "a firewall drops the tunnel's packets";
    /// Network policy rules drop.
    POLICY_DENIES "NP0119" "a network policy's rules drop the packet";
    /// The namespace that the packet is led to does not hold its address.
    WRONG_OWNER "NP0120" "the address is not where the route leads";
    /// Nothing listens.
    NO_LISTENER "NP0121" "nothing listens on the port";
    /// A socket listens on the port, but not on this address.
    LISTENER_ELSEWHERE "NP0122" "the listener is bound to another address";
    /// No route.
    NO_ROUTE "NP0123" "there is no route";
    /// A blackhole, unreachable or prohibit route or policy rule.
    ROUTE_REFUSES "NP0124" "a route refuses the packet";
    /// A device is down or has no carrier.
    LINK_DOWN "NP0125" "a device on the way is down";
    /// A rule outside the forward hook drops or rejects.
    FILTERED "NP0126" "a firewall rule drops or rejects the packet";
    /// Port state, isolation, VLAN, or no port that leads on.
    BRIDGE_BLOCKS "NP0127" "the bridge does not pass the frame on";
    /// Loop.
    LOOP "NP0128" "the packet goes round in a loop";
    /// The answer comes from an address that was not asked.
    NOT_FROM_PEER "NP0129" "the answer is not translated back";
    /// Source or destination that a kernel refuses.
    MARTIAN "NP0130" "the kernel refuses the packet's addresses";
    /// Several stations of a link answer for one address.
    DUPLICATE_ADDRESS "NP0131" "two stations of a link have one address";
    /// Could not be read or decoded.
    UNKNOWN "NP0132" "something that decides could not be read";
    /// A dummy device, or a setting that is neither rule nor route.
    SWALLOWED "NP0133" "a device or setting swallows the packet";
    /// TTL without a circle.
    TTL "NP0134" "the packet's TTL runs out on the way";
    /// An XFRM policy with the action block, or such a default.
    XFRM_BLOCKS "NP0135" "an XFRM (IPsec) policy blocks the packet";
    /// More connections wait than the listener's backlog allows.
    BACKLOG_FULL "NP0136" "the listener takes no more connections";
    /// No rule on the way knows the Service's address and port.
    UNTRANSLATED "NP0137" "no rule translates the Service's address";
    /// kube-proxy's rules lack an endpoint that they should have.
    ENDPOINT_MISSING "NP0140" "kube-proxy's rules miss an endpoint";
    /// kube-proxy's rules lead to an address that is no endpoint.
    NO_SUCH_ENDPOINT "NP0141" "kube-proxy's rules lead to what is no endpoint";
    /// Rules for an address and port that no Service has.
    SERVICE_GONE "NP0142" "kube-proxy's rules of a Service that is gone are left";
    /// Session affinity is not as asked for.
    AFFINITY_DIFFERS "NP0143" "kube-proxy's rules keep to another session affinity";
    /// A traffic policy Local is not followed.
    POLICY_IGNORED "NP0144" "kube-proxy's rules do not follow a traffic policy";
    /// Rules of two modes or backends of kube-proxy.
    TWO_PROXIES "NP0145" "rules of two kube-proxy modes act at once";
    /// Something keeps packets from kube-proxy's rules, or leads them past these.
    BYPASSED "NP0146" "packets do not reach kube-proxy's rules";
    /// Endpoints do not get equal shares, or some packets go to none.
    UNEVEN "NP0147" "kube-proxy's rules do not spread the load evenly";
    /// Sources are hidden where they should be seen, or seen where they should be hidden.
    MASQUERADE_DIFFERS "NP0148" "packets of Services are not masqueraded as they should be";
    /// Nobody serves it, and senders are not told.
    NOT_REFUSED "NP0149" "packets of a Service without endpoints are not refused";
    /// Clients that may not come in do, or those that may do not.
    RANGES_DIFFER "NP0150" "kube-proxy's rules do not follow loadBalancerSourceRanges";
    /// `trace --probe` saw something else.
    OBSERVED_OTHERWISE "NP0160" "the probe went another way than predicted";
    /// `trace --probe` was lost at a program, and the kernel says by it.
    PROGRAM_DROPS "NP0161" "a program at a device drops the packet";
    /// The error by which a packet is refused is lost.
    UNTOLD "NP0162" "the sender is not told that its packet is refused";
    /// `trace --mtu` found a size above which packets are lost.
    BLACK_HOLE "NP0163" "larger packets are lost, and their sender is not told";
    /// `trace --probe` left the cluster by a pod's address, and nobody answered.
    UNMASQUERADED "NP0164" "nobody outside answers a pod's own address";
}

impl Code {
    /// Findings of this kind are the cause of others, and stand before them.
    pub fn is_cause(self) -> bool {
        [TWO_PROXIES, BYPASSED].contains(&self)
    }
}

/// The code of this name, in any case, with or without leading `NP`.
pub fn find(text: &str) -> Option<Code> {
    let wanted = text.to_ascii_uppercase();
    let wanted = if wanted.starts_with("NP") {
        wanted
    } else {
        format!("NP{wanted}")
    };
    ALL.iter().find(|code| code.code == wanted).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_ordered_and_have_their_own_page() {
        let names: Vec<&str> = ALL.iter().map(|code| code.code).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
        for code in ALL {
            let head = format!("# {}: {}\n", code.code, code.title);
            assert!(
                code.page.starts_with(&head),
                "{} starts otherwise",
                code.code
            );
            for part in [
                "\n## What it means\n",
                "\n## See for yourself\n",
                "\n## Mend\n",
            ] {
                assert!(code.page.contains(part), "{} lacks {part:?}", code.code);
            }
        }
        assert_eq!(find("np0101"), Some(FORWARD_FILTERED));
        assert_eq!(find("0101"), Some(FORWARD_FILTERED));
        assert_eq!(find("NP9999"), None);
    }
}
