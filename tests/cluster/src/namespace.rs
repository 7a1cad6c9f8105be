//! The namespace of everything that the check makes. Only the one that this run made is ever deleted.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::kubectl::{self, NAMESPACE};

/// Label with the run that made the namespace.
const LABEL: &str = "netpath-check/run";

/// A namespace that this run made.
pub struct Namespace {
    run: String,
}

impl Namespace {
    /// Makes it. One that is being deleted is awaited; any other that is there already is somebody else's.
    pub fn make() -> Result<Self> {
        let get = ["get", "namespace", NAMESPACE, "--ignore-not-found"];
        let found = kubectl::run(&[&get[..], &["-o", "json"]].concat(), "")?;
        match state(&found)? {
            State::Absent => {}
            State::Ending => {
                let absent = format!("namespace/{NAMESPACE}");
                kubectl::run(&["wait", "--for=delete", &absent, "--timeout=60s"], "")?;
            }
            State::Present => bail!(
                "make namespace {NAMESPACE}: there is one, which this check did not make; if nobody needs it: kubectl \
                 delete namespace {NAMESPACE}"
            ),
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = since.context("read the clock")?.as_nanos();
        let made = Self {
            run: format!("{}-{since}", std::process::id()),
        };
        // Refused where somebody was faster.
        kubectl::run(&["create", "-f", "-"], &made.manifest())?;
        Ok(made)
    }

    fn manifest(&self) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": NAMESPACE,
                "labels": {LABEL: self.run, "pod-security.kubernetes.io/enforce": "privileged"},
            },
        })
        .to_string()
    }

    /// Removes it and what is in it, without waiting for the end of that; another of its name stays.
    pub fn remove(&self) -> Result<()> {
        let label = format!("{LABEL}={}", self.run);
        let own = ["namespace", "--selector", &label];
        let found = kubectl::run(&[&["get"], &own[..], &["-o", "name"]].concat(), "")?;
        if found.trim().is_empty() {
            return Ok(());
        }
        let helpers = kubectl::run(&["netpath", "-n", NAMESPACE, "cleanup"], "");
        kubectl::run(&[&["delete"], &own[..], &["--wait=false"]].concat(), "")?;
        helpers.map(|_| ())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Absent,
    /// It is being deleted.
    Ending,
    Present,
}

/// The state of a namespace, by what `kubectl get -o json --ignore-not-found` printed.
fn state(text: &str) -> Result<State> {
    if text.trim().is_empty() {
        return Ok(State::Absent);
    }
    let found: Value = serde_json::from_str(text).context("read a namespace")?;
    Ok(if found["metadata"]["deletionTimestamp"].is_string() {
        State::Ending
    } else {
        State::Present
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_there_and_stays_is_somebody_elses() {
        let one = Namespace {
            run: "7-1".to_owned(),
        };
        let made: Value = serde_json::from_str(&one.manifest()).unwrap();
        assert_eq!(made["metadata"]["labels"][LABEL], "7-1");
        assert_eq!(state("\n").unwrap(), State::Absent);
        assert_eq!(state(&made.to_string()).unwrap(), State::Present);
        let mut ending = made;
        ending["metadata"]["deletionTimestamp"] = "2026-11-21T18:00:00Z".into();
        assert_eq!(state(&ending.to_string()).unwrap(), State::Ending);
        assert!(state("no JSON").is_err());
    }
}
