//! Register file of the nf_tables machine.

use super::bits::Bits;
use crate::model::netfilter::Reg;

/// Words of the register file (`struct nft_regs`): the verdict takes the first four.
const WORDS: usize = 20;

/// Registers: 20 words of which each bit may be unknown. What no expression wrote is unknown.
#[derive(Clone, Debug)]
pub(super) struct Registers(Bits);

impl Registers {
    /// Nothing known.
    pub(super) fn new() -> Self {
        Self(Bits::unknown(WORDS * 4))
    }

    /// Writes a value from a register on; the last word is padded with zeros, as the kernel does.
    pub(super) fn store(&mut self, reg: Reg, value: &Bits) {
        let start = usize::from(reg) * 4;
        self.0.overwrite(start, value);
        let pad = value.len().next_multiple_of(4) - value.len();
        self.0
            .overwrite(start + value.len(), &Bits::known(vec![0; pad]));
    }

    /// Forgets what the last rule wrote: no rule that the kernel takes reads what it has not written itself
    /// (`nft_parse_register_load()`).
    pub(super) fn clear(&mut self) {
        self.0.forget();
    }

    /// Reads bytes from a register on.
    pub(super) fn load(&self, reg: Reg, len: usize) -> Bits {
        self.0.slice(usize::from(reg) * 4, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_values_are_padded() {
        let mut regs = Registers::new();
        regs.store(9, &Bits::net16(Some(80)));
        assert_eq!(regs.load(9, 4).bytes(), Some([0, 80, 0, 0].as_slice()));
        assert_eq!(regs.load(10, 4).bytes(), None);
        assert_eq!(regs.load(19, 16).len(), 16);
    }
}
