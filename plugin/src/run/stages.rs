//! Where the time of one run went, for `--verbose`.

use std::fmt;
use std::time::{Duration, Instant};

/// Time spent in each stage of a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Connecting to the API server, listing objects and resolving the ends.
    pub resolve: Duration,
    /// Starting helpers.
    pub launch: Duration,
    /// Waiting for helpers' answers and merging them, all rounds.
    pub collect: Duration,
    /// Following the packet, all rounds.
    pub simulate: Duration,
    /// Putting the answer into its format and writing it.
    pub render: Duration,
    /// Ending the helpers' runs.
    pub close: Duration,
}

impl Stages {
    /// All stages beside the time since `start`; what none of them took is `other`.
    pub fn since(self, start: Instant) -> Shares {
        Shares {
            stages: self,
            total: start.elapsed(),
        }
    }
}

/// Each stage's time and share.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    stages: Stages,
    total: Duration,
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stages {
            resolve,
            launch,
            collect,
            simulate,
            render,
            close,
        } = self.stages;
        let named = resolve + launch + collect + simulate + render + close;
        write!(f, "stages:")?;
        for (name, spent) in [
            ("resolve", resolve),
            ("launch", launch),
            ("collect", collect),
            ("simulate", simulate),
            ("render", render),
            ("close", close),
            ("other", self.total.saturating_sub(named)),
        ] {
            let share = 100.0 * spent.as_secs_f64() / self.total.as_secs_f64().max(f64::EPSILON);
            let millis = 1000.0 * spent.as_secs_f64();
            write!(f, " {name} {millis:.1} ms ({share:.0} %),")?;
        }
        write!(f, " all {:.1} ms", 1000.0 * self.total.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_stage_took_is_named_too() {
        let shares = Shares {
            stages: Stages {
                resolve: Duration::from_millis(20),
                collect: Duration::from_millis(5),
                ..Stages::default()
            },
            total: Duration::from_millis(40),
        };
        assert_eq!(
            shares.to_string(),
            "stages: resolve 20.0 ms (50 %), launch 0.0 ms (0 %), collect 5.0 ms (12 %), \
             simulate 0.0 ms (0 %), render 0.0 ms (0 %), close 0.0 ms (0 %), \
             other 15.0 ms (38 %), all 40.0 ms"
        );
    }
}
