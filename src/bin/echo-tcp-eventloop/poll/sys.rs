//! No event loop: this system has neither epoll, nor kqueue, nor completion ports.

use super::{Event, Interest, Wait};
use std::convert::Infallible;
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;

/// There is none.
pub struct Poll(Infallible);

/// There is none.
#[derive(Clone)]
pub struct Registry(Infallible);

/// Room for nothing.
pub struct Events;

impl Poll {
    pub fn new() -> Result<Self> {
        Err(Error::new(ErrorKind::Unsupported, "it needs epoll(7), kqueue(2) or an I/O completion port"))
    }

    pub fn registry(&self) -> Registry {
        match self.0 {}
    }

    pub fn wait(&mut self, _: &mut Events, _: Option<Duration>) -> Result<Wait> {
        match self.0 {}
    }
}

impl Registry {
    pub fn register<S>(&self, _: &S, _: usize, _: Interest) -> Result<()> {
        match self.0 {}
    }

    pub fn reregister<S>(&self, _: &S, _: usize, _: Interest) -> Result<()> {
        match self.0 {}
    }

    pub fn deregister<S>(&self, _: &S) -> Result<()> {
        match self.0 {}
    }

    pub fn wake(&self) {
        match self.0 {}
    }

    pub fn close(&self) {
        match self.0 {}
    }
}

impl Events {
    pub fn with_capacity(_: usize) -> Self {
        Self
    }

    pub fn iter(&self) -> impl Iterator<Item = Event> {
        std::iter::empty()
    }
}
