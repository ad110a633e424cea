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
    /// What a message is.
    pub split: Split,
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
    /// What was read and is not yet written. While a whole message is in it, nothing is read.
    inbox: Inbox,
    interest: Interest,
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
                } else if ready.contains(Ready::TIMEOUT) {
                    self.idle(id);
                } else {
                    // Whatever it is ready for, the next call tells.
                    self.serve(id);
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
                    let id = match self.registrar.register(&mut stream, interest, &self.mailbox) {
                        Ok(id) => id,
                        Err(error) => {
                            lock(&self.streams).ledger.not_registered(&error);
                            continue;
                        }
                    };
                    let timer = self.rules.idle.map(|idle| self.registrar.timeout(idle, &self.mailbox));
                    self.timers.extend(timer.map(|timer| (timer, id)));
                    let inbox = Inbox::new(self.rules.split, self.rules.limit);
                    let connection = Connection { stream, inbox, interest, heard: Instant::now(), timer };
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

    fn serve(&mut self, id: Id) {
        // A notification may have been on its way when its connection was closed.
        let Some(connection) = self.connections.get_mut(&id) else { return };
        for _ in 0..TURN {
            match connection.step(self.rules.split, &mut self.buffer, &self.streams) {
                Moved::WouldBlock => {
                    let mut wanted = Interest::READABLE;
                    if matches!(connection.inbox.front(), Ok(Some(_))) {
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
        self.inbox.len()
    }

    /// One call: what waits is written first, then the next whole message; else something is read. A read that brings
    /// less than was asked for may have ended at urgent data (tcp(7)) or at the end of the stream: more may be there, of
    /// which no edge will tell. So it is the read that would block after which to wait.
    fn step(&mut self, split: Split, buffer: &mut [u8], streams: &Mutex<Streams>) -> Moved {
        match self.inbox.front() {
            Ok(Some(bytes)) => {
                let result = self.stream.write(bytes);
                let moved = lock(streams).ledger.wrote(result);
                if let Moved::Bytes(count) = moved {
                    self.inbox.wrote(count);
                }
                return moved;
            }
            Ok(None) => {}
            Err(too_long) => {
                lock(streams).ledger.too_long(too_long);
                return Moved::Over;
            }
        }
        let result = self.stream.read(buffer);
        let moved = lock(streams).ledger.read(result);
        if let Moved::Bytes(count) = moved {
            self.heard = Instant::now();
            if split == Split::Bytes {
                // What can be written at once is not kept.
                let result = self.stream.write(&buffer[..count]);
                let moved = lock(streams).ledger.wrote(result);
                let sent = if let Moved::Bytes(sent) = moved { sent } else { 0 };
                self.inbox.push(&buffer[sent..count]);
                return moved;
            }
            self.inbox.push(&buffer[..count]);
        }
        moved
    }
}
