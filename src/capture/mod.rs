//! Sees packets. Linux only, needs libpcap.
