//! UDP echo over poll(2) that drains: after one wait it receives until EAGAIN, up to DRAIN_LIMIT datagrams. Tuned form of
//! echo-poll, which waits once for each datagram: under load this saves a third of the system calls. A lone datagram costs
//! one more, the receive that finds nothing.
//!
//! Run:             cargo run --bin echo-poll-drain --features poll
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    ppoll, recvfrom, sendto, and the recvfrom that ends with EAGAIN. Under load one wait serves many.
//! Left out:        nothing more: epoll, level-triggered, and select can be drained in the same way.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   Linux 3.2, as Rust's standard library, or FreeBSD: both have ppoll, whose signal mask closes the
//!                  window between a check and the wait.

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "ppoll(2)")
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn main() -> echo_lab::Result<()> {
    with_ppoll::main()
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
mod with_ppoll {
    use echo_lab::{Attempt, Echo, Progress, Result, cli, net, report, stop};
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, ppoll};
    use nix::sys::time::TimeSpec;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    /// Datagrams received before the loop looks at the stop signal again.
    const DRAIN_LIMIT: usize = 64;

    pub fn main() -> Result<()> {
        let args = cli::parse(env!("CARGO_BIN_NAME"));
        let socket = net::bind(&args)?;
        socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
        let local = socket.local_addr().attempt("read the bound address")?;
        let signals = stop::InsideWait::new()?;
        let mut echo = Echo::new(&args, local);
        report::listening(local)?;
        serve(&mut echo, &socket, &signals)?;
        echo.finish(&socket)
    }

    fn serve(echo: &mut Echo, socket: &UdpSocket, signals: &stop::InsideWait) -> Result<()> {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        let mut drained = true;
        while !echo.is_done() {
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::POLLIN, echo.wants_recv());
            interest.set(PollFlags::POLLOUT, echo.wants_send());
            fds[0].set_events(interest);

            let timeout = echo.timeout().map(TimeSpec::from_duration);
            echo.report().waits += 1;
            match ppoll(&mut fds, timeout, Some(signals.mask())) {
                Err(Errno::EINTR) => {}
                ready => drop(ready.attempt("wait with ppoll")?),
            }
            // A wait that finds something ready does not let a signal in: under a flood, look for one now and then, and
            // after each turn that stopped at its limit.
            if !drained || echo.report().waits % 256 == 0 {
                signals.look()?;
            }
            if stop::requested() {
                echo.stop();
            }
            drained = drain(echo, socket)?;
        }
        Ok(())
    }

    /// poll is level-triggered: what is left behind is reported again, so the limit costs a wait and loses nothing.
    /// `true` once a receive would have blocked.
    fn drain(echo: &mut Echo, socket: &UdpSocket) -> Result<bool> {
        echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?;
        for _ in 0..DRAIN_LIMIT {
            match echo.receive(|slot| socket.recv_from(slot))? {
                Progress::Made => echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?,
                Progress::WouldBlock => return Ok(true),
                Progress::Full => break,
            }
        }
        Ok(false)
    }
}
