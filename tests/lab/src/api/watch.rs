//! Watches: what there is, then what happens, as one JSON object to a line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::App;
use super::discovery;
use super::misbehave::Misbehave;
use super::request::{Query, Target};
use super::store::selects;

/// How long a watch lasts when the client does not say.
const DEFAULT_SECONDS: u64 = 300;

struct Watch {
    app: Arc<App>,
    target: Target,
    query: Query,
    changed: watch::Receiver<u64>,
    version: u64,
    waiting: VecDeque<Value>,
    left: Option<u32>,
    until: Instant,
}

/// Starts a watch.
pub(super) fn answer(app: Arc<App>, now: &Misbehave, target: Target, query: Query) -> Response {
    let changed = app.store.subscribe();
    let given: Option<u64> = query
        .first("resourceVersion")
        .and_then(|text| text.parse().ok());
    let initial = query.is_true("sendInitialEvents");
    let mut waiting = VecDeque::new();
    let version = match given {
        Some(version) if version > 0 && !initial => version,
        _ => {
            let (objects, version) = app.store.list(&target, &query);
            waiting.extend(objects.into_iter().map(|object| event("ADDED", &object)));
            if initial && query.is_true("allowWatchBookmarks") {
                waiting.push_back(bookmark(&target, version));
            }
            version
        }
    };
    let seconds = query
        .first("timeoutSeconds")
        .and_then(|text| text.parse().ok())
        .unwrap_or(DEFAULT_SECONDS);
    let state = Watch {
        app,
        target,
        query,
        changed,
        version,
        waiting,
        left: now.watch_ends_after,
        until: Instant::now() + Duration::from_secs(seconds),
    };
    let stream = futures::stream::unfold(state, async |mut state| {
        let line = state.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(line), state))
    });
    (
        [("content-type", "application/json")],
        Body::from_stream(stream),
    )
        .into_response()
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

fn bookmark(target: &Target, version: u64) -> Value {
    let (kind, api_version) = discovery::kind_of(&target.resource).unwrap_or_default();
    let object = json!({
        "kind": kind, "apiVersion": api_version,
        "metadata": {
            "resourceVersion": version.to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"},
        },
    });
    event("BOOKMARK", &object)
}

impl Watch {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                match &mut self.left {
                    Some(0) => return None,
                    Some(left) => *left -= 1,
                    None => {}
                }
                return Some(Bytes::from(format!("{event}\n")));
            }
            if self.left == Some(0) {
                return None;
            }
            // Seen before looking: what comes between the two is then noticed below.
            self.changed.mark_unchanged();
            let events = self
                .app
                .store
                .events_after(self.version, &self.target.resource);
            if let Some(last) = events.last() {
                self.version = last.version;
                let mine = events
                    .iter()
                    .filter(|event| selects(&event.object, &self.target, &self.query))
                    .map(|e| event(e.kind, &e.object));
                self.waiting.extend(mine);
                continue;
            }
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.until) => return None,
            }
        }
    }
}
