//! A probe beside its prediction, as text.

use std::collections::BTreeSet;

use netpath::explain::observe::dropped::Loss;
use netpath::explain::observe::{Agreement, End, Met, Proof, Spot};
use netpath::explain::{Naming, Verdict};
use netpath::model::capture::Answer;

use super::packets::packet;
use super::paint::{Options, Style, fold, fold_painted};
use crate::run::probe::Sent;
use crate::run::trace::worst;
use crate::run::{BROKEN, INCONCLUSIVE};

/// One probe: what came back, whether it agrees, and device by device.
fn whole(sent: &Sent, naming: &Naming<'_>, options: &Options) -> String {
    let (style, verdict) = verdict(sent, naming);
    let head = format!("probe: {}   {}", came(sent), options.paint(style, &verdict));
    let mut text = format!("\n{}", fold_painted(options, "", "  ", &head));
    let spots = &sent.observed.spots;
    let shown = spots
        .iter()
        .filter(|spot| spot.turn < 2 || spot.met != Met::Confirmed);
    let mut place = (0, String::new());
    for spot in shown {
        let own = (
            spot.turn,
            format!("{} {}", spot.ns.node, naming.netns(&spot.ns)),
        );
        if own != place {
            let turn = ["probe", "reply", "then", "then back"];
            let turn = turn.get(spot.turn).copied().unwrap_or_default();
            text.push_str(&fold(
                options,
                "  ",
                "      ",
                &format!("{turn} at {}", own.1),
            ));
            place = own;
        }
        text.push_str(&fold_painted(
            options,
            "    ",
            "        ",
            &line(spot, sent, options),
        ));
    }
    if observed_again(sent) {
        let words = format!(
            "it was sent {} times until it was answered: times are of the first packet at each device",
            sent.observed.sent
        );
        text.push_str(&fold(options, "  ", "      ", &words));
    }
    let later = spots.iter().filter(|spot| spot.turn >= 2);
    let (all, good) = later.fold((0, 0), |(all, good), spot| {
        (all + 1, good + usize::from(spot.met == Met::Confirmed))
    });
    if all > 0 {
        let words = format!("what follows once connected: confirmed at {good} of {all} devices");
        text.push_str(&fold(options, "  ", "      ", &words));
    }
    if let Some(how) = &sent.since {
        let words = format!(
            "read again, the kernels' objects predict this: {how}; they changed in between"
        );
        text.push_str(&fold(options, "  ", "      ", &words));
    }
    // What an exchange that works loses on its way are copies that bridges flood, and the like.
    let tells = sent.observed.end != End::Works || sent.observed.sent > 1;
    let some = sent.dropped.iter().any(|loss| !is_repeated(loss));
    let hides = some && sent.observed.sent > 1;
    let told = sent
        .dropped
        .iter()
        .filter(|loss| tells && !(hides && is_repeated(loss)));
    for loss in told {
        let words = naming.text(&loss.text());
        text.push_str(&fold(options, "  ", "      ", &words));
    }
    for line in &sent.counted {
        text.push_str(&fold(options, "  counted: ", "      ", &naming.text(line)));
    }
    for why in &sent.unwatched {
        text.push_str(&fold(
            options,
            "  not watched: ",
            "      ",
            &naming.text(why),
        ));
    }
    options.plain(&text)
}

/// Whether it may be the copy of a SYN that came before: its receiver has the connection by then, and drops it without a
/// reason (`tcp_v4_rcv()`).
fn is_repeated(loss: &Loss) -> bool {
    let unnamed = loss.why.name.as_deref() == Some("NOT_SPECIFIED");
    let by = loss.why.function.as_deref().unwrap_or_default();
    loss.turn == 0 && unnamed && by.starts_with("tcp_v")
}

/// All probes of an answer: each whole but those that are confirmed and answered like one before them, and, of several,
/// what they say together.
pub fn texts(all: &[Sent], naming: &Naming<'_>, options: &Options) -> String {
    let mut text = String::new();
    // Ways that a probe was confirmed on.
    let mut shown = BTreeSet::new();
    for one in all {
        let observed = &one.observed;
        let good = observed.agreement == Agreement::Confirmed
            && observed.end == End::Works
            && observed.sent < 2;
        if good && !shown.insert(observed.branch) {
            let (style, verdict) = verdict(one, naming);
            let head = format!(
                "probe: {}   {}, as one before",
                came(one),
                options.paint(style, &verdict)
            );
            text.push_str(&fold_painted(options, "", "  ", &head));
        } else {
            text.push_str(&whole(one, naming, options));
        }
    }
    if all.len() > 1 {
        text.push_str(&fold(options, "\n", "  ", &together(all)));
    }
    options.plain(&text)
}

/// What several probes say together.
fn together(all: &[Sent]) -> String {
    let mut micros: Vec<u64> = all
        .iter()
        .filter(|one| one.probed.answer == Answer::Answered)
        .map(|one| one.probed.micros)
        .collect();
    micros.sort_unstable();
    let again = all.iter().filter(|one| observed_again(one)).count();
    let millis = |micros: u64| format!("{}.{:03}", micros / 1000, micros % 1000);
    let mut words = vec![format!("{} probes: {} answered", all.len(), micros.len())];
    if let (Some(least), Some(most)) = (micros.first(), micros.last()) {
        let median = micros.get(micros.len() / 2).unwrap_or(least);
        let [least, median, most] = [least, median, most].map(|micros| millis(*micros));
        words.push(format!("after {least} to {most} ms, median {median}"));
    }
    if again > 0 {
        words.push(format!("{again} of these when sent again"));
    }
    for (word, agreement) in [
        ("confirmed", Agreement::Confirmed),
        ("not watched", Agreement::Unwatched),
        ("seen, not predicted", Agreement::Seen),
        ("differ", Agreement::Differs),
    ] {
        let of_it = all.iter().filter(|one| one.observed.agreement == agreement);
        match of_it.count() {
            0 => {}
            count => words.push(format!("{count} {word}")),
        }
    }
    words.join("; ")
}

/// Whether TCP had to repeat it before it was answered.
fn observed_again(sent: &Sent) -> bool {
    sent.observed.sent > 1 && sent.observed.end == End::Works
}

/// What the probe's own socket saw.
pub fn came(sent: &Sent) -> String {
    let from = match sent.probed.from {
        Some((ip, port)) if ip.is_ipv6() => format!("from [{ip}]:{port} "),
        Some((ip, port)) => format!("from {ip}:{port} "),
        None => String::new(),
    };
    let micros = sent.probed.micros;
    let after = format!("after {}.{:03} ms", micros / 1000, micros % 1000);
    let answer = match &sent.probed.answer {
        Answer::Answered => format!("answered {after}"),
        Answer::Refused => format!("refused {after}"),
        Answer::Failed(why) => format!("failed {after}: {why}"),
        Answer::Silent => format!(
            "no answer in {}.{} s",
            micros / 1_000_000,
            micros / 100_000 % 10
        ),
        Answer::Taken => "not sent, its port is in use".to_owned(),
    };
    format!("{from}{answer}")
}

/// What a probe that only connects leaves open.
fn without_data(shown: &str) -> (Style, String) {
    let words = format!(
        "{shown}; the probe sends no data, so that what becomes of packets with data is not shown"
    );
    (Style::Unsure, words)
}

fn verdict(sent: &Sent, naming: &Naming<'_>) -> (Style, String) {
    let observed = &sent.observed;
    match (observed.agreement, &observed.difference) {
        (Agreement::Confirmed, _) if observed.end == End::Unanswered => (
            Style::Good,
            "confirmed as far as it can be seen; whether anybody answers is not predicted"
                .to_owned(),
        ),
        (Agreement::Confirmed, _) => (Style::Good, "confirmed".to_owned()),
        (Agreement::Unwatched, _) if observed.end == End::Connected => {
            without_data("the connection stands, as predicted")
        }
        (Agreement::Unwatched, _) => (
            Style::Unsure,
            "it ended as predicted; its way was not watched".to_owned(),
        ),
        (Agreement::Seen, _) if observed.end == End::Connected => {
            without_data("the connection stands")
        }
        (Agreement::Seen, _) => (Style::Unsure, "seen, not predicted".to_owned()),
        (Agreement::Differs, why) => {
            let why = why.as_deref().unwrap_or("it went another way");
            (Style::Bad, format!("differs: {}", naming.text(why)))
        }
    }
}

/// What all probes show, for the first line of the answer, and whether it takes the place of the prediction. Of what is outside of
/// the cluster, nobody saw that it arrived.
pub fn proof(proof: &Proof, outside: bool) -> (Style, bool, String) {
    let probes = |count: usize| match count {
        1 => "the probe".to_owned(),
        count => format!("{count} probes"),
    };
    let some = if proof.least == proof.count {
        probes(proof.count)
    } else {
        format!("{} of {} probes", proof.least, proof.count)
    };
    let of = match proof.ways {
        (_, 0 | 1) => String::new(),
        (taken, all) => format!(" on {taken} of {all} branches"),
    };
    let (style, ended) = match proof.end {
        End::Works => (Style::Good, "✓ answered"),
        End::Refused => (Style::Bad, "✗ refused"),
        End::Lost => (Style::Bad, "✗ lost"),
        End::Unanswered => (Style::Unsure, "? not answered"),
        End::Connected => (Style::Unsure, "? connected, packets with data not shown"),
    };
    match proof.agreement {
        Agreement::Confirmed if proof.end == End::Unanswered && outside => (
            Style::Unsure,
            false,
            format!("as {some} did{of}, and nobody answered"),
        ),
        Agreement::Confirmed if proof.end == End::Unanswered => (
            Style::Good,
            false,
            format!("confirmed by {some}{of}; no answer came, which programs of UDP need not give"),
        ),
        Agreement::Confirmed => (Style::Good, false, format!("confirmed by {some}{of}")),
        Agreement::Unwatched if proof.end == End::Connected => (
            Style::Unsure,
            false,
            format!("of which {some} shows the connection, and no packet with data"),
        ),
        Agreement::Unwatched => (
            Style::Unsure,
            false,
            format!("{some} ended so, too; the way was not watched"),
        ),
        Agreement::Seen => (
            style,
            true,
            format!("{ended}, as {some} saw{of}; it can't be predicted"),
        ),
        Agreement::Differs => (
            style,
            true,
            format!(
                "{ended}, as {some} saw{of}; predicted was: {}",
                proof.predicted.name()
            ),
        ),
    }
}

/// How one device's prediction fared, in a word or some.
pub fn met(spot: &Spot, unknown: bool) -> String {
    match &spot.met {
        Met::Confirmed => "confirmed".to_owned(),
        Met::NotSeen => "not seen".to_owned(),
        Met::Bypassed => "not seen, but behind".to_owned(),
        Met::Told => "seen".to_owned(),
        Met::Elsewhere if unknown => "seen".to_owned(),
        Met::Elsewhere => "seen, not predicted".to_owned(),
        Met::Changed(fields) => {
            let fields = fields.iter();
            let words: Vec<String> = fields
                .map(|field| format!("{} {}, predicted {}", field.field, field.to, field.from))
                .collect();
            format!("changed: {}", words.join("; "))
        }
    }
}

fn line(spot: &Spot, sent: &Sent, options: &Options) -> String {
    let style = match spot.met {
        Met::Confirmed => Style::Good,
        Met::Elsewhere | Met::Told | Met::Bypassed => Style::Unsure,
        Met::NotSeen | Met::Changed(_) => Style::Bad,
    };
    let way = if spot.out { "out" } else { "in " };
    let after = match spot.after {
        Some(nanos) => format!("+{}.{:03} ms", nanos / 1_000_000, nanos / 1_000 % 1_000),
        None => "predicted".to_owned(),
    };
    let unknown = sent.observed.agreement == Agreement::Seen;
    format!(
        "{way} {:<15} {after:>10}  {}  {}",
        spot.dev,
        packet(&spot.packet, None),
        options.paint(style, &met(spot, unknown))
    )
}

/// The exit code that what was seen asks for: it wins over the prediction.
pub fn exit_code(sent: &[Sent], predicted: u8) -> u8 {
    let codes = sent.iter().map(|one| {
        let observed = &one.observed;
        match (observed.agreement, observed.end) {
            // Somebody outside did not answer: from here it can't be told whether anything is wrong.
            (Agreement::Confirmed | Agreement::Unwatched, End::Unanswered)
                if one.probed.answer == Answer::Silent && !one.datagram && predicted == 0 =>
            {
                INCONCLUSIVE
            }
            (Agreement::Confirmed | Agreement::Unwatched, _) => predicted,
            (_, End::Works) => 0,
            (_, End::Refused | End::Lost) => BROKEN,
            (_, End::Unanswered | End::Connected) => INCONCLUSIVE,
        }
    });
    worst(codes).unwrap_or(predicted)
}

/// The verdict's word for JSON: with probes, what was seen.
pub fn result(agreement: Agreement) -> &'static str {
    match agreement {
        Agreement::Confirmed => "confirmed",
        Agreement::Unwatched => "unwatched",
        Agreement::Seen => "seen",
        Agreement::Differs => "differs",
    }
}

/// What was predicted, where probes were sent.
pub fn predicted(proof: Option<&Proof>) -> Option<&'static str> {
    proof.map(|proof| Verdict::name(proof.predicted))
}
