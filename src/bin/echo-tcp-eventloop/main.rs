//! TCP echo in one thread over an event loop of its own, from system calls up: epoll on Linux, kqueue on the BSDs and
//! macOS, a completion port on Windows, one file each, with the same names in each so that they can be laid side by side.
//!
//! Run:             cargo run --bin echo-tcp-eventloop --features eventloop
//! Second terminal: nc 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto, as echo-tcp-epoll: a portable interface costs no call. It costs an
//!                  epoll_ctl for each connection that ends, since not every system forgets a socket that is closed.
//! Left out:        what kqueue and epoll can wait for beside sockets; edge triggering, which a completion port would have
//!                  for nothing.
//! Oldest system:   what the standard library needs: Linux 3.2, FreeBSD 12, macOS 10.12, Windows 10. Their eventfd, EVFILT_USER
//!                  and completion ports are older.

mod poll;

use echo_lab::stream::{Accepted, Moved, Streams, Transit};
use echo_lab::{Attempt, Result, cli, net, policy, report, stop};
use poll::{Events, Interest, Poll};
use slab::Slab;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

const LISTENER: usize = usize::MAX - 1;

/// A connection, and what the loop asked to be told of it.
struct Connection {
    stream: TcpStream,
    transit: Transit,
    interest: Interest,
}

fn main() -> Result<()> {
    let args: cli::StreamArgs = cli::parse_as(env!("CARGO_BIN_NAME"));
    let listener = net::listen(&args)?;
    listener.set_nonblocking(true).attempt("make the listener non-blocking")?;
    let local = listener.local_addr().attempt("read the bound address")?;
    let mut poll = Poll::new().attempt("create an event loop")?;
    let registry = poll.registry();
    let waker = registry.clone();
    // SAFETY: a wake-up is one system call on a descriptor that does not block, and an atomic.
    unsafe { stop::on_signal(move || waker.wake()) }?;
    registry.register(&listener, LISTENER, Interest::READ).attempt("register the listener")?;
    let mut connections = Slab::<Connection>::new();
    let mut streams = Streams::new(&args, local);
    let mut events = Events::with_capacity(256);
    let mut accepting = true;
    report::listening(local)?;

    while !streams.ledger.is_done() {
        if accepting && !streams.ledger.accepts() {
            registry.deregister(&listener).attempt("deregister the listener")?;
            accepting = false;
        } else if !accepting && streams.ledger.accepts() {
            match registry.register(&listener, LISTENER, Interest::READ) {
                Ok(()) => accepting = true,
                // Somebody else has taken its place meanwhile: once more after a pause.
                Err(error) if policy::is_exhausted(&error) => streams.ledger.exhausted(&error),
                Err(error) => return Err(error).attempt("register the listener again"),
            }
        }
        streams.ledger.waits += 1;
        // Nobody closes this loop, so its end is not awaited: it ends once the connections have.
        poll.wait(&mut events, streams.ledger.timeout()).attempt("wait for events")?;
        if stop::requested() && !streams.ledger.is_stopping() {
            streams.ledger.stop();
            for (_, connection) in &connections {
                // What has arrived can still be read, then the stream ends. Fails if the peer has gone already.
                let _ = connection.stream.shutdown(Shutdown::Read);
            }
        }
        for event in events.iter() {
            if event.token == LISTENER {
                let result = listener.accept();
                if let Accepted::Connection(stream) = streams.ledger.accepted(result)? {
                    let entry = connections.vacant_entry();
                    let interest = Interest::READ;
                    let registered = stream.set_nonblocking(true);
                    match registered.and_then(|()| registry.register(&stream, entry.key(), interest)) {
                        Ok(()) => {
                            entry.insert(Connection { stream, transit: Transit::default(), interest });
                        }
                        // The system is at a limit, or has no memory for one more.
                        Err(error) => streams.ledger.not_registered(&error),
                    }
                }
                continue;
            }
            let connection = &mut connections[event.token];
            let moved = serve(connection, &mut streams);
            let wanted = match moved {
                Moved::WouldBlock if connection.transit.front().is_some() => Interest::WRITE,
                _ => Interest::READ,
            };
            if moved == Moved::Over {
                let connection = connections.remove(event.token);
                registry.deregister(&connection.stream).attempt("deregister a connection")?;
                streams.ledger.closed();
            } else if wanted != connection.interest {
                connection.interest = wanted;
                if let Err(error) = registry.reregister(&connection.stream, event.token, wanted) {
                    // A kqueue needs memory for it.
                    let connection = connections.remove(event.token);
                    registry.deregister(&connection.stream).attempt("deregister a connection")?;
                    streams.ledger.not_registered(&error);
                }
            }
        }
    }
    streams.finish()
}

/// Writes what waits; if nothing does, reads once and writes that. What came of the last call.
fn serve(Connection { stream, transit, .. }: &mut Connection, streams: &mut Streams) -> Moved {
    if transit.front().is_none() {
        let result = stream.read(streams.vacant(transit));
        let moved = streams.read(transit, result);
        if !matches!(moved, Moved::Bytes(_)) {
            return moved;
        }
    }
    while let Some(bytes) = transit.front() {
        let result = stream.write(bytes);
        let moved = streams.wrote(transit, result);
        if matches!(moved, Moved::WouldBlock | Moved::Over) {
            return moved;
        }
    }
    Moved::Again
}
