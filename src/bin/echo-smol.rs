//! UDP echo over smol, a runtime put together from small crates, as such a program is usually written: receive, await,
//! send, await.
//!
//! Run:             cargo run --bin echo-smol --features smol
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    two threads: one waits as echo-polling does and wakes the other (futex), which makes recvfrom, sendto
//!                  and the recvfrom that ends with EAGAIN, asks for the next event (epoll_ctl) and sleeps.
//! Left out:        receiving while a send is blocked, which echo-smol-ready does. async-io allocates for each wait: the
//!                  list of tasks to wake.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   what async-io supports: Linux, the BSDs, macOS, illumos, Windows and others.
//!
//! Nobody owns smol's reactor. Whoever blocks on a future polls the sockets meanwhile, and a thread of async-io does when
//! nobody else does, or too long ago; it cannot be switched off (smol-rs/async-io#40). With smol's own `block_on` the two
//! take turns, and what an echo costs differs from run to run. Here the future is driven by `future::block_on`, which
//! only sleeps: the thread always waits, the task always works.

use echo_lab::{Attempt, Echo, Result, cli, ledger::DRAIN_DEADLINE, net, report, stop};
use smol::future::{self, FutureExt};
use smol::{Async, Timer};
use std::net::UdpSocket;

fn main() -> Result<()> {
    let args = cli::parse(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let socket = Async::new(socket).attempt("register the socket")?;
    let stopped = Async::new(stop::by_socket()?).attempt("register the socket for the stop signal")?;
    let mut echo = Echo::new(&args, local);
    report::listening(local)?;

    future::block_on(async {
        let stopped = async { stopped.readable().await.attempt("wait for the stop signal") };
        serve(&mut echo, &socket).or(stopped).await?;
        // What was received when the signal came is still sent; a stopped Echo has no room to receive.
        echo.stop();
        let too_late = async {
            Timer::after(DRAIN_DEADLINE).await;
            Ok(())
        };
        serve(&mut echo, &socket).or(too_late).await
    })?;
    echo.finish(socket.get_ref())
}

/// May be dropped at any await: a receive or send that has not ended has not taken a datagram.
async fn serve(echo: &mut Echo, socket: &Async<UdpSocket>) -> Result<()> {
    while !echo.is_done() {
        // A receive that finds a datagram does not wait: in a flood nobody else would look at the stop signal.
        if stop::requested() {
            echo.stop();
        }
        if let Some(slot) = echo.vacant() {
            let result = socket.recv_from(slot).await;
            echo.received(result)?;
        }
        while let Some((datagram, peer)) = echo.front() {
            let result = socket.send_to(datagram, peer).await;
            echo.sent(result)?;
        }
    }
    Ok(())
}
