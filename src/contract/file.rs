//! The snapshot file: JSON, so that it can be read, searched and mended by hand.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use crate::model::names::Names;
use crate::model::topology::Topology;

/// First field of the file.
pub const SNAPSHOT_SCHEMA: &str = "netpath.snapshot/v1";
/// Largest file accepted, in bytes.
pub const MAX_FILE: u64 = 1 << 30;

/// Everything a later `trace --snapshot` needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// [`SNAPSHOT_SCHEMA`].
    pub schema: String,
    /// Version of the program that wrote it.
    pub version: String,
    /// Facts of all nodes.
    pub topology: Topology,
    /// Kubernetes names; empty for `--local`.
    pub names: Names,
    /// Of `--save-disagreement`: the question, and what its probes saw, as the answer's JSON has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disagreement: Option<serde_json::Value>,
}

/// Why a file is not a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read or written.
    #[error("access the snapshot file")]
    Io(#[from] std::io::Error),
    /// It is not JSON of this shape.
    #[error(
        "decode the snapshot file: not a whole netpath snapshot (cut short, or another program's?)"
    )]
    Json(#[from] serde_json::Error),
    /// Another version's, or something else.
    #[error("decode the snapshot file: its schema is '{0}', this program reads {SNAPSHOT_SCHEMA}")]
    Schema(String),
    /// Too large.
    #[error("read the snapshot file: it is larger than {MAX_FILE} bytes")]
    TooLarge,
}

/// Reads and checks a file.
pub fn read(from: impl Read) -> Result<SnapshotFile, FileError> {
    #[derive(Deserialize)]
    struct Head {
        schema: Option<String>,
    }
    let mut bytes = Vec::new();
    from.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(FileError::TooLarge);
    }
    let head: Head = serde_json::from_slice(&bytes)?;
    match head.schema {
        Some(schema) if schema == SNAPSHOT_SCHEMA => Ok(serde_json::from_slice(&bytes)?),
        other => {
            let schema = other.unwrap_or_else(|| "(none)".to_owned());
            Err(FileError::Schema(schema.chars().take(60).collect()))
        }
    }
}

/// Writes a file.
pub fn write(to: impl Write, topology: &Topology, names: &Names) -> Result<(), FileError> {
    write_with(to, topology, names, None)
}

/// Writes a file with what probes saw otherwise.
pub fn write_with(
    mut to: impl Write,
    topology: &Topology,
    names: &Names,
    disagreement: Option<serde_json::Value>,
) -> Result<(), FileError> {
    let file = SnapshotFile {
        schema: SNAPSHOT_SCHEMA.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        topology: topology.clone(),
        names: names.clone(),
        disagreement,
    };
    serde_json::to_writer(&mut to, &file)?;
    to.write_all(b"\n")?;
    to.flush()?;
    Ok(())
}
