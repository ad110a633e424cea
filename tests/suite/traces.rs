//! What each binary does, call by call: docs/traces holds the steady state of each, and the claims of the headers are
//! looked up in the log of strace. `BLESS=1` rewrites docs/traces.

use crate::project::{check_generated, read};
use crate::server::{PATIENCE, Server, bin, number, run};
use crate::{Check, Needs, check};
use echo_lab::catalog::{EPOLL_WAIT, Kind, Row};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

pub fn checks(row: &Row) -> Vec<Check> {
    let mut checks = Vec::new();
    if row.kind == Kind::Probe || row.calls.is_some() {
        checks.push(check("trace_as_expected", Needs::Strace, expected_trace));
    }
    if row.kind == Kind::Udp {
        checks.push(check("asks_for_writability_only_while_blocked", Needs::Calls, writability));
    }
    checks.extend(
        row.modes
            .iter()
            .map(|flag| check(format!("trace_with_{flag}"), Needs::Strace, |row| trace_of_a_mode(row, flag))),
    );
    match row.name {
        "echo-select" => checks.extend([
            check("descriptor_beyond_fd_setsize", Needs::Nothing, fd_setsize),
            check("waits_once_for_each_datagram", Needs::Strace, |row| waits_for_60(row, 60..=64)),
        ]),
        "echo-poll" | "echo-epoll-level" => {
            checks.push(check("waits_once_for_each_datagram", Needs::Strace, |row| waits_for_60(row, 60..=64)));
        }
        "echo-poll-drain" => {
            checks.push(check("waits_once_for_many_datagrams", Needs::Strace, |row| waits_for_60(row, 1..=5)));
        }
        "echo-epoll-edge" | "echo-mio-edge" => {
            checks.push(check("drains_before_each_wait", Needs::Strace, drains));
        }
        "echo-tokio-batch" => {
            checks.push(check("registers_per_wait", Needs::Strace, |row| registers_per_wait(row, &[])));
        }
        "echo-tokio" | "echo-tokio-ready" | "echo-tokio-mpsc" => {
            checks.push(check("receives_while_a_send_is_blocked", Needs::Strace, |row| {
                assert!(receives_while_blocked(row), "no receive between a blocked send and the next");
            }));
        }
        "echo-tokio-await" => {
            checks.push(check("a_blocked_send_stops_the_receives", Needs::Strace, |row| {
                assert!(!receives_while_blocked(row), "a receive between a blocked send and the next");
            }));
        }
        "echo-reuseport" => checks.extend([
            check("spreads_senders_over_threads", Needs::Nothing, spreads),
            check("pins_its_threads_to_cores_in_turn", Needs::Nothing, pins),
        ]),
        "echo-polling" => checks.push(check("each_mode_as_it_says", Needs::Strace, modes)),
        "trace" => checks.push(check("start_apart_from_one_echo", Needs::Strace, start_apart)),
        "echo-mio-level" => checks.push(check("stops_before_it_is_drained", Needs::Strace, stops_early)),
        _ => {}
    }
    checks
}

fn expected_trace(row: &Row) {
    let (status, trace, stderr) = run("trace", &[row.name, "--steady"]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    if let Some(calls) = row.calls {
        assert_eq!(trace.lines().count(), calls.per_echo, "{trace}");
    }
    let file = format!("docs/traces/{}.txt", row.name);
    check_generated(&file, &as_on_x86(&file, trace));
}

/// docs/traces says epoll_wait where a program calls it; on other processors that is an epoll_pwait without a mask. A program
/// that calls epoll_pwait itself calls nothing else.
fn as_on_x86(file: &str, trace: String) -> String {
    if EPOLL_WAIT == "epoll_wait" || !read(file).contains("epoll_wait(") {
        return trace;
    }
    trace.replace("epoll_pwait(", "epoll_wait(").replace(", NULL, SIZE) = ", ") = ")
}

/// One whole message goes in by one call, and out by one call, which writes header and content where they are two.
fn trace_of_a_mode(row: &Row, flag: &str) {
    let (status, stdout, stderr) = run("trace", &[row.name, "--", flag]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let (_, echo) = stdout.split_once("\n\n# one echo: ").expect("two parts");
    let calls: Vec<_> = echo.lines().filter(|call| call.contains("(TCP, ") && !failed(call)).collect();
    let (message, len) = if flag == "--frames" { (r#""\0\0\0\4echo""#, 8) } else { (r#""echo\n""#, 5) };
    assert!(calls.len() == 2 && calls[0].contains(&format!("recvfrom(TCP, {message}")), "{echo}");
    assert!(calls.iter().all(|call| call.ends_with(&format!(" = {len}"))), "{echo}");
}

fn start_apart(row: &Row) {
    let (status, stdout, stderr) = run(row.name, &["echo-mio-edge", "5"]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let (start, echo) = stdout.split_once("\n\n# one echo: 4 calls\n").expect("two parts");
    assert!(start.starts_with("# start-up: ") && start.contains("epoll_create1("), "{start}");
    assert_eq!(echo.lines().count(), 4, "{echo}");
    let (status, _, stderr) = run(row.name, &["nobody"]);
    assert!(status == Some(2) && stderr.starts_with("error: cannot trace nobody: this build has echo-"), "{stderr}");
}

/// The calls of one server after it said that it listens.
pub fn steady(trace: &str) -> Vec<String> {
    let calls = trace.lines().map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "));
    let mut calls = calls.skip_while(|call| !call.contains("\"listening on ")).skip(1).collect::<Vec<_>>();
    calls.retain(|call| !call.starts_with("---") && !call.starts_with("+++"));
    calls
}

pub fn is(call: &str, name: &str) -> bool {
    call.starts_with(name) && call[name.len()..].starts_with('(')
}

pub fn failed(call: &str) -> bool {
    call.contains(" = -1 ")
}

/// Without a blocked send nobody asks for writability; one that would block is asked for, once, and no longer.
fn writability(row: &Row) {
    let server = Server::strace(row, &[], &[]);
    server.client().echo_numbers(0..10);
    let (_, ended) = server.stop();
    let calls = steady(&ended.trace);
    let modifies = |call: &str| is(call, "epoll_ctl") && call.contains("EPOLL_CTL_MOD");
    // What is one-shot is armed for each wait: the polling crate's timer and eventfd, and smol's sockets.
    let changes = |call: &str| modifies(call) && !call.contains("EPOLLONESHOT");
    let asks = |call: &str| match row.calls.and_then(|calls| calls.wait) {
        Some("pselect6") => is(call, "pselect6") && !call.contains("], [], NULL"),
        Some("ppoll") => is(call, "ppoll") && call.contains("events=POLLIN|POLLOUT"),
        _ => modifies(call) && call.contains("EPOLLOUT"),
    };
    assert!(!calls.iter().any(|call| asks(call) || changes(call)), "{calls:#?}");
    let edge = ended.trace.contains("EPOLLET");
    let expected = match row.name {
        "echo-epoll-edge" | "echo-mio-edge" | "echo-mio-level" => true,
        name => name.contains("tokio"),
    };
    assert_eq!(edge, expected, "EPOLLET in the trace");

    let calls = row.calls.expect("a server has calls");
    let server = Server::strace(row, &["-e", &format!("inject={}:error=EAGAIN:when=3", calls.send)], &[]);
    server.client().echo_numbers(0..2);
    let blocked = server.client();
    blocked.send(&[0; 4]);
    // Time to ask and be told. Whoever waits for an edge gets one by the next datagram.
    thread::sleep(Duration::from_millis(50));
    blocked.send(&[1; 4]);
    assert_eq!([blocked.recv(), blocked.recv()], [[0; 4], [1; 4]]);
    server.client().echo_numbers(0..5);
    let (summary, ended) = server.stop();
    assert!(calls.awaited || number(&summary["would_block"]["send"]) == 1, "{summary}");
    let trace = steady(&ended.trace);
    let asked = trace.iter().filter(|call| asks(call)).count();
    let changed = trace.iter().filter(|call| changes(call)).count();
    let (expected_asked, expected_changed) = match row.name {
        name if calls.wait.is_none() || name.starts_with("echo-tokio") => (0, 0),
        "echo-select" | "echo-poll" | "echo-poll-drain" => (1, 0),
        name if name.starts_with("echo-smol") => (1, 0),
        _ => (1, 2),
    };
    assert_eq!((asked, changed), (expected_asked, expected_changed), "{trace:#?}");
}

/// The set of select holds descriptors below 1024 only.
fn fd_setsize(row: &Row) {
    let script = "ulimit -n 4096 || exit 3; for fd in $(seq 3 1030); do eval \"exec $fd</dev/null\"; done; \
                  exec \"$0\" --bind 127.0.0.1:0";
    let output = Command::new("bash").arg("-c").arg(script).arg(bin(row.name)).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr, "Error: cannot select on descriptor 1031: a set holds those below 1024; try echo-poll\n");
}

/// A burst as large as the kernel's buffer takes, while the server is stopped.
fn burst(row: &Row, size: u32, flags: &[&str]) -> Vec<String> {
    let server = Server::strace(row, &[], flags);
    let client = server.client();
    client.echo_numbers(0..1);
    server.until_it_waits();
    server.echo_burst(&client, size);
    server.until_it_waits();
    let (_, ended) = server.stop();
    steady(&ended.trace)
}

fn drains(row: &Row) {
    let calls = burst(row, 100, &[]);
    let mut last_receive_failed = true;
    for call in &calls {
        if is(call, "recvfrom") {
            last_receive_failed = failed(call);
        }
        assert!(
            !is(call, EPOLL_WAIT) || last_receive_failed,
            "a wait after a receive that found something: {calls:#?}"
        );
    }
    let waits = calls.iter().filter(|call| is(call, EPOLL_WAIT)).count();
    assert!(waits < 10, "{waits} waits for one burst");
}

/// Registered when it waits, and only then; what would have blocked is sent all the same.
fn registers_per_wait(row: &Row, flags: &[&str]) {
    let calls = row.calls.expect("a server has calls");
    let (mut registered, mut waits) = (false, 0);
    for call in burst(row, 100, flags) {
        match call.split_once('(').map_or("", |(name, _)| name) {
            "epoll_ctl" => {
                registered = call.contains("EPOLL_CTL_ADD");
                assert!(registered || call.contains("EPOLL_CTL_DEL"), "{call}");
            }
            EPOLL_WAIT => {
                waits += 1;
                assert!(registered, "wait {waits} for a socket that is not registered");
            }
            name => assert!(!registered || ![calls.recv, calls.send].contains(&name), "{call}"),
        }
    }
    assert!((2..10).contains(&waits), "{waits} waits for one burst");

    let server = Server::strace(row, &["-e", &format!("inject={}:error=EAGAIN:when=3+5", calls.send)], flags);
    server.client().echo_numbers(0..20);
    let (summary, _) = server.stop();
    assert!(number(&summary["would_block"]["send"]) > 0, "{summary}");
}

/// The waits for a burst of 60. Beside them: that of the echo before it, and the one that the signal ends.
fn waits_for_60(row: &Row, waits: RangeInclusive<usize>) {
    let wait = row.calls.and_then(|calls| calls.wait).expect("it waits");
    let counted = burst(row, 60, &[]).iter().filter(|call| is(call, wait)).count();
    assert!(waits.contains(&counted), "{counted} waits");
}

/// All datagrams of one sender go to one thread; those of 64 senders to more than one.
fn spreads(row: &Row) {
    let server = Server::start(row, &["--threads", "4"]);
    let client = server.client();
    client.echo_numbers(0..50);
    let (summary, _) = server.stop();
    let mut counts = summary["by_thread"].as_array().unwrap().iter().map(number).collect::<Vec<_>>();
    counts.sort();
    assert_eq!(counts, [0, 0, 0, 50]);

    let server = Server::start(row, &["--threads", "4"]);
    (0..64).for_each(|_| server.client().echo_numbers(0..2));
    let (summary, _) = server.stop();
    let counts = summary["by_thread"].as_array().unwrap().iter().map(number).collect::<Vec<_>>();
    assert_eq!(counts.iter().sum::<u64>(), 128);
    // A thread without a sender: once in 4 x (3/4)^64, which is once in 25 million runs.
    assert!(counts.iter().all(|count| *count > 0 && count % 2 == 0), "{counts:?}");
}

/// Two threads for each core that this process may use, and one core for each thread.
fn pins(row: &Row) {
    let cores = thread::available_parallelism().unwrap().get();
    let server = Server::start(row, &["--threads", &(2 * cores).to_string()]);
    let main = format!("/proc/{0}/task/{0}", server.pid());
    let threads = || std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten();
    let limit = Instant::now() + PATIENCE;
    while threads().count() < 2 * cores + 1 {
        assert!(Instant::now() < limit, "{} threads", threads().count());
        thread::sleep(Duration::from_millis(2));
    }
    server.until_it_waits();
    let allowed = threads().map(|thread| thread.path()).filter(|path| path.as_os_str() != main.as_str()).map(|path| {
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_string()
    });
    let mut threads_of = BTreeMap::<String, usize>::new();
    allowed.for_each(|core| *threads_of.entry(core).or_default() += 1);
    assert!(threads_of.len() == cores && threads_of.values().all(|threads| *threads == 2), "{threads_of:?}");
    assert!(threads_of.keys().all(|core| core.parse::<usize>().is_ok()), "{threads_of:?}");
    server.stop();
}

/// In each mode: what was left behind by a turn is served, and the socket is registered as the mode says.
fn modes(row: &Row) {
    for (mode, flag) in [("level", None), ("edge", Some("EPOLLET")), ("oneshot", Some("EPOLLONESHOT"))] {
        let server = Server::strace(row, &["-yy"], &["--mode", mode]);
        let client = server.client();
        client.echo_numbers(0..10);
        server.echo_burst(&client, 100);
        let (_, ended) = server.stop();
        let of_socket = |change: &str| {
            let calls = ended.trace.lines().filter(|call| call.contains("epoll_ctl(") && call.contains("<UDP:"));
            calls.filter(|call| call.contains(change)).map(str::to_string).collect::<Vec<_>>()
        };
        let added = of_socket("EPOLL_CTL_ADD");
        let flags = ["EPOLLET", "EPOLLONESHOT"].into_iter().find(|flag| added[0].contains(flag));
        assert_eq!((added.len(), flags), (1, flag), "--mode {mode}: {added:?}");
        let armed = of_socket("EPOLL_CTL_MOD").len();
        assert!(if mode == "oneshot" { armed >= 110 / 32 } else { armed == 0 }, "--mode {mode}: armed {armed} times");
    }
}

fn stops_early(row: &Row) {
    let calls = burst(row, 60, &[]);
    let looks =
        |call: &String| is(call, EPOLL_WAIT) && [", 0) = 0", ", 0, NULL, "].iter().any(|end| call.contains(end));
    let turns = calls.iter().filter(|call| looks(call)).count();
    assert!(turns >= 3, "{turns} waits without a time limit of 0: {calls:#?}");
}

/// Whether a server receives between a send that would have blocked and the next one.
fn receives_while_blocked(row: &Row) -> bool {
    let server = Server::strace(row, &["-e", "inject=sendto:error=EAGAIN:when=1..2"], &[]);
    let client = server.client();
    (0..4u32).for_each(|number| {
        client.send(&number.to_be_bytes());
        thread::sleep(Duration::from_millis(50));
    });
    (0..4u32).for_each(|number| assert_eq!(client.recv(), number.to_be_bytes()));
    let (_, ended) = server.stop();
    let calls = steady(&ended.trace);
    let blocked = calls.iter().position(|call| is(call, "sendto") && failed(call)).expect("an injected EAGAIN");
    let sent = calls.iter().position(|call| is(call, "sendto") && !failed(call)).expect("a send");
    calls[blocked..sent].iter().any(|call| is(call, "recvfrom") && !failed(call))
}
