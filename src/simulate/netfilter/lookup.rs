//! Sets and maps: exact keys, ranges, concatenated ranges, and the element that catches the rest.
//!
//! Source: net/netfilter/nft_set_{hash,rbtree,pipapo}.c, nft_lookup.c (v6.12).

use super::bits::Bits;
use crate::model::netfilter::{Elements, Set, SetElem};

/// Answer of a lookup.
#[derive(Debug, PartialEq)]
pub(super) enum Found<'a> {
    /// This element.
    Elem(&'a SetElem),
    /// None.
    Absent,
    /// The elements, or this one, were not read.
    Unread,
    /// What is missing.
    Unknown(String),
}

/// A large set's elements in an order in which they are found by halving.
#[derive(Debug)]
pub(super) struct Order {
    /// Elements by key; of equal ones the first comes first. `None`: not all of their keys are as
    /// long as the set's, so that they are compared one by one.
    exact: Option<Vec<usize>>,
    /// Some element has a first and a last key.
    ended: bool,
    /// Starts and ends of ranges; of equal ones the start comes last.
    points: Vec<usize>,
    catchall: Option<usize>,
}

impl Order {
    pub(super) fn of(set: &Set, elements: &[SetElem]) -> Self {
        let among = |wanted: &dyn Fn(&SetElem) -> bool| -> Vec<usize> {
            let mine = elements.iter().enumerate().filter(|(_, elem)| wanted(elem));
            mine.map(|(at, _)| at).collect()
        };
        let key = |at: &usize| elements.get(*at).map(|elem| elem.key.as_slice());
        let own = |elem: &SetElem| !elem.catchall && !elem.interval_end;
        let mut exact = among(&own);
        let whole = |at: &usize| key(at).map(<[u8]>::len) == usize::try_from(set.key_len).ok();
        let sound = exact.iter().all(whole);
        exact.sort_by_key(key);
        let mut points = among(&|elem| !elem.catchall);
        let start = |at: &usize| elements.get(*at).is_some_and(|elem| !elem.interval_end);
        points.sort_by_key(|at| (key(at), start(at)));
        Self {
            exact: sound.then_some(exact),
            ended: elements.iter().any(|elem| elem.key_end.is_some()),
            points,
            catchall: elements.iter().position(|elem| elem.catchall),
        }
    }

    /// The first element with this key.
    fn exact<'a>(&self, elements: &'a [SetElem], wanted: &[u8]) -> Option<Found<'a>> {
        let exact = self.exact.as_ref()?;
        let key = |at: &usize| elements.get(*at).map(|elem| elem.key.as_slice());
        let first = exact.partition_point(|at| key(at) < Some(wanted));
        let hit = exact.get(first).filter(|at| key(at) == Some(wanted));
        let elem = hit.and_then(|at| elements.get(*at));
        Some(elem.map_or(Found::Absent, Found::Elem))
    }

    /// The last start or end at or below a key.
    fn below<'a>(&self, elements: &'a [SetElem], wanted: &[u8]) -> Option<&'a SetElem> {
        let key = |at: &usize| elements.get(*at).map(|elem| elem.key.as_slice());
        let above = self.points.partition_point(|at| key(at) <= Some(wanted));
        elements.get(*self.points.get(above.checked_sub(1)?)?)
    }
}

/// Looks a key up; with the order of the set's elements, where it has one.
pub(super) fn find<'a>(set: &'a Set, key: &Bits, order: Option<&Order>) -> Found<'a> {
    match &set.elements {
        Elements::NotAsked => Found::Unread,
        Elements::Missing(why) => Found::Unknown(format!("elements of set {}: {why}", set.name)),
        Elements::ByKey(answers) => {
            let Some(exact) = key.bytes() else {
                return Found::Unread;
            };
            match answers.iter().find(|(own, _)| own == exact) {
                Some((_, Some(elem))) => Found::Elem(elem),
                Some((_, None)) => Found::Absent,
                None => Found::Unread,
            }
        }
        Elements::Known(elements) => among(set, elements, key, order),
    }
}

fn among<'a>(set: &Set, elements: &'a [SetElem], key: &Bits, order: Option<&Order>) -> Found<'a> {
    let unknown = || Found::Unknown(format!("the key for set {} is not known", set.name));
    let catchall = match order {
        Some(order) => order.catchall.and_then(|at| elements.get(at)),
        None => elements.iter().find(|elem| elem.catchall),
    };
    let ranges = set.flags.interval && set.field_lens.len() < 2;
    let ended = match order {
        Some(order) => order.ended,
        None => elements.iter().any(|elem| elem.key_end.is_some()),
    };
    let found = if ranges && !ended {
        interval(elements, key, order)
    } else {
        let exact = order.filter(|order| !order.ended);
        let exact = exact.zip(key.bytes());
        let found = exact.and_then(|(order, bytes)| order.exact(elements, bytes));
        found.unwrap_or_else(|| one_by_one(set, elements, key))
    };
    match (found, catchall) {
        (Found::Elem(elem), _) | (Found::Absent, Some(elem)) => Found::Elem(elem),
        (Found::Unread | Found::Unknown(_), _) => unknown(),
        (Found::Absent, None) => Found::Absent,
    }
}

fn one_by_one<'a>(set: &Set, elements: &'a [SetElem], key: &Bits) -> Found<'a> {
    let mut possible = false;
    for elem in elements.iter().filter(|e| !e.catchall && !e.interval_end) {
        let hit = match &elem.key_end {
            Some(end) => fields_within(set, key, &elem.key, end),
            None => key.equals(&elem.key),
        };
        match hit {
            Some(true) => return Found::Elem(elem),
            Some(false) => {}
            None => possible = true,
        }
    }
    if possible {
        Found::Unread
    } else {
        Found::Absent
    }
}

/// Whether each field of a concatenated key lies in its range.
fn fields_within(set: &Set, key: &Bits, from: &[u8], to: &[u8]) -> Option<bool> {
    let whole = [set.key_len];
    let lens = if set.field_lens.is_empty() {
        &whole[..]
    } else {
        &set.field_lens
    };
    let mut at = 0;
    let mut sure = true;
    for len in lens {
        // NFT_REG32_COUNT words are all that a key can have; anything longer is no set's.
        let len = usize::try_from(*len).ok().filter(|len| *len <= 64)?;
        let part = |bytes: &[u8]| -> Vec<u8> { bytes.iter().skip(at).take(len).copied().collect() };
        match key.slice(at, len).within(&part(from), &part(to)) {
            Some(true) => {}
            Some(false) => return Some(false),
            None => sure = false,
        }
        at += len.next_multiple_of(4);
    }
    sure.then_some(true)
}

/// The element whose range holds the key: ranges begin at an element and end before the next one or
/// its end mark.
fn interval<'a>(elements: &'a [SetElem], key: &Bits, order: Option<&Order>) -> Found<'a> {
    // The last start at or below a key; a range that begins where another ends wins over the end.
    let below = |point: &[u8]| match order {
        Some(order) => order.below(elements, point),
        None => elements
            .iter()
            .filter(|elem| !elem.catchall && elem.key.as_slice() <= point)
            .max_by(|a, b| a.key.cmp(&b.key).then(b.interval_end.cmp(&a.interval_end))),
    };
    if key.is_free_port() {
        return free_port(elements, key);
    }
    let (low, high) = (key.min(), key.max());
    let (first, last) = (below(&low), below(&high));
    let same = match (first, last) {
        (Some(a), Some(b)) => std::ptr::eq(a, b),
        (None, None) => true,
        _ => false,
    };
    match first {
        _ if !same => Found::Unknown("the key may lie in several ranges".to_owned()),
        Some(elem) if !elem.interval_end => Found::Elem(elem),
        _ => Found::Absent,
    }
}

/// Any free port in a set of port ranges.
fn free_port<'a>(elements: &'a [SetElem], key: &Bits) -> Found<'a> {
    let unknown = || Found::Unknown("ranges of ports".to_owned());
    let port = |bytes: &[u8]| <[u8; 2]>::try_from(bytes).ok().map(u16::from_be_bytes);
    let starts = elements
        .iter()
        .filter(|elem| !elem.catchall && !elem.interval_end);
    for elem in starts {
        let above = elements
            .iter()
            .filter(|other| !other.catchall && other.key > elem.key);
        let next = above.map(|other| other.key.as_slice()).min();
        let last = next.map_or(Some(u16::MAX), |next| Some(port(next)?.saturating_sub(1)));
        let within = port(&elem.key)
            .zip(last)
            .map(|(first, last)| key.free_within(first, last));
        match within.flatten() {
            Some(false) => {}
            Some(true) => return Found::Elem(elem),
            None => return unknown(),
        }
    }
    Found::Absent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::netfilter::SetFlags;

    fn elem(key: &[u8]) -> SetElem {
        SetElem {
            key: key.to_vec(),
            key_end: None,
            interval_end: false,
            catchall: false,
            data: None,
            comment: None,
            expires_ms: None,
            timeout_ms: None,
            exprs: Vec::new(),
        }
    }

    fn set(key_len: u32, interval: bool, elements: Vec<SetElem>) -> Set {
        Set {
            name: "s".to_owned(),
            flags: SetFlags {
                interval,
                ..SetFlags::default()
            },
            key_len,
            field_lens: Vec::new(),
            data_len: 0,
            decl: crate::model::netfilter::SetDecl::default(),
            elements: Elements::Known(elements),
        }
    }

    fn has(set: &Set, key: &[u8]) -> bool {
        matches!(find(set, &Bits::known(key), None), Found::Elem(_))
    }

    #[test]
    fn ranges_end_before_their_end_mark() {
        // nft add element ... { 10.0.0.0/8, 192.168.0.0/16 }
        let end = |key: &[u8]| SetElem {
            interval_end: true,
            ..elem(key)
        };
        let set = set(
            4,
            true,
            vec![
                end(&[0, 0, 0, 0]),
                elem(&[10, 0, 0, 0]),
                end(&[11, 0, 0, 0]),
                elem(&[11, 0, 0, 0]),
                end(&[11, 0, 1, 0]),
                elem(&[192, 168, 0, 0]),
                end(&[192, 169, 0, 0]),
            ],
        );
        assert!(has(&set, &[10, 255, 255, 255]));
        assert!(has(&set, &[11, 0, 0, 255]));
        assert!(!has(&set, &[11, 0, 1, 0]));
        assert!(!has(&set, &[9, 255, 255, 255]));
        assert!(has(&set, &[192, 168, 3, 4]));
        let net = Bits::known([10, 1, 2, 0]).mask_xor(&[255, 255, 255, 0], &[]);
        assert!(matches!(find(&set, &net, None), Found::Elem(_)));
        assert!(matches!(
            find(&set, &Bits::unknown(4), None),
            Found::Unknown(_)
        ));
    }

    #[test]
    fn concatenated_ranges_are_checked_field_by_field() {
        let mut range = elem(&[10, 0, 0, 0, 0, 80, 0, 0]);
        range.key_end = Some(vec![10, 0, 0, 255, 0, 90, 0, 0]);
        let mut set = set(8, true, vec![range]);
        set.field_lens = vec![4, 2];
        assert!(has(&set, &[10, 0, 0, 7, 0, 85, 0, 0]));
        assert!(!has(&set, &[10, 0, 0, 7, 0, 91, 0, 0]));
        assert!(!has(&set, &[10, 0, 1, 7, 0, 85, 0, 0]));
    }

    #[test]
    fn the_rest_is_caught_last() {
        let mut rest = elem(&[]);
        rest.catchall = true;
        let set = set(4, false, vec![rest, elem(&[1, 2, 3, 4])]);
        let Found::Elem(hit) = find(&set, &Bits::known([1, 2, 3, 4]), None) else {
            panic!("found");
        };
        assert!(!hit.catchall);
        assert!(has(&set, &[9, 9, 9, 9]));
    }

    #[test]
    fn answers_for_single_keys() {
        let mut set = set(4, false, Vec::new());
        set.elements = Elements::ByKey(vec![
            (vec![1, 1, 1, 1], Some(elem(&[1, 1, 1, 1]))),
            (vec![2, 2, 2, 2], None),
        ]);
        assert!(has(&set, &[1, 1, 1, 1]));
        assert_eq!(find(&set, &Bits::known([2, 2, 2, 2]), None), Found::Absent);
        assert_eq!(find(&set, &Bits::known([3, 3, 3, 3]), None), Found::Unread);
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        fn element(last_too: bool) -> impl Strategy<Value = SetElem> {
            let key = || prop::collection::vec(0_u8..4, 4);
            let flags = (0..8_u8, 0..40_u8, prop::option::of(key()));
            (key(), flags).prop_map(move |(key, (end, rest, last))| SetElem {
                interval_end: end == 0,
                catchall: rest == 0,
                key_end: last.filter(|_| last_too && end < 4),
                ..elem(&key)
            })
        }

        fn a_set() -> impl Strategy<Value = Set> {
            (any::<bool>(), any::<bool>(), any::<bool>()).prop_flat_map(|(ranges, last, concat)| {
                prop::collection::vec(element(last), 0..80).prop_map(move |elements| {
                    let mut set = set(4, ranges, elements);
                    if concat {
                        set.key_len = 8;
                        set.field_lens = vec![2, 2];
                    }
                    set
                })
            })
        }

        fn a_key() -> impl Strategy<Value = Bits> {
            let known = prop::collection::vec(0_u8..5, 4).prop_map(Bits::known);
            let masks = vec![vec![255, 255, 255, 0], vec![255, 0, 255, 255], vec![0; 4]];
            // The mask that makes bits known: those that it leaves out stay unknown here.
            let partly = (known.clone(), prop::sample::select(masks)).prop_map(|(own, mask)| {
                let mut key = Bits::unknown(4);
                for (at, byte) in mask.iter().enumerate().filter(|(_, byte)| **byte == 255) {
                    let _ = byte;
                    key.overwrite(at, &own.slice(at, 1));
                }
                key
            });
            let port = Just(Bits::port(None, (1024, 65535)));
            prop_oneof![6 => known, 2 => partly, 1 => port]
        }

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(2000))]

            /// What is found by halving is what is found from the beginning.
            #[test]
            fn the_order_changes_no_answer(set in a_set(), key in a_key()) {
                let Elements::Known(elements) = &set.elements else { panic!("known") };
                let order = Order::of(&set, elements);
                let same = |a: &Found<'_>, b: &Found<'_>| match (a, b) {
                    (Found::Elem(a), Found::Elem(b)) => std::ptr::eq(*a, *b),
                    (a, b) => a == b,
                };
                let (a, b) = (find(&set, &key, Some(&order)), find(&set, &key, None));
                prop_assert!(same(&a, &b), "{a:?} and {b:?}");
            }
        }
    }
}
