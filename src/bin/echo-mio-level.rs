//! UDP echo with level-triggered behaviour on mio, which is edge-triggered: the program may stop receiving early, since
//! it remembers that the socket was readable and polls without waiting until a receive would block.
//!
//! Run:             cargo run --bin echo-mio-level
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN. After TURN datagrams comes
//!                  an epoll_wait with timeout 0: what is left in the socket waits, and other sources get their turn.
//! Left out:        the ways to get it from the system: reregistering before each poll (mio promises nothing), or a
//!                  crate with level-triggered mode.
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
const IDLE: Token = Token(2);
/// Datagrams received in one turn of the loop.
const TURN: usize = 8;

fn main() -> Result<()> {
    let (args, idle) = cli::parse_with_idle(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let mut socket = UdpSocket::from_std(socket);
    let mut poll = Poll::new().attempt("create a poll")?;
    let waker = Arc::new(Waker::new(poll.registry(), SIGNAL).attempt("create a waker")?);
    // SAFETY: a wake-up is one system call: write(2) to an eventfd on Linux.
    unsafe { stop::on_signal(move || drop(waker.wake())) }?;
    let mut interest = Interest::READABLE;
    poll.registry().register(&mut socket, SOCKET, interest).attempt("register the socket")?;
    let mut idle: Vec<_> = net::idle(idle)?.into_iter().map(UdpSocket::from_std).collect();
    for socket in &mut idle {
        poll.registry().register(socket, IDLE, Interest::READABLE).attempt("register an idle socket")?;
    }
    let mut events = Events::with_capacity(8);
    let mut echo = Echo::new(&args, local);
    // What the system would remember for a level-triggered descriptor.
    let mut readable = false;
    report::listening(local)?;

    while !echo.is_done() {
        let mut wanted = Interest::READABLE;
        if echo.wants_send() {
            wanted |= Interest::WRITABLE;
        }
        if wanted != interest {
            poll.registry().reregister(&mut socket, SOCKET, wanted).attempt("change the interest in the socket")?;
            interest = wanted;
        }
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

        send_queued(&mut echo, &socket)?;
        for _ in 0..TURN {
            let (true, Some(slot)) = (readable, echo.vacant()) else { break };
            let result = socket.recv_from(slot);
            if echo.received(result)? == Progress::WouldBlock {
                readable = false;
                break;
            }
            send_queued(&mut echo, &socket)?;
        }
    }
    echo.finish(&socket)
}

fn send_queued(echo: &mut Echo, socket: &UdpSocket) -> Result<()> {
    while let Some((datagram, peer)) = echo.front() {
        let result = socket.send_to(datagram, peer);
        if echo.sent(result)? == Progress::WouldBlock {
            break;
        }
    }
    Ok(())
}
