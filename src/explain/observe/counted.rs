//! What was counted between the prediction and the end of a probe, where it was lost.

use std::collections::BTreeMap;

use crate::model::NsKey;
use crate::model::capture::Counts;
use crate::model::netfilter::Counters;
use crate::trace::{Evidence, Trace};

/// Names of counts hold one of these where they tell of packets that were lost, refused or not understood.
const LOSS: [&str; 27] = [
    "drop",
    "discard",
    "err",
    "fail",
    "invalid",
    "noroute",
    "unknown",
    "filter",
    "noports",
    "overflow",
    "prune",
    "bad",
    "csum",
    "checksum",
    "timeexcds",
    "destunreach",
    "abort",
    "xfrmin",
    "xfrmout",
    "toobig",
    "truncated",
    "outrsts",
    "retrans",
    "unresolved",
    "nodata",
    "collision",
    "chaintoolong",
];

/// Counts of lost packets that went up, in the kernel's names, and by how much.
pub fn rises(before: &Counts, after: &Counts) -> Vec<(String, u64)> {
    let risen = after.of.iter().filter_map(|(name, now)| {
        // What was not counted before has no difference.
        let before = *before.of.get(name)?;
        let more = now.checked_sub(before).filter(|more| *more > 0)?;
        // Names of devices stand before those of counts.
        let count = name.rsplit(' ').next().unwrap_or_default();
        let lower = count.to_ascii_lowercase();
        let tells = LOSS.iter().any(|part| lower.contains(part));
        tells.then(|| (name.clone(), more))
    });
    risen.collect()
}

/// Rules and policies of a namespace that were predicted to be met, that count, and that counted meanwhile; `after` is
/// the same prediction of what was read again.
pub fn rules(ns: &NsKey, before: Option<&Trace>, after: Option<&Trace>) -> Vec<(String, u64)> {
    let after: BTreeMap<String, Counters> = counting(ns, after).collect();
    let mut risen: Vec<(String, u64)> = Vec::new();
    for (name, before) in counting(ns, before) {
        let more = after
            .get(&name)
            .and_then(|after| after.packets.checked_sub(before.packets));
        if let Some(more) = more.filter(|more| *more > 0)
            && !risen.iter().any(|(known, _)| *known == name)
        {
            risen.push((name, more));
        }
    }
    risen
}

fn counting<'a>(
    ns: &'a NsKey,
    trace: Option<&'a Trace>,
) -> impl Iterator<Item = (String, Counters)> + 'a {
    let turns = std::iter::successors(trace, |trace| trace.reply.as_deref());
    let hops = turns.flat_map(|trace| &trace.hops);
    let hops = hops.filter(move |hop| hop.ns == *ns);
    let evidence = hops
        .flat_map(|hop| &hop.steps)
        .flat_map(|step| &step.evidence);
    evidence.filter_map(|evidence| match evidence {
        Evidence::NetfilterRule {
            counters: Some(counters),
            ..
        } => Some((without_counters(&evidence.rule()?), *counters)),
        Evidence::Chain {
            chain,
            policy: Some(_),
            counters: Some(counters),
        } => Some((
            format!("policy of {} {}", chain.table, chain.chain),
            *counters,
        )),
        _ => None,
    })
}

/// A rule's text with `counter packets N bytes M` is another each time.
fn without_counters(text: &str) -> String {
    let mut words = Vec::new();
    let mut all = text.split(' ').peekable();
    while let Some(word) = all.next() {
        if matches!(word, "packets" | "bytes")
            && all.peek().is_some_and(|next| next.parse::<u64>().is_ok())
        {
            all.next();
        } else {
            words.push(word);
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_losses_that_went_up_are_told() {
        let counts = |pairs: &[(&str, u64)]| Counts {
            of: pairs
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
            missing: Vec::new(),
        };
        let before = counts(&[
            ("IpInReceives", 5),
            ("IpInDiscards", 1),
            ("TcpExtListenDrops", 0),
            ("eth0 rx_dropped", 7),
            ("vethbad0 rx_bytes", 7),
        ]);
        let after = counts(&[
            ("IpInReceives", 9),
            ("IpInDiscards", 2),
            ("eth0 rx_dropped", 7),
            ("TcpExtListenDrops", 3),
            // A device's name is no count's, and what was not counted before has no difference.
            ("vethbad0 rx_bytes", 99),
            ("IpReasmFails", 88_231),
        ]);
        let expected = [
            ("IpInDiscards".to_owned(), 1),
            ("TcpExtListenDrops".to_owned(), 3),
        ];
        assert_eq!(rises(&before, &after), expected);
    }

    #[test]
    fn a_rule_keeps_its_name_while_it_counts() {
        let text = "tcp dport 80 counter packets 7 bytes 420 drop";
        assert_eq!(without_counters(text), "tcp dport 80 counter drop");
    }
}
