//! TCP echo in one thread over mio: an event says that a connection may be ready, once, so the program goes on with it
//! until a call would block.
//!
//! Run:             cargo run --bin echo-tcp-mio
//! Second terminal: nc 127.0.0.1 2000
//! In the trace:    EPOLLET, then epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN. Connections are
//!                  registered once, for reading and writing: no epoll_ctl follows.
//! Left out:        reading less. A connection has its turn for as long as it is ready, up to TURN reads.
//! Oldest system:   what mio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::stream::{Accepted, Moved, Streams, Transit};
use echo_lab::{Attempt, Result, cli, net, report, stop};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

const LISTENER: Token = Token(usize::MAX - 1);
const SIGNAL: Token = Token(usize::MAX - 2);
/// Reads of one connection before the others have their turn.
const TURN: usize = 16;

struct Connection {
    stream: TcpStream,
    transit: Transit,
}

fn main() -> Result<()> {
    let args: cli::StreamArgs = cli::parse_as(env!("CARGO_BIN_NAME"));
    let listener = net::listen(&args)?;
    listener.set_nonblocking(true).attempt("make the listener non-blocking")?;
    let local = listener.local_addr().attempt("read the bound address")?;
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new().attempt("create a poll")?;
    let waker = Arc::new(Waker::new(poll.registry(), SIGNAL).attempt("create a waker")?);
    // SAFETY: a wake-up is one system call: write(2) to an eventfd on Linux.
    unsafe { stop::on_signal(move || drop(waker.wake())) }?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).attempt("register the listener")?;
    let mut connections = Slab::<Connection>::new();
    let mut streams = Streams::new(&args, local);
    let mut events = Events::with_capacity(256);
    // No second event will tell of what was left behind: connections, and bytes of those in `more`.
    let (mut more_to_accept, mut more, mut ready) = (false, Vec::new(), Vec::new());
    report::listening(local)?;

    while !streams.ledger.is_done() {
        let accepts_again = more_to_accept && streams.ledger.accepts();
        let timeout = if accepts_again || !more.is_empty() { Some(Duration::ZERO) } else { streams.ledger.timeout() };
        streams.ledger.waits += 1;
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).attempt("poll"),
            _ => {}
        }
        if stop::requested() && !streams.ledger.is_stopping() {
            streams.ledger.stop();
            for (_, connection) in &connections {
                // What has arrived can still be read, then the stream ends. Fails if the peer has gone already.
                let _ = connection.stream.shutdown(Shutdown::Read);
            }
        }
        std::mem::swap(&mut ready, &mut more);
        let carried = ready.len();
        for event in &events {
            match event.token() {
                SIGNAL => {}
                LISTENER => more_to_accept = true,
                Token(key) if ready[..carried].contains(&key) => {}
                Token(key) => ready.push(key),
            }
        }
        while more_to_accept && streams.ledger.accepts() {
            match streams.ledger.accepted(listener.accept())? {
                Accepted::Connection(mut stream) => {
                    let entry = connections.vacant_entry();
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    match poll.registry().register(&mut stream, Token(entry.key()), interest) {
                        Ok(()) => {
                            entry.insert(Connection { stream, transit: Transit::default() });
                        }
                        // The system is at a limit, or has no memory for one more.
                        Err(error) => streams.ledger.not_registered(&error),
                    }
                }
                Accepted::Nothing => {}
                // Out of descriptors: the connection still waits.
                Accepted::Wait => more_to_accept = !streams.ledger.accepts(),
            }
        }
        for key in ready.drain(..) {
            // Some systems report reading and writing apart, and the first may have closed it.
            let Some(connection) = connections.get_mut(key) else { continue };
            match serve(connection, &mut streams) {
                Moved::Over => {
                    connections.remove(key);
                    streams.ledger.closed();
                }
                Moved::WouldBlock => {}
                _ => more.push(key),
            }
        }
    }
    streams.finish()
}

/// Echoes until a call would block, or others should have their turn. What came of the last call.
fn serve(Connection { stream, transit }: &mut Connection, streams: &mut Streams) -> Moved {
    let mut moved = Moved::Again;
    for _ in 0..TURN {
        moved = match transit.front() {
            Some(bytes) => {
                let result = stream.write(bytes);
                streams.wrote(transit, result)
            }
            None => {
                let result = stream.read(streams.vacant(transit));
                streams.read(transit, result)
            }
        };
        if matches!(moved, Moved::WouldBlock | Moved::Over) {
            break;
        }
    }
    moved
}
