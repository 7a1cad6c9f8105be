//! How text may look: colour, width, and whether the terminal knows more than ASCII.
//!
//! Names of devices, comments of rules, and words of the API are other people's: what a terminal would
//! take as a command is shown escaped. [`fold`] and [`Options::paint`] do so where a line is made,
//! [`Options::plain`] once more over all of it.

use std::borrow::Cow;
use std::io::IsTerminal;

use crate::cli::ColorChoice;

/// How text is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// With colours. They never carry a meaning that words or marks do not.
    pub color: bool,
    /// Columns at which lines are folded; `None` leaves them whole (pipes, files).
    pub width: Option<usize>,
    /// With characters beyond ASCII.
    pub unicode: bool,
    /// Every decision with its objects.
    pub wide: bool,
    /// With the way of the reply.
    pub reply: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            color: false,
            width: None,
            unicode: true,
            wide: false,
            reply: true,
        }
    }
}

impl Options {
    /// As the terminal and its settings want it.
    pub fn of(choice: ColorChoice) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !set("NO_COLOR") && !dumb,
        };
        let width = terminal.then(terminal_width).flatten();
        Self {
            color,
            width,
            unicode: !dumb && locale_has_unicode(),
            ..Self::default()
        }
    }

    /// The text, escaped, with this style where colours are wanted.
    pub fn paint(&self, style: Style, text: &str) -> String {
        let text = escaped(text);
        if !self.color || text.is_empty() {
            return text.into_owned();
        }
        let [reset, good, bad, unsure, head, dim] = CODES;
        let code = match style {
            Style::Good => good,
            Style::Bad => bad,
            Style::Unsure => unsure,
            Style::Head => head,
            Style::Dim => dim,
        };
        format!("\x1b[{code}m{text}\x1b[{reset}m")
    }

    /// The whole text as it may go to a terminal: without commands but its own colours, and with ASCII
    /// in place of arrows and lines where nothing more is known to be shown.
    pub fn plain(&self, text: &str) -> String {
        let text = if self.color {
            let mut safe = String::with_capacity(text.len());
            let mut rest = text;
            while let Some(at) = rest.find('\x1b') {
                let (before, from) = rest.split_at(at);
                safe.push_str(&without_commands(before));
                let own = CODES.iter().find_map(|code| {
                    let after = from.strip_prefix("\x1b[")?.strip_prefix(code)?;
                    after.strip_prefix('m')
                });
                let after = own.unwrap_or_else(|| from.strip_prefix('\x1b').unwrap_or(""));
                let (taken, _) = from.split_at(from.len() - after.len());
                if own.is_some() {
                    safe.push_str(taken);
                } else {
                    safe.push_str(&escaped(taken));
                }
                rest = after;
            }
            safe.push_str(&without_commands(rest));
            safe
        } else {
            without_commands(text)
        };
        if self.unicode {
            return text;
        }
        let mut plain = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                '→' => plain.push_str("->"),
                '›' => plain.push('>'),
                '✓' => plain.push_str("ok"),
                '✗' => plain.push('x'),
                '├' | '│' => plain.push('|'),
                '└' => plain.push('`'),
                '─' | '·' => plain.push('-'),
                '…' => plain.push_str("..."),
                other => plain.push(other),
            }
        }
        plain
    }
}

/// All colours that this program writes: reset, then those of [`Style`].
const CODES: [&str; 6] = ["0", "32", "1;31", "33", "1", "2"];

/// Control characters, and those that turn the direction of writing: both make a terminal show
/// something else than what is there.
fn commands(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns
}

/// Foreign words on one line, with whatever a terminal would obey spelled out: `\u{1b}`, `\n`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(commands) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if commands(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Foreign words of several lines, likewise, but for the ends of lines.
pub fn without_commands(text: &str) -> String {
    let lines: Vec<Cow<'_, str>> = text.split('\n').map(escaped).collect();
    lines.join("\n")
}

/// Colours by meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Works.
    Good,
    /// Broken.
    Bad,
    /// Can't be told.
    Unsure,
    /// Heads a part.
    Head,
    /// Details.
    Dim,
}

/// COLUMNS where it is set, else what the terminal says.
fn terminal_width() -> Option<usize> {
    let columns = std::env::var("COLUMNS")
        .ok()
        .and_then(|text| text.parse().ok());
    let asked = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    columns.or_else(asked).filter(|width| *width >= 40)
}

/// Only a locale that says otherwise rules Unicode out.
fn locale_has_unicode() -> bool {
    let named = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    named.is_none_or(|value| {
        let value = value.to_ascii_lowercase();
        value.contains("utf-8") || value.contains("utf8") || value.starts_with("c.")
    })
}

/// Number of columns that a text takes, colours apart.
pub fn columns(text: &str) -> usize {
    let mut count = 0;
    let mut inside = false;
    for c in text.chars() {
        match (inside, c) {
            (false, '\x1b') => inside = true,
            (true, 'm') => inside = false,
            (true, _) => {}
            (false, _) => count += 1,
        }
    }
    count
}

/// Foreign words, escaped and folded as [`fold_painted`] does.
pub fn fold(options: &Options, first: &str, indent: &str, text: &str) -> String {
    fold_painted(options, first, indent, &escaped(text))
}

/// A line folded at spaces so that it fits, further lines behind `indent`. The text may have colours,
/// so that it must be escaped already.
pub fn fold_painted(options: &Options, first: &str, indent: &str, text: &str) -> String {
    let mut line = first.to_owned();
    let mut out = String::new();
    let Some(width) = options.width else {
        line.push_str(text);
        line.push('\n');
        return line;
    };
    let mut empty = true;
    for word in text.split(' ') {
        if !empty && columns(&line) + 1 + columns(word) > width {
            out.push_str(line.trim_end());
            out.push('\n');
            indent.clone_into(&mut line);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_folded_behind_their_indent() {
        let options = Options {
            width: Some(20),
            ..Options::default()
        };
        assert_eq!(
            fold(
                &options,
                "  mend  ",
                "        ",
                "ip link set eth0 up again"
            ),
            "  mend  ip link set\n        eth0 up\n        again\n"
        );
        assert_eq!(fold(&Options::default(), "a ", "  ", "b c"), "a b c\n");
    }

    #[test]
    fn colours_take_no_columns_and_can_be_left_out() {
        let options = Options {
            color: true,
            ..Options::default()
        };
        let red = options.paint(Style::Bad, "dropped");
        assert_ne!(red, "dropped");
        assert_eq!(columns(&red), 7);
        assert_eq!(Options::default().paint(Style::Bad, "dropped"), "dropped");
    }

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
        let nasty = "eth0\x1b]0;owned\x07\u{9b}2J\u{202e}\r\nNP0000 all is well\x1b[31m";
        for color in [false, true] {
            let options = Options {
                color,
                ..Options::default()
            };
            let mut text = options.paint(Style::Head, nasty);
            text.push('\n');
            text.push_str(&fold(&options, "  ", "  ", nasty));
            // Even what nobody thought of when the line was made.
            text.push_str("forgotten \x1b[2J\x07\u{9b}1m");
            let text = options.plain(&text);
            assert_eq!(text.lines().count(), 3, "{text:?}");
            let bare = CODES.iter().fold(text.clone(), |text, code| {
                text.replace(&format!("\x1b[{code}m"), "")
            });
            assert!(!bare.replace('\n', "").contains(commands), "{text:?}");
            assert!(
                bare.contains("eth0\\u{1b}]0;owned\\u{7}\\u{9b}2J\\u{202e}\\r\\nNP0000"),
                "{text:?}"
            );
            assert_eq!(text.contains("\x1b[1m"), color);
        }
    }

    #[test]
    fn ascii_says_the_same() {
        let options = Options {
            unicode: false,
            ..Options::default()
        };
        assert_eq!(options.plain("├─ ✗ a → b"), "|- x a -> b");
    }
}
