//! The loop of one thread. It waits in the kernel until there is something to do, for as long as that takes.

use super::outbox::Outbox;
use super::remote::{Done, Names, Order, Place, Refused, Remote, Sealed};
use super::{Context, Flow, Id, Reactor, lock};
use echo_lab::stream::{Accepted, Inbox, Ledger, Moved, Split};
use echo_lab::{Attempt, Error, Result, stop};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// Calls for one connection before the others have their turn.
const TURN: usize = 32;
const WAKER: Token = Token(0);

/// How the connections of a runtime are read.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Messages; without it, bytes as they come.
    pub split: Option<Split>,
    /// Bytes of the longest message.
    pub limit: usize,
    /// Bytes read at a time. While more wait to be sent, nothing is read.
    pub buffer: usize,
}

pub struct Runtime<C> {
    name: String,
    names: Names<C>,
    settings: Settings,
    ledger: Arc<Mutex<Ledger>>,
    poll: Poll,
    remote: Remote<C>,
    orders: mpsc::Receiver<Sealed<C>>,
    /// By time, and by number where that is the same.
    deferred: BTreeMap<(Instant, usize), (Order<C>, Done)>,
    sockets: HashMap<Id, Socket<C>>,
    next: usize,
    /// Those that may be ready still, of which no edge will tell.
    again: Vec<Id>,
    /// A listener that has run out of descriptors: it is tried again when the pause is over, which ends the wait.
    paused: Option<Id>,
    told_to_stop: bool,
    buffer: Vec<u8>,
}

enum Socket<C> {
    Listener(TcpListener, Place<C>),
    Connecting(Option<(Connection<C>, Done)>),
    Connected(Connection<C>),
}

struct Connection<C> {
    stream: TcpStream,
    reactor: Box<dyn Reactor<C>>,
    inbox: Option<Inbox>,
    outbox: Outbox,
    flow: Flow,
    /// Whether the peer sends no more: the end of the stream is still to be read.
    ended: bool,
    /// Whether it was accepted, and so is in the ledger.
    accepted: bool,
}

impl<C: Send + 'static> Runtime<C> {
    /// Refused if there is one of that name.
    pub fn new(name: &str, names: &Names<C>, settings: Settings, ledger: Arc<Mutex<Ledger>>) -> Result<Self> {
        let poll = Poll::new().attempt("create a poll")?;
        let waker = Waker::new(poll.registry(), WAKER).attempt("create a waker")?;
        let (remote, orders) = Remote::new(waker);
        if !names.add(name, &remote) {
            return Err(Error::new(format!("there is a runtime of the name {name}; take another")));
        }
        let buffer = vec![0; settings.buffer];
        let (name, names, next) = (name.into(), names.clone(), 1 + WAKER.0);
        let (deferred, sockets, again) = Default::default();
        let (paused, told_to_stop) = (None, false);
        Ok(Self {
            name,
            names,
            settings,
            ledger,
            poll,
            remote,
            orders,
            deferred,
            sockets,
            next,
            again,
            paused,
            told_to_stop,
            buffer,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// For orders.
    pub fn remote(&self) -> Remote<C> {
        self.remote.clone()
    }

    /// Until a stop signal or [`Order::Stop`], and then until all connections are closed or the time is over: how many times it waited.
    pub fn run(mut self) -> Result<u64> {
        let mut events = Events::with_capacity(256);
        let mut ready = Vec::new();
        let (mut waits, mut stopping) = (0, false);
        while !(stopping && (self.sockets.is_empty() || lock(&self.ledger).timeout() == Some(Duration::ZERO))) {
            let now = Instant::now();
            let due = self.deferred.first_key_value().map(|((at, _), _)| at.saturating_duration_since(now));
            let timeout = if self.again.is_empty() {
                due.into_iter().chain(lock(&self.ledger).timeout()).min()
            } else {
                Some(Duration::ZERO)
            };
            waits += 1;
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).attempt("poll"),
                _ => {}
            }
            std::mem::swap(&mut self.again, &mut ready);
            let carried = ready.len();
            for event in events.iter().filter(|event| event.token() != WAKER) {
                let id = Id(event.token().0);
                if let (true, Some(Socket::Connected(connection))) = (event.is_read_closed(), self.sockets.get_mut(&id))
                {
                    connection.ended = true;
                }
                if !ready[..carried].contains(&id) {
                    ready.push(id);
                }
            }
            if lock(&self.ledger).accepts() {
                ready.extend(self.paused.take());
            }
            for id in ready.drain(..) {
                self.ready(id)?;
            }
            while let Some(entry) = self.deferred.first_entry().filter(|entry| entry.key().0 <= Instant::now()) {
                let (order, done) = entry.remove();
                self.obey(order, done);
            }
            // Before the orders are taken: one that comes later wakes again.
            self.remote.signalled.store(false, Ordering::Release);
            while let Ok(Sealed { order, done, at }) = self.orders.try_recv() {
                match at {
                    None => self.obey(order, done),
                    Some(at) => {
                        let id = self.new_id();
                        self.deferred.insert((at, id.0), (order, done));
                    }
                }
            }
            if stop::requested() || self.told_to_stop {
                stopping = true;
                self.stop();
            }
        }
        self.names.remove(&self.name);
        let ids: Vec<_> = self.sockets.keys().copied().collect();
        ids.into_iter().for_each(|id| self.close(id));
        let late = self.orders.try_iter().map(|sealed| (sealed.order, sealed.done));
        for (order, done) in std::mem::take(&mut self.deferred).into_values().chain(late) {
            if let Order::Adopt(..) = order {
                lock(&self.ledger).closed();
            }
            done(Err(Refused::Ended));
        }
        Ok(waits)
    }

    fn new_id(&mut self) -> Id {
        self.next += 1;
        Id(self.next)
    }

    /// No more connections, and what has arrived on those there are can still be read; then their streams end.
    fn stop(&mut self) {
        lock(&self.ledger).stop();
        self.sockets.retain(|_, socket| matches!(socket, Socket::Connected(_)));
        for socket in self.sockets.values() {
            if let Socket::Connected(connection) = socket {
                // Fails if the peer has gone already.
                let _ = connection.stream.shutdown(Shutdown::Read);
            }
        }
    }

    fn obey(&mut self, order: Order<C>, done: Done) {
        let unknown = |id| Err(Refused::Gone(id));
        let result = match order {
            Order::Listen(mut listener, place) => {
                let id = self.new_id();
                let registered = self.poll.registry().register(&mut listener, Token(id.0), Interest::READABLE);
                self.sockets.insert(id, Socket::Listener(listener, place));
                registered.map(|()| id).map_err(Refused::System)
            }
            Order::Connect(address, reactor) => match TcpStream::connect(address) {
                Err(error) => Err(Refused::System(error)),
                Ok(stream) => {
                    // It is done when the connection is made.
                    return self.insert(stream, reactor, Some(done));
                }
            },
            Order::Adopt(stream, reactor) => return self.insert(stream, reactor, None),
            Order::Stop => {
                self.told_to_stop = true;
                Ok(Id(WAKER.0))
            }
            Order::Close(id) => match self.sockets.contains_key(&id) {
                true => {
                    self.close(id);
                    Ok(id)
                }
                false => unknown(id),
            },
            Order::Command(id, command) => match self.sockets.get_mut(&id) {
                Some(Socket::Connected(connection)) => {
                    connection
                        .call(id, &self.remote, &self.ledger, |reactor, context| reactor.command(context, command));
                    self.again.push(id);
                    Ok(id)
                }
                _ => unknown(id),
            },
        };
        done(result);
    }

    /// A connection that is made, or, with `done`, about to be.
    fn insert(&mut self, mut stream: TcpStream, reactor: Box<dyn Reactor<C>>, done: Option<Done>) {
        let id = self.new_id();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut stream, Token(id.0), interest);
        // A peer waits for an answer: it must not wait for more to be sent with it. Fails if the peer has gone.
        let _ = stream.set_nodelay(true);
        let inbox = self.settings.split.map(|split| Inbox::new(split, self.settings.limit));
        let outbox = Outbox::new(inbox.is_some());
        let accepted = done.is_none();
        let mut connection =
            Connection { stream, reactor, inbox, outbox, flow: Flow::Continue, ended: false, accepted };
        let socket = match (registered, done) {
            (Ok(()), Some(done)) => Socket::Connecting(Some((connection, done))),
            (Ok(()), None) => {
                connection.call(id, &self.remote, &self.ledger, |reactor, context| reactor.connected(context));
                Socket::Connected(connection)
            }
            (Err(error), Some(done)) => return done(Err(Refused::System(error))),
            (Err(_), None) => return lock(&self.ledger).closed(),
        };
        self.sockets.insert(id, socket);
    }

    fn close(&mut self, id: Id) {
        if let Some(Socket::Connected(mut connection)) = self.sockets.remove(&id) {
            connection.reactor.closed();
            connection.outbox.close();
            if connection.accepted {
                lock(&self.ledger).closed();
            }
        }
    }

    fn ready(&mut self, id: Id) -> Result<()> {
        match self.sockets.get_mut(&id) {
            // Closed by one that came before it in this turn.
            None => {}
            Some(Socket::Listener(..)) => self.accept(id)?,
            Some(Socket::Connecting(waiting)) => {
                let Some((mut connection, done)) = waiting.take() else { return Ok(()) };
                // connect(2): writable when it is over; SO_ERROR says how it went.
                match connection.stream.take_error().and_then(|error| error.map_or(Ok(()), Err)) {
                    Ok(()) if connection.stream.peer_addr().is_ok() => {
                        done(Ok(id));
                        connection.call(id, &self.remote, &self.ledger, |reactor, context| reactor.connected(context));
                        self.sockets.insert(id, Socket::Connected(connection));
                        self.again.push(id);
                    }
                    Ok(()) => *waiting = Some((connection, done)),
                    Err(error) => {
                        self.sockets.remove(&id);
                        done(Err(Refused::System(error)));
                    }
                }
            }
            Some(Socket::Connected(connection)) => {
                match connection.turn(id, &self.remote, &self.ledger, &mut self.buffer) {
                    Moved::Over => self.close(id),
                    Moved::WouldBlock => {}
                    _ => self.again.push(id),
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, id: Id) -> Result<()> {
        while lock(&self.ledger).accepts() {
            let Some(Socket::Listener(listener, place)) = self.sockets.get_mut(&id) else { break };
            let result = listener.accept();
            let accepted = lock(&self.ledger).accepted(result)?;
            match accepted {
                Accepted::Connection(stream) => match place() {
                    (Some(runtime), reactor) => runtime.order(Order::Adopt(stream, reactor), |_| ()),
                    (None, reactor) => self.insert(stream, reactor, None),
                },
                Accepted::Nothing => {}
                Accepted::Wait => break,
            }
        }
        if !lock(&self.ledger).accepts() {
            self.paused = Some(id);
        }
        Ok(())
    }
}

impl<C> Connection<C> {
    /// Calls the reactor.
    fn call(
        &mut self,
        id: Id,
        remote: &Remote<C>,
        ledger: &Mutex<Ledger>,
        with: impl FnOnce(&mut dyn Reactor<C>, &mut Context<C>) -> Flow,
    ) {
        let mut context = Context { id, remote, stream: &self.stream, outbox: &mut self.outbox, ledger };
        if with(&mut *self.reactor, &mut context) == Flow::Close {
            self.flow = Flow::Close;
        }
    }

    /// Sends, dispatches and reads until a call would block, or others should have their turn.
    fn turn(&mut self, id: Id, remote: &Remote<C>, ledger: &Mutex<Ledger>, buffer: &mut [u8]) -> Moved {
        let mut drained = false;
        for _ in 0..TURN {
            if self.outbox.has_failed() || self.flow == Flow::Close && self.outbox.len() == 0 {
                return Moved::Over;
            }
            if self.outbox.len() > 0 {
                match self.outbox.flush(&self.stream, ledger) {
                    Moved::WouldBlock if self.flow == Flow::Close || self.outbox.len() > buffer.len() => {
                        return Moved::WouldBlock;
                    }
                    Moved::WouldBlock => {}
                    Moved::Over => return Moved::Over,
                    Moved::Bytes(_) | Moved::Again => continue,
                }
            }
            let mut context = Context { id, remote, stream: &self.stream, outbox: &mut self.outbox, ledger };
            if let Some(inbox) = &mut self.inbox {
                match inbox.next_message() {
                    Ok(Some(frame)) => {
                        self.flow = self.reactor.message(&mut context, &frame[4..]);
                        continue;
                    }
                    Ok(None) => {}
                    Err(too_long) => {
                        lock(ledger).too_long(too_long);
                        return Moved::Over;
                    }
                }
            }
            if drained {
                return Moved::WouldBlock;
            }
            let result = (&self.stream).read(buffer);
            // The lock is not held while the reactor is called.
            let moved = lock(ledger).read(result);
            match moved {
                Moved::Bytes(count) => {
                    // epoll(7), question 9: less than was asked for is all there is, and more makes a new edge.
                    drained = cfg!(unix) && count < buffer.len() && !self.ended;
                    match &mut self.inbox {
                        Some(inbox) => inbox.push(&buffer[..count]),
                        None => self.flow = self.reactor.message(&mut context, &buffer[..count]),
                    }
                }
                Moved::Again => {}
                // What is owed to a peer that sends no more is sent before the end.
                Moved::Over if self.outbox.len() > 0 => self.flow = Flow::Close,
                over => return over,
            }
        }
        Moved::Again
    }
}
