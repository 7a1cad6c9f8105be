//! Judges what `netpath-lab oracle --record` kept: what the simulation says now beside what the kernel did then.
//! A program of its own, so that little has to be built for each fault of `tests/mutations`.
#![allow(dead_code, reason = "what needs a kernel is used elsewhere")]

mod again;
mod ask;
mod fit;
mod seen;
mod world;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let dirs: Vec<String> = std::env::args().skip(1).collect();
    let [seen, saved] = dirs.as_slice() else {
        eprintln!(
            "judge: name the directory of `netpath-lab oracle --record`, and that of the saved scenarios"
        );
        return ExitCode::from(2);
    };
    let mut count = again::Count::default();
    let told = again::judge_all(Path::new(seen), &mut count).and_then(|told| match told {
        Some(told) => Ok(Some(told)),
        None => again::judge_saved(Path::new(saved), &mut count),
    });
    match told {
        Ok(Some(text)) => {
            println!("differs: {text}");
            ExitCode::from(1)
        }
        Ok(None) => {
            println!("{} agree, {} unknown", count.agree, count.unknown);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("judge: {error}");
            ExitCode::from(2)
        }
    }
}
