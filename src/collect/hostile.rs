//! Answers that no kernel gives: recorded ones, damaged. Decoders give a value or nothing.

use super::mutate::Rng;
use super::netfilter::xt_match;
use super::untrusted::{MATCHES, TARGETS, answer, extension, table};

/// What was asked, message type, body.
fn recorded() -> Vec<(&'static str, u16, Vec<u8>)> {
    let lines = include_str!("hostile.txt").lines();
    let answers = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, kind, hex] = words[..] else {
            panic!("{line}")
        };
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("a byte");
        let body = (0..hex.len() / 2).map(|at| byte(2 * at)).collect();
        (what, kind.parse().expect("a number"), body)
    });
    answers.collect()
}

#[test]
fn damaged_answers_give_a_value_or_nothing() {
    let recorded = recorded();
    let whole = |(what, kind, body): &&(&str, u16, Vec<u8>)| answer(what, *kind, body);
    let good: Vec<_> = recorded.iter().filter(whole).collect();
    assert!(good.len() > 50, "{}", good.len());
    let mut rng = Rng::new(6);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..40_000 {
        let (what, kind, body) = good[rng.below(good.len())];
        let other = good[rng.below(good.len())];
        let damaged = rng.damage(body, &other.2);
        if answer(what, *kind, &damaged) {
            taken += 1;
        } else {
            refused += 1;
        }
        // An answer to another question.
        answer(other.0, other.1, &damaged);
    }
    assert!(taken > 5_000 && refused > 2_000, "{taken} {refused}");
}

#[test]
fn damaged_extensions_give_a_value_or_nothing() {
    let mut rng = Rng::new(7);
    let mut known = 0;
    for _ in 0..40_000 {
        let mut data: Vec<u8> = (0..rng.below(260)).map(|_| 0).collect();
        data = rng.damage(&data, b"KUBE-SERVICES\0\xff\xff\x01\x00\x02\x00\x00\x00");
        let (revision, v6) = (u8::try_from(rng.below(5)).unwrap_or(0), rng.below(2) == 0);
        let name = MATCHES[rng.below(MATCHES.len())];
        let found = xt_match::decode(name, revision, &data, v6);
        known += usize::from(!matches!(
            found,
            crate::model::xtables::XtMatch::Other { .. }
        ));
        extension(name, revision, &data, v6);
        extension(TARGETS[rng.below(TARGETS.len())], revision, &data, v6);
    }
    assert!(known > 5_000, "{known}");
}

/// `iptables-legacy -t nat -A PREROUTING -p tcp -m comment --comment c -j KUBE` and the like, put together
/// as the kernel lays them out.
#[test]
fn damaged_tables_give_a_value_or_nothing() {
    let entry = |name: &str, data: &[u8]| {
        let mut bytes = vec![0u8; 112];
        let size = 32 + data.len();
        bytes[88..90].copy_from_slice(&112u16.to_ne_bytes());
        let next = u16::try_from(112 + size).expect("small");
        bytes[90..92].copy_from_slice(&next.to_ne_bytes());
        let mut target = u16::try_from(size).expect("small").to_ne_bytes().to_vec();
        target.extend_from_slice(name.as_bytes());
        target.resize(32, 0);
        target.extend_from_slice(data);
        bytes.extend(target);
        bytes
    };
    let verdict = |number: i32| {
        let mut data = number.to_ne_bytes().to_vec();
        data.resize(8, 0);
        entry("", &data)
    };
    let mut user = b"KUBE-SERVICES".to_vec();
    user.resize(32, 0);
    let mut error = b"ERROR".to_vec();
    error.resize(32, 0);
    // PREROUTING: a jump and the policy; a user chain with one rule; the end.
    let start = 40;
    let (jump, policy) = (verdict(152 * 2 + 176), verdict(-2));
    let offset = jump.len();
    let parts = [
        vec![0; start],
        jump,
        policy,
        entry("ERROR", &user),
        verdict(-1),
        verdict(-5),
        entry("ERROR", &error),
    ];
    let bytes = parts.concat();
    let mut info = vec![0u8; 84];
    info[32..36].copy_from_slice(&1u32.to_ne_bytes());
    info[56..60].copy_from_slice(&u32::try_from(offset).expect("small").to_ne_bytes());
    let read = |info: &[u8], bytes: Vec<u8>| table(false, info, bytes);
    assert_eq!(read(&info, bytes.clone()), Some((2, 2)));
    let mut rng = Rng::new(8);
    let mut taken = 0;
    for _ in 0..20_000 {
        let damaged_info = match rng.below(4) {
            0 => rng.damage(&info, &bytes),
            _ => info.clone(),
        };
        let damaged = rng.damage(&bytes, &info);
        taken += usize::from(read(&damaged_info, damaged).is_some());
    }
    assert!(taken > 1_000, "{taken}");
    // Every verdict: also the smallest number there is.
    for number in [i32::MIN, i32::MIN + 1, i32::MAX, -1, -6, 0] {
        let mut bytes = bytes.clone();
        let at = start + offset + 112 + 32;
        bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        read(&info, bytes);
    }
}
