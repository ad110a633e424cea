//! What a TCP server holds of a connection, against the bound in its row of the catalogue.

use crate::server::{Server, number};
use crate::tcp::{Peer, alone, connect_all};
use crate::{Check, Needs, check};
use echo_lab::catalog::Row;
use socket2::{Domain, Socket, Type};
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

pub fn checks(row: &'static Row) -> Vec<Check> {
    let mut checks = vec![
        check("idle_connections_take_no_more_than_stated", Needs::Nothing, idle),
        check("peers_that_never_read_take_no_more_than_stated", Needs::Nothing, |row| silent(row, "")),
    ];
    checks.extend(row.modes.iter().map(|mode| {
        let name = format!("peers_that_never_read_take_no_more_than_stated_with_{}", mode.trim_start_matches('-'));
        check(name, Needs::Nothing, |row| silent(row, mode))
    }));
    checks
}

/// Among thousands of idle connections one is served.
fn idle(row: &Row) {
    // The default of --buffer.
    let bound = row.held.of_idle(64 << 10);
    // As many as would take 80 MiB, or 10 000.
    let wanted = ((80 << 20) / bound).min(10_000);
    alone(|| {
        let descriptors = crate::descriptor_limit().rlim_cur as usize;
        let count = wanted.min(descriptors.saturating_sub(1500));
        assert!(count >= 500, "ulimit -n is {descriptors}: try 4096");
        let server = Server::start(row, &[]);
        let polite = Peer::new(&server);
        polite.echo(b"warm");
        let before = memory(&server);
        let peers = connect_all(&server, count);
        // The last one is accepted last.
        peers[count - 1].echo(b"last");
        polite.echo(b"still served");
        holds(before, memory(&server), count, bound);
        drop(peers);
        polite.echo(b"still served");
        let (summary, _) = server.stop();
        assert_eq!(number(&summary["accepted"]), 1 + count as u64, "{summary}");
    });
}

/// The first peers warm the allocator up, and the pools; the difference that as many again make is theirs alone.
fn silent(row: &Row, mode: &str) {
    const PEERS: usize = 48;
    let (flags, buffer, message) = match mode {
        "" => (vec!["--buffer", "65536"], 65536, 0),
        // Of a message this long the kernel's buffers take a small part, and the server has to keep the rest.
        mode => (vec!["--buffer", "4096", "--max-frame", "1048576", mode], 4096, 1 << 20),
    };
    let stream = match mode {
        "--lines" => [vec![b'x'; message], b"\n".to_vec()].concat(),
        "--frames" => [&(message as u32).to_be_bytes()[..], &vec![7; message]].concat(),
        _ => vec![7; 65536],
    };
    let server = Server::start(row, &flags);
    let first = silent_peers(&server, PEERS, &stream);
    let before = memory(&server);
    let second = silent_peers(&server, PEERS, &stream);
    holds(before, memory(&server), PEERS, row.held.of_silent(buffer, message));
    drop((first, second));
    let polite = Peer::new(&server);
    polite.echo(&stream[..if mode.is_empty() { 1 } else { stream.len() }]);
    server.stop_with_rest();
}

/// So many more, each of which has sent all that it can, over and over `stream`, and has read nothing.
fn silent_peers(server: &Server, count: usize, stream: &[u8]) -> Vec<TcpStream> {
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // The kernel keeps little of the echo.
        socket.set_recv_buffer_size(2048).unwrap();
        socket.connect(&server.addr.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.into()
    };
    let peers: Vec<TcpStream> = (0..count).map(|_| connect()).collect();
    let mut sent = vec![0; count];
    // What has arrived while a server does not run, it finds all at once.
    server.signal(libc::SIGSTOP);
    fill(&peers, &mut sent, stream, Duration::ZERO);
    server.signal(libc::SIGCONT);
    fill(&peers, &mut sent, stream, Duration::from_millis(300));
    server.until_it_waits();
    fill(&peers, &mut sent, stream, Duration::from_millis(300));
    server.until_it_waits();
    peers
}

/// Until nothing more went in for so long.
fn fill(peers: &[TcpStream], sent: &mut [usize], stream: &[u8], quiet: Duration) {
    let mut last = Instant::now();
    while last.elapsed() <= quiet {
        let mut full = true;
        for (mut peer, sent) in peers.iter().zip(&mut *sent) {
            match peer.write(&stream[*sent % stream.len()..]) {
                Ok(count) => (*sent, full) = (*sent + count, false),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
        }
        if full {
            thread::sleep(Duration::from_millis(1));
        } else {
            last = Instant::now();
        }
    }
}

/// Bytes of the memory that is no file's. (VmRSS is counted in batches on each processor, and off by some of them.)
fn memory(server: &Server) -> usize {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", server.pid())).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    1024 * line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
}

fn holds(before: usize, after: usize, count: usize, bound: usize) {
    let each = after.saturating_sub(before) / count;
    assert!(each * 10 <= bound * 12, "{each} bytes for each of {count} connections: {bound} are stated");
}
