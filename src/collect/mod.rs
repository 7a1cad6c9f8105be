//! Reads the kernel. Linux only.
