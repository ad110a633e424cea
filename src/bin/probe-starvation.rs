//! Who waits while a loop drains a busy socket? Every other socket, for as long as datagrams come as fast as they are taken:
//! the wait has named them all as readable, but the loop does not get to the next one before it has seen EAGAIN. What to do
//! about it: give each socket a turn of so many datagrams (`--drain-limit`). The price is one more wait for each turn.
//! Level-triggered, the kernel reports what was left behind; edge-triggered, remember it (probe-edge-undrained).
//!
//! Run:             cargo run --bin probe-starvation --features epoll -- --drain-limit 32
//! Second terminal: nothing: it sends to itself; leave the limit out and compare
//! In the trace:    between an epoll_wait that reports two events and the second socket's recvfrom: all of the first's.
//! Left out:        two threads, which would share the core but not the turn.
//! Oldest system:   Linux 3.2, which the standard library needs; every loop that drains has the question.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "epoll")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use clap::{Parser, value_parser};
    use echo_lab::{Attempt, Result, report::print_line};
    use nix::errno::Errno;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use std::io;
    use std::net::UdpSocket;

    /// Who waits while a loop drains a busy socket?
    #[derive(Parser)]
    #[command(version)]
    struct Args {
        /// Datagrams taken from one socket in a turn; without it, until EAGAIN
        #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
        drain_limit: Option<u32>,

        /// Datagrams that come to the busy socket: the next when one is taken
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u32).range(1..))]
        busy: u32,
    }

    /// The polite socket's datagrams: the next when the turn with its answer is over.
    const POLITE: usize = 3;

    pub fn main() -> Result<()> {
        let args = Args::parse();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("create an epoll instance")?;
        let [busy, polite] = [socket().attempt("create a socket")?, socket().attempt("create a socket")?];
        for (socket, token) in [(&busy, 0), (&polite, 1)] {
            epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, token)).attempt("register a socket")?;
            socket.send(b"x").attempt("send")?;
        }
        let (mut taken, mut waits, mut served_after) = (0, 0, Vec::new());
        while taken < args.busy || served_after.len() < POLITE {
            let mut events = [EpollEvent::empty(); 2];
            let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => 0,
                ready => ready.attempt("wait with epoll")?,
            };
            waits += 1;
            let served = served_after.len();
            for event in &events[..ready] {
                let socket = if event.data() == 0 { &busy } else { &polite };
                for _ in 0..args.drain_limit.unwrap_or(u32::MAX) {
                    if !receive(socket).attempt("receive")? {
                        break;
                    }
                    if event.data() == 1 {
                        served_after.push(taken.to_string());
                        continue;
                    }
                    taken += 1;
                    if taken < args.busy {
                        busy.send(b"x").attempt("send")?;
                    }
                }
            }
            if served < served_after.len() && served_after.len() < POLITE {
                polite.send(b"x").attempt("send")?;
            }
        }
        let limit = args.drain_limit.map_or("until EAGAIN".into(), |limit| format!("at most {limit} in a turn"));
        let after = served_after.join(", ");
        print_line(format_args!(
            "{limit}: the polite one was served after {after} of the busy one's {taken}; waits: {waits}"
        ))
    }

    /// A socket that sends to itself.
    fn socket() -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(socket.local_addr()?)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Whether there was a datagram.
    fn receive(socket: &UdpSocket) -> io::Result<bool> {
        match socket.recv(&mut [0; 8]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            result => result.map(|_| true),
        }
    }
}
