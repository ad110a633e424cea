//! Where a thread waits for notifications: of its sockets, its timers and its channels.

// Of `super`: tests/interleavings brings other locks.
use super::lock;
use super::poller::Id;
use super::sync::{Condvar, Mutex, PoisonError};
use std::collections::HashMap;
use std::ops::{BitOr, BitOrAssign};
use std::time::Duration;

/// What happened to something that was registered. Several may have happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready(u8);

impl Ready {
    pub const READABLE: Self = Self(1);
    pub const WRITABLE: Self = Self(2);
    /// The peer sends no more, or has gone.
    pub const CLOSED: Self = Self(4);
    /// The next call will report an error.
    pub const ERROR: Self = Self(8);
    /// A timeout has passed, or an interval.
    pub const TIMEOUT: Self = Self(16);
    /// A channel has a message, or has lost its sender.
    pub const MESSAGE: Self = Self(32);

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Ready {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Ready {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

/// Notifications: what happened to whom.
pub type Batch = HashMap<Id, Ready>;

/// Notifications of one id are merged until they are taken, so there are never more than registrations: a channel of
/// notifications would grow while its receiver is busy.
#[derive(Default)]
pub struct Mailbox {
    ready: Mutex<Batch>,
    filled: Condvar,
}

impl Mailbox {
    /// Adds a notification. Only the first one wakes who waits: the others are taken with it.
    pub fn notify(&self, id: Id, ready: Ready) {
        if self.add(id, ready) {
            self.wake();
        }
    }

    /// Adds a notification; whether it is the first, after which somebody has to call [`wake`](Self::wake).
    pub fn add(&self, id: Id, ready: Ready) -> bool {
        let mut batch = lock(&self.ready);
        let first = batch.is_empty();
        *batch.entry(id).or_default() |= ready;
        first
    }

    /// Wakes who waits for notifications.
    pub fn wake(&self) {
        self.filled.notify_one();
    }

    /// Waits for notifications, `timeout` at most, and takes all there are into `batch`, which is to be empty.
    pub fn take(&self, batch: &mut Batch, timeout: Option<Duration>) {
        let guard = lock(&self.ready);
        let empty = |batch: &mut Batch| batch.is_empty();
        let mut guard = match timeout {
            None => self.filled.wait_while(guard, empty).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = self.filled.wait_timeout_while(guard, timeout, empty);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        std::mem::swap(&mut *guard, batch);
    }
}
