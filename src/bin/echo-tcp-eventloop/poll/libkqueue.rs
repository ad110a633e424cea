//! What kqueue.rs takes from the libc crate, on Linux: libkqueue makes a kqueue(2) of epoll(7). To run kqueue.rs where
//! no BSD is at hand: RUSTFLAGS="--cfg libkqueue" cargo run --bin echo-tcp-eventloop --features eventloop

pub use libc::{ENOENT, EPIPE, F_SETFD, FD_CLOEXEC, fcntl, timespec};
use libc::{c_int, c_short, c_uint, c_ushort, c_void, intptr_t, uintptr_t};

pub const EVFILT_READ: c_short = -1;
pub const EVFILT_WRITE: c_short = -2;
pub const EVFILT_USER: c_short = -11;
pub const EV_ADD: c_ushort = 0x1;
pub const EV_DELETE: c_ushort = 0x2;
pub const EV_CLEAR: c_ushort = 0x20;
pub const EV_RECEIPT: c_ushort = 0x40;
pub const NOTE_TRIGGER: c_uint = 0x0100_0000;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct kevent {
    pub ident: uintptr_t,
    pub filter: c_short,
    pub flags: c_ushort,
    pub fflags: c_uint,
    pub data: intptr_t,
    pub udata: *mut c_void,
}

#[link(name = "kqueue")]
unsafe extern "C" {
    pub fn kqueue() -> c_int;
    pub fn kevent(
        queue: c_int,
        changes: *const kevent,
        changes_len: c_int,
        events: *mut kevent,
        events_len: c_int,
        timeout: *const timespec,
    ) -> c_int;
}
