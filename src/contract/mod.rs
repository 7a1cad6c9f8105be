//! Messages between plugin and helper, and the snapshot file.
//!
//! Plugin and helper image are released apart, so that both say [`SCHEMA_VERSION`] first. Requests
//! refuse what they do not know; a changed shape of `model` or of the messages needs a new number.

pub mod file;
pub mod frame;

use serde::{Deserialize, Serialize};

use crate::model::NetNsId;
use crate::model::capture::{Counted, Ended, Losses, Opened, Probe, Probed, Seen, Watch};
use crate::model::want::{Fact, Want};

/// Version of all shapes that go over the wire. A test pins the shapes to this number.
pub const SCHEMA_VERSION: u32 = 24;

/// First bytes of a helper's hello, so that a wrong image's chatter is recognised.
pub const MAGIC: &str = "netpath-helper";

/// From the plugin to the helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Must be first.
    Hello {
        /// [`SCHEMA_VERSION`] of the plugin.
        schema: u32,
    },
    /// Read these facts. Answered by one or more [`Reply::Facts`] with the same id, the last one
    /// marked.
    Collect {
        /// Chosen by the plugin.
        id: u32,
        /// What to read.
        wants: Vec<Want>,
    },
    /// Answered by [`Reply::Pong`]; keeps the connection and the helper alive.
    Ping {
        /// Given back.
        id: u32,
    },
    /// The helper ends.
    Bye,
    /// Watch devices until [`Request::Unwatch`]. Answered by [`Reply::Watching`] once all are open, then by
    /// [`Reply::Packets`] as they come. One at a time; other requests are answered meanwhile.
    Watch {
        /// Chosen by the plugin.
        id: u32,
        /// What to watch.
        watch: Watch,
    },
    /// Answered by the last [`Reply::Packets`] and [`Reply::Watched`].
    Unwatch {
        /// Id of the watch.
        id: u32,
    },
    /// Send a probe and wait for its answer: [`Reply::Probed`].
    Probe {
        /// Chosen by the plugin.
        id: u32,
        /// What to send.
        probe: Probe,
    },
    /// Read what namespaces count: [`Reply::Counted`].
    Count {
        /// Chosen by the plugin.
        id: u32,
        /// Namespaces.
        namespaces: Vec<NetNsId>,
    },
}

/// From the helper to the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Answer to [`Request::Hello`], whatever version it named.
    Hello {
        /// [`MAGIC`].
        magic: String,
        /// [`SCHEMA_VERSION`] of the helper.
        schema: u32,
        /// Version of the helper's package.
        version: String,
        /// `uname -r`.
        kernel: String,
        /// Seconds since 1970 on the node.
        now: u64,
    },
    /// Facts.
    Facts {
        /// Id of the request.
        id: u32,
        /// Answers; their order does not matter.
        facts: Vec<Fact>,
        /// No more of this request follow.
        last: bool,
        /// Microseconds that the request has taken so far.
        micros: u64,
    },
    /// Answer to [`Request::Ping`].
    Pong {
        /// Id of the request.
        id: u32,
    },
    /// The request could not be served at all.
    Error {
        /// Id of the request; 0 where it could not be read.
        id: u32,
        /// Operation, object, cause and remedy.
        message: String,
    },
    /// All points are open, or it is said why not.
    Watching {
        /// Id of the request.
        id: u32,
        /// In the order of the points.
        points: Vec<Opened>,
    },
    /// Packets that were seen, those of one point in order.
    Packets {
        /// Id of the watch.
        id: u32,
        /// Packets.
        packets: Vec<Seen>,
    },
    /// A point is watched no longer; the watch goes on with the others.
    PointEnded {
        /// Id of the watch.
        id: u32,
        /// Which, and why.
        ended: Ended,
    },
    /// The watch is over.
    Watched {
        /// Id of the watch.
        id: u32,
        /// In the order of the points.
        losses: Vec<Losses>,
    },
    /// Answer to [`Request::Probe`].
    Probed {
        /// Id of the request.
        id: u32,
        /// How it ended.
        probed: Probed,
    },
    /// Answer to [`Request::Count`].
    Counted {
        /// Id of the request.
        id: u32,
        /// In the order of the namespaces.
        counted: Vec<Counted>,
    },
}
