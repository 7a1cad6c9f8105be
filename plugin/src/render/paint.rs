//! How text may look: colour, width, and whether the terminal knows more than ASCII.

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

    /// The text with this style, where colours are wanted.
    pub fn paint(&self, style: Style, text: &str) -> String {
        if !self.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match style {
            Style::Good => "32",
            Style::Bad => "1;31",
            Style::Unsure => "33",
            Style::Head => "1",
            Style::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// The text with ASCII in place of arrows and lines, where nothing more is known to be shown.
    pub fn plain(&self, text: String) -> String {
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

/// A line folded at spaces so that it fits, further lines behind `indent`.
pub fn fold(options: &Options, first: &str, indent: &str, text: &str) -> String {
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
    fn ascii_says_the_same() {
        let options = Options {
            unicode: false,
            ..Options::default()
        };
        assert_eq!(options.plain("├─ ✗ a → b".to_owned()), "|- x a -> b");
    }
}
