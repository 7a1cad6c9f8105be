//! Just enough protobuf to read the access review that `kubectl auth can-i` sends; the answer is JSON.
//!
//! Source: k8s.io/apimachinery/pkg/runtime/generated.proto (`Unknown`) and
//! k8s.io/api/authorization/v1/generated.proto (Kubernetes 1.33).

use serde_json::{Value, json};

const MAGIC: &[u8] = b"k8s\0";

/// Reads a `SelfSubjectAccessReview` into the JSON that would say the same. `None`: it is not one.
pub(super) fn access_review(body: &[u8]) -> Option<Value> {
    let unknown = body.strip_prefix(MAGIC)?;
    let review = field(unknown, 2)?;
    let spec = field(review, 2)?;
    let attributes = field(spec, 1).unwrap_or_default();
    let text = |number| {
        let bytes = field(attributes, number).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    Some(json!({
        "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
        "spec": {"resourceAttributes": {
            "namespace": text(1), "verb": text(2), "group": text(3), "version": text(4),
            "resource": text(5), "subresource": text(6), "name": text(7),
        }},
    }))
}

/// The first length-delimited field of that number.
fn field(mut message: &[u8], number: u64) -> Option<&[u8]> {
    while !message.is_empty() {
        let (tag, rest) = varint(message)?;
        message = match tag & 7 {
            0 => varint(rest)?.1,
            1 => rest.get(8..)?,
            2 => {
                let (length, rest) = varint(rest)?;
                let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                if tag >> 3 == number {
                    return Some(value);
                }
                rest
            }
            5 => rest.get(4..)?,
            _ => return None,
        };
    }
    None
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index).min(63);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    None
}
