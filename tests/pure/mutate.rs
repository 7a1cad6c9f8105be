//! Damaged bytes from good ones, the same ones in each run.

/// Numbers that look random (xorshift64*).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 up to and without `end`; 0 where that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let number = usize::try_from(self.next() >> 33).unwrap_or_default();
        number.checked_rem(end).unwrap_or_default()
    }

    /// `bytes` with some damage: cut, flipped, overwritten with the edges of numbers, with pieces moved,
    /// or with a piece of `other`.
    pub fn damage(&mut self, bytes: &[u8], other: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(out.len());
            let end = (at + self.below(16)).min(out.len());
            match self.below(7) {
                0 => out.truncate(at),
                1 => self.put(&mut out, at, 1),
                2 => self.put(&mut out, at, 2),
                3 => self.put(&mut out, at, 4),
                4 => {
                    let from = self.below(other.len());
                    let to = (from + self.below(64)).min(other.len());
                    out.splice(at..end, other[from..to].iter().copied());
                }
                5 => drop(out.drain(at..end)),
                _ => {
                    let piece = out[at..end].to_vec();
                    let to = self.below(out.len());
                    out.splice(to..to, piece);
                }
            }
        }
        out
    }

    fn put(&mut self, out: &mut [u8], at: usize, width: usize) {
        let number = match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 0x8000_0000_8000_0080,
            3 => self.next() & 0x1f,
            _ => self.next(),
        };
        for (to, from) in out
            .iter_mut()
            .skip(at)
            .zip(number.to_le_bytes())
            .take(width)
        {
            *to = from;
        }
    }
}
