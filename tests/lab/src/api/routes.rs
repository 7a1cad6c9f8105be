//! Which request gets which answer.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequestParts, Request, State, WebSocketUpgrade};
use axum::http::Method;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::misbehave::{Admission, Misbehave};
use super::request::{Query, Target};
use super::status::{answer, failure, forbidden, not_found};
use super::{discovery, exec, table, watch};

/// Largest request body, in bytes.
const MAX_BODY: usize = 1 << 20;

pub(super) fn router(app: Arc<App>) -> Router {
    Router::new().fallback(handle).with_state(app)
}

async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let body = match to_bytes(body, MAX_BODY).await {
        Ok(body) => body,
        Err(error) => return failure(413, "RequestEntityTooLarge", &error.to_string()),
    };
    if path == "/lab/misbehave" {
        return misbehave(&app, &parts.method, &body);
    }
    let now = app.misbehave.get();
    if now.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(now.delay_ms)).await;
    }
    if now.unauthorized {
        return failure(401, "Unauthorized", "Unauthorized");
    }
    if let "/healthz" | "/livez" | "/readyz" = path.as_str() {
        return "ok".into_response();
    }
    if let Some(document) = discovery::document(&path) {
        return answer(200, &document);
    }
    let served = |target: &Target| {
        discovery::serves(&target.group, &target.resource)
            && (target.sub.is_none() || discovery::serves(&target.group, &target.full()))
    };
    match Target::parse(&path).filter(served) {
        Some(target) => resource(&app, &now, target, &mut parts, &body).await,
        None => failure(
            404,
            "NotFound",
            "the server could not find the requested resource",
        ),
    }
}

fn misbehave(app: &App, method: &Method, body: &[u8]) -> Response {
    if *method == Method::PUT {
        match serde_json::from_slice::<Misbehave>(body) {
            Ok(how) => app.misbehave.set(how),
            Err(error) => return failure(400, "BadRequest", &error.to_string()),
        }
    }
    // Every field of the type can be encoded.
    answer(
        200,
        &serde_json::to_value(app.misbehave.get()).unwrap_or_default(),
    )
}

async fn resource(
    app: &Arc<App>,
    now: &Misbehave,
    target: Target,
    parts: &mut Parts,
    body: &Bytes,
) -> Response {
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let is_exec = target.sub.as_deref() == Some("exec");
    let verb = match (&parts.method, &target.name) {
        (&Method::GET, _) if query.is_true("watch") => "watch",
        (&Method::GET, Some(_)) => "get",
        (&Method::GET, None) => "list",
        (&Method::POST, _) => "create",
        (&Method::DELETE, Some(_)) => "delete",
        _ => {
            return failure(
                405,
                "MethodNotAllowed",
                "the lab's API server does not do this",
            );
        }
    };
    let namespace = target.namespace.as_deref();
    if let Some((code, retry_after)) = app.misbehave.failure(verb, &target.full(), namespace) {
        let reason = match code {
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            _ => "InternalError",
        };
        let mut answer = failure(code, reason, "the laboratory was told to fail this request");
        if let Some(seconds) = retry_after {
            answer.headers_mut().insert("retry-after", seconds.into());
        }
        return answer;
    }
    // Since Kubernetes 1.35 an exec by GET needs the right to create as well.
    let verbs: &[&str] = if is_exec { &[verb, "create"] } else { &[verb] };
    for verb in verbs {
        if app.misbehave.forbids(verb, &target.full(), namespace) {
            if is_exec && *verb != verbs.first().copied().unwrap_or_default() {
                // As seen on real servers: the second check of an upgrade answers without a text.
                return axum::http::StatusCode::FORBIDDEN.into_response();
            }
            let name = target.name.as_deref();
            return forbidden(verb, &target.full(), &target.group, namespace, name);
        }
    }
    match (verb, target.resource.as_str()) {
        ("create", "selfsubjectaccessreviews") => access_review(app, body),
        ("create", "selfsubjectreviews") => subject_review(body),
        _ if is_exec => connect(app, &target, &query, parts).await,
        ("create", "pods") => create_pod(app, now, &target, &query, body).await,
        ("delete", "pods") => delete_pod(app, &target),
        ("get", _) => get(app, now, &target, parts),
        ("list", _) => list(app, now, &target, &query, parts),
        ("watch", _) => watch::answer(Arc::clone(app), now, target, query),
        _ => failure(
            405,
            "MethodNotAllowed",
            "the lab's API server does not do this",
        ),
    }
}

async fn connect(app: &Arc<App>, target: &Target, query: &Query, parts: &mut Parts) -> Response {
    match WebSocketUpgrade::from_request_parts(parts, app).await {
        Ok(upgrade) => exec::answer(Arc::clone(app), upgrade, target, query),
        // kubectl then tries SPDY, which is refused likewise.
        Err(_) => failure(400, "BadRequest", "Upgrade request required"),
    }
}

/// The object as the server shows it now: nodes whose kubelet is silent are not ready.
fn shown(now: &Misbehave, mut object: Value) -> Value {
    let name = object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let silent = object["kind"] == "Node" && now.silent_nodes.iter().any(|node| node == name);
    if let Some(conditions) = object
        .pointer_mut("/status/conditions")
        .and_then(Value::as_array_mut)
        .filter(|_| silent)
    {
        for condition in conditions
            .iter_mut()
            .filter(|condition| condition["type"] == "Ready")
        {
            condition["status"] = json!("Unknown");
            condition["reason"] = json!("NodeStatusUnknown");
            condition["message"] = json!("Kubelet stopped posting node status.");
        }
    }
    object
}

fn get(app: &App, now: &Misbehave, target: &Target, parts: &Parts) -> Response {
    let name = target.name.as_deref().unwrap_or_default();
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let Some(object) = app.store.get(&target.resource, namespace, name) else {
        return not_found(&target.resource, name);
    };
    let object = shown(now, object);
    if table::wanted(parts) {
        let version = app.store.version();
        return answer(200, &table::of(&target.resource, &[object], version));
    }
    answer(200, &object)
}

fn list(app: &App, now: &Misbehave, target: &Target, query: &Query, parts: &Parts) -> Response {
    let (objects, version) = app.store.list(target, query);
    let total = objects.len();
    let skip: usize = query
        .first("continue")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let limit: usize = query
        .first("limit")
        .and_then(|text| text.parse().ok())
        .filter(|limit| *limit > 0)
        .unwrap_or(usize::MAX);
    let page: Vec<Value> = objects
        .into_iter()
        .skip(skip)
        .take(limit)
        .map(|object| shown(now, object))
        .collect();
    let mut meta = json!({"resourceVersion": version.to_string()});
    let next = skip.saturating_add(page.len());
    if next < total {
        meta["continue"] = json!(next.to_string());
        meta["remainingItemCount"] = json!(total - next);
    }
    if table::wanted(parts) {
        let mut table = table::of(&target.resource, &page, version);
        table["metadata"] = meta;
        return answer(200, &table);
    }
    let Some((kind, api_version)) = discovery::kind_of(&target.resource) else {
        return not_found(&target.resource, "");
    };
    let list = json!({
        "kind": format!("{kind}List"), "apiVersion": api_version, "metadata": meta, "items": page,
    });
    answer(200, &list)
}

fn access_review(app: &App, body: &[u8]) -> Response {
    let decoded = match super::protobuf::access_review(body) {
        Some(review) => Ok(review),
        None => serde_json::from_slice(body),
    };
    let mut review: Value = match decoded {
        Ok(review) => review,
        Err(error) => return failure(400, "BadRequest", &error.to_string()),
    };
    let attributes = review
        .pointer("/spec/resourceAttributes")
        .cloned()
        .unwrap_or_default();
    let text = |key: &str| {
        attributes
            .get(key)
            .and_then(Value::as_str)
            .filter(|t| !t.is_empty())
            .map(str::to_owned)
    };
    let resource = text("resource").unwrap_or_default();
    let full = match text("subresource") {
        Some(sub) => format!("{resource}/{sub}"),
        None => resource,
    };
    let verb = text("verb").unwrap_or_default();
    let forbidden = app
        .misbehave
        .forbids(&verb, &full, text("namespace").as_deref());
    review["status"] = json!({"allowed": !forbidden});
    answer(201, &review)
}

fn subject_review(body: &[u8]) -> Response {
    let mut review: Value = match serde_json::from_slice(body) {
        Ok(review) => review,
        Err(error) => return failure(400, "BadRequest", &error.to_string()),
    };
    review["status"] = json!({"userInfo": {"username": "lab", "groups": ["system:authenticated"]}});
    answer(201, &review)
}

async fn create_pod(
    app: &Arc<App>,
    now: &Misbehave,
    target: &Target,
    query: &Query,
    body: &[u8],
) -> Response {
    let mut pod: Value = match serde_json::from_slice(body) {
        Ok(pod) => pod,
        Err(error) => return failure(400, "BadRequest", &error.to_string()),
    };
    let namespace = target.namespace.clone().unwrap_or_default();
    if app.store.get("namespaces", "", &namespace).is_none() {
        return not_found("namespaces", &namespace);
    }
    let given = |pointer: &str| {
        pod.pointer(pointer)
            .and_then(Value::as_str)
            .filter(|t| !t.is_empty())
            .map(str::to_owned)
    };
    let name = match (given("/metadata/name"), given("/metadata/generateName")) {
        (Some(name), _) => name,
        (None, Some(prefix)) => format!("{prefix}{:05x}", app.store.version()),
        (None, None) => {
            return failure(
                422,
                "Invalid",
                "Pod \"\" is invalid: metadata.name: Required value",
            );
        }
    };
    let message = match now.admission {
        Admission::Allow => None,
        Admission::PodSecurity => Some(format!(
            "pods \"{name}\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces \
             (hostNetwork=true, hostPID=true), non-default capabilities (container \"helper\" must \
             not include \"NET_ADMIN\", \"SYS_ADMIN\" in securityContext.capabilities.add)"
        )),
        Admission::Webhook => Some(
            "admission webhook \"validate.kyverno.svc-fail\" denied the request: host namespaces \
             are not allowed"
                .to_owned(),
        ),
        Admission::Quota => Some(format!(
            "pods \"{name}\" is forbidden: exceeded quota: compute, requested: pods=1, used: \
             pods=10, limited: pods=10"
        )),
    };
    if let Some(message) = message {
        return failure(403, "Forbidden", &message);
    }
    if app.store.get("pods", &namespace, &name).is_some() {
        let message = format!("pods \"{name}\" already exists");
        return failure(409, "AlreadyExists", &message);
    }
    super::kubelet::fill_in(&mut pod, &namespace, &name, app.store.version());
    if !query.all("dryRun").is_empty() {
        return answer(201, &pod);
    }
    let Some(stored) = app.store.put(pod) else {
        return failure(422, "Invalid", "the object has no kind Pod");
    };
    super::kubelet::start(app, &namespace, &name, now.helpers);
    if now.create_delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(now.create_delay_ms)).await;
    }
    if now.create_answer_lost {
        return failure(504, "Timeout", "the answer was lost");
    }
    answer(201, &stored)
}

fn delete_pod(app: &App, target: &Target) -> Response {
    let name = target.name.as_deref().unwrap_or_default();
    let namespace = target.namespace.as_deref().unwrap_or_default();
    // The laboratory's own pods are real processes that this server did not start.
    if !app
        .store
        .added("pods")
        .contains(&format!("{namespace}/{name}"))
    {
        return match app.store.get("pods", namespace, name) {
            None => not_found("pods", name),
            Some(_) => failure(
                405,
                "MethodNotAllowed",
                "the lab's API server deletes only pods that it created",
            ),
        };
    }
    // First the processes: who sees the pod gone may rely on it.
    app.kubelet.kill(namespace, name);
    match app.store.remove("pods", namespace, name) {
        Some(pod) => answer(200, &pod),
        None => not_found("pods", name),
    }
}
