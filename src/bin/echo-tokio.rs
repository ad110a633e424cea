//! UDP echo in one tokio task that receives and sends independently: `select!` awaits a receive while there is room, and a
//! send while something is queued. So a blocked send does not stop the receives, as it does in echo-tokio-await.
//!
//! Run:             cargo run --bin echo-tokio
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN; then a second wake-up for
//!                  each echo: tokio registers for reading and writing at once, edge-triggered, and a send frees room.
//! Left out:        more than one task (echo-tokio-mpsc), and one wait for many datagrams (echo-tokio-ready).
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::{Attempt, Echo, Result, cli, ledger::DRAIN_DEADLINE, net, policy::NOBODY, report, stop};
use tokio::net::UdpSocket;

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

/// `select!` drops the future that has not ended, and the next turn makes it anew. Nothing is lost by that: a receive or
/// send that has not ended has not taken a datagram (tokio's documentation calls both cancel safe).
async fn serve(echo: &mut Echo, socket: &UdpSocket) -> Result<()> {
    while !echo.is_done() {
        let (slot, front) = echo.vacant_and_front();
        let (room, queued) = (slot.is_some(), front.is_some());
        let (datagram, peer) = front.unwrap_or((&[], NOBODY));
        tokio::select! {
            biased; // The send first: else select! picks one of the two by chance.
            result = socket.send_to(datagram, peer), if queued => drop(echo.sent(result)?),
            result = socket.recv_from(slot.unwrap_or_default()), if room => drop(echo.received(result)?),
        }
    }
    Ok(())
}
