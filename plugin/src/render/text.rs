//! A trace for people: the verdict, the ways hop by hop, then findings with their mend.

#![expect(
    clippy::format_push_string,
    reason = "writing to a String cannot fail, and its result would have to be ignored"
)]

use netpath::explain::{Branch, End, ExistingFlow, Explanation, Verdict, Way, conntrack, words};
use netpath::model::packet::Packet;
use netpath::trace::{Disposition, Evidence, StepKind};

use super::paint::{Options, Style, columns, escaped, fold, fold_painted};
use super::tree::{Line, Node, Path, Then, grow};
use super::{findings, observed};

/// Column at which a step's words start, behind its short word.
const LABEL: usize = 10;
/// Branches that work and are shown hop by hop; further ones get one line.
const SHOWN: usize = 8;

/// The whole answer.
pub fn trace(answer: &Explanation, options: &Options) -> String {
    let mut text = String::new();
    text.push_str(&first_line(answer, options));
    for note in &answer.notes {
        text.push_str(&fold(options, "note: ", "      ", note));
    }
    text.push('\n');
    let writer = Writer { answer, options };
    let paths = answer
        .branches
        .iter()
        .enumerate()
        .map(|(branch, found)| Path {
            probability: found.probability,
            branch,
            lines: writer.lines(&found.way),
        });
    if let Some(tree) = grow(paths.collect()) {
        let mut shown = SHOWN;
        writer.node(&mut text, &tree, "", &mut shown);
    }
    writer.findings(&mut text);
    findings::unknown(&mut text, &answer.unknown, &answer.findings, options);
    findings::list(&mut text, "assumed", &answer.assumed, options);
    options.plain(&text)
}

/// An existing flow: its entry, and its answer below.
pub fn existing(flow: &ExistingFlow, options: &Options) -> String {
    let more = match flow.count {
        0 | 1 => String::new(),
        count => format!(" ({count} entries lead there)"),
    };
    let (node, netns) = (&flow.place.node, &flow.place.netns);
    let entry = conntrack::words(&flow.entry);
    let line = format!("{entry} in {netns} on {node}{more}");
    let head = fold(options, "existing flow: ", "      ", &line);
    format!("\n{head}{}", trace(&flow.answer, options))
}

fn end(end: &End, with_ip: bool) -> String {
    let kind = match end.kind.as_str() {
        "service" => "svc ",
        "pod" => "pod ",
        "node" => "node ",
        _ => "",
    };
    let ip = end.ip.filter(|_| with_ip).map(|ip| ip.to_string());
    match (&end.name, ip) {
        (Some(name), Some(ip)) => format!("{kind}{name} {ip}"),
        (Some(name), None) => format!("{kind}{name}"),
        (None, Some(ip)) => ip,
        (None, None) => end.typed.clone(),
    }
}

/// Ends and verdict.
fn first_line(answer: &Explanation, options: &Options) -> String {
    let protocol = match answer.protocol {
        1 | 58 => "icmp echo".to_owned(),
        other => words::protocol(other),
    };
    let mut destination = end(&answer.destination, false);
    if let Some(ip) = answer.destination.ip {
        let address = words::socket_addr(ip, answer.port);
        destination = match &answer.destination.name {
            Some(_) => format!("{destination} {address}"),
            None => address,
        };
    }
    let separator = if answer.port.is_some() { "/" } else { " " };
    let ends = format!(
        "{} → {destination}{separator}{protocol}",
        end(&answer.source, true)
    );
    let (style, verdict) = proven(answer);
    let ends = options.paint(Style::Head, &ends);
    let verdict = options.paint(style, &verdict);
    let fits = options
        .width
        .is_none_or(|width| columns(&ends) + 3 + columns(&verdict) <= width);
    if fits {
        format!("{ends}   {verdict}\n")
    } else {
        fold_painted(options, &format!("{ends}\n"), "  ", &format!("  {verdict}"))
    }
}

/// The verdict with what probes show: where they show otherwise, it is theirs.
fn proven(answer: &Explanation) -> (Style, String) {
    let (style, verdict) = verdict(answer);
    let outside = answer.branches.iter().any(leaves);
    match answer
        .proof
        .as_ref()
        .map(|proof| observed::proof(proof, outside))
    {
        None => (style, verdict),
        Some((_, false, confirmed)) => (style, format!("{verdict}, {confirmed}")),
        Some((style, true, seen)) => (style, seen),
    }
}

fn leaves(branch: &Branch) -> bool {
    branch.way.disposition == Disposition::LeavesCluster
}

fn mark(verdict: Verdict) -> (Style, &'static str) {
    match verdict {
        Verdict::Delivered => (Style::Good, "✓"),
        Verdict::Inconclusive => (Style::Unsure, "?"),
        _ => (Style::Bad, "✗"),
    }
}

fn verdict(answer: &Explanation) -> (Style, String) {
    let total = answer.branches.len();
    let broken: Vec<&Branch> = answer
        .branches
        .iter()
        .filter(|branch| branch.verdict != Verdict::Delivered)
        .collect();
    let all = match total {
        1 => String::new(),
        2 => " on both branches".to_owned(),
        total => format!(" on all {total} branches"),
    };
    let Some(first) = broken.first() else {
        let what = if answer.branches.iter().all(leaves) {
            "leaves the cluster"
        } else {
            "delivered"
        };
        let diverted: Vec<&Branch> = answer.branches.iter().filter(|b| b.diverted).collect();
        let elsewhere = match diverted.as_slice() {
            [] => String::new(),
            [only] if total == 1 => {
                let packet = &only.way.packet;
                let address = words::socket_addr(packet.dst, packet.dport());
                let owner = only.way.to.as_ref();
                let hops = &only.way.hops;
                let same = hops.first().is_some_and(|hop| hop.packet.dst == packet.dst);
                match owner {
                    Some(to) if same => format!(", but to {to}"),
                    Some(to) => format!(", but to {address} ({to}), by translation on the way"),
                    None => format!(", but to {address}, by translation on the way"),
                }
            }
            some if some.len() == total => ", but elsewhere".to_owned(),
            some => format!(", {} of them elsewhere", some.len()),
        };
        return (Style::Good, format!("✓ {what}{all}{elsewhere}"));
    };
    let worst = broken
        .iter()
        .map(|branch| branch.verdict)
        .find(|verdict| *verdict != Verdict::Inconclusive);
    let (style, sign) = mark(worst.unwrap_or(Verdict::Inconclusive));
    if broken.len() == total && answer.verdict != Verdict::Mixed {
        return (style, format!("{sign} {}{all}", ending(&first.way)));
    }
    let mut nodes: Vec<&str> = broken
        .iter()
        .filter_map(|branch| Some(last_way(&branch.way).end.as_ref()?.node.as_str()))
        .collect();
    nodes.sort_unstable();
    nodes.dedup();
    let what = match worst {
        Some(_) if broken.iter().any(|b| b.verdict == Verdict::Inconclusive) => "broken or unknown",
        Some(Verdict::Dropped) => "dropped",
        Some(Verdict::Rejected) => "rejected",
        Some(Verdict::Loop) => "looping",
        Some(_) => "broken",
        None => "unknown",
    };
    let share: f64 = broken.iter().map(|branch| branch.probability).sum();
    let text = format!(
        "{sign} {} of {total} branches {what} ({}), on {}",
        broken.len(),
        percent(share),
        nodes.join(", ")
    );
    (style, text)
}

/// The way on which the exchange ended: that of the answer where the packet arrived, and so on.
fn last_way(way: &Way) -> &Way {
    last_turn(way).1
}

/// The same with the position of its packet in the exchange.
fn last_turn(way: &Way) -> (usize, &Way) {
    let (mut turn, mut last) = (0, way);
    while let Some(next) = last.reply.as_deref().filter(|_| last.arrives()) {
        (turn, last) = (turn + 1, next);
    }
    (turn, last)
}

/// What a packet of an exchange is called, by its position.
fn packet_words(turn: usize) -> &'static str {
    match turn {
        0 => "",
        1 => "the reply",
        turn if turn % 2 == 0 => "once connected, the client's next packet",
        _ => "once connected, the server's next packet",
    }
}

/// How an exchange ends and where: `the reply is dropped on worker-1 (NETFILTER_DROP)`.
fn ending(way: &Way) -> String {
    let (turn, last) = last_turn(way);
    if way.disposition == Disposition::LeavesCluster && last.arrives() {
        return "leaves the cluster".to_owned();
    }
    let place = last
        .end
        .as_ref()
        .map_or(String::new(), |place| match place.netns.as_str() {
            "host" => format!(" on {}", place.node),
            netns => format!(" in {netns} on {}", place.node),
        });
    let subject = match packet_words(turn) {
        "" => String::new(),
        words => format!("{words} is "),
    };
    match &last.disposition {
        Disposition::Delivered => "delivered".to_owned(),
        Disposition::LeavesCluster => "leaves the cluster".to_owned(),
        Disposition::Dropped(reason) => format!("{subject}dropped{place} ({reason})"),
        Disposition::Rejected(how) => format!("{subject}rejected{place}: {how}"),
        Disposition::Loop => format!("{subject}going round in a loop{place}"),
        Disposition::Inconclusive(_) => {
            let subject = match packet_words(turn) {
                "" => String::new(),
                words => format!("{words}: "),
            };
            format!("{subject}can't be told{place}")
        }
    }
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if (percent - percent.round()).abs() < 0.05 {
        format!("{percent:.0}%")
    } else {
        format!("{percent:.1}%")
    }
}

struct Writer<'a> {
    answer: &'a Explanation,
    options: &'a Options,
}

impl Writer<'_> {
    /// A way as lines that can be compared.
    fn lines(&self, way: &Way) -> Vec<Line> {
        let mut lines = Vec::new();
        let step =
            |label: &str, words: &str| Line::Step(label.to_owned(), words.to_owned(), Vec::new());
        for hop in &way.hops {
            lines.push(Line::Head(hop.node.clone(), hop.netns.clone()));
            if let Some(device) = &hop.iif_words {
                lines.push(step("in", device));
            }
            for view in &hop.steps {
                if !self.options.wide && !view.key {
                    continue;
                }
                let mut words = view.words.clone();
                if self.options.wide && words.is_empty() {
                    words.clone_from(&view.result);
                }
                let objects = if self.options.wide {
                    view.objects.clone()
                } else {
                    Vec::new()
                };
                lines.push(Line::Step(view.label.to_owned(), words, objects));
            }
            if let Some(device) = &hop.oif_words {
                lines.push(step("out", device));
            }
        }
        lines
    }

    fn node(&self, text: &mut String, node: &Node, indent: &str, shown: &mut usize) {
        self.write_lines(text, &node.lines, indent);
        match &node.then {
            Then::End(branch) => self.end(text, *branch, indent),
            Then::Fork(forks) => {
                for (at, fork) in forks.iter().enumerate() {
                    let last = at + 1 == forks.len();
                    self.fork(text, fork, indent, last, shown);
                }
            }
        }
    }

    fn fork(&self, text: &mut String, fork: &Node, indent: &str, last: bool, shown: &mut usize) {
        let corner = if last { "└─" } else { "├─" };
        let below = format!("{indent}{}   ", if last { " " } else { "│" });
        let share = percent(fork.probability);
        let Then::End(branch) = fork.then else {
            text.push_str(&format!("{indent}{corner} {share}\n"));
            self.node(text, fork, &below, shown);
            return;
        };
        let Some(found) = self.answer.branches.get(branch) else {
            return;
        };
        let packet = &found.way.packet;
        let address = words::socket_addr(packet.dst, packet.dport());
        let to = match &found.way.to {
            Some(name) => format!("  {address}  {name}"),
            None => format!("  {address}"),
        };
        let on = found
            .way
            .end
            .as_ref()
            .filter(|place| found.way.to.as_deref() != Some(&format!("node {}", place.node)))
            .map_or(String::new(), |place| format!(" on {}", place.node));
        let (style, sign) = mark(found.verdict);
        let ending = self
            .options
            .paint(style, &format!("{sign} {}", ending(&found.way)));
        let first = format!("{indent}{corner} {share}");
        let words = format!("{}{}   {ending}", escaped(&to), escaped(&on));
        let rest = format!("{below}  ");
        text.push_str(&fold_painted(self.options, &first, &rest, &words));
        let works = found.verdict == Verdict::Delivered;
        if works && *shown == 0 && !self.options.wide {
            return;
        }
        *shown = shown.saturating_sub(usize::from(works));
        self.write_lines(text, &fork.lines, &below);
        self.reply(text, &found.way, &below);
        if !last {
            text.push_str(&format!("{}\n", below.trim_end()));
        }
    }

    fn write_lines(&self, text: &mut String, lines: &[Line], indent: &str) {
        for line in lines {
            match line {
                Line::Head(node, netns) => {
                    let head = self
                        .options
                        .paint(Style::Head, &format!("{node} · {netns}"));
                    text.push_str(&format!("{indent}{head}\n"));
                }
                Line::Step(label, words, objects) => {
                    let first = format!("{indent}  {label:LABEL$}");
                    let rest = format!("{indent}  {:LABEL$}", "");
                    text.push_str(&fold(self.options, &first, &rest, words));
                    for object in objects {
                        let object = self.options.paint(Style::Dim, object);
                        let rest = format!("{rest}    ");
                        let first = format!("{indent}  {:LABEL$}  · ", "");
                        text.push_str(&fold_painted(self.options, &first, &rest, &object));
                    }
                }
            }
        }
    }

    /// What became of a branch that stands alone.
    fn end(&self, text: &mut String, branch: usize, indent: &str) {
        let Some(found) = self.answer.branches.get(branch) else {
            return;
        };
        let way = &found.way;
        let (style, sign) = mark(Verdict::of(&way.disposition));
        let words = match &way.disposition {
            Disposition::Delivered => {
                let to = way
                    .to
                    .as_ref()
                    .map_or(String::new(), |to| format!(" to {to}"));
                format!("delivered{to}")
            }
            _ => ending(way),
        };
        let line = self.options.paint(style, &format!("{sign} {words}"));
        text.push_str(&format!("{indent}{line}\n"));
        self.reply(text, way, indent);
    }

    /// The way back: one line where it works, everything where it does not.
    fn reply(&self, text: &mut String, way: &Way, indent: &str) {
        let Some(reply) = &way.reply else {
            return;
        };
        let (style, sign) = mark(Verdict::of(&reply.disposition));
        if reply.arrives() && !self.options.wide {
            if !self.options.reply {
                self.later(text, way, indent);
                return;
            }
            let sign = self.options.paint(style, sign);
            let first = format!("{indent}reply {sign} ");
            let rest = format!("{indent}        ");
            let mut words = devices(reply);
            if way.disposition == Disposition::LeavesCluster {
                words = format!("should one come: {words}");
            }
            text.push_str(&fold(self.options, &first, &rest, &words));
            self.later(text, way, indent);
            return;
        }
        if reply.arrives() && !self.options.reply {
            self.later(text, way, indent);
            return;
        }
        let alone = Way {
            reply: None,
            ..reply.as_ref().clone()
        };
        let head = format!("reply {sign} {}", ending(&alone));
        let head = self.options.paint(style, &head);
        text.push_str(&format!("{indent}{head}\n"));
        self.write_lines(text, &self.lines(reply), &format!("{indent}  "));
        self.later(text, way, indent);
    }

    /// A later packet of the exchange that fails although the first ones arrived.
    fn later(&self, text: &mut String, way: &Way, indent: &str) {
        let (turn, last) = last_turn(way);
        if turn < 2 || last.arrives() {
            return;
        }
        let (style, sign) = mark(Verdict::of(&last.disposition));
        let head = format!("{} {sign} {}", packet_words(turn), ending(last));
        let head = self.options.paint(style, &head);
        text.push_str(&format!("{indent}{head}\n"));
        self.write_lines(text, &self.lines(last), &format!("{indent}  "));
    }

    fn findings(&self, text: &mut String) {
        findings::findings(text, &self.answer.findings, self.options);
    }
}

/// Devices of a way in order, and what its translations made of the packet.
fn devices(way: &Way) -> String {
    let mut text = String::new();
    let mut node: Option<&str> = None;
    for hop in &way.hops {
        let tunnels = hop.steps.iter().filter_map(|step| {
            let dev = step.evidence.iter().find_map(|evidence| match evidence {
                Evidence::Fdb { dev, .. } | Evidence::Link { dev, .. } => Some(dev.as_str()),
                _ => None,
            });
            dev.filter(|_| matches!(step.kind, StepKind::Encap | StepKind::Decap))
        });
        let names: Vec<&str> = hop
            .iif
            .as_deref()
            .into_iter()
            .chain(tunnels)
            .chain(hop.oif.as_deref())
            .collect();
        if names.is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push_str(" › ");
        }
        if node != Some(&hop.node) {
            text.push_str(&format!("{}: ", hop.node));
            node = Some(&hop.node);
        }
        text.push_str(&names.join(" › "));
    }
    if text.is_empty() {
        "within the namespace".clone_into(&mut text);
    }
    let from = |packet: &Packet| words::socket_addr(packet.src, packet.sport());
    if let Some(first) = way.hops.first() {
        let (first, last) = (from(&first.packet), from(&way.packet));
        if first != last {
            text.push_str(&format!(", source {first} translated back to {last}"));
        }
    }
    text
}
