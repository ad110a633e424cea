//! The contract of every echo server, on every system.

use crate::server::{Client, Server, bin, number, run, summary};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::Row;
use std::process::Command;
use std::thread;

pub fn checks() -> Vec<Check> {
    let table: [(&str, Run); 10] = [
        ("sizes", |row| sizes(row, "127.0.0.1:0")),
        ("sizes_ipv6", |row| sizes(row, "[::1]:0")),
        ("order_of_one_sender", order_of_one_sender),
        ("many_senders", many_senders),
        ("count", count),
        ("summary_text", summary_text),
        ("too_big", too_big),
        ("verbose", verbose),
        ("recv_buffer", recv_buffer),
        ("idle_sockets", idle_sockets),
    ];
    table.map(|(name, run)| check(name, Needs::Nothing, run)).into()
}

/// `len` bytes that differ from those of another `seed`, and from place to place.
pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect()
}

fn sizes(row: &Row, at: &str) {
    let server = Server::start(row, &["--bind", at]);
    let client = server.client();
    for (seed, len) in [0, 1, 1472, 1500, 9000, 65507].into_iter().enumerate() {
        client.echo(&pattern(len, seed as u8));
    }
    server.stop();
}

fn order_of_one_sender(row: &Row) {
    const OUTSTANDING: u32 = 16;
    let server = Server::start(row, &[]);
    let client = server.client();
    for number in 0..1000 + OUTSTANDING {
        if number < 1000 {
            client.send(&number.to_be_bytes());
        }
        if let Some(expected) = number.checked_sub(OUTSTANDING) {
            assert_eq!(client.recv(), expected.to_be_bytes());
        }
    }
    server.stop();
}

fn many_senders(row: &Row) {
    let server = Server::start(row, &[]);
    let addr = server.addr;
    let senders = (0..20u8).map(|sender| {
        thread::spawn(move || {
            let client = Client::new(addr);
            (0..50).for_each(|round| client.echo(&pattern(100 + round, sender)));
        })
    });
    senders.collect::<Vec<_>>().into_iter().for_each(|sender| sender.join().unwrap());
    server.stop();
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
    client.echo(&pattern(100, 1));
    client.send(&pattern(101, 2));
    client.send(&pattern(65507, 3));
    client.echo(&pattern(99, 4));
    assert_eq!(number(&summary(&server.wait())["too_big"]), 2);
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

/// A server that can wait for many sockets opens them, and echoes as ever.
fn idle_sockets(row: &Row) {
    if !row.takes_sockets {
        let (status, _, stderr) = run(row.name, &["--sockets", "3"]);
        assert!(status == Some(2) && stderr.contains("unexpected argument '--sockets'"), "{stderr}");
        return;
    }
    let server = Server::start(row, &["--sockets", "200"]);
    #[cfg(target_os = "linux")]
    {
        let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().flatten();
        let target = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).unwrap_or_default();
        let sockets = open.map(target).filter(|path| path.to_string_lossy().starts_with("socket:")).count();
        assert!(sockets >= 200, "{sockets} sockets");
    }
    server.client().echo_numbers(0..20);
    server.stop();
}
