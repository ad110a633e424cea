//! TCP servers that cut their streams into messages, and what only one of them does.

#[cfg(unix)]
use crate::server::number;
use crate::server::{Server, content, run};
use crate::tcp::{Peer, connect_all};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::Row;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

pub fn checks(row: &Row) -> Vec<Check> {
    let frames: &[(&str, Run)] = &[
        ("frames_come_back_whole", frames_come_back_whole),
        ("frames_of_many_connections", |row| many_connections(row, "--frames")),
        ("frame_beyond_the_limit", |row| beyond_the_limit(row, "--frames", &frame(&[7; 1001]))),
        ("frame_of_four_gigabytes", |row| beyond_the_limit(row, "--frames", b"\xff\xff\xff\xff")),
    ];
    let lines: &[(&str, Run)] = &[
        ("lines_come_back_whole", lines_come_back_whole),
        ("lines_of_many_connections", |row| many_connections(row, "--lines")),
        ("line_beyond_the_limit", |row| beyond_the_limit(row, "--lines", &[b'x'; 1001])),
    ];
    let own: &[(&str, Run)] = match row.name {
        "echo-tcp-registrar" => &[
            ("idle_connection_is_closed", idle_connection_is_closed),
            ("idle_timeout_of_zero", idle_timeout_of_zero),
            ("fastest_interval_starves_nothing", fastest_interval),
        ],
        "echo-tcp-reactor" => &[
            ("several_runtimes", several_runtimes),
            #[cfg(target_os = "linux")]
            ("frames_allocate_nothing", frames_allocate_nothing),
        ],
        "pingpong" => &[("reports_round_trips", reports_round_trips), ("bad_flags", pingpong_flags)],
        _ => &[],
    };
    let of_mode = |mode, table: &'static [(&'static str, Run)]| if row.modes.contains(&mode) { table } else { &[] };
    let table = [of_mode("--frames", frames), of_mode("--lines", lines), own].concat();
    #[cfg_attr(not(target_os = "linux"), expect(unused_mut, reason = "nothing is added"))]
    let mut checks: Vec<_> = table.into_iter().map(|(name, run)| check(name, Needs::Nothing, run)).collect();
    #[cfg(target_os = "linux")]
    match row.name {
        "echo-tcp-registrar" => checks.extend([
            check("registers_while_the_poller_waits", Needs::Strace, registers_while_the_poller_waits),
            check("a_frame_is_one_call", Needs::Strace, |row| a_frame_is_one_call(row, "sendto")),
        ]),
        "echo-tcp-reactor" => {
            checks.push(check("a_frame_is_one_call", Needs::Strace, |row| a_frame_is_one_call(row, "writev")))
        }
        _ => {}
    }
    checks
}

/// Every runtime gets its share, and all threads end.
fn several_runtimes(row: &Row) {
    let server = Server::start(row, &["--runtimes", "3"]);
    let peers = connect_all(&server, 30);
    for round in 0..3 {
        peers.iter().enumerate().for_each(|(number, peer)| peer.write(&content(number as u64 + round, 1000)));
        peers.iter().enumerate().for_each(|(number, peer)| peer.expect(&content(number as u64 + round, 1000)));
    }
    #[cfg(target_os = "linux")]
    {
        let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten();
        let names = threads.map(|thread| std::fs::read_to_string(thread.path().join("comm")).unwrap());
        let mut names: Vec<_> = names.filter(|name| name.starts_with("runtime-")).collect();
        names.sort();
        assert_eq!(names, ["runtime-0\n", "runtime-1\n", "runtime-2\n"]);
    }
    server.stop();
}

/// Whatever their size: in one read, or cut by two.
#[cfg(target_os = "linux")]
fn frames_allocate_nothing(row: &Row) {
    for len in [100, 10_000, 100_000] {
        let allocations = |frames: u64| {
            let server = Server::counting(row, &["--frames"]);
            let peer = Peer::new(&server);
            (0..frames).for_each(|number| peer.echo(&frame(&content(number, len))));
            server.stop().1.allocations()
        };
        let (few, many) = (allocations(20), allocations(500));
        assert!(few > 0, "the counter counts nothing");
        assert!(many <= few + 10, "{few} allocations for 20 frames of {len} bytes, {many} for 500");
    }
}

/// It ends by itself, with all round trips in the report, in order.
fn reports_round_trips(row: &Row) {
    for (between, what) in [
        ("one", "round trips in one runtime"),
        ("two", "round trips between two runtimes"),
        ("orders", "orders from another thread to an idle runtime"),
    ] {
        let (status, stdout, stderr) = run(row.name, &["--between", between, "--count", "500", "--size", "1000"]);
        assert_eq!((status, stderr.as_str()), (Some(0), ""));
        let mut lines = stdout.lines();
        assert_eq!(lines.next(), Some(&*format!("500 {what}, microseconds")));
        let lines: Vec<_> = lines.map(|line| line.trim().split_once(' ').unwrap()).collect();
        let names: Vec<_> = lines.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["min", "p50", "p90", "p99", "p99.9", "p99.99", "max"]);
        let times: Vec<f64> = lines.iter().map(|(_, time)| time.trim().parse().unwrap()).collect();
        assert!(times.is_sorted() && times[0] > 0.0, "{times:?}");
    }
}

fn pingpong_flags(row: &Row) {
    for flags in [&["--between", "three"][..], &["--count", "0"], &["--size", "1048577"], &["argument"]] {
        let (status, stdout, stderr) = run(row.name, flags);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{flags:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{flags:?}: {stderr}");
    }
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

/// However they arrive: each as soon as it is whole, and not before.
fn come_back_whole(server: &Server, messages: &[Vec<u8>], rest: &[u8]) {
    let peer = Peer::new(server);
    for message in messages {
        peer.echo(message);
    }
    // Byte by byte.
    for message in messages.iter().filter(|message| message.len() < 100) {
        for byte in message {
            peer.write(&[*byte]);
            thread::sleep(Duration::from_micros(200));
        }
        peer.expect(message);
    }
    // All in one, and the half of one more.
    thread::scope(|scope| {
        scope.spawn(|| peer.write(&[&messages.concat(), rest].concat()));
        peer.expect(&messages.concat());
    });
    peer.0.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(std::io::Read::read(&mut &peer.0, &mut [0]).is_err(), "what is not whole came back");
    peer.0.shutdown(Shutdown::Write).unwrap();
    peer.0.set_read_timeout(Some(crate::server::PATIENCE)).unwrap();
    peer.expect_end();
}

fn frames_come_back_whole(row: &Row) {
    let server = Server::start(row, &["--frames"]);
    let messages = [&b"one"[..], b"", b"\0\0\0\x01", &content(0, 100_000), &content(0, 1 << 20)].map(frame);
    come_back_whole(&server, &messages, b"\0\0\0\x05four");
    leaves(server, 8);
}

fn lines_come_back_whole(row: &Row) {
    let server = Server::start(row, &["--lines"]);
    let long = [vec![b'x'; 300_000], b"\n".to_vec()].concat();
    let messages = [&b"one\n"[..], b"\n", b"with CR\r\n", b"\xff\xfe\x80\0\n", &long].map(<[u8]>::to_vec);
    come_back_whole(&server, &messages, b"not a whole line");
    leaves(server, 16);
}

/// What was never a whole message is not sent, but accounted for.
#[cfg(unix)]
fn leaves(server: Server, rest: u64) {
    let (summary, _) = server.stop_with_rest();
    assert_eq!(number(&summary["unsent_bytes"]), rest, "{summary}");
}

#[cfg(not(unix))]
fn leaves(server: Server, _: u64) {
    server.stop_with_rest();
}

fn many_connections(row: &Row, flag: &str) {
    let server = Server::start(row, &[flag]);
    thread::scope(|scope| {
        for (number, peer) in (0u64..).zip(connect_all(&server, 30)) {
            scope.spawn(move || {
                for round in 0..20 {
                    let mut bytes = content(number * 1000 + round, (number as usize * 5003) % 70_000);
                    bytes.retain(|byte| *byte != b'\n');
                    let message = if flag == "--lines" { [bytes, b"\n".to_vec()].concat() } else { frame(&bytes) };
                    peer.echo(&message);
                }
            });
        }
    });
    server.stop();
}

/// The connection ends, nothing is allocated for what was only announced, and nobody else is affected.
fn beyond_the_limit(row: &Row, flag: &str, message: &[u8]) {
    let server = Server::start(row, &[flag, "--max-frame", "1000"]);
    let polite = Peer::new(&server);
    let fits = if flag == "--lines" { [&[b'y'; 1000][..], b"\n"].concat() } else { frame(&[5; 1000]) };
    polite.echo(&fits);
    #[cfg(target_os = "linux")]
    let memory = server.memory();
    for _ in 0..10 {
        let peer = Peer::new(&server);
        peer.write(message);
        peer.expect_end();
    }
    #[cfg(target_os = "linux")]
    assert!(server.memory() < memory + 256, "{} KiB, then {}", memory, server.memory());
    polite.echo(&fits);
    #[cfg(unix)]
    {
        let (summary, _) = server.stop_with_rest();
        assert_eq!((number(&summary["too_long"]), number(&summary["failed"])), (10, 0), "{summary}");
        assert_eq!(number(&summary["echoed_bytes"]), 2 * fits.len() as u64, "{summary}");
    }
}

/// Not before its time, and not while something comes.
fn idle_connection_is_closed(row: &Row) {
    const IDLE: Duration = Duration::from_millis(300);
    let server = Server::start(row, &["--idle-timeout", "300"]);
    let (idle, busy) = (Peer::new(&server), Peer::new(&server));
    let start = Instant::now();
    while start.elapsed() < 3 * IDLE {
        busy.echo(b"x");
        thread::sleep(Duration::from_millis(20));
    }
    idle.expect_end();
    // The server hears of it later than this.
    let sent = Instant::now();
    busy.echo(b"still here");
    busy.expect_end();
    assert!(sent.elapsed() >= IDLE, "closed after {:?}", sent.elapsed());
    server.stop();
}

fn idle_timeout_of_zero(row: &Row) {
    let server = Server::start(row, &["--idle-timeout", "0"]);
    let start = Instant::now();
    Peer::new(&server).expect_end();
    assert!(start.elapsed() < Duration::from_secs(1), "after {:?}", start.elapsed());
    server.stop();
}

/// An interval of zero is due in every turn.
fn fastest_interval(row: &Row) {
    let server = Server::start(row, &["--interval", "0"]);
    let peer = Peer::new(&server);
    (0..100).for_each(|round| peer.echo(&content(round, 100)));
    #[cfg(unix)]
    {
        let (_, ended) = server.stop();
        assert!(ended.stderr.lines().any(|line| line == "1 connections open"), "no line of the interval");
    }
}

/// Header and message leave together, in one call for each frame.
#[cfg(target_os = "linux")]
fn a_frame_is_one_call(row: &Row, call: &str) {
    let server = Server::strace(row, &["-s", "4"], &["--frames"]);
    let peer = Peer::new(&server);
    (0..20).for_each(|number| peer.echo(&frame(&content(number, 100))));
    let (_, ended) = server.stop();
    let sent = |line: &&str| ["write", "writev", "sendto", "sendmsg"].iter().any(|name| line.contains(name));
    let calls: Vec<_> = ended.trace.lines().filter(sent).filter(|line| line.ends_with(" = 104")).collect();
    assert!(calls.len() == 20 && calls.iter().all(|line| line.contains(call)), "{calls:#?}");
}

/// EPOLL_CTL_ADD of a connection by another thread than the one inside epoll_wait, which nobody wakes for it.
#[cfg(target_os = "linux")]
fn registers_while_the_poller_waits(row: &Row) {
    let server = Server::strace(row, &["-yy"], &[]);
    let peers: Vec<_> = (0..4).map(|_| Peer::new(&server)).collect();
    peers.iter().for_each(|peer| peer.echo(b"x"));
    let (_, ended) = server.stop();
    let trace = ended.trace.split_once("\"listening on ").unwrap().1;
    // Then comes the stop signal, which does wake it.
    let before_the_signal = trace.rsplit_once("sendto(").unwrap().0;
    let thread = |line: &str| line.split_whitespace().next().unwrap().to_string();
    let poller =
        before_the_signal.lines().find(|line| line.contains(echo_lab::catalog::EPOLL_WAIT)).map(thread).unwrap();
    let added: Vec<_> = before_the_signal.lines().filter(|line| line.contains("EPOLL_CTL_ADD")).collect();
    assert_eq!(added.len(), 4, "{added:#?}");
    assert!(added.iter().all(|line| thread(line) != poller), "{added:#?}");
    assert!(!before_the_signal.contains("eventfd]>, \"\\1"), "the poller was woken");
}
