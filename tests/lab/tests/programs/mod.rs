//! The product's programs run as their users run them, and what to run them on.
#![allow(dead_code, reason = "each test takes what it needs")]

pub mod capturing;
pub mod talk;
pub mod tc;

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netpath_lab::api::{Options, Server};
use netpath_lab::namespace::Namespaces;
use netpath_lab::{Cluster, Outcome, Spec, command, exchange};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Longer than the three seconds after which the kernel tells that nobody answers its ARP requests.
const WAIT: Duration = Duration::from_millis(3800);

/// A name that no other test and no other run uses.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{}-{next}", std::process::id())
}

/// A program of the workspace, found beside this test. A missing one is a failure of the test.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this program has a path");
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "find program {name} near {}: build the programs first with `cargo build -p kubectl-netpath -p netpath-lab && cargo build -p netpath --bin netpath-helper --features capture`",
            own.display()
        )
    })
}

/// Fails, rather than skips, where the kernel can't be asked.
pub fn needs_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests make network namespaces: run them as root"
    );
}

/// What a run of the plugin said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("output is text"),
            err: String::from_utf8(output.stderr).expect("errors are text"),
        }
    }

    /// The answer as data.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("read the answer as JSON: {error}\n{self:?}"))
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "\nstdout: {}\nstderr: {}",
            self.out,
            self.err
        );
        // A panic of the product is never an answer.
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    /// Asserts that all of these are in the output.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.out.contains(part), "{part:?} is not in\n{}", self.out);
        }
        self
    }

    /// Asserts that all of these are among the errors.
    #[track_caller]
    pub fn complains(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.err.contains(part), "{part:?} is not in\n{}", self.err);
        }
        self
    }
}

/// The plugin, without what the environment of this test may hold.
pub fn plugin() -> Command {
    let mut command = Command::new(program("kubectl-netpath"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        // As in a small container, which has no certificates of its own.
        .env("SSL_CERT_FILE", "/nonexistent")
        .env("NETPATH_HELPER", program("netpath-helper"))
        .stdin(Stdio::null());
    command
}

/// Runs the plugin with these words, where there is nothing to look at.
pub fn run<S: Into<OsString> + Clone>(words: &[S]) -> Said {
    let output = plugin()
        .args(words.iter().cloned().map(Into::into))
        .output();
    Said::of(output.expect("the plugin starts"))
}

/// Splits a command line at its blanks.
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Waits until a condition holds; `what` names it where it never does.
#[track_caller]
pub fn until(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < deadline, "waited {within:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(3));
    }
}

/// A machine of its own: pid, mount and network namespaces in which nothing but the test lives, so
/// that `--local` sees nothing else. It ends with this value, or with the test.
#[derive(Debug)]
pub struct Machine {
    outer: Child,
    /// Its process 1, as this process counts.
    init: i32,
    spaces: Namespaces,
}

impl Machine {
    pub fn up() -> Arc<Self> {
        needs_root();
        let script = "mkdir -p /run/netns && mount -t tmpfs none /run/netns && echo up && exec cat";
        let mut outer = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--net",
                "--uts",
                "--fork",
                "--kill-child",
            ])
            .args(["--mount-proc", "sh", "-c", script])
            // It ends when the test does, whatever way that ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut line = String::new();
        let stdout = outer.stdout.take().expect("its output is piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("it speaks");
        assert_eq!(line, "up\n");
        let pid = outer.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let init = children
            .expect("it has a child")
            .trim()
            .parse()
            .expect("a process id");
        let machine = Self {
            outer,
            init,
            spaces: Namespaces::of_node(init).expect("its namespaces open"),
        };
        Arc::new(machine)
    }

    /// Runs the plugin there.
    pub fn plugin<S: Into<OsString> + Clone>(&self, words: &[S]) -> Said {
        let mut command = plugin();
        command.args(words.iter().cloned().map(Into::into));
        self.output(command)
    }

    /// Runs a program there to its end.
    pub fn output(&self, mut command: Command) -> Said {
        let output = self.spaces.run(|| Ok(command.output()?));
        Said::of(output.unwrap_or_else(|error| panic!("{command:?}: {error:#}")))
    }

    /// Starts a program there.
    pub fn spawn(&self, mut command: Command) -> Running {
        let child = self.spaces.run(|| Ok(command.spawn()?));
        Running(child.unwrap_or_else(|error| panic!("{command:?}: {error:#}")))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.outer.stdin.take());
        // `unshare` takes its child with it.
        let _ = self.outer.wait();
    }
}

/// A namespace made with `ip netns add`; removed when dropped.
#[derive(Debug)]
pub struct Netns {
    pub name: String,
    pub machine: Arc<Machine>,
}

impl Netns {
    pub fn add(machine: &Arc<Machine>, name: &str) -> Self {
        let done = machine
            .spaces
            .run(|| command::run(&["ip", "netns", "add", name]));
        done.expect("a namespace is made");
        let ns = Self {
            name: name.to_owned(),
            machine: Arc::clone(machine),
        };
        ns.ip("link set lo up");
        ns
    }

    /// How the plugin names it.
    pub fn end(&self) -> String {
        format!("netns/{}", self.name)
    }

    pub fn enter(&self) -> Namespaces {
        let path = format!("/proc/{}/root/run/netns/{}", self.machine.init, self.name);
        Namespaces::net_at(Path::new(&path)).expect("the namespace opens")
    }

    /// Runs `ip` inside.
    #[track_caller]
    pub fn ip(&self, line: &str) -> String {
        self.tool(&format!("ip {line}"))
    }

    /// Runs a program inside.
    #[track_caller]
    pub fn tool(&self, line: &str) -> String {
        let mut argv = words(&format!("ip netns exec {}", self.name));
        argv.extend(words(line));
        let done = self.machine.spaces.run(|| command::run(&argv));
        done.unwrap_or_else(|error| panic!("{line}: {error:#}"))
    }

    pub fn tcp(&self, to: &str) -> Outcome {
        let to: SocketAddr = to.parse().expect("an address");
        let wait = WAIT;
        let done = self.enter().run(|| exchange::tcp(to, wait));
        done.expect("an exchange can be tried")
    }

    pub fn udp(&self, to: &str) -> Outcome {
        let to: SocketAddr = to.parse().expect("an address");
        let wait = WAIT;
        let done = self.enter().run(|| exchange::udp(to, wait));
        done.expect("an exchange can be tried")
    }

    /// Starts the laboratory's listener inside.
    pub fn listen(&self, arguments: &str) -> Running {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(program("netpath-lab"))
            .args(["serve", "--name", &self.name])
            .args(arguments.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut running = self.machine.spawn(command);
        let mut line = String::new();
        let stdout = running.0.stdout.take().expect("its output is piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the listener speaks");
        assert_eq!(line, "ready\n");
        running
    }
}

/// Namespaces on a bridge, 10.0.1.2 and so on; last the one that the bridge is in.
pub fn bridged<const N: usize>() -> ([Netns; N], Netns) {
    let machine = Machine::up();
    let bridge = Netns::add(&machine, "middle");
    bridge.ip("link add br0 type bridge");
    bridge.ip("link set br0 up");
    let hosts = std::array::from_fn(|n| {
        let host = Netns::add(&machine, &format!("host{n}"));
        bridge.ip(&format!(
            "link add port{n} type veth peer name eth0 netns {}",
            host.name
        ));
        bridge.ip(&format!("link set port{n} up master br0"));
        host.ip(&format!("addr add 10.0.1.{}/24 dev eth0", n + 2));
        host.ip("link set eth0 up");
        host
    });
    (hosts, bridge)
}

impl Drop for Netns {
    fn drop(&mut self) {
        let spaces = &self.machine.spaces;
        if let Err(error) = spaces.run(|| command::run(&["ip", "netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

/// A process that ends with this value.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Its process id inside its machine.
    pub fn inner_pid(&self) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()));
        let status = status.expect("it runs");
        let line = status.lines().find(|line| line.starts_with("NSpid:"));
        let last = line.and_then(|line| line.split_whitespace().last());
        last.expect("it has a number in each namespace").to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A laboratory with its API server.
pub struct Lab {
    pub cluster: Cluster,
    pub dir: TempDir,
    server: Option<Server>,
    runtime: Runtime,
}

impl Lab {
    pub fn up(spec: Spec) -> Self {
        Self::with(spec, Options::default())
    }

    pub fn with(spec: Spec, options: Options) -> Self {
        needs_root();
        let cluster = Cluster::up(spec.named(&unique("e"))).expect("a laboratory");
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = Runtime::new().expect("a runtime");
        let options = Options {
            helper: if options.helper.as_os_str().is_empty() {
                program("netpath-helper")
            } else {
                options.helper
            },
            kubeconfig: Some(dir.path().join("kubeconfig")),
            ..options
        };
        let state = netpath_lab::state::ClusterState::path(&cluster.state.name);
        let server = runtime
            .block_on(Server::start(&state, &options))
            .expect("an API server");
        Self {
            cluster,
            dir,
            server: Some(server),
            runtime,
        }
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs until the drop")
    }

    /// The plugin with this cluster's kubeconfig.
    pub fn plugin(&self) -> Command {
        let mut command = plugin();
        command.env("KUBECONFIG", self.dir.path().join("kubeconfig"));
        command
    }

    /// Runs the plugin with these words.
    pub fn run(&self, line: &str) -> Said {
        let output = self.plugin().args(words(line)).output();
        Said::of(output.expect("the plugin starts"))
    }

    /// A file of this test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Processes of the product that run in the nodes.
    pub fn helpers(&self) -> Vec<String> {
        let nodes = &self.cluster.state.nodes;
        let inside = nodes.iter().flat_map(|node| {
            netpath_lab::process::ids_in_namespace_of(node.holder_pid)
                .expect("the node's processes can be listed")
                .into_values()
        });
        inside
            .filter_map(|pid| {
                let text = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let text = String::from_utf8_lossy(&text).replace('\0', " ");
                // A zombie has no command line; its parent takes it away at its own time.
                text.contains("netpath-helper")
                    .then(|| format!("{pid} {text}"))
            })
            .collect()
    }

    /// Asserts that neither a helper pod nor a helper process is left.
    #[track_caller]
    pub fn is_clean(&self) {
        assert_eq!(self.server().helper_pods(), Vec::<String>::new());
        until("the end of the helpers", Duration::from_secs(5), || {
            self.helpers().is_empty() && self.server().processes().is_empty()
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(server) = self.server.take()
            && let Err(error) = self.runtime.block_on(server.stop())
        {
            eprintln!("stop the API server: {error:#}");
        }
    }
}

/// An answer without what differs from run to run: costs, counters and ages.
/// Counters and neighbour states go on while the programs are compared; texts of evidence name them.
const CHANGING: [&str; 7] = [
    "stats", "counters", "Counter", "timeout", "state", "lines", "text",
];

pub fn steady(answer: Value) -> Value {
    match answer {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(name, _)| !CHANGING.contains(&&**name))
            .map(|(name, value)| (name, steady(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(steady).collect(),
        Value::String(line) => match line.split_once(", counted ") {
            Some((rule, _)) => Value::String(rule.to_owned()),
            None => Value::String(line),
        },
        other => other,
    }
}

/// A file that any user can read, for programs that run as nobody.
pub fn readable_by_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let rights = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(path, rights).expect("rights can be set");
    File::open(path).expect("the file opens");
}
