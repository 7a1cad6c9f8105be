use super::*;
use crate::kube_flags::{parse_duration, parse_lasting, quoted};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    connection: ConnectionFlags,
}

fn flags(args: &[&str]) -> ConnectionFlags {
    <Cli as clap::Parser>::parse_from(std::iter::once("x").chain(args.iter().copied())).connection
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

const CONFIG: &str = r#"
apiVersion: v1
kind: Config
current-context: blue
clusters:
- name: blue
  cluster: {server: "http://127.0.0.1:1"}
contexts:
- name: blue
  context: {cluster: blue, user: anna, namespace: shop}
- name: broken
  context: {cluster: gone, user: anna}
users:
- name: anna
  user: {token: t}
"#;

#[test]
fn durations() {
    let ok = |text: &str| parse_duration(text).unwrap().as_millis();
    assert_eq!(
        (
            ok("0"),
            ok("5"),
            ok("5s"),
            ok("1m30s"),
            ok("250ms"),
            ok("2h")
        ),
        (0, 5000, 5000, 90_000, 250, 7_200_000)
    );
    for bad in ["", "s", "5x", "-1s", "99999999999h", "1.5s", "5s5", "é"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
        assert!(parse_lasting(bad).is_err(), "{bad}");
    }
    for bad in ["0", "0s", "25h", "1441m"] {
        assert!(parse_lasting(bad).is_err(), "{bad}");
    }
    assert_eq!(parse_lasting("24h").unwrap().as_secs(), 86_400);
}

#[tokio::test]
async fn context_namespace_and_overrides() {
    let file = file(CONFIG);
    let path = file.path().to_str().unwrap();
    let kube = flags(&["--kubeconfig", path]).connect().await.unwrap();
    assert_eq!(
        (
            kube.namespace.as_str(),
            kube.context.as_deref(),
            kube.user.as_str()
        ),
        ("shop", Some("blue"), "anna")
    );
    assert_eq!(kube.server, "http://127.0.0.1:1");
    let kube = flags(&[
        "--kubeconfig",
        path,
        "-n",
        "other",
        "--as",
        "eve",
        "-s",
        "http://127.0.0.1:2",
    ])
    .connect()
    .await
    .unwrap();
    assert_eq!(
        (
            kube.namespace.as_str(),
            kube.user.as_str(),
            kube.server.as_str()
        ),
        ("other", "eve", "http://127.0.0.1:2")
    );
    assert_eq!(
        kube.typed_flags.join(" "),
        format!("-n other --kubeconfig {path} --server http://127.0.0.1:2 --as eve")
    );
}

#[test]
fn values_survive_pasting() {
    assert_eq!(
        quoted("arn:aws:eks:eu-1:1:cluster/a"),
        "arn:aws:eks:eu-1:1:cluster/a"
    );
    assert_eq!(quoted("two words"), "'two words'");
    assert_eq!(quoted("it's"), "'it'\\''s'");
    assert_eq!(quoted(""), "''");
}

#[tokio::test]
async fn configuration_errors_name_file_and_choices() {
    let good = file(CONFIG);
    let path = good.path().to_str().unwrap();
    let why = |args: Vec<String>| async move {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        flags(&args).connect().await.unwrap_err().to_string()
    };
    let args = |more: &[&str]| {
        ["--kubeconfig", path]
            .iter()
            .chain(more)
            .map(|s| (*s).to_owned())
            .collect::<Vec<_>>()
    };
    let text = why(args(&["--context", "green"])).await;
    assert!(
        text.contains("context \"green\": not in") && text.contains("it has blue, broken"),
        "{text}"
    );
    let text = why(args(&["--context", "broken"])).await;
    assert!(
        text.contains("cluster \"gone\"") && text.contains("it has blue"),
        "{text}"
    );
    let text = why(args(&["--user", "bob"])).await;
    assert!(
        text.contains("user \"bob\"") && text.contains("it has anna"),
        "{text}"
    );
    let text = why(args(&["--client-certificate", "/nonexistent/c.pem"])).await;
    assert!(text.contains("context \"blue\""), "{text}");
    let text = why(vec!["--kubeconfig".to_owned(), "/nonexistent/k".to_owned()]).await;
    assert!(
        text.contains("read kubeconfig /nonexistent/k: No such file"),
        "{text}"
    );
    let bad = file("{ not yaml: [");
    let text = why(vec![
        "--kubeconfig".to_owned(),
        bad.path().to_str().unwrap().to_owned(),
    ])
    .await;
    assert!(text.contains("read kubeconfig"), "{text}");
    let empty = file("");
    let text = why(vec![
        "--kubeconfig".to_owned(),
        empty.path().to_str().unwrap().to_owned(),
    ])
    .await;
    assert!(text.contains("no cluster is configured"), "{text}");
    let text = why(args(&[
        "--insecure-skip-tls-verify",
        "--certificate-authority",
        "x",
    ]))
    .await;
    assert!(text.contains("exclude each other"), "{text}");
}

#[tokio::test]
async fn an_unreachable_server_is_named() {
    let file = file(CONFIG);
    let kube = flags(&["--kubeconfig", file.path().to_str().unwrap()])
        .connect()
        .await
        .unwrap();
    let doing = crate::kube_error::Doing::new("list", "pods", Some("shop"));
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(kube.client.clone(), "shop");
    let error = kube
        .ask(&doing, pods.list(&kube::api::ListParams::default()))
        .await
        .unwrap_err();
    assert_eq!(error.refusal, crate::kube_error::Refusal::Unreachable);
    let text = error.to_string();
    assert!(text.contains("list pods in namespace shop: cannot reach the API server http://127.0.0.1:1 of context \"blue\": Connection refused"), "{text}");
}

/// A kubeconfig whose user comes from a shell script, with where that writes.
#[cfg(unix)]
fn by_plugin(script: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "blue",
        "clusters": [{"name": "blue", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "blue", "context": {"cluster": "blue", "user": "anna"}}],
        "users": [{"name": "anna", "user": {"exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sh",
            "args": ["-c", script], "interactiveMode": "Never",
            "env": [{"name": "PLACE", "value": dir.path().join("seen")}],
        }}}],
    });
    std::fs::write(dir.path().join("config"), config.to_string()).unwrap();
    let path = dir.path().join("config").to_str().unwrap().to_owned();
    (dir, path)
}

#[cfg(unix)]
#[tokio::test]
async fn a_credential_plugin_is_asked_once() {
    let script = r#"echo "$KUBERNETES_EXEC_INFO" >>"$PLACE"; echo '{"status": {"token": "t"}}'"#;
    let (dir, path) = by_plugin(script);
    let kube = flags(&["--kubeconfig", &path]).connect().await.unwrap();
    assert!(kube.config.auth_info.token.is_some() && kube.config.auth_info.exec.is_none());
    let seen = std::fs::read_to_string(dir.path().join("seen")).unwrap();
    assert_eq!(seen.lines().count(), 1, "{seen}");
    assert!(seen.contains(r#""kind":"ExecCredential""#), "{seen}");
    // Who says who he is needs no plugin.
    let with_token = flags(&["--kubeconfig", &path, "--token", "mine"]);
    with_token.connect().await.unwrap();
    let seen = std::fs::read_to_string(dir.path().join("seen")).unwrap();
    assert_eq!(seen.lines().count(), 1, "{seen}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_credential_plugin_that_fails_is_told_without_its_secrets() {
    for (script, part) in [
        (
            "echo hidden; echo no ticket >&2; exit 3",
            "failed (exit status: 3): no ticket",
        ),
        ("echo hidden: [", "gave no ExecCredential"),
        (
            "echo '{\"status\": {\"clientCertificateData\": \"hidden\"}}'",
            "gave neither a token nor",
        ),
        (
            "exec sleep 100",
            "gave no answer within 300ms and was ended",
        ),
    ] {
        let (_dir, path) = by_plugin(script);
        let flags = flags(&["--kubeconfig", &path, "--request-timeout", "300ms"]);
        let text = flags.connect().await.unwrap_err().to_string();
        assert!(
            text.contains(
                "log in to http://127.0.0.1:1 by context \"blue\": credential plugin \"sh\""
            ) && text.contains(part)
                && text.contains("log in again"),
            "{text}"
        );
        assert!(!text.contains("hidden"), "{text}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn what_a_credential_plugin_started_ends_with_it() {
    // What is read ends with the last that could write it; one that outlives its parent says so.
    let script = r#"mkfifo "$PLACE"; (sleep 5; echo outlived) >"$PLACE"; echo"#;
    let (dir, path) = by_plugin(script);
    let seen = dir.path().join("seen");
    let ended = std::thread::spawn(move || {
        loop {
            match std::fs::read(&seen) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    std::thread::yield_now();
                }
                read => return read,
            }
        }
    });
    let flags = flags(&["--kubeconfig", &path, "--request-timeout", "2s"]);
    let text = flags.connect().await.unwrap_err().to_string();
    assert!(
        text.contains("gave no answer within 2s and was ended"),
        "{text}"
    );
    assert_eq!(ended.join().unwrap().unwrap(), b"");
}
