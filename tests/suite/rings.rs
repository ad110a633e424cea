//! Servers over io_uring when things go wrong: no ring to be had, a call into it that fails, and errors of the network,
//! which are real, since those of a ring's operations cannot be injected.

use crate::server::{Server, bin, content, number, run};
use crate::tcp::{Peer, connect_all};
use crate::xdp::new_namespace;
use crate::{Check, Needs, Run, check};
use echo_lab::catalog::{Allocations, Kind, Row};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

pub fn checks(row: &Row) -> Vec<Check> {
    let mut checks = Vec::new();
    for (error, says) in [
        ("ENOSYS", "Function not implemented (os error 38); it needs Linux 6.1 or later, built with CONFIG_IO_URING"),
        (
            "EPERM",
            "Operation not permitted (os error 1); \
             try sysctl kernel.io_uring_disabled=0, or a container that allows io_uring_setup",
        ),
        ("ENOMEM", "Cannot allocate memory (os error 12); try a higher ulimit -l"),
        ("EINVAL", "Invalid argument (os error 22); it needs Linux 6.1 or later, for DEFER_TASKRUN"),
    ] {
        let run = move |row: &Row| setup_fails(row, error, says);
        checks.push(check(format!("setup_fails_with_{error}"), Needs::Strace, run));
    }
    for error in ["EINTR", "EAGAIN", "EBUSY"] {
        checks.push(check(format!("enter_fails_with_{error}"), Needs::Strace, move |row| enter_fails(row, error)));
    }
    // A runtime panics.
    if row.allocations == Allocations::None {
        checks.push(check("unusable_ring", Needs::Strace, unusable_ring));
    }
    checks.push(check("leaves_no_work_to_threads_of_the_kernel", Needs::Nothing, one_thread));
    let table: &[(&str, Needs, Run)] = match row.kind {
        Kind::Tcp => &[
            ("reset_while_a_send_waits", Needs::Nothing, reset_while_a_send_waits),
            ("more_that_do_not_read_than_buffers", Needs::Nothing, more_that_do_not_read),
        ],
        _ => &[
            ("sends_that_would_block", Needs::Namespace, |row| {
                namespaced(|| sends_that_would_block(row, 65536, 1000, 150))
            }),
            ("fragments_that_would_block", Needs::Namespace, |row| {
                namespaced(|| sends_that_would_block(row, 760, 3000, 30))
            }),
            ("sigterm_while_sends_would_block", Needs::Namespace, |row| namespaced(|| sigterm_while_blocked(row))),
            ("smallest_and_largest_memory", Needs::Nothing, memory),
        ],
    };
    checks.extend(table.iter().map(|(name, needs, run)| check(*name, *needs, run)));
    checks
}

/// One sentence, which says what to do.
fn setup_fails(row: &Row, error: &str, says: &str) {
    let inject = format!("inject=io_uring_setup:error={error}");
    let mut command = Command::new("strace");
    command.args(["-D", "-o", "/dev/null", "-e", &inject]).arg(bin(row.name)).args(["--bind", "127.0.0.1:0"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = format!("Error: io_uring cannot be set up: {says}\n");
    assert_eq!((output.status.code(), stderr), (Some(1), expected));
    assert!(output.stdout.is_empty());
}

/// Nothing is lost, nothing is done twice.
fn enter_fails(row: &Row, error: &str) {
    for when in ["1..2", "3..5", "4+3"] {
        let server = Server::strace(row, &["-e", &format!("inject=io_uring_enter:error={error}:when={when}")], &[]);
        if row.kind == Kind::Tcp {
            let peers = connect_all(&server, 3);
            for round in 0..20 {
                peers.iter().for_each(|peer| peer.write(&content(round, 30_000)));
                peers.iter().for_each(|peer| peer.expect(&content(round, 30_000)));
            }
        } else {
            let client = server.client();
            client.echo_numbers(0..20);
            server.echo_burst(&client, 30);
        }
        let (_, ended) = server.stop();
        assert!(ended.trace.contains("(INJECTED)"), "nothing was injected into io_uring_enter");
    }
}

/// The server ends, and before its memory goes so do the operations that point there.
fn unusable_ring(row: &Row) {
    let server = Server::strace(row, &["-e", "inject=io_uring_enter:error=EBADF:when=2+"], &[]);
    match row.kind {
        Kind::Tcp => drop(Peer::new(&server)),
        _ => server.client().send(b"wakes it"),
    }
    let ended = server.wait();
    let says = "Error: cannot enter the ring: Bad file descriptor (os error 9)\n";
    assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(1), says));
    let (_, end) = ended.trace.rsplit_once("(INJECTED)").expect("something was injected");
    // strace 6.1 has only its number (linux/io_uring.h).
    let cancels = end.contains("IORING_REGISTER_SYNC_CANCEL") || end.contains("0x18 /* IORING_REGISTER_??? */");
    assert!(cancels, "no operation was cancelled: {end}");
}

/// An operation that cannot wait for its socket, or has waited in vain too often, is given to a thread of the kernel's.
fn one_thread(row: &Row) {
    let server = Server::start(row, &[]);
    if row.kind == Kind::Tcp {
        let peers = connect_all(&server, 3);
        (0..500).for_each(|round| peers.iter().for_each(|peer| peer.echo(&content(round, 100))));
    } else {
        let client = server.client();
        client.echo_numbers(0..500);
        (0..20).for_each(|_| server.echo_burst(&client, 30));
    }
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().count();
    assert_eq!(threads, 1);
    server.stop();
}

/// The kernel's own end of a send that waits.
fn reset_while_a_send_waits(row: &Row) {
    let server = Server::start(row, &[]);
    let polite = Peer::new(&server);
    for _ in 0..5 {
        let peer = Peer::new(&server);
        peer.fill();
        socket2::SockRef::from(&peer.0).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        polite.echo(b"still served");
    }
    thread::sleep(Duration::from_millis(100));
    let (summary, _) = server.stop_with_rest();
    let counts = ["accepted", "closed", "failed"].map(|name| number(&summary[name]));
    assert_eq!(counts, [6, 6, 5], "{summary}");
}

/// Each holds buffers; the others still find some.
fn more_that_do_not_read(row: &Row) {
    const SILENT: usize = 24;
    let server = Server::start(row, &["--buffer", "4096"]);
    let polite = Peer::new(&server);
    let silent = connect_all(&server, SILENT);
    let written: Vec<_> = thread::scope(|scope| {
        let fills: Vec<_> = silent.iter().map(|peer| scope.spawn(|| peer.fill())).collect();
        fills.into_iter().map(|fill| fill.join().unwrap()).collect()
    });
    (0..100).for_each(|round| polite.echo(&content(round, 10_000)));
    silent.iter().zip(written).for_each(|(peer, len)| peer.drain(len));
    server.stop();
}

/// Whether this process may make a network namespace, with addresses and a limit of its rate.
pub fn namespace() -> bool {
    static POSSIBLE: LazyLock<bool> = LazyLock::new(|| {
        let script = "ip link set lo up && tc qdisc add dev lo root tbf rate 1mbit burst 3000 limit 10000";
        let mut command = Command::new("unshare");
        let status = command.args(["-n", "sh", "-c", script]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    });
    *POSSIBLE
}

/// In a network of its own, which is gone with the thread and what it started.
pub fn namespaced(run: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            new_namespace().unwrap();
            shell("ip link set lo up");
            let _down = Down;
            run();
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Takes the interface down at the end, whatever it is. Else what a shaper still holds would keep the namespace for minutes,
/// and with the ICMP messages in it the one socket by which the kernel sends all of them (icmp_xmit_lock in net/ipv4/icmp.c):
/// no namespace, nor the host, would send others.
struct Down;

impl Drop for Down {
    fn drop(&mut self) {
        shell("ip link set lo down");
    }
}

pub fn shell(script: &str) {
    assert!(Command::new("sh").args(["-c", script]).status().unwrap().success(), "{script}");
}

/// With the interface slower than the server, sends find no room: none is lost, and none overtakes another. What a datagram
/// takes of the send buffer is more than twice its size if it is cut into many fragments.
fn sends_that_would_block(row: &Row, mtu: u32, size: usize, burst: u32) {
    shell(&format!("ip link set lo mtu {mtu}"));
    let server = Server::start(row, &["--recv-buffer", "212992"]);
    let client = server.client();
    socket2::SockRef::from(&client.0).set_recv_buffer_size(212_992).unwrap();
    client.echo_numbers(0..1);
    for round in 0..3 {
        server.signal(libc::SIGSTOP);
        let datagram = |number: u32| [&(round * burst + number).to_be_bytes()[..], &vec![7; size]].concat();
        (0..burst).for_each(|number| client.send(&datagram(number)));
        shell("tc qdisc add dev lo root tbf rate 20mbit burst 3000 limit 1000000");
        server.signal(libc::SIGCONT);
        (0..burst).for_each(|number| assert!(client.recv() == datagram(number), "another than {number}"));
        shell("tc qdisc del dev lo root");
    }
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), u64::from(1 + 3 * burst), "{summary}");
    // The sends of a runtime wait in the kernel, which does not tell.
    let tells = row.allocations == Allocations::None;
    assert!(!tells || number(&summary["would_block"]["send"]) > 0, "no send found the buffer full: {summary}");
}

/// What waits in the kernel must not keep a server from ending, and is accounted for.
fn sigterm_while_blocked(row: &Row) {
    let server = Server::start(row, &["--recv-buffer", "212992"]);
    let client = server.client();
    client.echo_numbers(0..1);
    server.signal(libc::SIGSTOP);
    (0..150).for_each(|_| client.send(&[7; 1000]));
    shell("tc qdisc add dev lo root tbf rate 20kbit burst 3000 limit 1000000");
    server.signal(libc::SIGCONT);
    thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    let (summary, _) = server.stop_with_rest();
    assert!(start.elapsed() < Duration::from_secs(3), "took {:?}", start.elapsed());
    assert!(number(&summary["unsent"]) > 0, "{summary}");
}

/// With memory for one datagram, and for as many as the flag allows.
fn memory(row: &Row) {
    let (flag, most) = if row.name == "echo-uring-multishot" { ("--buffers", 4096) } else { ("--depth", 1024) };
    for count in [1, 2, 3, most] {
        let server = Server::start(row, &[flag, &count.to_string()]);
        let client = server.client();
        client.echo_numbers(0..20);
        (0..5).for_each(|_| server.echo_burst(&client, 30));
        server.stop();
    }
    for count in [0, most + 1] {
        let (status, _, stderr) = run(row.name, &[flag, &count.to_string()]);
        assert!(status == Some(2) && stderr.starts_with("error: invalid value"), "{stderr}");
    }
}
