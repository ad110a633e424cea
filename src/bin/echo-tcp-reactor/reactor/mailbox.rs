//! What other threads hand to one thread. A lock guards it, so whoever puts something in either finds it open, and then
//! it will be taken, or is told that it is closed: nothing can fall between.

use super::Mutex;
use std::sync::PoisonError;

/// Filled by any thread, emptied by one.
pub struct Mailbox<T> {
    limit: usize,
    inside: Mutex<Inside<T>>,
}

struct Inside<T> {
    waiting: Vec<T>,
    closed: bool,
}

/// What was not taken in, and why.
#[derive(Debug, PartialEq, Eq)]
pub enum Returned<T> {
    /// As many as fit are waiting.
    Full(T),
    /// It will not be emptied any more.
    Closed(T),
}

impl<T> Mailbox<T> {
    /// For `limit` at a time.
    pub fn new(limit: usize) -> Self {
        Self { limit, inside: Mutex::new(Inside { waiting: Vec::new(), closed: false }) }
    }

    /// Whether the thread that empties it must be woken: for the first of several it must, and that wake-up is for all.
    pub fn put(&self, item: T) -> Result<bool, Returned<T>> {
        self.with(|inside| {
            if inside.closed {
                return Err(Returned::Closed(item));
            }
            if inside.waiting.len() >= self.limit {
                return Err(Returned::Full(item));
            }
            inside.waiting.push(item);
            Ok(inside.waiting.len() == 1)
        })
    }

    /// All that wait, oldest first.
    pub fn take(&self) -> Vec<T> {
        self.with(|inside| std::mem::take(&mut inside.waiting))
    }

    /// Takes nothing in from now on; what waits still is returned.
    pub fn close(&self) -> Vec<T> {
        self.with(|inside| {
            inside.closed = true;
            std::mem::take(&mut inside.waiting)
        })
    }

    fn with<R>(&self, change: impl FnOnce(&mut Inside<T>) -> R) -> R {
        change(&mut self.inside.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
