//! `snapshot save`: everything of all nodes, in one file, whole or not at all.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use netpath::contract::file;
use netpath::model::names::Names;
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget};
use netpath::simulate::Wants;

use super::place::{Done, Read, Wish, everywhere, read};
use super::{INCONCLUSIVE, cluster};
use crate::cli::{GlobalFlags, SaveArgs};
use crate::render::json_types::ProbeJson;
use crate::request::Facts;

/// Does it and gives the exit code.
pub async fn run(args: &SaveArgs, global: &GlobalFlags) -> anyhow::Result<u8> {
    let facts = Facts::of(&args.access)?;
    if let Facts::File(_) = facts {
        bail!("snapshot save reads kernels, not another file: leave out --snapshot");
    }
    if matches!(facts, Facts::Local) && !args.nodes.is_empty() {
        bail!(
            "--local saves this machine only: leave out {}",
            args.nodes.join(" ")
        );
    }
    // Told before minutes are spent on reading.
    writable(&args.file)?;
    let wish = Wish {
        ends: &[],
        cluster: &|cluster| {
            let nodes = cluster::chosen(cluster, &args.nodes)?;
            Ok(everywhere(nodes, &NsTarget::All, Depth::Full))
        },
        names: &["nodes", "pods", "services", "endpointslices"],
        sections: None,
        depth: Depth::Full,
        pid: None,
        more: &|_| Ok(Wants::new()),
    };
    let Read {
        topology,
        names,
        failed,
        code,
    } = match read(&facts, global, &wish).await? {
        Done::Read(read) => *read,
        Done::Ended(code) => return Ok(code),
    };
    write(&args.file, &topology, &names)?;
    let spaces: usize = topology.nodes.values().map(|node| node.netns.len()).sum();
    eprintln!(
        "{}: {} nodes, {spaces} network namespaces",
        args.file.display(),
        topology.nodes.len()
    );
    Ok(if failed.is_empty() {
        code
    } else {
        INCONCLUSIVE
    })
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

pub(super) fn writable(path: &Path) -> anyhow::Result<()> {
    if path.is_dir() {
        bail!("write snapshot file {}: it is a directory", path.display());
    }
    let directory = directory(path);
    if !directory.is_dir() {
        bail!(
            "write snapshot file {}: there is no directory {}",
            path.display(),
            directory.display()
        );
    }
    Ok(())
}

/// Writes beside the file and renames, so that a reader sees the old one or the whole new one.
fn write(path: &Path, topology: &Topology, names: &Names) -> anyhow::Result<()> {
    write_with(path, (topology, names), None)
}

/// What a prediction was made of, with what probes saw.
pub(super) fn disagreement(
    path: &Path,
    facts: (&Topology, &Names),
    question: &str,
    probes: &[ProbeJson],
) -> anyhow::Result<()> {
    let seen = serde_json::json!({ "question": question, "probes": probes });
    write_with(path, facts, Some(seen))
}

fn write_with(
    path: &Path,
    (topology, names): (&Topology, &Names),
    disagreement: Option<serde_json::Value>,
) -> anyhow::Result<()> {
    let context = || format!("write snapshot file {}", path.display());
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(part);
    let written = (|| {
        // It holds a cluster's addresses and rules: for its owner alone, until he decides otherwise.
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut out = BufWriter::new(options.open(&part).with_context(context)?);
        file::write_with(&mut out, topology, names, disagreement).with_context(context)?;
        out.flush().with_context(context)?;
        std::fs::rename(&part, path).with_context(context)
    })();
    if written.is_err() && part.exists() {
        // The first error is the one to tell.
        let _ = std::fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.json");
        write(&path, &Topology::default(), &Names::default()).unwrap();
        let read = file::read(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(read.topology, Topology::default());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let nowhere = dir.path().join("none/net.json");
        assert!(writable(&nowhere).is_err());
        assert!(writable(dir.path()).is_err());
        assert!(write(&nowhere, &Topology::default(), &Names::default()).is_err());
    }
}
