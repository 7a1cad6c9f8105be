//! What the programs that change a real cluster share: putting it right again.

pub mod undo;
