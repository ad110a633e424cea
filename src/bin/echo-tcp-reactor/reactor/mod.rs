//! Reactors, and what they may do. `runtime.rs` calls them.

mod outbox;
mod remote;
mod runtime;

pub use outbox::Full;
pub use remote::{Names, Order, Refused, Remote};
pub use runtime::{Runtime, Settings};

use echo_lab::stream::Ledger;
use mio::net::TcpStream;
use outbox::Outbox;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A connection or listener of one runtime. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(usize);

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    Continue,
    /// It is closed when all that it sent is on its way.
    Close,
}

/// What one connection does. `C` are the commands that its program has.
pub trait Reactor<C>: Send {
    /// The connection is made.
    fn connected(&mut self, _: &mut Context<C>) -> Flow {
        Flow::Continue
    }

    /// A whole message has come: a frame without its header, or, without frames, what was read.
    fn message(&mut self, context: &mut Context<C>, message: &[u8]) -> Flow;

    /// Somebody sent a command.
    fn command(&mut self, _: &mut Context<C>, _: C) -> Flow {
        Flow::Continue
    }

    /// The connection is closed: by the peer, by an error or by [`Flow::Close`].
    fn closed(&mut self) {}
}

/// The light form: a callback for messages.
impl<C, F: FnMut(&mut Context<C>, &[u8]) -> Flow + Send> Reactor<C> for F {
    fn message(&mut self, context: &mut Context<C>, message: &[u8]) -> Flow {
        self(context, message)
    }
}

/// What a reactor may do while it is called.
pub struct Context<'r, C> {
    /// Which connection it is.
    pub id: Id,
    /// The runtime it lives in, for orders.
    pub remote: &'r Remote<C>,
    stream: &'r TcpStream,
    outbox: &'r mut Outbox,
    ledger: &'r Mutex<Ledger>,
}

impl<C> Context<'_, C> {
    /// Sends a message, or what goes of it; the rest follows by itself. Refused if too much is waiting already.
    pub fn send(&mut self, message: &[u8]) -> Result<(), Full> {
        self.outbox.send(self.stream, self.ledger, message, None)
    }

    /// As [`send`](Self::send). `then` is told, once, whether the whole message was handed to the kernel; it was not if
    /// the connection was closed before.
    pub fn send_then(&mut self, message: &[u8], then: impl FnOnce(bool) + Send + 'static) -> Result<(), Full> {
        self.outbox.send(self.stream, self.ledger, message, Some(Box::new(then)))
    }
}

/// Nothing behind the locks of this program is ever left half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
