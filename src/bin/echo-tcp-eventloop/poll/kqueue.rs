//! The event loop over kqueue(2), which keeps the interest and finds what is ready; each interest is a filter of its own.
//! One more filter, EVFILT_USER, is set off by another thread or a signal handler. (Where it lacks, a pipe that does not
//! block and is filtered for reading does the same: write a byte to wake, read until it is empty when woken.)

#[cfg(libkqueue)]
use super::libkqueue as libc;
use super::{Event, Interest, Wait};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    queue: OwnedFd,
    closed: AtomicBool,
}

/// Room for the events of one wait: for one at least.
pub struct Events {
    room: Vec<libc::kevent>,
    len: usize,
}

// SAFETY: the pointer in a kevent is a token, and points to nothing.
unsafe impl Send for Events {}

impl Poll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved, and the new descriptor is nobody else's.
        let queue = unsafe { OwnedFd::from_raw_fd(check(libc::kqueue())?) };
        // SAFETY: no memory is involved.
        check(unsafe { libc::fcntl(queue.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
        let registry = Registry(Arc::new(Shared { queue, closed: AtomicBool::new(false) }));
        // EV_CLEAR: set off is reported once, as an edge.
        registry.change(&mut [change(0, libc::EVFILT_USER, libc::EV_ADD | libc::EV_CLEAR, 0)])?;
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
        // Some systems refuse more than some years: a day at most, and then the wait ends without an event.
        let timeout = timeout.map(|left| left.min(Duration::from_secs(86400)));
        let timeout =
            timeout.map(|left| libc::timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ });
        let timeout = timeout.as_ref().map_or(null(), |timeout| &raw const *timeout);
        let Shared { queue, closed } = &*self.registry.0;
        let (room, slots) = (events.room.as_mut_ptr(), events.room.len());
        // SAFETY: the kernel writes at most as many events as there is room for, and reads the timeout during the call.
        let ready = unsafe { libc::kevent(queue.as_raw_fd(), null(), 0, room, slots as _, timeout) };
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
        self.reregister(socket, token, interest)
    }

    /// Adding a filter that is there changes it.
    pub fn reregister(&self, socket: &impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        let ident = socket.as_fd().as_raw_fd() as usize;
        let action = |is| if is { libc::EV_ADD } else { libc::EV_DELETE };
        self.change(&mut [
            change(ident, libc::EVFILT_READ, action(interest.read), token),
            change(ident, libc::EVFILT_WRITE, action(interest.write), token),
        ])
    }

    pub fn deregister(&self, socket: &impl AsFd) -> io::Result<()> {
        self.reregister(socket, 0, Interest { read: false, write: false })
    }

    /// EV_RECEIPT: the call brings what came of each change, and no event.
    fn change(&self, changes: &mut [libc::kevent]) -> io::Result<()> {
        changes.iter_mut().for_each(|change| change.flags |= libc::EV_RECEIPT);
        let (list, len, now) = (changes.as_mut_ptr(), changes.len() as _, libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: the list is read during the call, each change before its receipt is written.
        let result = check(unsafe { libc::kevent(self.0.queue.as_raw_fd(), list, len, list, len, &now) });
        match result {
            // The changes are made even so.
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => drop(result?),
        }
        // There may be no such filter to delete. EPIPE: old versions of macOS say that the peer has gone, and report it.
        let failed = |code| ![0, libc::ENOENT, libc::EPIPE].contains(&code);
        match changes.iter().map(|change| change.data as i32).find(|code| failed(*code)) {
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None => Ok(()),
        }
    }

    /// May run in a signal handler: kevent(2) is a system call, though signal-safety(7) does not know it.
    pub fn wake(&self) {
        let mut trigger = change(0, libc::EVFILT_USER, 0u16, 0);
        trigger.fflags = libc::NOTE_TRIGGER;
        // It cannot fail: the filter is there as long as the queue is.
        // SAFETY: the change is read during the call.
        unsafe { libc::kevent(self.0.queue.as_raw_fd(), &trigger, 1, std::ptr::null_mut(), 0, null()) };
    }

    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.wake();
    }
}

impl Events {
    pub fn with_capacity(capacity: usize) -> Self {
        Self { room: vec![change(0, 0i16, 0u16, 0); capacity], len: 0 }
    }

    pub fn iter(&self) -> impl Iterator<Item = Event> {
        let is = |event: &libc::kevent, filter| event.filter == filter;
        self.room[..self.len].iter().filter(move |event| !is(event, libc::EVFILT_USER)).map(move |event| Event {
            token: event.udata as usize,
            read: is(event, libc::EVFILT_READ),
            write: is(event, libc::EVFILT_WRITE),
        })
    }
}

/// The types of the fields differ between the systems, as does what else there is.
fn change(ident: usize, filter: impl Into<i64>, flags: impl Into<i64>, token: usize) -> libc::kevent {
    // SAFETY: a kevent is numbers and a pointer that may be null.
    let mut change: libc::kevent = unsafe { std::mem::zeroed() };
    change.ident = ident as _;
    change.filter = filter.into() as _;
    change.flags = flags.into() as _;
    change.udata = token as _;
    change
}

fn check(result: i32) -> io::Result<i32> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
