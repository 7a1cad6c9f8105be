//! The program: some hundred instructions that run where the kernel frees a packet that it drops.
//!
//! It reads the packet's namespaces, and of one of a watched namespace its first bytes, and writes one [`Event`] to
//! the ring. It writes nothing else, and decides nothing. Fields are read by bpf_probe_read_kernel, which gives zeros
//! for what can't be read: several fields of a packet share their place with others, so that an address may be none.
//!
//! Source: Documentation/bpf/standardization/instruction-set.rst; include/trace/events/skb.h (kfree_skb).

use super::btf::Btf;

/// Most bytes of a packet, from its network header on: headers of a tunnel and of the packet inside.
pub const BYTES: i16 = 192;
/// Bytes of a function's name, with the zero behind it.
pub const SYMBOL: i16 = 64;
/// Bytes of an [`Event`] in the ring.
pub const EVENT: i16 = at::POINTER - at::END;

/// Where the stack's variables are, from its end downwards; those of an event first, in its order.
mod at {
    pub const END: i16 = -(8 + 8 + 8 * 4 + 8 + super::BYTES + super::SYMBOL + 4 * 8);
    pub const TIME: i16 = END;
    pub const LOCATION: i16 = END + 8;
    pub const REASON: i16 = END + 16;
    pub const IFINDEX: i16 = END + 20;
    /// Of the device, of the socket that it was for, of the socket that it is of, of its route's device.
    pub const SPACES: [i16; 4] = [END + 24, END + 28, END + 32, END + 36];
    pub const CAPTURED: i16 = END + 40;
    pub const PROTOCOL: i16 = END + 44;
    pub const NETWORK: i16 = END + 46;
    pub const LEN: i16 = END + 48;
    pub const TAIL: i16 = END + 52;
    pub const BYTES: i16 = END + 56;
    pub const SYMBOL: i16 = BYTES + super::BYTES;
    /// Addresses under way.
    pub const POINTER: i16 = SYMBOL + super::SYMBOL;
    pub const HEAD: i16 = POINTER + 8;
    pub const DATA: i16 = POINTER + 16;
    pub const KEY: i16 = POINTER + 24;
}

/// Where this kernel has what the program reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    reason: u16,
    receiver: Option<u16>,
    device: u16,
    socket: u16,
    route: u16,
    head: u16,
    data: u16,
    tail: u16,
    len: u16,
    protocol: u16,
    network: u16,
    route_device: u16,
    ifindex: u16,
    device_space: u16,
    socket_space: u16,
    space: u16,
    /// Numbers that are no reasons to drop.
    not_dropped: Vec<u32>,
}

impl Places {
    /// Looks them up. Errors: this kernel has no reasons, or what it has is not what this program knows.
    pub fn of(btf: &Btf) -> Result<Self, String> {
        let arguments = btf
            .arguments("kfree_skb")
            .ok_or("it has no tracepoint kfree_skb for programs")?;
        let argument = |name: &str| {
            let index = arguments.iter().position(|own| own == name)?;
            u16::try_from(index).ok()?.checked_mul(8)
        };
        let reason =
            argument("skb_drop_reason").ok_or("it gives no reasons (Linux has them since 5.17)")?;
        if arguments.first().is_none_or(|first| first != "sk_buff") {
            return Err("its tracepoint kfree_skb does not begin with the packet".to_owned());
        }
        let offset = |structure: &str, path: &[&str]| {
            let found = btf.offset(structure, path);
            found.ok_or_else(|| format!("struct {structure} has no field {}", path.join(".")))
        };
        let numbers = btf.numbers("skb_drop_reason").unwrap_or_default();
        let not_dropped = numbers
            .iter()
            .filter(|(name, _)| NOT_DROPPED.contains(&name.as_str()));
        Ok(Self {
            reason,
            receiver: argument("sock"),
            device: offset("sk_buff", &["dev"])?,
            socket: offset("sk_buff", &["sk"])?,
            route: offset("sk_buff", &["_skb_refdst"])?,
            head: offset("sk_buff", &["head"])?,
            data: offset("sk_buff", &["data"])?,
            tail: offset("sk_buff", &["tail"])?,
            len: offset("sk_buff", &["len"])?,
            protocol: offset("sk_buff", &["protocol"])?,
            network: offset("sk_buff", &["network_header"])?,
            route_device: offset("dst_entry", &["dev"])?,
            ifindex: offset("net_device", &["ifindex"])?,
            device_space: offset("net_device", &["nd_net", "net"])?,
            socket_space: offset("sock", &["__sk_common", "skc_net", "net"])?,
            space: offset("net", &["ns", "inum"])?,
            not_dropped: not_dropped.map(|(_, number)| *number).collect(),
        })
    }
}

/// Names of numbers that are no reasons to drop.
const NOT_DROPPED: [&str; 2] = ["SKB_NOT_DROPPED_YET", "SKB_CONSUMED"];

/// What the program writes of one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub time: u64,
    /// `enum skb_drop_reason`.
    pub reason: u32,
    /// Of the device that it was last at; 0 where it had none.
    pub ifindex: u32,
    /// Numbers of namespaces: of that device, of the socket that it was for, of its own, of its route's device.
    pub spaces: [u32; 4],
    /// EtherType; 0 where it was not set yet.
    pub protocol: u16,
    /// Bytes of it.
    pub len: u32,
    /// The first ones from its network header on.
    pub bytes: Vec<u8>,
    /// Function that dropped it, as the kernel prints it.
    pub symbol: String,
}

impl Event {
    /// Reads one from the ring.
    pub fn parse(raw: &[u8]) -> Option<Self> {
        let from = |place: i16| usize::try_from(place.checked_sub(at::END)?).ok();
        let word = |place: i16| {
            let start = from(place)?;
            let bytes = raw.get(start..start + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        let start = from(at::TIME)?;
        let time = u64::from_ne_bytes(raw.get(start..start + 8)?.try_into().ok()?);
        let start = from(at::PROTOCOL)?;
        // In the network's byte order.
        let protocol = u16::from_be_bytes(raw.get(start..start + 2)?.try_into().ok()?);
        let mut spaces = [0; 4];
        for (own, place) in spaces.iter_mut().zip(at::SPACES) {
            *own = word(place)?;
        }
        let captured = usize::try_from(word(at::CAPTURED)?).ok()?.min(len(BYTES));
        let start = from(at::BYTES)?;
        let bytes = raw.get(start..start + captured)?.to_vec();
        let start = from(at::SYMBOL)?;
        let symbol = raw.get(start..start + len(SYMBOL))?;
        let symbol = symbol.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Self {
            time,
            reason: word(at::REASON)?,
            ifindex: word(at::IFINDEX)?,
            spaces,
            protocol,
            len: word(at::LEN)?,
            bytes,
            symbol: String::from_utf8_lossy(symbol).into_owned(),
        })
    }
}

fn len(of: i16) -> usize {
    of.unsigned_abs().into()
}

/// File descriptors of the maps that the program uses.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    /// Events.
    pub ring: i32,
    /// How many found no place there.
    pub lost: i32,
    /// The format `%ps`.
    pub format: i32,
}

/// Registers.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;
/// Kept over calls: the arguments, the packet, a number, an address.
const ARGUMENTS: u8 = 6;
const PACKET: u8 = 7;
const NUMBER: u8 = 8;
const ADDRESS: u8 = 9;
/// The stack's end.
const STACK: u8 = 10;

/// Helpers of the kernel, BPF_FUNC_*.
mod call {
    pub const MAP_LOOKUP_ELEM: i32 = 1;
    pub const KTIME_GET_NS: i32 = 5;
    pub const PROBE_READ_KERNEL: i32 = 113;
    pub const RINGBUF_OUTPUT: i32 = 130;
    pub const RINGBUF_QUERY: i32 = 134;
    pub const SNPRINTF: i32 = 165;
}

/// Where jumps lead that are not known yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Wanted,
    Full,
    Done,
}

#[derive(Default)]
struct Assembler {
    code: Vec<[u8; 8]>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn put(&mut self, opcode: u8, dst: u8, src: u8, offset: i16, imm: i32) {
        let [low, high] = offset.to_ne_bytes();
        let [a, b, c, d] = imm.to_ne_bytes();
        let registers = if cfg!(target_endian = "little") {
            src << 4 | dst
        } else {
            dst << 4 | src
        };
        self.code.push([opcode, registers, low, high, a, b, c, d]);
    }

    fn set(&mut self, dst: u8, imm: i32) {
        self.put(0xb7, dst, 0, 0, imm);
    }

    fn copy(&mut self, dst: u8, src: u8) {
        self.put(0xbf, dst, src, 0, 0);
    }

    fn add(&mut self, dst: u8, imm: i32) {
        self.put(0x07, dst, 0, 0, imm);
    }

    /// A variable's address.
    fn stack(&mut self, dst: u8, place: i16) {
        self.copy(dst, STACK);
        self.add(dst, place.into());
    }

    /// 8, 4 or 2 bytes from memory.
    fn load(&mut self, size: u8, dst: u8, base: u8, offset: i16) {
        let opcode = match size {
            8 => 0x79,
            4 => 0x61,
            _ => 0x69,
        };
        self.put(opcode, dst, base, offset, 0);
    }

    /// 8 or 4 bytes to the stack.
    fn store(&mut self, size: u8, place: i16, src: u8) {
        self.put(if size == 8 { 0x7b } else { 0x63 }, STACK, src, place, 0);
    }

    fn call(&mut self, helper: i32) {
        self.put(0x85, 0, 0, 0, helper);
    }

    /// A map's address.
    fn map(&mut self, dst: u8, fd: i32, value: bool) {
        self.put(0x18, dst, if value { 2 } else { 1 }, 0, fd);
        self.put(0, 0, 0, 0, 0);
    }

    /// A jump where the lower half of a register is this.
    fn equal(&mut self, register: u8, number: u32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(0x16, register, 0, 0, number.cast_signed());
    }

    /// A jump where a register is above this.
    fn above(&mut self, register: u8, number: u32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(0x25, register, 0, 0, number.cast_signed());
    }

    fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(0x05, 0, 0, 0, 0);
    }

    fn label(&mut self, label: Label) {
        let here = self.code.len();
        for (from, to) in &self.jumps {
            if *to == label
                && let Some(jump) = self.code.get_mut(*from)
            {
                let over = i16::try_from(here - from - 1).unwrap_or(i16::MAX);
                let [low, high] = over.to_ne_bytes();
                [jump[2], jump[3]] = [low, high];
            }
        }
        self.jumps.retain(|(_, to)| *to != label);
    }

    /// Reads kernel memory at a register and an offset to the stack; zeros where there is none.
    fn read(&mut self, size: i32, place: i16, base: u8, offset: u16) {
        self.stack(R1, place);
        self.set(R2, size);
        self.copy(R3, base);
        self.add(R3, offset.into());
        self.call(call::PROBE_READ_KERNEL);
    }

    /// Follows an address: that at a register and an offset, to [`ADDRESS`].
    fn follow(&mut self, base: u8, offset: u16) {
        self.read(8, at::POINTER, base, offset);
        self.load(8, ADDRESS, STACK, at::POINTER);
    }

    /// The number of the namespace that [`ADDRESS`] and an offset hold the address of.
    fn space(&mut self, place: i16, offset: u16, places: &Places) {
        self.follow(ADDRESS, offset);
        self.read(4, place, ADDRESS, places.space);
    }
}

/// Assembles it for namespaces of these numbers.
pub fn assemble(places: &Places, spaces: &[u32], maps: Maps) -> Vec<[u8; 8]> {
    let mut code = Assembler::default();
    code.copy(ARGUMENTS, R1);
    code.load(8, PACKET, ARGUMENTS, 0);
    let reason = i16::try_from(places.reason).unwrap_or(i16::MAX);
    code.load(8, NUMBER, ARGUMENTS, reason);
    for number in &places.not_dropped {
        code.equal(NUMBER, *number, Label::Done);
    }
    // What is given on must have been written before.
    code.set(R0, 0);
    for place in (at::END..0).step_by(8) {
        code.store(8, place, R0);
    }
    code.store(4, at::REASON, NUMBER);
    let [by_device, by_receiver, by_socket, by_route] = at::SPACES;
    code.follow(PACKET, places.device);
    code.read(4, at::IFINDEX, ADDRESS, places.ifindex);
    code.space(by_device, places.device_space, places);
    if let Some(receiver) = places.receiver {
        let receiver = i16::try_from(receiver).unwrap_or(i16::MAX);
        code.load(8, ADDRESS, ARGUMENTS, receiver);
        code.space(by_receiver, places.socket_space, places);
    }
    code.follow(PACKET, places.socket);
    code.space(by_socket, places.socket_space, places);
    code.follow(PACKET, places.route);
    // SKB_DST_NOREF
    code.put(0x57, ADDRESS, 0, 0, -2);
    code.follow(ADDRESS, places.route_device);
    code.space(by_route, places.device_space, places);
    for place in at::SPACES {
        code.load(4, R1, STACK, place);
        for space in spaces {
            code.equal(R1, *space, Label::Wanted);
        }
    }
    code.jump(Label::Done);

    code.label(Label::Wanted);
    // Where nobody takes them in time, a flood of drops costs no more than counting.
    code.map(R1, maps.ring, false);
    code.set(R2, 0);
    code.call(call::RINGBUF_QUERY);
    code.above(
        R0,
        super::RING - 2 * u32::from(EVENT.unsigned_abs()),
        Label::Full,
    );
    code.read(2, at::PROTOCOL, PACKET, places.protocol);
    code.read(2, at::NETWORK, PACKET, places.network);
    code.read(4, at::LEN, PACKET, places.len);
    code.read(4, at::TAIL, PACKET, places.tail);
    code.read(8, at::DATA, PACKET, places.data);
    code.read(8, at::HEAD, PACKET, places.head);
    code.load(8, ADDRESS, STACK, at::HEAD);
    // Where the network header is not known yet, data begins with it.
    code.load(2, NUMBER, STACK, at::NETWORK);
    code.put(0x55, NUMBER, 0, 2, 0);
    code.load(8, NUMBER, STACK, at::DATA);
    code.put(0x1f, NUMBER, ADDRESS, 0, 0);
    // No more than there is: none, and at most so many.
    code.load(4, R2, STACK, at::TAIL);
    code.put(0x1f, R2, NUMBER, 0, 0);
    code.put(0x75, R2, 0, 1, 0);
    code.set(R2, 0);
    let most = i32::from(BYTES);
    code.put(0xb5, R2, 0, 1, most);
    code.set(R2, most);
    code.store(4, at::CAPTURED, R2);
    code.stack(R1, at::BYTES);
    code.copy(R3, ADDRESS);
    code.put(0x0f, R3, NUMBER, 0, 0);
    code.call(call::PROBE_READ_KERNEL);
    code.load(8, R1, ARGUMENTS, 8);
    code.store(8, at::LOCATION, R1);
    code.call(call::KTIME_GET_NS);
    code.store(8, at::TIME, R0);
    code.stack(R1, at::SYMBOL);
    code.set(R2, SYMBOL.into());
    code.map(R3, maps.format, true);
    code.stack(R4, at::LOCATION);
    code.set(R5, 8);
    code.call(call::SNPRINTF);
    // Addresses are of no use to anybody and tell where the kernel is.
    code.set(R1, 0);
    code.store(8, at::LOCATION, R1);
    code.map(R1, maps.ring, false);
    code.stack(R2, at::END);
    code.set(R3, EVENT.into());
    code.set(R4, 0);
    code.call(call::RINGBUF_OUTPUT);
    code.equal(R0, 0, Label::Done);
    code.label(Label::Full);
    code.set(R1, 0);
    code.store(4, at::KEY, R1);
    code.map(R1, maps.lost, false);
    code.stack(R2, at::KEY);
    code.call(call::MAP_LOOKUP_ELEM);
    code.put(0x55, R0, 0, 1, 0);
    code.jump(Label::Done);
    code.set(R1, 1);
    // Added atomically.
    code.put(0xdb, R0, R1, 0, 0);
    code.label(Label::Done);
    code.set(R0, 0);
    code.put(0x95, 0, 0, 0, 0);
    code.code
}
