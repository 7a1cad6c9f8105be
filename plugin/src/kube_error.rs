//! What the API server, or the way to it, refused: in words that say which right or object and what
//! to do.

use std::error::Error as _;
use std::future::Future;

use kube::core::Status;

use crate::kube_client::Kube;

/// One request as an error names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doing {
    /// RBAC verb: get, list, watch, create, delete.
    pub verb: &'static str,
    /// Plural resource with its subresource, for instance `pods/exec`.
    pub resource: &'static str,
    /// Namespace; `None` for the whole cluster.
    pub namespace: Option<String>,
    /// Object name, where there is one.
    pub name: Option<String>,
}

impl Doing {
    /// A request on a whole resource.
    pub fn new(verb: &'static str, resource: &'static str, namespace: Option<&str>) -> Self {
        Self {
            verb,
            resource,
            namespace: namespace.map(str::to_owned),
            name: None,
        }
    }

    /// On one object.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// `kubectl auth can-i` for this right.
    pub fn can_i(&self) -> String {
        can_i(self.verb, self.resource, self.namespace.as_deref())
    }
}

fn can_i(verb: &str, resource: &str, namespace: Option<&str>) -> String {
    let scope = match namespace {
        Some(namespace) => format!("-n {namespace}"),
        None => "--all-namespaces".to_owned(),
    };
    // can-i takes a subresource as a flag of its own.
    match resource.split_once('/') {
        Some((resource, sub)) => {
            format!("kubectl auth can-i {verb} {resource} --subresource={sub} {scope}")
        }
        None => format!("kubectl auth can-i {verb} {resource} {scope}"),
    }
}

impl std::fmt::Display for Doing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => Ok(()),
        }
    }
}

/// What kind of refusal it was, for callers that go on differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No answer: connection refused, name unknown, certificate wrong, cut off.
    Unreachable,
    /// Our own bound on one request passed.
    TimedOut,
    /// 401, or the credential plugin failed.
    NotLoggedIn,
    /// 403 by RBAC.
    Forbidden,
    /// 403 by an admission rule.
    Admission,
    /// 404.
    NotFound,
    /// 409.
    Conflict,
    /// Quota used up.
    Quota,
    /// 429, or the server said to come back later.
    Busy,
    /// Anything else.
    Other,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ApiError {
    /// Class of the failure.
    pub refusal: Refusal,
    /// The whole sentence: operation, object, place, cause, remedy.
    pub text: String,
    /// The server's own message; empty where it sent none.
    pub said: String,
}

impl ApiError {
    pub(crate) fn new(refusal: Refusal, text: String) -> Self {
        Self {
            refusal,
            text,
            said: String::new(),
        }
    }
}

impl Kube {
    /// Awaits one request within its bound and puts a failure into words.
    pub async fn ask<T>(
        &self,
        doing: &Doing,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ApiError> {
        let answer = match self.timeout {
            None => request.await,
            Some(limit) => match tokio::time::timeout(limit, request).await {
                Ok(answer) => answer,
                Err(_) => {
                    return Err(ApiError::new(
                        Refusal::TimedOut,
                        format!(
                            "{doing}: the API server {} gave no answer within {limit:?}, or only asked to \
                             come back later; try again, or raise --request-timeout",
                            self.server
                        ),
                    ));
                }
            },
        };
        answer.map_err(|error| self.explain(doing, &error))
    }

    /// Puts a client error into words.
    pub fn explain(&self, doing: &Doing, error: &kube::Error) -> ApiError {
        match error {
            kube::Error::Api(status) => self.explain_status(doing, status),
            kube::Error::Auth(_) => {
                login(&last_cause(error), &self.server, self.context.as_deref())
            }
            kube::Error::Service(inner) if is_auth(inner.as_ref()) => {
                login(&last_cause(error), &self.server, self.context.as_deref())
            }
            kube::Error::Service(_)
            | kube::Error::HyperError(_)
            | kube::Error::ReadEvents(_)
            | kube::Error::HttpError(_) => ApiError::new(
                Refusal::Unreachable,
                format!(
                    "{doing}: cannot reach the API server {}{}{}: {}; check the network, a VPN or \
                     proxy, and the address in the kubeconfig",
                    self.server,
                    self.of_context(),
                    self.by_proxy(),
                    self.unreachable(error)
                ),
            ),
            other => ApiError::new(
                Refusal::Other,
                format!("{doing}: {} at {}", last_cause(other), self.server),
            ),
        }
    }

    /// The proxy on the way, without the password that its URL may hold.
    fn by_proxy(&self) -> String {
        let url = self.config.proxy_url.as_ref();
        let authority = url.and_then(|url| url.authority());
        authority.map_or_else(String::new, |at| {
            let host = at.as_str().rsplit('@').next().unwrap_or_default();
            format!(" by the proxy {host}")
        })
    }

    fn unreachable(&self, error: &kube::Error) -> String {
        let cause = last_cause(error);
        match self.config.connect_timeout {
            // tokio's word for our own bound.
            Some(limit) if cause == "deadline has elapsed" => {
                format!("no connection within {limit:?}")
            }
            _ => cause,
        }
    }

    fn of_context(&self) -> String {
        self.context
            .as_ref()
            .map(|c| format!(" of context {c:?}"))
            .unwrap_or_default()
    }

    fn explain_status(&self, doing: &Doing, status: &Status) -> ApiError {
        let said = one_line(&status.message);
        let (refusal, text) = match status.code {
            401 => (
                Refusal::NotLoggedIn,
                format!(
                    "{doing}: not logged in to {}{}; log in again, then check with \
                     kubectl auth whoami",
                    self.server,
                    self.of_context()
                ),
            ),
            403 => forbidden(doing, &said),
            404 if doing.name.is_none() || said.contains("namespaces") => {
                let what = match &doing.namespace {
                    Some(namespace) => format!("namespace {namespace} does not exist"),
                    None => format!("the server has no resource {}", doing.resource),
                };
                (Refusal::NotFound, format!("{doing}: {what}"))
            }
            404 => (
                Refusal::NotFound,
                format!("{doing}: it does not exist (any more)"),
            ),
            409 => (Refusal::Conflict, format!("{doing}: {said}")),
            429 => (
                Refusal::Busy,
                format!("{doing}: the API server is overloaded ({said}); try again in a moment"),
            ),
            code @ 500..=599 => (
                Refusal::Busy,
                format!(
                    "{doing}: the API server {} failed with {code} ({said}); try again, or \
                         look at the server's log",
                    self.server
                ),
            ),
            // An admission webhook may refuse with a status of its own choice.
            code if said.contains("admission webhook") => (
                Refusal::Admission,
                format!(
                    "{doing}: {}",
                    admission(&said).unwrap_or_else(|| format!("{code} {said}"))
                ),
            ),
            code => (
                Refusal::Other,
                format!("{doing}: the API server answered {code} ({said})"),
            ),
        };
        ApiError {
            refusal,
            text,
            said,
        }
    }
}

fn forbidden(doing: &Doing, said: &str) -> (Refusal, String) {
    if said.contains("exceeded quota") {
        return (
            Refusal::Quota,
            format!(
                "{doing}: {}; free some, or use --helper-namespace NAME",
                after_colon(said)
            ),
        );
    }
    if let Some(text) = admission(said) {
        return (Refusal::Admission, format!("{doing}: {text}"));
    }
    if said.contains("is being terminated") {
        return (
            Refusal::Other,
            format!("{doing}: the namespace is being deleted; use another one"),
        );
    }
    let user = said
        .split_once("User \"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or_else(
            || "your user".to_owned(),
            |(user, _)| format!("user {user:?}"),
        );
    // The server knows best which right it looked for: one request may need several.
    let lacking = said
        .split_once("cannot ")
        .and_then(|(_, rest)| rest.split_once(" resource \""))
        .and_then(|(verb, rest)| Some((verb, rest.split_once('"')?.0)));
    let (verb, resource) = lacking.unwrap_or((doing.verb, doing.resource));
    if verb.starts_with("impersonate") {
        // Kubernetes 1.36 words it by the request that was meant.
        let meant = match verb {
            "impersonate" => String::new(),
            _ => format!(" or \"{verb} {resource}\""),
        };
        return (
            Refusal::Forbidden,
            format!(
                "{doing}: not allowed; {user} may not be another one (--as) without the right \
                 \"impersonate users\" in the whole cluster{meant} (check: kubectl auth can-i impersonate users)"
            ),
        );
    }
    let place = match &doing.namespace {
        Some(namespace) => format!("in namespace {namespace}"),
        None => "in the whole cluster".to_owned(),
    };
    (
        Refusal::Forbidden,
        format!(
            "{doing}: not allowed; {user} needs the right \"{verb} {resource}\" {place} (check: {})",
            can_i(verb, resource, doing.namespace.as_deref())
        ),
    )
}

/// Recognises the admission rules that refuse helper pods, with what to ask for.
fn admission(said: &str) -> Option<String> {
    if let Some((_, rest)) = said.split_once("violates PodSecurity ") {
        return Some(format!(
            "Pod Security of the namespace refuses it: violates {rest}; use --helper-namespace with \
             a namespace labelled pod-security.kubernetes.io/enforce=privileged"
        ));
    }
    if said.contains("unable to validate against any security context constraint") {
        return Some(
            "no SecurityContextConstraint admits it; ask for the SCC privileged for your user in \
             the helper's namespace, or use --helper-namespace NAME"
                .to_owned(),
        );
    }
    if let Some(rest) = said.split_once("admission webhook ").map(|(_, rest)| rest) {
        let (name, why) = rest.split_once(" denied the request").unwrap_or((rest, ""));
        let why = why.trim_start_matches([':', ' ']);
        let why = if why.is_empty() {
            "no reason given"
        } else {
            why
        };
        return Some(format!(
            "admission webhook {name} refused it: {why}; ask its owner for an exception for pods \
             labelled app.kubernetes.io/name=netpath, or use --helper-namespace NAME"
        ));
    }
    if said.contains("ValidatingAdmissionPolicy") {
        return Some(format!(
            "{}; ask for an exception for pods labelled app.kubernetes.io/name=netpath, or use \
             --helper-namespace NAME",
            after_colon(said)
        ));
    }
    None
}

/// What follows `... is forbidden: `, else the whole.
fn after_colon(said: &str) -> &str {
    said.split_once("is forbidden: ")
        .map_or(said, |(_, rest)| rest)
}

/// Credentials that do not work, by whatever the plugin or server said.
pub(crate) fn login(why: &str, server: &str, context: Option<&str>) -> ApiError {
    let place = context
        .map(|c| format!(" by context {c:?}"))
        .unwrap_or_default();
    ApiError::new(
        Refusal::NotLoggedIn,
        format!(
            "log in to {server}{place}: {}; log in again, then check with kubectl auth whoami",
            one_line(why)
        ),
    )
}

fn is_auth(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<kube::client::AuthError>().is_some()
        || matches!(
            error.downcast_ref::<kube::Error>(),
            Some(kube::Error::Auth(_))
        )
        || error.source().is_some_and(is_auth)
}

/// The last cause, with the one before it when the last is a bare OS error text.
pub(crate) fn last_cause(error: &kube::Error) -> String {
    let mut chain = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        chain.push(cause.to_string());
        next = cause.source();
    }
    one_line(chain.last().map_or("", String::as_str))
}

pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
