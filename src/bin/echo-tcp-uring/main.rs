//! TCP echo in one thread over io_uring(7): the program says what is to be done, the kernel does it when it can, and one
//! call, io_uring_enter, carries the new operations there and the completions back.
//!
//! Run:             cargo run --bin echo-tcp-uring --features uring
//! Second terminal: nc 127.0.0.1 2000
//! In the trace:    io_uring_enter, once for an echo: it submits the send of one message and waits for the next. An accept
//!                  or a receive is submitted once and completes many times (multishot).
//! Left out:        registered files, zero-copy sends, bundles (Linux 6.10), a kernel thread that polls (SQPOLL).
//! Oldest system:   Linux 6.1, for DEFER_TASKRUN.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "io_uring(7)")
}

#[cfg(target_os = "linux")]
mod connection;

#[cfg(target_os = "linux")]
use {
    connection::{Connection, Sending},
    echo_lab::ring::{self, GROUP, Provided},
    echo_lab::stream::{Accepted, Ledger},
    echo_lab::{Attempt, Result, cli, net, report, stop},
    io_uring::types::{Fd, SubmitArgs, Timespec},
    io_uring::{IoUring, cqueue, opcode, squeue},
    slab::Slab,
    std::net::{Shutdown, TcpStream},
    std::os::fd::{AsRawFd, FromRawFd},
};

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    let args: cli::StreamArgs = cli::parse_as(env!("CARGO_BIN_NAME"));
    let listener = net::listen(&args)?;
    let local = listener.local_addr().attempt("read the bound address")?;
    let signals = stop::descriptor()?;
    let mut ring = ring::open(256)?;
    let buffers = Provided::new(&ring, READY, (args.buffer as usize).div_ceil(PARTS), u16::MAX)?;
    let poll = opcode::PollAdd::new(Fd(signals.as_raw_fd()), libc::POLLIN as u32).build().user_data(SIGNAL);
    let cancel_accept = opcode::AsyncCancel::new(ACCEPT).build().user_data(CANCEL);
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC).build().user_data(ACCEPT);
    // SAFETY: it points to no memory, and the descriptor outlives the ring's operations.
    unsafe { ring::push(&mut ring, &poll) }?;
    let mut server = Server { buffers, connections: Slab::new(), ledger: Ledger::new(&args, local) };
    // Connections with something new; those whose send is over when the call returns; those that await a buffer.
    let (mut changed, mut tried, mut starved) = (Vec::new(), Vec::new(), Vec::new());
    let mut accepting = false;
    report::listening(local)?;

    while !server.ledger.is_done() {
        if !accepting && server.ledger.accepts() {
            accepting = true;
            // SAFETY: as above.
            unsafe { ring::push(&mut ring, &accept) }?;
        }
        server.ledger.waits += 1;
        let timeout = server.ledger.timeout().map(Timespec::from);
        let limit = timeout.as_ref().map_or(SubmitArgs::new(), |timeout| SubmitArgs::new().timespec(timeout));
        ring::entered(ring.submitter().submit_with_args(1, &limit))?;

        // Whether all that was queued has been submitted, and all that has completed can be seen below.
        let settled = ring.submission().is_empty() && !ring.submission().cq_overflow();
        let stopping = server.ledger.is_stopping();
        for completion in ring.completion() {
            let result = completion.result();
            match completion.user_data() {
                ACCEPT => {
                    accepting = cqueue::more(completion.flags());
                    if result != -libc::ECANCELED {
                        changed.extend(server.accepted(result)?);
                    }
                }
                SIGNAL => server.ledger.stop(),
                CANCEL => {}
                data => {
                    let Server { connections, buffers, ledger } = &mut server;
                    let key = (data & !SEND) as usize;
                    match data & SEND {
                        0 => connections[key].received(&completion, buffers, ledger),
                        _ => connections[key].sent(result, buffers, ledger),
                    }
                    changed.push(key);
                }
            }
        }
        if settled {
            for key in tried.drain(..) {
                // Its failure would have been among the completions.
                let Some(connection) = server.connections.get_mut(key) else { continue };
                if let Sending::Try(len) = connection.sending {
                    connection.sent(len as i32, &mut server.buffers, &mut server.ledger);
                    changed.push(key);
                }
            }
        }
        if server.ledger.is_stopping() && !stopping {
            // SAFETY: as above.
            unsafe { ring::push(&mut ring, &cancel_accept) }?;
            for (_, connection) in &server.connections {
                // What has arrived can still be received, then the stream ends. Fails if the peer has gone already.
                let _ = connection.stream.shutdown(Shutdown::Read);
            }
        }
        server.buffers.refill();
        if !server.buffers.is_empty() {
            changed.append(&mut starved);
        }
        for key in changed.drain(..) {
            server.go_on(key, &mut ring, &mut tried, &mut starved)?;
        }
    }
    let held = server.connections.iter().map(|(_, connection)| connection.held()).sum();
    server.ledger.unsent(held);
    server.ledger.finish()
}

#[cfg(target_os = "linux")]
struct Server {
    buffers: Provided,
    connections: Slab<Connection>,
    ledger: Ledger,
}

#[cfg(target_os = "linux")]
impl Server {
    /// Takes a completion of the accept: the key of a new connection.
    fn accepted(&mut self, result: i32) -> Result<Option<usize>> {
        let outcome = ring::outcome(result).map(|descriptor| {
            // SAFETY: the kernel has just made it, and nobody else knows it.
            let stream = unsafe { TcpStream::from_raw_fd(descriptor as i32) };
            // Accepts of one operation share no place for an address. A peer that has gone already has none.
            let peer = stream.peer_addr().unwrap_or_else(|_| ([0; 4], 0).into());
            (stream, peer)
        });
        let Accepted::Connection(stream) = self.ledger.accepted(outcome)? else { return Ok(None) };
        if self.ledger.is_stopping() {
            let _ = stream.shutdown(Shutdown::Read);
        }
        Ok(Some(self.connections.insert(Connection::new(stream))))
    }

    /// Queues what is to be done for a connection now, or closes it.
    fn go_on(
        &mut self,
        key: usize,
        ring: &mut IoUring,
        tried: &mut Vec<usize>,
        starved: &mut Vec<usize>,
    ) -> Result<()> {
        // It may be listed twice, and closed the first time.
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        let (fd, id) = (Fd(connection.stream.as_raw_fd()), key as u64);
        if let (Sending::No, Some((buffer, len))) = (connection.sending, connection.parts.front()) {
            let rest = &self.buffers.bytes(*buffer)[connection.sent..*len];
            let send = opcode::Send::new(fd, rest.as_ptr(), rest.len() as u32);
            let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
            let send = if connection.full {
                connection.sending = Sending::Wait;
                send.flags(flags).build()
            } else {
                connection.sending = Sending::Try(rest.len());
                send.flags(flags | libc::MSG_DONTWAIT).build()
            };
            // If nothing is to be done once it has succeeded, that is not worth a completion.
            let last = connection.parts.len() == 1 && connection.receiving && !connection.cancelling;
            let silent = last && !connection.full;
            let send = if silent { send.flags(squeue::Flags::SKIP_SUCCESS) } else { send };
            tried.extend(silent.then_some(key));
            // SAFETY: the buffer is this connection's, and given back only once the send is over; nothing writes to it.
            unsafe { ring::push(ring, &send.user_data(id | SEND)) }?;
        }
        let room = if connection.receiving { connection.parts.len() < PARTS } else { connection.parts.is_empty() };
        let receive = room && !connection.full && !connection.over;
        if receive && !connection.receiving {
            if self.buffers.is_empty() {
                starved.push(key);
                return Ok(());
            }
            connection.receiving = true;
            // SAFETY: the kernel picks a buffer that was provided.
            unsafe { ring::push(ring, &opcode::RecvMulti::new(fd, GROUP).build().user_data(id)) }?;
        } else if !receive && connection.receiving && !connection.cancelling {
            connection.cancelling = true;
            // SAFETY: it points to no memory.
            unsafe { ring::push(ring, &opcode::AsyncCancel::new(id).build().user_data(CANCEL)) }?;
        }
        if connection.over && !connection.receiving && connection.parts.is_empty() {
            // No operation names its descriptor any more.
            self.connections.remove(key);
            self.ledger.closed();
        }
        Ok(())
    }
}

/// The user data of completions: these, or a connection's key, with [`SEND`] beside it or not.
#[cfg(target_os = "linux")]
const ACCEPT: u64 = u64::MAX;
#[cfg(target_os = "linux")]
const SIGNAL: u64 = u64::MAX - 1;
#[cfg(target_os = "linux")]
const CANCEL: u64 = u64::MAX - 2;
#[cfg(target_os = "linux")]
const SEND: u64 = 1 << 32;

/// A receive takes at most this part of `--buffer`, and of a connection that holds so many parts nothing more is received.
#[cfg(target_os = "linux")]
const PARTS: usize = 4;
/// Buffers that lie ready for the kernel: what one turn can receive. A receive that finds none is over, and has to be
/// armed again: with 16 that cost twice as much as all the rest. A connection that sends much takes them all in one turn,
/// so their number bounds what it may hold beyond its `PARTS`.
#[cfg(target_os = "linux")]
const READY: u16 = 64;
