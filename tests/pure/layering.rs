//! The house has one way through it: a room that imports what it must not fails here.
#![allow(
    clippy::disallowed_methods,
    reason = "asks cargo for the dependency tree"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms of crate netpath, and the rooms each may use besides itself.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("trace", &["model"]),
    ("simulate", &["model", "trace"]),
    ("explain", &["model", "trace"]),
    ("contract", &["model"]),
    ("collect", &["model", "contract"]),
    ("capture", &["model", "collect"]),
    ("bin", &["model", "contract", "collect", "capture"]),
];

/// What a pure room must not even name: I/O, clock, randomness, async, processes.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::io",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "std::env",
    "std::thread",
    "std::time",
    "SystemTime",
    "Instant::now",
    "tokio",
    "futures",
    "async fn",
    "nix::",
    "libc::",
    "procfs",
    "rtnetlink",
    "netlink_packet",
    "netlink_sys",
    "pcap::",
    "println!",
    "eprintln!",
    "unsafe ",
    ".unwrap()",
    ".expect(",
    "assert!(",
    "assert_eq!(",
    "panic!(",
    "unreachable!(",
    "todo!(",
    "unimplemented!(",
];

const PURE: &[&str] = &["model", "trace", "simulate", "explain"];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    assert!(dir.is_dir(), "{} is a room", dir.display());
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
    found
}

/// The file without its tests and comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    let mut kept = Vec::new();
    let mut parts = text.split("#[cfg(test)]");
    kept.extend(parts.next());
    for part in parts {
        // The item behind it is left out: a line that ends, or a block up to the brace that closes it.
        let end = match (part.find(";\n"), part.find("{\n")) {
            (Some(line), block) if block.is_none_or(|block| line < block) => line + 1,
            _ => part.find("\n}").map_or(part.len(), |end| end + 2),
        };
        kept.push(&part[end..]);
    }
    let kept = kept.concat();
    let lines = kept
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
        || path.components().any(|part| part.as_os_str() == "tests")
}

#[test]
fn rooms_use_only_what_they_may() {
    for (room, allowed) in MAY_USE {
        for path in sources(&root().join(room))
            .into_iter()
            .filter(|path| !is_test(path))
        {
            let code = code(&path);
            let grouped = ["use crate::{", "use netpath::{"];
            assert!(
                !grouped.iter().any(|group| code.contains(group)),
                "{}: rooms are imported one by one, so that they can be seen",
                path.display()
            );
            for (other, _) in MAY_USE {
                let used = code.contains(&format!("crate::{other}"))
                    || code.contains(&format!("netpath::{other}"));
                assert!(
                    !used || other == room || allowed.contains(other),
                    "{}: {room} must not use {other}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn the_core_has_no_effects_and_no_panics() {
    for room in PURE {
        for path in sources(&root().join(room))
            .into_iter()
            .filter(|path| !is_test(path))
        {
            let code = code(&path);
            for word in IMPURE {
                assert!(
                    !code.contains(word),
                    "{}: {room} is pure, but names {word}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn only_named_files_hold_unsafe_code() {
    for dir in ["src", "plugin/src", "tests/lab/src"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        for path in sources(&dir) {
            let text = fs::read_to_string(&path).expect("a source file");
            let has = code(&path).contains("unsafe {");
            let named = text.contains("#![allow(unsafe_code, reason = ")
                || text.contains("#![allow(\n    unsafe_code,\n    reason = ");
            assert!(
                !has || named,
                "{}: unsafe code without a reason at the file's head",
                path.display()
            );
        }
    }
}

#[test]
fn the_clients_dependencies_build_off_linux() {
    const LINUX_ONLY: &[&str] = &[
        "procfs",
        "procfs-core",
        "rtnetlink",
        "netlink-sys",
        "netlink-proto",
        "netlink-packet-route",
        "netlink-packet-core",
        "pcap",
        "netpath-lab",
    ];
    for target in ["x86_64-pc-windows-msvc", "aarch64-apple-darwin"] {
        let output = std::process::Command::new(env!("CARGO"))
            .args([
                "tree",
                "--locked",
                "-p",
                "kubectl-netpath",
                "-e",
                "normal",
                "--prefix",
                "none",
            ])
            .args(["--format", "{p}", "--target", target])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let tree = String::from_utf8_lossy(&output.stdout);
        assert!(tree.lines().count() > 50, "the tree is there:\n{tree}");
        for line in tree.lines() {
            let name = line.split_whitespace().next().unwrap_or_default();
            assert!(!LINUX_ONLY.contains(&name), "{target} pulls in {line}");
        }
    }
}
