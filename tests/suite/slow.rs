//! Servers on an interface that is slower than they are: their sends block, and what they send waits long in the queue.

use crate::conformance::forms;
use crate::rings::{namespaced, shell};
use crate::server::{Client, Server, number};
use crate::tcp_faults::cpu;
use crate::{Check, Needs, check};
use echo_lab::catalog::Row;
use std::thread;
use std::time::{Duration, Instant};

pub fn checks(row: &Row) -> Vec<Check> {
    let mut checks = Vec::new();
    for flag in [None].into_iter().chain(forms(row).iter().copied().map(Some)) {
        let named = |what: &str| flag.map_or(what.to_string(), |flag| format!("{what}_with_{flag}"));
        let sigterm = move |row: &Row| namespaced(|| sigterm_while_echoes_queue(row, flag));
        checks.push(check(named("sigterm_while_echoes_queue"), Needs::Namespace, sigterm));
        let idle = move |row: &Row| namespaced(|| no_cpu_while_a_send_is_blocked(row, flag));
        checks.push(check(named("no_cpu_while_a_send_is_blocked"), Needs::Namespace, idle));
    }
    checks
}

/// A server that has received `count` datagrams of 1000 bytes at once, and whose interface carries 125 bytes a second.
fn start_slow(row: &Row, flag: Option<&str>, count: usize) -> (Server, Client) {
    let server = Server::start(row, &[&["--recv-buffer", "212992"], flag.as_slice()].concat());
    let client = server.client();
    client.echo_numbers(0..1);
    server.signal(libc::SIGSTOP);
    (0..count).for_each(|_| client.send(&[7; 1000]));
    shell("tc qdisc add dev lo root tbf rate 1kbit burst 3000 limit 1000000");
    server.signal(libc::SIGCONT);
    server.until_it_waits();
    (server, client)
}

/// What ends a server does not have to queue behind what it has sent.
fn sigterm_while_echoes_queue(row: &Row, flag: Option<&str>) {
    let (server, _client) = start_slow(row, flag, 20);
    let start = Instant::now();
    let (summary, _) = server.stop();
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    assert_eq!((number(&summary["echoed"]), number(&summary["unsent"])), (21, 0), "{summary}");
}

/// A server that cannot send waits until it can, although more has come that it could receive.
fn no_cpu_while_a_send_is_blocked(row: &Row, flag: Option<&str>) {
    let (server, _client) = start_slow(row, flag, 150);
    let before = cpu(server.pid());
    thread::sleep(Duration::from_secs(1));
    let used = cpu(server.pid()) - before;
    assert!(used <= Duration::from_millis(50), "{used:?} of CPU time in a second");
    let (summary, _) = server.stop_with_rest();
    assert!(number(&summary["received"]) < 151, "no send was blocked: {summary}");
}
