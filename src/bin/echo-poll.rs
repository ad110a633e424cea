//! UDP echo over poll(2): as select, without the limit on descriptors, and without sets to rebuild.
//!
//! Run:             cargo run --bin echo-poll --features poll
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    ppoll, recvfrom, sendto for each echo. POLLOUT is asked for only while something waits to be sent.
//! Left out:        draining, unless --drain-limit says so: a wait for each datagram is simple, and a third call for each.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   Linux 3.2 or FreeBSD 12, which the standard library needs, with ppoll: its signal mask closes the window
//!                  between a check and the wait.

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "ppoll(2)")
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
use {
    echo_lab::{Attempt, Echo, Progress, Result, cli, net, report, stop},
    nix::errno::Errno,
    nix::poll::{PollFd, PollFlags, ppoll},
    nix::sys::time::TimeSpec,
    std::net::UdpSocket,
    std::os::fd::AsFd,
};

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn main() -> Result<()> {
    let (args, idle, drain_limit) = cli::parse_with_drain(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let signals = stop::InsideWait::new()?;
    let mut echo = Echo::new(&args, local);
    let idle = net::idle(idle)?;
    let mut fds = vec![PollFd::new(socket.as_fd(), PollFlags::empty())];
    fds.extend(idle.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
    report::listening(local)?;

    while !echo.is_done() {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::POLLIN, echo.wants_recv());
        interest.set(PollFlags::POLLOUT, echo.wants_send());
        fds[0].set_events(interest);
        let timeout = echo.timeout().map(TimeSpec::from_duration);
        echo.report().waits += 1;
        match ppoll(&mut fds, timeout, Some(signals.mask())) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).attempt("wait with ppoll"),
        }
        if echo.report().waits % 256 == 0 {
            signals.look()?;
        }
        if stop::requested() {
            echo.stop();
        }

        send_queued(&mut echo, &socket)?;
        // Receive whatever the event was: POLLERR is an error that a receive takes from the socket.
        for _ in 0..drain_limit {
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

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn send_queued(echo: &mut Echo, socket: &UdpSocket) -> Result<()> {
    while let Some((datagram, peer)) = echo.front() {
        let result = socket.send_to(datagram, peer);
        if echo.sent(result)? == Progress::WouldBlock {
            break;
        }
    }
    Ok(())
}
