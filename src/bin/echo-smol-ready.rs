//! UDP echo over smol with one task that waits for readiness and makes the calls itself: a blocked send does not stop the
//! receives. Tuned form of echo-smol, whose header says who waits and who works in smol.
//!
//! Run:             cargo run --bin echo-smol-ready --features smol
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    two threads: one waits as echo-polling does and wakes the other (futex), which makes recvfrom, sendto
//!                  and the recvfrom that ends with EAGAIN, asks for the next event (epoll_ctl) and sleeps.
//! Left out:        smol's tasks on several threads. async-io allocates once for each event: the list of those to wake.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   what async-io supports: Linux, the BSDs, macOS, illumos, Windows and others.

use echo_lab::{Attempt, Echo, Progress, Result, cli, net, report, stop};
use smol::future::{self, FutureExt};
use smol::{Async, Timer};
use std::io;
use std::net::UdpSocket;
use std::task::{Context, Poll};

/// Datagrams received before the task looks at the stop signal again.
const TURN: usize = 32;

fn main() -> Result<()> {
    let args = cli::parse(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let socket = Async::new(socket).attempt("register the socket")?;
    let stopped = Async::new(stop::by_socket()?).attempt("register the socket for the stop signal")?;
    let mut echo = Echo::new(&args, local);
    report::listening(local)?;
    future::block_on(serve(&mut echo, &socket, &stopped))?;
    echo.finish(socket.get_ref())
}

async fn serve(echo: &mut Echo, socket: &Async<UdpSocket>, stopped: &Async<stop::Wakeable>) -> Result<()> {
    while !echo.is_done() {
        let drained = turn(echo, socket)?;
        if stop::requested() {
            echo.stop();
        }
        if drained && !echo.is_done() {
            wait(echo, socket, stopped).await.attempt("wait for the socket")?;
        }
    }
    Ok(())
}

/// Up to TURN datagrams, without waiting for any. `false` if there may be more.
fn turn(echo: &mut Echo, socket: &Async<UdpSocket>) -> Result<bool> {
    let socket = socket.get_ref();
    echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?;
    for _ in 0..TURN {
        match echo.receive(|slot| socket.recv_from(slot))? {
            Progress::Made => echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?,
            Progress::WouldBlock | Progress::Full => return Ok(true),
        }
    }
    Ok(false)
}

/// Ends when something may have become possible. Any wake-up will do: the calls themselves tell what is.
async fn wait(echo: &mut Echo, socket: &Async<UdpSocket>, stopped: &Async<stop::Wakeable>) -> io::Result<()> {
    echo.report().waits += 1;
    let mut registered = false;
    let woken = future::poll_fn(|cx| {
        if registered {
            return Poll::Ready(Ok(()));
        }
        registered = true;
        match register(echo, socket, stopped, cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    });
    match echo.timeout() {
        None => woken.await,
        Some(left) => {
            let over = async {
                Timer::after(left).await;
                Ok(())
            };
            woken.or(over).await
        }
    }
}

/// An event is reported once (EPOLLONESHOT), so each wait asks anew. One that was reported before the last receive is
/// ready, but says nothing: asked again, it is not.
fn register(
    echo: &Echo,
    socket: &Async<UdpSocket>,
    stopped: &Async<stop::Wakeable>,
    cx: &mut Context<'_>,
) -> io::Result<()> {
    // Until the loop knows of the stop signal: then the socket stays readable.
    while echo.timeout().is_none() && stopped.poll_readable(cx)?.is_ready() {}
    while echo.wants_recv() && socket.poll_readable(cx)?.is_ready() {}
    while echo.wants_send() && socket.poll_writable(cx)?.is_ready() {}
    Ok(())
}
