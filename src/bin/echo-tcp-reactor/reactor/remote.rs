//! Orders to a runtime, from any thread.

use super::{Id, Reactor, lock};
use mio::Waker;
use mio::net::{TcpListener, TcpStream};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// Says for a new connection in which runtime it is to live, `None` being that of its listener, and what it does.
pub type Place<C> = Box<dyn FnMut() -> (Option<Remote<C>>, Box<dyn Reactor<C>>) + Send>;

/// What a runtime can be told to do.
pub enum Order<C> {
    /// Accept connections.
    Listen(TcpListener, Place<C>),
    /// Make a connection, without waiting for it. Completed when it is made, or refused.
    Connect(SocketAddr, Box<dyn Reactor<C>>),
    /// Take over a connection.
    Adopt(TcpStream, Box<dyn Reactor<C>>),
    /// Close a connection or listener.
    Close(Id),
    /// Pass a command to the reactor of a connection.
    Command(Id, C),
    /// End, as after a stop signal.
    Stop,
}

/// Why an order was not carried out.
#[derive(Debug)]
pub enum Refused {
    /// It was closed.
    Gone(Id),
    /// The runtime has ended.
    Ended,
    /// What the system said.
    System(io::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(Id(number)) => write!(f, "connection {number} was closed"),
            Self::Ended => f.write_str("the runtime has ended"),
            Self::System(error) => error.fmt(f),
        }
    }
}

/// Told once what became of an order: whom it was about.
pub type Done = Box<dyn FnOnce(Result<Id, Refused>) + Send>;

/// An order on its way.
pub struct Sealed<C> {
    pub order: Order<C>,
    pub done: Done,
    /// Not before.
    pub at: Option<Instant>,
}

/// Orders to one runtime. A burst of them wakes it once.
pub struct Remote<C> {
    orders: mpsc::Sender<Sealed<C>>,
    waker: Arc<Waker>,
    pub(super) signalled: Arc<AtomicBool>,
}

impl<C> Clone for Remote<C> {
    fn clone(&self) -> Self {
        Self { orders: self.orders.clone(), waker: self.waker.clone(), signalled: self.signalled.clone() }
    }
}

impl<C> Remote<C> {
    pub(super) fn new(waker: Waker) -> (Self, mpsc::Receiver<Sealed<C>>) {
        let (orders, receiver) = mpsc::channel();
        (Self { orders, waker: Arc::new(waker), signalled: Arc::default() }, receiver)
    }

    /// An order, to be carried out when the runtime gets to it.
    pub fn order(&self, order: Order<C>, done: impl FnOnce(Result<Id, Refused>) + Send + 'static) {
        self.seal(Sealed { order, done: Box::new(done), at: None });
    }

    /// An order, to be carried out after a time: never before it, and in order of time.
    pub fn order_after(
        &self,
        after: Duration,
        order: Order<C>,
        done: impl FnOnce(Result<Id, Refused>) + Send + 'static,
    ) {
        self.seal(Sealed { order, done: Box::new(done), at: Some(Instant::now() + after) });
    }

    fn seal(&self, sealed: Sealed<C>) {
        if let Err(mpsc::SendError(sealed)) = self.orders.send(sealed) {
            return (sealed.done)(Err(Refused::Ended));
        }
        if !self.signalled.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Ends the runtime's wait. It can only fail when so many wake-ups wait that one more is not needed.
    pub fn wake(&self) {
        let _ = self.waker.wake();
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
