//! UDP echo as a tokio program is usually written: receive, await, send, await.
//!
//! Run:             cargo run --bin echo-tokio-await
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN; then a second wake-up for
//!                  each echo: tokio registers for reading and writing at once, edge-triggered, and a send frees room.
//! Left out:        receiving while a send is blocked, which echo-tokio does. Here the task waits in `send_to`, and the
//!                  kernel's buffer takes what arrives.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::{Attempt, Echo, Result, cli, ledger::DRAIN_DEADLINE, net, report, stop};
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

/// May be dropped at any await: a receive or send that has not ended has not taken a datagram (both are cancel safe).
async fn serve(echo: &mut Echo, socket: &UdpSocket) -> Result<()> {
    while !echo.is_done() {
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
