//! The client that kubectl's connection flags and kubeconfig files give.
//!
//! Read first: [`ConnectionFlags::connect`]; the flags are in [`crate::kube_flags`]. Errors of single requests
//! are put into words in [`crate::kube_error`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster,
    NamedContext,
};
use kube::{Client, Config};

use crate::kube_error::{self, ApiError};
use crate::kube_flags::ConnectionFlags;

/// Bound on connecting; kubectl waits 30 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster that can be asked.
#[derive(Clone)]
pub struct Kube {
    /// The client.
    pub client: Client,
    /// What the client was built from, to build another one on another runtime.
    pub config: Config,
    /// Namespace for names without one: `-n`, else the context's, else `default`.
    pub namespace: String,
    /// Context in use; `None` inside a cluster or with `--server` alone.
    pub context: Option<String>,
    /// URL of the API server.
    pub server: String,
    /// User that the context names, for labels and messages; empty when unknown.
    pub user: String,
    /// Bound on one request; `None` is no bound.
    pub timeout: Option<Duration>,
    /// Connection flags as typed, for commands that are printed to be pasted.
    pub typed_flags: Vec<String>,
}

impl Kube {
    /// [`Self::typed_flags`] without the namespace, for kubectl commands that name one, each behind a
    /// space.
    pub fn flags_of_kubectl(&self) -> String {
        let mut text = String::new();
        let mut flags = self.typed_flags.iter();
        while let Some(flag) = flags.next() {
            if flag == "-n" {
                flags.next();
                continue;
            }
            text.push(' ');
            text.push_str(flag);
        }
        text
    }
}

impl std::fmt::Debug for Kube {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kube")
            .field("server", &self.server)
            .field("context", &self.context)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// Why no client could be built.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A kubeconfig file cannot be read or is not one.
    #[error("read kubeconfig {}: {cause}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// There is no kubeconfig and no cluster around this program.
    #[error(
        "no cluster is configured: {looked}; set KUBECONFIG, or use --kubeconfig FILE or --server URL"
    )]
    Nothing {
        /// Where was looked.
        looked: String,
    },
    /// A context, cluster or user that the kubeconfig does not have.
    #[error("{what} {name:?}: not in {place}; it has {has}")]
    Unknown {
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// Its name.
        name: String,
        /// The files read.
        place: String,
        /// Names that exist.
        has: String,
    },
    /// The kubeconfig names no current context and none was given.
    #[error("no current context in {place}; use --context NAME, one of {has}")]
    NoContext {
        /// The files read.
        place: String,
        /// Names that exist.
        has: String,
    },
    /// Two flags or settings contradict each other.
    #[error("{0}")]
    Conflict(String),
    /// The chosen context cannot be used.
    #[error("context {context:?} of {place}: {cause}")]
    Unusable {
        /// Context name, or `--server`.
        context: String,
        /// The files read.
        place: String,
        /// What is wrong, for instance an unreadable certificate.
        cause: String,
    },
    /// Logging in by the context's credential plugin went wrong.
    #[error(transparent)]
    Login(#[from] ApiError),
}

impl ConnectionFlags {
    /// Builds the client: `--kubeconfig`, else the files of `KUBECONFIG`, else `~/.kube/config`, else
    /// the service account of the pod that this program runs in; then the other flags on top.
    ///
    /// No request is sent. Errors: see [`ConnectError`].
    pub async fn connect(&self) -> Result<Kube, ConnectError> {
        if self.insecure_skip_tls_verify && self.certificate_authority.is_some() {
            return Err(ConnectError::Conflict(
                "--insecure-skip-tls-verify and --certificate-authority exclude each other"
                    .to_owned(),
            ));
        }
        let (kubeconfig, place) = self.load()?;
        let configured = kubeconfig
            .as_ref()
            .is_some_and(|k| !k.contexts.is_empty() || !k.clusters.is_empty());
        if !configured && self.server.is_none() && self.context.is_none() {
            return self.in_cluster(&place);
        }
        self.use_files(kubeconfig.unwrap_or_default(), &place).await
    }

    /// All files merged, first one wins; and where they are, for messages.
    fn load(&self) -> Result<(Option<Kubeconfig>, String), ConnectError> {
        let read = |path: &Path| {
            // kube 5.0 panics on UTF-16 of an odd number of bytes. What can't be read at all is told
            // by `read_from`.
            let bytes = std::fs::read(path).unwrap_or_default();
            let utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
            if utf16 && bytes.len() % 2 == 1 {
                return Err(ConnectError::File {
                    path: path.to_owned(),
                    cause: "it starts as UTF-16 and is cut short".to_owned(),
                });
            }
            Kubeconfig::read_from(path).map_err(|error| ConnectError::File {
                path: path.to_owned(),
                cause: innermost(&error),
            })
        };
        if let Some(path) = &self.kubeconfig {
            return Ok((Some(read(path)?), path.display().to_string()));
        }
        let paths: Vec<PathBuf> = match std::env::var_os("KUBECONFIG") {
            Some(list) if !list.is_empty() => std::env::split_paths(&list)
                .filter(|p| !p.as_os_str().is_empty())
                .collect(),
            _ => std::env::home_dir()
                .map(|home| home.join(".kube/config"))
                .into_iter()
                .collect(),
        };
        let place = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
            .join(", ");
        let mut merged: Option<Kubeconfig> = None;
        for path in &paths {
            // kubectl passes over files of the list that do not exist.
            if !path.exists() {
                continue;
            }
            let next = read(path)?;
            merged = Some(match merged {
                None => next,
                Some(merged) => merged.merge(next).map_err(|error| ConnectError::File {
                    path: path.clone(),
                    cause: innermost(&error),
                })?,
            });
        }
        Ok((merged, place))
    }

    fn in_cluster(&self, place: &str) -> Result<Kube, ConnectError> {
        let looked = |more: &str| ConnectError::Nothing {
            looked: format!("no kubeconfig with a cluster at {place}{more}"),
        };
        if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
            return Err(looked(""));
        }
        let mut config = Config::incluster()
            .map_err(|error| looked(&format!(", and in this pod: {}", innermost(&error))))?;
        self.identify(&mut config.auth_info);
        self.finish(
            config,
            None,
            "service account".to_owned(),
            "the pod's service account",
        )
    }

    async fn use_files(&self, kubeconfig: Kubeconfig, place: &str) -> Result<Kube, ConnectError> {
        let names = |list: Vec<&String>| {
            if list.is_empty() {
                "none".to_owned()
            } else {
                list.into_iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", ")
            }
        };
        let contexts = || names(kubeconfig.contexts.iter().map(|c| &c.name).collect());
        let wanted = self
            .context
            .as_ref()
            .or(kubeconfig.current_context.as_ref())
            .filter(|name| !name.is_empty());
        let context = match wanted {
            Some(name) => {
                let found = kubeconfig.contexts.iter().find(|c| c.name == *name);
                let found = found.and_then(|c| c.context.clone());
                found.ok_or_else(|| ConnectError::Unknown {
                    what: "context",
                    name: name.clone(),
                    place: place.to_owned(),
                    has: contexts(),
                })?
            }
            // --cluster or --server say enough without a context.
            None if self.server.is_some() || self.cluster.is_some() => Context::default(),
            None => {
                return Err(ConnectError::NoContext {
                    place: place.to_owned(),
                    has: contexts(),
                });
            }
        };
        let cluster_name = self
            .cluster
            .clone()
            .unwrap_or_else(|| context.cluster.clone());
        let found = kubeconfig.clusters.iter().find(|c| c.name == cluster_name);
        let mut cluster = match found.and_then(|c| c.cluster.clone()) {
            Some(cluster) => cluster,
            None if self.server.is_some() && self.cluster.is_none() => Cluster::default(),
            None => {
                return Err(ConnectError::Unknown {
                    what: "cluster",
                    name: cluster_name,
                    place: place.to_owned(),
                    has: names(kubeconfig.clusters.iter().map(|c| &c.name).collect()),
                });
            }
        };
        let user_name = self
            .user
            .clone()
            .or_else(|| context.user.clone())
            .unwrap_or_default();
        let found = kubeconfig.auth_infos.iter().find(|u| u.name == user_name);
        let mut auth = match found.and_then(|u| u.auth_info.clone()) {
            Some(auth) => auth,
            None if self.user.is_some() => {
                return Err(ConnectError::Unknown {
                    what: "user",
                    name: user_name,
                    place: place.to_owned(),
                    has: names(kubeconfig.auth_infos.iter().map(|u| &u.name).collect()),
                });
            }
            None => AuthInfo::default(),
        };
        self.reach(&mut cluster);
        self.identify(&mut auth);
        let server = cluster.server.clone().unwrap_or_default();
        crate::credential::log_in(&mut auth, &cluster, self.limit())
            .await
            .map_err(|why| kube_error::login(&why, &server, wanted.map(String::as_str)))?;
        let shown = wanted.cloned();
        let one = one_context(cluster, auth, context.namespace);
        let unusable = |cause: String| ConnectError::Unusable {
            context: shown.clone().unwrap_or_else(|| "--server".to_owned()),
            place: place.to_owned(),
            cause,
        };
        let config = Config::from_custom_kubeconfig(one, &KubeConfigOptions::default())
            .await
            .map_err(|error| unusable(innermost(&error)))?;
        self.finish(config, wanted.cloned(), user_name, place)
    }

    fn finish(
        &self,
        mut config: Config,
        context: Option<String>,
        user: String,
        place: &str,
    ) -> Result<Kube, ConnectError> {
        let timeout = self.limit();
        config.connect_timeout = Some(timeout.map_or(CONNECT_TIMEOUT, |t| t.min(CONNECT_TIMEOUT)));
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let server = config
            .cluster_url
            .to_string()
            .trim_end_matches('/')
            .to_owned();
        let user = self.as_user.clone().unwrap_or(user);
        // Else the system's certificates are read, which small containers do not have.
        let certificates =
            config.cluster_url.scheme_str() != Some("http") && !config.accept_invalid_certs;
        if !certificates {
            config.root_cert.get_or_insert_default();
        }
        let client = Client::try_from(config.clone()).map_err(|error| match error {
            kube::Error::Auth(_) => {
                let why = kube_error::last_cause(&error);
                ConnectError::Login(kube_error::login(&why, &server, context.as_deref()))
            }
            other => ConnectError::Unusable {
                context: context.clone().unwrap_or_else(|| "--server".to_owned()),
                place: place.to_owned(),
                cause: innermost(&other),
            },
        })?;
        let typed_flags = self.typed();
        Ok(Kube {
            client,
            config,
            namespace,
            context,
            server,
            user,
            timeout,
            typed_flags,
        })
    }
}

fn one_context(cluster: Cluster, auth: AuthInfo, namespace: Option<String>) -> Kubeconfig {
    let name = || "chosen".to_owned();
    Kubeconfig {
        clusters: vec![NamedCluster {
            name: name(),
            cluster: Some(cluster),
            ..NamedCluster::default()
        }],
        auth_infos: vec![NamedAuthInfo {
            name: name(),
            auth_info: Some(auth),
            ..NamedAuthInfo::default()
        }],
        contexts: vec![NamedContext {
            name: name(),
            context: Some(Context {
                cluster: name(),
                user: Some(name()),
                namespace: namespace.filter(|n| !n.is_empty()),
                ..Context::default()
            }),
            ..NamedContext::default()
        }],
        current_context: Some(name()),
        ..Kubeconfig::default()
    }
}

/// The text of an error's last cause: kube's outer texts repeat the inner ones.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

#[cfg(test)]
#[path = "kube_client_tests.rs"]
mod tests;
