//! A probe beside its prediction, as text.

use netpath::explain::Naming;
use netpath::explain::observe::{Agreement, Met, Observed, Spot};
use netpath::model::capture::Answer;

use super::packets::packet;
use super::paint::{Options, Style, fold_painted};
use crate::run::probe::Sent;

/// One probe: what came back, whether it agrees, and device by device.
pub fn text(sent: &Sent, naming: &Naming<'_>, options: &Options) -> String {
    let (style, verdict) = verdict(sent, naming);
    let head = format!("probe: {}   {}", came(sent), options.paint(style, &verdict));
    let mut text = format!("\n{}", fold_painted(options, "", "  ", &head));
    for spot in sent.observed.iter().flat_map(|observed| &observed.spots) {
        text.push_str(&fold_painted(
            options,
            "  ",
            "      ",
            &line(spot, naming, options),
        ));
    }
    for why in &sent.unwatched {
        text.push_str(&fold_painted(options, "  not watched: ", "      ", why));
    }
    options.plain(&text)
}

/// What the probe's own socket saw.
pub fn came(sent: &Sent) -> String {
    let from = match sent.probed.from {
        Some((ip, port)) if ip.is_ipv6() => format!("from [{ip}]:{port} "),
        Some((ip, port)) => format!("from {ip}:{port} "),
        None => String::new(),
    };
    let micros = sent.probed.micros;
    let answer = match &sent.probed.answer {
        Answer::Answered => format!("answered after {}.{:03} ms", micros / 1000, micros % 1000),
        Answer::Refused => format!("refused after {}.{:03} ms", micros / 1000, micros % 1000),
        Answer::Failed(why) => format!("failed: {why}"),
        Answer::Silent => format!("no answer in {} s", micros.div_ceil(1_000_000).max(1)),
    };
    format!("{from}{answer}")
}

fn verdict(sent: &Sent, naming: &Naming<'_>) -> (Style, String) {
    match &sent.observed {
        None => (Style::Unsure, "nothing was predicted".to_owned()),
        Some(observed) => match (observed.agreement, &observed.difference) {
            (Agreement::Confirmed, _) => (Style::Good, "confirmed".to_owned()),
            (Agreement::Seen, _) => (Style::Unsure, "seen, not predicted".to_owned()),
            (Agreement::Differs, why) => {
                let why = why.as_deref().unwrap_or("it went another way");
                (Style::Bad, format!("differs: {}", naming.text(why)))
            }
        },
    }
}

/// How one device's prediction fared, in a word or some.
pub fn met(spot: &Spot) -> String {
    match &spot.met {
        Met::Confirmed => "confirmed".to_owned(),
        Met::NotSeen => "not seen".to_owned(),
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

fn line(spot: &Spot, naming: &Naming<'_>, options: &Options) -> String {
    let style = match spot.met {
        Met::Confirmed => Style::Good,
        Met::Elsewhere => Style::Unsure,
        Met::NotSeen | Met::Changed(_) => Style::Bad,
    };
    let turn = if spot.reply { "reply" } else { "probe" };
    let way = if spot.out { "out" } else { "in" };
    let after = match spot.after {
        Some(nanos) => format!("+{}.{:03} ms", nanos / 1_000_000, nanos / 1_000 % 1_000),
        None => "-".to_owned(),
    };
    format!(
        "{turn} {} {} {} {way} {after}  {}  {}",
        spot.ns.node,
        naming.netns(&spot.ns),
        spot.dev,
        packet(&spot.packet, None),
        options.paint(style, &met(spot))
    )
}

/// The exit code that what was seen asks for: it wins over the prediction.
pub fn exit_code(sent: &[Sent], predicted: u8) -> u8 {
    let differs = |observed: &Observed| observed.agreement != Agreement::Confirmed;
    let observed: Vec<&Observed> = sent
        .iter()
        .filter_map(|one| one.observed.as_ref())
        .collect();
    if !observed.iter().any(|one| differs(one)) {
        return predicted;
    }
    if observed.iter().all(|one| one.answered) {
        0
    } else if predicted == 0
        || observed
            .iter()
            .any(|one| one.agreement == Agreement::Differs)
    {
        crate::run::BROKEN
    } else {
        predicted
    }
}
