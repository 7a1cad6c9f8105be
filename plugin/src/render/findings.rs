//! Findings and lists of lines, as `trace` and `check` print them.

#![expect(
    clippy::format_push_string,
    reason = "writing to a String cannot fail, and its result would have to be ignored"
)]

use netpath::explain::{Finding, Severity};

use super::paint::{Options, Style, fold};

/// Column at which the words of a finding start, behind its short word.
const LABEL: usize = 10;

/// Findings with their evidence and mend, each behind an empty line.
pub fn findings(text: &mut String, findings: &[Finding], options: &Options) {
    for found in findings {
        text.push('\n');
        finding(text, found, options);
    }
}

fn finding(text: &mut String, finding: &Finding, options: &Options) {
    let style = match finding.severity {
        Severity::Error => Style::Bad,
        Severity::Warning => Style::Unsure,
    };
    let mut place = format!("{} · {}", finding.place.node, finding.place.netns);
    if let Some(object) = &finding.place.object {
        place.push_str(&format!(" · {object}"));
    }
    let head = format!(
        "{} {}: {}",
        finding.code.code,
        finding.severity.name(),
        finding.title
    );
    text.push_str(&format!("{}\n", options.paint(style, &head)));
    let mut part = |word: &str, words: &str| {
        let first = format!("  {word:LABEL$}");
        let rest = format!("  {:LABEL$}", "");
        text.push_str(&fold(options, &first, &rest, words));
    };
    part("where", &place);
    // What the title has said already is no evidence of its own.
    let title = finding.title.split_once(": ").map(|(_, what)| what);
    let told = |line: &str| title == Some(line.strip_prefix("unknown: ").unwrap_or(line));
    let lines = finding.evidence.iter().filter(|line| !told(line));
    for (at, line) in lines.enumerate() {
        part(if at == 0 { "evidence" } else { "" }, line);
    }
    part("mend", &finding.mend);
    part(
        "more",
        &format!("kubectl netpath explain {}", finding.code.code),
    );
}

/// What is not known, but for what the title of a finding has said.
pub fn unknown(text: &mut String, lines: &[String], findings: &[Finding], options: &Options) {
    let told = |line: &&String| {
        findings
            .iter()
            .filter_map(|finding| finding.title.split_once(": "))
            .any(|(_, what)| {
                line.strip_prefix(what)
                    .is_some_and(|rest| rest.starts_with(" ("))
            })
    };
    let rest: Vec<String> = lines.iter().filter(|line| !told(line)).cloned().collect();
    list(text, "unknown", &rest, options);
}

/// A headed list of lines; nothing where there is none.
pub fn list(text: &mut String, head: &str, lines: &[String], options: &Options) {
    if lines.is_empty() {
        return;
    }
    text.push_str(&format!("\n{}\n", options.paint(Style::Head, head)));
    for line in lines {
        text.push_str(&fold(options, "  - ", "    ", line));
    }
}
