//! UDP echo over poll(2): as select, without the limit on descriptors, and without sets to rebuild.
//!
//! Run:             cargo run --bin echo-poll --features poll
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    ppoll, recvfrom, sendto for each echo. POLLOUT is asked for only while something waits to be sent.
//! Left out:        draining. Waiting once for each datagram is simple, but costs a third system call: echo-poll-drain.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   Linux 3.2 or FreeBSD 12, which the standard library needs, with ppoll: its signal mask closes the window
//!                  between a check and the wait.

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
    use echo_lab::{Attempt, Echo, Result, cli, net, report, stop};
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, ppoll};
    use nix::sys::time::TimeSpec;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

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
        while !echo.is_done() {
            // A socket nearly always has room to send: with POLLOUT asked for all the time, no wait would ever wait.
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
            // A wait that finds something ready does not let a signal in: under a flood, look for one now and then.
            if echo.report().waits % 256 == 0 {
                signals.look()?;
            }
            if stop::requested() {
                echo.stop();
            }

            // POLLERR is reported even if nobody asked for it; a receive takes the error from the socket.
            if fds[0].revents().is_some_and(|ready| !ready.is_empty() && ready != PollFlags::POLLOUT) {
                echo.receive(|slot| socket.recv_from(slot))?;
            }
            echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?;
        }
        Ok(())
    }
}
