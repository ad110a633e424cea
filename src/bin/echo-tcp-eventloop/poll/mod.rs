//! An event loop: one thread waits with `Poll`, and any thread says with `Registry` what for.
//!
//! The contract, the same in epoll.rs, kqueue.rs and iocp.rs:
//!
//! - Sockets are non-blocking, and registered once. They are deregistered before they are closed, and while nothing is
//!   asked of them: epoll and kqueue forget a closed socket on their own, a completion port does not. A token is any
//!   number but the largest.
//! - Level-triggered: what is ready and still asked for is reported by each wait. If more is ready than `Events` has
//!   room for, the next waits bring the rest.
//! - An error, or the end of the stream, counts as ready for whatever was asked for: the next call tells. A socket that is
//!   ready both to read and to write may be reported once, or once for each.
//! - `Registry::wake` ends the wait in progress, or else the next one; many of them before it end one. A wait may also
//!   end without an event because a signal came, or because a registration changed.
//! - `Registry::close` ends the loop: the wait that notices still brings its events, the next one brings
//!   [`Wait::Closed`], which is no error.

#[cfg(libkqueue)]
mod libkqueue;
// On a system that has none of the three it is sys.rs, which says so.
#[cfg_attr(all(any(target_os = "linux", target_os = "android"), not(libkqueue)), path = "epoll.rs")]
#[cfg_attr(
    any(
        libkqueue,
        target_vendor = "apple",
        target_os = "freebsd",
        target_os = "dragonfly",
        target_os = "netbsd",
        target_os = "openbsd"
    ),
    path = "kqueue.rs"
)]
#[cfg_attr(windows, path = "iocp.rs")]
#[cfg_attr(not(test), expect(dead_code, reason = "the server ends when its connections have: it closes no loop"))]
mod sys;
#[cfg(test)]
mod tests;

pub use sys::{Events, Poll};

/// What to report of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    pub const READ: Self = Self { read: true, write: false };
    pub const WRITE: Self = Self { read: false, write: true };
    #[cfg(test)]
    pub const BOTH: Self = Self { read: true, write: true };
}

/// A socket that was registered with `token` is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub token: usize,
    pub read: bool,
    pub write: bool,
}

/// What a wait brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Events; none if it was woken, interrupted, or the time is over.
    Events,
    /// The end: nothing will be reported any more.
    Closed,
}
