//! The kernel's own types: where fields are, and names of numbers.
//!
//! Source: Documentation/bpf/btf.rst, include/uapi/linux/btf.h. Written here: the library for it (btf-rs) is under the
//! LGPL, which a static program can't well keep, and three questions are asked.

/// `btf_header.magic` where the file's byte order is this machine's.
const MAGIC: u16 = 0xeb9f;
/// Fields inside unnamed unions inside unnamed structures, so deep.
const DEEPEST: u8 = 8;

/// BTF_KIND_*
mod kind {
    pub const PTR: u8 = 2;
    pub const STRUCT: u8 = 4;
    pub const UNION: u8 = 5;
    pub const ENUM: u8 = 6;
    pub const TYPEDEF: u8 = 8;
    pub const VOLATILE: u8 = 9;
    pub const CONST: u8 = 10;
    pub const RESTRICT: u8 = 11;
    pub const FUNC_PROTO: u8 = 13;
    pub const TYPE_TAG: u8 = 18;
}

/// Types of one kernel.
pub struct Btf {
    bytes: Vec<u8>,
    /// Where each type begins; the first one has number 1.
    types: Vec<usize>,
    strings: usize,
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u8,
    count: usize,
    /// Offsets of its members have the length of bit fields in their upper 8 bits.
    bitfields: bool,
    /// Size, or the type it is made of.
    of: u32,
    /// Where what is behind its head begins.
    rest: usize,
}

impl Btf {
    /// Reads the whole of `/sys/kernel/btf/vmlinux`. Errors: it is no such file, or not all of one.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, String> {
        let cut = || "it is cut short".to_owned();
        let word = |at: usize| word(&bytes, at).ok_or_else(cut);
        let [a, b, ..] = *bytes else {
            return Err(cut());
        };
        if u16::from_ne_bytes([a, b]) != MAGIC {
            return Err("it holds no BTF of this machine's byte order".to_owned());
        }
        let head = word(4)?;
        let begin = head.saturating_add(word(8)?);
        let end = begin.saturating_add(word(12)?);
        let strings = head.saturating_add(word(16)?);
        if end > bytes.len() || strings > bytes.len() {
            return Err(cut());
        }
        let mut all = Self {
            bytes,
            types: Vec::new(),
            strings,
        };
        let mut at = begin;
        while at < end {
            let one = all.at(at).ok_or_else(cut)?;
            all.types.push(at);
            at = one.rest.saturating_add(one.behind().ok_or_else(|| {
                format!(
                    "type {} is of the unknown kind {}",
                    all.types.len(),
                    one.kind
                )
            })?);
        }
        Ok(all)
    }

    fn at(&self, at: usize) -> Option<Type> {
        let info = word(&self.bytes, at.checked_add(4)?)?;
        Some(Type {
            name: u32::try_from(word(&self.bytes, at)?).ok()?,
            kind: u8::try_from(info >> 24 & 0x1f).ok()?,
            count: info & 0xffff,
            bitfields: info >> 31 != 0,
            of: u32::try_from(word(&self.bytes, at.checked_add(8)?)?).ok()?,
            rest: at.checked_add(12)?,
        })
    }

    fn get(&self, number: u32) -> Option<Type> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        self.at(*self.types.get(index)?)
    }

    fn name(&self, offset: usize) -> &[u8] {
        let from = self.strings.saturating_add(offset);
        let rest = self.bytes.get(from..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn is_named(&self, one: Type, name: &str) -> bool {
        usize::try_from(one.name).is_ok_and(|offset| self.name(offset) == name.as_bytes())
    }

    fn find(&self, kind: u8, name: &str) -> Option<Type> {
        let mut all = self.types.iter().filter_map(|at| self.at(*at));
        all.find(|one| one.kind == kind && self.is_named(*one, name))
    }

    /// The type behind other names of it and behind `const` and the like.
    fn plain(&self, number: u32) -> Option<Type> {
        let mut one = self.get(number)?;
        for _ in 0..=DEEPEST {
            match one.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    one = self.get(one.of)?;
                }
                _ => return Some(one),
            }
        }
        None
    }

    /// Words of a type's list, `size` of them for each.
    fn list<const SIZE: usize>(&self, one: Type) -> impl Iterator<Item = [usize; SIZE]> + '_ {
        (0..one.count).filter_map(move |index| {
            let mut words = [0; SIZE];
            for (part, own) in words.iter_mut().enumerate() {
                *own = word(&self.bytes, one.rest + (index * SIZE + part) * 4)?;
            }
            Some(words)
        })
    }

    /// Bytes from the beginning of a structure to a field of it, or of the fields in it that the path leads through.
    pub fn offset(&self, structure: &str, path: &[&str]) -> Option<u16> {
        let mut inside = self.find(kind::STRUCT, structure)?;
        let mut bits = 0_usize;
        for (index, name) in path.iter().enumerate() {
            let (own, number) = self.field(inside, name, DEEPEST)?;
            bits = bits.checked_add(own)?;
            if index + 1 < path.len() {
                inside = self.plain(number)?;
            }
        }
        let bytes = bits.is_multiple_of(8).then_some(bits / 8)?;
        i16::try_from(bytes).ok()?.try_into().ok()
    }

    /// Bits to a field, and its type.
    fn field(&self, inside: Type, name: &str, depth: u8) -> Option<(usize, u32)> {
        if !matches!(inside.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        let depth = depth.checked_sub(1)?;
        for [named, number, offset] in self.list::<3>(inside) {
            let offset = if inside.bitfields {
                offset & 0x00ff_ffff
            } else {
                offset
            };
            let number = u32::try_from(number).ok()?;
            let own = self.name(named);
            if own == name.as_bytes() {
                return Some((offset, number));
            }
            if own.is_empty()
                && let Some((more, found)) = self
                    .plain(number)
                    .and_then(|inner| self.field(inner, name, depth))
            {
                return Some((offset.checked_add(more)?, found));
            }
        }
        None
    }

    /// Names and numbers of an enumeration.
    pub fn numbers(&self, enumeration: &str) -> Option<Vec<(String, u32)>> {
        let found = self.find(kind::ENUM, enumeration)?;
        let all = self.list::<2>(found).map(|[name, number]| {
            let name = String::from_utf8_lossy(self.name(name)).into_owned();
            (name, u32::try_from(number).unwrap_or(u32::MAX))
        });
        Some(all.collect())
    }

    /// Names of the types of a tracepoint's arguments, in order, as programs see them; pointers' by what they point
    /// to, and no name where that has none.
    pub fn arguments(&self, tracepoint: &str) -> Option<Vec<String>> {
        let found = self.find(kind::TYPEDEF, &format!("btf_trace_{tracepoint}"))?;
        let pointer = self.plain(found.of)?;
        let function = self.plain(pointer.of)?;
        if pointer.kind != kind::PTR || function.kind != kind::FUNC_PROTO {
            return None;
        }
        let name = |number: usize| {
            let plain = self.plain(u32::try_from(number).ok()?)?;
            let named = match plain.kind {
                kind::PTR => self.plain(plain.of)?,
                _ => plain,
            };
            let name = self.name(usize::try_from(named.name).ok()?);
            Some(String::from_utf8_lossy(name).into_owned())
        };
        // The first one is the tracepoint's own.
        let all = self.list::<2>(function).skip(1);
        Some(
            all.map(|[_, number]| name(number).unwrap_or_default())
                .collect(),
        )
    }
}

impl Type {
    /// Bytes behind its head; `None` of kinds that are not known.
    fn behind(self) -> Option<usize> {
        Some(match self.kind {
            // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
            2 | 7..=12 | 16 | 18 => 0,
            // INT, VAR, DECL_TAG
            1 | 14 | 17 => 4,
            // ARRAY
            3 => 12,
            // STRUCT, UNION, DATASEC, ENUM64
            4 | 5 | 15 | 19 => self.count.saturating_mul(12),
            // ENUM, FUNC_PROTO
            6 | 13 => self.count.saturating_mul(8),
            _ => return None,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_ne_bytes(bytes.try_into().ok()?)).ok()
}
