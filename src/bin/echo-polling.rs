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

impl From<Mode> for PollMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Level => PollMode::Level,
            Mode::Edge => PollMode::Edge,
            Mode::Oneshot => PollMode::Oneshot,
        }
    }
}

fn main() -> Result<()> {
    let Flags { server: args, mode } = cli::parse_as(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let poller = Arc::new(Poller::new().attempt("create a poller")?);
    // SAFETY: it is deleted below, before the socket is closed; a failure ends the process, and the poller with it.
    unsafe { poller.add_with_mode(&socket, Event::readable(SOCKET), mode.into()) }
        .attempt("register the socket in this mode")?;
    let waker = poller.clone();
    // SAFETY: a notification is an atomic flag and one system call: write(2) to an eventfd on Linux.
    unsafe { stop::on_signal(move || drop(waker.notify())) }?;
    let mut echo = Echo::new(&args, local);
    report::listening(local)?;
    serve(&mut echo, &socket, &poller, mode)?;
    poller.delete(&socket).attempt("deregister the socket")?;
    echo.finish(&socket)
}

fn serve(echo: &mut Echo, socket: &UdpSocket, poller: &Poller, mode: Mode) -> Result<()> {
    let mut events = Events::new();
    let mut interest = Event::readable(SOCKET);
    let mut drained = true;
    while !echo.is_done() {
        let wanted = Event::new(SOCKET, echo.wants_recv(), echo.wants_send());
        // What fired in one-shot mode is off until it is armed again. That also reports what is ready already.
        let fired = mode == Mode::Oneshot && !events.is_empty();
        if wanted != interest || fired {
            poller.modify_with_mode(socket, wanted, mode.into()).attempt("change the interest")?;
            interest = wanted;
        }

        // No edge will tell of what the last turn left behind. The other modes report it again.
        let timeout = if mode == Mode::Edge && !drained { Some(Duration::ZERO) } else { echo.timeout() };
        echo.report().waits += 1;
        events.clear();
        match poller.wait(&mut events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).attempt("wait with the poller"),
            _ => {}
        }
        if stop::requested() {
            echo.stop();
        }
        drained = turn(echo, socket)?;
    }
    Ok(())
}

/// Up to TURN datagrams. `false` if there may be more.
fn turn(echo: &mut Echo, socket: &UdpSocket) -> Result<bool> {
    echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?;
    for _ in 0..TURN {
        match echo.receive(|slot| socket.recv_from(slot))? {
            Progress::Made => echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?,
            Progress::WouldBlock | Progress::Full => return Ok(true),
        }
    }
    Ok(false)
}
