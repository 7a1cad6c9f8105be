//! Credential plugins of a kubeconfig (`users[].user.exec`): run once, bounded, with their own words in the error.
//!
//! kube (5.0) would run them itself, but three times for each client, without a bound, and with their whole
//! output, token included, in its error text. Credentials are not renewed: a run takes seconds.
//!
//! Source: client.authentication.k8s.io/v1, ExecCredential.

use std::io::IsTerminal;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{AuthInfo, Cluster, ExecAuthCluster, ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::json;

use crate::kube_error::one_line;

/// Longest part of a plugin's stderr that an error repeats, in characters.
const WORDS: usize = 600;

#[derive(Deserialize)]
struct Answer {
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Asks the plugin that `auth` names, if it does, and puts what it gives in the plugin's place.
///
/// `limit` bounds a plugin, unless it may talk to a person, whom it may wait for. Errors: the
/// plugin cannot be run, fails, takes too long, or gives no credentials.
pub async fn log_in(
    auth: &mut AuthInfo,
    cluster: &Cluster,
    limit: Option<Duration>,
) -> Result<(), String> {
    let settled = auth.auth_provider.is_some()
        || (auth.username.is_some() && auth.password.is_some())
        || auth.token.is_some()
        || auth.token_file.is_some();
    if settled {
        return Ok(());
    }
    let Some(exec) = &auth.exec else {
        return Ok(());
    };
    let Some(command) = &exec.command else {
        return Err("the credential plugin has no command".to_owned());
    };
    let output = run(exec, command, cluster, limit).await?;
    let answer: Answer = serde_saphyr::from_slice(&output).map_err(|error| {
        // Not what it said: that may hold a secret.
        let why = one_line(&error.without_snippet().to_string());
        format!("credential plugin {command:?} gave no ExecCredential ({why})")
    })?;
    let status = answer.status.map(|status| {
        (
            status.token,
            status.client_certificate_data.zip(status.client_key_data),
        )
    });
    let (token, pair) = status.unwrap_or_default();
    if token.is_none() && pair.is_none() {
        return Err(format!(
            "credential plugin {command:?} gave neither a token nor a certificate with its key"
        ));
    }
    auth.token = token.map(Into::into);
    if let Some((certificate, key)) = pair {
        auth.client_certificate_data = Some(STANDARD.encode(certificate));
        auth.client_key_data = Some(STANDARD.encode(key).into());
    }
    auth.exec = None;
    Ok(())
}

async fn run(
    exec: &ExecConfig,
    command: &str,
    cluster: &Cluster,
    limit: Option<Duration>,
) -> Result<Vec<u8>, String> {
    let terminal = std::io::stdin().is_terminal();
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) && !terminal {
        return Err(format!(
            "credential plugin {command:?} wants to talk to a person, and stdin is no terminal"
        ));
    }
    let interactive = terminal && exec.interactive_mode != Some(ExecInteractiveMode::Never);
    let mut spec = json!({"interactive": interactive});
    if exec.provide_cluster_info {
        let about =
            ExecAuthCluster::try_from(cluster).map_err(|error| one_line(&error.to_string()))?;
        spec["cluster"] = json!(about);
    }
    let info = json!({"apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec});
    let env = exec.env.iter().flatten();
    let env = env.filter_map(|pair| Some((pair.get("name")?, pair.get("value")?)));
    let mut process = tokio::process::Command::new(command);
    process
        .args(exec.args.iter().flatten())
        .envs(env)
        .env("KUBERNETES_EXEC_INFO", info.to_string())
        .stdin(if interactive {
            Stdio::inherit()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(if interactive {
            Stdio::inherit()
        } else {
            Stdio::piped()
        })
        .kill_on_drop(true);
    // Most plugins are wrappers: what they started has to end with them. One that reads the terminal must stay in
    // the terminal's own group.
    #[cfg(unix)]
    if !interactive {
        process.process_group(0);
    }
    let failed = |error: std::io::Error| {
        let hint = exec
            .install_hint
            .as_deref()
            .map(one_line)
            .unwrap_or_default();
        let hint = if hint.is_empty() {
            hint
        } else {
            format!(" ({hint})")
        };
        format!("run credential plugin {command:?}: {error}{hint}")
    };
    let child = process.spawn().map_err(failed)?;
    #[cfg(unix)]
    let mut group = Group(child.id().filter(|_| !interactive));
    let running = child.wait_with_output();
    let output = match limit.filter(|_| !interactive) {
        None => running.await,
        Some(limit) => match tokio::time::timeout(limit, running).await {
            Ok(output) => output,
            Err(_) => {
                return Err(format!(
                    "credential plugin {command:?} gave no answer within {limit:?} and was ended"
                ));
            }
        },
    };
    // Its number may be another's from here on.
    #[cfg(unix)]
    group.0.take();
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = one_line(&String::from_utf8_lossy(&output.stderr));
    let said: String = said.chars().take(WORDS).collect();
    let said = if said.is_empty() {
        said
    } else {
        format!(": {said}")
    };
    Err(format!(
        "credential plugin {command:?} failed ({}){said}",
        output.status
    ))
}

/// Ends a plugin and all that it started, when it is given up.
#[cfg(unix)]
struct Group(Option<u32>);

#[cfg(unix)]
impl Drop for Group {
    fn drop(&mut self) {
        let id = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id {
            // All of them may have ended by themselves.
            let _ = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(id),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}
