//! What a TCP server counts and decides: the meaning of each accept, read and write, and when to end.

use crate::cli::StreamArgs;
use crate::ledger::DRAIN_DEADLINE;
use crate::policy::{self, Verdict};
use crate::report::{log_line, print_line};
use crate::{Attempt, Result};
use std::fmt::Arguments;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a server that ran out of descriptors or memory accepts nothing: it would fail at once, and over and over,
/// since the connection that waits keeps the listener readable.
pub const PAUSE: Duration = Duration::from_millis(100);

/// What an accept brought.
pub enum Accepted<S> {
    /// A connection.
    Connection(S),
    /// Nothing, but the next accept may bring one.
    Nothing,
    /// None is there, or there is no descriptor for it: wait; [`Ledger::accepts`] says for what.
    Wait,
}

/// What a read or write on a connection did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes.
    Bytes(usize),
    /// Interrupted: again.
    Again,
    /// Nothing to read, or no room to write: wait until there is.
    WouldBlock,
    /// The peer sends no more, or the connection failed: close it.
    Over,
}

/// The accounts of one server. It holds no connection.
pub struct Ledger {
    accepted: u64,
    closed: u64,
    failed: u64,
    too_long: u64,
    accept_errors: u64,
    exhausted: u64,
    received: u64,
    echoed: u64,
    unsent: u64,
    would_block_read: u64,
    would_block_write: u64,
    /// Times that the server waited for readiness or completion: a server that can see its waits counts them here.
    pub waits: u64,
    local: SocketAddr,
    verbose: bool,
    json: bool,
    deadline: Option<Instant>,
    pause: Option<Instant>,
}

impl Ledger {
    /// For a server on `local`.
    pub fn new(args: &StreamArgs, local: SocketAddr) -> Self {
        Self {
            accepted: 0,
            closed: 0,
            failed: 0,
            too_long: 0,
            accept_errors: 0,
            exhausted: 0,
            received: 0,
            echoed: 0,
            unsent: 0,
            would_block_read: 0,
            would_block_write: 0,
            waits: 0,
            local,
            verbose: args.verbose,
            json: args.json,
            deadline: None,
            pause: None,
        }
    }

    /// Takes the result of an accept. Fails only if the listener is unusable.
    pub fn accepted<S>(&mut self, result: io::Result<(S, SocketAddr)>) -> Result<Accepted<S>> {
        let error = match result {
            Ok((stream, peer)) => {
                self.accepted += 1;
                self.log(format_args!("connection from {peer}"));
                return Ok(Accepted::Connection(stream));
            }
            Err(error) => error,
        };
        if policy::is_exhausted(&error) {
            self.exhausted(&error);
            return Ok(Accepted::Wait);
        }
        match policy::on_accept(&error) {
            Verdict::WouldBlock => return Ok(Accepted::Wait),
            Verdict::Interrupted => {}
            Verdict::OnlyThis => self.accept_errors += 1,
            Verdict::Fatal => return Err(error).attempt(format_args!("accept on {}", self.local)),
        }
        Ok(Accepted::Nothing)
    }

    /// There is no descriptor, thread or memory for a connection: none is accepted for [`PAUSE`].
    pub fn exhausted(&mut self, error: &io::Error) {
        self.exhausted += 1;
        self.pause = Some(Instant::now() + PAUSE);
        self.log(format_args!("accept: {error}"));
    }

    /// The system refuses to watch a connection that was accepted: it is closed.
    pub fn not_registered(&mut self, error: &io::Error) {
        self.at_limit(error);
        self.closed();
    }

    /// A connection cannot be registered: for want of memory or at a limit, after which none is accepted for [`PAUSE`], or
    /// for a reason of its own.
    pub fn at_limit(&mut self, error: &io::Error) {
        if policy::is_exhausted(error) {
            self.exhausted(error);
        } else {
            self.failure(error);
        }
    }

    /// Whether to accept: neither a stop nor a lack of descriptors forbids it.
    pub fn accepts(&mut self) -> bool {
        self.pause = self.pause.filter(|until| Instant::now() < *until);
        self.pause.is_none() && self.deadline.is_none()
    }

    /// Takes the result of a read.
    pub fn read(&mut self, result: io::Result<usize>) -> Moved {
        match result {
            Ok(0) => Moved::Over,
            Ok(count) => {
                self.received += count as u64;
                Moved::Bytes(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.would_block_read += 1;
                Moved::WouldBlock
            }
            Err(error) => self.failure(&error),
        }
    }

    /// Takes the result of a write of at least one byte.
    pub fn wrote(&mut self, result: io::Result<usize>) -> Moved {
        match result {
            Ok(count) => {
                self.echoed += count as u64;
                Moved::Bytes(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.would_block_write += 1;
                Moved::WouldBlock
            }
            Err(error) => self.failure(&error),
        }
    }

    /// Whatever the error, it is that of one connection.
    fn failure(&mut self, error: &io::Error) -> Moved {
        if error.kind() == io::ErrorKind::Interrupted {
            return Moved::Again;
        }
        self.failed += 1;
        self.log(format_args!("connection failed: {error}"));
        Moved::Over
    }

    /// A line or frame was longer than the limit: the connection is over.
    pub fn too_long(&mut self, what: impl std::fmt::Display) {
        self.too_long += 1;
        self.log(format_args!("connection closed: {what}"));
    }

    /// So many bytes that were to be echoed are thrown away, since their connection is over, or the server ends.
    pub fn unsent(&mut self, count: usize) {
        self.unsent += count as u64;
    }

    /// The server closed a connection.
    pub fn closed(&mut self) {
        self.closed += 1;
    }

    /// Connections accepted and not closed.
    pub fn open(&self) -> u64 {
        self.accepted - self.closed
    }

    /// A stop signal came: no more accepts and reads, and [`DRAIN_DEADLINE`] for what is to be written.
    pub fn stop(&mut self) {
        self.deadline.get_or_insert_with(|| Instant::now() + DRAIN_DEADLINE);
    }

    /// Whether [`stop`](Self::stop) was called.
    pub fn is_stopping(&self) -> bool {
        self.deadline.is_some()
    }

    /// How long a wait may last: for ever, until accepts are tried again, or until the deadline.
    pub fn timeout(&self) -> Option<Duration> {
        let until = self.deadline.or(self.pause)?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// Whether the loop ends: stopped, and no connection is left or the deadline has passed.
    pub fn is_done(&self) -> bool {
        self.deadline.is_some_and(|deadline| self.open() == 0 || Instant::now() >= deadline)
    }

    /// Prints the summary.
    pub fn finish(&self) -> Result<()> {
        let Self { accepted, closed, failed, too_long, accept_errors, exhausted, received, echoed, waits, .. } = self;
        let Self { unsent, would_block_read, would_block_write, .. } = self;
        if self.json {
            return print_line(format_args!(
                "{{\"accepted\":{accepted},\"closed\":{closed},\"failed\":{failed},\"too_long\":{too_long},\
                 \"accept_errors\":{accept_errors},\"exhausted\":{exhausted},\"received_bytes\":{received},\
                 \"echoed_bytes\":{echoed},\"unsent_bytes\":{unsent},\
                 \"would_block\":{{\"read\":{would_block_read},\"write\":{would_block_write}}},\"waits\":{waits}}}"
            ));
        }
        print_line(format_args!(
            "connections {accepted}, closed {closed}, failed {failed}, too long {too_long}, accept errors {accept_errors}, \
             out of descriptors {exhausted}, bytes received {received}, echoed {echoed}, unsent {unsent}, \
             would block: read {would_block_read}, write {would_block_write}, waits {waits}"
        ))
    }

    fn log(&self, line: Arguments<'_>) {
        if self.verbose {
            log_line(line);
        }
    }
}
