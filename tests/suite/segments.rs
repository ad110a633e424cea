//! Datagrams that enter and leave the kernel in pieces (UDP_SEGMENT): for a server's peer nothing may change.

use crate::server::{Client, Server, number};
use crate::{Check, Needs, check};
use echo_lab::catalog::Row;
use std::os::fd::AsRawFd;

pub fn checks(row: &Row) -> Vec<Check> {
    let mut checks = vec![check("segments_keep_their_boundaries", Needs::Nothing, boundaries)];
    if ["echo-gso", "echo-quinn-udp"].contains(&row.name) {
        checks.push(check("sends_one_by_one_if_refused", Needs::Strace, refused));
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

fn refused(row: &Row) {
    let server = Server::strace(row, &["-e", &inject(row, "EIO")], &[]);
    let client = server.client();
    for _ in 0..2 {
        for datagram in send_piece(&client, 50, 8, 20) {
            assert_eq!(client.recv(), datagram);
        }
    }
    let (summary, ended) = server.stop();
    assert_eq!((number(&summary["echoed"]), number(&summary["send_errors"])), (16, 0), "{summary}");
    assert_eq!(ended.stderr.matches("warning: no segmentation offload here (Input/output error").count(), 1);
}

fn lost(row: &Row) {
    let server = Server::strace(row, &["-e", &inject(row, "ENOBUFS")], &[]);
    let client = server.client();
    send_piece(&client, 50, 8, 20);
    server.client().echo_numbers(0..3);
    let (summary, _) = server.stop();
    assert_eq!((number(&summary["echoed"]), number(&summary["send_errors"])), (3, 8), "{summary}");
}
