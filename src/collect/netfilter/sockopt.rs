//! The two `getsockopt(2)` calls of x_tables.
#![allow(unsafe_code, reason = "nix and std do not wrap IPT_SO_GET_*")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// IPT_SO_GET_INFO and IP6T_SO_GET_INFO
pub const GET_INFO: i32 = 64;
/// IPT_SO_GET_ENTRIES and IP6T_SO_GET_ENTRIES
pub const GET_ENTRIES: i32 = 65;

/// Calls `getsockopt` with a buffer that holds the request and takes the answer. Gives the length of the
/// answer.
pub fn getsockopt(socket: &File, v6: bool, option: i32, buffer: &mut [u8]) -> io::Result<usize> {
    let level = if v6 {
        libc::IPPROTO_IPV6
    } else {
        libc::IPPROTO_IP
    };
    let mut len = libc::socklen_t::try_from(buffer.len())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `buffer` is valid for reads and writes of `len` bytes, its own length, for the whole call;
    // the kernel writes at most `len` bytes to it and the new length to `len`. The descriptor is open,
    // since `socket` is borrowed.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(len as usize)
    } else {
        Err(io::Error::last_os_error())
    }
}
