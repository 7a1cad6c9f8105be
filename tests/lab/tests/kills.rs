//! Ended at any moment, by any means: no helper pod and no helper process is left. 200 runs of the
//! real client against a laboratory, moments spread over the whole run. Needs root.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netpath_lab::api::Misbehave;
use netpath_lab::random::dice::Dice;
use netpath_lab::{Overlay, Proxy, Spec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use programs::{Lab, Said, words};

/// Clients that run at once.
const AT_ONCE: usize = 4;

fn start(lab: &Lab, line: &str) -> Child {
    let mut command = lab.plugin();
    command
        .args(words(line))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("the plugin starts")
}

fn wait_until(moment: Instant) {
    loop {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}

fn send(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    // Not waited for yet, so that the number is still its own.
    kill(pid, signal).expect("a signal is sent");
}

fn end(child: Child) -> Said {
    let said = Said::of(child.wait_with_output().expect("the plugin ends"));
    assert!(!said.err.contains("panicked"), "{said:?}");
    said
}

/// How long `AT_ONCE` undisturbed runs take.
fn span(lab: &Lab) -> Duration {
    let begin = Instant::now();
    let all: Vec<Child> = (0..AT_ONCE)
        .map(|_| start(lab, "trace pod-a svc-b"))
        .collect();
    for child in all {
        end(child).exits(0);
    }
    lab.is_clean();
    begin.elapsed()
}

/// Runs clients in rounds; `disturb` is called for each at its moment.
fn rounds(
    lab: &Lab,
    runs: usize,
    dice: &mut Dice,
    span: Duration,
    disturb: &(dyn Fn(&Child, u64) + Sync),
) -> Vec<Said> {
    let mut ends = Vec::new();
    while ends.len() < runs {
        let begin = Instant::now();
        // Beyond the whole run, so that ends are hit too.
        let micros = u64::try_from(span.as_micros()).unwrap() * 12 / 10;
        let all: Vec<(Child, Duration, u64)> = (0..AT_ONCE.min(runs - ends.len()))
            .map(|_| {
                let moment = Duration::from_micros(dice.number(micros));
                (start(lab, "trace pod-a svc-b"), moment, dice.seed())
            })
            .collect();
        let done: Vec<Said> = thread::scope(|scope| {
            let waiting: Vec<_> = all
                .into_iter()
                .map(|(child, moment, roll)| {
                    scope.spawn(move || {
                        wait_until(begin + moment);
                        disturb(&child, roll);
                        end(child)
                    })
                })
                .collect();
            waiting.into_iter().map(|one| one.join().unwrap()).collect()
        });
        ends.extend(done);
    }
    ends
}

fn count(ends: &[Said], code: Option<i32>) -> usize {
    ends.iter().filter(|said| said.code == code).count()
}

#[test]
fn two_hundred_disturbed_runs_leave_nothing() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    let span = span(&lab);
    let mut dice = Dice::new(0x6e65_7470_6174_6831);

    // Ctrl-C and SIGTERM.
    for round in 0..10 {
        let ends = rounds(&lab, 8, &mut dice, span, &|child, roll| {
            let signal = if roll % 2 == 0 {
                Signal::SIGINT
            } else {
                Signal::SIGTERM
            };
            send(child, signal);
        });
        // Interrupted, done before, or ended before it could listen to signals.
        for said in &ends {
            assert!(matches!(said.code, Some(0 | 130 | 143) | None), "{said:?}");
        }
        lab.is_clean();
        if round == 0 {
            eprintln!(
                "a run takes {span:?}; first round: {} interrupted",
                8 - count(&ends, Some(0))
            );
        }
    }

    // SIGKILL: nobody is there to clean up, so that `cleanup` does.
    for _ in 0..5 {
        let ends = rounds(&lab, 8, &mut dice, span, &|child, _| {
            send(child, Signal::SIGKILL);
        });
        assert!(
            ends.iter().all(|said| matches!(said.code, Some(0) | None)),
            "{ends:?}"
        );
        lab.run("cleanup").exits(0);
        lab.is_clean();
    }

    // The exec connection breaks off after so many bytes of output.
    for _ in 0..10 {
        lab.server().misbehave(Misbehave {
            exec_drop_after: Some(dice.number(24_000)),
            ..Misbehave::default()
        });
        let ends = rounds(&lab, 4, &mut dice, span, &|_, _| {});
        for said in &ends {
            assert!(matches!(said.code, Some(0 | 2 | 3)), "{said:?}");
            assert!(said.code == Some(0) || !said.err.is_empty(), "{said:?}");
        }
        lab.server().misbehave(Misbehave::default());
        lab.is_clean();
    }

    // A helper is killed.
    for _ in 0..5 {
        let ends = rounds(&lab, 8, &mut dice, span, &|_, roll| {
            let all = lab.server().processes();
            let chosen = usize::try_from(roll).unwrap_or(0).checked_rem(all.len());
            if let Some(pid) = chosen.and_then(|at| all.get(at)) {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(i32::try_from(*pid).unwrap()), Signal::SIGKILL);
            }
        });
        for said in &ends {
            assert!(matches!(said.code, Some(0 | 2 | 3)), "{said:?}");
            assert!(said.code == Some(0) || !said.err.is_empty(), "{said:?}");
        }
        lab.is_clean();
    }
    lab.run("trace pod-a svc-b").exits(0);
    lab.is_clean();
}

#[test]
fn other_commands_interrupted_leave_nothing() {
    let lab = Lab::up(Spec::new(Overlay::Routed, Proxy::Nftables));
    let mut dice = Dice::new(7);
    let file = lab.file("net.json");
    let save = format!("snapshot save {}", file.display());
    for line in [
        "map",
        "dump netfilter node/node-1",
        &save,
        "dump links pod-a",
        "trace pod-a svc-b --probe --count 3",
        "capture pod-a --dropped --duration 300ms",
    ] {
        let begin = Instant::now();
        lab.run(line).exits(0);
        let whole = u64::try_from(begin.elapsed().as_micros()).unwrap();
        for _ in 0..6 {
            let moment = Instant::now() + Duration::from_micros(dice.number(whole));
            let child = start(&lab, line);
            wait_until(moment);
            send(&child, Signal::SIGINT);
            let said = end(child);
            assert!(
                matches!(said.code, Some(0 | 130) | None),
                "{line}: {said:?}"
            );
            lab.is_clean();
        }
    }
    // What was saved before is whole, and no part of another one lies beside it.
    programs::run(&words(&format!(
        "trace pod-a svc-b --snapshot {}",
        file.display()
    )))
    .exits(0);
    let parts = std::fs::read_dir(lab.dir.path()).unwrap();
    let parts: Vec<_> = parts
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.contains(".part"))
        .collect();
    assert_eq!(parts, Vec::<String>::new());
}

#[test]
fn two_clients_at_once() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::Nftables));
    for _ in 0..3 {
        let (one, two) = (
            start(&lab, "trace pod-a svc-b"),
            start(&lab, "trace web-0.shop api.shop:80"),
        );
        let three = start(&lab, "map");
        end(one).exits(0).says(&["both branches"]);
        end(two).exits(0).says(&["all 3 branches"]);
        end(three).exits(0);
        lab.is_clean();
    }
}

/// The API server vanishes while the client works: it says so, names what is left, and `cleanup`
/// takes that away later.
#[test]
fn the_api_goes_away_mid_way() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::Nftables));
    let mut dice = Dice::new(11);
    let whole = {
        let begin = Instant::now();
        lab.run("trace pod-a svc-b").exits(0);
        u64::try_from(begin.elapsed().as_micros()).unwrap()
    };
    for _ in 0..6 {
        let moment = Instant::now() + Duration::from_micros(dice.number(whole));
        let child = start(&lab, "trace pod-a svc-b --request-timeout 1s");
        wait_until(moment);
        lab.server().misbehave(Misbehave {
            gone: true,
            ..Misbehave::default()
        });
        let said = end(child);
        assert!(matches!(said.code, Some(0 | 2 | 3)), "{said:?}");
        lab.server().misbehave(Misbehave::default());
        let left = lab.server().helper_pods();
        for pod in &left {
            let (_, name) = pod.split_once('/').unwrap();
            assert!(said.err.contains(name), "{pod} is not named: {}", said.err);
        }
        lab.run("cleanup").exits(0);
        lab.is_clean();
    }
}
