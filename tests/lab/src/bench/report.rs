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
pub(super) struct Row {
    cells: [String; 4],
    /// What is compared with the goal.
    judged: f64,
    goal: String,
}

impl Row {
    /// A figure that does not vary.
    pub(super) fn one(name: &str, value: Value) -> Self {
        Self {
            cells: [name, &value.to_string(), "", ""].map(str::to_owned),
            judged: value.number(),
            goal: String::new(),
        }
    }

    /// A figure of several runs.
    pub(super) fn of(name: &str, times: Times) -> Self {
        let cells = [
            name.to_owned(),
            duration(times.median),
            duration(times.p95),
            duration(times.min),
        ];
        Self {
            cells,
            judged: times.median.as_secs_f64(),
            goal: String::new(),
        }
    }

    /// Sets the median, or the one value, beside what it shall be at most.
    pub(super) fn goal(mut self, goal: Value) -> Self {
        let word = verdict(self.judged <= goal.number());
        self.goal = format!("{goal}: {word}");
        self
    }
}

impl From<Row> for Vec<String> {
    fn from(row: Row) -> Self {
        row.cells.into_iter().chain([row.goal]).collect()
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// A value in its unit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Time(Duration),
    Bytes(u64),
    Count(u32),
}

impl Value {
    #[expect(clippy::cast_precision_loss, reason = "compared with round numbers")]
    fn number(self) -> f64 {
        match self {
            Self::Time(time) => time.as_secs_f64(),
            Self::Bytes(count) => count as f64,
            Self::Count(count) => f64::from(count),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => f.write_str(&duration(*time)),
            Self::Bytes(count) => f.write_str(&bytes(*count)),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

/// Median, least, and what all but one in twenty runs stay within.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) median: Duration,
    pub(super) p95: Duration,
    pub(super) min: Duration,
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(runs: I) -> Self {
        let mut all: Vec<Duration> = runs.into_iter().collect();
        all.sort_unstable();
        let at = |index: usize| all.get(index).copied().unwrap_or_default();
        Self {
            median: at(all.len() / 2),
            // Of fewer than twenty runs, the longest.
            p95: at((all.len() * 95).div_ceil(100).saturating_sub(1)),
            min: at(0),
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
        let times: Times = (1..=40).map(Duration::from_millis).collect();
        let row: Vec<String> = Row::of("a", times)
            .goal(Value::Time(Duration::from_millis(20)))
            .into();
        assert_eq!(
            row,
            ["a", "21.00 ms", "38.00 ms", "1.00 ms", "20.00 ms: MISSED"]
        );
        let row: Vec<String> = Row::one("b", Value::Count(3)).goal(Value::Count(3)).into();
        assert_eq!(row, ["b", "3", "", "", "3: met"]);
    }
}
