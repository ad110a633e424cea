//! Orders to a runtime, from any thread.

use super::mailbox::{Mailbox, Returned};
use super::{Id, Reactor, lock};
use echo_lab::stream::Ledger;
use mio::Waker;
use mio::net::{TcpListener, TcpStream};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Orders that can wait for one runtime to get to them, and as many that can wait for their time.
pub const ORDERS: usize = 1 << 16;

/// Says for a new connection in which runtime it is to live, `None` being that of its listener, and what it does.
pub type Place<C> = Box<dyn FnMut() -> (Option<Remote<C>>, Box<dyn Reactor<C>>) + Send>;

/// What a runtime can be told to do.
pub enum Order<C> {
    /// Accept connections.
    Listen(TcpListener, Place<C>),
    /// Make a connection, without waiting for it. Completed when it is made, or refused.
    Connect(SocketAddr, Box<dyn Reactor<C>>),
    /// Take over a connection.
    Adopt(Stream, Box<dyn Reactor<C>>),
    /// Close a connection or listener.
    Close(Id),
    /// Pass a command to the reactor of a connection.
    Command(Id, C),
    /// End, as after a stop signal. Completed when the runtime begins to.
    Stop,
}

/// A connection on its way to a runtime.
pub struct Stream {
    pub(super) stream: TcpStream,
    /// Of an accepted connection.
    pub(super) entry: Option<Entry>,
}

/// That a connection is open, in the ledger of its listener, until this is dropped: wherever the connection lives.
pub(super) struct Entry(pub Arc<Mutex<Ledger>>);

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.0).closed();
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self { stream, entry: None }
    }
}

/// Why an order was not carried out.
#[derive(Debug)]
pub enum Refused {
    /// It was closed, or is no connection.
    Gone(Id),
    /// It is of another runtime.
    Elsewhere(Id),
    /// [`ORDERS`] others are waiting.
    Full,
    /// The runtime has ended, or is about to.
    Ended,
    /// What the system said.
    System(io::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(id) => write!(f, "connection {} was closed", id.number),
            Self::Elsewhere(id) => write!(f, "connection {} is of another runtime", id.number),
            Self::Full => write!(f, "{ORDERS} orders are waiting already"),
            Self::Ended => f.write_str("the runtime has ended"),
            Self::System(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}

/// Told once what became of an order, and whom it was about. Whoever drops it says that the runtime has ended.
pub struct Done(Option<Callback>);

type Callback = Box<dyn FnOnce(Result<Id, Refused>) + Send>;

impl Done {
    pub fn new(done: impl FnOnce(Result<Id, Refused>) + Send + 'static) -> Self {
        Self(Some(Box::new(done)))
    }

    pub fn tell(mut self, result: Result<Id, Refused>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(Refused::Ended));
        }
    }
}

/// An order on its way.
pub struct Sealed<C> {
    pub order: Order<C>,
    pub done: Done,
    /// Not before.
    pub at: Option<Instant>,
}

/// Orders to one runtime. A burst of them wakes it once.
pub struct Remote<C>(Arc<Inside<C>>);

struct Inside<C> {
    mailbox: Mailbox<Sealed<C>>,
    waker: Waker,
}

impl<C> Clone for Remote<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C> Remote<C> {
    pub(super) fn new(waker: Waker) -> Self {
        Self(Arc::new(Inside { mailbox: Mailbox::new(ORDERS), waker }))
    }

    pub(super) fn mailbox(&self) -> &Mailbox<Sealed<C>> {
        &self.0.mailbox
    }

    /// An order, to be carried out when the runtime gets to it.
    pub fn order(&self, order: Order<C>, done: impl FnOnce(Result<Id, Refused>) + Send + 'static) {
        self.put(Sealed { order, done: Done::new(done), at: None });
    }

    /// An order, to be carried out at a time: never before it, and in order of time.
    pub fn order_at(&self, at: Instant, order: Order<C>, done: impl FnOnce(Result<Id, Refused>) + Send + 'static) {
        self.put(Sealed { order, done: Done::new(done), at: Some(at) });
    }

    fn put(&self, sealed: Sealed<C>) {
        match self.0.mailbox.put(sealed) {
            Ok(true) => self.wake(),
            Ok(false) => {}
            Err(Returned::Full(sealed)) => sealed.done.tell(Err(Refused::Full)),
            Err(Returned::Closed(sealed)) => sealed.done.tell(Err(Refused::Ended)),
        }
    }

    /// Ends the runtime's wait. It can only fail when so many wake-ups wait that one more is not needed.
    pub fn wake(&self) {
        let _ = self.0.waker.wake();
    }
}

/// The runtimes of a program, by name.
pub struct Names<C>(Arc<Mutex<HashMap<String, Remote<C>>>>);

impl<C> Default for Names<C> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<C> Clone for Names<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C> Names<C> {
    pub fn find(&self, name: &str) -> Option<Remote<C>> {
        lock(&self.0).get(name).cloned()
    }

    /// Whether the name was free. If not, it stays with the one that has it.
    pub(super) fn add(&self, name: &str, remote: &Remote<C>) -> bool {
        let mut names = lock(&self.0);
        let free = !names.contains_key(name);
        if free {
            names.insert(name.into(), remote.clone());
        }
        free
    }

    pub(super) fn remove(&self, name: &str) {
        lock(&self.0).remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests/interleavings has the rest, in every order in which threads can run.
    #[test]
    fn a_burst_wakes_once() {
        let mailbox = Mailbox::new(3);
        assert_eq!(
            [1, 2, 3, 4].map(|item| mailbox.put(item)),
            [Ok(true), Ok(false), Ok(false), Err(Returned::Full(4))]
        );
        assert_eq!(mailbox.take(), [1, 2, 3]);
        assert_eq!(mailbox.put(5), Ok(true));
        assert_eq!(mailbox.close(), [5]);
        assert_eq!(mailbox.put(6), Err(Returned::Closed(6)));
    }
}
