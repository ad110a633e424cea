//! TCP echo in one thread over level-triggered epoll(7): a wait says which connections are ready, and a call on one of
//! them never blocks.
//!
//! Run:             cargo run --bin echo-tcp-epoll --features epoll
//! Second terminal: nc 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto. Under load one wait reports many connections. EPOLLOUT is asked for,
//!                  in place of EPOLLIN, only while a peer does not read its echo.
//! Left out:        edge triggering, which saves nothing here: one read takes what is there, and what it leaves is
//!                  reported again.
//! Oldest system:   Linux 3.2, which the standard library needs; epoll is older, and so is signalfd, by which the stop
//!                  signal is one more readable descriptor.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "epoll(7)")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use echo_lab::stream::{Accepted, Moved, Streams, Transit};
    use echo_lab::{Attempt, Result, cli, net, report, stop};
    use nix::errno::Errno;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use slab::Slab;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream};

    const LISTENER: u64 = u64::MAX;
    const SIGNAL: u64 = u64::MAX - 1;

    /// A connection, and what the loop asked epoll to report of it.
    struct Connection {
        stream: TcpStream,
        transit: Transit,
        interest: EpollFlags,
    }

    pub fn main() -> Result<()> {
        let args: cli::StreamArgs = cli::parse_as(env!("CARGO_BIN_NAME"));
        let listener = net::listen(&args)?;
        listener.set_nonblocking(true).attempt("make the listener non-blocking")?;
        let local = listener.local_addr().attempt("read the bound address")?;
        let signals = stop::descriptor()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("create an epoll instance")?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).attempt("register the listener")?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNAL)).attempt("register the signal descriptor")?;
        let mut connections = Slab::<Connection>::new();
        let mut streams = Streams::new(&args, local);
        let mut events = [EpollEvent::empty(); 256];
        let mut accepting = true;
        report::listening(local)?;

        while !streams.ledger.is_done() {
            if accepting != streams.ledger.accepts() {
                accepting = !accepting;
                let interest = if accepting { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
                epoll
                    .modify(&listener, &mut EpollEvent::new(interest, LISTENER))
                    .attempt("change the interest in it")?;
            }
            let timeout = match streams.ledger.timeout() {
                Some(left) => left.try_into().unwrap_or(EpollTimeout::MAX),
                None => EpollTimeout::NONE,
            };
            streams.ledger.waits += 1;
            let ready = match epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).attempt("wait with epoll"),
            };
            for event in &events[..ready] {
                match event.data() {
                    SIGNAL => {
                        signals.read_signal().attempt("read the signal descriptor")?;
                        streams.ledger.stop();
                        for (_, connection) in &connections {
                            // What has arrived can still be read, then the stream ends. Fails if the peer has gone already.
                            let _ = connection.stream.shutdown(Shutdown::Read);
                        }
                    }
                    LISTENER => {
                        let result = listener.accept();
                        if let Accepted::Connection(stream) = streams.ledger.accepted(result)? {
                            let entry = connections.vacant_entry();
                            let interest = EpollFlags::EPOLLIN;
                            let event = EpollEvent::new(interest, entry.key() as u64);
                            match stream.set_nonblocking(true).and_then(|()| Ok(epoll.add(&stream, event)?)) {
                                Ok(()) => {
                                    entry.insert(Connection { stream, transit: Transit::default(), interest });
                                }
                                // Among others ENOSPC: fs.epoll.max_user_watches, epoll(7).
                                Err(error) => streams.ledger.not_registered(&error),
                            }
                        }
                    }
                    key => {
                        let connection = &mut connections[key as usize];
                        let moved = serve(connection, &mut streams);
                        let wanted = match moved {
                            Moved::WouldBlock if connection.transit.front().is_some() => EpollFlags::EPOLLOUT,
                            _ => EpollFlags::EPOLLIN,
                        };
                        if moved == Moved::Over {
                            // Closing it also takes it out of epoll.
                            connections.remove(key as usize);
                            streams.ledger.closed();
                        } else if wanted != connection.interest {
                            connection.interest = wanted;
                            epoll
                                .modify(&connection.stream, &mut EpollEvent::new(wanted, key))
                                .attempt("change the interest in a connection")?;
                        }
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
}
