//! UDP echo over select(2): one thread waits until it can receive, or until it can send what would have blocked.
//!
//! Run:             cargo run --bin echo-select --features select
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    pselect6, recvfrom, sendto for each echo. The write set is empty unless a send would have blocked,
//!                  and both sets are built anew for each wait: that is the interface.
//! Left out:        draining. Waiting once for each datagram is simple, but costs a third system call: echo-poll-drain.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   POSIX.1-2001, for pselect: its signal mask closes the window between a check and the wait.

#[cfg(not(unix))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "pselect(2)")
}

#[cfg(unix)]
fn main() -> echo_lab::Result<()> {
    posix::main()
}

#[cfg(unix)]
mod posix {
    use echo_lab::{Attempt, Echo, Error, Result, cli, net, report, stop};
    use nix::errno::Errno;
    use nix::sys::select::{FD_SETSIZE, FdSet, pselect};
    use nix::sys::time::TimeSpec;
    use std::net::UdpSocket;
    use std::os::fd::{AsFd, AsRawFd};

    pub fn main() -> Result<()> {
        let args = cli::parse(env!("CARGO_BIN_NAME"));
        let socket = net::bind(&args)?;
        // A set is an array of FD_SETSIZE bits, which no call checks (select(2), BUGS).
        let fd = socket.as_raw_fd();
        if fd as usize >= FD_SETSIZE {
            let what = format!("descriptor {fd}: a set holds those below {FD_SETSIZE}");
            return Err(Error::new(format!("cannot select on {what}; try echo-poll")));
        }
        socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
        let local = socket.local_addr().attempt("read the bound address")?;
        let signals = stop::InsideWait::new()?;
        let mut echo = Echo::new(&args, local);
        report::listening(local)?;
        serve(&mut echo, &socket, &signals)?;
        echo.finish(&socket)
    }

    fn serve(echo: &mut Echo, socket: &UdpSocket, signals: &stop::InsideWait) -> Result<()> {
        while !echo.is_done() {
            // pselect leaves in the sets what is ready, so they are filled anew before each wait. A socket nearly always has
            // room to send: with it in the write set all the time, no wait would ever wait.
            let (mut read, mut write) = (FdSet::new(), FdSet::new());
            if echo.wants_recv() {
                read.insert(socket.as_fd());
            }
            if echo.wants_send() {
                write.insert(socket.as_fd());
            }

            let timeout = echo.timeout().map(TimeSpec::from_duration);
            let highest = socket.as_raw_fd() + 1;
            echo.report().waits += 1;
            match pselect(highest, &mut read, &mut write, None, timeout.as_ref(), &signals.mask()) {
                // After an error the sets say nothing.
                Err(Errno::EINTR) => read.clear(),
                ready => drop(ready.attempt("wait with pselect")?),
            }
            // A wait that finds something ready does not let a signal in: under a flood, look for one now and then.
            if echo.report().waits % 256 == 0 {
                signals.look()?;
            }
            if stop::requested() {
                echo.stop();
            }

            if read.contains(socket.as_fd()) {
                echo.receive(|slot| socket.recv_from(slot))?;
            }
            // Readiness is a hint: try to send whatever the write set says. What would block stays queued.
            echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?;
        }
        Ok(())
    }
}
