//! Sets and maps.

use serde::{Deserialize, Serialize};

use super::Verdict;

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// Name; `__set%d` and `__map%d` style for anonymous ones.
    pub name: String,
    /// NFT_SET_* flags.
    pub flags: SetFlags,
    /// Bytes of a key, padded to words where concatenated (NFTA_SET_KEY_LEN).
    pub key_len: u32,
    /// Bytes of each concatenated field (NFTA_SET_DESC_CONCAT); empty for one field or where unsaid.
    pub field_lens: Vec<u32>,
    /// Bytes of a map's data; 0 for verdicts and sets (NFTA_SET_DATA_LEN).
    pub data_len: u32,
    /// Elements.
    pub elements: Elements,
}

/// Flags of a set (NFT_SET_*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetFlags {
    /// 0x1: belongs to one rule.
    pub anonymous: bool,
    /// 0x2: never changes.
    pub constant: bool,
    /// 0x4: holds ranges.
    pub interval: bool,
    /// 0x8: a map.
    pub map: bool,
    /// 0x10: elements expire.
    pub timeout: bool,
    /// 0x20: rules may add to it.
    pub dynamic: bool,
    /// 0x40: maps to stateful objects.
    pub object: bool,
}

/// Elements of a set, or as much of them as was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Elements {
    /// Nobody asked, or only for single keys; those asked for are here, with the kernel's answer.
    #[default]
    NotAsked,
    /// Answers for single keys; `None`: the kernel says it is not in the set.
    ByKey(Vec<(Vec<u8>, Option<SetElem>)>),
    /// All of them.
    Known(Vec<SetElem>),
    /// Can't be read.
    Missing(String),
}

/// One element of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetElem {
    /// Key. In an interval set without `key_end` (not concatenated): the first key of a range that
    /// reaches to the key before the next element.
    pub key: Vec<u8>,
    /// Last key, for concatenated ranges (NFTA_SET_ELEM_KEY_END), both ends included field by field.
    pub key_end: Option<Vec<u8>>,
    /// NFT_SET_ELEM_INTERVAL_END: the range before ends before this key; no element itself.
    pub interval_end: bool,
    /// NFT_SET_ELEM_CATCHALL: matches where nothing else does.
    pub catchall: bool,
    /// What a map maps to.
    pub data: Option<SetData>,
    /// Comment.
    pub comment: Option<String>,
    /// Milliseconds to live, where it expires.
    pub expires_ms: Option<u64>,
    /// Names of expressions that run when the element is found (NFTA_SET_ELEM_EXPRESSIONS): counters
    /// only count, a limit or quota may refuse the packet.
    #[serde(default)]
    pub exprs: Vec<String>,
}

/// Data of a map's element.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetData {
    /// A verdict map's.
    Verdict(Verdict),
    /// Bytes that go to a register.
    Value(Vec<u8>),
}
