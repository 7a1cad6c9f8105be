//! Sets and maps.

use serde::{Deserialize, Serialize};

use super::{Expr, Verdict};

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
    /// What it was declared with beside that.
    #[serde(default)]
    pub decl: SetDecl,
}

/// What decides nothing, but that the tools print.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDecl {
    /// Types of the key's fields as `nft` numbers them, six bits each, the last in the lowest
    /// (NFTA_SET_KEY_TYPE).
    pub key_type: u32,
    /// Likewise of a map's data (NFTA_SET_DATA_TYPE).
    pub data_type: u32,
    /// NFT_OBJECT_* that a map of objects leads to.
    pub object_type: u32,
    /// Numbers in the key are in host order (user data of `nft`).
    pub host_order: bool,
    /// What `typeof` names, where the types are not told by number: expressions of `nft` as it keeps them.
    pub typeof_key: Vec<u8>,
    /// Likewise of the data.
    pub typeof_data: Vec<u8>,
    /// Data are ranges.
    pub data_interval: bool,
    /// Milliseconds that elements live, where they don't say otherwise.
    pub timeout_ms: u64,
    /// Milliseconds between searches for old elements.
    pub gc_interval_ms: u32,
    /// Most elements; 0 any.
    pub size: u32,
    /// NFT_SET_POL_*: 0 performance, 1 memory; `None`: not said.
    pub policy: Option<u32>,
    /// Expressions that every element has.
    pub exprs: Vec<Expr>,
    /// Ranges that touch are joined (user data of `nft`).
    pub auto_merge: bool,
    /// Comment.
    pub comment: Option<String>,
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
    /// Milliseconds that it lives in all.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Expressions that run when the element is found (NFTA_SET_ELEM_EXPRESSIONS): counters only count, a
    /// limit or quota may refuse the packet.
    #[serde(default)]
    pub exprs: Vec<Expr>,
}

/// Data of a map's element.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetData {
    /// A verdict map's.
    Verdict(Verdict),
    /// Bytes that go to a register.
    Value(Vec<u8>),
}
