//! SIGINT and SIGTERM end a server with a summary and status 0, whatever the moment; SIGSTOP and SIGCONT lose nothing.

use crate::server::{Client, PATIENCE, Server, bin, number, summary};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::Row;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub fn checks() -> Vec<Check> {
    let table: [(&str, Run); 9] = [
        ("sigterm", |row| one_signal(row, libc::SIGTERM)),
        ("sigint", |row| one_signal(row, libc::SIGINT)),
        ("signals_at_random_moments", signals_at_random_moments),
        ("sigterm_under_flood", sigterm_under_flood),
        ("burst_while_stopped", burst_while_stopped),
        ("burst_beyond_all_limits", |row| burst_beyond_all_limits(row, &[])),
        ("count_within_a_burst", count_within_a_burst),
        ("stop_and_continue", stop_and_continue),
        ("standard_output_closed", standard_output_closed),
    ];
    let mut checks: Vec<_> = table.map(|(name, run)| check(name, Needs::Nothing, run)).into();
    checks.push(check("tracer_attached_and_detached", Needs::Strace, tracer));
    checks.push(check("burst_before_one_wait", Needs::Strace, burst_before_one_wait));
    checks.push(check("sigterm_while_it_never_catches_up", Needs::Strace, sigterm_while_it_never_catches_up));
    checks
}

fn one_signal(row: &Row, signal: i32) {
    let server = Server::start(row, &[]);
    server.client().echo_numbers(0..3);
    server.signal(signal);
    let ended = server.wait();
    assert_eq!(number(&summary(&ended)["echoed"]), 3);
}

fn signals_at_random_moments(row: &Row) {
    at_random_moments(40, || {
        let server = Server::start(row, &[]);
        let client = server.client();
        (server, client)
    });
}

/// Moments spread over the first milliseconds of a run, with traffic and without: idle, about to wait, at work.
pub fn at_random_moments(rounds: u64, start: impl Fn() -> (Server, Client)) {
    for round in 0..rounds {
        let (server, client) = start();
        (0..round % 4).for_each(|number| client.send(&number.to_be_bytes()));
        let moment = Instant::now() + Duration::from_micros(round * 7919 % 3000);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        for again in 0..=round % 3 {
            let signal = if (round + again) % 2 == 0 { libc::SIGTERM } else { libc::SIGINT };
            server.signal(signal);
        }
        let start = Instant::now();
        summary(&server.wait());
        assert!(start.elapsed() < Duration::from_secs(2), "round {round}: took {:?}", start.elapsed());
    }
}

fn sigterm_under_flood(row: &Row) {
    let server = Server::start(row, &[]);
    let client = server.client();
    stops_under_flood(server, &client);
}

/// Each of its calls that send takes a millisecond: there is always something left to receive.
fn sigterm_while_it_never_catches_up(row: &Row) {
    let send = row.calls.expect("a server has calls").send;
    let server = Server::strace(row, &["-e", &format!("inject={send}:delay_enter=1000")], &[]);
    let over = AtomicBool::new(false);
    let client = server.client();
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let limit = Instant::now() + 2 * PATIENCE;
            while !over.load(Ordering::Relaxed) && Instant::now() < limit {
                let _ = client.0.send(&[0; 64]);
            }
        });
        thread::sleep(Duration::from_millis(100));
        server.signal(libc::SIGTERM);
        // If it does not end, this thread panics: the flood is to end then, too.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.wait()));
        over.store(true, Ordering::Relaxed);
        flood.join().unwrap();
        summary(&ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    });
}

/// Its summary. `client` does not wait for answers.
pub fn stops_under_flood(server: Server, client: &Client) -> Value {
    let over = AtomicBool::new(false);
    let (took, summary) = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let limit = Instant::now() + Duration::from_secs(5);
                while !over.load(Ordering::Relaxed) && Instant::now() < limit {
                    // Once the server has gone, the kernel refuses.
                    let _ = client.0.send(&[0; 64]);
                }
            });
        }
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        let (summary, _) = server.stop();
        over.store(true, Ordering::Relaxed);
        (start.elapsed(), summary)
    });
    assert!(took < Duration::from_secs(2), "took {took:?}");
    summary
}

fn burst_while_stopped(row: &Row) {
    let server = Server::start(row, &[]);
    let client = server.client();
    client.echo_numbers(0..1);
    server.echo_burst(&client, 30);
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), 31);
}

/// More at once than any server receives in one turn, or holds. Nothing else comes that would wake it again.
pub fn burst_beyond_all_limits(row: &Row, flags: &[&str]) {
    const BURST: u32 = 400;
    let server = Server::start(row, &[&["--recv-buffer", "212992"], flags].concat());
    let client = server.client();
    socket2::SockRef::from(&client.0).set_recv_buffer_size(212_992).unwrap();
    client.echo_numbers(0..1);
    (0..3).for_each(|_| server.echo_burst(&client, BURST));
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), u64::from(1 + 3 * BURST), "{summary}");
}

/// All is there when the wait begins, so it tells of it once: of what the loop leaves behind then no edge will tell. (A wait
/// that SIGSTOP interrupts tells of it again.)
fn burst_before_one_wait(row: &Row) {
    const BURST: u32 = 350;
    let calls = row.calls.expect("a server has calls");
    let inject = format!("inject={}:delay_enter=500000:when=2..4", calls.wait.unwrap_or(calls.recv));
    let server = Server::strace(row, &["-e", &inject], &["--recv-buffer", "212992"]);
    let client = server.client();
    socket2::SockRef::from(&client.0).set_recv_buffer_size(212_992).unwrap();
    client.echo_numbers(0..1);
    // Until it has found nothing more, and is about to wait.
    thread::sleep(Duration::from_millis(100));
    (0..BURST).for_each(|number| client.send(&number.to_be_bytes()));
    (0..BURST).for_each(|number| assert_eq!(client.recv(), number.to_be_bytes()));
    server.stop();
}

/// As many echoes as asked for, although more has been received.
fn count_within_a_burst(row: &Row) {
    for (count, burst) in [(7u32, 30u32), (100, 150)] {
        let server = Server::start(row, &["--count", &count.to_string()]);
        let client = server.client();
        server.signal(libc::SIGSTOP);
        (0..burst).for_each(|number| client.send(&number.to_be_bytes()));
        server.signal(libc::SIGCONT);
        (0..count).for_each(|number| assert_eq!(client.recv(), number.to_be_bytes()));
        let summary = summary(&server.wait());
        assert_eq!(number(&summary["echoed"]), u64::from(count), "{summary}");
        assert_eq!(client.number_within(Duration::from_millis(20)), None, "more than it counts");
    }
}

fn stop_and_continue(row: &Row) {
    let server = Server::start(row, &[]);
    let client = server.client();
    for round in 0..20 {
        server.signal(libc::SIGSTOP);
        thread::sleep(Duration::from_millis(round % 3));
        server.signal(libc::SIGCONT);
        client.echo_numbers(0..3);
    }
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), 60);
}

fn tracer(row: &Row) {
    let server = Server::start(row, &[]);
    let client = server.client();
    for _ in 0..3 {
        server.traced(|| client.echo_numbers(0..5));
        client.echo_numbers(0..5);
    }
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), 30);
}

/// As in `echo-select | head -1`.
fn standard_output_closed(row: &Row) {
    let mut command = Command::new(bin(row.name));
    command.args(["--bind", "127.0.0.1:0", "--count", "5"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addr = line.trim_end().strip_prefix("listening on ").unwrap().parse().unwrap();
    Client::new(addr).echo_numbers(0..5);
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}
