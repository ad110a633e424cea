//! What does an echo server answer, and how soon? Sends each line that you type, and prints the answer and the time it took.
//! For the second terminal, where there is no `nc`.
//!
//! Run:             cargo run --bin say
//! Second terminal: a server, such as cargo run --bin echo-blocking; over TCP, with --tcp, echo-tcp-threads
//! In the trace:    sendto and recvfrom for each line.
//! Left out:        more than one line on its way. `compare` and `pingpong` measure; this shows.
//! Oldest system:   any.

use clap::{Parser, value_parser};
use echo_lab::{Attempt, Error, Result, report::print_line};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// What does an echo server answer, and how soon? Sends each line of standard input, and prints the answer
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The server
    #[arg(default_value = "127.0.0.1:2000")]
    server: SocketAddr,

    /// Over TCP; without it each line is a UDP datagram
    #[arg(long)]
    tcp: bool,

    /// How long to wait for an answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = value_parser!(u32).range(1..))]
    patience: u32,
}

enum Server {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

fn main() -> Result<()> {
    let Args { server: at, tcp, patience } = Args::parse();
    let patience = Duration::from_millis(patience.into());
    let mut server = Server::new(at, tcp).map_err(|error| unreachable(at, tcp, &error))?;
    let mut unanswered = 0;
    for line in io::stdin().lines() {
        let line = line.attempt("read standard input")?;
        let sent = format!("{line}\n");
        let start = Instant::now();
        match server.echo(sent.as_bytes(), start + patience) {
            Ok(()) => print_line(format_args!("{line}    ({:.1?})", start.elapsed()))?,
            Err(error) if tcp || error.kind() != ErrorKind::WouldBlock => return Err(unreachable(at, tcp, &error)),
            Err(_) => {
                unanswered += 1;
                print_line(format_args!("no answer in {patience:?}"))?;
            }
        }
    }
    if unanswered == 0 {
        Ok(())
    } else {
        Err(Error::new(format!("{at} left {unanswered} datagrams without an answer")))
    }
}

fn unreachable(at: SocketAddr, tcp: bool, error: &io::Error) -> Error {
    let (protocol, example) = if tcp { ("TCP", "echo-tcp-threads") } else { ("UDP", "echo-blocking") };
    Error::new(format!("cannot get an echo from {protocol} {at}: {error}; try cargo run --bin {example} first"))
}

impl Server {
    fn new(at: SocketAddr, tcp: bool) -> io::Result<Self> {
        if tcp {
            return TcpStream::connect(at).map(Self::Tcp);
        }
        let any: SocketAddr =
            if at.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let socket = UdpSocket::bind(any)?;
        // Only a connected socket hears that nobody listens (probe-icmp).
        socket.connect(at)?;
        Ok(Self::Udp(socket))
    }

    /// Sends `line`, and returns when it has come back. Fails with `WouldBlock` at the `deadline`.
    fn echo(&mut self, line: &[u8], deadline: Instant) -> io::Result<()> {
        let mut answer = vec![0; line.len() + 1];
        match self {
            Self::Udp(socket) => {
                socket.send(line)?;
                loop {
                    socket.set_read_timeout(Some(left(deadline)?))?;
                    let len = socket.recv(&mut answer).map_err(late)?;
                    // Another one is the late answer to an earlier line.
                    if &answer[..len] == line {
                        return Ok(());
                    }
                }
            }
            Self::Tcp(stream) => {
                stream.write_all(line)?;
                let mut got = 0;
                while got < line.len() {
                    stream.set_read_timeout(Some(left(deadline)?))?;
                    match stream.read(&mut answer[got..line.len()]).map_err(late)? {
                        0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection")),
                        count => got += count,
                    }
                }
                if &answer[..got] == line { Ok(()) } else { Err(io::Error::other("it sent something else")) }
            }
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::WouldBlock.into()) } else { Ok(left) }
}

/// A receive that has run out of time fails with `TimedOut` on Windows (std::net::UdpSocket::set_read_timeout).
fn late(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::TimedOut { ErrorKind::WouldBlock.into() } else { error }
}
