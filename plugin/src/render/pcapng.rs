//! Packets of many devices of many nodes as one pcapng file.
//!
//! Written here, since the crate for it (pcap-file) has no release that is kept: four kinds of blocks of plain
//! numbers. Source: draft-ietf-opsawg-pcapng, sections 4.1 to 4.6.

use netpath::explain::words;
use netpath::model::capture::{Losses, Seen};

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

/// A device as the file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// LINKTYPE_*
    pub link: u32,
    /// Most bytes of a packet.
    pub snaplen: u32,
    /// `worker-1 host cni0`
    pub name: String,
    /// What it is, in words.
    pub description: String,
    /// Pod.
    pub comment: Option<String>,
    /// Filter in pcap's language.
    pub filter: String,
}

/// The head of a file.
pub fn section() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(0x1a2b_3c4d_u32.to_le_bytes());
    body.extend(1_u16.to_le_bytes());
    body.extend(0_u16.to_le_bytes());
    // Its length is not known beforehand.
    body.extend((-1_i64).to_le_bytes());
    let application = concat!("kubectl-netpath ", env!("CARGO_PKG_VERSION"));
    option(&mut body, 4, application.as_bytes());
    block(SECTION, body)
}

/// A device. Its number is how many came before it.
pub fn interface(of: &Interface) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(u16::try_from(of.link).unwrap_or(u16::MAX).to_le_bytes());
    body.extend(0_u16.to_le_bytes());
    body.extend(of.snaplen.to_le_bytes());
    if let Some(comment) = &of.comment {
        option(&mut body, 1, comment.as_bytes());
    }
    option(&mut body, 2, of.name.as_bytes());
    option(&mut body, 3, of.description.as_bytes());
    // Times are in units of 10^-9 s.
    option(&mut body, 9, &[9]);
    if !of.filter.is_empty() {
        // 0: as libpcap reads it.
        let mut filter = vec![0];
        filter.extend(of.filter.as_bytes());
        option(&mut body, 11, &filter);
    }
    block(INTERFACE, body)
}

/// A packet of the device with that number; of one that the kernel dropped why, and the device that it was last at.
pub fn packet(interface: u32, seen: &Seen, device: Option<&str>) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(interface.to_le_bytes());
    time(&mut body, seen.time);
    let captured = u32::try_from(seen.bytes.len()).unwrap_or(u32::MAX);
    body.extend(captured.to_le_bytes());
    body.extend(seen.len.max(captured).to_le_bytes());
    padded(&mut body, &seen.bytes);
    if let Some(why) = &seen.dropped {
        let at = device.map_or_else(String::new, |device| format!(" at {device}"));
        let comment = format!("dropped: {}{at}", words::dropped(why));
        option(&mut body, 1, comment.as_bytes());
    }
    if let Some(out) = seen.out {
        // Bits 0 and 1: 1 inbound, 2 outbound.
        let flags: u32 = if out { 2 } else { 1 };
        option(&mut body, 2, &flags.to_le_bytes());
    }
    block(PACKET, body)
}

/// What a device's capture lost, at its end.
pub fn statistics(interface: u32, at: i64, losses: &Losses) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(interface.to_le_bytes());
    time(&mut body, at);
    let counters = [
        (5, losses.if_dropped),
        (6, losses.received),
        (7, losses.dropped),
    ];
    for (code, count) in counters {
        option(&mut body, code, &u64::from(count).to_le_bytes());
    }
    block(STATISTICS, body)
}

fn time(body: &mut Vec<u8>, nanos: i64) {
    let nanos = u64::try_from(nanos).unwrap_or_default();
    // The high half comes first.
    let bytes = nanos.to_le_bytes();
    let (low, high) = bytes.split_at(4);
    body.extend(high);
    body.extend(low);
}

fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend(bytes);
    body.extend(std::iter::repeat_n(
        0,
        bytes.len().next_multiple_of(4) - bytes.len(),
    ));
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    // Lengths are 16 bits: a longer text is cut.
    let value = value.get(..value.len().min(0xfff0)).unwrap_or_default();
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or_default().to_le_bytes());
    padded(body, value);
}

/// A block around a body; options end with an empty one.
fn block(kind: u32, mut body: Vec<u8>) -> Vec<u8> {
    body.extend([0; 4]);
    let len = u32::try_from(body.len() + 12)
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    let mut block = kind.to_le_bytes().to_vec();
    block.extend(len);
    block.append(&mut body);
    block.extend(len);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_say_their_length_twice_and_are_aligned() {
        let seen = Seen {
            point: 0,
            time: 0x0102_0304_0506_0708,
            len: 60,
            bytes: vec![0xaa; 5],
            ifindex: None,
            out: Some(true),
            packet: None,
            mark: None,
            dropped: None,
        };
        let of = Interface {
            link: 1,
            snaplen: 256,
            name: "n1 host eth0".to_owned(),
            description: "eth0".to_owned(),
            comment: None,
            filter: "tcp".to_owned(),
        };
        let blocks = [
            section(),
            interface(&of),
            packet(0, &seen, None),
            statistics(0, 1, &Losses::default()),
        ];
        for block in &blocks {
            let len = u32::from_le_bytes(block[4..8].try_into().unwrap());
            assert_eq!(len as usize, block.len());
            assert_eq!(block.len() % 4, 0);
            assert_eq!(block[4..8], block[block.len() - 4..]);
        }
        // Numbers as the draft's figure of the block has them.
        let head = [6, 0, 0, 0, 52, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(blocks[2][..12], head);
        assert_eq!(blocks[2][12..20], [4, 3, 2, 1, 8, 7, 6, 5]);
        assert_eq!(blocks[2][20..28], [5, 0, 0, 0, 60, 0, 0, 0]);
    }
}
