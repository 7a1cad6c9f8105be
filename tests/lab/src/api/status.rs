//! Error answers in the API's own words, so that the client's translation of them is tested.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A `Status` of kind Failure.
pub(super) fn failure(code: u16, reason: &str, message: &str) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "message": message, "reason": reason, "code": code,
    });
    answer(code, &body)
}

/// JSON with a status code.
pub(super) fn answer(code: u16, body: &Value) -> Response {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut text = body.to_string();
    text.push('\n');
    (code, [("content-type", "application/json")], text).into_response()
}

/// 403 as RBAC words it.
pub(super) fn forbidden(
    verb: &str,
    resource: &str,
    group: &str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Response {
    let plural = resource.split('/').next().unwrap_or_default();
    let what = match name {
        Some(name) => format!("{plural} \"{name}\""),
        None => plural.to_owned(),
    };
    let place = match namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    let message = format!(
        "{what} is forbidden: User \"lab\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {place}"
    );
    failure(403, "Forbidden", &message)
}

/// 404 as the API words it.
pub(super) fn not_found(resource: &str, name: &str) -> Response {
    failure(404, "NotFound", &format!("{resource} \"{name}\" not found"))
}
