//! Objects with resource versions, and what happened to them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::request::{Query, Target};

/// A change, as a watch reports it.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// ADDED, MODIFIED or DELETED.
    pub(super) kind: &'static str,
    /// Plural resource.
    pub(super) resource: String,
    /// The object afterwards.
    pub(super) object: Value,
    /// Version that the change made.
    pub(super) version: u64,
}

type Key = (String, String, String);

#[derive(Default)]
struct Inner {
    /// By resource, namespace and name.
    objects: BTreeMap<Key, Value>,
    /// Keys of objects that requests created, rather than the laboratory.
    added: Vec<Key>,
    events: Vec<Event>,
    version: u64,
}

/// All objects.
pub(super) struct Store {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

/// The version that the laboratory's own objects begin with.
const FIRST_VERSION: u64 = 1000;

impl Store {
    pub(super) fn new(objects: Vec<Value>) -> Self {
        let (changed, _) = watch::channel(FIRST_VERSION);
        let store = Self {
            inner: Mutex::new(Inner {
                version: FIRST_VERSION,
                ..Inner::default()
            }),
            changed,
        };
        store.replace_base(objects);
        // What was there at the start is no event.
        store.lock().events.clear();
        store
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the laboratory's objects, as events where they differ.
    pub(super) fn replace_base(&self, objects: Vec<Value>) {
        let mut inner = self.lock();
        let mut gone: Vec<Key> = inner
            .objects
            .keys()
            .filter(|key| !inner.added.contains(key))
            .cloned()
            .collect();
        for object in objects {
            let Some(key) = key_of(&object) else { continue };
            gone.retain(|other| *other != key);
            let same = inner
                .objects
                .get(&key)
                .is_some_and(|old| equal_but_version(old, &object));
            if !same {
                inner.put(key, object);
            }
        }
        for key in gone {
            inner.remove(&key);
        }
        let version = inner.version;
        drop(inner);
        self.changed.send_replace(version);
    }

    /// Current version, which changes with every event.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn version(&self) -> u64 {
        self.lock().version
    }

    /// Adds or replaces an object that a request made; returns it with its new version.
    pub(super) fn put(&self, object: Value) -> Option<Value> {
        let key = key_of(&object)?;
        let mut inner = self.lock();
        if !inner.added.contains(&key) {
            inner.added.push(key.clone());
        }
        let stored = inner.put(key, object);
        let version = inner.version;
        drop(inner);
        self.changed.send_replace(version);
        Some(stored)
    }

    /// Changes an object if it is there.
    pub(super) fn change(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut inner = self.lock();
        let Some(mut object) = inner.objects.get(&key).cloned() else {
            return;
        };
        change(&mut object);
        inner.put(key, object);
        let version = inner.version;
        drop(inner);
        self.changed.send_replace(version);
    }

    pub(super) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.lock().objects.get(&key).cloned()
    }

    pub(super) fn remove(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut inner = self.lock();
        let removed = inner.remove(&key);
        let version = inner.version;
        drop(inner);
        self.changed.send_replace(version);
        removed
    }

    /// Objects of a target that the query selects, and the version at which this was so.
    pub(super) fn list(&self, target: &Target, query: &Query) -> (Vec<Value>, u64) {
        let inner = self.lock();
        let found = inner
            .objects
            .iter()
            .filter(|((resource, _, _), _)| *resource == target.resource)
            .filter(|(_, object)| selects(object, target, query))
            .map(|(_, object)| object.clone())
            .collect();
        (found, inner.version)
    }

    /// Events after a version.
    pub(super) fn events_after(&self, version: u64, resource: &str) -> Vec<Event> {
        let inner = self.lock();
        inner
            .events
            .iter()
            .filter(|event| event.version > version && event.resource == resource)
            .cloned()
            .collect()
    }

    /// `namespace/name` of the objects of a resource that requests created and that still exist.
    pub(super) fn added(&self, resource: &str) -> Vec<String> {
        let inner = self.lock();
        let mine = inner.added.iter().filter(|(kind, _, _)| kind == resource);
        mine.map(|(_, namespace, name)| format!("{namespace}/{name}"))
            .collect()
    }
}

impl Inner {
    fn put(&mut self, key: Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let kind = if self.objects.contains_key(&key) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.events.push(Event {
            kind,
            resource: key.0.clone(),
            object: object.clone(),
            version: self.version,
        });
        self.objects.insert(key, object.clone());
        object
    }

    fn remove(&mut self, key: &Key) -> Option<Value> {
        let mut object = self.objects.remove(key)?;
        self.added.retain(|other| other != key);
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.events.push(Event {
            kind: "DELETED",
            resource: key.0.clone(),
            object: object.clone(),
            version: self.version,
        });
        Some(object)
    }
}

fn equal_but_version(a: &Value, b: &Value) -> bool {
    let strip = |value: &Value| {
        let mut value = value.clone();
        value["metadata"]["resourceVersion"] = Value::Null;
        value
    };
    strip(a) == strip(b)
}

fn key_of(object: &Value) -> Option<Key> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let resource = super::discovery::plural_of(text("/kind")?)?;
    Some((
        resource.to_owned(),
        text("/metadata/namespace").unwrap_or_default().to_owned(),
        text("/metadata/name")?.to_owned(),
    ))
}

/// Whether namespace, label selector and field selector let an object through.
pub(super) fn selects(object: &Value, target: &Target, query: &Query) -> bool {
    let namespace = object
        .pointer("/metadata/namespace")
        .and_then(Value::as_str);
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    if target.namespace.is_some() && target.namespace.as_deref() != namespace {
        return false;
    }
    if target.name.is_some() && target.name.as_deref() != name {
        return false;
    }
    let label = |key: &str| {
        object
            .pointer("/metadata/labels")
            .and_then(|l| l.get(key)?.as_str())
    };
    let field = |key: &str| {
        let pointer = format!("/{}", key.replace('.', "/"));
        object.pointer(&pointer).and_then(Value::as_str)
    };
    requirements(query.first("labelSelector").unwrap_or_default())
        .iter()
        .all(|text| fits(text, &label))
        && requirements(query.first("fieldSelector").unwrap_or_default())
            .iter()
            .all(|text| fits(text, &|key: &str| Some(field(key).unwrap_or_default())))
}

/// Splits at commas outside of parentheses.
fn requirements(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut depth = 0_usize;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if c == ',' && depth == 0 {
            all.push(String::new());
        } else if let Some(last) = all.last_mut() {
            last.push(c);
        }
    }
    all.retain(|part| !part.trim().is_empty());
    all
}

fn fits<'a>(text: &str, value: &dyn Fn(&str) -> Option<&'a str>) -> bool {
    let text = text.trim();
    let among = |list: &str, value: Option<&str>| {
        let list = list.trim().trim_start_matches('(').trim_end_matches(')');
        value.is_some_and(|value| list.split(',').any(|one| one.trim() == value))
    };
    if let Some((key, list)) = text.split_once(" notin ") {
        return !among(list, value(key.trim()));
    }
    if let Some((key, list)) = text.split_once(" in ") {
        return among(list, value(key.trim()));
    }
    if let Some((key, wanted)) = text.split_once("!=") {
        return value(key.trim()) != Some(wanted.trim());
    }
    if let Some((key, wanted)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return value(key.trim()) == Some(wanted.trim());
    }
    match text.strip_prefix('!') {
        Some(key) => value(key.trim()).is_none(),
        None => value(text).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let object = json!({"kind": "Pod", "metadata": {"name": "a", "namespace": "n", "labels": {"app": "web"}}, "spec": {"nodeName": "w1"}});
        let target = Target {
            resource: "pods".to_owned(),
            ..Target::default()
        };
        let good = |query: &str| selects(&object, &target, &Query::parse(query));
        for yes in [
            "",
            "labelSelector=app=web",
            "labelSelector=app",
            "labelSelector=app in (web,api),!x",
            "labelSelector=x!=y",
            "fieldSelector=spec.nodeName=w1,metadata.name=a",
            "fieldSelector=status.phase!=Failed",
        ] {
            assert!(good(yes), "{yes}");
        }
        for no in [
            "labelSelector=app=api",
            "labelSelector=x",
            "labelSelector=app notin (web)",
            "fieldSelector=spec.nodeName=w2",
        ] {
            assert!(!good(no), "{no}");
        }
    }

    #[test]
    fn changes_are_events() {
        let pod = |name: &str| json!({"kind": "Pod", "metadata": {"name": name, "namespace": "n"}});
        let store = Store::new(vec![pod("a"), pod("b")]);
        let version = store.version();
        store.replace_base(vec![pod("b"), pod("c")]);
        store.put(pod("d"));
        let seen: Vec<_> = store
            .events_after(version, "pods")
            .iter()
            .map(|e| {
                (
                    e.kind,
                    e.object["metadata"]["name"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        let seen: Vec<_> = seen.iter().map(|(k, n)| (*k, n.as_str())).collect();
        assert_eq!(seen, [("ADDED", "c"), ("DELETED", "a"), ("ADDED", "d")]);
        assert_eq!(store.added("pods"), ["n/d"]);
        // What a request created outlives a change of the laboratory.
        store.replace_base(vec![]);
        assert!(store.get("pods", "n", "d").is_some());
    }
}
