//! UDP echo over mio, as it is meant to be used: an event says that the socket may be ready, and the program goes on
//! until it would block.
//!
//! Run:             cargo run --bin echo-mio-edge
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    EPOLLET, then epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN: as
//!                  echo-epoll-edge. Writability is asked for only while something waits to be sent.
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
/// Datagrams received before the loop looks at the stop signal again.
const DRAIN_LIMIT: usize = 256;

fn main() -> Result<()> {
    let args = cli::parse(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let mut socket = UdpSocket::from_std(socket);
    let poll = Poll::new().attempt("create a poll")?;
    poll.registry().register(&mut socket, SOCKET, Interest::READABLE).attempt("register the socket")?;
    // One Waker for each Poll is all that mio allows. Its event only has to end the wait: the signal sets a flag.
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
    let mut drained = true;
    while !echo.is_done() {
        // Ask for writability only while a send is blocked. reregister reports what is ready already.
        let wanted = if echo.wants_send() { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        if wanted != interest {
            poll.registry().reregister(socket, SOCKET, wanted).attempt("change the interest")?;
            interest = wanted;
        }

        // If the last turn stopped before it would have blocked, no event will tell of the rest.
        let timeout = if drained { echo.timeout() } else { Some(Duration::ZERO) };
        echo.report().waits += 1;
        match poll.poll(&mut events, timeout) {
            // mio hands EINTR on: its caller decides whether to poll again (mio's documentation of Poll::poll).
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).attempt("poll"),
            _ => {}
        }
        if stop::requested() {
            echo.stop();
        }

        // Events are hints, and there is one socket: try, whatever they say.
        drained = drain(echo, socket)?;
    }
    Ok(())
}

/// What mio asks for: go on until a call would block. `false` if there may be more.
fn drain(echo: &mut Echo, socket: &UdpSocket) -> Result<bool> {
    echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?;
    for _ in 0..DRAIN_LIMIT {
        match echo.receive(|slot| socket.recv_from(slot))? {
            Progress::Made => echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?,
            // With a full queue writability is the event to wait for: it brings the loop back here.
            Progress::WouldBlock | Progress::Full => return Ok(true),
        }
    }
    Ok(false)
}
