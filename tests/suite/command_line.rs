//! The flags of every echo server, and what it says to wrong ones.

use crate::server::{Client, Server, bin, run};
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::{Kind, Row};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

pub fn checks() -> Vec<Check> {
    let table: [(&str, Run); 4] = [
        ("help", help),
        ("bad_flags", bad_flags),
        ("port_in_use", port_in_use),
        ("wildcard_address", wildcard_address),
    ];
    let mut checks: Vec<_> = table.map(|(name, run)| check(name, Needs::Nothing, run)).into();
    // Wine lets a program bind any address.
    if cfg!(unix) {
        checks.push(check("foreign_address", Needs::Nothing, foreign_address));
    }
    checks
}

fn protocol(row: &Row) -> &'static str {
    if row.kind == Kind::Tcp { "TCP" } else { "UDP" }
}

/// One byte, there and back.
fn echo(row: &Row, server: SocketAddr) {
    if row.kind == Kind::Tcp {
        let mut stream = TcpStream::connect(server).expect("connects");
        stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])).expect("echoes");
    } else {
        Client::new(server).echo(b"x");
    }
}

pub fn help(row: &Row) {
    let (status, stdout, stderr) = run(row.name, &["--help"]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.starts_with(row.shows), "{stdout}");
    let own: &[_] = match row.kind {
        Kind::Tcp => &["--buffer"],
        _ => &["--queue", "--max-size", "--count", "--recv-buffer", "[default: 8]"],
    };
    for flag in ["--bind", "--verbose", "--json"].iter().chain(own) {
        assert!(stdout.contains(flag), "{flag} in {stdout}");
    }
}

fn bad_flags(row: &Row) {
    let own: &[&[_]] = match row.kind {
        Kind::Tcp => &[&["--buffer", "0"], &["--buffer", "16777217"]],
        _ => &[
            &["--queue", "0"],
            &["--queue", "4097"],
            &["--max-size", "65528"],
            &["--max-size", "-1"],
            &["--count", "0"],
            &["--recv-buffer", "0"],
        ],
    };
    let every: [&[_]; 4] = [&["--bind", "nowhere"], &["--bind", "127.0.0.1"], &["--no-such-flag"], &["argument"]];
    for flags in every.iter().chain(own) {
        let (status, stdout, stderr) = run(row.name, flags);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{flags:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{flags:?}: {stderr}");
    }
}

fn port_in_use(row: &Row) {
    let server = Server::start(row, &[]);
    cannot_bind(row, &server.addr.to_string(), "try another port, or 0 for any free one");
    echo(row, server.addr);
    server.stop();
}

/// 192.0.2.0/24 is for documentation (RFC 5737): no machine has such an address.
fn foreign_address(row: &Row) {
    cannot_bind(row, "192.0.2.1:2000", "try an address of this machine, such as 127.0.0.1");
}

fn cannot_bind(row: &Row, at: &str, try_this: &str) {
    let (status, stdout, stderr) = run(row.name, &["--bind", at]);
    assert_eq!((status, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with(&format!("Error: cannot bind {} {at}: ", protocol(row))), "{stderr}");
    assert!(stderr.ends_with(&format!("; {try_this}\n")), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// A warning, and an echo as ever.
fn wildcard_address(row: &Row) {
    let server = Server::spawn(Command::new(bin(row.name)).args(["--bind", "0.0.0.0:0"]), None);
    echo(row, SocketAddr::from(([127, 0, 0, 1], server.addr.port())));
    #[cfg(unix)]
    {
        server.signal(libc::SIGTERM);
        let ended = server.wait();
        assert!(ended.stderr.starts_with("warning: 0.0.0.0:0 is not loopback"), "{}", ended.stderr);
        let summary = if row.kind == Kind::Tcp { "connections 1, closed " } else { "received 1, echoed 1" };
        assert!(ended.lines.len() == 1 && ended.lines[0].starts_with(summary), "{:?}", ended.lines);
    }
}
