//! A helper in a node's namespaces, spoken to over pipes.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use netpath::contract::frame::{Decoder, encode};
use netpath::contract::{Reply, Request, SCHEMA_VERSION};
use netpath::model::want::{Fact, Want};

use crate::cluster::Place;

/// A running helper. Dropping it ends the helper.
#[derive(Debug)]
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    decoder: Decoder,
    next: u32,
}

impl Session {
    /// Starts the helper at `place` and says hello.
    pub fn start(place: &Place, program: &Path) -> Result<Self> {
        let mut child = place.enter(|| {
            Command::new(program)
                .arg("serve")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .with_context(|| format!("start {} in {}", program.display(), place.name))
        })?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("take the helper's output")?;
        let mut session = Self {
            child,
            stdin,
            stdout,
            decoder: Decoder::default(),
            next: 1,
        };
        session.send(&Request::Hello {
            schema: SCHEMA_VERSION,
        })?;
        match session.receive()? {
            Reply::Hello { schema, .. } if schema == SCHEMA_VERSION => Ok(session),
            other => bail!(
                "the helper in {} said {other:?} instead of hello",
                place.name
            ),
        }
    }

    /// Asks for facts.
    pub fn collect(&mut self, wants: Vec<Want>) -> Result<Vec<Fact>> {
        let id = self.next;
        self.next += 1;
        self.send(&Request::Collect { id, wants })?;
        let mut all = Vec::new();
        loop {
            match self.receive()? {
                Reply::Facts {
                    id: answered,
                    facts,
                    last,
                    ..
                } => {
                    ensure!(
                        answered == id,
                        "the helper answered request {answered}, not {id}"
                    );
                    all.extend(facts);
                    if last {
                        return Ok(all);
                    }
                }
                other => bail!("the helper answered {other:?}"),
            }
        }
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("the helper's input is closed")?;
        stdin
            .write_all(&encode(request)?)
            .context("write to the helper")?;
        stdin.flush().context("write to the helper")
    }

    fn receive(&mut self) -> Result<Reply> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            if let Some(reply) = self.decoder.message()? {
                return Ok(reply);
            }
            let read = self
                .stdout
                .read(&mut buffer)
                .context("read from the helper")?;
            ensure!(read > 0, "the helper ended");
            self.decoder.push(buffer.get(..read).unwrap_or_default());
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The helper ends when its input does.
        drop(self.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("wait for a helper: {error}");
        }
    }
}
