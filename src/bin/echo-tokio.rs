//! UDP echo in one tokio task that waits for reading and writing together: a send that would block does not stop the
//! receives.
//!
//! Run:             cargo run --bin echo-tokio
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN; then a second wake-up for
//!                  each echo: tokio registers for reading and writing at once, edge-triggered, and a send frees room.
//! Left out:        more than one task, and more than one thread.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::{Attempt, Echo, Progress, Result, cli, net, report, stop};
use std::pin::pin;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Datagrams received before the task looks at the stop signal again, and gives others a turn.
const TURN: usize = 32;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (args, idle) = cli::parse_with_idle(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let socket = UdpSocket::from_std(socket).attempt("register the socket")?;
    for socket in net::idle(idle)? {
        let socket = UdpSocket::from_std(socket).attempt("register an idle socket")?;
        tokio::spawn(async move { socket.readable().await });
    }
    let mut stopped = pin!(stop::future()?);
    let mut echo = Echo::new(&args, local);
    report::listening(local)?;

    while !echo.is_done() {
        let interest = match (echo.wants_recv(), echo.wants_send()) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            _ => Interest::WRITABLE,
        };
        tokio::select! {
            _ = &mut stopped, if echo.timeout().is_none() => echo.stop(),
            _ = tokio::time::sleep(echo.timeout().unwrap_or(Duration::MAX)), if echo.timeout().is_some() => {}
            ready = socket.ready(interest) => {
                ready.attempt("wait for the socket")?;
                send_queued(&mut echo, &socket)?;
                let mut progress = Progress::Made;
                for _ in 0..TURN {
                    let Some(slot) = echo.vacant() else { break };
                    let result = socket.try_recv_from(slot);
                    progress = echo.received(result)?;
                    if progress == Progress::WouldBlock {
                        break;
                    }
                    send_queued(&mut echo, &socket)?;
                }
                if progress == Progress::Made && echo.wants_recv() {
                    // A flood gives no other reason to wait, and only a task that waits lets the runtime see a signal.
                    tokio::task::yield_now().await;
                }
            }
        }
    }
    echo.report().waits = tokio::runtime::Handle::current().metrics().worker_park_count(0);
    echo.finish(&socket)
}

fn send_queued(echo: &mut Echo, socket: &UdpSocket) -> Result<()> {
    while let Some((datagram, peer)) = echo.front() {
        let result = socket.try_send_to(datagram, peer);
        if echo.sent(result)? == Progress::WouldBlock {
            break;
        }
    }
    Ok(())
}
