//! What cannot be seen from outside of the program.

use super::{Event, Events, Interest, Poll, Wait};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes, where an event must come.
const LONG: Option<Duration> = Some(Duration::from_secs(20));
/// Long enough to be sure, where none must come.
const SHORT: Option<Duration> = Some(Duration::from_millis(100));

/// Two ends of a connection, the first of them non-blocking.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let own = listener.accept().unwrap().0;
    own.set_nonblocking(true).unwrap();
    (own, peer)
}

/// The events of the next wait that brings one.
fn wait(poll: &mut Poll, events: &mut Events) -> Vec<Event> {
    let limit = Instant::now() + LONG.unwrap();
    while Instant::now() < limit {
        assert_eq!(poll.wait(events, LONG).unwrap(), Wait::Events);
        let found: Vec<_> = events.iter().collect();
        if !found.is_empty() {
            return found;
        }
    }
    panic!("no event");
}

/// Nothing comes, however often a wait ends without an event.
fn expect_nothing(poll: &mut Poll, events: &mut Events) {
    let limit = Instant::now() + SHORT.unwrap();
    while Instant::now() < limit {
        assert_eq!(poll.wait(events, SHORT).unwrap(), Wait::Events);
        assert_eq!(events.iter().collect::<Vec<_>>(), []);
    }
}

fn readable(token: usize) -> Vec<Event> {
    vec![Event { token, read: true, write: false }]
}

fn writable(token: usize) -> Vec<Event> {
    vec![Event { token, read: false, write: true }]
}

#[test]
fn more_ready_than_room_for_events() {
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let mut pairs: Vec<_> = (0..50).map(|_| pair()).collect();
    for (token, (own, peer)) in pairs.iter_mut().enumerate() {
        poll.registry().register(own, token, Interest::READ).unwrap();
        peer.write_all(b"x").unwrap();
    }
    // Nobody reads: all stay ready, and still each has its turn.
    let mut found = BTreeSet::new();
    for _ in 0..100 {
        let events = wait(&mut poll, &mut events);
        assert!(events.len() <= 4);
        found.extend(events.iter().map(|event| event.token));
    }
    assert_eq!(found, (0..50).collect());
}

#[test]
fn ready_until_read_and_again_with_the_next_burst() {
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let (mut own, mut peer) = pair();
    poll.registry().register(&own, 7, Interest::READ).unwrap();
    expect_nothing(&mut poll, &mut events);
    for _ in 0..3 {
        peer.write_all(b"burst").unwrap();
        for read in [2, 3] {
            // Whatever the last read left is reported again, and waits without a read change nothing.
            assert_eq!(wait(&mut poll, &mut events), readable(7));
            assert_eq!(wait(&mut poll, &mut events), readable(7));
            own.read_exact(&mut vec![0; read]).unwrap();
        }
        expect_nothing(&mut poll, &mut events);
    }
    drop(peer);
    assert_eq!(wait(&mut poll, &mut events), readable(7));
    assert_eq!(own.read(&mut [0]).unwrap(), 0);
    poll.registry().deregister(&own).unwrap();
    expect_nothing(&mut poll, &mut events);
}

/// Even one that comes alone, as at a pipe that has lost its reader: EPOLLERR, whatever was asked for.
#[cfg(all(target_os = "linux", not(libkqueue)))]
#[test]
fn an_error_counts_as_ready() {
    use std::os::fd::{FromRawFd, OwnedFd};
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let mut ends = [0; 2];
    // SAFETY: the call writes two descriptors.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    // SAFETY: they are new, and nobody else's.
    let [reader, writer] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    poll.registry().register(&writer, 3, Interest::READ).unwrap();
    expect_nothing(&mut poll, &mut events);
    drop(reader);
    assert!(wait(&mut poll, &mut events).iter().all(|event| event.token == 3 && event.read));
}

#[test]
fn write_interest_while_the_peer_does_not_read() {
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let (mut own, mut peer) = pair();
    poll.registry().register(&own, 1, Interest::WRITE).unwrap();
    assert_eq!(wait(&mut poll, &mut events), writable(1));
    let mut written = 0;
    // The peer's buffer may still grow after a write that would have blocked.
    for _ in 0..20 {
        loop {
            match own.write(&[7; 65536]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    expect_nothing(&mut poll, &mut events);
    let reader = thread::spawn(move || {
        peer.read_exact(&mut vec![0; written]).unwrap();
        peer
    });
    assert_eq!(wait(&mut poll, &mut events), writable(1));
    drop(reader.join().unwrap());
}

#[test]
fn a_changed_interest_counts_at_once() {
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let (mut own, mut peer) = pair();
    let registry = poll.registry();
    registry.register(&own, 1, Interest::READ).unwrap();
    expect_nothing(&mut poll, &mut events);
    for round in 0..3 {
        registry.reregister(&own, 2, Interest::WRITE).unwrap();
        peer.write_all(&[round]).unwrap();
        assert_eq!(wait(&mut poll, &mut events), writable(2));
        registry.reregister(&own, 3, Interest::READ).unwrap();
        assert_eq!(wait(&mut poll, &mut events), readable(3));
        registry.reregister(&own, 4, Interest::BOTH).unwrap();
        let (mut read, mut write) = (false, false);
        while !(read && write) {
            for event in wait(&mut poll, &mut events) {
                assert_eq!(event.token, 4);
                (read, write) = (read || event.read, write || event.write);
            }
        }
        own.read_exact(&mut [0]).unwrap();
        registry.reregister(&own, 1, Interest::READ).unwrap();
        expect_nothing(&mut poll, &mut events);
    }
}

#[test]
fn another_thread_changes_what_is_waited_for() {
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let (own, mut peer) = pair();
    let (own, registry) = (Arc::new(own), poll.registry());
    // A thread that has ended by the time of the event that it asked for.
    let later = |run: Box<dyn FnOnce() + Send>| {
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            run();
        })
    };
    let (socket, on_behalf) = (own.clone(), registry.clone());
    let thread = later(Box::new(move || on_behalf.register(&*socket, 5, Interest::READ).unwrap()));
    expect_nothing(&mut poll, &mut events);
    thread.join().unwrap();
    peer.write_all(b"x").unwrap();
    assert_eq!(wait(&mut poll, &mut events), readable(5));
    (&*own).read_exact(&mut [0]).unwrap();
    let (socket, on_behalf) = (own.clone(), registry.clone());
    let thread = later(Box::new(move || on_behalf.reregister(&*socket, 6, Interest::WRITE).unwrap()));
    assert_eq!(wait(&mut poll, &mut events), writable(6));
    thread.join().unwrap();
    registry.reregister(&*own, 7, Interest::READ).unwrap();
    let thread = later(Box::new(move || peer.write_all(b"x").unwrap()));
    assert_eq!(wait(&mut poll, &mut events), readable(7));
    thread.join().unwrap();
}

/// Not even if its descriptor is used again, while an event of it is on its way.
#[test]
fn a_socket_that_has_gone_is_not_reported() {
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let registry = poll.registry();
    for round in 0..100 {
        let (own, mut peer) = pair();
        registry.register(&own, round, Interest::READ).unwrap();
        poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        if round % 2 == 0 {
            peer.write_all(b"x").unwrap();
        }
        registry.deregister(&own).unwrap();
        drop(own);
        let (mut own, mut peer) = pair();
        registry.register(&own, 1000 + round, Interest::READ).unwrap();
        poll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events.iter().collect::<Vec<_>>(), []);
        peer.write_all(b"x").unwrap();
        assert_eq!(wait(&mut poll, &mut events), readable(1000 + round));
        own.read_exact(&mut [0]).unwrap();
        registry.deregister(&own).unwrap();
    }
}

#[test]
fn wake_ups_are_not_lost_and_many_are_one() {
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let registry = poll.registry();
    for _ in 0..3 {
        (0..1000).for_each(|_| registry.wake());
        let start = Instant::now();
        poll.wait(&mut events, LONG).unwrap();
        assert!(events.iter().next().is_none() && start.elapsed() < LONG.unwrap() / 2, "a wake-up before the wait");
        let start = Instant::now();
        poll.wait(&mut events, SHORT).unwrap();
        assert!(start.elapsed() >= SHORT.unwrap() / 2, "woken twice");
    }
    let waker = registry.clone();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        waker.wake();
    });
    let start = Instant::now();
    poll.wait(&mut events, LONG).unwrap();
    assert!(start.elapsed() < LONG.unwrap() / 2, "a wake-up during the wait");
    thread.join().unwrap();
}

#[test]
fn the_end_comes_after_the_events_of_its_batch() {
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let (own, mut peer) = pair();
    poll.registry().register(&own, 1, Interest::READ).unwrap();
    peer.write_all(b"x").unwrap();
    assert_eq!(wait(&mut poll, &mut events), readable(1));
    poll.registry().close();
    assert_eq!(wait(&mut poll, &mut events), readable(1));
    for _ in 0..2 {
        assert_eq!(poll.wait(&mut events, None).unwrap(), Wait::Closed);
        assert!(events.iter().next().is_none());
    }
}

#[test]
fn the_end_wakes_who_waits() {
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let registry = poll.registry();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        registry.close();
    });
    assert_eq!(poll.wait(&mut events, None).unwrap(), Wait::Closed);
    thread.join().unwrap();
}

/// With operations in progress, with sockets still registered, and with some that have gone.
#[test]
fn a_loop_can_end_at_any_time() {
    for round in 0..20 {
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
        let mut pairs: Vec<_> = (0..10).map(|_| pair()).collect();
        for (token, (own, peer)) in pairs.iter_mut().enumerate() {
            poll.registry().register(own, token, Interest::READ).unwrap();
            if token % 2 == 0 {
                peer.write_all(b"x").unwrap();
            }
        }
        for _ in 0..round % 4 {
            wait(&mut poll, &mut events);
        }
        for (own, _) in pairs.drain(3..6) {
            poll.registry().deregister(&own).unwrap();
        }
    }
}
