//! Sets that are lacking.

use super::machine::Eval;
use crate::model::netfilter::{Elements, Set, Table};
use crate::model::want::Want;

/// Wishes for a set, or for one element of it where the key is known.
pub(super) fn want_set(eval: &mut Eval<'_, '_>, table: &Table, set: &str, key: Option<Vec<u8>>) {
    let (netns, family, name) = (eval.at.ns.netns, table.family, table.name.clone());
    let want = match key {
        Some(key) => Want::SetElem {
            netns,
            family,
            table: name,
            set: set.to_owned(),
            key,
        },
        None => Want::Set {
            netns,
            family,
            table: name,
            set: set.to_owned(),
        },
    };
    eval.cx.want(&eval.at.ns.node, want);
}

/// Whether single keys of a set can be asked for: in sets of ranges a key that is not found may
/// still meet a catch-all element, so those are read whole.
pub(super) fn asks_by_key(set: &Set) -> bool {
    matches!(set.elements, Elements::NotAsked | Elements::ByKey(_)) && !set.flags.interval
}
