//! A table of figures, aligned for reading and valid as Markdown.

use std::fmt;
use std::time::Duration;

/// Rows under a heading.
pub(super) struct Report {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Report {
    pub(super) fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self {
            heads: heads.map(str::to_owned).into(),
            rows: Vec::new(),
        }
    }

    /// Adds a row and tells of it at once: the whole table takes minutes.
    pub(super) fn push(&mut self, row: impl Into<Vec<String>>) {
        let row = row.into();
        eprintln!("{}", row.join("  "));
        self.rows.push(row);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = || std::iter::once(&self.heads).chain(&self.rows);
        let widths: Vec<usize> = (0..self.heads.len())
            .map(|column| {
                all()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for (number, row) in all().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                write!(f, "| {cell:width$} ")?;
            }
            writeln!(f, "|")?;
            if number == 0 {
                for width in &widths {
                    write!(f, "|{:-<1$}", "", width + 2)?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// A figure with its goal.
pub(super) struct Row(Vec<String>);

impl Row {
    /// A figure that does not vary.
    #[allow(clippy::needless_pass_by_value, reason = "called with numbers")]
    pub(super) fn one(name: &str, value: impl ToString) -> Self {
        Self(
            [name, &value.to_string(), "", "", ""]
                .map(str::to_owned)
                .into(),
        )
    }

    /// A figure of several runs.
    pub(super) fn of(name: &str, times: Times) -> Self {
        let texts = [times.median, times.min, times.max].map(duration);
        let mut row = vec![name.to_owned()];
        row.extend(texts);
        row.push(String::new());
        Self(row)
    }

    pub(super) fn goal(mut self, goal: &str) -> Self {
        if let Some(last) = self.0.last_mut() {
            goal.clone_into(last);
        }
        self
    }
}

impl From<Row> for Vec<String> {
    fn from(row: Row) -> Self {
        row.0
    }
}

/// Median, least and most of some runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) median: Duration,
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(runs: I) -> Self {
        let mut all: Vec<Duration> = runs.into_iter().collect();
        all.sort_unstable();
        let at = |index: usize| all.get(index).copied().unwrap_or_default();
        Self {
            median: at(all.len() / 2),
            min: at(0),
            max: at(all.len().saturating_sub(1)),
        }
    }
}

/// Three digits and a unit.
pub(super) fn duration(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 1e3 {
        format!("{micros:.1} µs")
    } else if micros < 1e5 {
        format!("{:.2} ms", micros / 1e3)
    } else if micros < 1e6 {
        format!("{:.0} ms", micros / 1e3)
    } else {
        format!("{:.2} s", micros / 1e6)
    }
}

/// Bytes in the unit that fits.
pub(super) fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let count = count as f64;
    if count < 10_240.0 {
        format!("{count} B")
    } else if count < 1_048_576.0 {
        format!("{:.1} KiB", count / 1024.0)
    } else {
        format!("{:.2} MiB", count / 1_048_576.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let mut report = Report::new(["a", "figure"]);
        report.push(vec!["1 µs".to_owned(), "2".to_owned()]);
        assert_eq!(
            report.to_string(),
            "| a    | figure |\n|------|--------|\n| 1 µs | 2      |\n"
        );
        assert_eq!(duration(Duration::from_micros(1500)), "1.50 ms");
        assert_eq!(bytes(3 << 20), "3.00 MiB");
    }
}
