//! The helper's conversation, held by a test.

use std::process::{Command, Stdio};
use std::sync::Arc;

use netpath::contract::frame::{Decoder, encode};
use netpath::contract::{Reply, Request, SCHEMA_VERSION};
use netpath::model::NetNsId;
use netpath::model::want::{Depth, Fact, NsTarget, Want};

use super::{Machine, Netns, Running, program};

/// The helper in a machine of the test's own, asked without the plugin.
pub struct Talk {
    pub running: Running,
    decoder: Decoder,
}

impl Talk {
    pub fn start(machine: &Arc<Machine>) -> Self {
        Self::by(machine, Command::new(program("netpath-helper")))
    }

    /// With a command to which `serve` is still to be said.
    pub fn by(machine: &Arc<Machine>, mut command: Command) -> Self {
        command.arg("serve");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut talk = Self {
            running: machine.spawn(command),
            decoder: Decoder::default(),
        };
        let schema = SCHEMA_VERSION;
        let hello = talk.ask(&Request::Hello { schema });
        assert!(matches!(hello, Reply::Hello { .. }), "{hello:?}");
        talk
    }

    /// A named namespace.
    pub fn find(&mut self, ns: &Netns) -> NetNsId {
        self.target(NsTarget::Named(ns.name.clone()))
    }

    /// The machine's own.
    pub fn host(&mut self) -> NetNsId {
        self.target(NsTarget::Host)
    }

    fn target(&mut self, target: NsTarget) -> NetNsId {
        let want = Want::NetNs {
            target,
            depth: Depth::Identity,
        };
        let wants = vec![want];
        let Reply::Facts { facts, .. } = self.ask(&Request::Collect { id: 1, wants }) else {
            panic!("no facts");
        };
        let [Fact::NetNs(found)] = facts.as_slice() else {
            panic!("{facts:?}");
        };
        found.identity.id
    }

    pub fn ask(&mut self, request: &Request) -> Reply {
        self.send(request);
        self.next()
    }

    pub fn send(&mut self, request: &Request) {
        let input = self.running.0.stdin.as_mut().expect("its input");
        let frame = encode(request).expect("a frame");
        std::io::Write::write_all(input, &frame).expect("it reads");
    }

    pub fn next(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.decoder.message().expect("a good frame") {
                return reply;
            }
            let mut chunk = vec![0; 65536];
            let output = self.running.0.stdout.as_mut().expect("its output");
            let len = std::io::Read::read(output, &mut chunk).expect("it writes");
            assert_ne!(len, 0, "the helper ended");
            self.decoder.push(&chunk[..len]);
        }
    }
}
