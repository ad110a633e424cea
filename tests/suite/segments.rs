//! Datagrams that enter and leave the kernel in pieces (UDP_SEGMENT): for a server's peer nothing may change.

use crate::rings::{namespaced, shell};
use crate::server::{Client, Server, number, summary};
use crate::{Check, Needs, check};
use echo_lab::catalog::Row;
use std::os::fd::AsRawFd;

pub fn checks(row: &Row) -> Vec<Check> {
    let mut checks = vec![
        check("segments_keep_their_boundaries", Needs::Nothing, boundaries),
        check("count_within_a_piece", Needs::Nothing, count),
    ];
    if ["echo-gso", "echo-quinn-udp"].contains(&row.name) {
        for error in ["EIO", "EINVAL", "EMSGSIZE"] {
            checks.push(check(format!("a_piece_refused_with_{error}_is_sent_one_by_one"), Needs::Strace, move |row| {
                refused(row, error);
            }));
        }
        checks.push(check("a_path_too_small_for_a_piece", Needs::Namespace, |row| namespaced(|| small_path(row))));
        checks.push(check("a_piece_that_cannot_be_sent_is_counted", Needs::Strace, lost));
    }
    checks
}

/// Sends datagrams of `size` bytes, the last one of `last`, in one call. The first byte of each is its number.
pub fn send_piece(client: &Client, size: usize, count: usize, last: usize) -> Vec<Vec<u8>> {
    let size_option = size as libc::c_int;
    // SAFETY: the option is read from `size_option`, whose size is given.
    let status = unsafe {
        libc::setsockopt(
            client.0.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size_option).cast(),
            size_of_val(&size_option) as u32,
        )
    };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
    let len = |number| if number + 1 == count { last } else { size };
    let datagrams: Vec<_> = (0..count).map(|number| vec![number as u8; len(number)]).collect();
    client.send(&datagrams.concat());
    datagrams
}

/// As many echoes as asked for, although more came in one piece.
fn count(row: &Row) {
    let server = Server::start(row, &["--count", "7"]);
    let client = server.client();
    let sent = send_piece(&client, 50, 30, 50);
    sent[..7].iter().for_each(|datagram| assert!(client.recv() == *datagram));
    let summary = summary(&server.wait());
    assert_eq!(number(&summary["echoed"]), 7, "{summary}");
    client.0.set_nonblocking(true).unwrap();
    assert!(client.0.recv(&mut [0; 100]).is_err(), "more than it counts");
}

fn boundaries(row: &Row) {
    // What both clients send at once is a little more than Linux 6.12 lets a default receive buffer hold.
    let server = Server::start(row, &["--recv-buffer", "212992"]);
    let clients = [server.client(), server.client()];
    for (size, count, last) in [
        (100, 10, 100),
        (100, 10, 37),
        (1, 64, 1),
        (1400, 46, 700),
        (64, 64, 64),
        (9000, 7, 1),
        (500, 1, 500),
        (20, 2, 20),
    ] {
        let sent = clients.each_ref().map(|client| send_piece(client, size, count, last));
        for (client, datagrams) in clients.iter().zip(sent) {
            for datagram in datagrams {
                assert!(client.recv() == datagram, "{count} of {size} bytes, the last of {last}");
            }
        }
        // One that is longer than those before it, and an empty one, are left whole.
        server.client().echo(&vec![7; size + 1000]);
        server.client().echo(&[]);
    }
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), 2 * (10 + 10 + 64 + 46 + 64 + 7 + 1 + 2) + 16, "{summary}");
}

/// The first send fails.
fn inject(row: &Row, error: &str) -> String {
    format!("inject={}:error={error}:when=1", row.calls.expect("a server has calls").send)
}

/// Sends a piece of eight: all of it comes back.
fn echo_piece(client: &Client, size: usize) {
    for datagram in send_piece(client, size, 8, size) {
        assert_eq!(client.recv(), datagram);
    }
}

/// The piece that is refused goes back one by one, the next one as a piece again.
fn refused(row: &Row, error: &str) {
    // The crate takes this error for that of an old kernel, and sends all again.
    let all_again = row.name == "echo-quinn-udp" && error == "EINVAL";
    let inject = inject(row, error).replace("when=1", if all_again { "when=1..2" } else { "when=1" });
    let server = Server::strace(row, &["-e", &inject], &[]);
    let client = server.client();
    (0..3).for_each(|_| echo_piece(&client, 50));
    let (summary, ended) = server.stop();
    assert_eq!((number(&summary["echoed"]), number(&summary["send_errors"])), (24, 0), "{summary}");
    assert_eq!(ended.stderr.matches("warning: no segmentation offload to 127.0.0.1:").count(), 1, "{}", ended.stderr);
    let sends = ended.trace.lines().filter(|call| call.contains("sa_family") && call.contains("sendmsg("));
    assert_eq!(sends.count(), if all_again { 2 } else { 1 } + 8 + 1 + 1, "{}", ended.trace);
}

/// One peer's path takes no datagrams of this size: they come back to it in fragments, and to the others as before.
fn small_path(row: &Row) {
    shell("ip addr add 10.9.0.2/32 dev lo; ip route change local 10.9.0.2 dev lo table local mtu 760");
    let server = Server::strace(row, &[], &[]);
    let (near, far) = (server.client(), Client::at("10.9.0.2", server.addr));
    for _ in 0..2 {
        echo_piece(&far, 1400);
        far.echo(&[7; 1400]);
        echo_piece(&far, 100);
        echo_piece(&near, 1400);
    }
    let (summary, ended) = server.stop();
    assert_eq!((number(&summary["echoed"]), number(&summary["send_errors"])), (50, 0), "{summary}");
    let whole = |call: &&str| call.contains("sendmsg(") && (call.ends_with(" = 800") || call.ends_with(" = 11200"));
    let pieces = ended.trace.lines().filter(whole);
    assert_eq!(pieces.count(), 4, "{}", ended.trace);
}

fn lost(row: &Row) {
    let server = Server::strace(row, &["-e", &inject(row, "ENOBUFS")], &[]);
    let client = server.client();
    send_piece(&client, 50, 8, 20);
    server.client().echo_numbers(0..3);
    let (summary, _) = server.stop();
    assert_eq!((number(&summary["echoed"]), number(&summary["send_errors"])), (3, 8), "{summary}");
}
