//! The shapes that go over the wire, pinned to their version.
//!
//! Postcard names no fields: a field more, or another order, makes a client misread a helper of another
//! release. So `wire.txt` holds the shape of all types of `model` and `contract` beside
//! [`SCHEMA_VERSION`], and one can't change without the other.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use netpath::contract::SCHEMA_VERSION;

const RECORD: &str = "NETPATH_RECORD=1 cargo pure wire";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Types that can be sent, their serde attributes and hand-written serde code of a source file, without
/// comments and tests. Sources are as rustfmt leaves them.
fn shapes(source: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    let mut attributes: Vec<&str> = Vec::new();
    let mut attribute_goes_on = false;
    for line in source.lines() {
        if line == "#[cfg(test)]" {
            break;
        }
        let text = line.trim();
        if text.is_empty() || text.starts_with("//") {
            continue;
        }
        if !inside && (attribute_goes_on || line.starts_with("#[")) {
            attributes.push(line);
            attribute_goes_on = !line.ends_with(']');
            continue;
        }
        if !inside {
            let starts = |words: &[&str]| words.iter().any(|word| line.starts_with(word));
            let sent = attributes.iter().any(|line| line.contains("erialize"));
            let kept = starts(&["pub struct ", "pub enum ", "struct ", "enum "]) && sent
                || starts(&["pub type "])
                || starts(&["impl"]) && line.contains("erialize")
                || starts(&["mod "]) && line.ends_with('{');
            let serde = attributes.drain(..).filter(|line| line.contains("serde"));
            if !kept {
                continue;
            }
            for attribute in serde {
                let _ = writeln!(out, "{attribute}");
            }
        }
        let _ = writeln!(out, "{line}");
        inside = !(line.starts_with(['}', ')']) || line.ends_with(';') && !line.starts_with(' '));
    }
    out
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory of sources");
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn current() -> String {
    let mut all = String::new();
    for room in ["model", "contract"] {
        for path in files(&root().join("src").join(room)) {
            let source = fs::read_to_string(&path).expect("a source file");
            let shapes = shapes(&source.replace("\r\n", "\n"));
            if !shapes.is_empty() {
                let stem = path.file_stem().expect("a name").to_string_lossy();
                let _ = write!(all, "== {room}/{stem}\n{shapes}");
            }
        }
    }
    all
}

/// What to do about a difference between the recorded shapes and those of the source; `None`: nothing.
fn verdict(recorded: (u32, &str), current: (u32, &str)) -> Option<String> {
    let (old, shapes) = recorded;
    let (version, now) = current;
    if shapes == now {
        return (old != version).then(|| {
            format!("SCHEMA_VERSION is {version}, tests/pure/wire.txt is of {old}: run {RECORD}")
        });
    }
    let mut before = shapes.lines();
    let at = now.lines().find(|line| before.next() != Some(line));
    let at = at.unwrap_or("(the end)");
    if version > old {
        return Some(format!(
            "SCHEMA_VERSION was raised to {version}, and the shapes differ from '{at}' on: read the difference and run {RECORD}"
        ));
    }
    Some(format!(
        "a type that goes over the wire changed ('{at}' in src/model or src/contract) and SCHEMA_VERSION is still {version}, so that helpers of the last release would be misread: raise it in src/contract/mod.rs to {}, then run {RECORD}",
        old + 1
    ))
}

fn is_raise_needed(recorded: (u32, &str), current: (u32, &str)) -> bool {
    recorded.1 != current.1 && current.0 <= recorded.0
}

#[test]
fn shapes_change_with_their_version() {
    let path = root().join("tests/pure/wire.txt");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let text = text.replace("\r\n", "\n");
    let (head, shapes) = text.split_once('\n').unwrap_or_default();
    let number = head.strip_prefix("SCHEMA_VERSION ").unwrap_or("0");
    let recorded = (number.parse().expect("a number"), shapes);
    let now = current();
    let current = (SCHEMA_VERSION, now.as_str());
    // Recording does not help against a change without a new number.
    if std::env::var_os("NETPATH_RECORD").is_some() && !is_raise_needed(recorded, current) {
        let text = format!("SCHEMA_VERSION {SCHEMA_VERSION}\n{now}");
        fs::write(&path, text).expect("it is written");
        return;
    }
    if let Some(what) = verdict(recorded, current) {
        panic!("{what}");
    }
}

#[test]
fn a_change_is_noticed_and_a_comment_is_not() {
    let source = "//! Doc.\n\n/// Doc.\n#[derive(Serialize)]\n#[serde(default)]\npub struct One {\n    /// Doc.\n    pub a: u8,\n}\n\nimpl One {\n    pub fn x() {}\n}\n";
    let shape = shapes(source);
    assert_eq!(
        shape,
        "#[serde(default)]\npub struct One {\n    pub a: u8,\n}\n"
    );
    let same = source.replace("Doc.", "Other words.").replace("x()", "y()");
    assert_eq!(shapes(&same), shape);
    let other = shapes(&source.replace("a: u8", "a: u16"));
    let text = verdict((3, &shape), (3, &other)).expect("a complaint");
    assert!(
        text.contains("pub a: u16") && text.contains("to 4"),
        "{text}"
    );
    assert!(is_raise_needed((3, &shape), (3, &other)));
    let text = verdict((3, &shape), (4, &other)).expect("a request");
    assert!(text.contains("NETPATH_RECORD"), "{text}");
    assert!(!is_raise_needed((3, &shape), (4, &other)));
    assert_eq!(verdict((4, &other), (4, &other)), None);
}
