//! TCP servers when things go wrong: signals, no descriptors, and errors that strace
//! makes the kernel report.

use crate::rings::{namespaced, shell};
use crate::server::{PATIENCE, Server, bin, content, number};
use crate::tcp::{Peer, connect_all, reset};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::Row;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

pub fn checks(row: &Row) -> Vec<Check> {
    let table: [(&str, Run); 10] = [
        ("sigterm_with_connections_open", |row| sigterm(row, libc::SIGTERM)),
        ("sigint_with_connections_open", |row| sigterm(row, libc::SIGINT)),
        ("sigterm_with_bytes_on_their_way", sigterm_on_the_way),
        ("sigterm_while_nobody_reads", sigterm_while_nobody_reads),
        ("stop_and_continue", stop_and_continue),
        ("out_of_descriptors", out_of_descriptors),
        ("waits_while_idle", waits_while_idle),
        ("waits_while_a_peer_does_not_read", waits_while_blocked),
        ("resets_leave_no_descriptor", resets_leave_no_descriptor),
        ("urgent_data", urgent_data),
    ];
    let mut checks: Vec<_> = table.map(|(name, run)| check(name, Needs::Nothing, run)).into();
    checks.push(check("tracer_attached_and_detached", Needs::Strace, tracer));
    checks.push(check("no_allocation_for_a_message", Needs::Nothing, no_allocation));
    let Some(calls) = row.calls else { return checks };
    let faults = [
        (Some(calls.recv), "EINTR", 0),
        (Some(calls.recv), "EAGAIN", 0),
        (Some(calls.recv), "ECONNRESET", 1),
        // A non-blocking write is never interrupted; write_all, if it were, would not say how much it wrote.
        (Some(calls.send).filter(|_| !calls.awaited), "EINTR", 0),
        (Some(calls.send), "EAGAIN", 0),
        (Some(calls.send), "EPIPE", 1),
        (calls.wait, "EINTR", 0),
    ];
    for (call, error, failed) in faults {
        let Some(call) = call else { continue };
        let what = if call == calls.recv {
            "read"
        } else if call == calls.send {
            "write"
        } else {
            "wait"
        };
        checks.push(check(format!("{what}_fails_with_{error}"), Needs::Calls, move |row| {
            injected(row, call, error, failed)
        }));
    }
    for error in ["ECONNABORTED", "EMFILE", "EINTR", "EPROTO"] {
        checks.push(check(format!("accept_fails_with_{error}"), Needs::Calls, move |row| accept_fails(row, error)));
    }
    checks.push(check("fatal_error_of_the_listener", Needs::Calls, fatal));
    checks.push(check("sigterm_without_a_free_port", Needs::Namespace, |row| namespaced(|| no_free_port(row))));
    if calls.wait.is_some() {
        for error in ["ENOSPC", "ENOMEM"] {
            let name = format!("connection_that_cannot_be_watched_for_{error}");
            checks.push(check(name, Needs::Calls, move |row| not_watched(row, error)));
        }
        checks.push(check("turns_are_short", Needs::Calls, turns_are_short));
        // tokio itself panics.
        if !row.features.contains(&"tokio") {
            checks.push(check("fatal_error_of_the_wait", Needs::Calls, fatal_wait));
        }
    }
    checks
}

/// All that was sent has come back, and each client sees the end of its stream.
fn sigterm(row: &Row, signal: i32) {
    let server = Server::start(row, &[]);
    let peers = connect_all(&server, 50);
    peers.iter().skip(10).for_each(|peer| peer.echo(b"hello"));
    let start = Instant::now();
    server.signal(signal);
    let ended = server.wait();
    assert!(start.elapsed() < Duration::from_millis(900), "took {:?}", start.elapsed());
    peers.iter().for_each(Peer::expect_end);
    let summary = crate::server::summary(&ended);
    let counts = ["accepted", "closed", "received_bytes", "unsent_bytes"].map(|name| number(&summary[name]));
    assert_eq!(counts, [50, 50, 200, 0], "{summary}");
}

/// What the server has read, and what has arrived, still comes back.
fn sigterm_on_the_way(row: &Row) {
    let server = Server::start(row, &[]);
    let peer = Peer::new(&server);
    let mut len = 0;
    // Until the server cannot write, and so does not read.
    let left_unread = || {
        (0..5).all(|_| {
            thread::sleep(Duration::from_millis(1));
            unread(&server) > 0
        })
    };
    while !left_unread() {
        peer.write(&content(len as u64, 32768));
        len += 32768;
    }
    server.signal(libc::SIGTERM);
    thread::sleep(Duration::from_millis(200));
    peer.drain(len);
    peer.expect_end();
    let summary = crate::server::summary(&server.wait());
    assert_eq!(number(&summary["received_bytes"]), len as u64, "{summary}");
    assert_eq!(number(&summary["unsent_bytes"]), 0, "{summary}");
}

/// Bytes that have arrived at a connection of the server, and were not read: rx_queue in /proc/net/tcp.
fn unread(server: &Server) -> u64 {
    let local = format!(":{:04X}", server.addr.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // 01: established.
    let own = columns.filter(|columns| columns[1].ends_with(&local) && columns[3] == "01");
    own.map(|columns| u64::from_str_radix(columns[4].split_once(':').unwrap().1, 16).unwrap()).sum()
}

/// Who does not read cannot keep a server from ending: it has a second.
fn sigterm_while_nobody_reads(row: &Row) {
    let server = Server::start(row, &[]);
    let peers = connect_all(&server, 3);
    peers.iter().for_each(|peer| assert!(peer.fill() > 0));
    let start = Instant::now();
    let (summary, _) = server.stop_with_rest();
    assert!(start.elapsed() < Duration::from_secs(3), "took {:?}", start.elapsed());
    assert!(number(&summary["unsent_bytes"]) > 0, "{summary}");
}

fn stop_and_continue(row: &Row) {
    let server = Server::start(row, &[]);
    let peer = Peer::new(&server);
    for round in 0..20 {
        server.signal(libc::SIGSTOP);
        peer.write(&content(round, 1000));
        thread::sleep(Duration::from_millis(round % 3));
        server.signal(libc::SIGCONT);
        peer.expect(&content(round, 1000));
    }
    server.stop();
}

fn tracer(row: &Row) {
    let server = Server::start(row, &[]);
    let peer = Peer::new(&server);
    for _ in 0..3 {
        server.traced(|| (0..5).for_each(|_| peer.echo(b"traced")));
        (0..5).for_each(|_| peer.echo(b"alone"));
    }
    server.stop();
}

/// User and system time so far of the process `id`.
pub fn cpu(id: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    // Fields 14 and 15 of proc_pid_stat(5), in ticks of 10 ms; the second, in parentheses, may hold blanks.
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
    Duration::from_millis(fields.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum())
}

/// With room for some 20 connections, and 100 that come: those are served, the others wait without cost, and are served
/// when there is room.
fn out_of_descriptors(row: &Row) {
    let mut command = Command::new("bash");
    command.args(["-c", "ulimit -n 32 && exec \"$0\" \"$@\""]).arg(bin(row.name));
    let server = Server::spawn(command.args(["--json", "--bind", "127.0.0.1:0"]), None);
    let peers = connect_all(&server, 100);
    peers.iter().for_each(|peer| peer.write(b"x"));
    thread::sleep(Duration::from_millis(300));
    let before = cpu(server.pid());
    thread::sleep(Duration::from_secs(1));
    let used = cpu(server.pid()) - before;
    assert!(used <= Duration::from_millis(100), "{used:?} of CPU time in a second without descriptors");
    let served = |peer: &Peer| {
        peer.0.set_nonblocking(true).unwrap();
        let result = (&peer.0).read(&mut [0; 2]);
        peer.0.set_nonblocking(false).unwrap();
        result.is_ok_and(|count| count == 1)
    };
    let (mut waiting, mut rounds) = (peers, 0);
    let limit = Instant::now() + PATIENCE;
    while !waiting.is_empty() && Instant::now() < limit {
        let before = waiting.len();
        // Those that were served leave.
        waiting.retain(|peer| !served(peer));
        rounds += u32::from(waiting.len() < before);
        thread::sleep(Duration::from_millis(20));
    }
    assert!(waiting.is_empty(), "{} never served", waiting.len());
    assert!(rounds >= 3, "all served in {rounds} rounds: nothing ran out");
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["accepted"]), 100, "{summary}");
    assert!(number(&summary["exhausted"]) > 0, "{summary}");
}

/// An idle server sleeps: with a connection that was served, and with one on which nothing ever came.
fn waits_while_idle(row: &Row) {
    let server = Server::start(row, &[]);
    let peers = connect_all(&server, 2);
    peers[0].echo(b"x");
    sleeps(&server, Duration::from_secs(5));
    let (summary, _) = server.stop();
    assert!(number(&summary["waits"]) < 20, "{summary}");
}

/// What a peer has sent stays unread while it does not read: that is no reason to wake up.
fn waits_while_blocked(row: &Row) {
    let server = Server::start(row, &[]);
    let peers = connect_all(&server, 3);
    peers.iter().for_each(|peer| assert!(peer.fill() > 0));
    server.until_it_waits();
    assert!(unread(&server) > 0, "all was read");
    sleeps(&server, Duration::from_secs(2));
    server.stop_with_rest();
}

fn sleeps(server: &Server, time: Duration) {
    let before = cpu(server.pid());
    thread::sleep(time);
    let used = cpu(server.pid()) - before;
    assert!(used <= Duration::from_millis(20), "{used:?} of CPU time in {time:?}");
}

/// With what it was sent unread, and with its own bytes unread, idle or in the middle.
fn resets_leave_no_descriptor(row: &Row) {
    let server = Server::start(row, &[]);
    let polite = Peer::new(&server);
    let open = || {
        polite.echo(b"still served");
        std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count()
    };
    let before = open();
    for round in 0..60 {
        let peer = Peer::new(&server);
        match round % 3 {
            0 => peer.echo(b"x"),
            1 => peer.write(&content(0, 100_000)),
            _ => {}
        }
        reset(peer);
    }
    let limit = Instant::now() + PATIENCE;
    while open() > before {
        assert!(Instant::now() < limit, "{before} descriptors before 60 resets, {} after", open());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(number(&server.stop_with_rest().0["closed"]), 61);
}

/// A read ends at the mark, even if more stands behind it, and all has arrived at once.
fn urgent_data(row: &Row) {
    let server = Server::start(row, &[]);
    let peer = Peer::new(&server);
    for _ in 0..5 {
        peer.echo(b"x");
        server.until_it_waits();
        server.signal(libc::SIGSTOP);
        peer.write(b"before");
        socket2::SockRef::from(&peer.0).send_out_of_band(b"!").unwrap();
        peer.write(b"behind the mark");
        server.signal(libc::SIGCONT);
        peer.expect(b"before");
        if row.reads_all {
            peer.expect(b"behind the mark");
        } else {
            peer.write(b"more");
            peer.expect(b"behind the markmore");
        }
    }
    server.stop();
}

/// All ports are taken: whoever needs one to wake itself cannot.
fn no_free_port(row: &Row) {
    shell("sysctl -qw net.ipv4.ip_local_port_range='40000 40007'");
    let server = Server::start(row, &["--bind", "127.0.0.1:2000"]);
    let mut peers = Vec::new();
    let refused = loop {
        match TcpStream::connect(server.addr) {
            Ok(peer) => peers.push(peer),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.raw_os_error(), Some(libc::EADDRNOTAVAIL), "after {} connections", peers.len());
    assert!(peers.len() >= 4);
    // Else the accept of the last one is what ends it.
    server.until_it_waits();
    server.stop();
}

/// It is closed, and the server goes on with the others; once there is room it serves new ones again.
fn not_watched(row: &Row, error: &str) {
    let server = Server::start(row, &[]);
    let polite = Peer::new(&server);
    polite.echo(b"x");
    let mut closed = 0;
    // The first call of each thread fails: a worker's, or the only thread's.
    server.traced_with(&["-e", &format!("inject=epoll_ctl:error={error}:when=1")], || {
        for _ in 0..4 {
            let peer = Peer::new(&server);
            let _ = (&peer.0).write(b"y");
            closed += usize::from(!(&peer.0).read(&mut [0]).is_ok_and(|count| count == 1));
            polite.echo(b"still served");
        }
    });
    assert!((1..4).contains(&closed), "{closed} of 4 were closed");
    Peer::new(&server).echo(b"served");
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["exhausted"]), closed as u64, "{summary}");
    assert_eq!(summary["accepted"], summary["closed"], "{summary}");
}

/// Whoever has much to be read does not keep the others waiting. With a buffer of one byte each byte is a read.
fn turns_are_short(row: &Row) {
    const MANY: usize = 2000;
    let calls = row.calls.expect("a server has calls");
    let server = Server::strace(row, &["-e", &format!("trace={}", calls.recv), "-s", "1"], &["--buffer", "1"]);
    // With two workers that get connections in turn, the first and the last are of the same.
    let [greedy, between, modest] = [(); 3].map(|()| Peer::new(&server));
    [&greedy, &between, &modest].iter().for_each(|peer| peer.echo(b"x"));
    server.until_it_waits();
    server.signal(libc::SIGSTOP);
    greedy.write(&[b'g'; MANY]);
    modest.write(b"m");
    server.signal(libc::SIGCONT);
    modest.expect(b"m");
    greedy.expect(&[b'g'; MANY]);
    let (_, ended) = server.stop();
    let reads = |byte: &str| ended.trace.lines().position(|line| line.contains(byte)).expect("it was read");
    let greedy_first = ended.trace.lines().take(reads("\"m\"")).filter(|line| line.contains("\"g\"")).count();
    assert!(greedy_first <= 256, "{greedy_first} reads of one connection before that of the other");
}

/// It cannot go on, and says so.
fn fatal_wait(row: &Row) {
    let wait = row.calls.and_then(|calls| calls.wait).expect("it waits");
    let server = Server::strace(row, &["-e", &format!("inject={wait}:error=EBADF:when=3+")], &[]);
    let peer = Peer::new(&server);
    let limit = Instant::now() + PATIENCE;
    // Each of these ends a wait, until one fails.
    while peer.0.set_read_timeout(Some(Duration::from_millis(20))).is_ok() && Instant::now() < limit {
        if (&peer.0).write(b"x").is_err() || (&peer.0).read(&mut [0]).is_ok_and(|count| count == 0) {
            break;
        }
    }
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    let said = ended.stderr.trim_end();
    assert!(said.starts_with("Error: cannot ") && said.contains(": Bad file ") && said.lines().count() == 1, "{said}");
}

/// The third to fifth call fail: the client goes on, since an injected EAGAIN is a lie, after which no edge will follow.
fn injected(row: &Row, call: &str, error: &str, failed: u64) {
    let when = if failed > 0 { "3" } else { "3..5" };
    let server = Server::strace(row, &["-e", &format!("inject={call}:error={error}:when={when}")], &[]);
    let mut peer = Peer::new(&server);
    let of_a_wait = row.calls.is_some_and(|calls| calls.wait == Some(call));
    for round in 0..20u64 {
        let message = content(round, 100);
        // Whoever finds the next message before its wait does not wait.
        if of_a_wait && round < 10 {
            server.until_it_waits();
        }
        peer.write(&message);
        let mut found = vec![0; 100];
        let mut len = 0;
        peer.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let limit = Instant::now() + PATIENCE;
        while len < found.len() && Instant::now() < limit {
            match (&peer.0).read(&mut found[len..]) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                // Whoever waits for an edge gets one: an empty segment is none, so a byte that is read back as well.
                Err(_) => {
                    peer.write(b"!");
                    found.push(b'!');
                }
            }
        }
        if len < found.len() {
            assert!(failed > 0, "only {len} bytes came back in round {round}");
            peer = Peer::new(&server);
            continue;
        }
        assert!(found.starts_with(&message) && found[100..].iter().all(|byte| *byte == b'!'), "round {round}");
    }
    let (summary, ended) = server.stop_with_rest();
    assert!(ended.trace.contains("(INJECTED)"), "nothing was injected into {call}");
    // strace counts the calls that it makes fail in each thread for itself.
    assert_eq!(number(&summary["failed"]).min(1), failed, "{summary}");
    // Only what was in a write that failed for good is lost.
    let lost = if error == "EPIPE" { 100 * number(&summary["failed"]) } else { 0 };
    assert_eq!(number(&summary["unsent_bytes"]), lost, "{summary}");
}

fn accept_fails(row: &Row, error: &str) {
    let server = Server::strace(row, &["-e", &format!("inject=accept4:error={error}:when=2..4")], &[]);
    for _ in 0..5 {
        let peer = Peer::new(&server);
        peer.echo(b"accepted after all");
    }
    let (summary, ended) = server.stop();
    assert!(ended.trace.contains("(INJECTED)"), "nothing was injected into accept4");
    let counter = match error {
        "EMFILE" => "exhausted",
        "EINTR" => return,
        _ => "accept_errors",
    };
    assert_eq!((number(&summary["accepted"]), number(&summary[counter])), (5, 3), "{summary}");
}

/// Only an unusable listener ends a server, with a sentence.
fn fatal(row: &Row) {
    let server = Server::strace(row, &["-e", "inject=accept4:error=EBADF:when=1+"], &[]);
    let expected = format!("Error: cannot accept on {}: Bad file descriptor (os error 9)\n", server.addr);
    // A server that waits in its accept may have ended already.
    let _peer = TcpStream::connect(server.addr);
    let ended = server.wait();
    assert_eq!((ended.status.code(), ended.stderr), (Some(1), expected));
}

/// A server that echoes many messages makes as many allocations as one that echoes a few.
fn no_allocation(row: &Row) {
    let (few, many) = (allocations(row, 100), allocations(row, 10_000));
    assert!(few > 0, "the counter counts nothing");
    assert!(many <= few + 2, "{few} allocations for 100 messages, {many} for 10 000");
}

fn allocations(row: &Row, messages: u64) -> u64 {
    let server = Server::counting(row, &[]);
    let peers = connect_all(&server, 4);
    for message in 0..messages {
        peers.iter().for_each(|peer| peer.write(&content(message, 64)));
        peers.iter().for_each(|peer| peer.expect(&content(message, 64)));
    }
    server.stop().1.allocations()
}
