//! Bytes that nobody should send: both directions of the contract, and the snapshot file. Whatever comes,
//! there is an error or a value, and a claimed length is never believed beyond what arrived.

use std::fs;
use std::path::Path;

use netpath::contract::file::{self, SnapshotFile};
use netpath::contract::frame::{Decoder, FrameError, MAX_MESSAGE, encode};
use netpath::contract::{MAGIC, Reply, Request, SCHEMA_VERSION};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, Fact, NsTarget, Want};
use netpath::model::{NetNsId, Section};
use netpath::simulate::{Flow, Limits, simulate};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::mutate::Rng;

fn recorded() -> Vec<SnapshotFile> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut dirs: Vec<_> = fs::read_dir(dir)
        .expect("the scenarios")
        .map(|entry| entry.expect("a scenario").path())
        // Those of random networks are many and alike.
        .filter(|path| !path.ends_with("oracle") && !path.ends_with("inconclusive"))
        .collect();
    dirs.sort();
    let open = |dir: &std::path::PathBuf| {
        let file = fs::File::open(dir.join("snapshot.json")).expect("a snapshot");
        file::read(std::io::BufReader::new(file)).expect("a snapshot of this version")
    };
    let files: Vec<_> = dirs.iter().map(open).collect();
    assert!(files.len() > 2);
    files
}

/// All facts that the scenarios hold, in the shape that helpers send.
fn facts() -> Vec<Fact> {
    let mut facts = Vec::new();
    for file in recorded() {
        for (key, ns) in file.topology.all() {
            facts.push(Fact::NetNs(Box::new(ns.clone())));
            for table in ns.nft.known().into_iter().flat_map(|rules| &rules.tables) {
                facts.extend(table.chains.values().map(|chain| Fact::Chain {
                    netns: key.netns,
                    backend: table.backend,
                    family: table.family,
                    table: table.name.clone(),
                    name: chain.name.clone(),
                    chain: Section::Known(Some(chain.clone())),
                }));
            }
        }
    }
    assert!(facts.len() > 100, "{}", facts.len());
    facts
}

fn replies() -> Vec<Vec<u8>> {
    let hello = Reply::Hello {
        magic: MAGIC.to_owned(),
        schema: SCHEMA_VERSION,
        version: "0.1.0".to_owned(),
        kernel: "6.12.0".to_owned(),
        now: 1_790_000_000,
    };
    let mut messages = vec![hello, Reply::Pong { id: 3 }];
    messages.push(Reply::Error {
        id: 0,
        message: "decode a message".to_owned(),
    });
    messages.extend(facts().into_iter().map(|fact| Reply::Facts {
        id: 1,
        facts: vec![fact],
        last: true,
        micros: 77,
    }));
    bytes(&messages)
}

fn requests() -> Vec<Vec<u8>> {
    let netns = NetNsId {
        dev: 4,
        ino: 4_026_531_840,
    };
    let targets = [
        NsTarget::All,
        NsTarget::Host,
        NsTarget::Id(netns),
        NsTarget::Pid(1),
        NsTarget::Named("blue".to_owned()),
        NsTarget::PodUid("0b1c1e7e-0000-4000-8000-000000000001".to_owned()),
    ];
    let want = |target: NsTarget| {
        let depth = Depth::Full;
        [
            Want::NetNs {
                target: target.clone(),
                depth,
            },
            Want::ConntrackTable {
                target,
                filter: netpath::model::conntrack::ConntrackFilter::default(),
            },
        ]
    };
    let wants: Vec<Want> = targets.into_iter().flat_map(want).collect();
    bytes(&[
        Request::Hello {
            schema: SCHEMA_VERSION,
        },
        Request::Collect { id: 9, wants },
        Request::Ping { id: 1 },
        Request::Bye,
    ])
}

fn bytes<T: Serialize>(messages: &[T]) -> Vec<Vec<u8>> {
    let encoded = messages.iter().map(|m| encode(m).expect("encodes"));
    encoded.collect()
}

/// Feeds damaged frames to a decoder until it refuses or wants more; gives how many were taken.
fn feed<T: DeserializeOwned>(seeds: &[Vec<u8>], cases: usize, seed: u64) -> (usize, usize) {
    let mut rng = Rng::new(seed);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..cases {
        let (one, two) = (rng.below(seeds.len()), rng.below(seeds.len()));
        let mut damaged = rng.damage(&seeds[one], &seeds[two]);
        // Half of the time the length is right, so that the damage reaches what is behind it.
        if rng.below(2) == 0 && damaged.len() > 4 {
            let length = u32::try_from(damaged.len() - 4).expect("small");
            damaged[..4].copy_from_slice(&length.to_le_bytes());
        }
        let mut decoder = Decoder::default();
        for chunk in damaged.chunks(1 + rng.below(4096)) {
            decoder.push(chunk);
        }
        loop {
            match decoder.message::<T>() {
                Ok(Some(_)) => taken += 1,
                Ok(None) => break,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                    break;
                }
            }
        }
    }
    (taken, refused)
}

#[test]
fn damaged_frames_are_refused_or_read_in_both_directions() {
    let (taken, refused) = feed::<Reply>(&replies(), 20_000, 1);
    assert!(taken > 100 && refused > 5_000, "{taken} {refused}");
    let (taken, refused) = feed::<Request>(&requests(), 30_000, 2);
    assert!(taken > 100 && refused > 5_000, "{taken} {refused}");
    // What one side says is no message of the other.
    feed::<Request>(&replies(), 5_000, 3);
    feed::<Reply>(&requests(), 5_000, 4);
}

/// Lengths inside of a message, written so that they claim far more than there is.
#[test]
fn claims_are_not_believed() {
    let frame = |flag: u8, body: &[u8]| {
        let length = u32::try_from(body.len() + 1).expect("small");
        let mut frame = length.to_le_bytes().to_vec();
        frame.push(flag);
        frame.extend_from_slice(body);
        frame
    };
    let read = |bytes: &[u8]| {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        decoder.message::<Reply>()
    };
    // Compressed: 12 bytes can't become more than 255 times as many, whatever they claim.
    for claim in [8_192, 1 << 20, MAX_MESSAGE] {
        let claim = u32::try_from(claim).expect("a claim");
        let mut body = claim.to_le_bytes().to_vec();
        body.extend([0x1f, 0, 1, 0, 255, 255, 255, 0]);
        let error = read(&frame(1, &body)).expect_err("a lie");
        assert!(matches!(error, FrameError::Claim { .. }), "{error}");
    }
    // Plain: facts, texts and bytes that claim 2^40 and 2^63 elements.
    for claim in [
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x20][..],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    ] {
        // Facts (variant 1) of id 1; an error's text (variant 3); a hello's magic (variant 0).
        for head in [&[1, 1][..], &[3, 1], &[0]] {
            let body = [head, claim, &[0; 64]].concat();
            let error = read(&frame(0, &body)).expect_err("a lie");
            assert!(matches!(error, FrameError::Decode(..)), "{error}");
        }
    }
}

/// One namespace each, with few chains, so that a case takes little time.
fn small_files() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for mut recorded in recorded() {
        for snapshot in recorded.topology.nodes.values_mut() {
            for ns in snapshot.netns.values_mut() {
                for ruleset in [&mut ns.nft, &mut ns.legacy] {
                    let tables = ruleset.known_mut().map(|rules| &mut rules.tables);
                    for table in tables.into_iter().flatten() {
                        let kept = |name: &String| name.len().is_multiple_of(5);
                        table.chains.retain(|name, _| kept(name));
                        table.sets.retain(|name, _| kept(name));
                    }
                }
            }
        }
        let all: Vec<_> = recorded.topology.all().map(|(key, _)| key).collect();
        for key in all {
            let mut one = Topology::default();
            let mut snapshot = recorded.topology.nodes[&key.node].clone();
            snapshot.netns.retain(|id, _| *id == key.netns);
            one.nodes.insert(key.node, snapshot);
            let mut text = Vec::new();
            file::write(&mut text, &one, &recorded.names).expect("it is written");
            files.push(text);
        }
    }
    files
}

/// Also what is read from a damaged file can be asked about: no fact makes the simulation panic.
#[test]
fn damaged_files_are_refused_or_answer() {
    let seeds = small_files();
    let mut rng = Rng::new(5);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..CASES {
        let (one, two) = (rng.below(seeds.len()), rng.below(seeds.len()));
        let damaged = if rng.below(2) == 0 {
            rng.damage(&seeds[one], &seeds[two])
        } else {
            other_numbers(&mut rng, &seeds[one])
        };
        match file::read(damaged.as_slice()) {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
            Ok(file) => {
                read += 1;
                let places: Vec<_> = file.topology.all().map(|(key, _)| key).collect();
                for place in places {
                    let address = ["10.244.1.2", "10.96.0.10", "fd00:10:244:1::2"][rng.below(3)];
                    let flow = Flow {
                        from: place,
                        src: None,
                        sport: None,
                        dst: address.parse().expect("an address"),
                        dport: Some(80),
                        protocol: 6,
                        len: 60,
                        uid: Some(0),
                        gid: Some(0),
                        bound: None,
                    };
                    let outcome = simulate(&file.topology, &flow, &Limits::default());
                    assert!(!outcome.traces.is_empty());
                }
            }
        }
    }
    assert!(read > CASES / 8 && refused > CASES / 8, "{read} {refused}");
}

const CASES: usize = 4_000;

/// The file with some numbers replaced: it stays JSON, so that the facts behind it change.
fn other_numbers(rng: &mut Rng, bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=rng.below(6) {
        let at = rng.below(out.len());
        let is_digit = |byte: &u8| byte.is_ascii_digit();
        let Some(start) = out[at..].iter().position(is_digit).map(|found| at + found) else {
            continue;
        };
        let length = out[start..].iter().take_while(|b| is_digit(b)).count();
        let edges = [
            "0", "1", "2", "31", "32", "63", "127", "128", "255", "65535",
        ];
        let large = ["2147483647", "4294967295", "9223372036854775807"];
        let text = match rng.below(4) {
            0 => large[rng.below(large.len())],
            _ => edges[rng.below(edges.len())],
        };
        out.splice(start..start + length, text.bytes());
    }
    out
}
