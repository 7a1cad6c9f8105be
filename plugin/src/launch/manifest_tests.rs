use super::*;

fn identity() -> Identity<'static> {
    Identity {
        name: "netpath-0a1b2c3d4e-0",
        namespace: "shop",
        node: "worker-1",
        run: "0a1b2c3d4e",
        user: "system:admin",
        user_hash: "00112233aabbccdd",
        expires: None,
    }
}

#[test]
fn is_a_pod_that_the_client_library_understands() {
    let made = manifest(&HelperFlags::default(), &identity());
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(made.clone()).unwrap();
    // Every field survives: none is misspelt.
    let back = serde_json::to_value(&pod).unwrap();
    for pointer in ["/spec", "/metadata/labels", "/metadata/annotations"] {
        let mut made = made.pointer(pointer).unwrap().clone();
        let mut back = back.pointer(pointer).unwrap().clone();
        for value in [&mut made, &mut back] {
            if let Some(spec) = value.as_object_mut() {
                spec.retain(|_, v| !v.as_array().is_some_and(Vec::is_empty));
            }
        }
        assert_eq!(made, back, "{pointer}");
    }
}

#[test]
fn least_capabilities_unless_privileged() {
    let mut flags = HelperFlags::default();
    let made = manifest(&flags, &identity());
    let context = made.pointer("/spec/containers/0/securityContext").unwrap();
    assert_eq!(context["privileged"], false);
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    flags.privileged = true;
    let made = manifest(&flags, &identity());
    let context = made.pointer("/spec/containers/0/securityContext").unwrap();
    assert_eq!(context["privileged"], true);
    assert!(context.get("capabilities").is_none());
}

#[test]
fn label_values_fit() {
    let flags = HelperFlags {
        keep: Some(Duration::from_mins(10)),
        ..HelperFlags::default()
    };
    let made = manifest(
        &flags,
        &Identity {
            expires: Some(1_800_000_000),
            ..identity()
        },
    );
    for (key, value) in made["metadata"]["labels"].as_object().unwrap() {
        let value = value.as_str().unwrap();
        assert!(
            value.len() <= 63
                && value
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
            "{key}={value}"
        );
    }
    assert_eq!(made["spec"]["activeDeadlineSeconds"], 1500);
    let command = &made["spec"]["containers"][0]["command"];
    assert_eq!(*command, json!(["/netpath-helper", "idle", "600", "1500"]));
}

#[test]
fn helpers_are_interchangeable_only_with_the_same_setup() {
    let flags = HelperFlags::default();
    let other = HelperFlags {
        image: "x".to_owned(),
        ..flags.clone()
    };
    let privileged = HelperFlags {
        privileged: true,
        ..flags.clone()
    };
    assert_ne!(setup_hash(&flags), setup_hash(&other));
    assert_ne!(setup_hash(&flags), setup_hash(&privileged));
    assert_eq!(setup_hash(&flags).len(), 16);
}
