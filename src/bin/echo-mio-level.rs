//! UDP echo with level-triggered behaviour on mio, which is edge-triggered: the program may stop receiving early, since
//! it remembers that the socket was readable and polls without waiting until a receive would block.
//!
//! Run:             cargo run --bin echo-mio-level
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN. After TURN datagrams comes
//!                  an epoll_wait with timeout 0: what is left in the socket waits, and other sources get their turn.
//! Left out:        the ways to get it from the system: reregistering before each poll (mio promises nothing), or a
//!                  crate with level-triggered mode (echo-polling).
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   what mio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::{Attempt, Echo, Progress, Result, cli, net, report, stop};
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token, Waker};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

const SOCKET: Token = Token(0);
const SIGNAL: Token = Token(1);
/// Datagrams received in one turn of the loop.
const TURN: usize = 8;

fn main() -> Result<()> {
    let args = cli::parse(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let mut socket = UdpSocket::from_std(socket);
    let poll = Poll::new().attempt("create a poll")?;
    poll.registry().register(&mut socket, SOCKET, Interest::READABLE).attempt("register the socket")?;
    let waker = Arc::new(Waker::new(poll.registry(), SIGNAL).attempt("create a waker")?);
    // SAFETY: a wake-up is one system call: write(2) to an eventfd on Linux.
    unsafe { stop::on_signal(move || drop(waker.wake())) }?;
    let mut echo = Echo::new(&args, local);
    report::listening(local)?;
    serve(&mut echo, &mut socket, poll)?;
    echo.finish(&socket)
}

fn serve(echo: &mut Echo, socket: &mut UdpSocket, mut poll: Poll) -> Result<()> {
    let mut events = Events::with_capacity(8);
    let mut interest = Interest::READABLE;
    // What the system remembers of a level-triggered descriptor, and mio forgets once it has told.
    let mut readable = false;
    while !echo.is_done() {
        let wanted = if echo.wants_send() { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        if wanted != interest {
            poll.registry().reregister(socket, SOCKET, wanted).attempt("change the interest")?;
            interest = wanted;
        }

        // No event will tell of what the last turn left behind: see what else is ready, but do not wait for it.
        let timeout = if readable && echo.wants_recv() { Some(Duration::ZERO) } else { echo.timeout() };
        echo.report().waits += 1;
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).attempt("poll"),
            _ => {}
        }
        readable |= events.iter().any(|event| event.token() == SOCKET && (event.is_readable() || event.is_error()));
        if stop::requested() {
            echo.stop();
        }

        echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?;
        if readable {
            readable = receive_some(echo, socket)?;
        }
    }
    Ok(())
}

/// One turn: up to TURN datagrams. `false` once a receive would have blocked.
fn receive_some(echo: &mut Echo, socket: &UdpSocket) -> Result<bool> {
    for _ in 0..TURN {
        match echo.receive(|slot| socket.recv_from(slot))? {
            Progress::Made => echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?,
            Progress::WouldBlock => return Ok(false),
            Progress::Full => break,
        }
    }
    Ok(true)
}
