//! Values of which some bits may be unknown, and answers that may be.

/// Answer to a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tri {
    /// It holds.
    Yes,
    /// It does not.
    No,
    /// What is missing to tell.
    Unknown(String),
}

impl Tri {
    /// An answer that `bool` gives, or what is missing.
    pub(super) fn from_option(answer: Option<bool>, missing: impl FnOnce() -> String) -> Self {
        match answer {
            Some(true) => Self::Yes,
            Some(false) => Self::No,
            None => Self::Unknown(missing()),
        }
    }

    /// The opposite where `negate` is set.
    pub(super) fn negated(self, negate: bool) -> Self {
        match (self, negate) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            (own, _) => own,
        }
    }

    /// Both hold. A plain no wins over an unknown.
    pub(super) fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Yes => other(),
            Self::No => Self::No,
            Self::Unknown(why) => match other() {
                Self::No => Self::No,
                Self::Yes | Self::Unknown(_) => Self::Unknown(why),
            },
        }
    }

    /// Either holds. A plain yes wins over an unknown.
    pub(super) fn or(self, other: impl FnOnce() -> Self) -> Self {
        self.negated(true)
            .and(|| other().negated(true))
            .negated(true)
    }
}

impl From<bool> for Tri {
    fn from(answer: bool) -> Self {
        if answer { Self::Yes } else { Self::No }
    }
}

/// Ports that a port may be which its kernel chooses: first and last.
pub(crate) type FreePorts = (u16, u16);

/// Where neither the setting nor a rule says more.
pub(crate) const UNPRIVILEGED: FreePorts = (1024, u16::MAX);

/// Whether a port that is any free one lies in a range, ends included.
///
/// `free`: what it may be. A range that names less than a thousandth of these (a single port, say) is
/// taken not to hold it. A range that names some of them is unknown.
pub(super) fn free_port_within(first: u16, last: u16, free: FreePorts) -> Option<bool> {
    let named = match last.min(free.1).checked_sub(first.max(free.0)) {
        Some(more) => usize::from(more) + 1,
        None => 0,
    };
    free_port_of(named, 0, free)
}

/// The same where that many of them are named, and of some more it is not known.
pub(super) fn free_port_of(named: usize, doubtful: usize, free: FreePorts) -> Option<bool> {
    let all = usize::from(free.1.saturating_sub(free.0)) + 1;
    if named == all {
        Some(true)
    } else if (named + doubtful) * 1000 < all {
        Some(false)
    } else {
        None
    }
}

/// Bytes with a mask of the bits that are known. Unknown bits are 0 in `value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    value: Vec<u8>,
    known: Vec<u8>,
    /// Bytes of a port that is any free one: equal to none that a rule names.
    free: Vec<bool>,
    /// What such a port may be.
    range: FreePorts,
}

impl Bits {
    /// All bits known.
    pub(super) fn known(value: impl Into<Vec<u8>>) -> Self {
        let value = value.into();
        let known = vec![0xff; value.len()];
        let free = vec![false; value.len()];
        Self {
            value,
            known,
            free,
            range: UNPRIVILEGED,
        }
    }

    /// No bit known.
    pub(super) fn unknown(len: usize) -> Self {
        Self {
            value: vec![0; len],
            known: vec![0; len],
            free: vec![false; len],
            range: UNPRIVILEGED,
        }
    }

    /// A port in network order; any of the free ones where `None`.
    pub(super) fn port(number: Option<u16>, range: FreePorts) -> Self {
        number.map_or_else(
            || Self {
                free: vec![true; 2],
                range,
                ..Self::unknown(2)
            },
            |port| Self::known(port.to_be_bytes()),
        )
    }

    /// A number as kernels of little-endian machines hold it. Kubernetes nodes are amd64 and arm64;
    /// big-endian ones (s390x) are not evaluated.
    pub(super) fn host32(number: Option<u32>) -> Self {
        number.map_or_else(|| Self::unknown(4), |n| Self::known(n.to_le_bytes()))
    }

    /// A number between both, of `len` bytes (8 at most), as little-endian machines hold it: known are the bits in front
    /// of the first in which both differ.
    pub(super) fn host_between(from: u64, to: u64, len: usize) -> Self {
        let doubt = u64::MAX
            .checked_shr((from ^ to).leading_zeros())
            .unwrap_or(0);
        let mut bits = Self::known((from & !doubt).to_le_bytes());
        bits.known = (!doubt).to_le_bytes().to_vec();
        bits.slice(0, len)
    }

    /// A number in network order.
    pub(super) fn net16(number: Option<u16>) -> Self {
        number.map_or_else(|| Self::unknown(2), |n| Self::known(n.to_be_bytes()))
    }

    /// A device name as registers hold it: 16 bytes, padded with zeros.
    pub(super) fn name(name: &str) -> Self {
        let mut value: Vec<u8> = name.bytes().take(15).collect();
        value.resize(16, 0);
        Self::known(value)
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> usize {
        self.value.len()
    }

    /// The bytes where all bits are known.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        self.known
            .iter()
            .all(|mask| *mask == 0xff)
            .then_some(self.value.as_slice())
    }

    /// The number in host order, where four bytes are known.
    pub(super) fn host_u32(&self) -> Option<u32> {
        let bytes: [u8; 4] = self.bytes()?.get(..4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    /// The number in network order, where two bytes are known.
    pub(super) fn net_u16(&self) -> Option<u16> {
        let bytes: [u8; 2] = self.bytes()?.get(..2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    }

    /// The smallest value it may have.
    pub(super) fn min(&self) -> Vec<u8> {
        self.value.clone()
    }

    /// The largest value it may have.
    pub(super) fn max(&self) -> Vec<u8> {
        let pairs = self.value.iter().zip(&self.known);
        pairs.map(|(value, known)| value | !known).collect()
    }

    /// Part of it; what lies outside is unknown.
    pub(super) fn slice(&self, from: usize, len: usize) -> Self {
        let part = |bytes: &[u8]| -> Vec<u8> {
            let mut out: Vec<u8> = bytes.iter().skip(from).take(len).copied().collect();
            out.resize(len, 0);
            out
        };
        let mut free: Vec<bool> = self.free.iter().skip(from).take(len).copied().collect();
        free.resize(len, false);
        Self {
            value: part(&self.value),
            known: part(&self.known),
            free,
            range: self.range,
        }
    }

    /// Overwrites the bytes from `from` on; what reaches beyond the end is left out.
    pub(super) fn overwrite(&mut self, from: usize, with: &Self) {
        let here = self.value.iter_mut().zip(self.known.iter_mut()).skip(from);
        for ((value, known), (new, mask)) in here.zip(with.value.iter().zip(&with.known)) {
            *value = *new;
            *known = *mask;
        }
        for (own, new) in self.free.iter_mut().skip(from).zip(&with.free) {
            *own = *new;
        }
        if with.free.contains(&true) {
            self.range = with.range;
        }
    }

    /// Makes all bits unknown.
    pub(super) fn forget(&mut self) {
        self.value.fill(0);
        self.known.fill(0);
        self.free.fill(false);
    }

    /// Appends.
    pub(super) fn push(&mut self, more: &Self) {
        self.value.extend_from_slice(&more.value);
        self.known.extend_from_slice(&more.known);
        self.free.extend_from_slice(&more.free);
        if more.free.contains(&true) {
            self.range = more.range;
        }
    }

    /// `(x & mask) ^ xor`; missing mask bytes are 0.
    pub(super) fn mask_xor(&self, mask: &[u8], xor: &[u8]) -> Self {
        let at = |bytes: &[u8], index: usize| bytes.get(index).copied().unwrap_or(0);
        let mut out = self.clone();
        let both = out.value.iter_mut().zip(out.known.iter_mut());
        for (index, (value, known)) in both.enumerate() {
            let mask = at(mask, index);
            *known |= !mask;
            *value = ((*value & mask) ^ at(xor, index)) & *known;
        }
        // Part of a free port is nothing that a rule could name or not.
        if mask.iter().any(|byte| *byte != 0xff) || xor.iter().any(|byte| *byte != 0) {
            out.free.fill(false);
        }
        out
    }

    /// Bitwise operation with another value: 3 and, 4 or, 5 xor (NFT_BITWISE_*).
    pub(super) fn combine(&self, op: u32, other: &Self) -> Option<Self> {
        let mut out = Self::unknown(self.len());
        for index in 0..self.len() {
            let get = |bytes: &[u8]| bytes.get(index).copied().unwrap_or(0);
            let (a, ka) = (get(&self.value), get(&self.known));
            let (b, kb) = (get(&other.value), get(&other.known));
            let (value, known) = match op {
                3 => (a & b, (ka & kb) | (ka & !a) | (kb & !b)),
                4 => (a | b, (ka & kb) | (ka & a) | (kb & b)),
                5 => (a ^ b, ka & kb),
                _ => return None,
            };
            *out.value.get_mut(index)? = value & known;
            *out.known.get_mut(index)? = known;
        }
        Some(out)
    }

    /// Shifts 32-bit words in host order, carrying from word to word.
    ///
    /// Source: `nft_bitwise_eval_lshift()`, `nft_bitwise_eval_rshift()`, net/netfilter/nft_bitwise.c.
    pub(super) fn shift(&self, bits: u32, left: bool) -> Self {
        let len = self.len();
        let word = |bytes: &[u8], index: usize| {
            let byte = |n: usize| u32::from(bytes.get(index * 4 + n).copied().unwrap_or(0));
            byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
        };
        let words = len.div_ceil(4);
        let run = |bytes: &[u8], fill: u32| -> Vec<u8> {
            let mut out = vec![0_u32; words];
            let spare = 32_u32.saturating_sub(bits);
            let edge = |shifted: Option<u32>| shifted.unwrap_or(0);
            let order: Vec<usize> = if left {
                (0..words).rev().collect()
            } else {
                (0..words).collect()
            };
            let mut carry = if left {
                edge(fill.checked_shr(spare))
            } else {
                edge(fill.checked_shl(spare))
            };
            for index in order {
                let source = word(bytes, index);
                let (moved, rest) = if left {
                    (source.checked_shl(bits), source.checked_shr(spare))
                } else {
                    (source.checked_shr(bits), source.checked_shl(spare))
                };
                if let Some(slot) = out.get_mut(index) {
                    *slot = edge(moved) | carry;
                }
                carry = edge(rest);
            }
            let mut flat: Vec<u8> = out.into_iter().flat_map(u32::to_le_bytes).collect();
            flat.truncate(len);
            flat
        };
        Self {
            value: run(&self.value, 0),
            known: run(&self.known, u32::MAX),
            free: vec![false; len],
            range: self.range,
        }
    }

    /// Reverses the bytes of each number of `size` bytes.
    pub(super) fn swapped(&self, size: usize) -> Self {
        let turn = |bytes: &[u8]| -> Vec<u8> {
            let chunks = bytes.chunks(size.max(1));
            chunks.flat_map(|c| c.iter().rev().copied()).collect()
        };
        Self {
            value: turn(&self.value),
            known: turn(&self.known),
            free: self.free.clone(),
            range: self.range,
        }
    }

    /// Whether it is any free port.
    pub(super) fn is_free_port(&self) -> bool {
        self.free == [true, true]
    }

    /// Whether it lies in a range of ports, where it is any free port.
    pub(super) fn free_within(&self, first: u16, last: u16) -> Option<bool> {
        free_port_within(first, last, self.range)
    }

    /// Whether it is equal to the constant; shorter constants compare their own length.
    pub(super) fn equals(&self, data: &[u8]) -> Option<bool> {
        let mut all = true;
        for (index, want) in data.iter().enumerate() {
            let value = self.value.get(index).copied().unwrap_or(0);
            let known = self.known.get(index).copied().unwrap_or(0);
            if (value ^ want) & known != 0 {
                return Some(false);
            }
            all &= known == 0xff;
        }
        if self.free.iter().take(data.len()).any(|free| *free) {
            return Some(false);
        }
        all.then_some(true)
    }

    /// Whether it is at most the constant, as big-endian numbers.
    pub(super) fn at_most(&self, data: &[u8]) -> Option<bool> {
        if let (true, [a, b]) = (self.is_free_port(), data) {
            return self.free_within(0, u16::from_be_bytes([*a, *b]));
        }
        let (min, max) = (self.min(), self.max());
        let len = data.len();
        let head = |bytes: &[u8]| bytes.iter().take(len).copied().collect::<Vec<u8>>();
        if head(&max).as_slice() <= data {
            Some(true)
        } else if head(&min).as_slice() > data {
            Some(false)
        } else {
            None
        }
    }

    /// Whether it is at least the constant.
    pub(super) fn at_least(&self, data: &[u8]) -> Option<bool> {
        if let (true, [a, b]) = (self.is_free_port(), data) {
            return self.free_within(u16::from_be_bytes([*a, *b]), u16::MAX);
        }
        let (min, max) = (self.min(), self.max());
        let len = data.len();
        let head = |bytes: &[u8]| bytes.iter().take(len).copied().collect::<Vec<u8>>();
        if head(&min).as_slice() >= data {
            Some(true)
        } else if head(&max).as_slice() < data {
            Some(false)
        } else {
            None
        }
    }

    /// Whether it lies between both constants, ends included.
    pub(super) fn within(&self, from: &[u8], to: &[u8]) -> Option<bool> {
        if let (true, [a, b], [c, d]) = (self.is_free_port(), from, to) {
            let (first, last) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
            return self.free_within(first, last);
        }
        match (self.at_least(from), self.at_most(to)) {
            (Some(true), Some(true)) => Some(true),
            (Some(false), _) | (_, Some(false)) => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_make_unknown_bits_known() {
        let mark = Bits::host32(None).mask_xor(&0x4000_u32.to_le_bytes(), &[]);
        assert_eq!(mark.equals(&0x4000_u32.to_le_bytes()), None);
        assert_eq!(mark.equals(&0x8000_u32.to_le_bytes()), Some(false));
        let none = Bits::host32(None).mask_xor(&[], &7_u32.to_le_bytes());
        assert_eq!(none.equals(&7_u32.to_le_bytes()), Some(true));
    }

    #[test]
    fn a_free_port_is_none_that_rules_name() {
        let port = Bits::port(None, (32768, 60999));
        assert_eq!(port.equals(&[0, 80]), Some(false));
        assert_eq!(port.within(&[0x75, 0x30], &[0x7f, 0xff]), Some(false));
        assert_eq!(port.within(&[4, 0], &[0xff, 0xff]), Some(true));
        assert_eq!(port.within(&[0x80, 0], &[0xee, 0x47]), Some(true));
        assert_eq!(port.within(&[0x80, 0], &[0xee, 0x46]), None);
        assert_eq!(port.within(&[0x90, 0], &[0x90, 1]), Some(false));
        assert_eq!(port.at_most(&[3, 0xff]), Some(false));
        assert_eq!(port.mask_xor(&[0xf0, 0], &[]).equals(&[0x80, 0]), None);
        let mut both = Bits::known([0; 4]);
        both.overwrite(2, &port);
        assert_eq!(
            both.slice(2, 2).within(&[0x80, 0], &[0xff, 0xff]),
            Some(true)
        );
        let other = Bits::port(None, UNPRIVILEGED);
        assert_eq!(other.within(&[0x80, 0], &[0xee, 0x47]), None);
    }

    #[test]
    fn order_needs_only_the_bits_that_decide() {
        let port = Bits::net16(None);
        assert_eq!(port.at_least(&[0, 0]), Some(true));
        assert_eq!(port.at_least(&[4, 0]), None);
        assert_eq!(Bits::net16(Some(80)).within(&[0, 80], &[0, 90]), Some(true));
        assert_eq!(
            Bits::net16(Some(91)).within(&[0, 80], &[0, 90]),
            Some(false)
        );
    }

    #[test]
    fn shifts_carry_between_words() {
        let value = Bits::known([0, 0, 0, 0x80, 1, 0, 0, 0]);
        let left = value.shift(1, true);
        assert_eq!(left.bytes(), Some([0, 0, 0, 0, 2, 0, 0, 0].as_slice()));
        let right = Bits::known([1, 0, 0, 0, 0, 0, 0, 0]).shift(1, false);
        assert_eq!(right.bytes(), Some([0, 0, 0, 0, 0, 0, 0, 0x80].as_slice()));
        assert_eq!(
            Bits::host32(None).shift(24, false).max(),
            vec![0xff, 0, 0, 0]
        );
    }

    #[test]
    fn three_valued_logic() {
        let unknown = || Tri::Unknown("x".to_owned());
        assert_eq!(unknown().and(|| Tri::No), Tri::No);
        assert_eq!(unknown().or(|| Tri::Yes), Tri::Yes);
        assert_eq!(unknown().and(|| Tri::Yes), unknown());
    }
}
