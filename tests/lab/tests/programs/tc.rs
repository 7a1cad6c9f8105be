//! BPF programs at tc: the kernel asks them, and nothing predicts what they say.

use std::path::Path;

use super::Netns;

/// Drops IPv4: `ldh [12]; jeq #0x800, drop; ret 0; drop: ret 2` (TC_ACT_SHOT).
pub const DROPS: &str = "4,40 0 0 12,21 0 1 2048,6 0 0 2,6 0 0 0,";
/// Lets all pass, but nobody knows that before.
pub const PASSES: &str = "1,6 0 0 0,";

/// Hands on a file with a program, and removes it.
pub fn with_program(code: &str, run: impl FnOnce(&Path)) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), code).expect("it is written");
    run(file.path());
}

/// Puts a program on a way (`ingress`, `egress`) of a device that has `clsact`.
pub fn add(ns: &Netns, dev: &str, way: &str, code: &str) {
    with_program(code, |file| {
        ns.tool(&add_line(dev, way, file));
    });
}

/// The command that puts a program of a file there.
pub fn add_line(dev: &str, way: &str, file: &Path) -> String {
    format!(
        "tc filter add dev {dev} {way} bpf da bytecode-file {}",
        file.display()
    )
}
