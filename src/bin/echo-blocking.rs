//! UDP echo with nothing but blocking calls: the baseline that the others are compared with.
//!
//! Run:             cargo run --bin echo-blocking
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    recvfrom and sendto, and nothing else: the receive itself is the wait.
//! Left out:        waiting for two things at once. So a send that blocks stops the receives (`--queue` has no use
//!                  here), and the handler of the stop signal has to end the receive: it sets its time limit.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   any that the standard library supports: Linux 3.2, FreeBSD 12, macOS 10.12, Windows 10 or later.

use echo_lab::{Attempt, Echo, Result, cli, ledger::DRAIN_DEADLINE, net, report, stop};

fn main() -> Result<()> {
    let args = cli::parse(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    let local = socket.local_addr().attempt("read the bound address")?;
    // A send blocks while the socket's send buffer is full. It must not outlast the time to stop.
    socket.set_write_timeout(Some(DRAIN_DEADLINE)).attempt("limit the time of a send")?;
    stop::by_time_limit(&socket)?;
    let mut echo = Echo::new(&args, local);
    report::listening(local)?;

    while !echo.is_done() {
        if let Some(slot) = echo.vacant() {
            let result = socket.recv_from(slot);
            echo.received(result)?;
        }
        while let Some((datagram, peer)) = echo.front() {
            let result = socket.send_to(datagram, peer);
            echo.sent(result)?;
            if stop::requested() {
                break;
            }
        }
        if stop::requested() {
            echo.stop();
        }
    }
    echo.finish(&socket)
}
