//! `say`, the client for the second terminal.

use crate::server::{Server, bin};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::{Row, find};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};

pub fn checks(row: &Row) -> Vec<Check> {
    let table: &[(&str, Run)] = match row.name {
        "say" => &[
            ("prints_each_answer", prints_each_answer),
            ("nobody_listens", nobody_listens),
            ("no_answer", no_answer),
            ("another_answer", another_answer),
        ],
        _ => &[],
    };
    table.iter().map(|(name, run)| check(*name, Needs::Nothing, *run)).collect()
}

/// Status, standard output and standard error of `say` with `lines` typed.
fn say(flags: &[&str], server: SocketAddr, lines: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(bin("say"));
    command.args(flags).arg(server.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn prints_each_answer(_: &Row) {
    for (server, flags, at) in [
        ("echo-blocking", &[][..], "127.0.0.1:0"),
        ("echo-blocking", &[], "[::1]:0"),
        ("echo-tcp-threads", &["--tcp"], "127.0.0.1:0"),
    ] {
        let server = Server::start(find(server).unwrap(), &["--bind", at]);
        let (status, stdout, stderr) = say(flags, server.addr, "one\n\nthree, with ü\n");
        assert_eq!((status, stderr.as_str()), (Some(0), ""));
        let answers: Vec<_> = stdout.lines().map(|line| line.rsplit_once("    (").expect("a time")).collect();
        assert_eq!(answers.iter().map(|(answer, _)| *answer).collect::<Vec<_>>(), ["one", "", "three, with ü"]);
        assert!(answers.iter().all(|(_, time)| time.ends_with("s)")), "{stdout}");
        server.stop();
    }
}

/// A port that was free a moment ago.
fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn nobody_listens(_: &Row) {
    for (flags, protocol) in [(&[][..], "UDP"), (&["--tcp"], "TCP")] {
        let at = closed();
        let (status, stdout, stderr) = say(flags, at, if flags.is_empty() { "one\n" } else { "" });
        assert_eq!((status, stdout.as_str()), (Some(1), ""));
        assert!(stderr.starts_with(&format!("Error: cannot get an echo from {protocol} {at}: ")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

fn no_answer(_: &Row) {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap();
    let (status, stdout, stderr) = say(&["--patience", "50"], at, "one\ntwo\n");
    assert_eq!((status, stdout.as_str()), (Some(1), "no answer in 50ms\nno answer in 50ms\n"));
    assert_eq!(stderr, format!("Error: {at} left 2 datagrams without an answer\n"));
}

/// An answer that is not what was sent is none.
fn another_answer(_: &Row) {
    let liar = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = liar.local_addr().unwrap();
    let lying = std::thread::spawn(move || {
        let (_, client) = liar.recv_from(&mut [0; 16]).unwrap();
        liar.send_to(b"two\n", client).unwrap();
    });
    let (status, stdout, _) = say(&["--patience", "200"], at, "one\n");
    lying.join().unwrap();
    assert_eq!((status, stdout.as_str()), (Some(1), "no answer in 200ms\n"));
}
