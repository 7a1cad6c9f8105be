//! What `kubectl netpath trace --probe` and `--mtu` saw of real packets, beside what they predicted.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::answer::{Branch, End};

/// A probe, in the product's words.
#[derive(Debug, Deserialize)]
pub struct Probe {
    /// `confirmed`, `seen`, `unwatched` or `differs`.
    pub result: String,
    /// The first that differs.
    pub difference: Option<String>,
    /// Its own socket was answered.
    pub answered: bool,
    /// What its own socket saw.
    pub answer: String,
    /// What could not be watched.
    pub unwatched: Vec<String>,
    /// Device by device.
    pub devices: Vec<At>,
    /// What kernels say that they dropped of it.
    pub dropped: Vec<Dropped>,
}

/// A device that a probe was to be seen at.
#[derive(Debug, Deserialize)]
pub struct At {
    /// Node.
    pub node: String,
    /// Namespace.
    pub netns: String,
    /// Device.
    pub device: String,
    /// `confirmed` or how it differs.
    pub met: String,
}

/// A drop that a kernel told of.
#[derive(Debug, Deserialize)]
pub struct Dropped {
    /// Node.
    pub node: String,
    /// Of `enum skb_drop_reason`.
    pub reason: Option<String>,
}

/// The largest packet of one direction, in the product's words.
#[derive(Debug, Deserialize)]
pub struct Mtu {
    /// `proven`, or what else became of it.
    pub result: String,
    /// As predicted, bytes.
    pub predicted: Option<u32>,
    /// As found, bytes.
    pub largest: Option<u32>,
    /// Why it was not tried.
    pub untried: Option<String>,
}

#[derive(Deserialize)]
struct ProbesJson {
    probes: Option<Vec<Probe>>,
    mtu: Option<Vec<Mtu>>,
}

/// Reads the answer to a question with `--probe`.
pub fn parse(json: &[u8]) -> Result<Probe> {
    let said: ProbesJson = serde_json::from_slice(json).context("read a probe's JSON")?;
    let mut probes = said.probes.unwrap_or_default();
    ensure!(
        probes.len() == 1,
        "read a probe's JSON: one probe is wanted, not {}",
        probes.len()
    );
    probes.pop().context("take the probe")
}

/// Reads the answer to a question with `--mtu`.
pub fn parse_mtu(json: &[u8]) -> Result<Vec<Mtu>> {
    let said: ProbesJson = serde_json::from_slice(json).context("read the JSON of --mtu")?;
    Ok(said.mtu.unwrap_or_default())
}

impl Mtu {
    /// Why its prediction is not proven; `None` if it is.
    pub fn lacks(&self) -> Option<String> {
        let good =
            self.result == "proven" && self.predicted.is_some() && self.predicted == self.largest;
        (!good).then(|| {
            let Self {
                result,
                predicted,
                largest,
                untried,
            } = self;
            format!(
                "--mtu says {result}: predicted {predicted:?}, largest {largest:?}, {untried:?}"
            )
        })
    }
}

impl Probe {
    /// How it is not what a prediction of these branches has to be confirmed by; `None` if it is.
    pub fn lacks(&self, result: &str, branches: &[Branch]) -> Option<String> {
        let why = self.difference.as_deref().unwrap_or(&self.answer);
        if self.result != result {
            return Some(format!("--probe says {}, not {result}: {why}", self.result));
        }
        // Drops of others may go untold, which says nothing of the way.
        let mut unwatched = self.unwatched.iter();
        if let Some(lost) = unwatched.find(|one| !one.contains("went untold")) {
            return Some(format!("--probe did not watch all: {lost}"));
        }
        let ends = |branch: &Branch| match branch.end {
            End::Pod(_) | End::Node(_) | End::Outside => self.answered,
            End::Refused | End::Silence => !self.answered,
            End::Stranger(_) | End::Unknown => true,
        };
        if !branches.iter().any(ends) {
            return Some(format!("the probe ended otherwise: {}", self.answer));
        }
        // Where it can't be predicted on, there is no more to confirm; that somebody refuses is seen.
        let fits = |met: &str| match result {
            "seen" => matches!(met, "seen" | "confirmed"),
            _ => {
                met == "confirmed"
                    || met == "not seen, but behind"
                    || met == "seen" && !self.answered
            }
        };
        if let Some(other) = self.devices.iter().find(|device| !fits(&device.met)) {
            let At {
                node,
                netns,
                device,
                met,
            } = other;
            return Some(format!("the probe at {device} of {netns} on {node}: {met}"));
        }
        let met = self
            .devices
            .iter()
            .filter(|device| device.met != "not seen, but behind")
            .count();
        (met == 0).then(|| "the probe was seen nowhere".to_owned())
    }

    /// Whether a kernel of this node says that it dropped it for this reason.
    pub fn was_dropped(&self, node: &str, reason: &str) -> bool {
        let mut dropped = self.dropped.iter();
        dropped.any(|one| one.node == node && one.reason.as_deref() == Some(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(result: &str, answered: bool, met: &str) -> Probe {
        let json = serde_json::json!({"probes": [{
            "result": result, "difference": null, "answered": answered, "answer": "a", "unwatched": [],
            "devices": [{"node": "n1", "netns": "host", "device": "eth0", "met": met}],
            "dropped": [{"node": "n1", "reason": "NETFILTER_DROP"}],
        }]});
        parse(json.to_string().as_bytes()).unwrap()
    }

    fn ending(end: End) -> Vec<Branch> {
        vec![Branch {
            end,
            probability: 1.0,
            turns: Vec::new(),
            node: None,
            text: String::new(),
        }]
    }

    #[test]
    fn a_probe_confirms_all_or_what_it_lacks_is_told() {
        let web = ending(End::Pod("web-1".to_owned()));
        let good = probe("confirmed", true, "confirmed");
        assert_eq!(good.lacks("confirmed", &web), None);
        assert!(
            good.was_dropped("n1", "NETFILTER_DROP") && !good.was_dropped("n2", "NETFILTER_DROP")
        );
        let silent = ending(End::Silence);
        assert!(
            good.lacks("confirmed", &silent)
                .unwrap()
                .contains("ended otherwise")
        );
        let elsewhere = probe("confirmed", true, "not seen");
        assert!(elsewhere.lacks("confirmed", &web).unwrap().contains("eth0"));
        let differs = probe("differs", true, "confirmed");
        assert!(
            differs
                .lacks("confirmed", &web)
                .unwrap()
                .contains("differs")
        );
        let blind = Probe {
            unwatched: vec!["n2: no captures".to_owned()],
            ..probe("confirmed", true, "confirmed")
        };
        assert!(blind.lacks("confirmed", &web).unwrap().contains("n2"));
        assert!(parse(br#"{"probes": []}"#).is_err());
    }
}
