//! What does a socket that stays registered with epoll cost each send? When a datagram leaves the socket's send buffer, the
//! kernel looks for someone who waits for room there (sock_wfree, sock_def_write_space in net/core/sock.c). epoll always
//! is one, whatever it was asked to report, and is called to find that nobody asked for writability. A program may
//! register its socket only while it waits. That pays if one wait serves enough datagrams, since it takes two system
//! calls more for each wait. echo-tokio-batch does so.
//!
//! Run:             cargo run --bin probe-register-per-wait --features epoll
//! Second terminal: nothing: it sends to itself
//! In the trace:    sendto; EPOLL_CTL_ADD and EPOLL_CTL_DEL.
//! Left out:        a network card. There a datagram mostly leaves the buffer when the card has sent it, so the cost falls
//!                  on whoever handles that interrupt; on loopback it falls on the sender.
//! Oldest system:   Linux 3.2, as Rust's standard library.

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
    use clap::{Parser, value_parser};
    use echo_lab::{Attempt, Result, report::print_line};
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    use std::net::{Ipv4Addr, UdpSocket};
    use std::time::Instant;

    /// What does a socket that stays registered with epoll cost each send?
    #[derive(Parser)]
    #[command(version)]
    struct Args {
        /// How often each of the three is timed; the median counts
        #[arg(long, value_name = "N", default_value_t = 1001, value_parser = value_parser!(u32).range(1..=100_000))]
        rounds: u32,

        /// Datagrams sent in one round; a receive buffer has to hold them
        #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u32).range(1..=64))]
        burst: u32,
    }

    pub fn main() -> Result<()> {
        let args = Args::parse();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).attempt("bind a socket")?;
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).attempt("bind a socket")?;
        socket.connect(receiver.local_addr().attempt("read an address")?).attempt("connect a socket")?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("create an epoll instance")?;
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);

        // In turn, so that a change in the machine's speed concerns all three.
        let (mut free, mut registered, mut changes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..args.rounds {
            free.push(burst(args.burst, &socket, &receiver)?);
            let start = Instant::now();
            epoll.add(&socket, readable).attempt("register the socket")?;
            let added = start.elapsed();
            registered.push(burst(args.burst, &socket, &receiver)?);
            let start = Instant::now();
            epoll.delete(&socket).attempt("end the registration")?;
            changes.push((added + start.elapsed()).as_nanos() as f64);
        }
        let (free, registered, changes) = (median(free), median(registered), median(changes));
        print_line(format_args!("{:<32}{free:>12.0} ns", "a send, socket not registered"))?;
        print_line(format_args!(
            "{:<32}{registered:>12.0} ns, {:.2} times",
            "a send, socket registered",
            registered / free
        ))?;
        print_line(format_args!("{:<32}{changes:>12.0} ns", "to register and deregister"))
    }

    /// Nanoseconds for each send of a burst.
    fn burst(count: u32, socket: &UdpSocket, receiver: &UdpSocket) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..count {
            socket.send(&[0; 64]).attempt("send")?;
        }
        let took = start.elapsed().as_nanos() as f64 / f64::from(count);
        for _ in 0..count {
            receiver.recv(&mut [0; 64]).attempt("receive")?;
        }
        Ok(took)
    }

    fn median(mut values: Vec<f64>) -> f64 {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }
}
