//! UDP echo over edge-triggered epoll(7). epoll reports that the socket *became* readable, once: the program has to
//! receive until EAGAIN before it waits again, or the datagrams it left behind are never reported.
//!
//! Run:             cargo run --bin echo-epoll-edge --features epoll
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN. Under load one wait serves
//!                  many datagrams. EPOLLOUT is asked for only while something waits to be sent.
//! Left out:        a fair share for other sockets: DRAIN_LIMIT only keeps a flood from hiding the stop signal.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   Linux 3.2, which the standard library needs; epoll is older, and so is signalfd, by which the stop
//!                  signal is one more readable descriptor.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "epoll(7)")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use echo_lab::{Attempt, Echo, Progress, Result, cli, net, report, stop};
    use nix::errno::Errno;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use nix::sys::signalfd::SignalFd;
    use std::net::UdpSocket;

    const SOCKET: u64 = 0;
    const SIGNAL: u64 = 1;
    /// Datagrams received before the loop looks at the signal descriptor again.
    const DRAIN_LIMIT: usize = 256;

    pub fn main() -> Result<()> {
        let args = cli::parse(env!("CARGO_BIN_NAME"));
        let socket = net::bind(&args)?;
        socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
        let local = socket.local_addr().attempt("read the bound address")?;
        let signals = stop::descriptor()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("create an epoll instance")?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(&socket, EpollEvent::new(edge, SOCKET)).attempt("register the socket")?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNAL)).attempt("register the signal descriptor")?;
        let mut echo = Echo::new(&args, local);
        report::listening(local)?;
        serve(&mut echo, &socket, &epoll, &signals)?;
        echo.finish(&socket)
    }

    fn serve(echo: &mut Echo, socket: &UdpSocket, epoll: &Epoll, signals: &SignalFd) -> Result<()> {
        let mut events = [EpollEvent::empty(); 2];
        let mut interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let mut drained = true;
        while !echo.is_done() {
            // Ask for writability only while a send is blocked. EPOLL_CTL_MOD reports what is ready already
            // (epoll_ctl(2)), so a socket that became writable since the EAGAIN is not missed.
            let mut wanted = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            wanted.set(EpollFlags::EPOLLOUT, echo.wants_send());
            if wanted != interest {
                epoll.modify(socket, &mut EpollEvent::new(wanted, SOCKET)).attempt("change the interest")?;
                interest = wanted;
            }

            // If the last turn stopped short of EAGAIN, no edge will report the rest: look at the signal, do not sleep.
            let timeout = match echo.timeout() {
                _ if !drained => EpollTimeout::ZERO,
                Some(left) => left.try_into().unwrap_or(EpollTimeout::MAX),
                None => EpollTimeout::NONE,
            };
            echo.report().waits += 1;
            let ready = match epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                ready => ready.attempt("wait with epoll")?,
            };
            if events[..ready].iter().any(|event| event.data() == SIGNAL) {
                signals.read_signal().attempt("read the signal descriptor")?;
                echo.stop();
            }

            drained = drain(echo, socket)?;
        }
        Ok(())
    }

    /// What edge triggering asks for: receive until EAGAIN. `false` if there may be more.
    fn drain(echo: &mut Echo, socket: &UdpSocket) -> Result<bool> {
        echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?;
        for _ in 0..DRAIN_LIMIT {
            match echo.receive(|slot| socket.recv_from(slot))? {
                Progress::Made => echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))?,
                // With a full queue EPOLLOUT is the event to wait for: it brings the loop back here.
                Progress::WouldBlock | Progress::Full => return Ok(true),
            }
        }
        Ok(false)
    }
}
