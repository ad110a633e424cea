//! The event loop over epoll(7), which keeps the interest and finds what is ready, and eventfd(2), a counter that another
//! thread or a signal handler can make readable.

use super::{Event, Interest, Wait};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The token of the eventfd: no socket has it.
const WAKE: u64 = u64::MAX;

/// Waits. There is one, in one thread.
pub struct Poll {
    registry: Registry,
    /// A wait has seen that the loop is closed.
    closed: bool,
}

/// What is waited for. Each clone, in any thread, speaks to the same loop.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    closed: AtomicBool,
}

/// Room for the events of one wait: for one at least.
pub struct Events {
    room: Vec<libc::epoll_event>,
    len: usize,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved, and the new descriptor is nobody else's.
        let epoll = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        // SAFETY: as above.
        let wake = unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?) };
        // Edge-triggered: each write is reported once, so nobody has to read the counter down.
        let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let registry = Registry(Arc::new(Shared { epoll, wake, closed: AtomicBool::new(false) }));
        registry.control(libc::EPOLL_CTL_ADD, &registry.0.wake, libc::epoll_event { events, u64: WAKE })?;
        Ok(Self { registry, closed: false })
    }

    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Waits until something is ready, or for `timeout`.
    pub fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<Wait> {
        events.len = 0;
        if self.closed {
            return Ok(Wait::Closed);
        }
        // Rounded up: a wait for less than a millisecond must not become one for nothing, over and over.
        let timeout = timeout.map_or(-1, |left| left.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(i32::MAX));
        let Shared { epoll, closed, .. } = &*self.registry.0;
        // SAFETY: the kernel writes at most as many events as there is room for.
        let ready =
            unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.room.as_mut_ptr(), events.room.len() as i32, timeout) };
        events.len = match check(ready) {
            Ok(ready) => ready as usize,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        self.closed = closed.load(Ordering::Acquire);
        Ok(if self.closed && events.iter().next().is_none() { Wait::Closed } else { Wait::Events })
    }
}

impl Registry {
    pub fn register(&self, socket: &impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket, wanted(token, interest))
    }

    pub fn reregister(&self, socket: &impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket, wanted(token, interest))
    }

    pub fn deregister(&self, socket: &impl AsFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, socket, libc::epoll_event { events: 0, u64: 0 })
    }

    fn control(&self, operation: i32, socket: &impl AsFd, mut event: libc::epoll_event) -> io::Result<()> {
        let (epoll, socket) = (self.0.epoll.as_raw_fd(), socket.as_fd().as_raw_fd());
        // SAFETY: the event is read during the call, and both descriptors are open.
        check(unsafe { libc::epoll_ctl(epoll, operation, socket, &mut event) }).map(drop)
    }

    /// May run in a signal handler.
    pub fn wake(&self) {
        let one = 1u64;
        // It fails only when the counter is full, and then the wait has been woken.
        // SAFETY: the eight bytes are read during the call.
        unsafe { libc::write(self.0.wake.as_raw_fd(), (&raw const one).cast(), size_of_val(&one)) };
    }

    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.wake();
    }
}

impl Events {
    pub fn with_capacity(capacity: usize) -> Self {
        Self { room: vec![libc::epoll_event { events: 0, u64: 0 }; capacity], len: 0 }
    }

    pub fn iter(&self) -> impl Iterator<Item = Event> {
        self.room[..self.len].iter().filter(|event| event.u64 != WAKE).map(|event| {
            // Reported unasked, and ready for anything: the next call on the socket says what it is.
            let failed = event.events & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
            let is = |flag| failed || event.events & flag as u32 != 0;
            Event { token: event.u64 as usize, read: is(libc::EPOLLIN), write: is(libc::EPOLLOUT) }
        })
    }
}

fn wanted(token: usize, interest: Interest) -> libc::epoll_event {
    let flag = |is, flag: i32| if is { flag as u32 } else { 0 };
    let events = flag(interest.read, libc::EPOLLIN) | flag(interest.write, libc::EPOLLOUT);
    libc::epoll_event { events, u64: token as u64 }
}

fn check(result: i32) -> io::Result<i32> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
