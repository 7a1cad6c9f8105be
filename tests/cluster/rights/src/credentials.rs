//! Who is asked as, and by which way.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, HELPERS, NAMESPACE, Running, Said, finish, text, until};
use crate::rbac::{self, PERSON};

/// What every way of asking is tried with.
const ASK: &str = "cleanup --dry-run";
const TRACE: &str = "trace client svc/web";

/// The administrator's kubeconfig as data.
fn config(cluster: &Cluster) -> Result<Value> {
    let text = cluster.kubectl("config view --raw -o json")?;
    serde_json::from_str(&text).context("read the kubeconfig")
}

/// A kubeconfig with another user, or otherwise changed.
fn changed(cluster: &Cluster, name: &str, change: impl FnOnce(&mut Value)) -> Result<PathBuf> {
    let mut config = config(cluster)?;
    change(&mut config);
    let path = cluster.file(&format!("{name}.kubeconfig"));
    std::fs::write(&path, config.to_string()).context("write a kubeconfig")?;
    Ok(path)
}

fn with_user(cluster: &Cluster, name: &str, user: &Value) -> Result<PathBuf> {
    changed(cluster, name, |config| {
        config["users"][0]["user"] = user.clone();
    })
}

/// Credentials that were good once.
pub fn expired(cluster: &Cluster) -> Result<()> {
    let state = text(&cluster.state);
    let dir = text(cluster.work.path());
    let made = Command::new("sh")
        .arg("-euc")
        .arg(format!(
            "cd {dir}; openssl req -new -key {state}/admin.key -subj /O=system:masters/CN=late -out late.csr
            touch index.txt; echo 0a >serial; openssl ca -batch -config /dev/stdin -cert {state}/ca.crt -keyfile {state}/ca.key \
            -startdate 20200101000000Z -enddate 20200102000000Z -in late.csr -out late.crt -notext -outdir . <<END
[ca]
default_ca = own
[own]
database = {dir}/index.txt
serial = {dir}/serial
default_md = sha256
policy = any
x509_extensions = client
[client]
extendedKeyUsage = clientAuth
[any]
commonName = supplied
organizationName = optional
END"
        ))
        .output()
        .context("start openssl")?;
    ensure!(
        made.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    let late = json!({"client-certificate": format!("{dir}/late.crt"), "client-key": format!("{state}/admin.key")});
    let late = with_user(cluster, "late", &late)?;
    let gone = rbac::kubeconfig(cluster, "gone")?;
    cluster.kubectl(&format!("delete serviceaccount gone -n {NAMESPACE}"))?;
    // The server keeps a good token in mind for some seconds.
    until("the token to be refused", Duration::from_secs(60), || {
        Ok(cluster.run_as(&gone, ASK)?.err.contains("not logged in"))
    })?;
    cluster.kubectl(&format!("create serviceaccount gone -n {NAMESPACE}"))?;
    for who in [late, gone] {
        for line in [TRACE, ASK, "map"] {
            let said = cluster
                .run_as(&who, line)?
                .exits(2)?
                .within(Duration::from_secs(10))?;
            said.once("not logged in to https://127.0.0.1:")?
                .complains(&["log in again, then check with kubectl auth whoami"])?;
        }
    }
    Ok(())
}

/// A kubeconfig whose user comes from a script.
fn by_plugin(cluster: &Cluster, name: &str, script: &str) -> Result<PathBuf> {
    let path = cluster.file(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).context("write a script")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
        .context("make it run")?;
    let user = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": text(&path),
        "args": ["get token"], "env": [{"name": "NETPATH_RIGHTS", "value": "yes"}], "interactiveMode": "IfAvailable",
        "provideClusterInfo": true, "installHint": "install it from the shop"}});
    with_user(cluster, name, &user)
}

/// Credential plugins that work, fail, hang, talk nonsense or are not there.
pub fn plugin(cluster: &Cluster) -> Result<()> {
    let token = cluster.kubectl(&format!("create token person -n {NAMESPACE}"))?;
    let answer = json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"token": token.trim()}});
    let runs = cluster.file("runs");
    let good = by_plugin(
        cluster,
        "good",
        &format!(
            "echo \"$1 $NETPATH_RIGHTS $KUBERNETES_EXEC_INFO\" >>{}; echo be patient >&2; echo '{answer}'",
            text(&runs)
        ),
    )?;
    cluster.run_as(&good, TRACE)?.exits(0)?.silent()?;
    let seen = std::fs::read_to_string(&runs).context("read what the plugin saw")?;
    ensure!(
        seen.lines().count() == 1,
        "it was run more than once: {seen}"
    );
    ensure!(
        seen.starts_with("get token yes {")
            && seen.contains("\"server\":\"https://127.0.0.1:")
            && seen.contains("\"interactive\":false"),
        "{seen}"
    );
    let user = &config(cluster)?["users"][0]["user"];
    let pem = |field: &str| -> Result<String> {
        let file = cluster.state.join(if field == "crt" {
            "admin.crt"
        } else {
            "admin.key"
        });
        std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))
    };
    ensure!(
        user["client-certificate-data"].is_string(),
        "the administrator has a certificate"
    );
    let pair = json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"clientCertificateData": pem("crt")?, "clientKeyData": pem("key")?}});
    let file = cluster.file("pair.json");
    std::fs::write(&file, pair.to_string()).context("write a credential")?;
    let certificate = by_plugin(cluster, "certificate", &format!("cat {}", text(&file)))?;
    cluster.run_as(&certificate, TRACE)?.exits(0)?.silent()?;

    let secret = "do-not-show";
    let failing = by_plugin(
        cluster,
        "failing",
        &format!("echo {secret}; echo no ticket >&2; exit 3"),
    )?;
    let nonsense = by_plugin(cluster, "nonsense", &format!("echo '{{{secret}'"))?;
    let nothing = by_plugin(
        cluster,
        "nothing",
        "echo '{\"kind\": \"ExecCredential\", \"status\": {}}'",
    )?;
    let pid = cluster.file("pid");
    let hanging = by_plugin(
        cluster,
        "hanging",
        &format!("echo $$ >{}; exec sleep 600", text(&pid)),
    )?;
    let missing = with_user(
        cluster,
        "missing",
        &json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "netpath-no-such-plugin",
            "interactiveMode": "Never", "installHint": "install it from the shop"}}),
    )?;
    for (who, parts) in [
        (
            &failing,
            ["failed (exit status: 3): no ticket", "log in again"],
        ),
        (&nonsense, ["gave no ExecCredential", "log in again"]),
        (
            &nothing,
            ["gave neither a token nor a certificate", "log in again"],
        ),
        (
            &missing,
            ["netpath-no-such-plugin", "(install it from the shop)"],
        ),
        (
            &hanging,
            ["gave no answer within 2s and was ended", "log in again"],
        ),
    ] {
        let said = cluster.run_as(who, &format!("{ASK} --request-timeout 2s"))?;
        let said = said
            .exits(2)?
            .complains(&parts)?
            .once("credential plugin")?;
        ensure!(
            !said.err.contains(secret),
            "a secret is shown: {}",
            said.err
        );
        said.within(Duration::from_secs(10))?;
    }
    let pid = std::fs::read_to_string(&pid).context("read the plugin's pid")?;
    until("the hanging plugin to end", Duration::from_secs(5), || {
        Ok(!Path::new(&format!("/proc/{}/exe", pid.trim())).exists())
    })
}

/// kubectl's flags for being another user.
pub fn impersonated(cluster: &Cluster) -> Result<()> {
    let said = cluster.run(&format!("{TRACE} --as {PERSON}"))?;
    said.exits(0)?.silent()?;
    let said = cluster.run(&format!("{TRACE} --as nobody"))?.exits(2)?;
    said.complains(&["User \"nobody\" cannot list resource \"pods\""])?;
    let line = format!(
        "{TRACE} --as nobody --as-group system:masters --as-uid 7 --as-user-extra reason=test"
    );
    cluster.run(&line)?.exits(0)?.silent()?;
    // Who may not be another one is told so.
    let person = rbac::kubeconfig(cluster, "person")?;
    let said = cluster
        .run_as(&person, &format!("{ASK} --as nobody"))?
        .exits(2)?;
    said.complains(&["\"impersonate users\"", "can-i impersonate users", PERSON])?;
    // Helpers of another user are another's: each finds his own.
    cluster
        .run(&format!("{TRACE} --as {PERSON} --keep 1m"))?
        .exits(0)?;
    cluster
        .run("cleanup")?
        .exits(0)?
        .says(&["no helper pods of yours"])?;
    cluster
        .run(&format!("cleanup --as {PERSON}"))?
        .exits(0)?
        .says(&["removed helper pod"])
        .map(drop)
}

/// A proxy that passes on what CONNECT asks for, and counts.
fn start_proxy() -> Result<(SocketAddr, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let address = listener.local_addr().context("read the address")?;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    // It ends with this program.
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || {
                // A connection that goes wrong is its client's trouble.
                let _ = pass_on(near, &counted);
            });
        }
    });
    Ok((address, count))
}

fn pass_on(mut near: TcpStream, counted: &AtomicUsize) -> Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        near.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let mut words = head.split(' ');
    ensure!(words.next() == Some("CONNECT"), "{head}");
    let mut far = TcpStream::connect(words.next().context("an address")?)?;
    counted.fetch_add(1, Ordering::SeqCst);
    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (mut near_in, mut far_out) = (near.try_clone()?, far.try_clone()?);
    let back = std::thread::spawn(move || {
        let _ = std::io::copy(&mut far, &mut near);
        near.shutdown(Shutdown::Write)
    });
    let _ = std::io::copy(&mut near_in, &mut far_out);
    let _ = far_out.shutdown(Shutdown::Write);
    let _ = back.join();
    Ok(())
}

/// By a proxy of the environment or of the kubeconfig.
pub fn proxy(cluster: &Cluster) -> Result<()> {
    let (address, count) = start_proxy()?;
    let url = format!("http://{address}");
    let in_file = changed(cluster, "proxied", |config| {
        config["clusters"][0]["cluster"]["proxy-url"] = json!(url);
    })?;
    cluster.run_as(&in_file, TRACE)?.exits(0)?.silent()?;
    let used = count.load(Ordering::SeqCst);
    ensure!(used > 0, "nothing went by the proxy of the kubeconfig");
    let by_environment = |name: &str, value: &str, no: &str| -> Result<Said> {
        let mut command = cluster.plugin(&cluster.admin(), TRACE);
        command.env(name, value).env("NO_PROXY", no);
        finish(Running::start(command)?)
    };
    by_environment("HTTPS_PROXY", &url, "")?
        .exits(0)?
        .silent()?;
    let more = count.load(Ordering::SeqCst);
    ensure!(more > used, "nothing went by HTTPS_PROXY");
    by_environment("HTTPS_PROXY", &url, "127.0.0.1")?
        .exits(0)?
        .silent()?;
    ensure!(
        count.load(Ordering::SeqCst) == more,
        "NO_PROXY was passed over"
    );
    // One that is not there is named, its password not.
    let said = by_environment("HTTPS_PROXY", "http://anna:secret@127.0.0.1:1", "")?.exits(2)?;
    let said = said.complains(&["by the proxy 127.0.0.1:1: "])?;
    ensure!(!said.err.contains("secret"), "{}", said.err);
    Ok(())
}

/// The other flags that kubectl has for connections.
pub fn flags(cluster: &Cluster) -> Result<()> {
    let config = config(cluster)?;
    let server = config["clusters"][0]["cluster"]["server"]
        .as_str()
        .context("a server")?
        .to_owned();
    let token = cluster.kubectl(&format!("create token person -n {NAMESPACE}"))?;
    let token = token.trim();
    let state = text(&cluster.state);
    let empty = cluster.file("empty.kubeconfig");
    std::fs::write(&empty, "apiVersion: v1\nkind: Config\n").context("write a kubeconfig")?;
    let two = changed(cluster, "two", |config| {
        config["current-context"] = json!("elsewhere");
        let away = json!({"name": "away", "cluster": {"server": "https://127.0.0.1:1"}});
        let none = json!({"name": "none", "user": {}});
        let context = json!({"name": "elsewhere", "context": {"cluster": "away", "user": "none"}});
        for (list, more) in [("clusters", away), ("users", none), ("contexts", context)] {
            if let Some(list) = config[list].as_array_mut() {
                list.push(more);
            }
        }
    })?;
    let file = |line: &str| format!("{ASK} --helper-namespace {HELPERS} {line}");
    let good = [
        (
            &empty,
            format!("--server {server} --token {token} --certificate-authority {state}/ca.crt"),
        ),
        (
            &empty,
            format!("--server {server} --token {token} --insecure-skip-tls-verify"),
        ),
        (
            &empty,
            format!(
                "--server {server} --token {token} --certificate-authority {state}/ca.crt --tls-server-name kubernetes.default.svc"
            ),
        ),
        (
            &empty,
            format!(
                "--server {server} --client-certificate {state}/admin.crt --client-key {state}/admin.key --certificate-authority {state}/ca.crt"
            ),
        ),
        (&two, "--context cluster".to_owned()),
        (&two, "--cluster cluster --user admin".to_owned()),
        (&two, "--context cluster --request-timeout 20s".to_owned()),
    ];
    for (who, line) in good {
        cluster
            .run_as(who, &file(&line))?
            .exits(0)
            .with_context(|| line.clone())?;
    }
    let bad = [
        (
            &empty,
            format!("--server {server} --token {token}"),
            "certificate",
        ),
        (
            &empty,
            format!(
                "--server {server} --token {token} --certificate-authority {state}/ca.crt --tls-server-name elsewhere"
            ),
            "elsewhere",
        ),
        (
            &empty,
            format!("--server {server} --token nonsense --certificate-authority {state}/ca.crt"),
            "not logged in",
        ),
        (
            &two,
            String::new(),
            "cannot reach the API server https://127.0.0.1:1",
        ),
        (
            &two,
            "--context cluster --user none".to_owned(),
            "system:anonymous",
        ),
        (
            &two,
            "--context nowhere".to_owned(),
            "it has cluster, elsewhere",
        ),
        (
            &two,
            "--context cluster --request-timeout 1ms".to_owned(),
            "within 1ms",
        ),
    ];
    for (who, line, part) in bad {
        let said = cluster.run_as(who, &file(&line))?;
        let said = said.exits(2).and_then(|said| said.complains(&[part]));
        said.with_context(|| line.clone())?
            .within(Duration::from_secs(15))?;
    }
    Ok(())
}
