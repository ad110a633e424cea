//! The connections of one worker: it registers them, reads, writes, and closes them. Nobody else touches them.

use crate::channel::{Receiver, TryRecvError};
use crate::lock;
use crate::mailbox::{Batch, Mailbox, Ready};
use crate::poller::{Id, Registrar};
use echo_lab::Result;
use echo_lab::stream::{Inbox, Moved, Split, Streams};
use mio::Interest;
use mio::net::TcpStream;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Calls for one connection before the others have their turn.
const TURN: usize = 32;

/// How connections are served.
#[derive(Clone)]
pub struct Rules {
    /// Messages; without it, bytes as they come.
    pub split: Option<Split>,
    /// Bytes of the longest message.
    pub limit: usize,
    /// Bytes read at a time.
    pub buffer: usize,
    /// When to close a connection on which nothing comes.
    pub idle: Option<Duration>,
}

pub struct Worker {
    registrar: Registrar,
    mailbox: Arc<Mailbox>,
    incoming: Receiver<TcpStream>,
    rules: Rules,
    streams: Arc<Mutex<Streams>>,
    connections: HashMap<Id, Connection>,
    /// Of each timer, its connection.
    timers: HashMap<Id, Id>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    inbox: Option<Inbox>,
    /// What could not be written. While there is something, nothing is read.
    unsent: Vec<u8>,
    interest: Interest,
    /// Whether the peer sends no more: the end of the stream is still to be read.
    ended: bool,
    /// Whether the last read took all there was.
    drained: bool,
    heard: Instant,
    timer: Option<Id>,
}

impl Worker {
    pub fn new(
        registrar: Registrar,
        mailbox: Arc<Mailbox>,
        incoming: Receiver<TcpStream>,
        rules: Rules,
        streams: Arc<Mutex<Streams>>,
    ) -> Self {
        let buffer = vec![0; rules.buffer];
        let (connections, timers) = Default::default();
        Self { registrar, mailbox, incoming, rules, streams, connections, timers, buffer }
    }

    /// Until no more connections come, and the last one is closed or the time to stop is over.
    pub fn run(&mut self) -> Result<()> {
        let mut batch = Batch::default();
        let (mut ended, mut left) = (false, None);
        while !ended || !self.connections.is_empty() && left != Some(Duration::ZERO) {
            self.mailbox.take(&mut batch, left);
            for (id, ready) in batch.drain() {
                if id == self.incoming.id {
                    ended = self.adopt();
                } else if ready == Ready::TIMEOUT {
                    self.idle(id);
                } else {
                    self.serve(id, ready);
                }
            }
            if ended {
                left = lock(&self.streams).ledger.timeout();
            }
        }
        let held = self.connections.values().map(Connection::held).sum();
        lock(&self.streams).ledger.unsent(held);
        Ok(())
    }

    /// Takes new connections; whether no more will come.
    fn adopt(&mut self) -> bool {
        loop {
            match self.incoming.try_recv() {
                Ok(mut stream) => {
                    let interest = Interest::READABLE;
                    let Ok(id) = self.registrar.register(&mut stream, interest, &self.mailbox) else {
                        // No memory in the kernel for one more: the peer sees it closed.
                        lock(&self.streams).ledger.closed();
                        continue;
                    };
                    let timer = self.rules.idle.map(|idle| self.registrar.timeout(idle, &self.mailbox));
                    self.timers.extend(timer.map(|timer| (timer, id)));
                    let inbox = self.rules.split.map(|split| Inbox::new(split, self.rules.limit));
                    let (unsent, heard) = (Vec::new(), Instant::now());
                    let (ended, drained) = (false, false);
                    let connection = Connection { stream, inbox, unsent, interest, ended, drained, heard, timer };
                    self.connections.insert(id, connection);
                }
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => {
                    for connection in self.connections.values() {
                        // What has arrived can still be read, then the stream ends. Fails if the peer has gone already.
                        let _ = connection.stream.shutdown(Shutdown::Read);
                    }
                    return true;
                }
            }
        }
    }

    /// The time of a connection has passed, unless it was heard of since its timer was set.
    fn idle(&mut self, timer: Id) {
        let Some((id, limit)) = self.timers.remove(&timer).zip(self.rules.idle) else { return };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let left = limit.saturating_sub(connection.heard.elapsed());
        if left.is_zero() {
            connection.timer = None;
            return self.close(id);
        }
        let timer = self.registrar.timeout(left, &self.mailbox);
        connection.timer = Some(timer);
        self.timers.insert(timer, id);
    }

    fn serve(&mut self, id: Id, ready: Ready) {
        // A notification may have been on its way when its connection was closed.
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.ended |= ready.contains(Ready::CLOSED);
        connection.drained = false;
        for _ in 0..TURN {
            match connection.step(&mut self.buffer, &self.streams) {
                Moved::WouldBlock => {
                    let mut wanted = Interest::READABLE;
                    if !connection.unsent.is_empty() {
                        wanted |= Interest::WRITABLE;
                    }
                    if wanted == connection.interest {
                        return;
                    }
                    connection.interest = wanted;
                    if self.registrar.reregister(&mut connection.stream, id, wanted).is_err() {
                        return self.close(id);
                    }
                    return;
                }
                Moved::Over => return self.close(id),
                Moved::Bytes(_) | Moved::Again => {}
            }
        }
        // No edge will tell of what is left.
        self.mailbox.notify(id, Ready::READABLE);
    }

    fn close(&mut self, id: Id) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        // Each is known: it was registered, and is now forgotten.
        let _ = self.registrar.deregister(&mut connection.stream, id);
        if let Some(timer) = connection.timer {
            self.timers.remove(&timer);
            let _ = self.registrar.cancel(timer);
        }
        let mut streams = lock(&self.streams);
        streams.ledger.unsent(connection.held());
        streams.ledger.closed();
    }
}

impl Connection {
    /// Bytes read and not yet written.
    fn held(&self) -> usize {
        self.unsent.len() + self.inbox.as_ref().map_or(0, Inbox::len)
    }

    /// One call: what waits is written first, then the next whole message; else something is read.
    fn step(&mut self, buffer: &mut [u8], streams: &Mutex<Streams>) -> Moved {
        if !self.unsent.is_empty() {
            let result = self.stream.write(&self.unsent);
            let moved = lock(streams).ledger.wrote(result);
            if let Moved::Bytes(count) = moved {
                self.unsent.drain(..count);
                if self.unsent.is_empty() {
                    self.unsent = Vec::new();
                }
            }
            return moved;
        }
        if let Some(inbox) = &mut self.inbox {
            match inbox.next_message() {
                Ok(Some(message)) => return write(&self.stream, message, &mut self.unsent, streams),
                Ok(None) => {}
                Err(too_long) => {
                    lock(streams).ledger.too_long(too_long);
                    return Moved::Over;
                }
            }
        }
        if self.drained {
            return Moved::WouldBlock;
        }
        let result = self.stream.read(buffer);
        let moved = lock(streams).ledger.read(result);
        if let Moved::Bytes(count) = moved {
            // epoll(7), question 9: less than was asked for is all there is, and more makes a new edge.
            self.drained = cfg!(unix) && count < buffer.len() && !self.ended;
            self.heard = Instant::now();
            match &mut self.inbox {
                Some(inbox) => inbox.push(&buffer[..count]),
                None => return write(&self.stream, &buffer[..count], &mut self.unsent, streams),
            }
        }
        moved
    }
}

/// Writes a message; the rest of it goes to `unsent`.
fn write(mut stream: &TcpStream, message: &[u8], unsent: &mut Vec<u8>, streams: &Mutex<Streams>) -> Moved {
    let result = stream.write(message);
    let moved = lock(streams).ledger.wrote(result);
    let sent = if let Moved::Bytes(count) = moved { count } else { 0 };
    unsent.extend_from_slice(&message[sent..]);
    moved
}
