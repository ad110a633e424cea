//! The contract of every TCP echo server, on every system: bytes come back exactly, however they are cut and whoever
//! else is connected.

use crate::server::{PATIENCE, Server, content};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::Row;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub fn checks() -> Vec<Check> {
    let table: [(&str, Run); 10] = [
        ("bytes_come_back", |row| bytes_come_back(row, "127.0.0.1:0")),
        ("bytes_come_back_ipv6", |row| bytes_come_back(row, "[::1]:0")),
        ("small_buffer", small_buffer),
        ("half_close", half_close),
        ("never_reads", never_reads),
        ("one_byte_a_second", one_byte_a_second),
        ("reset_in_the_middle", reset_in_the_middle),
        ("thousand_connections", thousand_connections),
        ("connection_storm", connection_storm),
        ("verbose", verbose),
    ];
    table.map(|(name, run)| check(name, Needs::Nothing, run)).into()
}

/// One end of a connection to a server.
pub struct Peer(pub TcpStream);

impl Peer {
    pub fn new(server: &Server) -> Self {
        let stream = TcpStream::connect(server.addr).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub fn write(&self, bytes: &[u8]) {
        (&self.0).write_all(bytes).expect("written");
    }

    /// The next bytes are these.
    pub fn expect(&self, bytes: &[u8]) {
        let mut found = vec![0; bytes.len()];
        (&self.0).read_exact(&mut found).expect("an echo");
        assert!(found == bytes, "other bytes came back than the {} sent", bytes.len());
    }

    /// Writes, and reads the same again.
    pub fn echo(&self, bytes: &[u8]) {
        self.write(bytes);
        self.expect(bytes);
    }

    /// The stream ends here, or the server has reset it.
    pub fn expect_end(&self) {
        match (&self.0).read(&mut [0]) {
            Ok(0) => {}
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted) => {}
            other => panic!("{other:?} in place of the end"),
        }
    }

    /// Writes until nothing more goes in: how much. Nobody reads the echo.
    pub fn fill(&self) -> usize {
        self.0.set_nonblocking(true).unwrap();
        let (mut written, mut last) = (0, Instant::now());
        while last.elapsed() < Duration::from_millis(300) {
            match (&self.0).write(&content(written as u64, 65536)) {
                Ok(count) => (written, last) = (written + count, Instant::now()),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
        self.0.set_nonblocking(false).unwrap();
        written
    }

    /// Reads what [`fill`](Self::fill) wrote.
    pub fn drain(&self, len: usize) {
        let mut read = 0;
        while read < len {
            let count = 65536.min(len - read);
            self.expect(&content(read as u64, count));
            read += count;
        }
    }
}

/// Connects, with the kernel's patience for a full accept queue.
pub fn connect_all(server: &Server, count: usize) -> Vec<Peer> {
    (0..count).map(|_| Peer::new(server)).collect()
}

/// For checks that need thousands of descriptors: one at a time.
pub fn alone<T>(run: impl FnOnce() -> T) -> T {
    static ALONE: Mutex<()> = Mutex::new(());
    let _held = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run()
}

/// Sends `len` bytes in pieces of random size while it reads the echo.
fn stream(peer: &Peer, len: usize, largest: u64) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut written, mut random) = (0, 88_172_645_463_325_252u64);
            while written < len {
                // Marsaglia, Xorshift RNGs (2003).
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let piece = (1 + random % largest) as usize;
                let piece = piece.min(len - written);
                peer.write(&content(written as u64, piece));
                written += piece;
            }
        });
        peer.drain(len);
    });
}

fn bytes_come_back(row: &Row, at: &str) {
    let server = Server::start(row, &["--bind", at]);
    let peer = Peer::new(&server);
    peer.echo(b"x");
    stream(&peer, 64 << 10, 1500);
    stream(&Peer::new(&server), 64 << 20, 300_000);
    peer.echo(b"y");
    server.stop();
}

/// Of one byte, so that everything is cut where it can be.
fn small_buffer(row: &Row) {
    let server = Server::start(row, &["--buffer", "1"]);
    stream(&Peer::new(&server), 4096, 100);
    server.stop();
}

/// Who sends no more still gets the rest, then the end.
fn half_close(row: &Row) {
    let server = Server::start(row, &[]);
    for len in [0, 1, 1 << 20] {
        let peer = Peer::new(&server);
        thread::scope(|scope| {
            scope.spawn(|| {
                peer.write(&content(0, len));
                peer.0.shutdown(Shutdown::Write).unwrap();
            });
            peer.drain(len);
        });
        peer.expect_end();
    }
    server.stop();
}

/// The server stops reading from it, and serves the others.
fn never_reads(row: &Row) {
    let server = Server::start(row, &[]);
    let polite = Peer::new(&server);
    polite.echo(b"warm");
    let silent = connect_all(&server, 4);
    let written: Vec<_> = silent.iter().map(Peer::fill).collect();
    (0..100).for_each(|_| polite.echo(b"still served"));
    silent.iter().zip(written).for_each(|(peer, len)| peer.drain(len));
    server.stop();
}

fn one_byte_a_second(row: &Row) {
    let server = Server::start(row, &[]);
    let peer = Peer::new(&server);
    for byte in b"slow" {
        peer.echo(&[*byte]);
        thread::sleep(Duration::from_secs(1));
    }
    server.stop();
}

/// Closes so that the server sees a reset (RST): with what it sent unread.
pub fn reset(peer: Peer) {
    socket2::SockRef::from(&peer.0).set_linger(Some(Duration::ZERO)).unwrap();
}

fn reset_in_the_middle(row: &Row) {
    let server = Server::start(row, &[]);
    let polite = Peer::new(&server);
    for round in 0..20 {
        let peer = Peer::new(&server);
        peer.write(&content(0, 100_000));
        if round % 2 == 0 {
            peer.expect(&content(0, 1000));
        }
        reset(peer);
        polite.echo(b"still served");
    }
    // While the server holds what it could not write.
    for _ in 0..2 {
        let peer = Peer::new(&server);
        peer.fill();
        reset(peer);
        polite.echo(b"still served");
    }
    #[cfg(unix)]
    {
        let (summary, _) = server.stop_with_rest();
        let counts = ["closed", "failed", "unsent_bytes"].map(|name| crate::server::number(&summary[name]));
        assert!(counts[0] == 23 && counts[1] >= 2 && counts[2] > 0, "{summary}");
    }
    #[cfg(not(unix))]
    server.stop_with_rest();
}

fn thousand_connections(row: &Row) {
    alone(|| {
        let server = Server::start(row, &[]);
        // Under Wine each call takes its time.
        let peers = connect_all(&server, if cfg!(windows) { 200 } else { 1000 });
        let message = |number: usize, round: usize| content((number * 1000) as u64, 100 + round);
        for round in 0..3 {
            peers.iter().enumerate().for_each(|(number, peer)| peer.write(&message(number, round)));
            peers.iter().enumerate().rev().for_each(|(number, peer)| peer.expect(&message(number, round)));
        }
        server.stop();
    });
}

fn connection_storm(row: &Row) {
    let server = Server::start(row, &[]);
    for round in 0..2000 {
        let peer = Peer::new(&server);
        if round % 10 == 0 {
            peer.echo(b"x");
        }
    }
    Peer::new(&server).echo(b"still here");
    server.stop();
}

fn verbose(row: &Row) {
    let server = Server::start(row, &["-v"]);
    let peer = Peer::new(&server);
    peer.echo(b"x");
    let from = peer.0.local_addr().unwrap();
    #[cfg(unix)]
    {
        let stderr = server.stop().1.stderr;
        assert_eq!(stderr, format!("connection from {from}\n"));
    }
    #[cfg(not(unix))]
    let _ = from;
}
