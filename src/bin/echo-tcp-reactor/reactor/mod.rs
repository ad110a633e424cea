//! Reactors, in a runtime for each thread: a small library. Its contract:
//!
//! - **Threads.** A [`Runtime`] calls its [`Reactor`]s in the one thread that runs it, one at a time. Everybody else,
//!   in any thread, gives orders through a [`Remote`], which never blocks. Reactors may do so too.
//! - **Orders.** Those of one thread are carried out in the order in which they were given; those for a later time in the
//!   order of their times, never early. So many can wait, and no more: [`ORDERS`].
//! - **Completion.** Every order completes exactly once, whatever happens to its runtime: carried out, or refused with the
//!   reason. The runtime's thread tells; if the order is refused at once, the thread that gave it does.
//! - **Connections.** `connected` comes first and `closed` comes last, once each. An [`Id`] is of one connection or listener
//!   of one runtime of this process, for ever. No other can be reached with it.
//! - **Memory.** While something waits to be sent, nothing is read. So a peer that never reads costs what one message and
//!   one read have left, and an idle one nothing. What its program sends to it by commands comes on top, up to a limit.
//! - **Stop.** After [`Order::Stop`] or a stop signal a runtime closes its listeners, and refuses what it was about to
//!   connect. It still reads what has arrived, and sends what is owed, for a second at most. Then it closes what is left, and
//!   refuses the orders that wait and all that come later. The other runtimes go on, also those that share its ledger.

mod codec;
mod deferred;
mod inbox;
mod mailbox;
mod outbox;
mod remote;
mod runtime;

pub use codec::{Codec, Frames, Next, Raw, TooLong};
pub use outbox::Full;
pub use remote::{Names, ORDERS, Order, Refused, Remote, Stream};
pub use runtime::{Runtime, Settings};

use echo_lab::stream::Ledger;
use mio::net::TcpStream;
use outbox::{Outbox, Then};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A connection or listener of one runtime. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    runtime: usize,
    number: usize,
}

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

    /// A whole message has come, as the codec says.
    fn message(&mut self, context: &mut Context<C>, message: &[u8]) -> Flow;

    /// Somebody sent a command.
    fn command(&mut self, _: &mut Context<C>, _: C) -> Flow {
        Flow::Continue
    }

    /// The connection is closed: by the peer, by an error, by an order or by [`Flow::Close`].
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
    around: Around<'r, C>,
    stream: &'r TcpStream,
    outbox: &'r mut Outbox,
}

/// A connection's place in its runtime.
struct Around<'r, C> {
    id: Id,
    remote: &'r Remote<C>,
    codec: &'r dyn Codec,
    ledger: &'r Mutex<Ledger>,
}

impl<C> Clone for Around<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Around<'_, C> {}

impl<C> Context<'_, C> {
    /// Which connection it is.
    pub fn id(&self) -> Id {
        self.around.id
    }

    /// The runtime it lives in, for orders.
    pub fn remote(&self) -> &Remote<C> {
        self.around.remote
    }

    /// Sends a message, or what goes of it; the rest follows by itself. Refused if too much is waiting already.
    pub fn send(&mut self, message: &[u8]) -> Result<(), Full> {
        self.send_with(message, None)
    }

    /// As [`send`](Self::send). `then` is told, once, whether the whole message was handed to the kernel; it was not if
    /// the connection was closed before. A message that is refused has no `then`.
    pub fn send_then(&mut self, message: &[u8], then: impl FnOnce(bool) + Send + 'static) -> Result<(), Full> {
        self.send_with(message, Some(Box::new(then)))
    }

    fn send_with(&mut self, message: &[u8], then: Option<Then>) -> Result<(), Full> {
        self.outbox.send(self.stream, self.around.codec, self.around.ledger, message, then)
    }
}

/// Nothing behind the locks of this program is ever left half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
