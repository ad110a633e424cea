//! What a server says must not end it: nobody may be left to read standard error, or the disk may be full.

use crate::server::{Client, Server, bin};
use crate::tcp::Peer;
use crate::{Check, Needs, check};
use echo_lab::catalog::{Kind, Row};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// A reason for a server to write to standard error: what it is called, and the flags that make it write.
type Occasion = (&'static str, &'static [&'static str]);

pub fn checks(row: &Row) -> Vec<Check> {
    let both: &[Occasion] = &[("warning", &["--bind", "0.0.0.0:0"]), ("verbose", &["-v"])];
    let own: &[Occasion] = match (row.kind, row.name) {
        (Kind::Udp, "echo-gso" | "echo-quinn-udp") => {
            &[("receive_buffer", &["--recv-buffer", "2000000000"]), (REFUSED, &[])]
        }
        (Kind::Udp, _) => &[("receive_buffer", &["--recv-buffer", "2000000000"])],
        (Kind::Tcp, "echo-tcp-registrar") => &[("interval", &["--interval", "10"])],
        (Kind::Tcp, _) => &[],
        _ => return Vec::new(),
    };
    let mut checks = Vec::new();
    for (occasion, flags) in both.iter().chain(own) {
        let needs = if *occasion == REFUSED { Needs::Strace } else { Needs::Nothing };
        checks.push(check(format!("nobody_reads_standard_error_{occasion}"), needs, |row| {
            // Its other end is closed at once: writing fails with EPIPE.
            let (stderr, _) = UnixStream::pair().unwrap();
            unwritable(row, *occasion == REFUSED, flags, OwnedFd::from(stderr).into());
        }));
        checks.push(check(format!("standard_error_is_full_{occasion}"), needs, |row| {
            unwritable(row, *occasion == REFUSED, flags, full().into());
        }));
    }
    checks.push(check("standard_output_is_full", Needs::Nothing, output_is_full));
    checks
}

/// Segmentation offload, which the interface refuses.
const REFUSED: &str = "no_offload";

/// Writing fails with ENOSPC (full(4)).
fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// It echoes as ever, and ends as ever.
fn unwritable(row: &Row, refused: bool, flags: &[&str], stderr: Stdio) {
    let mut command = Command::new(bin(row.name));
    if refused {
        let inject = format!("inject={}:error=EIO:when=1", row.calls.expect("a server has calls").send);
        command = Command::new("strace");
        command.args(["-D", "-f", "-o", "/dev/null", "-e", "signal=none", "-e", &inject]).arg(bin(row.name));
    }
    command.arg("--json");
    if !flags.contains(&"--bind") {
        command.args(["--bind", "127.0.0.1:0"]);
    }
    let mut server = Server::spawn_with(command.args(flags), None, stderr);
    // One that is bound to a wildcard address.
    server.addr.set_ip([127, 0, 0, 1].into());
    if row.kind == Kind::Tcp {
        for _ in 0..5 {
            Peer::new(&server).echo(b"still served");
            thread::sleep(Duration::from_millis(20));
        }
    } else {
        let client = server.client();
        if refused {
            piece(&client);
        }
        client.echo_numbers(0..20);
    }
    server.stop();
}

/// Datagrams that one send is to give back.
fn piece(client: &Client) {
    let datagrams = crate::segments::send_piece(client, 50, 8, 20);
    datagrams.iter().for_each(|datagram| assert_eq!(client.recv(), *datagram));
}

/// Nobody can be told where it listens: a failed start, with a sentence.
fn output_is_full(row: &Row) {
    let mut command = Command::new(bin(row.name));
    let output = command.args(["--bind", "127.0.0.1:0"]).stdout(full()).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = "Error: cannot write to standard output: No space left on device (os error 28)\n";
    assert_eq!((output.status.code(), stderr.as_str()), (Some(1), expected));
}
