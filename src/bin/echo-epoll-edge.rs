//! UDP echo over edge-triggered epoll(7): a wait returns when something arrives, once. So the program has to receive
//! until nothing is left before it waits again, or what is left stays there unseen.
//!
//! Run:             cargo run --bin echo-epoll-edge --features epoll
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvfrom, sendto, and the recvfrom that ends with EAGAIN. Under load one wait serves
//!                  many datagrams. EPOLLOUT is asked for only while something waits to be sent. With
//!                  --register-per-wait EPOLL_CTL_ADD and _DEL around each wait: see METHODOLOGY.md for what that spares.
//! Left out:        a fair share for other sockets: DRAIN_LIMIT only keeps a flood from hiding the stop signal.
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
    std::net::UdpSocket,
};

#[cfg(target_os = "linux")]
const SOCKET: u64 = 0;
#[cfg(target_os = "linux")]
const SIGNAL: u64 = 1;
#[cfg(target_os = "linux")]
const IDLE: u64 = 2;
/// Datagrams received before the loop looks at the other descriptors.
#[cfg(target_os = "linux")]
const DRAIN_LIMIT: usize = 256;

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    let (args, idle, register_per_wait) = cli::parse_with_registration(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let signals = stop::descriptor()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("create an epoll instance")?;
    epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNAL)).attempt("register the signal descriptor")?;
    let idle = net::idle(idle)?;
    for socket in &idle {
        epoll
            .add(socket, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, IDLE))
            .attempt("register an idle socket")?;
    }
    let mut echo = Echo::new(&args, local);
    let mut events = [EpollEvent::empty(); 2];
    let (mut interest, mut more) = (None, false);
    report::listening(local)?;

    while !echo.is_done() {
        let mut wanted = EpollFlags::EPOLLET;
        // A socket that is registered anew each time would report what there is no room for, each time.
        wanted.set(EpollFlags::EPOLLIN, !register_per_wait || echo.wants_recv());
        wanted.set(EpollFlags::EPOLLOUT, echo.wants_send());
        // Both report what is ready already, so nothing is missed between EAGAIN and here.
        let mut event = EpollEvent::new(wanted, SOCKET);
        match interest.replace(wanted) {
            None => epoll.add(&socket, event).attempt("register the socket")?,
            Some(before) if before == wanted => {}
            Some(_) => epoll.modify(&socket, &mut event).attempt("change the interest in the socket")?,
        }
        let timeout = match echo.timeout() {
            _ if more => EpollTimeout::ZERO, // No edge will tell of what was left behind.
            Some(left) => left.try_into().unwrap_or(EpollTimeout::MAX),
            None => EpollTimeout::NONE,
        };
        echo.report().waits += 1;
        let ready = match epoll.wait(&mut events, timeout) {
            Ok(ready) => ready,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).attempt("wait with epoll"),
        };
        if register_per_wait {
            epoll.delete(&socket).attempt("end the registration of the socket")?;
            interest = None;
        }
        for event in &events[..ready] {
            if event.data() == SIGNAL {
                signals.read_signal().attempt("read the signal descriptor")?;
                echo.stop();
            }
        }

        send_queued(&mut echo, &socket)?;
        let mut progress = Progress::Made;
        for _ in 0..DRAIN_LIMIT {
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
    echo.finish(&socket)
}

#[cfg(target_os = "linux")]
fn send_queued(echo: &mut Echo, socket: &UdpSocket) -> Result<()> {
    while let Some((datagram, peer)) = echo.front() {
        let result = socket.send_to(datagram, peer);
        if echo.sent(result)? == Progress::WouldBlock {
            break;
        }
    }
    Ok(())
}
