//! UDP echo over mio, as it is meant to be used: an event says that the socket may be ready, and the program goes on
//! until it would block.
//!
//! Run:             cargo run --bin echo-mio-edge
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    EPOLLET, then epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN: as
//!                  echo-epoll-edge. Writability is asked for only while something waits to be sent. With
//!                  --register-per-wait EPOLL_CTL_ADD and _DEL around each wait: see METHODOLOGY.md for what that spares.
//! Left out:        a fair share for other sockets: DRAIN_LIMIT only keeps a flood from hiding the stop signal.
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
/// Datagrams received before the loop looks at the other sources.
const DRAIN_LIMIT: usize = 256;

fn main() -> Result<()> {
    let (args, idle, register_per_wait) = cli::parse_with_registration(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let mut socket = UdpSocket::from_std(socket);
    let mut poll = Poll::new().attempt("create a poll")?;
    let waker = Arc::new(Waker::new(poll.registry(), SIGNAL).attempt("create a waker")?);
    // SAFETY: a wake-up is one system call: write(2) to an eventfd on Linux.
    unsafe { stop::on_signal(move || drop(waker.wake())) }?;
    let mut idle: Vec<_> = net::idle(idle)?.into_iter().map(UdpSocket::from_std).collect();
    for socket in &mut idle {
        poll.registry().register(socket, IDLE, Interest::READABLE).attempt("register an idle socket")?;
    }
    let mut events = Events::with_capacity(8);
    let mut echo = Echo::new(&args, local);
    let (mut interest, mut more) = (None, false);
    report::listening(local)?;

    while !echo.is_done() {
        // A socket that is registered anew each time would report what there is no room for, each time.
        let readable = !register_per_wait || echo.wants_recv();
        let wanted = match echo.wants_send() {
            false => Interest::READABLE,
            true if readable => Interest::READABLE | Interest::WRITABLE,
            true => Interest::WRITABLE,
        };
        let registry = poll.registry();
        match interest.replace(wanted) {
            None => registry.register(&mut socket, SOCKET, wanted).attempt("register the socket")?,
            Some(before) if before == wanted => {}
            Some(_) => registry.reregister(&mut socket, SOCKET, wanted).attempt("change the interest in the socket")?,
        }
        // No event will tell of what was left behind.
        let timeout = if more { Some(Duration::ZERO) } else { echo.timeout() };
        echo.report().waits += 1;
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).attempt("poll"),
            _ => {}
        }
        if register_per_wait {
            poll.registry().deregister(&mut socket).attempt("end the registration of the socket")?;
            interest = None;
        }
        if stop::requested() {
            echo.stop();
        }

        send_queued(&mut echo, &socket)?;
        let mut progress = Progress::Made;
        for _ in 0..DRAIN_LIMIT {
            let Some(slot) = echo.vacant() else { break };
            let result = socket.recv_from(slot);
            progress = echo.received(result)?;
            if progress == Progress::WouldBlock {
                break;
            }
            send_queued(&mut echo, &socket)?;
        }
        more = progress == Progress::Made && echo.wants_recv();
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
