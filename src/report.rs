//! Counters, and the two lines that a server prints: one when it listens, one at its end.

use crate::{Attempt, Result};
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;

/// What happened to each datagram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Datagrams taken from the kernel.
    pub received: u64,
    /// Datagrams given back to the kernel for their sender.
    pub echoed: u64,
    /// Not answered: source port 0.
    pub refused_source_port_zero: u64,
    /// Not answered: the source port is the server's own.
    pub refused_own_port: u64,
    /// Not answered: longer than `--max-size`.
    pub too_big: u64,
    /// Datagrams whose send failed for good (ECONNREFUSED, EPERM, ENOBUFS …).
    pub send_errors: u64,
    /// Datagrams that were to be echoed, and were dropped: those that still waited at the end, or came beyond `--count`.
    pub unsent: u64,
    /// Receives that reported the error of one peer.
    pub recv_errors: u64,
    /// Receives that would have blocked.
    pub would_block_recv: u64,
    /// Sends that would have blocked.
    pub would_block_send: u64,
    /// Times that the server waited for readiness.
    pub waits: u64,
    /// Datagrams that found the kernel's receive buffer full; `None` where the system does not tell.
    pub kernel_drops: Option<u32>,
    /// Of a server with several threads: what each of them echoed.
    pub by_thread: Vec<u64>,
}

impl Report {
    /// The sum over the threads of a server.
    pub fn of_threads(threads: &[Report]) -> Self {
        let sum = |of: fn(&Report) -> u64| threads.iter().map(of).sum();
        Self {
            received: sum(|it| it.received),
            echoed: sum(|it| it.echoed),
            refused_source_port_zero: sum(|it| it.refused_source_port_zero),
            refused_own_port: sum(|it| it.refused_own_port),
            too_big: sum(|it| it.too_big),
            send_errors: sum(|it| it.send_errors),
            unsent: sum(|it| it.unsent),
            recv_errors: sum(|it| it.recv_errors),
            would_block_recv: sum(|it| it.would_block_recv),
            would_block_send: sum(|it| it.would_block_send),
            waits: sum(|it| it.waits),
            kernel_drops: threads.iter().map(|it| it.kernel_drops).sum(),
            by_thread: threads.iter().map(|it| it.echoed).collect(),
        }
    }

    /// The summary line, on standard output.
    pub fn print(&self, json: bool) -> Result<()> {
        print_line(if json { self.json() } else { self.text() })
    }

    fn text(&self) -> String {
        let drops = self.kernel_drops.map_or("unknown".into(), |n| n.to_string());
        format!(
            "received {}, echoed {}, refused {} (source port zero {}, own port {}), too big {}, send errors {}, \
             receive errors {}, unsent {}, would block: receive {}, send {}, waits {}, dropped by the kernel {drops}{}",
            self.received,
            self.echoed,
            self.refused_source_port_zero + self.refused_own_port,
            self.refused_source_port_zero,
            self.refused_own_port,
            self.too_big,
            self.send_errors,
            self.recv_errors,
            self.unsent,
            self.would_block_recv,
            self.would_block_send,
            self.waits,
            self.threads(", echoed by each thread ", ""),
        )
    }

    /// What each thread echoed, between `before` and `after`; nothing for a server without threads.
    fn threads(&self, before: &str, after: &str) -> String {
        let counts = self.by_thread.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        if counts.is_empty() { counts } else { format!("{before}{counts}{after}") }
    }

    fn json(&self) -> String {
        let drops = self.kernel_drops.map_or("null".into(), |n| n.to_string());
        format!(
            "{{\"received\":{},\"echoed\":{},\"refused\":{{\"source_port_zero\":{},\"own_port\":{}}},\
             \"too_big\":{},\"send_errors\":{},\"recv_errors\":{},\"unsent\":{},\
             \"would_block\":{{\"recv\":{},\"send\":{}}},\"waits\":{},\"kernel_drops\":{drops}{}}}",
            self.received,
            self.echoed,
            self.refused_source_port_zero,
            self.refused_own_port,
            self.too_big,
            self.send_errors,
            self.recv_errors,
            self.unsent,
            self.would_block_recv,
            self.would_block_send,
            self.waits,
            self.threads(",\"by_thread\":[", "]"),
        )
    }
}

/// The first line of every server, once signals and datagrams are taken care of.
pub fn listening(local: SocketAddr) -> Result<()> {
    print_line(format_args!("listening on {local}"))
}

/// A line on standard error: a warning, or what `-v` asks for. If it cannot be written, since its reader has gone or a disk is
/// full, it is lost: that ends no server. (`eprintln!` panics.)
pub fn log_line(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A line on standard output. A reader that has gone (`| head -1`) is no error.
pub fn print_line(line: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).attempt("write to standard output"),
        _ => Ok(()),
    }
}
