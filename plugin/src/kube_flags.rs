//! kubectl's connection flags, under kubectl's names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use kube::config::{AuthInfo, Cluster};

/// Bound on one request when `--request-timeout` gives none: an engineer on call gets an answer.
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// kubectl's flags for reaching a cluster, under kubectl's names.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection (as kubectl)")]
pub struct ConnectionFlags {
    /// Path to the kubeconfig file to use
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Cluster of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// User of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// Namespace of ends that name none
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// User to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// Group to impersonate; may be repeated
    #[arg(long, global = true, value_name = "GROUP")]
    pub as_group: Vec<String>,
    /// UID to impersonate
    #[arg(long, global = true, value_name = "UID")]
    pub as_uid: Option<String>,
    /// More about the user to impersonate; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = parse_extra)]
    pub as_user_extra: Vec<(String, String)>,
    /// Bearer token
    #[arg(long, global = true, value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Address and port of the API server
    #[arg(short, long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// Server name to check the certificate against
    #[arg(long, global = true, value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// Do not check the server's certificate
    #[arg(long, global = true)]
    pub insecure_skip_tls_verify: bool,
    /// Path to a certificate authority's file
    #[arg(long, global = true, value_name = "FILE")]
    pub certificate_authority: Option<String>,
    /// Path to a client certificate
    #[arg(long, global = true, value_name = "FILE")]
    pub client_certificate: Option<String>,
    /// Path to a client key
    #[arg(long, global = true, value_name = "FILE")]
    pub client_key: Option<String>,
    /// How long one request may take, for instance 5s or 1m; 0 means no limit
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_duration)]
    pub request_timeout: Option<Duration>,
}

fn parse_extra(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// Reads how long something may go on for which a helper stays on a node.
///
/// Errors: no duration, none, more than a day.
pub fn parse_lasting(text: &str) -> Result<Duration, String> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let duration = parse_duration(text)?;
    if duration.is_zero() || duration > DAY {
        return Err(format!(
            "{text:?}: more than nothing and 24h at most are taken"
        ));
    }
    Ok(duration)
}

/// Reads Go's duration spelling (`500ms`, `90s`, `1m30s`, `2h`); a bare number is seconds.
///
/// Errors: empty, unknown unit, out of range.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration; write for instance 30s, 5m or 1h");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(u64::from(seconds)));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let number: u32 = number.parse().map_err(|_| bad())?;
        let unit_end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit = match unit {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(bad()),
        };
        let part = unit.checked_mul(number).ok_or_else(bad)?;
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = after;
    }
    Ok(total)
}

impl ConnectionFlags {
    /// Bound on one request; `None` is no bound.
    pub(crate) fn limit(&self) -> Option<Duration> {
        match self.request_timeout {
            None => Some(DEFAULT_REQUEST_TIMEOUT),
            Some(Duration::ZERO) => None,
            Some(given) => Some(given),
        }
    }

    /// Puts the flags about the server over what the kubeconfig says.
    pub(crate) fn reach(&self, cluster: &mut Cluster) {
        if let Some(server) = &self.server {
            // kubectl takes `host:port` without a scheme.
            cluster.server = Some(if server.contains("://") {
                server.clone()
            } else {
                format!("https://{server}")
            });
        }
        if let Some(name) = &self.tls_server_name {
            cluster.tls_server_name = Some(name.clone());
        }
        if self.insecure_skip_tls_verify {
            cluster.insecure_skip_tls_verify = Some(true);
            cluster.certificate_authority = None;
            cluster.certificate_authority_data = None;
        }
        if let Some(path) = &self.certificate_authority {
            cluster.certificate_authority = Some(path.clone());
            cluster.certificate_authority_data = None;
        }
    }

    /// Puts the flags about the user over what the kubeconfig says.
    pub(crate) fn identify(&self, auth: &mut AuthInfo) {
        if let Some(token) = &self.token {
            auth.token = Some(token.clone().into());
            auth.token_file = None;
            auth.username = None;
            auth.password = None;
            auth.exec = None;
            auth.auth_provider = None;
        }
        if let Some(path) = &self.client_certificate {
            auth.client_certificate = Some(path.clone());
            auth.client_certificate_data = None;
        }
        if let Some(path) = &self.client_key {
            auth.client_key = Some(path.clone());
            auth.client_key_data = None;
        }
        // The client turns these into Impersonate-User, -Group and -Uid headers.
        if let Some(user) = &self.as_user {
            auth.impersonate = Some(user.clone());
        }
        if !self.as_group.is_empty() {
            auth.impersonate_groups = Some(self.as_group.clone());
        }
        if let Some(uid) = &self.as_uid {
            auth.impersonate_uid = Some(uid.clone());
        }
        for (key, value) in &self.as_user_extra {
            let extra = auth.impersonate_user_extra.get_or_insert_default();
            extra.entry(key.clone()).or_default().push(value.clone());
        }
    }

    /// The flags that choose cluster, user and namespace, as typed; secrets are left out.
    pub(crate) fn typed(&self) -> Vec<String> {
        let mut flags = Vec::new();
        let mut push = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                flags.push(name.to_owned());
                flags.push(quoted(value));
            }
        };
        push("-n", self.namespace.as_deref());
        push(
            "--kubeconfig",
            self.kubeconfig.as_deref().and_then(Path::to_str),
        );
        push("--context", self.context.as_deref());
        push("--cluster", self.cluster.as_deref());
        push("--user", self.user.as_deref());
        push("--server", self.server.as_deref());
        push("--as", self.as_user.as_deref());
        for group in &self.as_group {
            push("--as-group", Some(group));
        }
        push("--as-uid", self.as_uid.as_deref());
        for (key, value) in &self.as_user_extra {
            push("--as-user-extra", Some(&format!("{key}={value}")));
        }
        push("--tls-server-name", self.tls_server_name.as_deref());
        push(
            "--certificate-authority",
            self.certificate_authority.as_deref(),
        );
        push("--client-certificate", self.client_certificate.as_deref());
        push("--client-key", self.client_key.as_deref());
        if self.insecure_skip_tls_verify {
            flags.push("--insecure-skip-tls-verify".to_owned());
        }
        // A token is a secret: whoever typed it knows to type it again.
        flags
    }
}

/// A value as a POSIX shell reads it back: these commands are printed to be pasted, never run here.
pub fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@=+,".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', "'\\''"))
    }
}
