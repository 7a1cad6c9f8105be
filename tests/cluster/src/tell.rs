//! Both sides of a case as users come by them: the trace, and a client in the pod, through kubectl.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpath_lab::Outcome;

use crate::answer::{Answer, Branch, End, parse};
use crate::flows::{Case, OUTSIDE_NAME};
use crate::kubectl::{self, NAMESPACE};
use crate::probe::{self, Mtu, Probe};
use crate::workload::Objects;

/// Exchanges through kubectl, which cost much more.
pub const ASKED: usize = 40;
/// Where an answer or a refusal is predicted, a slow machine is no fault; and some refusals count only when the
/// SYN is repeated, see [`crate::settle::REFUSAL`].
pub const LONG: Duration = Duration::from_secs(5);
/// Where none is: a refusal may come when the SYN is repeated, and that of a neighbour that does not answer after
/// three seconds. Each case with a silent end is waited for so long once.
pub const SILENT: Duration = Duration::from_millis(3500);
/// For the same once more: shorter than the time after which the kernel repeats a SYN.
pub const SHORT: Duration = Duration::from_millis(600);

/// What the product said of a case, and what a client in the pod did.
pub struct Told {
    /// What the product said.
    pub answer: Answer,
    /// The same, word for word.
    pub json: Vec<u8>,
    /// What it saw of a packet of its own, asked in the same words.
    pub probe: Probe,
    /// The largest packets each way, where the case wants them.
    pub mtu: Vec<Mtu>,
    /// How the client's exchanges ended.
    pub asked: BTreeSet<End>,
}

/// Traces a case through kubectl, alone and with a probe, and lets its client ask through kubectl meanwhile: once, and on until a silence that
/// the trace names was heard; or until every end that the trace names was seen.
pub fn tell(objects: &Objects, case: &Case, once: bool) -> Result<Told> {
    kubectl::go_on()?;
    let answers = ["delivered", "rejected"];
    let expected = &case.expect.verdicts;
    let wait = if expected.iter().any(|verdict| answers.contains(verdict)) {
        LONG
    } else {
        SILENT
    };
    let ask = || {
        Ok::<_, anyhow::Error>(end(
            objects,
            &kubectl::ask(&case.pod, case.to, case.udp, wait)?,
        ))
    };
    let protocol = if case.udp { "udp" } else { "tcp" };
    let mut arguments = vec!["netpath", "-n", NAMESPACE, "trace"];
    arguments.extend([case.source.as_str(), &case.destination]);
    arguments.extend(["--protocol", protocol, "--keep", "10m", "-o", "json"]);
    arguments.extend(case.family);
    let said = |more: &[&str]| {
        let arguments = [&arguments, more].concat();
        let output = kubectl::output(&arguments, "")?;
        let how = format!(
            "kubectl {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok::<_, anyhow::Error>((output.stdout, how))
    };
    let (output, asked) = thread::scope(|scope| {
        let trace = scope.spawn(|| said(&[]));
        let asked = ask();
        (trace.join(), asked)
    });
    let (json, how) = output.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let answer = parse(&json).context(how)?;
    let (probed, how) = said(&["--probe"])?;
    let probe = probe::parse(&probed).context(how)?;
    let mtu = if case.mtu {
        let (tried, how) = said(&["--mtu"])?;
        let mtu = probe::parse_mtu(&tried).context(how.clone())?;
        ensure!(mtu.len() == 2, "{how}: two directions are wanted");
        mtu
    } else {
        Vec::new()
    };
    let mut asked = BTreeSet::from([asked?]);
    for number in 1..ASKED {
        let enough = if once {
            unheard(&answer.branches, &asked).is_empty()
        } else {
            number >= 4 && unseen(&answer.branches, &asked).is_empty()
        };
        if enough {
            break;
        }
        kubectl::go_on()?;
        asked.insert(ask()?);
    }
    Ok(Told {
        answer,
        json,
        probe,
        mtu,
        asked,
    })
}

/// Branches that no exchange ended like.
pub fn unseen<'a>(branches: &'a [Branch], seen: &BTreeSet<End>) -> Vec<&'a Branch> {
    let open = |branch: &&Branch| branch.end != End::Unknown && !seen.contains(&branch.end);
    branches.iter().filter(open).collect()
}

/// Branches that end in silence, which none of the exchanges did.
pub fn unheard<'a>(branches: &'a [Branch], seen: &BTreeSet<End>) -> Vec<&'a Branch> {
    let mut open = unseen(branches, seen);
    open.retain(|branch| branch.end == End::Silence);
    open
}

/// How an exchange ended, in the words of traces.
pub fn end(objects: &Objects, outcome: &Outcome) -> End {
    match outcome {
        Outcome::Connected { .. } => {
            let name = outcome.pod().unwrap_or_default();
            match objects.pods.get(name) {
                Some(pod) if pod.host_network => End::Node(pod.node.clone()),
                Some(pod) => End::Pod(pod.name.clone()),
                None if name == OUTSIDE_NAME => End::Outside,
                None => End::Stranger(name.to_owned()),
            }
        }
        Outcome::Refused | Outcome::Unreachable(_) => End::Refused,
        Outcome::TimedOut => End::Silence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Pod;

    #[test]
    fn who_answers_is_known_by_name() {
        let mut objects = Objects::default();
        for (name, host_network) in [("web-1", false), ("host-1", true)] {
            let pod = Pod {
                name: name.to_owned(),
                uid: String::new(),
                node: "n1".to_owned(),
                host_network,
                ips: Vec::new(),
            };
            objects.pods.insert(name.to_owned(), pod);
        }
        let end = |reply: &str| {
            let reply = reply.to_owned();
            end(&objects, &Outcome::Connected { reply })
        };
        assert_eq!(end("web-1 10.0.0.1:4"), End::Pod("web-1".to_owned()));
        assert_eq!(end("host-1 10.0.0.1:4"), End::Node("n1".to_owned()));
        assert_eq!(end("outside 10.0.0.1:4"), End::Outside);
        assert_eq!(end("web-3 10.0.0.1:4"), End::Stranger("web-3".to_owned()));
        assert_eq!(end(""), End::Stranger(String::new()));
    }
}
