//! The contract of every echo server, on every system.

use crate::server::{Client, Server, bin, content, number, summary};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::Row;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;

pub fn checks(row: &Row) -> Vec<Check> {
    let table: [(&str, Run); 9] = [
        ("sizes", |row| sizes(row, "127.0.0.1:0")),
        ("sizes_ipv6", |row| sizes(row, "[::1]:0")),
        ("order_of_one_sender", order_of_one_sender),
        ("many_senders", many_senders),
        ("count", count),
        ("summary_text", summary_text),
        ("too_big", too_big),
        ("verbose", verbose),
        ("recv_buffer", recv_buffer),
    ];
    let mut checks: Vec<_> = table.map(|(name, run)| check(name, Needs::Nothing, run)).into();
    for flag in ["--queue=1", "--queue=4096"].iter().chain(forms(row)) {
        checks.push(check(format!("echoes_with_{flag}"), Needs::Nothing, move |row| echoes_with(row, flag)));
    }
    checks
}

/// Flags that change how a server does its work.
pub fn forms(row: &Row) -> &'static [&'static str] {
    match row.name {
        // Windows has no edge-triggered events.
        "echo-polling" if cfg!(windows) => &["--mode=oneshot"],
        "echo-polling" => &["--mode=edge", "--mode=oneshot"],
        "echo-mmsg" | "echo-tokio-batch" => &["--batch=1"],
        "echo-reuseport" => &["--threads=3"],
        _ => &[],
    }
}

fn sizes(row: &Row, at: &str) {
    let server = Server::start(row, &["--bind", at]);
    let client = server.client();
    for (seed, len) in [0, 1, 1472, 1500, 9000, 65507].into_iter().enumerate() {
        client.echo(&content(seed as u64, len));
    }
    server.stop();
}

fn order_of_one_sender(row: &Row) {
    let server = Server::start(row, &[]);
    server.client().echo_windowed(1000, 16);
    server.stop();
}

/// The same promises, in another way.
fn echoes_with(row: &Row, flag: &str) {
    let server = Server::start(row, &[flag]);
    let clients = [server.client(), server.client()];
    for len in [0, 1, 1472, 65507] {
        clients.iter().enumerate().for_each(|(number, client)| client.echo(&content(number as u64, len)));
    }
    clients[0].echo_windowed(1000, 16);
    clients[1].echo_windowed(1000, 16);
    server.stop();
    #[cfg(unix)]
    crate::signals::burst_beyond_all_limits(row, &[flag]);
}

fn many_senders(row: &Row) {
    let server = Server::start(row, &[]);
    echo_from_many(server.addr, Client::new);
    server.stop();
}

/// 20 clients at a time, which are made by threads of the calling one: 1000 echoes.
pub fn echo_from_many(server: SocketAddr, client: fn(SocketAddr) -> Client) {
    thread::scope(|scope| {
        for sender in 0..20 {
            scope.spawn(move || {
                let client = client(server);
                (0..50).for_each(|round| client.echo(&content(1000 * sender, 100 + round)));
            });
        }
    });
}

fn count(row: &Row) {
    let server = Server::start(row, &["--count", "5"]);
    server.client().echo_numbers(0..5);
    let summary = summary(&server.wait());
    assert_eq!((number(&summary["received"]), number(&summary["echoed"])), (5, 5));
}

fn summary_text(row: &Row) {
    let mut command = Command::new(bin(row.name));
    let server = Server::spawn(command.args(["--bind", "127.0.0.1:0", "--count", "2"]), None);
    server.client().echo_numbers(0..2);
    let ended = server.wait();
    assert!(ended.status.success());
    assert_eq!(ended.lines.len(), 1, "{:?}", ended.lines);
    assert!(ended.lines[0].starts_with("received 2, echoed 2, refused 0"), "{:?}", ended.lines);
    assert_eq!(ended.stderr, "");
}

fn too_big(row: &Row) {
    let server = Server::start(row, &["--max-size", "100", "--count", "2"]);
    let client = server.client();
    client.echo(&content(1, 100));
    // More than a server has memory for at a time: what is refused leaves its memory free.
    (0..100).for_each(|_| client.send(&content(2, 101)));
    client.send(&content(3, 65507));
    client.echo(&content(4, 99));
    assert_eq!(number(&summary(&server.wait())["too_big"]), 101);
    // Room for nothing, and for more than a datagram can have.
    let server = Server::start(row, &["--max-size", "0", "--count", "2"]);
    let client = server.client();
    client.echo(&[]);
    client.send(&[1]);
    client.echo(&[]);
    assert_eq!(number(&summary(&server.wait())["too_big"]), 1);
    let server = Server::start(row, &["--max-size", "65527", "--count", "1"]);
    server.client().echo(&content(1, 65507));
    assert_eq!(number(&summary(&server.wait())["too_big"]), 0);
}

fn verbose(row: &Row) {
    let server = Server::start(row, &["-v", "--max-size", "10", "--count", "1"]);
    let client = server.client();
    client.send(&[0; 20]);
    client.echo(&[0; 10]);
    let from = client.0.local_addr().unwrap();
    let stderr = server.wait().stderr;
    assert!(stderr.contains(&format!("10 bytes from {from}")), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
}

fn recv_buffer(row: &Row) {
    let server = Server::start(row, &["--recv-buffer", "2000000000", "--count", "1"]);
    server.client().echo(&[]);
    let stderr = server.wait().stderr;
    assert!(!cfg!(target_os = "linux") || stderr.starts_with("warning: receive buffer is "), "{stderr}");
}
