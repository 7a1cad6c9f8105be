//! bpf(2): what it takes to have one program run at one tracepoint, and to read what it writes.
//!
//! Source: include/uapi/linux/bpf.h; kernel/bpf/ringbuf.c for the ring's layout. Everything made here is held by
//! file descriptors alone, nothing is pinned: with this process all of it goes.
#![allow(
    unsafe_code,
    reason = "libc, nix and std do not wrap bpf(2), and its ring is shared memory"
)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const MAP_FREEZE: libc::c_long = 22;
const PROG_TYPE_RAW_TRACEPOINT: u32 = 17;

/// BPF_MAP_TYPE_*
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// BPF_MAP_TYPE_ARRAY
    Array = 2,
    /// BPF_MAP_TYPE_RINGBUF
    Ring = 27,
}

/// BPF_F_RDONLY_PROG: the program reads it and does not write.
pub const READ_ONLY: u32 = 1 << 7;

/// Members of `union bpf_attr`; each begins where the union does, and what is behind it is zero for the kernel.
#[repr(C, align(8))]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    padding: u32,
}

#[repr(C, align(8))]
#[derive(Default)]
struct MapElem {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C, align(8))]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

#[repr(C, align(8))]
#[derive(Default)]
struct RawTracepoint {
    name: u64,
    prog_fd: u32,
    padding: u32,
}

#[repr(C, align(8))]
#[derive(Default)]
struct Info {
    bpf_fd: u32,
    len: u32,
    address: u64,
}

/// Bytes of `struct bpf_prog_info` up to and with `recursion_misses`.
const PROG_INFO: usize = 216;

/// One call. `attr` must be one of the structures above, and what its addresses name must be alive.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is a live, initialised structure laid out as the kernel's, whose size is given; the caller
    // answers for the addresses in it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

unsafe fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the caller got it from the kernel just now, and nobody else has it. BPF's are close-on-exec.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn number(fd: RawFd) -> u32 {
    u32::try_from(fd).unwrap_or(u32::MAX)
}

fn address<T: ?Sized>(of: *const T) -> u64 {
    // The kernel reads and writes there.
    of.cast::<u8>().expose_provenance() as u64
}

/// Makes a map with keys of 4 bytes (rings have none).
pub fn map(kind: Kind, value: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let ring = matches!(kind, Kind::Ring);
    let mut attr = MapCreate {
        map_type: kind as u32,
        key_size: if ring { 0 } else { 4 },
        value_size: value,
        max_entries: entries,
        map_flags: flags,
        ..MapCreate::default()
    };
    // SAFETY: no addresses; what comes back is a new file descriptor.
    unsafe { bpf(MAP_CREATE, &mut attr).map(|fd| owned(fd)) }
}

/// Writes entry 0 of an array whose values are as long as this, and has it never change again.
pub fn fill(map: &OwnedFd, value: &[u8]) -> io::Result<()> {
    let key = 0_u32;
    let mut attr = MapElem {
        map_fd: number(map.as_raw_fd()),
        key: address(&raw const key),
        value: address(value),
        ..MapElem::default()
    };
    // SAFETY: key and value live as long as the call, which reads them.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr)? };
    let mut attr = MapElem {
        map_fd: number(map.as_raw_fd()),
        ..MapElem::default()
    };
    // SAFETY: no addresses.
    unsafe { bpf(MAP_FREEZE, &mut attr).map(drop) }
}

/// Entry 0 of an array of numbers.
pub fn read(map: &OwnedFd) -> io::Result<u64> {
    let key = 0_u32;
    let mut value = 0_u64;
    let mut attr = MapElem {
        map_fd: number(map.as_raw_fd()),
        key: address(&raw const key),
        value: address(&raw mut value),
        ..MapElem::default()
    };
    // SAFETY: the kernel reads 4 bytes of `key` and writes the 8 of an entry to `value`.
    unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr)? };
    Ok(value)
}

/// Has the kernel check a program for raw tracepoints and take it. The error says what the verifier said last.
pub fn load(instructions: &[[u8; 8]]) -> Result<OwnedFd, (io::Error, String)> {
    // The helpers that it calls are for programs whose licence goes with the GPL, as that of these instructions does.
    let license = c"Dual MIT/GPL";
    let mut attr = ProgLoad {
        prog_type: PROG_TYPE_RAW_TRACEPOINT,
        insn_cnt: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        insns: address(instructions),
        license: address(license.as_ptr()),
        ..ProgLoad::default()
    };
    // SAFETY: instructions and licence live as long as the call, which reads them.
    let first = match unsafe { bpf(PROG_LOAD, &mut attr) } {
        // SAFETY: a new file descriptor.
        Ok(fd) => return Ok(unsafe { owned(fd) }),
        Err(error) => error,
    };
    // Once more for the verifier's words: they cost time, and mostly nobody needs them.
    let mut log = vec![0_u8; 64 << 10];
    attr.log_level = 1;
    attr.log_size = u32::try_from(log.len()).unwrap_or_default();
    attr.log_buf = address(log.as_mut_ptr());
    // SAFETY: as above; the kernel writes at most `log_size` bytes to the log.
    if let Ok(fd) = unsafe { bpf(PROG_LOAD, &mut attr) } {
        // SAFETY: a new file descriptor.
        return Ok(unsafe { owned(fd) });
    }
    let text = String::from_utf8_lossy(&log);
    let mut lines = text.split(['\n', '\0']).map(str::trim);
    let last = lines.rfind(|line| !line.is_empty() && !line.starts_with("processed "));
    Err((first, last.unwrap_or_default().to_owned()))
}

/// How often a program was left out because it was running on that CPU just then (Linux 5.12 and later).
pub fn missed(program: &OwnedFd) -> io::Result<u64> {
    let mut info = [0_u8; PROG_INFO];
    let mut attr = Info {
        bpf_fd: number(program.as_raw_fd()),
        len: u32::try_from(info.len()).unwrap_or_default(),
        address: address(info.as_mut_ptr()),
    };
    // SAFETY: the kernel writes at most `len` bytes to `info`; its addresses are zero, so that no more is given.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr)? };
    let misses = info.last_chunk().copied().unwrap_or_default();
    Ok(u64::from_ne_bytes(misses))
}

/// Has a program run at a tracepoint, as long as what comes back is open.
pub fn attach(tracepoint: &CStr, program: &OwnedFd) -> io::Result<OwnedFd> {
    let mut attr = RawTracepoint {
        name: address(tracepoint.as_ptr()),
        prog_fd: number(program.as_raw_fd()),
        padding: 0,
    };
    // SAFETY: the name lives as long as the call, which reads it.
    unsafe { bpf(RAW_TRACEPOINT_OPEN, &mut attr).map(|fd| owned(fd)) }
}

/// Busy: the program still writes the record. Discarded: it thought better of it.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// Bytes before each record: length with flags, and the page.
const HEAD: usize = 8;

/// The reader's end of a ring. Its pages: the reader's position, the writers' position, then the data twice in a row,
/// so that no record is broken.
pub struct Ring {
    map: OwnedFd,
    reader: NonNull<u8>,
    writers: NonNull<u8>,
    page: usize,
    size: usize,
}

impl Ring {
    /// Makes a ring of so many bytes, a power of two and whole pages.
    pub fn new(size: u32) -> io::Result<Self> {
        let map = map(Kind::Ring, 0, size, 0)?;
        // SAFETY: asks for a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
        let page = page.map_err(|_| io::Error::last_os_error())?;
        let size = usize::try_from(size).unwrap_or_default();
        let reader = pages(&map, page, 0, libc::PROT_READ | libc::PROT_WRITE)?;
        let writers = match pages(&map, page + 2 * size, page, libc::PROT_READ) {
            Ok(writers) => writers,
            Err(error) => {
                // SAFETY: mapped just now with this length, and used by nobody.
                unsafe { libc::munmap(reader.as_ptr().cast(), page) };
                return Err(error);
            }
        };
        Ok(Self {
            map,
            reader,
            writers,
            page,
            size,
        })
    }

    /// For the program's instructions.
    pub fn map(&self) -> &OwnedFd {
        &self.map
    }

    /// Takes what was written since the last call, in order, until `each` wants no more. Never waits.
    pub fn take(&mut self, mut each: impl FnMut(&[u8]) -> bool) {
        // SAFETY: both positions are 8 aligned bytes at the beginning of pages that are mapped as long as `self`
        // lives; the kernel reads and writes them atomically, too.
        let (read, written) = unsafe {
            (
                self.reader.cast::<AtomicU64>().as_ref(),
                self.writers.cast::<AtomicU64>().as_ref(),
            )
        };
        let mut at = read.load(Ordering::Relaxed);
        while at < written.load(Ordering::Acquire) {
            let offset = usize::try_from(at).unwrap_or_default() & (self.size - 1);
            // SAFETY: `offset` is below `size` and a multiple of 8 as the kernel's positions are, so that head and
            // record are within the data's two copies.
            let data = unsafe { self.writers.add(self.page + offset) };
            // SAFETY: as above; the kernel sets its bits atomically.
            let head = unsafe { data.cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire);
            if head & BUSY != 0 {
                break;
            }
            let len = usize::try_from(head & !(BUSY | DISCARDED)).unwrap_or_default();
            let len = len.min(self.size - HEAD);
            let mut more = true;
            if head & DISCARDED == 0 {
                // SAFETY: at most `size` bytes from `offset` on are mapped, and writers leave them alone until the
                // reader's position, moved below, is behind them.
                more = each(unsafe { std::slice::from_raw_parts(data.add(HEAD).as_ptr(), len) });
            }
            at = at.wrapping_add((len + HEAD).next_multiple_of(8) as u64);
            read.store(at, Ordering::Release);
            if !more {
                break;
            }
        }
    }
}

// SAFETY: its pages are shared with the kernel alone, and read by whoever has the ring.
unsafe impl Send for Ring {}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with these lengths; no reference to them outlives a call of `take`.
        unsafe {
            libc::munmap(self.reader.as_ptr().cast(), self.page);
            libc::munmap(self.writers.as_ptr().cast(), self.page + 2 * self.size);
        }
    }
}

fn pages(map: &OwnedFd, len: usize, offset: usize, access: libc::c_int) -> io::Result<NonNull<u8>> {
    let offset = libc::off_t::try_from(offset).unwrap_or_default();
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            access,
            libc::MAP_SHARED,
            map.as_raw_fd(),
            offset,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}
