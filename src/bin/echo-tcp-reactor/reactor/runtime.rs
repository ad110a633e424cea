//! The loop of one thread. It waits in the kernel until there is something to do, for as long as that takes.

use super::codec::{Codec, Next};
use super::deferred::Deferred;
use super::inbox::Inbox;
use super::outbox::Outbox;
use super::remote::{Done, Entry, Names, ORDERS, Order, Place, Refused, Remote, Sealed, Stream};
use super::{Around, Context, Flow, Id, Reactor, lock};
use echo_lab::ledger::DRAIN_DEADLINE;
use echo_lab::policy::is_exhausted;
use echo_lab::stream::{Accepted, Ledger, Moved, PAUSE};
use echo_lab::{Attempt, Error, Result, stop};
use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Calls for one connection or listener before the others have their turn.
const TURN: usize = 32;
const WAKER: Token = Token(0);

/// How the connections of a runtime are read.
#[derive(Clone)]
pub struct Settings {
    pub codec: Arc<dyn Codec>,
    /// Bytes read at a time.
    pub buffer: usize,
}

pub struct Runtime<C> {
    name: String,
    names: Names<C>,
    codec: Arc<dyn Codec>,
    ledger: Arc<Mutex<Ledger>>,
    poll: Poll,
    events: Events,
    remote: Remote<C>,
    deferred: Deferred<Due<C>>,
    sockets: HashMap<Id, Socket<C>>,
    /// The newest. That of the runtime itself is the first.
    id: Id,
    /// Those that may be ready still, of which no edge will tell.
    again: Vec<Id>,
    ready: Vec<Id>,
    /// Listeners that found no descriptor for a connection.
    paused: Vec<Id>,
    /// Once it was told to stop.
    deadline: Option<Instant>,
    /// For what one connection is reading, and the memory for the next inbox that needs some.
    buffer: Vec<u8>,
    spare: Vec<u8>,
    waits: u64,
}

enum Due<C> {
    Order(Order<C>, Done),
    /// The listeners that paused try again.
    Accept,
}

enum Socket<C> {
    Listener(TcpListener, Place<C>),
    Connecting(TcpStream, Box<dyn Reactor<C>>, Done),
    Connected(Connection<C>),
}

/// Dropped in this order, and first of all the reactor is told.
struct Connection<C> {
    reactor: Box<dyn Reactor<C>>,
    stream: TcpStream,
    inbox: Inbox,
    outbox: Outbox,
    flow: Flow,
    entry: Option<Entry>,
}

impl<C> Drop for Connection<C> {
    fn drop(&mut self) {
        self.reactor.closed();
        if let Some(Entry(ledger)) = &self.entry {
            lock(ledger).unsent(self.inbox.bytes().len() + self.outbox.len());
        }
    }
}

/// The orders that are still in the mailbox, and those that wait with a time or for a connection, are refused: see [`Done`].
impl<C> Drop for Runtime<C> {
    fn drop(&mut self) {
        drop(self.remote.mailbox().close());
        self.names.remove(&self.name);
    }
}

impl<C: Send + 'static> Runtime<C> {
    /// Refused if there is one of that name.
    pub fn new(name: &str, names: &Names<C>, settings: Settings, ledger: Arc<Mutex<Ledger>>) -> Result<Self> {
        static RUNTIMES: AtomicUsize = AtomicUsize::new(0);
        let poll = Poll::new().attempt("create a poll")?;
        let waker = Waker::new(poll.registry(), WAKER).attempt("create a waker")?;
        let remote = Remote::new(waker);
        if !names.add(name, &remote) {
            return Err(Error::new(format!("there is a runtime of the name {name}; take another")));
        }
        Ok(Self {
            name: name.into(),
            names: names.clone(),
            codec: settings.codec,
            ledger,
            poll,
            events: Events::with_capacity(256),
            remote,
            deferred: Deferred::new(),
            sockets: HashMap::new(),
            id: Id { runtime: RUNTIMES.fetch_add(1, Ordering::Relaxed), number: WAKER.0 },
            again: Vec::new(),
            ready: Vec::new(),
            paused: Vec::new(),
            deadline: None,
            buffer: vec![0; settings.buffer],
            spare: Vec::new(),
            waits: 0,
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
        while self.turn()? {}
        Ok(self.waits)
    }

    /// Waits until there is something to do, and does it: whether there is more to come.
    fn turn(&mut self) -> Result<bool> {
        let until = self.deferred.next().into_iter().chain(self.deadline).min();
        let timeout = match self.again.is_empty() {
            true => until.map(|at| at.saturating_duration_since(Instant::now())),
            false => Some(Duration::ZERO),
        };
        self.waits += 1;
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).attempt("poll"),
            _ => {}
        }
        std::mem::swap(&mut self.again, &mut self.ready);
        let told = self.events.iter().map(|event| event.token()).filter(|token| *token != WAKER);
        self.ready.extend(told.map(|token| Id { number: token.0, ..self.id }));
        // One that may be ready still, and is so again, has one turn like the others.
        self.ready.sort_unstable();
        self.ready.dedup();
        for at in 0..self.ready.len() {
            self.ready(self.ready[at])?;
        }
        self.ready.clear();
        let now = Instant::now();
        while let Some(due) = self.deferred.due(now) {
            match due {
                Due::Order(order, done) => self.obey(order, done),
                Due::Accept => std::mem::take(&mut self.paused).into_iter().try_for_each(|id| self.ready(id))?,
            }
        }
        // Those that come meanwhile wake it, so whoever gives order upon order does not keep it from the sockets.
        for Sealed { order, done, at } in self.remote.mailbox().take() {
            match at {
                None => self.obey(order, done),
                Some(_) if self.deferred.len() >= ORDERS => done.tell(Err(Refused::Full)),
                Some(at) => self.deferred.insert(at, Due::Order(order, done)),
            }
        }
        if stop::requested() {
            self.stop();
        }
        Ok(self.deadline.is_none_or(|deadline| !self.sockets.is_empty() && Instant::now() < deadline))
    }

    /// No more connections, and what has arrived on those there are can still be read; then their streams end.
    fn stop(&mut self) {
        if self.deadline.is_some() {
            return;
        }
        self.deadline = Some(Instant::now() + DRAIN_DEADLINE);
        self.sockets.retain(|_, socket| matches!(socket, Socket::Connected(_)));
        for socket in self.sockets.values() {
            if let Socket::Connected(connection) = socket {
                connection.read_no_more();
            }
        }
    }

    fn obey(&mut self, order: Order<C>, done: Done) {
        let result = match order {
            Order::Listen(..) | Order::Connect(..) if self.deadline.is_some() => Err(Refused::Ended),
            Order::Listen(mut listener, place) => self.register(&mut listener, Interest::READABLE).inspect(|id| {
                self.sockets.insert(*id, Socket::Listener(listener, place));
            }),
            Order::Connect(address, reactor) => match self.connect(address) {
                Ok((id, stream)) => {
                    // It is done when the connection is made.
                    self.sockets.insert(id, Socket::Connecting(stream, reactor, done));
                    return;
                }
                Err(refused) => Err(refused),
            },
            Order::Adopt(stream, reactor) => return self.adopt(stream, reactor, done),
            Order::Close(id) | Order::Command(id, _) if id.runtime != self.id.runtime => Err(Refused::Elsewhere(id)),
            Order::Close(id) => self.sockets.remove(&id).map(|_| id).ok_or(Refused::Gone(id)),
            Order::Command(id, command) => match self.sockets.get_mut(&id) {
                Some(Socket::Connected(connection)) => {
                    let around = Around { id, remote: &self.remote, codec: &*self.codec, ledger: &self.ledger };
                    connection.call(around, |reactor, context| reactor.command(context, command));
                    self.again.push(id);
                    Ok(id)
                }
                _ => Err(Refused::Gone(id)),
            },
            Order::Stop => {
                self.stop();
                Ok(Id { number: WAKER.0, ..self.id })
            }
        };
        done.tell(result);
    }

    /// A new id for what the system is to tell about.
    fn register(&mut self, source: &mut impl Source, interest: Interest) -> std::result::Result<Id, Refused> {
        self.id.number += 1;
        let registered = self.poll.registry().register(source, Token(self.id.number), interest);
        registered.map(|()| self.id).map_err(Refused::System)
    }

    fn connect(&mut self, address: std::net::SocketAddr) -> std::result::Result<(Id, TcpStream), Refused> {
        let mut stream = TcpStream::connect(address).map_err(Refused::System)?;
        let id = self.register(&mut stream, Interest::READABLE | Interest::WRITABLE)?;
        Ok((id, stream))
    }

    fn adopt(&mut self, mut stream: Stream, reactor: Box<dyn Reactor<C>>, done: Done) {
        match self.register(&mut stream.stream, Interest::READABLE | Interest::WRITABLE) {
            Ok(id) => self.begin(id, stream, reactor, done),
            Err(refused) => {
                // At a limit of the system none is accepted for a while: it would meet the same.
                if let Refused::System(error) = &refused {
                    lock(&self.ledger).at_limit(error);
                }
                done.tell(Err(refused));
            }
        }
    }

    /// The connection is made.
    fn begin(&mut self, id: Id, Stream { stream, entry }: Stream, reactor: Box<dyn Reactor<C>>, done: Done) {
        done.tell(Ok(id));
        // A peer waits for an answer: it must not wait for more to be sent with it. Fails if the peer has gone.
        let _ = stream.set_nodelay(true);
        let (inbox, outbox, flow) = (Inbox::default(), Outbox::default(), Flow::Continue);
        let mut connection = Connection { reactor, stream, inbox, outbox, flow, entry };
        let around = Around { id, remote: &self.remote, codec: &*self.codec, ledger: &self.ledger };
        connection.call(around, |reactor, context| reactor.connected(context));
        if self.deadline.is_some() {
            connection.read_no_more();
        }
        self.sockets.insert(id, Socket::Connected(connection));
        // What has come so far may make no edge.
        self.again.push(id);
    }

    fn ready(&mut self, id: Id) -> Result<()> {
        match self.sockets.get_mut(&id) {
            // Closed by one that came before it in this turn.
            None => {}
            Some(Socket::Listener(..)) => self.accept(id)?,
            Some(Socket::Connecting(..)) => {
                if let Some(Socket::Connecting(stream, reactor, done)) = self.sockets.remove(&id) {
                    self.connecting(id, stream, reactor, done);
                }
            }
            Some(Socket::Connected(connection)) => {
                let around = Around { id, remote: &self.remote, codec: &*self.codec, ledger: &self.ledger };
                match connection.turn(around, &mut self.buffer, &mut self.spare) {
                    Moved::Over => drop(self.sockets.remove(&id)),
                    Moved::WouldBlock => {}
                    _ => self.again.push(id),
                }
            }
        }
        Ok(())
    }

    /// connect(2): writable when it is over; SO_ERROR says how it went.
    fn connecting(&mut self, id: Id, stream: TcpStream, reactor: Box<dyn Reactor<C>>, done: Done) {
        let failed: io::Result<_> = stream.take_error();
        match failed.and_then(|error| error.map_or(Ok(()), Err)) {
            Ok(()) if stream.peer_addr().is_ok() => self.begin(id, stream.into(), reactor, done),
            Ok(()) => drop(self.sockets.insert(id, Socket::Connecting(stream, reactor, done))),
            Err(error) => done.tell(Err(Refused::System(error))),
        }
    }

    fn accept(&mut self, id: Id) -> Result<()> {
        for _ in 0..TURN {
            let Some(Socket::Listener(listener, place)) = self.sockets.get_mut(&id) else { return Ok(()) };
            if !lock(&self.ledger).accepts() {
                if self.paused.is_empty() {
                    self.deferred.insert(Instant::now() + PAUSE, Due::Accept);
                }
                if !self.paused.contains(&id) {
                    self.paused.push(id);
                }
                return Ok(());
            }
            let result = listener.accept();
            let exhausted = result.as_ref().is_err_and(is_exhausted);
            let accepted = lock(&self.ledger).accepted(result)?;
            match accepted {
                Accepted::Connection(stream) => {
                    let stream = Stream { stream, entry: Some(Entry(self.ledger.clone())) };
                    match place() {
                        (Some(runtime), reactor) => runtime.order(Order::Adopt(stream, reactor), |_| ()),
                        (None, reactor) => self.adopt(stream, reactor, Done::new(|_| ())),
                    }
                }
                Accepted::Wait if !exhausted => return Ok(()),
                Accepted::Wait | Accepted::Nothing => {}
            }
        }
        self.again.push(id);
        Ok(())
    }
}

impl<C> Connection<C> {
    /// What has arrived can still be read, and then the stream ends. Fails if the peer has gone already.
    fn read_no_more(&self) {
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    /// Calls the reactor.
    fn call(&mut self, around: Around<C>, with: impl FnOnce(&mut dyn Reactor<C>, &mut Context<C>) -> Flow) {
        let mut context = Context { around, stream: &self.stream, outbox: &mut self.outbox };
        if with(&mut *self.reactor, &mut context) == Flow::Close {
            self.flow = Flow::Close;
        }
    }

    /// Sends, dispatches and reads until a call would block, or others should have their turn.
    fn turn(&mut self, around: Around<C>, buffer: &mut [u8], spare: &mut Vec<u8>) -> Moved {
        // What of the buffer was read, and not used yet.
        let mut fresh = 0..0;
        let moved = self.steps(around, buffer, &mut fresh, spare);
        self.inbox.append(&buffer[fresh], 0, spare);
        self.inbox.tidy(spare);
        moved
    }

    fn steps(&mut self, around: Around<C>, buffer: &mut [u8], fresh: &mut Range<usize>, spare: &mut Vec<u8>) -> Moved {
        for _ in 0..TURN {
            if self.outbox.has_failed() || self.flow == Flow::Close && self.outbox.len() == 0 {
                return Moved::Over;
            }
            // While anything waits to be sent, nothing is dispatched and nothing is read.
            if self.outbox.len() > 0 {
                match self.outbox.flush(&self.stream, around.ledger) {
                    Moved::Bytes(_) | Moved::Again => continue,
                    blocked => return blocked,
                }
            }
            // A message that came in one read is not copied.
            let (bytes, kept) = match self.inbox.bytes() {
                [] => (&buffer[fresh.clone()], false),
                kept => (kept, true),
            };
            let mut missing = 0;
            if !bytes.is_empty() {
                match around.codec.decode(bytes) {
                    Ok(Next::Message(message, used)) => {
                        let mut context = Context { around, stream: &self.stream, outbox: &mut self.outbox };
                        self.flow = self.reactor.message(&mut context, message);
                        match kept {
                            true => self.inbox.used(used),
                            false => fresh.start += used,
                        }
                        continue;
                    }
                    Ok(Next::More(len)) => missing = len,
                    Err(too_long) => {
                        lock(around.ledger).too_long(too_long);
                        return Moved::Over;
                    }
                }
            }
            self.inbox.append(&buffer[std::mem::take(fresh)], missing, spare);
            // A read that does not fill the buffer may have ended at an urgent mark (tcp(7)), so it goes on until there
            // is nothing: only then will an edge tell of more.
            let result = (&self.stream).read(buffer);
            // The lock is not held while the reactor is called.
            let moved = lock(around.ledger).read(result);
            match moved {
                Moved::Bytes(count) if self.inbox.bytes().is_empty() => *fresh = 0..count,
                Moved::Bytes(count) => self.inbox.append(&buffer[..count], missing, spare),
                Moved::Again => {}
                over => return over,
            }
        }
        Moved::Again
    }
}
