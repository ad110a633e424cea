//! What a server says that it did, against the log of strace.

use crate::server::{Server, number};
use crate::traces::{failed, is, steady};
use crate::{Check, Needs, check};
use echo_lab::catalog::Row;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

pub fn checks(row: &Row) -> Vec<Check> {
    let mut checks = Vec::new();
    if row.calls.is_some_and(|calls| calls.counts_waits) {
        checks.push(check("counts_its_waits", Needs::Strace, counts_waits));
    }
    // Some runtimes know without a call that one would block, and those with threads of their own disorder the log.
    if !row.features.iter().any(|feature| ["tokio", "smol"].contains(feature)) {
        checks.push(check("counts_its_calls", Needs::Calls, counts_calls));
    }
    checks
}

/// Summary and log of a server that echoes 30 datagrams. The next one wakes whoever waits for an edge that does not come.
fn run(row: &Row, options: &[&str]) -> (Value, Vec<String>, SocketAddr) {
    let server = Server::strace(row, &[&["-yy"], options].concat(), &[]);
    let client = server.client();
    for number in 0..30u32 {
        if number < 5 {
            server.until_it_waits();
        }
        client.send(&number.to_be_bytes());
        client.number_within(Duration::from_millis(50));
    }
    while client.number_within(Duration::from_millis(50)).is_some() {}
    let (summary, ended) = server.stop();
    (summary, steady(&ended.trace), client.0.local_addr().unwrap())
}

/// Each datagram received or sent, and each call that would have blocked.
fn counts_calls(row: &Row) {
    let calls = row.calls.expect("a server has calls");
    let inject = format!("inject={}:error=EAGAIN:when=4+7", calls.send);
    let (summary, trace, client) = run(row, &["-e", &inject]);
    let of = |name| trace.iter().filter(move |call| is(call, name) && call.contains("<UDP:["));
    // Not the datagram of the stop signal.
    let client = format!("sin_port=htons({})", client.port());
    // A call that carries many says how many.
    let carried = |name| -> u64 {
        let results = of(name).filter(|call| call.contains(&client) && !failed(call));
        let results = results.map(|call| call.rsplit(" = ").next().unwrap_or("").split(' ').next().unwrap_or(""));
        let many = ["recvmmsg", "sendmmsg"].contains(&name);
        results.map(|result| if many { result.parse().unwrap() } else { 1 }).sum()
    };
    let blocked = |name| of(name).filter(|call| call.contains("EAGAIN")).count() as u64;
    let expected = [carried(calls.recv), carried(calls.send), blocked(calls.recv), blocked(calls.send)];
    let counted = ["/received", "/echoed", "/would_block/recv", "/would_block/send"];
    assert_eq!(counted.map(|counter| number(summary.pointer(counter).unwrap())), expected, "{summary}: {trace:#?}");
    assert!(expected[0] == 30 && expected[3] > 0, "{trace:#?}");
}

/// As many as the log has. A runtime waits for itself, too.
fn counts_waits(row: &Row) {
    let (summary, trace, _) = run(row, &[]);
    let calls = row.calls.expect("a server has calls");
    let wait = calls.wait.or(calls.is_ring().then_some(calls.recv));
    let waits = wait.map_or(0, |wait| trace.iter().filter(|call| is(call, wait)).count() as u64);
    let least = if row.name == "echo-smol" { waits / 2 } else { waits.saturating_sub(1) };
    let counted = number(&summary["waits"]);
    assert!((least..=waits).contains(&counted), "{counted} of {waits} waits: {trace:#?}");
    assert!(counted >= 3 || wait.is_none(), "{summary}");
}
