//! What must not end a server, disorder its answers, or go uncounted. The original servers: 0 of 7 survive the first.

use crate::rings::{namespaced, shell};
use crate::server::{Client, PATIENCE, Server, content, number, summary};
use crate::{Check, Needs, check};
use echo_lab::catalog::Row;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Which of a server's calls fails.
#[derive(Clone, Copy)]
enum Call {
    Recv,
    Send,
    Wait,
}

/// A system call made to fail by strace.
#[derive(Clone, Copy)]
struct Fault {
    call: Call,
    error: &'static str,
    /// Which invocations fail, as strace's `when=` takes it.
    when: &'static str,
    /// Datagrams that get no answer.
    lost: usize,
    /// The counter that tells of it, as a JSON pointer, and the least that it says.
    counter: Option<(&'static str, u64)>,
}

const fn fault(
    call: Call,
    error: &'static str,
    when: &'static str,
    lost: usize,
    counter: Option<(&'static str, u64)>,
) -> Fault {
    Fault { call, error, when, lost, counter }
}

const FAULTS: &[Fault] = &[
    fault(Call::Send, "EAGAIN", "3", 0, Some(("/would_block/send", 1))),
    fault(Call::Send, "EAGAIN", "3..6", 0, Some(("/would_block/send", 4))),
    fault(Call::Send, "EAGAIN", "3..62", 0, Some(("/would_block/send", 60))),
    fault(Call::Send, "EINTR", "3..5", 0, None),
    fault(Call::Send, "EPERM", "3", 1, Some(("/send_errors", 1))),
    fault(Call::Send, "ENOBUFS", "3", 1, Some(("/send_errors", 1))),
    fault(Call::Send, "EINVAL", "3", 1, Some(("/send_errors", 1))),
    fault(Call::Send, "ECONNREFUSED", "3", 1, Some(("/send_errors", 1))),
    fault(Call::Send, "ENETUNREACH", "3", 1, Some(("/send_errors", 1))),
    fault(Call::Recv, "EAGAIN", "3..5", 0, Some(("/would_block/recv", 3))),
    fault(Call::Recv, "EINTR", "3..5", 0, None),
    fault(Call::Recv, "ECONNREFUSED", "3..5", 0, Some(("/recv_errors", 3))),
    fault(Call::Wait, "EINTR", "3..5", 0, None),
];

pub fn checks(row: &Row) -> Vec<Check> {
    let mut checks = vec![
        check("source_port_zero", Needs::RawSocket, |row| spoofed(row, Some(0), "source_port_zero")),
        check("own_port", Needs::RawSocket, |row| spoofed(row, None, "own_port")),
        check("no_loop_between_two_servers", Needs::RawSocket, no_loop),
        check("client_gone", Needs::Nothing, client_gone),
        check("flood", Needs::Nothing, flood),
        check("no_route_to_a_sender", Needs::Namespace, |row| namespaced(|| no_route(row))),
        check("longer_than_the_interface_takes", Needs::Namespace, |row| namespaced(|| longer_than_mtu(row))),
        check("waits_while_sends_are_blocked", Needs::Namespace, |row| namespaced(|| waits_while_blocked(row))),
        check("fatal_error_of_the_socket", Needs::Calls, fatal),
        check("sigterm_while_sends_would_block", Needs::Calls, |row| sigterm_while_blocked(row, false)),
        check("sigterm_again_gives_no_more_time", Needs::Calls, |row| sigterm_while_blocked(row, true)),
        check("sigterm_while_a_send_is_slow", Needs::Calls, sigterm_while_slow),
    ];
    let calls = row.calls.expect("a server has calls");
    for fault in FAULTS {
        let (name, call) = match fault.call {
            Call::Recv => ("recv", calls.recv),
            Call::Send => ("send", calls.send),
            // Without a wait of its own, the receive waits: that fault is in the table already.
            Call::Wait => ("wait", calls.wait.unwrap_or(calls.recv)),
        };
        // quinn-udp takes this error for an old kernel's, and sends again without its control messages.
        let sends_again = row.name == "echo-quinn-udp" && fault.error == "EINVAL";
        let mut fault = if sends_again { Fault { lost: 0, counter: None, ..*fault } } else { *fault };
        // What would have blocked, an awaited call does not tell.
        fault.counter = fault.counter.filter(|(name, _)| !calls.awaited || !name.starts_with("/would_block"));
        let name = format!("{name}_fails_with_{}_at_{}", fault.error, fault.when);
        checks.push(check(name, Needs::Calls, move |row| injected(row, &fault, call)));
    }
    checks
}

/// Alive, in order, and not grown.
fn is_well(server: &Server, memory: u64) {
    is_well_with(&server.client(), server, memory);
}

fn is_well_with(client: &Client, server: &Server, memory: u64) {
    client.echo_numbers(0..20);
    let grown = server.memory().saturating_sub(memory);
    assert!(grown < 1024, "memory grew by {grown} KiB");
}

fn injected(row: &Row, fault: &Fault, call: &str) {
    const SENT: u32 = 30;
    let inject = format!("inject={call}:error={}:when={}", fault.error, fault.when);
    let server = Server::strace(row, &["-e", &inject], &[]);
    let memory = server.memory() + 16; // Its one slot is touched by the first datagram.
    let client = server.client();
    let mut got = Vec::new();
    // An injected EAGAIN is a lie: no edge will follow. So the client goes on until the answers have come.
    let limit = Instant::now() + PATIENCE;
    let complete = |got: &Vec<u32>| got.iter().filter(|number| **number < SENT).count() + fault.lost >= SENT as usize;
    for number in 0u32.. {
        // Whoever finds the next datagram before its wait does not wait.
        if matches!(fault.call, Call::Wait) && number < 10 {
            server.until_it_waits();
        }
        client.send(&number.to_be_bytes());
        got.extend(client.number_within(Duration::from_millis(50)));
        if number >= SENT - 1 && (complete(&got) || Instant::now() > limit) {
            break;
        }
    }
    while let Some(number) = client.number_within(Duration::from_millis(100)) {
        got.push(number);
    }
    assert!(complete(&got), "only {got:?} came back");
    assert!(got.is_sorted_by(|a, b| a < b), "out of order or twice: {got:?}");
    is_well(&server, memory);
    let (summary, ended) = server.stop();
    assert!(ended.trace.contains("(INJECTED)"), "nothing was injected into {call}");
    assert!(most_held(&ended.trace, row) <= 8, "more datagrams held than --queue allows");
    if let Some((counter, least)) = fault.counter {
        let counted = summary.pointer(counter).map_or(0, number);
        assert!(counted >= least, "{counter} says {counted}: {summary}");
    }
    assert_eq!(number(&summary["send_errors"]), fault.lost as u64, "{summary}");
}

/// The most datagrams that a server held at once.
fn most_held(trace: &str, row: &Row) -> i32 {
    let calls = row.calls.expect("a server has calls");
    let (mut held, mut most) = (0, 0);
    // With an address: datagrams, not the bytes in which tokio's signals travel.
    for call in trace.lines().filter(|call| call.contains("sa_family")) {
        if call.contains(&format!(" {}(", calls.recv)) && !call.contains(" = -1 ") {
            held += 1;
        } else if call.contains(&format!(" {}(", calls.send)) && !call.contains("EAGAIN") && !call.contains("EINTR") {
            held -= 1;
        }
        most = most.max(held);
    }
    most
}

/// Only an unusable descriptor ends a server, with a sentence.
fn fatal(row: &Row) {
    let calls = row.calls.expect("a server has calls");
    for (call, what) in [(calls.recv, "receive on"), (calls.send, "send from")] {
        let server = Server::strace(row, &["-e", &format!("inject={call}:error=EBADF:when=1+")], &[]);
        let expected = format!("Error: cannot {what} {}: Bad file descriptor (os error 9)\n", server.addr);
        server.client().send(b"x");
        let ended = server.wait();
        assert_eq!((ended.status.code(), ended.stderr), (Some(1), expected));
    }
}

/// What cannot be sent must not keep a server from ending: it has a second.
fn sigterm_while_blocked(row: &Row, again: bool) {
    let calls = row.calls.expect("a server has calls");
    // tokio waits for an edge, which does not come: none is left from the start or of the datagram. Its signals travel
    // by a sendto of their own, which has to work.
    let when = if row.features.contains(&"tokio") && calls.send == "sendto" { "1" } else { "1+" };
    let mut server = Server::strace(row, &["-e", &format!("inject={}:error=EAGAIN:when={when}", calls.send)], &[]);
    server.until_it_waits();
    server.client().send(b"blocked");
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    server.signal(libc::SIGTERM);
    while !server.has_ended() {
        assert!(start.elapsed() < Duration::from_secs(3), "took {:?}", start.elapsed());
        std::thread::sleep(Duration::from_millis(50));
        // A zombie may still be sent signals.
        (0..u8::from(again)).for_each(|_| server.signal(libc::SIGTERM));
    }
    let summary = summary(&server.wait());
    assert_eq!((number(&summary["echoed"]), number(&summary["unsent"])), (0, 1), "{summary}");
}

/// What was received before the signal is sent after it.
fn sigterm_while_slow(row: &Row) {
    let calls = row.calls.expect("a server has calls");
    let server = Server::strace(row, &["-e", &format!("inject={}:delay_enter=100000:when=1", calls.send)], &[]);
    let client = server.client();
    (0..3u32).for_each(|number| client.send(&number.to_be_bytes()));
    std::thread::sleep(Duration::from_millis(50));
    let (summary, _) = server.stop();
    let echoed = number(&summary["echoed"]);
    assert!(echoed >= 1 && number(&summary["unsent"]) == 0, "{summary}");
    (0..echoed as u32).for_each(|number| assert_eq!(client.recv(), number.to_be_bytes()));
}

pub fn raw_socket() -> std::io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::from(libc::SOCK_RAW), Some(Protocol::UDP))
}

/// Sends datagrams whose source port (`None`: the server's own) no socket could have.
fn spoofed(row: &Row, source: Option<u16>, reason: &str) {
    const SPOOFED: u16 = 5;
    let server = Server::start(row, &[]);
    let memory = server.memory() + 64;
    let to = server.addr.port();
    let raw = raw_socket().unwrap();
    for _ in 0..SPOOFED {
        // RFC 768: source port, destination port, length, checksum (0: none).
        let header = [source.unwrap_or(to), to, 8 + 4, 0].map(u16::to_be_bytes).concat();
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, to));
        raw.send_to(&[&header[..], b"evil"].concat(), &target.into()).unwrap();
    }
    is_well(&server, memory);
    // Of a server with several threads another one has them, and may not have had its turn.
    server.until_it_waits();
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["refused"][reason]), u64::from(SPOOFED), "{summary}");
    assert_eq!(number(&summary["received"]), 20 + u64::from(SPOOFED), "a loop: {summary}");
}

/// On one port of two addresses: one datagram whose source is the other server.
fn no_loop(row: &Row) {
    let one = Server::start(row, &["--bind", "127.0.0.2:0"]);
    let port = one.addr.port();
    let other = Server::start(row, &["--bind", &format!("127.0.0.3:{port}")]);
    let raw = raw_socket().unwrap();
    // The address that a raw socket is bound to is the source of what it sends (raw(7)).
    raw.bind(&SocketAddr::from(([127, 0, 0, 3], 0)).into()).unwrap();
    // RFC 768, as above.
    let header = [port, port, 8 + 4, 0].map(u16::to_be_bytes).concat();
    raw.send_to(&[&header[..], b"evil"].concat(), &one.addr.into()).unwrap();
    for server in [&one, &other] {
        server.client().echo_numbers(0..20);
        // As above.
        server.until_it_waits();
    }
    let (one, other) = (one.stop().0, other.stop().0);
    let counts = |summary: &Value| [&summary["received"], &summary["refused"]["own_port"]].map(number);
    assert_eq!((counts(&one), counts(&other)), ([21, 1], [20, 0]), "a loop: {one} {other}");
}

fn client_gone(row: &Row) {
    let server = Server::start(row, &[]);
    let memory = server.memory() + 64;
    // It is there first, so that it does not get the port of one that has gone, and a late answer with it.
    let client = server.client();
    let descriptors = server.descriptors();
    for _ in 0..50 {
        server.client().send(b"nobody waits for this");
    }
    is_well_with(&client, &server, memory);
    // As above.
    server.until_it_waits();
    assert_eq!(server.descriptors(), descriptors);
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), 70, "{summary}");
}

/// One sender floods, another is polite: it may have to send again, since the kernel's buffer is full, but is served.
fn flood(row: &Row) {
    const FLOOD: u64 = 100_000;
    let server = Server::start(row, &[]);
    let memory = server.memory() + 8 * 64;
    let (flooder, polite) = (server.client(), server.client());
    let mut tries = 0u32;
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| (0..FLOOD).for_each(|_| flooder.send(&[0; 64])));
        while !flood.is_finished() {
            polite.send(&tries.to_be_bytes());
            tries += 1;
            polite.number_within(Duration::from_millis(20));
        }
    });
    // Until everything that is in flight has been answered.
    while polite.number_within(Duration::from_millis(100)).is_some() {}
    is_well(&server, memory);
    // As above.
    server.until_it_waits();
    let (summary, _) = server.stop();
    let sent = FLOOD + u64::from(tries) + 20;
    let known = number(&summary["received"]) + summary["kernel_drops"].as_u64().unwrap_or(0);
    assert!(summary["kernel_drops"] == Value::Null || known == sent, "{sent} sent: {summary}");
}

/// Answers that cannot be sent (ENETUNREACH, EACCES) are counted, and those between them are sent.
fn no_route(row: &Row) {
    shell("ip addr add 10.9.0.1/32 dev lo; ip addr add 10.9.0.2/32 dev lo");
    let server = Server::start(row, &[]);
    let [lost, forbidden] = ["10.9.0.1", "10.9.0.2"].map(|ip| Client::at(ip, server.addr));
    let near = server.client();
    (0..3).for_each(|number| {
        [&near, &lost, &forbidden].iter().for_each(|client| client.echo_numbers(number..number + 1))
    });
    server.signal(libc::SIGSTOP);
    for number in 0..10u32 {
        [&lost, &near, &forbidden].iter().for_each(|client| client.send(&number.to_be_bytes()));
    }
    shell("ip addr del 10.9.0.1/32 dev lo; ip addr del 10.9.0.2/32 dev lo; ip route add prohibit 10.9.0.2/32");
    server.signal(libc::SIGCONT);
    (0..10u32).for_each(|number| assert_eq!(near.recv(), number.to_be_bytes()));
    near.echo_numbers(0..10);
    let (summary, _) = server.stop();
    let counts = ["received", "echoed", "send_errors"].map(|name| number(&summary[name]));
    assert_eq!(counts, [49, 29, 20], "{summary}");
}

/// Such datagrams travel in fragments (ip(7)).
fn longer_than_mtu(row: &Row) {
    shell("ip link set lo mtu 1500");
    let server = Server::start(row, &[]);
    let client = server.client();
    for (seed, len) in [1472, 1473, 3000, 9000, 65507].into_iter().enumerate() {
        client.echo(&content(seed as u64, len));
    }
    server.stop();
}

/// The interface is slower than the server, so the send buffer is full for a while, and there is more to receive than the
/// queue holds: all is sent, in order, and the server sleeps until something becomes possible.
fn waits_while_blocked(row: &Row) {
    const BURST: u32 = 150;
    let server = Server::start(row, &["--recv-buffer", "212992", "--queue", "4"]);
    let client = server.client();
    socket2::SockRef::from(&client.0).set_recv_buffer_size(212_992).unwrap();
    client.echo_numbers(0..1);
    server.signal(libc::SIGSTOP);
    let datagram = |number: u32| [&number.to_be_bytes()[..], &[7; 1000]].concat();
    (0..BURST).for_each(|number| client.send(&datagram(number)));
    shell("tc qdisc add dev lo root tbf rate 2mbit burst 3000 limit 1000000");
    server.signal(libc::SIGCONT);
    (0..BURST).for_each(|number| assert!(client.recv() == datagram(number), "another than {number}"));
    shell("tc qdisc del dev lo root");
    let (summary, _) = server.stop();
    assert_eq!(number(&summary["echoed"]), u64::from(1 + BURST), "{summary}");
    // Each send that leaves the interface makes room, and may wake it: that is once a datagram.
    assert!(number(&summary["waits"]) < 8 * u64::from(BURST), "{summary}");
}
