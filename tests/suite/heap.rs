//! No allocation for a datagram: a server that echoes many makes as many as one that echoes a few.
//! Counted by examples/count_alloc.rs, put under the server with LD_PRELOAD.

use crate::server::{Server, number, summary};
use crate::{Check, Needs, check};
use echo_lab::catalog::{Allocations, Kind, Row};

pub fn checks(row: &Row) -> Vec<Check> {
    if row.kind == Kind::Udp { vec![check("no_allocation_for_a_datagram", Needs::Nothing, run)] } else { Vec::new() }
}

fn run(row: &Row) {
    let ((few, _), (many, waits)) = (allocations(row, 1_000), allocations(row, 100_000));
    assert!(few > 0, "the counter counts nothing");
    // The row allows no more than there are: one more would not be seen.
    let (allowed, least) = match row.allocations {
        Allocations::None => (0, 0),
        Allocations::PerWait(each) => (waits * each, waits * (each - 1)),
        Allocations::PerEcho(each) => (99_000 * each, 99_000 * (each - 1)),
    };
    // A runtime's own lists may grow once when the load is long enough to need them.
    assert!(many <= few + 2 + allowed, "{few} allocations for 1 000 echoes, {many} for 100 000; {waits} waits");
    assert!(many >= few + least, "fewer than the row says: {few} and {many}; {waits} waits");
}

/// Allocations, and waits.
fn allocations(row: &Row, echoes: u32) -> (u64, u64) {
    let server = Server::counting(row, &["--count", &echoes.to_string()]);
    server.client().echo_windowed(echoes, 32);
    let ended = server.wait();
    let waits = number(&summary(&ended)["waits"]);
    (ended.allocations(), waits)
}
