//! Launching against the lab's API server: nothing here needs root or a node's namespaces.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netpath::contract::frame::encode;
use netpath::contract::{MAGIC, Reply, Request, SCHEMA_VERSION};
use netpath_lab::api::{Admission, Fail, HelperFate, Misbehave, Options, Rule, Server};
use netpath_lab::state::NodeState;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::pipe::{End, Pipe};
use super::*;
use crate::kube_client::Kube;
use crate::kube_flags::ConnectionFlags;

struct Lab {
    server: Server,
    kube: Kube,
    dir: TempDir,
}

/// A helper that a shell plays: `idle` sleeps; `serve` says what a file holds, then reads `count` bytes.
fn helper(dir: &TempDir, replies: &[Reply], count: usize) -> PathBuf {
    let said: Vec<u8> = replies
        .iter()
        .flat_map(|reply| encode(reply).unwrap())
        .collect();
    std::fs::write(dir.path().join("said"), said).unwrap();
    let text = format!(
        "#!/bin/sh\ncase $1 in\nidle) exec sleep $2;;\nserve) cat {0}/said; exec head -c {count} >/dev/null;;\n\
         cat) exec cat;;\nflood) head -c 3000000 /dev/zero; head -c 300000 /dev/zero >&2; exit 7;;\n\
         hang) echo last words >&2; exec sleep 100;;\ndie) kill -9 $$;;\nesac\n",
        dir.path().display()
    );
    let path = dir.path().join("helper");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn hello(schema: u32) -> Reply {
    Reply::Hello {
        magic: MAGIC.to_owned(),
        schema,
        version: "9.9.9".to_owned(),
        kernel: "6.18".to_owned(),
        now: 1,
    }
}

fn request_bytes() -> usize {
    [
        Request::Hello {
            schema: SCHEMA_VERSION,
        },
        Request::Ping { id: 1 },
        Request::Bye,
    ]
    .iter()
    .map(|request| encode(request).unwrap().len())
    .sum()
}

fn objects() -> Vec<Value> {
    let node = |name: &str, ip: &str| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}], "conditions": [{"type": "Ready", "status": "True"}]}})
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        node("node-1", "192.0.2.11"),
        node("node-2", "192.0.2.12"),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c"}]}, "status": {"phase": "Running", "podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}],
            "conditions": [{"type": "Ready", "status": "True"}]}}),
    ]
}

async fn lab_with(replies: &[Reply], misbehave: Misbehave) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        helper: helper(&dir, replies, request_bytes()),
        kubeconfig: Some(dir.path().join("kubeconfig")),
        misbehave,
        ..Options::default()
    };
    let node = |name: &str| NodeState {
        name: name.to_owned(),
        holder_pid: 0,
        ips: vec!["192.0.2.11".parse().unwrap()],
    };
    let server = Server::start_fixed(vec![node("node-1"), node("node-2")], objects(), &options)
        .await
        .unwrap();
    let flags = ConnectionFlags {
        kubeconfig: options.kubeconfig,
        ..ConnectionFlags::default()
    };
    let kube = flags.connect().await.unwrap();
    Lab { server, kube, dir }
}

async fn lab(misbehave: Misbehave) -> Lab {
    lab_with(&[hello(SCHEMA_VERSION), Reply::Pong { id: 1 }], misbehave).await
}

fn quick() -> HelperFlags {
    HelperFlags {
        launch_timeout: Duration::from_secs(1),
        ..HelperFlags::default()
    }
}

fn targets() -> Vec<NodeTarget> {
    vec![NodeTarget::named("node-1"), NodeTarget::named("node-2")]
}

impl Lab {
    fn launcher(&self, flags: HelperFlags) -> Launcher {
        Launcher::new(self.kube.clone(), flags)
    }

    /// No pod and no process is left.
    async fn clean(&self) {
        assert_eq!(self.server.helper_pods(), Vec::<String>::new());
        let until = Instant::now() + Duration::from_secs(3);
        while !self.server.processes().is_empty() {
            assert!(
                Instant::now() < until,
                "left: {:?}",
                self.server.processes()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The one error of a launch on node-1, after which everything is gone.
    async fn trouble(&self, flags: HelperFlags) -> String {
        let launcher = self.launcher(flags);
        let mut sessions = launcher.launch(&[NodeTarget::named("node-1")], None).await;
        let error = sessions.remove("node-1").unwrap().unwrap_err().to_string();
        launcher.close(true).await.unwrap();
        self.clean().await;
        error
    }
}

fn forbid(verb: &str, resource: &str) -> Misbehave {
    Misbehave {
        forbid: vec![Rule::new(verb, resource)],
        ..Misbehave::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn launches_on_all_nodes_and_takes_everything_away() {
    let lab = lab(Misbehave::default()).await;
    let launcher = lab.launcher(HelperFlags::default());
    let mut sessions = launcher.launch(&targets(), None).await;
    assert_eq!(lab.server.helper_pods().len(), 2);
    for node in ["node-1", "node-2"] {
        let mut session = sessions.remove(node).unwrap().unwrap();
        assert_eq!(session.greeting().version, "9.9.9");
        session.ping().await.unwrap();
        let figures = session.bye().await;
        assert!(
            figures.bytes_in > 20 && figures.bytes_out > 5,
            "{figures:?}"
        );
    }
    launcher.close(false).await.unwrap();
    lab.clean().await;
    lab.server.stop().await.unwrap();
}

/// Which nodes a question is about may turn out later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helpers_that_start_later_are_others() {
    let lab = lab(Misbehave::default()).await;
    let launcher = lab.launcher(HelperFlags::default());
    let mut open = Vec::new();
    for target in targets() {
        let sessions = launcher.launch(std::slice::from_ref(&target), None).await;
        open.extend(sessions.into_values().map(Result::unwrap));
    }
    assert_eq!(lab.server.helper_pods().len(), 2);
    for session in open {
        session.bye().await;
    }
    launcher.close(false).await.unwrap();
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_name_right_and_remedy() {
    let lab = lab(Misbehave::default()).await;
    let cases = [
        (
            forbid("create", "pods"),
            "create pods in namespace default: not allowed; user \"lab\" needs the right \"create pods\" in namespace default (check: kubectl auth can-i create pods -n default)",
        ),
        (
            Misbehave {
                forbid: vec![Rule::new("get", "pods"), Rule::new("watch", "pods")],
                ..Misbehave::default()
            },
            "needs the right \"watch pods\" in namespace default",
        ),
        (forbid("create", "pods/exec"), "exec in pod default/"),
        (
            forbid("create", "pods/exec"),
            "lacks the right \"create pods/exec\" in namespace default",
        ),
        (
            forbid("get", "pods/exec"),
            "lacks the right \"get pods/exec\"",
        ),
        (
            Misbehave {
                unauthorized: true,
                ..Misbehave::default()
            },
            "not logged in to http://127.0.0.1:",
        ),
        (
            Misbehave {
                admission: Admission::PodSecurity,
                ..Misbehave::default()
            },
            "violates \"baseline:latest\"",
        ),
        (
            Misbehave {
                admission: Admission::PodSecurity,
                ..Misbehave::default()
            },
            "pod-security.kubernetes.io/enforce=privileged",
        ),
        (
            Misbehave {
                admission: Admission::Webhook,
                ..Misbehave::default()
            },
            "admission webhook \"validate.kyverno.svc-fail\" refused it: host namespaces are not allowed",
        ),
        (
            Misbehave {
                admission: Admission::Quota,
                ..Misbehave::default()
            },
            "exceeded quota: compute",
        ),
        (
            Misbehave {
                helpers: HelperFate::ImagePullBackOff,
                ..Misbehave::default()
            },
            "node node-1: cannot get the helper image \"netpath-helper:v",
        ),
        (
            Misbehave {
                helpers: HelperFate::ErrImageNeverPull,
                ..Misbehave::default()
            },
            "ErrImageNeverPull: Container image",
        ),
        (
            Misbehave {
                helpers: HelperFate::OutOfPods,
                ..Misbehave::default()
            },
            "OutOfpods: Node didn't have enough resource",
        ),
        (
            Misbehave {
                helpers: HelperFate::StartError,
                ..Misbehave::default()
            },
            "StartError: exec: \"/netpath-helper\"",
        ),
        (
            Misbehave {
                helpers: HelperFate::Pending,
                ..Misbehave::default()
            },
            "did not start within 1s: Pending, the node's kubelet has not taken it up",
        ),
        (
            Misbehave {
                fail: vec![Fail {
                    rule: Rule::new("create", "pods"),
                    code: 500,
                    times: 1,
                    retry_after: None,
                }],
                ..Misbehave::default()
            },
            "failed with 500",
        ),
        (
            Misbehave {
                exec_drop_after: Some(3),
                ..Misbehave::default()
            },
            "the connection to it broke off",
        ),
    ];
    for (how, expected) in cases {
        lab.server.misbehave(how.clone());
        let start = Instant::now();
        let text = lab.trouble(quick()).await;
        assert!(text.contains(expected), "{how:?}\n  {text}");
        assert!(
            start.elapsed() < Duration::from_secs(6),
            "{:?} {text}",
            start.elapsed()
        );
    }
    lab.server.misbehave(Misbehave::default());
    let flags = HelperFlags {
        helper_namespace: Some("nowhere".to_owned()),
        ..quick()
    };
    let text = lab.trouble(flags).await;
    assert!(text.contains("namespace nowhere does not exist"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_troubles_are_overcome() {
    let lab = lab(Misbehave::default()).await;
    let fail = |code| Fail {
        rule: Rule::new("create", "pods"),
        code,
        times: 1,
        retry_after: None,
    };
    for how in [
        forbid("watch", "pods"),
        forbid("get", "pods"),
        Misbehave {
            create_answer_lost: true,
            ..Misbehave::default()
        },
        Misbehave {
            create_answer_lost: true,
            ..forbid("get", "pods")
        },
        Misbehave {
            watch_ends_after: Some(0),
            ..Misbehave::default()
        },
        Misbehave {
            watch_ends_after: Some(1),
            ..Misbehave::default()
        },
        Misbehave {
            fail: vec![fail(429)],
            ..Misbehave::default()
        },
        Misbehave {
            fail: vec![fail(503)],
            ..Misbehave::default()
        },
        Misbehave {
            delay_ms: 50,
            ..Misbehave::default()
        },
        Misbehave {
            exec_v4_only: true,
            ..Misbehave::default()
        },
        Misbehave {
            fail: vec![Fail {
                rule: Rule::new("delete", "pods"),
                code: 500,
                times: 2,
                retry_after: None,
            }],
            ..Misbehave::default()
        },
    ] {
        lab.server.misbehave(how.clone());
        let launcher = lab.launcher(HelperFlags::default());
        let sessions = launcher.launch(&targets(), None).await;
        for (node, session) in sessions {
            session
                .unwrap_or_else(|error| panic!("{how:?} {node}: {error}"))
                .bye()
                .await;
        }
        launcher.close(false).await.unwrap();
        lab.clean().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_at_any_moment_nothing_is_left() {
    let lab = lab(Misbehave {
        create_delay_ms: 20,
        ..Misbehave::default()
    })
    .await;
    for step in 0..25_u64 {
        let launcher = lab.launcher(HelperFlags::default());
        // The future is dropped while it creates, waits or talks.
        let _ = tokio::time::timeout(
            Duration::from_millis(step * 3),
            launcher.launch(&targets(), None),
        )
        .await;
        launcher.close(true).await.unwrap();
        lab.clean().await;
    }
    // Without close, as after a panic.
    let launcher = lab.launcher(HelperFlags::default());
    let _ =
        tokio::time::timeout(Duration::from_millis(40), launcher.launch(&targets(), None)).await;
    drop(launcher);
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unanswered_creation_is_deleted_too() {
    let lab = lab(Misbehave {
        create_delay_ms: 1500,
        ..Misbehave::default()
    })
    .await;
    let mut kube = lab.kube.clone();
    kube.timeout = Some(Duration::from_millis(300));
    let launcher = Launcher::new(kube, HelperFlags::default());
    let mut sessions = launcher.launch(&[NodeTarget::named("node-1")], None).await;
    let text = sessions.remove("node-1").unwrap().unwrap_err().to_string();
    assert!(text.contains("gave no answer within 300ms"), "{text}");
    assert_eq!(
        lab.server.helper_pods().len(),
        1,
        "it exists though nobody was told"
    );
    launcher.close(true).await.unwrap();
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_gone_mid_way_is_said_and_named() {
    let lab = lab(Misbehave::default()).await;
    let launcher = lab.launcher(HelperFlags::default());
    let mut sessions = launcher.launch(&[NodeTarget::named("node-1")], None).await;
    let mut session = sessions.remove("node-1").unwrap().unwrap();
    lab.server.misbehave(Misbehave {
        gone: true,
        ..Misbehave::default()
    });
    // The answer to this ping is in the buffer already; the next one can never come.
    let _ = session.ping().await;
    let text = session.ping().await.unwrap_err().to_string();
    assert!(text.contains("the connection to it broke off"), "{text}");
    let left = launcher.close(true).await.unwrap_err();
    let text = left[0].to_string();
    assert!(
        text.contains("remove helper pod default/netpath-")
            && text.contains("run kubectl delete pod -n default netpath-"),
        "{text}"
    );
    // When the server is back, `cleanup` finds it.
    lab.server.misbehave(Misbehave::default());
    let (cleaned, searched) = cleanup(&lab.kube, &CleanupScope::default()).await.unwrap();
    assert_eq!((cleaned.len(), searched), (1, None));
    assert_eq!(
        (
            cleaned[0].removed.clone(),
            cleaned[0].node.as_str(),
            cleaned[0].user.as_str()
        ),
        (Ok(true), "node-1", "lab")
    );
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helpers_that_are_none_are_recognised() {
    let stranger = lab_with(&[hello(SCHEMA_VERSION + 1)], Misbehave::default()).await;
    let text = stranger.trouble(quick()).await;
    assert!(
        text.contains(&format!(
            "speaks contract {} (helper 9.9.9), this client speaks {SCHEMA_VERSION}",
            SCHEMA_VERSION + 1
        )),
        "{text}"
    );
    let chatty = lab(Misbehave::default()).await;
    std::fs::write(
        chatty.dir.path().join("said"),
        "Welcome to BusyBox v1.36, friend\n",
    )
    .unwrap();
    let text = chatty.trouble(quick()).await;
    assert!(
        text.contains("does not speak netpath's contract") && text.contains("Welcome to BusyBox"),
        "{text}"
    );
    std::fs::write(chatty.dir.path().join("said"), "x").unwrap();
    std::fs::write(
        chatty.dir.path().join("helper"),
        "#!/bin/sh\n[ $1 = idle ] && exec sleep 99\necho no such thing >&2; exit 127\n",
    )
    .unwrap();
    let text = chatty.trouble(quick()).await;
    assert!(
        text.contains("exited with code 127") && text.contains("no such thing"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_helpers_are_used_again() {
    let lab = lab(Misbehave::default()).await;
    let flags = HelperFlags {
        keep: Some(Duration::from_secs(300)),
        ..HelperFlags::default()
    };
    let scope = crate::resolve::fetch::Scope::of(&[], "default");
    for _ in 0..3 {
        let view = crate::resolve::fetch::fetch(&lab.kube, &scope)
            .await
            .unwrap();
        let launcher = lab.launcher(flags.clone());
        for session in launcher.launch(&targets(), Some(&view)).await.into_values() {
            session.unwrap().bye().await;
        }
        launcher.close(false).await.unwrap();
        assert_eq!(lab.server.helper_pods().len(), 2);
    }
    // Up to the last second of the time that was asked for.
    let view = crate::resolve::fetch::fetch(&lab.kube, &scope)
        .await
        .unwrap();
    let expires = view
        .pods
        .iter()
        .filter_map(|pod| pod.labels.get(super::manifest::EXPIRES_LABEL)?.parse().ok())
        .min();
    let expires: u64 = expires.unwrap();
    let launcher = lab.launcher(flags.clone());
    assert!(launcher.warm(&view, "node-1", expires - 1).is_some());
    assert!(launcher.warm(&view, "node-1", expires + 300).is_none());
    // A capture that would outlive the pod's deadline gets one of its own.
    let capture = |lasts: u64| {
        let flags = HelperFlags {
            lasts: Duration::from_secs(lasts),
            ..flags.clone()
        };
        let launcher = lab.launcher(flags);
        launcher.warm(&view, "node-1", expires - 10).is_some()
    };
    assert!(capture(600));
    assert!(!capture(3600));
    // What has ended by itself goes with the next run, whether that keeps its own or not.
    let before = lab.server.helper_pods();
    let brief = lab.launcher(HelperFlags {
        keep: Some(Duration::from_secs(1)),
        ..HelperFlags::default()
    });
    for session in brief.launch(&targets(), None).await.into_values() {
        session.unwrap().bye().await;
    }
    brief.close(false).await.unwrap();
    assert_eq!(lab.server.helper_pods().len(), 4);
    let ended = loop {
        let view = crate::resolve::fetch::fetch(&lab.kube, &scope)
            .await
            .unwrap();
        if view
            .pods
            .iter()
            .filter(|pod| pod.phase == "Succeeded")
            .count()
            == 2
        {
            break view;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let launcher = lab.launcher(flags.clone());
    launcher.launch(&targets(), Some(&ended)).await;
    launcher.close(false).await.unwrap();
    assert_eq!(lab.server.helper_pods(), before);
    // Another setup gets helpers of its own, which go as they came.
    let view = crate::resolve::fetch::fetch(&lab.kube, &scope)
        .await
        .unwrap();
    let launcher = lab.launcher(HelperFlags {
        privileged: true,
        ..HelperFlags::default()
    });
    launcher.launch(&targets(), Some(&view)).await;
    assert_eq!(lab.server.helper_pods().len(), 4);
    launcher.close(false).await.unwrap();
    assert_eq!(lab.server.helper_pods().len(), 2);
    // A dry run touches nothing; another user's are left alone.
    let scope = CleanupScope {
        dry_run: true,
        ..CleanupScope::default()
    };
    assert_eq!(cleanup(&lab.kube, &scope).await.unwrap().0.len(), 2);
    let mut other = lab.kube.clone();
    other.user = "somebody".to_owned();
    assert_eq!(
        cleanup(&other, &CleanupScope::default())
            .await
            .unwrap()
            .0
            .len(),
        0
    );
    assert_eq!(lab.server.helper_pods().len(), 2);
    let scope = CleanupScope {
        all_users: true,
        ..CleanupScope::default()
    };
    assert_eq!(cleanup(&other, &scope).await.unwrap().0.len(), 2);
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cleanup_without_the_right_to_list_everywhere() {
    let rule = Rule {
        cluster_only: true,
        ..Rule::new("list", "pods")
    };
    let lab = lab(Misbehave {
        forbid: vec![rule],
        ..Misbehave::default()
    })
    .await;
    let (found, searched) = cleanup(&lab.kube, &CleanupScope::default()).await.unwrap();
    assert_eq!((found.len(), searched.as_deref()), (0, Some("default")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_cannot_run_one_are_told_at_once() {
    let lab = lab(Misbehave {
        silent_nodes: vec!["node-2".to_owned()],
        ..Misbehave::default()
    })
    .await;
    let view =
        crate::resolve::fetch::fetch(&lab.kube, &crate::resolve::fetch::Scope::of(&[], "default"))
            .await
            .unwrap();
    let targets: Vec<_> = view.nodes.iter().map(NodeTarget::of).collect();
    let launcher = lab.launcher(HelperFlags::default());
    let mut sessions = launcher.launch(&targets, Some(&view)).await;
    assert!(sessions.remove("node-1").unwrap().is_ok());
    let text = sessions.remove("node-2").unwrap().unwrap_err().to_string();
    assert!(
        text.contains(
            "its kubelet is silent (NodeStatusUnknown: Kubelet stopped posting node status.)"
        ),
        "{text}"
    );
    launcher.close(false).await.unwrap();
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_pipes_carry_bytes_ends_and_stderr() {
    let lab = lab(Misbehave::default()).await;
    let launcher = lab.launcher(HelperFlags {
        keep: Some(Duration::from_secs(60)),
        ..HelperFlags::default()
    });
    launcher.launch(&[NodeTarget::named("node-1")], None).await;
    let pod = lab
        .server
        .helper_pods()
        .remove(0)
        .split_once('/')
        .unwrap()
        .1
        .to_owned();
    let open = async |command: &str| {
        exec::exec(
            &lab.kube,
            "default",
            &pod,
            manifest::CONTAINER,
            &["x", command],
        )
        .await
        .unwrap()
    };
    let ended = async |pipe: &mut Pipe| {
        let end = tokio::time::timeout(Duration::from_secs(5), pipe.end.wait_for(Option::is_some))
            .await
            .unwrap()
            .unwrap();
        end.clone().unwrap()
    };
    // Eight-bit clean both ways, larger than any buffer on the way.
    let mut pipe = open("cat").await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut got = vec![0; sent.len()];
    let (writer, reader) = (&mut pipe.writer, &mut pipe.reader);
    let (wrote, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut got));
    wrote.unwrap();
    read.unwrap();
    assert!(sent == got);
    pipe.writer.shutdown().await.unwrap();
    assert_eq!(ended(&mut pipe).await, End::Exited(0));
    // Three megabytes of output and stderr that nobody reads before.
    let mut pipe = open("flood").await;
    let mut all = Vec::new();
    pipe.reader.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), 3_000_000);
    assert_eq!(ended(&mut pipe).await, End::Exited(7));
    let mut pipe = open("die").await;
    assert_eq!(ended(&mut pipe).await, End::Killed("signal 9".to_owned()));
    // Dropping the pipe kills what runs there.
    let before = lab.server.processes().len();
    let pipe = open("hang").await;
    while pipe.stderr.text() != "last words" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(lab.server.processes().len(), before + 1);
    drop(pipe);
    while lab.server.processes().len() > before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cleanup(&lab.kube, &CleanupScope::default()).await.unwrap();
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_deleted_by_others_ends_the_session() {
    let lab = lab(Misbehave::default()).await;
    let launcher = lab.launcher(HelperFlags::default());
    let mut session = launcher
        .launch(&[NodeTarget::named("node-1")], None)
        .await
        .remove("node-1")
        .unwrap()
        .unwrap();
    session.ping().await.unwrap();
    cleanup(&lab.kube, &CleanupScope::default()).await.unwrap();
    let text = session.ping().await.unwrap_err().to_string();
    assert!(text.contains("killed (signal 9)"), "{text}");
    launcher.close(true).await.unwrap();
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guard_cleans_up_whatever_happens() {
    let lab = Arc::new(lab(Misbehave::default()).await);
    let launcher = lab.launcher(HelperFlags::default());
    let work = async {
        launcher.launch(&targets(), None).await;
        5
    };
    let (outcome, left) = guard(&launcher, work, |_| true).await;
    assert!(matches!(outcome, Outcome::Done(5)) && left.is_empty());
    lab.clean().await;
    // A signal at any moment, as often as it takes to hit them all.
    for step in 0..40_u64 {
        let launcher = lab.launcher(HelperFlags::default());
        let work = async {
            let delay = tokio::time::sleep(Duration::from_millis(step * 2));
            let busy = async {
                let sessions = launcher.launch(&targets(), None).await;
                std::future::pending::<()>().await;
                drop(sessions);
            };
            tokio::select! {
                () = busy => {}
                () = delay => {
                    let id = std::process::id().to_string();
                    let signal = if step % 2 == 0 { "-TERM" } else { "-INT" };
                    tokio::process::Command::new("kill").args([signal, &id]).status().await.unwrap();
                    std::future::pending::<()>().await;
                }
            }
        };
        let (outcome, left) = guard(&launcher, work, |()| true).await;
        let expected = if step % 2 == 0 {
            Signal::Terminate
        } else {
            Signal::Interrupt
        };
        assert!(matches!(outcome, Outcome::Signalled(signal) if signal == expected));
        assert!(left.is_empty(), "{left:?}");
        lab.clean().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_are_refused_fall_back_to_namespaces() {
    let rule = |resource| Rule {
        cluster_only: true,
        ..Rule::new("list", resource)
    };
    let forbid = ["pods", "services", "endpointslices", "nodes", "namespaces"]
        .map(rule)
        .to_vec();
    let lab = lab(Misbehave {
        forbid,
        ..Misbehave::default()
    })
    .await;
    let end = crate::resolve::parse_end("web-0.shop").unwrap();
    let scope = crate::resolve::fetch::Scope::of(&[&end], "default");
    let view = crate::resolve::fetch::fetch(&lab.kube, &scope)
        .await
        .unwrap();
    assert_eq!(view.pods.len(), 1);
    // Its node was read by name.
    assert_eq!(view.nodes.len(), 1);
    assert!(view.knows("pods", "shop") && !view.knows("pods", "other"));
    assert_eq!(view.unread.len(), 4);
    // What may be got by name is.
    for (forbid, pods) in [
        (vec![Rule::new("list", "*"), Rule::new("get", "nodes")], 1),
        (vec![Rule::new("*", "*")], 0),
    ] {
        lab.server.misbehave(Misbehave {
            forbid,
            ..Misbehave::default()
        });
        let view = crate::resolve::fetch::fetch(&lab.kube, &scope)
            .await
            .unwrap();
        assert_eq!(view.pods.len(), pods);
        assert!(!view.knows("pods", "shop"));
    }
}

#[tokio::test]
async fn local_helpers_are_child_processes() {
    let dir = tempfile::tempdir().unwrap();
    let program = helper(
        &dir,
        &[hello(SCHEMA_VERSION), Reply::Pong { id: 1 }],
        request_bytes(),
    );
    let pipe = local::spawn(&program, &["serve"]).unwrap();
    let mut session = Session::start("this machine", pipe).await.unwrap();
    session.ping().await.unwrap();
    session.bye().await;
    let pipe = local::spawn(&program, &["die"]).unwrap();
    let text = Session::start("this machine", pipe)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("helper on this machine: it was killed (signal 9) at its start"),
        "{text}"
    );
    let text = local::spawn(&dir.path().join("none"), &["serve"])
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("No such file") && text.contains("NETPATH_HELPER"),
        "{text}"
    );
}

/// The real helper in the nodes of a real laboratory (`netpath-lab up`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root, NETPATH_LAB_STATE (state.json of a laboratory that is up) and NETPATH_LAB_HELPER"]
async fn real_helpers_in_a_real_laboratory() {
    use netpath::model::want::{Depth, Fact, NsTarget, Want};
    let path = |name: &str| {
        PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set")))
    };
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        helper: path("NETPATH_LAB_HELPER"),
        kubeconfig: Some(dir.path().join("kubeconfig")),
        ..Options::default()
    };
    let server = Server::start(&path("NETPATH_LAB_STATE"), &options)
        .await
        .unwrap();
    let flags = ConnectionFlags {
        kubeconfig: options.kubeconfig,
        ..ConnectionFlags::default()
    };
    let kube = flags.connect().await.unwrap();
    let fetching = Instant::now();
    let view =
        crate::resolve::fetch::fetch(&kube, &crate::resolve::fetch::Scope::of(&[], "default"))
            .await
            .unwrap();
    println!(
        "fetch {:?}: {} pods, {} services",
        fetching.elapsed(),
        view.pods.len(),
        view.services.len()
    );
    let targets: Vec<_> = view.nodes.iter().map(NodeTarget::of).collect();
    let launcher = Launcher::new(kube, HelperFlags::default());
    let starting = Instant::now();
    let sessions = launcher.launch(&targets, Some(&view)).await;
    println!("launch {:?}", starting.elapsed());
    assert_eq!(sessions.len(), view.nodes.len());
    for (node, session) in sessions {
        let mut session = session.unwrap();
        println!("{node}: {:?}", session.greeting());
        let wants = vec![Want::NetNs {
            target: NsTarget::All,
            depth: Depth::NoRules,
        }];
        let asking = Instant::now();
        let facts = session.collect(wants).await.unwrap();
        let found: Vec<_> = facts
            .iter()
            .filter_map(|f| {
                if let Fact::NetNs(ns) = f {
                    Some(ns)
                } else {
                    None
                }
            })
            .collect();
        println!(
            "{node}: {} facts in {:?}, {:?}",
            facts.len(),
            asking.elapsed(),
            session.figures()
        );
        // The node's own namespace and one for each pod with a network of its own.
        let pods = view.pods.iter().filter(|pod| {
            pod.node.as_deref() == Some(node.as_str()) && !pod.host_network && pod.running()
        });
        assert!(
            found.len() > pods.count(),
            "{node}: {} namespaces",
            found.len()
        );
        session.bye().await;
    }
    launcher.close(false).await.unwrap();
    assert!(server.helper_pods().is_empty() && server.processes().is_empty());
    // Given up at any moment, 200 times: no pod and no process is left.
    let kube = flags.connect().await.unwrap();
    for step in 0..200_u64 {
        let launcher = Launcher::new(kube.clone(), HelperFlags::default());
        let work = async {
            let mut sessions = launcher.launch(&targets, None).await;
            for session in sessions.values_mut().flatten() {
                let target = NsTarget::All;
                let wants = vec![Want::NetNs {
                    target,
                    depth: Depth::Likely,
                }];
                session.collect(wants).await.unwrap();
            }
        };
        // Steps that share no factor with the number of moments visit them in a scattered order.
        let moment = Duration::from_millis(step * 37 % 101);
        let _ = tokio::time::timeout(moment, work).await;
        launcher.close(true).await.unwrap();
        assert!(server.helper_pods().is_empty());
        let until = Instant::now() + Duration::from_secs(3);
        while !server.processes().is_empty() {
            assert!(Instant::now() < until, "left: {:?}", server.processes());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    server.stop().await.unwrap();
}
