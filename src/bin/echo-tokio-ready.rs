//! UDP echo in one tokio task that waits for readiness and makes the calls itself (`ready`, `try_recv_from`,
//! `try_send_to`): one wait serves all datagrams that have arrived. Tuned form of echo-tokio: under load that one passes
//! through `select!` and the reactor's state for each receive and each send, this one once for up to TURN datagrams.
//!
//! Run:             cargo run --bin echo-tokio-ready
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN; then a second wake-up for
//!                  each echo: tokio registers for reading and writing at once, edge-triggered, and a send frees room.
//! Left out:        more than one task, and more than one thread.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::{Attempt, Echo, Progress, Result, cli, ledger::DRAIN_DEADLINE, net, report, stop};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Datagrams received before the task lets others, and the stop signal, have their turn.
const TURN: usize = 32;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = cli::parse(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let socket = UdpSocket::from_std(socket).attempt("register the socket")?;
    let stopped = stop::future()?;
    let mut echo = Echo::new(&args, local);
    report::listening(local)?;

    tokio::select! {
        result = serve(&mut echo, &socket) => result?,
        () = stopped => {
            // What was received when the signal came is still sent; a stopped Echo has no room to receive.
            echo.stop();
            tokio::time::timeout(DRAIN_DEADLINE, serve(&mut echo, &socket)).await.unwrap_or(Ok(()))?;
        }
    }
    echo.report().waits = tokio::runtime::Handle::current().metrics().worker_park_count(0);
    echo.finish(&socket)
}

async fn serve(echo: &mut Echo, socket: &UdpSocket) -> Result<()> {
    while !echo.is_done() {
        let interest = match (echo.wants_recv(), echo.wants_send()) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            _ => Interest::WRITABLE,
        };
        // Readiness stays set until a try_ call meets EAGAIN: so what a turn leaves behind is reported again at once.
        socket.ready(interest).await.attempt("wait for the socket")?;
        if !turn(echo, socket)? {
            // A flood gives no other reason to wait, and only a task that waits lets the runtime see a signal.
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// Up to TURN datagrams, without waiting for any. `false` if there may be more.
fn turn(echo: &mut Echo, socket: &UdpSocket) -> Result<bool> {
    echo.send_queued(|datagram, peer| socket.try_send_to(datagram, peer))?;
    for _ in 0..TURN {
        match echo.receive(|slot| socket.try_recv_from(slot))? {
            Progress::Made => echo.send_queued(|datagram, peer| socket.try_send_to(datagram, peer))?,
            Progress::WouldBlock | Progress::Full => return Ok(true),
        }
    }
    Ok(false)
}
