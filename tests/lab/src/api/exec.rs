//! `pods/exec` over a WebSocket, as `v5.channel.k8s.io` and `v4.channel.k8s.io` have it.
//!
//! Source: k8s.io/apimachinery/pkg/util/remotecommand/constants.go and
//! k8s.io/kubelet/pkg/cri/streaming/remotecommand (Kubernetes 1.33).

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::WebSocketUpgrade;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::response::Response;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;

use super::App;
use super::request::{Query, Target};
use super::status::{failure, not_found};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const CLOSE: u8 = 255;
/// Real kubelets send at most this much in one frame.
const CHUNK: usize = 32 << 10;
/// Frames on their way to the client.
const QUEUE: usize = 16;

/// Answers the upgrade and bridges the streams.
pub(super) fn answer(
    app: Arc<App>,
    upgrade: WebSocketUpgrade,
    target: &Target,
    query: &Query,
) -> Response {
    let name = target.name.clone().unwrap_or_default();
    let namespace = target.namespace.clone().unwrap_or_default();
    let Some(object) = app.store.get("pods", &namespace, &name) else {
        return not_found("pods", &name);
    };
    if !app
        .store
        .added("pods")
        .contains(&format!("{namespace}/{name}"))
    {
        return failure(
            400,
            "BadRequest",
            "the lab's API server runs programs only in pods that it created",
        );
    }
    if object.pointer("/status/phase").and_then(Value::as_str) != Some("Running") {
        return failure(
            500,
            "InternalError",
            "unable to upgrade connection: container not found (\"helper\")",
        );
    }
    let node = object
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    // The helper stands for the program that the command names first.
    let arguments: Vec<String> = query.all("command").into_iter().skip(1).collect();
    let wants_stdin = query.is_true("stdin");
    let mut protocols = vec!["v5.channel.k8s.io", "v4.channel.k8s.io"];
    if app.misbehave.get().exec_v4_only {
        protocols.remove(0);
    }
    upgrade
        .protocols(protocols)
        .on_upgrade(async move |socket| {
            let pod = (namespace, name);
            let child = app.kubelet.spawn(&pod, &node, &arguments, true);
            match child {
                Ok(child) => bridge(&app, &pod, socket, child, wants_stdin).await,
                Err(error) => refuse(socket, &format!("{error:#}")).await,
            }
        })
}

fn frame(channel: u8, bytes: &[u8]) -> Message {
    let mut frame = Vec::with_capacity(bytes.len() + 1);
    frame.push(channel);
    frame.extend_from_slice(bytes);
    Message::Binary(Bytes::from(frame))
}

/// kubectl takes any other close for a failure.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: close_code::NORMAL,
        reason: "".into(),
    }))
}

async fn refuse(mut socket: WebSocket, message: &str) {
    let status = json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {message}"),
    });
    // A client that has gone needs no answer.
    let _ = socket
        .send(frame(STATUS, status.to_string().as_bytes()))
        .await;
    let _ = socket.send(goodbye()).await;
}

async fn bridge(
    app: &Arc<App>,
    pod: &(String, String),
    socket: WebSocket,
    mut child: Child,
    wants_stdin: bool,
) {
    let id = child.id().unwrap_or_default();
    let (to_client, from_client) = socket.split();
    let (queue, frames) = mpsc::channel(QUEUE);
    let outputs = futures::future::join(
        pump(STDOUT, child.stdout.take(), queue.clone()),
        pump(STDERR, child.stderr.take(), queue),
    );
    let stdin = child.stdin.take().filter(|_| wants_stdin);
    let drop_after = app.misbehave.get().exec_drop_after;
    let sending = send(to_client, frames, drop_after);
    let pumping = async {
        outputs.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = pumping => {}
        sent = sending => match sent {
            // Both outputs have ended and are sent: the program has ended or is about to.
            Sent::All(mut to_client) => {
                let status = child.wait().await;
                app.kubelet.ended(pod, id);
                if let Ok(status) = status {
                    // A client that has gone needs no status.
                    let text = ending(status).to_string();
                    let _ = to_client.send(frame(STATUS, text.as_bytes())).await;
                    let _ = to_client.send(goodbye()).await;
                }
            }
            Sent::Broken => end_group(app, pod, id, &mut child).await,
        },
        // The client has gone: the runtime kills the program.
        () = receive(from_client, stdin) => end_group(app, pod, id, &mut child).await,
    }
}

async fn end_group(app: &App, pod: &(String, String), id: u32, child: &mut Child) {
    if let Ok(id) = i32::try_from(id)
        && id > 0
    {
        // It leads its group, and was not waited for yet, so the number is still its own.
        let _ = nix::sys::signal::killpg(
            nix::unistd::Pid::from_raw(id),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    // Waiting frees its number; how it ended is nobody's business any more.
    let _ = child.wait().await;
    app.kubelet.ended(pod, id);
}

fn ending(status: std::process::ExitStatus) -> Value {
    if status.success() {
        return json!({"metadata": {}, "status": "Success"});
    }
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    let code = status.code().unwrap_or_else(|| 128 + signal.unwrap_or(0));
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

async fn pump(channel: u8, from: Option<impl AsyncRead + Unpin>, queue: mpsc::Sender<Message>) {
    let Some(mut from) = from else { return };
    let mut chunk = vec![0; CHUNK];
    // An error ends the stream as its end does; the status tells why.
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        let bytes = chunk.get(..count).unwrap_or_default();
        if queue.send(frame(channel, bytes)).await.is_err() {
            return;
        }
    }
}

enum Sent {
    All(SplitSink<WebSocket, Message>),
    Broken,
}

async fn send(
    mut to_client: SplitSink<WebSocket, Message>,
    mut frames: mpsc::Receiver<Message>,
    drop_after: Option<u64>,
) -> Sent {
    let mut sent = 0_u64;
    // Real servers open every stream with an empty frame.
    for channel in [STDOUT, STDERR, STATUS] {
        if to_client.send(frame(channel, &[])).await.is_err() {
            return Sent::Broken;
        }
    }
    while let Some(message) = frames.recv().await {
        sent += message.clone().into_data().len() as u64;
        if drop_after.is_some_and(|limit| sent > limit) {
            return Sent::Broken;
        }
        if to_client.send(message).await.is_err() {
            return Sent::Broken;
        }
    }
    Sent::All(to_client)
}

/// Takes frames from the client until it goes.
async fn receive(mut from_client: SplitStream<WebSocket>, mut stdin: Option<ChildStdin>) {
    while let Some(Ok(message)) = from_client.next().await {
        let Message::Binary(bytes) = message else {
            if let Message::Close(_) = message {
                return;
            }
            continue;
        };
        match bytes.split_first() {
            Some((&STDIN, data)) => {
                if let Some(open) = &mut stdin
                    && open.write_all(data).await.is_err()
                {
                    // The program reads no more; its end is near or its business.
                    stdin = None;
                }
            }
            // v5: the client has no more for this stream.
            Some((&CLOSE, [STDIN])) => stdin = None,
            _ => {}
        }
    }
}
