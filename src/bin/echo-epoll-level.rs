//! UDP echo over level-triggered epoll(7): interest is registered once, and a wait returns for as long as it is met.
//!
//! Run:             cargo run --bin echo-epoll-level --features epoll
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto for each echo; no EPOLLET; epoll_ctl(EPOLL_CTL_MOD) only when the
//!                  interest changes: EPOLLOUT is asked for only while something waits to be sent.
//! Left out:        draining. Waiting once for each datagram is simple, but costs a third system call: echo-poll-drain.
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
    use echo_lab::{Attempt, Echo, Result, cli, net, report, stop};
    use nix::errno::Errno;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use nix::sys::signalfd::SignalFd;
    use std::net::UdpSocket;

    const SOCKET: u64 = 0;
    const SIGNAL: u64 = 1;

    pub fn main() -> Result<()> {
        let args = cli::parse(env!("CARGO_BIN_NAME"));
        let socket = net::bind(&args)?;
        socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
        let local = socket.local_addr().attempt("read the bound address")?;
        let signals = stop::descriptor()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("create an epoll instance")?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, SOCKET)).attempt("register the socket")?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNAL)).attempt("register the signal descriptor")?;
        let mut echo = Echo::new(&args, local);
        report::listening(local)?;
        serve(&mut echo, &socket, &epoll, &signals)?;
        echo.finish(&socket)
    }

    fn serve(echo: &mut Echo, socket: &UdpSocket, epoll: &Epoll, signals: &SignalFd) -> Result<()> {
        let mut events = [EpollEvent::empty(); 2];
        let mut interest = EpollFlags::EPOLLIN;
        while !echo.is_done() {
            // A socket nearly always has room to send: with EPOLLOUT registered, every wait would return at once. And with
            // a full queue EPOLLIN would do the same, as long as a datagram is there that the program does not take.
            let mut wanted = EpollFlags::empty();
            wanted.set(EpollFlags::EPOLLIN, echo.wants_recv());
            wanted.set(EpollFlags::EPOLLOUT, echo.wants_send());
            if wanted != interest {
                epoll.modify(socket, &mut EpollEvent::new(wanted, SOCKET)).attempt("change the interest")?;
                interest = wanted;
            }

            let timeout =
                echo.timeout().map_or(EpollTimeout::NONE, |left| left.try_into().unwrap_or(EpollTimeout::MAX));
            echo.report().waits += 1;
            let ready = match epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                ready => ready.attempt("wait with epoll")?,
            };
            for event in &events[..ready] {
                match event.data() {
                    SIGNAL => {
                        signals.read_signal().attempt("read the signal descriptor")?;
                        echo.stop();
                    }
                    _ => answer(echo, socket, event.events())?,
                }
            }
        }
        Ok(())
    }

    /// What an event of the socket asks for. One datagram is enough: as long as another is there, the next wait returns.
    fn answer(echo: &mut Echo, socket: &UdpSocket, events: EpollFlags) -> Result<()> {
        // EPOLLERR is always reported; a receive takes the error from the socket, or it would be reported for ever.
        if events != EpollFlags::EPOLLOUT {
            echo.receive(|slot| socket.recv_from(slot))?;
        }
        echo.send_queued(|datagram, peer| socket.send_to(datagram, peer))
    }
}
