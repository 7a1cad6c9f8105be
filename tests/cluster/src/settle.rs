//! Waiting for what Kubernetes does in its own time: rules of Services and policies.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpath_lab::Outcome;

use crate::flows::{Case, Maker};
use crate::inside::exchange;
use crate::judge::Judge;
use crate::kubectl;

/// Until rules have to stand.
const RULES: Duration = Duration::from_secs(30);
/// For an answer.
pub const ANSWER: Duration = Duration::from_millis(200);
/// For a refusal: one by ICMP comes while the kernel still sends the SYN, which then forgets it (tcp_v6_err(),
/// LockDroppedIcmps), so that the one of the repeated SYN counts, a second later.
pub const REFUSAL: Duration = Duration::from_millis(1500);

/// Waits until every Service of the workload leads where it has to, from both nodes.
pub fn services(judge: &Judge<'_>) -> Result<()> {
    for &v6 in judge.objects.families() {
        let maker = Maker::new(&judge.objects, v6);
        for client in ["client-1", "client-2"] {
            for (service, answers) in [
                ("svc/web:http", &["web-1", "web-2"][..]),
                ("svc/web:dns", &["web-1", "web-2"]),
                ("svc/host", &["host-1", "host-2"]),
                ("svc/self:http", &["client-1", "client-2"]),
                ("svc/self:dns", &["client-1", "client-2"]),
                ("nodeport/web:http/1", &["web-1", "web-2"]),
                ("nodeport/web:http/2", &["web-1", "web-2"]),
                ("nodeport/web:dns/1", &["web-1", "web-2"]),
                ("nodeport/web:dns/2", &["web-1", "web-2"]),
                ("nodeport/host/2", &["host-1", "host-2"]),
            ] {
                let case = maker.case(service, client, service, service.contains(":dns"))?;
                let mut left: BTreeSet<&str> = answers.iter().copied().collect();
                until(judge, &case, ANSWER, |outcome| {
                    left.remove(outcome.pod().unwrap_or_default());
                    left.is_empty()
                })?;
            }
            for service in ["svc/nobody", "svc/wrong-port", "svc/lonely"] {
                let case = maker.case(service, client, service, false)?;
                until(judge, &case, REFUSAL, |outcome| {
                    *outcome == Outcome::Refused
                })?;
            }
        }
    }
    Ok(())
}

/// Repeats an exchange until its outcomes are those that are waited for.
pub fn until(
    judge: &Judge<'_>,
    case: &Case,
    wait: Duration,
    mut enough: impl FnMut(&Outcome) -> bool,
) -> Result<()> {
    let from = judge
        .inside
        .map(|inside| inside.pod(&judge.objects, &case.pod))
        .transpose()?;
    let end = Instant::now() + RULES;
    loop {
        kubectl::go_on()?;
        let outcome = match &from {
            Some(place) => exchange(place, case.to, case.udp, wait)?,
            None => kubectl::ask(&case.pod, case.to, case.udp, wait)?,
        };
        if enough(&outcome) {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "wait until {} leads where it has to, for {} s: the last exchange from {} ended as {outcome:?}",
            case.to,
            RULES.as_secs(),
            case.pod
        );
        kubectl::pause();
    }
}
