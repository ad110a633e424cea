//! UDP echo over select(2): one thread waits until it can receive, or until it can send what would have blocked.
//!
//! Run:             cargo run --bin echo-select --features select
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    pselect6, recvfrom, sendto for each echo. The write set is empty unless a send would have blocked,
//!                  and both sets are built anew for each wait: that is the interface.
//! Left out:        draining, unless --drain-limit says so: a wait for each datagram is simple, and a third call for each.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   POSIX.1-2001, for pselect: its signal mask closes the window between a check and the wait.

#[cfg(not(unix))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "pselect(2)")
}

#[cfg(unix)]
use {
    echo_lab::{Attempt, Echo, Error, Progress, Result, cli, net, report, stop},
    nix::errno::Errno,
    nix::sys::select::{FD_SETSIZE, FdSet, pselect},
    nix::sys::time::TimeSpec,
    std::net::UdpSocket,
    std::os::fd::{AsFd, AsRawFd},
};

#[cfg(unix)]
fn main() -> Result<()> {
    let (args, idle, drain_limit) = cli::parse_with_drain(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    let idle = net::idle(idle)?;
    let highest = idle.last().unwrap_or(&socket).as_raw_fd().max(socket.as_raw_fd());
    if highest as usize >= FD_SETSIZE {
        let what = format!("descriptor {highest}: a set holds those below {FD_SETSIZE}");
        let sentence = format!("cannot select on {what}; try echo-poll");
        return Err(Error::new(sentence));
    }
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let signals = stop::InsideWait::new()?;
    let mut echo = Echo::new(&args, local);
    report::listening(local)?;

    while !echo.is_done() {
        let (mut read, mut write) = (FdSet::new(), FdSet::new());
        idle.iter().for_each(|socket| read.insert(socket.as_fd()));
        if echo.wants_recv() {
            read.insert(socket.as_fd());
        }
        if echo.wants_send() {
            write.insert(socket.as_fd());
        }
        let timeout = echo.timeout().map(TimeSpec::from_duration);
        echo.report().waits += 1;
        match pselect(highest + 1, &mut read, &mut write, None, timeout.as_ref(), &signals.mask()) {
            Ok(_) => {}
            // The sets are unspecified after an error.
            Err(Errno::EINTR) => read.clear(),
            Err(error) => return Err(error).attempt("wait with pselect"),
        }
        if echo.report().waits % 256 == 0 {
            signals.look()?;
        }
        if stop::requested() {
            echo.stop();
        }

        send_queued(&mut echo, &socket)?;
        let turns = if read.contains(socket.as_fd()) { drain_limit } else { 0 };
        for _ in 0..turns {
            let Some(slot) = echo.vacant() else { break };
            let result = socket.recv_from(slot);
            if echo.received(result)? == Progress::WouldBlock {
                break;
            }
            send_queued(&mut echo, &socket)?;
        }
    }
    echo.finish(&socket)
}

#[cfg(unix)]
fn send_queued(echo: &mut Echo, socket: &UdpSocket) -> Result<()> {
    while let Some((datagram, peer)) = echo.front() {
        let result = socket.send_to(datagram, peer);
        if echo.sent(result)? == Progress::WouldBlock {
            break;
        }
    }
    Ok(())
}
