//! What each probe shows, asserted.

use crate::server::{Client, Ended, Server, run};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::{EPOLL_WAIT, Row};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

pub fn checks(row: &Row) -> Vec<Check> {
    let table: &[(&str, Needs, Run)] = match row.name {
        "future-notify" => &[
            ("ten_polls_one_interval_apart", Needs::Nothing, ten_polls),
            ("polls_at_regular_intervals", Needs::Strace, regular),
            ("no_epoll_in_its_trace", Needs::Strace, no_epoll),
        ],
        "mio-empty" => {
            &[("only_epoll_create_and_wait", Needs::Strace, empty), ("waits_as_long_as_it_says", Needs::Nothing, waits)]
        }
        "mio-mixed" => &[("timer_and_datagrams_interleave", Needs::Nothing, mixed)],
        "mio-pipe" => &[("each_wake_up_costs_a_write", Needs::Strace, pipe)],
        "tokio-multisocket-join" => &[
            ("polls_all_up_to_30", Needs::Nothing, |row| {
                assert_eq!(polls_for_one_datagram(row, "10"), 10);
                assert_eq!(polls_for_one_datagram(row, "30"), 30);
            }),
            ("polls_one_beyond_30", Needs::Nothing, |row| assert_eq!(polls_for_one_datagram(row, "31"), 1)),
            ("ports", Needs::Nothing, ports),
            #[cfg(target_os = "linux")]
            ("fatal_error_of_a_socket", Needs::Strace, fatal),
        ],
        "probe-edge-undrained" => &[("leaves_two_behind", Needs::Nothing, |row| {
            says(
                row,
                &[],
                "3 datagrams sent; events: 1\n\
                 1 received, 2 are left; events in 100 ms: 0\n\
                 1 more sent; events: 1\n\
                 1 received, 2 are left; events in 100 ms: 0\n\
                 received until EAGAIN: 2\n",
            )
        })],
        "probe-starvation" => &[
            ("all_wait_until_it_is_drained", Needs::Nothing, |row| {
                says(
                    row,
                    &[],
                    "until EAGAIN: the polite one was served after 1000, 1000, 1000 of the busy one's 1000; waits: 3\n",
                )
            }),
            ("a_limit_gives_turns", Needs::Nothing, |row| {
                says(
                    row,
                    &["--drain-limit", "32"],
                    "at most 32 in a turn: the polite one was served after 32, 64, 96 of the busy one's 1000; waits: 32\n",
                )
            }),
        ],
        "probe-timer-granularity" => &[("never_early_and_as_fine_as_it_says", Needs::Nothing, granularity)],
        "probe-many-sockets" => &[("epoll_costs_the_same_for_many", Needs::Nothing, many_sockets)],
        "probe-register-per-wait" => &[("a_send_of_a_registered_socket_costs_more", Needs::Nothing, registered)],
        "probe-icmp" => &[("only_some_hear_it", Needs::Nothing, |row| {
            says(
                row,
                &[],
                "unconnected: hears nothing in 100 ms\n\
                 connected: its receive fails: Connection refused (os error 111)\n\
                 unconnected, with IP_RECVERR: its receive fails: Connection refused (os error 111)\n",
            )
        })],
        "probe-wildcard-source" => &[("the_route_picks_unless_told", Needs::Nothing, |row| {
            says(
                row,
                &[],
                "recv_from and send_to: 127.0.0.2 was asked, 127.0.0.1 answers\n\
                 recv_from and send_to: a connected client hears nothing in 100 ms\n\
                 with IP_PKTINFO: 127.0.0.2 was asked, 127.0.0.2 answers\n\
                 with IP_PKTINFO: a connected client hears it\n",
            )
        })],
        "probe-coop" => &[("a_budget_of_128", Needs::Nothing, |row| {
            says(
                row,
                &[],
                "recv_from: datagrams for each poll: 128, 72\n\
                 try_recv_from: datagrams for each poll: 200\n\
                 recv_from, unconstrained: datagrams for each poll: 200\n",
            )
        })],
        "probe-two-wakers" => &[("the_last_one_only", Needs::Nothing, |row| {
            says(row, &[], "poll_recv_ready: one datagram woke task 2\nreadable: one datagram woke task 1 and task 2\n")
        })],
        "probe-join-threshold" => &[("thirty", Needs::Nothing, |row| {
            says(
                row,
                &[],
                "2 futures, one of them woken: 2 polled\n\
                 30 futures, one of them woken: 30 polled\n\
                 31 futures, one of them woken: 1 polled\n\
                 1000 futures, one of them woken: 1 polled\n",
            )
        })],
        _ => &[
            ("polls_one", Needs::Nothing, |row| {
                assert_eq!(polls_for_one_datagram(row, "10"), 1);
                assert_eq!(polls_for_one_datagram(row, "40"), 1);
            }),
            ("ports", Needs::Nothing, ports),
            #[cfg(target_os = "linux")]
            ("fatal_error_of_a_socket", Needs::Strace, fatal),
        ],
    };
    table.iter().map(|(name, needs, run)| check(*name, *needs, run)).collect()
}

/// A probe that runs by itself prints this.
fn says(row: &Row, flags: &[&str], expected: &str) {
    let (status, stdout, stderr) = run(row.name, flags);
    assert_eq!((status, stdout.as_str(), stderr.as_str()), (Some(0), expected, ""));
}

/// With 100 times as many sockets: select and poll cost many times as much, epoll does not.
fn many_sockets(row: &Row) {
    let (status, stdout, stderr) = run(row.name, &["--sockets", "10,1000"]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    for (line, name) in stdout.lines().skip(1).zip(["select", "poll", "epoll"]) {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [few, many] = [1, 2].map(|at| columns[at].parse::<f64>().unwrap());
        assert_eq!(columns[0], name);
        assert!(if name == "epoll" { many < 4.0 * few } else { many > 8.0 * few }, "{stdout}");
    }
    assert_eq!(stdout.lines().count(), 4, "{stdout}");
}

fn registered(row: &Row) {
    let (status, stdout, stderr) = run(row.name, &[]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let times = stdout.lines().find_map(|line| line.strip_suffix(" times")).expect("a ratio");
    let times = times.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
    assert!(times > 1.0, "{stdout}");
}

/// Only what a busy machine cannot change: the least of many waits, and that others are longer.
fn granularity(row: &Row) {
    let (status, stdout, stderr) = run(row.name, &[]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    // The least and the median for each time asked for.
    let took = |name: &str| {
        let line =
            stdout.lines().find(|line| line[..32].trim_end() == name).unwrap_or_else(|| panic!("{name}: {stdout}"));
        let numbers: Vec<u32> = line[32..].split_whitespace().map(|number| number.parse().unwrap()).collect();
        [0, 2, 4].map(|at| (numbers[at], numbers[at + 1]))
    };
    let in_milliseconds = ["epoll_wait, in milliseconds", "tokio::time::sleep"].map(took);
    let with_slack = ["epoll_pwait2", "ppoll"].map(took);
    let without = ["ppoll, timer slack of 1 ns", "timerfd", "spinning on the clock"].map(took);
    for kind in in_milliseconds {
        assert!(kind[0].0 >= 1000 && kind[1].0 >= 1000 && kind[2].0 >= 2000, "{stdout}");
    }
    for kind in with_slack.iter().chain(&without) {
        assert!(kind[0].0 >= 50 && kind[1].0 >= 500 && kind[2].0 >= 1500, "early: {stdout}");
        assert!(kind[0].0 < 1000 && kind[1].0 < 1000 && kind[2].0 < 2000, "{stdout}");
    }
    assert!(stdout.starts_with("timer slack 50000 ns"), "{stdout}");
    for (with, without) in with_slack.iter().flat_map(|with| without.iter().map(move |without| (with, without))) {
        assert!(without[0].0 + 20 < with[0].1, "no sign of the slack: {stdout}");
    }
}

fn ten_polls(row: &Row) {
    let start = Instant::now();
    let (status, stdout, stderr) = run(row.name, &["--interval", "50"]);
    let expected: String = (1..=10).map(|poll| format!("poll {poll} of 10\n")).collect();
    assert_eq!((status, stdout, stderr.as_str()), (Some(0), expected, ""));
    assert!(start.elapsed() >= Duration::from_millis(9 * 50), "{:?}", start.elapsed());
}

/// None before its time, and most of them on time. The times are those of its prints.
fn regular(row: &Row) {
    const INTERVAL: f64 = 0.1;
    let mut command = Command::new("strace");
    command.args(["-f", "-ttt", "-e", "trace=write", "-o", "/dev/stderr"]).arg(crate::server::bin(row.name));
    let output = command.args(["--polls", "12", "--interval", "100"]).output().unwrap();
    let trace = String::from_utf8(output.stderr).unwrap();
    let prints = trace.lines().filter(|line| line.contains("\"poll "));
    let times: Vec<f64> = prints.map(|line| line.split_whitespace().nth(1).unwrap().parse().unwrap()).collect();
    let mut gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_by(f64::total_cmp);
    assert_eq!(gaps.len(), 11, "{trace}");
    // The next poll is due an interval after the print, which the log times at its beginning.
    assert!(gaps[0] > INTERVAL - 0.001 && gaps[5] < 1.5 * INTERVAL, "{gaps:?}");
}

/// The calls that a probe makes, by the names given.
fn calls(row: &Row, flags: &[&str], names: &[&str]) -> Vec<String> {
    let log = std::env::temp_dir().join(format!("echo-lab-{}-{}", row.name, flags.len()));
    let mut command = Command::new("strace");
    let status = command.args(["-f", "-o"]).arg(&log).arg(crate::server::bin(row.name)).args(flags).output().unwrap();
    assert!(status.status.success());
    let trace = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    let calls = trace.lines().filter_map(|line| line.split_once(' ')).map(|(_, call)| call.trim_start().to_string());
    calls.filter(|call| call.split_once('(').is_some_and(|(name, _)| names.contains(&name))).collect()
}

const EPOLL: &[&str] =
    &["epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "pipe2", "pipe", "socketpair", "socket"];

fn no_epoll(row: &Row) {
    assert_eq!(calls(row, &["--polls", "3", "--interval", "10"], EPOLL), [""; 0]);
    assert!(!calls(row, &["--polls", "3", "--interval", "10"], &["futex"]).is_empty());
}

fn names(calls: &[String]) -> Vec<&str> {
    calls.iter().filter_map(|call| Some(call.split_once('(')?.0)).collect()
}

fn empty(row: &Row) {
    assert_eq!(names(&calls(row, &["--timeout", "5"], EPOLL)), ["epoll_create1", EPOLL_WAIT]);
    let with_waker = calls(row, &["--timeout", "5", "--waker"], EPOLL);
    assert_eq!(names(&with_waker), ["epoll_create1", "eventfd2", "epoll_ctl", EPOLL_WAIT]);
    assert!(with_waker[2].contains("EPOLL_CTL_ADD"));
}

fn waits(row: &Row) {
    for (flags, least) in [(&["--timeout", "0"][..], 0), (&["--timeout", "300"], 300), (&[], 100)] {
        let start = Instant::now();
        says(row, flags, "poll returned with 0 events\n");
        assert!(start.elapsed() >= Duration::from_millis(least), "{flags:?}: {:?}", start.elapsed());
    }
}

fn pipe(row: &Row) {
    let eventfd = |flags: &[&str]| {
        let calls = calls(row, flags, &["write", EPOLL_WAIT]);
        let wait = calls.iter().position(|call| call.starts_with(EPOLL_WAIT)).expect("a wait");
        assert!(calls[wait].ends_with(" = 1"), "{}", calls[wait]);
        (wait, calls.len())
    };
    // After the wait comes the line that it prints.
    assert_eq!(eventfd(&[]), (1, 3));
    assert_eq!(eventfd(&["--wakes", "5"]), (5, 7));
    assert_eq!(eventfd(&["--wakes", "5", "--flag"]), (1, 3));
    assert_eq!(run(row.name, &["--wakes", "5"]), (Some(0), "5 wake-ups, 1 events\n".into(), String::new()));
}

fn mixed(row: &Row) {
    let server = Server::start(row, &["--bind", "127.0.0.1:0", "--interval", "100", "--count", "12"]);
    let client = server.client();
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(150));
        client.send(b"mixed");
    }
    let Ended { status, lines, .. } = server.wait();
    assert!(status.success());
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("received 5 bytes from 127.0.0.1:")).count(),
        4,
        "{lines:?}"
    );
    let timers: Vec<_> = lines.iter().filter(|line| line.starts_with("timer ")).collect();
    assert_eq!(timers, (1..=8).map(|timer| format!("timer {timer}")).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    let changes = lines.windows(2).filter(|pair| pair[0].as_bytes()[0] != pair[1].as_bytes()[0]).count();
    assert!(changes >= 5, "{lines:?}");
}

/// Starts the probe, sends one datagram to its last socket, and counts the lines `poll` up to that which received it.
fn polls_for_one_datagram(row: &Row, sockets: &str) -> usize {
    let server = Server::start(row, &["--sockets", sockets, "--count", "2"]);
    let (mut addr, mut first) = (server.addr, 0);
    loop {
        match server.line() {
            line if line == "waiting" => break,
            line if line.starts_with("poll ") => first += 1,
            line => addr = line.strip_prefix("listening on ").expect("an address").parse().unwrap(),
        }
    }
    assert_eq!(first.to_string(), sockets, "first polls");
    let client = Client::new(addr);
    let mut polls = 0;
    for round in 1..=2 {
        client.send(b"poll");
        // join_all polls the others before and after the one that receives: all lines come before the next datagram.
        thread::sleep(Duration::from_millis(100));
        if round == 1 {
            polls = std::iter::from_fn(|| server.ready_line()).filter(|line| line.starts_with("poll ")).count();
        }
    }
    let ended = server.wait();
    assert!(ended.status.success());
    let last = sockets.parse::<usize>().unwrap() - 1;
    assert!(ended.lines.contains(&format!("future {last} received 4 bytes")), "{:?}", ended.lines);
    assert_eq!(ended.lines.last(), Some(&format!("future {last}: 3 polls")));
    polls
}

fn ports(row: &Row) {
    let (status, stdout, stderr) = run(row.name, &["--start-port", "65530", "--sockets", "10"]);
    assert_eq!((status, stdout.as_str()), (Some(2), ""));
    assert_eq!(stderr, "error: 10 sockets from port 65530 need ports beyond 65535\n");
    assert_eq!(run(row.name, &["--sockets", "0"]).0, Some(2));
}

/// An error of one socket ends the probe, however its futures are held.
#[cfg(target_os = "linux")]
fn fatal(row: &Row) {
    for sockets in ["1", "10", "31"] {
        let server = Server::strace(row, &["-e", "inject=recvfrom:error=EBADF:when=1+"], &["--sockets", sockets]);
        while server.line() != "waiting" {}
        Client::new(server.addr).send(b"fatal");
        let ended = server.wait();
        let expected = "Error: cannot receive: Bad file descriptor (os error 9)\n";
        assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(1), expected), "{sockets} sockets");
    }
}
