//! What becomes of the datagrams that an edge-triggered reader leaves behind? They stay in the socket, unreported: an edge
//! is an arrival, not a state. Even the next arrival only reports itself, so a reader that takes one datagram an event
//! stays behind for ever. What to do about it: receive until EAGAIN before each wait, or remember that you did not
//! (echo-epoll-edge does both); see epoll(7), "Level-triggered and edge-triggered".
//!
//! Run:             cargo run --bin probe-edge-undrained --features epoll
//! Second terminal: nothing: it sends to itself
//! In the trace:    an epoll_wait that times out while datagrams are there.
//! Left out:        a full receive buffer: after a while the kernel drops what arrives, and reports no more.
//! Oldest system:   Linux 3.2, which the standard library needs; epoll is older.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "epoll")
}

#[cfg(target_os = "linux")]
use {
    echo_lab::{Attempt, Result, report::print_line},
    nix::errno::Errno,
    nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
    std::net::UdpSocket,
};

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").attempt("bind a socket")?;
    let own = socket.local_addr().attempt("read the bound address")?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("create an epoll instance")?;
    let edge = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
    epoll.add(&socket, edge).attempt("register the socket")?;

    let send = || socket.send_to(b"x", own).map(drop).attempt("send");
    let wait = || loop {
        match epoll.wait(&mut [EpollEvent::empty(); 8], 100u8) {
            Err(Errno::EINTR) => {}
            events => return events.attempt("wait with epoll"),
        }
    };
    let receive = || socket.recv(&mut [0; 8]).is_ok();

    (0..3).try_for_each(|_| send())?;
    print_line(format_args!("3 datagrams sent; events: {}", wait()?))?;
    receive();
    print_line(format_args!("1 received, 2 are left; events in 100 ms: {}", wait()?))?;
    send()?;
    print_line(format_args!("1 more sent; events: {}", wait()?))?;
    receive();
    print_line(format_args!("1 received, 2 are left; events in 100 ms: {}", wait()?))?;
    let left = std::iter::repeat_with(receive).take_while(|received| *received).count();
    print_line(format_args!("received until EAGAIN: {left}"))
}
