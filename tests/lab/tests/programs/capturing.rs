//! Captures as users run them, and what is in their files.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Machine, Running, Said, plugin, words};

/// A capture that goes on.
pub struct Capturing {
    pub running: Running,
    /// What it said until it captured.
    pub head: String,
    err: BufReader<std::process::ChildStderr>,
}

impl Capturing {
    /// Starts and waits until all devices are open.
    pub fn start(mut command: Command, spawn: impl FnOnce(Command) -> Running) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = spawn(command);
        let mut err = BufReader::new(running.0.stderr.take().expect("its errors are piped"));
        let mut head = String::new();
        while !head.contains("capturing ") {
            let read = err.read_line(&mut head).expect("it speaks");
            assert_ne!(read, 0, "it ended before it captured: {head}");
        }
        Self { running, head, err }
    }

    pub fn on(machine: &Arc<Machine>, line: &str) -> Self {
        let mut command = plugin();
        command.args(words(line));
        Self::start(command, |command| machine.spawn(command))
    }

    /// The next that it says beside its answer.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.err.read_line(&mut line).expect("it speaks");
        assert_ne!(read, 0, "it ended");
        line
    }

    /// Ctrl-C.
    pub fn interrupt(self) -> Said {
        let pid = i32::try_from(self.running.0.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGINT).expect("it runs");
        self.end()
    }

    /// Waits until it ends by itself.
    pub fn end(mut self) -> Said {
        let mut out = String::new();
        let mut err = String::new();
        let mut stdout = self.running.0.stdout.take().expect("its output is piped");
        std::io::Read::read_to_string(&mut stdout, &mut out).expect("text");
        std::io::Read::read_to_string(&mut self.err, &mut err).expect("text");
        let status = self.running.0.wait().expect("it ends");
        Said {
            code: status.code(),
            out,
            err,
        }
    }
}

/// What tshark says of a file, field by field; any complaint of it is a failure.
pub fn tshark(file: &Path, arguments: &str, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(words(arguments));
    command.args(["-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark runs: apt install tshark");
    let said = Said::of(output);
    let complaints: Vec<&str> = said
        .err
        .lines()
        .filter(|line| !line.contains("Running as user"))
        .collect();
    assert_eq!((said.code, complaints), (Some(0), Vec::new()));
    said.out.lines().map(str::to_owned).collect()
}
