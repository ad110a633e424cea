//! UDP echo over level-triggered epoll(7): interest is registered once, and a wait returns for as long as it is met.
//!
//! Run:             cargo run --bin echo-epoll-level --features epoll
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto for each echo; no EPOLLET; epoll_ctl(EPOLL_CTL_MOD) only when the
//!                  interest changes: EPOLLOUT is asked for only while something waits to be sent.
//! Left out:        draining. A wait for each datagram is simple, and a third system call for each.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   Linux 3.2, which the standard library needs; epoll is older, and so is signalfd, by which the stop
//!                  signal is one more readable descriptor.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "epoll(7)")
}

#[cfg(target_os = "linux")]
use {
    echo_lab::{Attempt, Echo, Progress, Result, cli, net, report, stop},
    nix::errno::Errno,
    nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

#[cfg(target_os = "linux")]
const SOCKET: u64 = 0;
#[cfg(target_os = "linux")]
const SIGNAL: u64 = 1;
#[cfg(target_os = "linux")]
const IDLE: u64 = 2;

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    let (args, idle) = cli::parse_with_idle(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let signals = stop::descriptor()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("create an epoll instance")?;
    let mut interest = EpollFlags::EPOLLIN;
    epoll.add(&socket, EpollEvent::new(interest, SOCKET)).attempt("register the socket")?;
    epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNAL)).attempt("register the signal descriptor")?;
    let idle = net::idle(idle)?;
    for socket in &idle {
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, IDLE)).attempt("register an idle socket")?;
    }
    let mut echo = Echo::new(&args, local);
    let mut events = [EpollEvent::empty(); 2];
    report::listening(local)?;

    while !echo.is_done() {
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLIN, echo.wants_recv());
        wanted.set(EpollFlags::EPOLLOUT, echo.wants_send());
        if wanted != interest {
            epoll.modify(&socket, &mut EpollEvent::new(wanted, SOCKET)).attempt("change the interest in the socket")?;
            interest = wanted;
        }
        let timeout = echo.timeout().map_or(EpollTimeout::NONE, |left| left.try_into().unwrap_or(EpollTimeout::MAX));
        echo.report().waits += 1;
        let ready = match epoll.wait(&mut events, timeout) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).attempt("wait with epoll"),
        };

        let mut readable = false;
        for event in &events[..ready] {
            match event.data() {
                SIGNAL => {
                    signals.read_signal().attempt("read the signal descriptor")?;
                    echo.stop();
                }
                // An error on the socket (EPOLLERR) is taken from it by a receive.
                SOCKET => readable = event.events() != EpollFlags::EPOLLOUT,
                _ => {}
            }
        }
        if readable {
            if let Some(slot) = echo.vacant() {
                let result = socket.recv_from(slot);
                echo.received(result)?;
            }
        }
        while let Some((datagram, peer)) = echo.front() {
            let result = socket.send_to(datagram, peer);
            if echo.sent(result)? == Progress::WouldBlock {
                break;
            }
        }
    }
    echo.finish(&socket)
}
