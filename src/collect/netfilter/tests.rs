//! Byte fixtures of real rules.
