//! A request's path and query taken apart.

use std::collections::BTreeMap;

/// Path of a resource: `/api/v1/namespaces/NS/pods/NAME/exec` and the like.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Target {
    /// API group; empty for core.
    pub(super) group: String,
    /// Namespace, if the path has one.
    pub(super) namespace: Option<String>,
    /// Plural resource.
    pub(super) resource: String,
    /// Object name.
    pub(super) name: Option<String>,
    /// Subresource.
    pub(super) sub: Option<String>,
}

impl Target {
    /// `None`: the path is not of a resource.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, _version, rest @ ..] => (*group, rest),
            _ => return None,
        };
        let own = |text: &&str| (*text).to_owned();
        let (namespace, rest) = match rest {
            // The namespace object itself is no namespaced resource.
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => {
                (Some((*namespace).to_owned()), rest)
            }
            rest => (None, rest),
        };
        let resource = own(rest.first()?);
        Some(Self {
            group: group.to_owned(),
            namespace,
            resource,
            name: rest.get(1).map(own),
            sub: rest.get(2).map(own),
        })
    }

    /// Resource with its subresource, as RBAC names it.
    pub(super) fn full(&self) -> String {
        match &self.sub {
            Some(sub) => format!("{}/{sub}", self.resource),
            None => self.resource.clone(),
        }
    }
}

/// A query string's pairs; a key may stand there more than once.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            all.entry(decode(key)).or_default().push(decode(value));
        }
        Self(all)
    }

    pub(super) fn first(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)?
            .first()
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    pub(super) fn all(&self, key: &str) -> Vec<String> {
        self.0.get(key).cloned().unwrap_or_default()
    }

    pub(super) fn is_true(&self, key: &str) -> bool {
        matches!(self.first(key), Some("true" | "1"))
    }
}

/// Percent-decoding of a form value; what is no escape stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let escaped = after.split_first_chunk::<2>().and_then(|(digits, after)| {
            let digits = std::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 16).ok()?, after))
        });
        match (first, escaped) {
            (b'%', Some((byte, after))) => {
                bytes.push(byte);
                rest = after;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let exec = Target::parse("/api/v1/namespaces/shop/pods/web-0/exec").unwrap();
        assert_eq!(exec.full(), "pods/exec");
        assert_eq!(
            (exec.namespace.as_deref(), exec.name.as_deref()),
            (Some("shop"), Some("web-0"))
        );
        let namespace = Target::parse("/api/v1/namespaces/shop").unwrap();
        assert_eq!(
            (namespace.resource.as_str(), namespace.name.as_deref()),
            ("namespaces", Some("shop"))
        );
        let slices = Target::parse("/apis/discovery.k8s.io/v1/endpointslices").unwrap();
        assert_eq!(
            (slices.group.as_str(), slices.resource.as_str()),
            ("discovery.k8s.io", "endpointslices")
        );
        assert_eq!(Target::parse("/version"), None);
    }

    #[test]
    fn queries() {
        let query = Query::parse("command=a&command=b%20c&stdin=true&x=1+2&y=%zz&z");
        assert_eq!(query.all("command"), ["a", "b c"]);
        assert!(query.is_true("stdin"));
        assert_eq!(
            (query.first("x"), query.first("y"), query.first("z")),
            (Some("1 2"), Some("%zz"), None)
        );
    }
}
