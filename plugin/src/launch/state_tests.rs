use serde_json::{Value, json};

use super::*;

fn judged(status: &Value) -> State {
    let pod: Pod = serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "n"}, "status": status}),
    )
    .unwrap();
    judge(&pod, "worker-1", "img:1")
}

fn text(status: &Value) -> String {
    match judged(status) {
        State::Hopeless(error) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"phase": "Pending", "containerStatuses": [{"name": "helper", "image": "", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"waiting": {"reason": reason, "message": message}}}]})
}

#[test]
fn images_that_cannot_be_had() {
    for reason in ["ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"] {
        let text = text(&waiting(reason, "no such\nimage"));
        assert!(text.starts_with(&format!("node worker-1: cannot get the helper image \"img:1\": {reason}: no such image; use --image")), "{text}");
    }
}

#[test]
fn pods_that_cannot_start() {
    assert!(
        text(&waiting("CreateContainerConfigError", "secret missing"))
            .contains("CreateContainerConfigError: secret missing")
    );
    let text =
        text(&json!({"phase": "Failed", "reason": "OutOfpods", "message": "Node has no room"}));
    assert!(
        text.contains("OutOfpods: Node has no room; the node refused the pod"),
        "{text}"
    );
}

#[test]
fn a_wrong_image_is_recognised() {
    let text = text(
        &json!({"phase": "Failed", "containerStatuses": [{"name": "helper", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec: \"/netpath-helper\": stat: no such file"}}}]}),
    );
    assert!(
        text.contains("StartError") && text.contains("is a netpath helper image"),
        "{text}"
    );
}

#[test]
fn waiting_and_running() {
    assert!(
        matches!(judged(&waiting("ContainerCreating", "")), State::Waiting(t) if t == "Pending, ContainerCreating")
    );
    assert!(
        matches!(judged(&json!({"phase": "Pending"})), State::Waiting(t) if t.contains("kubelet"))
    );
    assert!(matches!(
        judged(
            &json!({"phase": "Running", "containerStatuses": [{"name": "helper", "image": "", "imageID": "", "ready": true,
        "restartCount": 0, "state": {"running": {}}}]})
        ),
        State::Running
    ));
}
