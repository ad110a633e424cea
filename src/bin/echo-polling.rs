//! UDP echo over the polling crate, in the mode of your choice: the only portable poller that has level-triggered events
//! besides edge-triggered and one-shot ones. The same loop serves all three; what differs is what it owes the poller.
//!
//! Run:             cargo run --bin echo-polling --features polling -- --mode level
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    recvfrom, sendto, the recvfrom that ends with EAGAIN; with --mode oneshot an epoll_ctl that arms the
//!                  socket again. The wait is five calls: the crate sets the timer that ends it, arms timer and eventfd
//!                  for it, and empties the eventfd after it.
//! Left out:        one datagram for each wait, which level-triggered events would allow (echo-epoll-level).
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   whatever the crate supports: epoll, kqueue, event ports, poll, IOCP.

use clap::{Args, ValueEnum};
use echo_lab::{Attempt, Echo, Progress, Result, cli, net, report, stop};
use polling::{Event, Events, PollMode, Poller};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

const SOCKET: usize = 0;
/// Datagrams received in one turn of the loop.
const TURN: usize = 32;

#[derive(Args)]
struct Flags {
    #[command(flatten)]
    server: cli::ServerArgs,

    /// When the poller reports the socket
    #[arg(long, value_enum, default_value_t = Mode::Level)]
    mode: Mode,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    /// As long as it is ready: what a turn left behind is reported again
    Level,
    /// When it becomes ready: the loop has to remember what it left behind
    Edge,
    /// Once, until it is armed again, which also reports what was left behind
    Oneshot,
}

fn main() -> Result<()> {
    let Flags { server: args, mode } = cli::parse_as(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let poll_mode = match mode {
        Mode::Level => PollMode::Level,
        Mode::Edge => PollMode::Edge,
        Mode::Oneshot => PollMode::Oneshot,
    };
    let poller = Arc::new(Poller::new().attempt("create a poller")?);
    let mut interest = Event::readable(SOCKET);
    // SAFETY: it is deleted below, before the socket is closed; a failure ends the process, and the poller with it.
    unsafe { poller.add_with_mode(&socket, interest, poll_mode) }.attempt("register the socket in this mode")?;
    let waker = poller.clone();
    // SAFETY: a notification is an atomic flag and one system call: write(2) to an eventfd on Linux.
    unsafe { stop::on_signal(move || drop(waker.notify())) }?;
    let mut events = Events::new();
    let mut echo = Echo::new(&args, local);
    let mut more = false;
    report::listening(local)?;

    while !echo.is_done() {
        let wanted = Event::new(SOCKET, echo.wants_recv(), echo.wants_send());
        let fired = mode == Mode::Oneshot && !events.is_empty();
        if wanted != interest || fired {
            poller.modify_with_mode(&socket, wanted, poll_mode).attempt("change the interest in the socket")?;
            interest = wanted;
        }
        // No edge will tell of what was left behind.
        let timeout = if more && mode == Mode::Edge { Some(Duration::ZERO) } else { echo.timeout() };
        echo.report().waits += 1;
        events.clear();
        match poller.wait(&mut events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).attempt("wait with the poller"),
            _ => {}
        }
        if stop::requested() {
            echo.stop();
        }

        send_queued(&mut echo, &socket)?;
        let mut progress = Progress::Made;
        for _ in 0..TURN {
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
    poller.delete(&socket).attempt("deregister the socket")?;
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
