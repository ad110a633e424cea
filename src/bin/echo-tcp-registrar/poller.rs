//! The poller and its registrar. The poller's thread waits in the kernel; a registrar, of which each thread may have one,
//! changes what it waits for, by calls of its own: epoll_ctl(2) and kevent(2) may be called during a wait.

use crate::lock;
use crate::mailbox::{Mailbox, Ready};
use crate::timers::Timers;
use echo_lab::{Attempt, Result};
use mio::event::{Event, Source};
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Who is notified of what. Never used again, so a notification on its way cannot be taken for one of a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(usize);

const WAKER: Token = Token(0);

/// What a registrar refuses.
#[derive(Debug)]
pub enum Refused {
    /// Never registered, or not any more.
    Unknown(Id),
    /// What the system said.
    System(io::Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(Id(number)) => write!(f, "nothing is registered as {number}"),
            Self::System(error) => error.fmt(f),
        }
    }
}

/// The thread that waits.
pub struct Poller {
    poll: Poll,
    shared: Arc<Shared>,
}

/// What any thread may use to be notified.
pub struct Registrar {
    registry: Registry,
    shared: Arc<Shared>,
}

struct Shared {
    waker: Arc<Waker>,
    next_id: AtomicUsize,
    owners: Mutex<HashMap<Id, Arc<Mailbox>>>,
    timers: Mutex<Timers>,
    ended: AtomicBool,
}

impl Poller {
    pub fn new() -> Result<(Self, Registrar)> {
        let poll = Poll::new().attempt("create a poll")?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).attempt("create a waker")?);
        let registry = poll.registry().try_clone().attempt("clone the registry")?;
        let shared = Arc::new(Shared {
            waker,
            next_id: AtomicUsize::new(1 + WAKER.0),
            owners: Mutex::default(),
            timers: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        Ok((Self { poll, shared: shared.clone() }, Registrar { registry, shared }))
    }

    /// Forwards what happens until [`Registrar::end`]; how many times it waited. `waked` is called after each wake-up.
    pub fn run(mut self, waked: impl Fn()) -> Result<u64> {
        let mut events = Events::with_capacity(256);
        let (mut waits, mut filled) = (0, Vec::new());
        while !self.shared.ended.load(Ordering::Relaxed) {
            let timeout = lock(&self.shared.timers).until_next(Instant::now());
            waits += 1;
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error).attempt("poll"),
                _ => {}
            }
            let owners = lock(&self.shared.owners);
            for event in &events {
                if event.token() == WAKER {
                    waked();
                } else if let Some(owner) = owners.get(&Id(event.token().0)) {
                    if owner.add(Id(event.token().0), ready(event)) {
                        filled.push(owner.clone());
                    }
                }
            }
            drop(owners);
            // Not before: a worker that runs at once would only wait for the next notification.
            filled.drain(..).for_each(|owner| owner.wake());
            if events.iter().nth(1).is_some() {
                // On a busy core the workers first: what comes meanwhile makes one batch.
                std::thread::yield_now();
            }
            // Once in each turn, so that the fastest timer leaves the sockets theirs.
            lock(&self.shared.timers).fire(Instant::now());
        }
        Ok(waits)
    }
}

fn ready(event: &Event) -> Ready {
    [
        (event.is_readable(), Ready::READABLE),
        (event.is_writable(), Ready::WRITABLE),
        (event.is_read_closed(), Ready::CLOSED),
        (event.is_error(), Ready::ERROR),
    ]
    .into_iter()
    .fold(Ready::default(), |all, (is, ready)| if is { all | ready } else { all })
}

impl Registrar {
    /// For another thread.
    pub fn try_clone(&self) -> Result<Self> {
        let registry = self.registry.try_clone().attempt("clone the registry")?;
        Ok(Self { registry, shared: self.shared.clone() })
    }

    /// Wakes the poller.
    pub fn waker(&self) -> Arc<Waker> {
        self.shared.waker.clone()
    }

    /// For what is not registered with the kernel.
    pub fn new_id(&self) -> Id {
        Id(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Notifies `owner` when something happens to `source`, edge-triggered. The system may refuse.
    pub fn register(&self, source: &mut impl Source, interest: Interest, owner: &Arc<Mailbox>) -> io::Result<Id> {
        let id = self.new_id();
        // Before the kernel knows it: the first event may come at once.
        lock(&self.shared.owners).insert(id, owner.clone());
        let registered = self.registry.register(source, Token(id.0), interest);
        registered.inspect_err(|_| drop(lock(&self.shared.owners).remove(&id))).map(|()| id)
    }

    /// Changes what `id` is notified of. It arms the edge anew: what is ready now is notified again.
    pub fn reregister(&self, source: &mut impl Source, id: Id, interest: Interest) -> std::result::Result<(), Refused> {
        if !lock(&self.shared.owners).contains_key(&id) {
            return Err(Refused::Unknown(id));
        }
        self.registry.reregister(source, Token(id.0), interest).map_err(Refused::System)
    }

    /// No more notifications, but for one that is in the mailbox already.
    pub fn deregister(&self, source: &mut impl Source, id: Id) -> std::result::Result<(), Refused> {
        lock(&self.shared.owners).remove(&id).ok_or(Refused::Unknown(id))?;
        self.registry.deregister(source).map_err(Refused::System)
    }

    /// Notifies `owner` once, when `after` has passed: never before, and at once if it is zero.
    pub fn timeout(&self, after: Duration, owner: &Arc<Mailbox>) -> Id {
        self.timer(after, None, owner)
    }

    /// Notifies `owner` again and again. A turn that comes late does not make the next ones come sooner.
    pub fn interval(&self, every: Duration, owner: &Arc<Mailbox>) -> Id {
        self.timer(every, Some(every), owner)
    }

    fn timer(&self, after: Duration, every: Option<Duration>, owner: &Arc<Mailbox>) -> Id {
        let id = self.new_id();
        if lock(&self.shared.timers).set(id, Instant::now() + after, every, owner.clone()) {
            // The poller may be in a wait that is longer. That fails only if the kernel's counter is full, which wakes.
            let _ = self.shared.waker.wake();
        }
        id
    }

    /// No more notifications of the timer `id`.
    pub fn cancel(&self, id: Id) -> std::result::Result<(), Refused> {
        lock(&self.shared.timers).cancel(id).ok_or(Refused::Unknown(id))
    }

    /// Ends the poller.
    pub fn end(&self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = self.shared.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{self, TryRecvError};
    use crate::mailbox::Batch;
    use mio::net::{TcpListener, TcpStream};
    use std::io::Read;
    use std::thread;

    fn start() -> (Registrar, Arc<Mailbox>) {
        let (poller, registrar) = Poller::new().unwrap();
        thread::spawn(move || poller.run(|| ()));
        (registrar, Arc::default())
    }

    /// What comes within `timeout`.
    fn next(mailbox: &Mailbox, timeout: Duration) -> Batch {
        let mut batch = Batch::default();
        mailbox.take(&mut batch, Some(timeout));
        batch
    }

    /// Waits until `id` is `ready`. Windows says once more before that it is writable.
    fn until(mailbox: &Mailbox, id: Id, ready: Ready) {
        let limit = Instant::now() + SOON;
        while !next(mailbox, SOON).get(&id).is_some_and(|found| found.contains(ready)) {
            assert!(Instant::now() < limit, "never");
        }
    }

    const SOON: Duration = Duration::from_secs(5);
    const SHORT: Duration = Duration::from_millis(30);

    #[test]
    fn ids_are_never_used_again() {
        let (registrar, mailbox) = start();
        let mut listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let first = registrar.register(&mut listener, Interest::READABLE, &mailbox).unwrap();
        registrar.reregister(&mut listener, first, Interest::READABLE).unwrap();
        registrar.deregister(&mut listener, first).unwrap();
        assert!(matches!(registrar.deregister(&mut listener, first), Err(Refused::Unknown(id)) if id == first));
        let second = registrar.register(&mut listener, Interest::READABLE, &mailbox).unwrap();
        assert_ne!(first, second);
        let refused = registrar.reregister(&mut listener, first, Interest::READABLE).unwrap_err();
        assert_eq!(refused.to_string(), format!("nothing is registered as {}", first.0));
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(next(&mailbox, SOON).into_keys().collect::<Vec<_>>(), [second]);
        registrar.end();
    }

    #[test]
    fn a_connection_is_readable_writable_and_closed() {
        let (registrar, mailbox) = start();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let id = registrar.register(&mut stream, Interest::READABLE | Interest::WRITABLE, &mailbox).unwrap();
        assert_eq!(next(&mailbox, SOON)[&id], Ready::WRITABLE);
        io::Write::write_all(&mut &peer, b"x").unwrap();
        until(&mailbox, id, Ready::READABLE);
        assert_eq!(stream.read(&mut [0; 2]).unwrap(), 1);
        assert_eq!(stream.read(&mut [0; 2]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(peer);
        until(&mailbox, id, Ready::CLOSED);
        registrar.end();
    }

    /// A reset, which the next call reports as well.
    #[cfg(unix)]
    #[test]
    fn an_error_is_notified() {
        let (registrar, mailbox) = start();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let id = registrar.register(&mut stream, Interest::READABLE, &mailbox).unwrap();
        let socket = socket2::Socket::from(peer);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        drop(socket);
        until(&mailbox, id, Ready::ERROR);
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        registrar.end();
    }

    /// Notifications are merged until they are taken, and the first of them says that it is.
    #[test]
    fn mailbox_as_a_map() {
        arbtest::arbtest(|random| {
            let (mailbox, mut model) = (Mailbox::default(), Batch::default());
            while !random.is_empty() {
                if random.ratio(1, 4)? {
                    assert_eq!(next(&mailbox, Duration::ZERO), std::mem::take(&mut model));
                    continue;
                }
                let id = Id(random.int_in_range(0..=4)?);
                let ready = *random.choose(&[Ready::READABLE, Ready::WRITABLE, Ready::ERROR, Ready::MESSAGE])?;
                assert_eq!(mailbox.add(id, ready), model.is_empty());
                *model.entry(id).or_default() |= ready;
            }
            Ok(())
        });
    }

    /// To the nanosecond: none early, none late, none twice in a turn, none after it was cancelled.
    #[test]
    fn timers_as_a_list() {
        arbtest::arbtest(|random| {
            let (mut timers, mailbox) = (Timers::default(), Arc::new(Mailbox::default()));
            let mut model = Vec::<(Id, Instant, Option<Duration>)>::new();
            let mut now = Instant::now();
            let mut ids = (1..).map(Id);
            while !random.is_empty() {
                match random.int_in_range(0..=3)? {
                    0 | 1 => {
                        let (id, at) = (ids.next().unwrap(), now + Duration::from_nanos(random.int_in_range(0..=5)?));
                        let every = random.ratio(1, 2)?.then_some(Duration::from_nanos(random.int_in_range(0..=3)?));
                        model.push((id, at, every));
                        let is_next = model.iter().map(|(id, at, _)| (*at, *id)).min() == Some((at, id));
                        assert_eq!(timers.set(id, at, every, mailbox.clone()), is_next);
                    }
                    2 => {
                        let id = Id(random.int_in_range(0..=12)?);
                        let before = model.len();
                        model.retain(|(other, ..)| *other != id);
                        assert_eq!(timers.cancel(id).is_some(), model.len() < before);
                    }
                    _ => {
                        now += Duration::from_nanos(random.int_in_range(0..=3)?);
                        let due = |(id, at, _): &(Id, Instant, _)| (*at <= now).then_some((*id, Ready::TIMEOUT));
                        let expected: Batch = model.iter().filter_map(due).collect();
                        timers.fire(now);
                        assert_eq!(next(&mailbox, Duration::ZERO), expected);
                        model.retain_mut(|(id, at, every)| {
                            if expected.contains_key(id) {
                                let Some(every) = every else { return false };
                                *at = (*at + *every).max(now);
                            }
                            true
                        });
                    }
                }
                let until = model.iter().map(|(_, at, _)| at.saturating_duration_since(now)).min();
                assert_eq!(timers.until_next(now), until);
            }
            Ok(())
        });
    }

    #[test]
    fn a_timeout_comes_once_and_never_early() {
        let (registrar, mailbox) = start();
        for (millis, busy) in [0, 1, 7, 20].into_iter().flat_map(|millis| [(millis, false), (millis, true)]) {
            // A poller that waits rounds up to milliseconds; one that is busy looks at its timers all the time.
            let other = busy.then(|| registrar.interval(Duration::ZERO, &Arc::default()));
            let (start, after) = (Instant::now(), Duration::from_millis(millis));
            let id = registrar.timeout(after, &mailbox);
            assert_eq!(next(&mailbox, SOON), Batch::from([(id, Ready::TIMEOUT)]));
            assert!(start.elapsed() >= after, "{:?} is before {after:?}", start.elapsed());
            assert!(matches!(registrar.cancel(id), Err(Refused::Unknown(_))), "it has passed");
            other.map(|other| registrar.cancel(other)).transpose().unwrap();
        }
        assert_eq!(next(&mailbox, SHORT), Batch::new());
        registrar.end();
    }

    #[test]
    fn a_timer_can_be_cancelled_and_a_later_one_still_comes() {
        let (registrar, mailbox) = start();
        let later = registrar.timeout(2 * SHORT, &mailbox);
        let sooner = registrar.timeout(SHORT, &mailbox);
        registrar.cancel(sooner).unwrap();
        assert!(matches!(registrar.cancel(sooner), Err(Refused::Unknown(id)) if id == sooner));
        assert_eq!(next(&mailbox, SOON), Batch::from([(later, Ready::TIMEOUT)]));
        registrar.end();
    }

    /// An interval of zero is due in each turn of the poller.
    #[test]
    fn the_fastest_timer_starves_nothing() {
        let (registrar, mailbox) = start();
        let (busy, quiet) = (Arc::new(Mailbox::default()), mailbox);
        let timer = registrar.interval(Duration::ZERO, &busy);
        let mut listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let id = registrar.register(&mut listener, Interest::READABLE, &quiet).unwrap();
        for _ in 0..10 {
            assert_eq!(next(&busy, SOON), Batch::from([(timer, Ready::TIMEOUT)]));
        }
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(next(&quiet, SOON), Batch::from([(id, Ready::READABLE)]));
        registrar.cancel(timer).unwrap();
        registrar.end();
    }

    #[test]
    fn a_channel_wakes_once_for_a_burst_and_tells_empty_from_ended() {
        let (registrar, mailbox) = start();
        let (sender, receiver) = channel::new(&registrar, &mailbox);
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        (0..100).for_each(|number| sender.send(number).unwrap());
        assert_eq!(next(&mailbox, SOON), Batch::from([(receiver.id, Ready::MESSAGE)]));
        assert_eq!(next(&mailbox, SHORT), Batch::new());
        (0..100).for_each(|number| assert_eq!(receiver.try_recv(), Ok(number)));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        sender.send(7).unwrap();
        assert_eq!(next(&mailbox, SOON), Batch::from([(receiver.id, Ready::MESSAGE)]));
        drop(sender);
        assert_eq!(next(&mailbox, SOON), Batch::from([(receiver.id, Ready::MESSAGE)]));
        assert_eq!(receiver.try_recv(), Ok(7));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
        let (sender, receiver) = channel::new(&registrar, &mailbox);
        drop(receiver);
        assert!(sender.send(1).is_err());
        registrar.end();
    }
}
