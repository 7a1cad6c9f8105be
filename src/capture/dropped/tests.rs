//! Types as a small kernel would have them, and what the program is made of by them. That it runs, and what it tells,
//! tests/lab/tests/dropped.rs shows.

use super::program::{EVENT, assemble};
use super::*;

/// Writes BTF: types by number from 1 on.
#[derive(Default)]
struct Types {
    all: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Types {
    fn name(&mut self, name: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if name.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(name.bytes());
        self.strings.push(0);
        at
    }

    fn add(&mut self, name: &str, kind: u32, count: usize, of: u32, rest: &[u32]) -> u32 {
        let name = self.name(name);
        let info = kind << 24 | u32::try_from(count).unwrap();
        for word in [name, info, of].iter().chain(rest) {
            self.all.extend(word.to_ne_bytes());
        }
        self.count += 1;
        self.count
    }

    /// Fields with their types and bytes before them.
    fn structure(&mut self, name: &str, kind: u32, fields: &[(&str, u32, u32)]) -> u32 {
        let mut rest = Vec::new();
        for (field, number, bytes) in fields {
            rest.extend([self.name(field), *number, bytes * 8]);
        }
        self.add(name, kind, fields.len(), 8, &rest)
    }

    fn numbers(&mut self, name: &str, all: &[(&str, u32)]) -> u32 {
        let mut rest = Vec::new();
        for (one, number) in all {
            rest.extend([self.name(one), *number]);
        }
        self.add(name, 6, all.len(), 4, &rest)
    }

    fn bytes(&self) -> Vec<u8> {
        let types = u32::try_from(self.all.len()).unwrap();
        let strings = u32::try_from(self.strings.len()).unwrap();
        let mut all = 0xeb9f_u16.to_ne_bytes().to_vec();
        all.extend([1, 0]);
        for word in [24, 0, types, types, strings] {
            all.extend(word.to_ne_bytes());
        }
        all.extend(&self.all);
        all.extend(&self.strings);
        all
    }
}

const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// A kernel's types; with reasons, and with the socket that a packet was for.
fn kernel(reasons: bool, receiver: bool) -> Vec<u8> {
    let mut types = Types::default();
    let int = types.add("int", 1, 0, 4, &[32]);
    let pointer = types.add("", 2, 0, 0, &[]);
    let common = types.structure(
        "ns_common",
        STRUCT,
        &[("stashed", pointer, 0), ("inum", int, 24)],
    );
    types.structure("net", STRUCT, &[("count", int, 0), ("ns", common, 128)]);
    let possible = types.structure("", STRUCT, &[("net", pointer, 0)]);
    let possible = types.add("possible_net_t", 8, 0, possible, &[]);
    types.structure(
        "net_device",
        STRUCT,
        &[("ifindex", int, 224), ("nd_net", possible, 264)],
    );
    let route = types.structure("", UNION, &[("dev", pointer, 0), ("dev_rcu", pointer, 0)]);
    types.structure("dst_entry", STRUCT, &[("", route, 8)]);
    let common = types.structure("sock_common", STRUCT, &[("skc_net", possible, 48)]);
    let sock = types.structure("sock", STRUCT, &[("__sk_common", common, 0)]);
    let device = types.structure(
        "",
        UNION,
        &[("dev", pointer, 0), ("dev_scratch", pointer, 0)],
    );
    let inner = types.structure("", STRUCT, &[("next", pointer, 0), ("", device, 16)]);
    let list = types.structure("", UNION, &[("", inner, 0), ("rbnode", pointer, 0)]);
    let headers = types.structure(
        "",
        STRUCT,
        &[("protocol", int, 4), ("network_header", int, 8)],
    );
    let skb = types.structure(
        "sk_buff",
        STRUCT,
        &[
            ("", list, 0),
            ("sk", pointer, 24),
            ("_skb_refdst", pointer, 88),
            ("len", int, 112),
            ("", headers, 180),
            ("tail", int, 196),
            ("head", pointer, 200),
            ("data", pointer, 208),
        ],
    );
    let reason = types.numbers(
        "skb_drop_reason",
        &[
            ("SKB_NOT_DROPPED_YET", 0),
            ("SKB_CONSUMED", 1),
            ("SKB_DROP_REASON_NOT_SPECIFIED", 2),
            ("SKB_DROP_REASON_NETFILTER_DROP", 12),
            ("SKB_DROP_REASON_MAX", 128),
            ("SKB_DROP_REASON_SUBSYS_MASK", 0xffff_0000),
        ],
    );
    types.numbers(
        "skb_drop_reason_subsys",
        &[
            ("SKB_DROP_REASON_SUBSYS_CORE", 0),
            ("SKB_DROP_REASON_SUBSYS_OPENVSWITCH", 3),
            ("SKB_DROP_REASON_SUBSYS_NUM", 4),
        ],
    );
    let (skb, sock) = (
        types.add("", 2, 0, skb, &[]),
        types.add("", 2, 0, sock, &[]),
    );
    let mut arguments = vec![pointer, skb, pointer];
    arguments.extend(reasons.then_some(reason));
    arguments.extend(receiver.then_some(sock));
    let rest: Vec<u32> = arguments.iter().flat_map(|one| [0, *one]).collect();
    let function = types.add("", 13, arguments.len(), 0, &rest);
    let function = types.add("", 2, 0, function, &[]);
    types.add("btf_trace_kfree_skb", 8, 0, function, &[]);
    types.bytes()
}

const MAPS: Maps = Maps {
    ring: 5,
    lost: 6,
    format: 7,
};

#[test]
fn fields_are_found_inside_what_has_no_name() {
    let btf = Btf::parse(kernel(true, true)).expect("types");
    let offset = |structure: &str, path: &[&str]| btf.offset(structure, path);
    assert_eq!(offset("sk_buff", &["dev"]), Some(16));
    assert_eq!(offset("sk_buff", &["network_header"]), Some(188));
    assert_eq!(offset("dst_entry", &["dev"]), Some(8));
    assert_eq!(offset("net", &["ns", "inum"]), Some(152));
    assert_eq!(offset("sock", &["__sk_common", "skc_net", "net"]), Some(48));
    assert_eq!(offset("sk_buff", &["nothing"]), None);
    assert_eq!(offset("nothing", &["dev"]), None);
    assert_eq!(
        btf.arguments("kfree_skb"),
        Some(
            ["sk_buff", "", "skb_drop_reason", "sock"]
                .map(str::to_owned)
                .into()
        )
    );
}

#[test]
fn reasons_have_the_kernels_names() {
    let names = names(&Btf::parse(kernel(true, true)).expect("types"));
    let told = |reason| name(reason, &names);
    assert_eq!(told(12).as_deref(), Some("NETFILTER_DROP"));
    assert_eq!(told(3 << 16 | 4).as_deref(), Some("OPENVSWITCH 4"));
    assert_eq!((told(128), told(99), told(9 << 16)), (None, None, None));
}

#[test]
fn a_kernel_without_reasons_or_fields_is_refused_in_words() {
    let places = |bytes| Places::of(&Btf::parse(bytes).expect("types"));
    assert!(places(kernel(true, true)).is_ok());
    assert!(places(kernel(true, false)).is_ok());
    let error = places(kernel(false, false)).expect_err("it gives none");
    assert_eq!(error, "it gives no reasons (Linux has them since 5.17)");
    let error = places(Types::default().bytes()).expect_err("it has nothing");
    assert_eq!(error, "it has no tracepoint kfree_skb for programs");
    let bytes = kernel(true, true);
    let at = bytes.windows(4).position(|some| some == b"inum").unwrap();
    let mut other = bytes.clone();
    other[at] = b'x';
    let error = places(other).expect_err("it lacks one");
    assert_eq!(error, "struct net has no field ns.inum");
}

#[test]
fn damaged_types_are_refused_and_never_more() {
    let bytes = kernel(true, true);
    for len in 0..bytes.len() {
        // Without the last strings they are still types.
        if let Ok(btf) = Btf::parse(bytes[..len].to_vec()) {
            let _ = (Places::of(&btf), names(&btf));
        }
    }
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut other = bytes.clone();
            other[at] = value;
            if let Ok(btf) = Btf::parse(other) {
                let _ = (Places::of(&btf), names(&btf));
            }
        }
    }
}

#[test]
fn every_jump_stays_inside_and_goes_forward() {
    let places = Places::of(&Btf::parse(kernel(true, true)).expect("types")).expect("places");
    for spaces in [vec![], vec![4_026_531_840], (1..=128).collect()] {
        let code = assemble(&places, &spaces, MAPS);
        assert_eq!(code.last().map(|last| last[0]), Some(0x95));
        let mut wide = false;
        for (at, one) in code.iter().enumerate() {
            // The second half of a wide instruction.
            if std::mem::replace(&mut wide, one[0] == 0x18) {
                continue;
            }
            let [opcode, _, low, high, ..] = *one;
            let jumps = matches!(opcode & 7, 5 | 6) && !matches!(opcode, 0x85 | 0x95);
            if jumps {
                let over = i16::from_ne_bytes([low, high]);
                assert!(over > 0, "{at}: {one:?}");
                let to = at + 1 + usize::try_from(over).unwrap();
                assert!(to < code.len(), "{at}: {one:?}");
            }
        }
        // Nothing is called but what reads, names, tells the time, and gives on.
        let calls = code.iter().filter(|one| one[0] == 0x85);
        let calls = calls.map(|one| i32::from_ne_bytes([one[4], one[5], one[6], one[7]]));
        assert!(
            calls
                .into_iter()
                .all(|call| [1, 5, 113, 130, 134, 165].contains(&call))
        );
    }
}

#[test]
fn an_event_becomes_a_cooked_frame_of_its_namespace() {
    let mut raw = vec![0; usize::from(EVENT.unsigned_abs())];
    raw[..8].copy_from_slice(&5_u64.to_ne_bytes());
    // Reason, device, and the four namespaces.
    for (at, word) in [
        (16, 12_u32),
        (20, 3),
        (24, 1),
        (28, 0),
        (32, 2),
        (36, 1),
        (40, 2),
    ] {
        raw[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    raw[44..46].copy_from_slice(&[0x08, 0]);
    raw[56..58].copy_from_slice(&[0x45, 0]);
    raw[248..260].copy_from_slice(b"nf_hook_slow");
    let event = Event::parse(&raw).expect("an event");
    assert_eq!(Event::parse(&raw[..raw.len() - 1]), None);
    let names = BTreeMap::from([(12, "NETFILTER_DROP".to_owned())]);
    let lost = told(event.clone(), &[1], &names, 1000).expect("it is watched");
    assert_eq!((lost.space, lost.frame.time), (1, 1005));
    assert_eq!(lost.frame.bytes[..8], [8, 0, 0, 0, 0, 0, 0, 3]);
    assert_eq!(lost.frame.bytes[20..], [0x45, 0]);
    assert_eq!(
        lost.why,
        Dropped {
            reason: 12,
            name: Some("NETFILTER_DROP".to_owned()),
            function: Some("nf_hook_slow".to_owned()),
        }
    );
    // By its socket: the device is of another namespace.
    let lost = told(event.clone(), &[2], &names, 0).expect("it is watched");
    assert_eq!((lost.space, &lost.frame.bytes[4..8]), (2, &[0; 4][..]));
    assert_eq!(told(event, &[9], &names, 0), None);
}
