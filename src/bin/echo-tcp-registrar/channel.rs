//! A channel between threads whose receiver need not wait for it: that there are messages is a notification like others.

// Of `super`: tests/interleavings brings other locks.
use super::mailbox::{Mailbox, Ready};
use super::poller::{Id, Registrar};
use super::sync::{Arc, mpsc};

pub use super::sync::mpsc::TryRecvError;

pub struct Sender<T> {
    /// Dropped before the last notification, so that who is notified finds the channel disconnected.
    values: Option<mpsc::Sender<T>>,
    owner: Arc<Mailbox>,
    id: Id,
}

pub struct Receiver<T> {
    values: mpsc::Receiver<T>,
    /// Under which messages are notified, and the loss of the sender.
    pub id: Id,
}

/// `owner` is notified of messages.
pub fn new<T>(registrar: &Registrar, owner: &Arc<Mailbox>) -> (Sender<T>, Receiver<T>) {
    let (sender, values) = mpsc::channel();
    let id = registrar.new_id();
    (Sender { values: Some(sender), owner: owner.clone(), id }, Receiver { values, id })
}

impl<T> Sender<T> {
    /// Gives the value back if the receiver has gone.
    pub fn send(&self, value: T) -> Result<(), T> {
        let sender = self.values.as_ref().expect("there until it is dropped");
        sender.send(value).map_err(|error| error.0)?;
        self.owner.notify(self.id, Ready::MESSAGE);
        Ok(())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.values = None;
        self.owner.notify(self.id, Ready::MESSAGE);
    }
}

impl<T> Receiver<T> {
    /// The next message; or that there is none now, or that there will be none.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.values.try_recv()
    }
}
