//! Packets of WireGuard: what they carry can't be seen, but what went into a device last can.

use crate::capture::{Direction, Seen};
use crate::packet::Sealed;

/// Beginning of the names of WireGuard devices.
const DEVICES: &str = "wg";

/// What was seen of the packets that `of` knows, in order of time, and with it the packets of WireGuard that carry them: those
/// after one went out by such a device. Handshakes and the like carry nothing.
pub(super) fn with_sealed<T: Copy>(
    seen: &[Seen],
    of: impl Fn(&Seen) -> Option<T>,
) -> Vec<(T, &Seen)> {
    let mut found = Vec::new();
    let mut inside = None;
    for one in seen {
        let own = match one.frame.sealed() {
            Some(Sealed::Own) => None,
            Some(Sealed::Data) => inside,
            None => of(one),
        };
        // A packet of WireGuard may be inside another one.
        let enters = one.direction == Direction::Out && one.ifname.starts_with(DEVICES);
        if enters && one.frame.sealed().is_none() {
            inside = own;
        }
        found.extend(own.map(|own| (own, one)));
    }
    found
}
