//! How do socket events and events of another thread meet in one poll? The socket is registered; the thread has a
//! Waker, which is one more source with a token of its own.
//!
//! Run:             cargo run --bin mio-mixed
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    the thread's write to the eventfd, and the epoll_wait of the main thread that it ends.
//! Left out:        echo. Datagrams are only received.
//! Oldest system:   what mio supports: Linux, the BSDs, macOS, Windows and others.

use clap::Parser;
use echo_lab::policy::{Verdict, on_recv};
use echo_lab::report::{listening, print_line};
use echo_lab::{Attempt, Result};
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token, Waker};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

const SOCKET: Token = Token(0);
const TIMER: Token = Token(1);

/// How do socket events and events of another thread meet in one poll?
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Local address and UDP port; port 0 lets the kernel pick a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2000")]
    bind: SocketAddr,
    /// Time between two events of the thread, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    interval: u64,
    /// End after N datagrams and timer events together
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true,
          value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut poll = Poll::new().attempt("create a poll")?;
    let mut socket = UdpSocket::bind(args.bind).attempt(format_args!("bind UDP {}", args.bind))?;
    poll.registry().register(&mut socket, SOCKET, Interest::READABLE).attempt("register the socket")?;
    let waker = Waker::new(poll.registry(), TIMER).attempt("create a waker")?;
    let interval = Duration::from_millis(args.interval);
    listening(socket.local_addr().attempt("read the bound address")?)?;
    // Ends with the process, or with the poll that it wakes.
    thread::spawn(move || {
        loop {
            thread::sleep(interval);
            if waker.wake().is_err() {
                break;
            }
        }
    });

    let mut buffer = vec![0; 65536];
    let mut events = Events::with_capacity(8);
    let (mut seen, mut ticks) = (0, 0);
    while seen < args.count {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).attempt("poll"),
            _ => {}
        }
        for event in &events {
            // The last datagram may have come in the same batch as a timer event.
            if seen == args.count {
                break;
            }
            if event.token() == TIMER {
                (seen, ticks) = (seen + 1, ticks + 1);
                print_line(format_args!("timer {ticks}"))?;
                continue;
            }
            while seen < args.count {
                match socket.recv_from(&mut buffer) {
                    Ok((len, peer)) => {
                        seen += 1;
                        print_line(format_args!("received {len} bytes from {peer}"))?;
                    }
                    Err(error) => match on_recv(&error) {
                        Verdict::WouldBlock => break,
                        Verdict::Fatal => return Err(error).attempt("receive"),
                        Verdict::Interrupted | Verdict::OnlyThis => {}
                    },
                }
            }
        }
    }
    Ok(())
}
