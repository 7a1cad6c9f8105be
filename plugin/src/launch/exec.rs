//! `exec` in a pod as a byte pipe.
//!
//! Facts about kube's `AttachedProcess` that shape this file: its buffers are 1 KiB unless raised,
//! stderr that nobody reads blocks stdout, and an abrupt close ends the status future but not the
//! readers.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use kube::client::UpgradeConnectionError;
use tokio::sync::watch;

use super::error::LaunchError;
use super::pipe::{End, Pipe, StderrTail};
use crate::kube_client::Kube;
use crate::kube_error::{Doing, one_line};

const STDIN_BUFFER: usize = 64 << 10;
const STDOUT_BUFFER: usize = 1 << 20;
const STDERR_BUFFER: usize = 64 << 10;

/// Starts `command` in the pod's container, without a terminal, with all three streams.
///
/// Errors: the right to exec is missing (which one is asked for is found out), the pod is gone, or the
/// server cannot reach the node's kubelet.
pub async fn exec(
    kube: &Kube,
    namespace: &str,
    pod: &str,
    container: &str,
    command: &[&str],
) -> Result<Pipe, LaunchError> {
    let api: Api<Pod> = Api::namespaced(kube.client.clone(), namespace);
    let params = AttachParams::default()
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .tty(false)
        .container(container)
        .max_stdin_buf_size(STDIN_BUFFER)
        .max_stdout_buf_size(STDOUT_BUFFER)
        .max_stderr_buf_size(STDERR_BUFFER);
    let doing = Doing::new("get", "pods/exec", Some(namespace)).named(pod);
    let attempt = api.exec(pod, command.iter().copied(), &params);
    let started = match kube.timeout {
        None => attempt.await,
        Some(limit) => match tokio::time::timeout(limit, attempt).await {
            Ok(started) => started,
            Err(_) => {
                return Err(LaunchError::Exec {
                    pod: format!("{namespace}/{pod}"),
                    cause: format!("no answer within {limit:?}"),
                    remedy: "the API server may not reach the node's kubelet (port 10250); \
                             try kubectl exec there"
                        .to_owned(),
                });
            }
        },
    };
    let mut process = match started {
        Ok(process) => process,
        Err(kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status))) => {
            let code = status.as_u16();
            return Err(super::error::upgrade_refused(kube, namespace, pod, code, "").await);
        }
        // A refusal that came with a text.
        Err(kube::Error::Api(status)) => {
            let said = one_line(&status.message);
            let refused =
                super::error::upgrade_refused(kube, namespace, pod, status.code, &said).await;
            return Err(refused);
        }
        Err(kube::Error::UpgradeConnection(other)) => {
            return Err(LaunchError::Exec {
                pod: format!("{namespace}/{pod}"),
                cause: other.to_string(),
                remedy: "a proxy on the way may not pass WebSocket connections".to_owned(),
            });
        }
        Err(other) => return Err(LaunchError::Api(kube.explain(&doing, &other))),
    };
    // exec() was asked for all three streams and the status; each can be taken once.
    let (Some(stdin), Some(stdout), Some(stderr), Some(status)) = (
        process.stdin(),
        process.stdout(),
        process.stderr(),
        process.take_status(),
    ) else {
        return Err(LaunchError::Exec {
            pod: format!("{namespace}/{pod}"),
            cause: "the client gave no streams".to_owned(),
            remedy: "report this".to_owned(),
        });
    };
    let tail = StderrTail::default();
    let drain = tokio::spawn(tail.clone().drain(stderr));
    let (send, end) = watch::channel(None);
    let waiter = tokio::spawn(async move {
        let ended = match status.await {
            None => End::Cut("the stream closed without a status".to_owned()),
            Some(status) => read_status(&status),
        };
        // Nobody listens any more if the session was dropped.
        let _ = send.send(Some(ended));
    });
    Ok(Pipe {
        reader: Box::new(stdout),
        writer: Box::new(stdin),
        end,
        stderr: tail,
        keep: Box::new(Keep {
            _process: process,
            drain,
            waiter,
        }),
    })
}

struct Keep {
    /// Its drop ends the connection.
    _process: kube::api::AttachedProcess,
    drain: tokio::task::JoinHandle<()>,
    waiter: tokio::task::JoinHandle<()>,
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.drain.abort();
        self.waiter.abort();
    }
}

/// Reads the status that ends an exec stream.
///
/// Source: `remotecommand` in k8s.io/kubelet: reason `NonZeroExitCode` with a cause `ExitCode`.
fn read_status(status: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Status) -> End {
    if status.status.as_deref() == Some("Success") {
        return End::Exited(0);
    }
    let message = one_line(status.message.as_deref().unwrap_or_default());
    let code = status
        .details
        .iter()
        .flat_map(|details| details.causes.iter().flatten())
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .and_then(|cause| cause.message.as_deref()?.parse::<i32>().ok());
    match code {
        // Runtimes report a fatal signal as 128 + its number.
        Some(code) if code > 128 => End::Killed(format!("signal {}", code - 128)),
        Some(code) => End::Exited(code),
        None => End::Cut(message),
    }
}
