//! What one server counts and decides: the meaning of each receive and send, and when to end.

use crate::cli::ServerArgs;
use crate::policy::{self, Refusal, Verdict};
use crate::report::{Report, log_line};
use crate::{Attempt, Result};
use socket2::SockRef;
use std::fmt::Arguments;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a server that was told to stop goes on trying to send what is queued.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes from this sender, to be echoed.
    Datagram(usize, SocketAddr),
    /// Nothing to echo, but the next receive may bring something.
    Nothing,
    /// Nothing is there: wait until the socket is readable.
    WouldBlock,
}

/// What became of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is over, well or not: the datagram's memory is free.
    Over,
    /// Interrupted: send it again.
    Again,
    /// No room: wait until the socket is writable, then send it again.
    WouldBlock,
}

/// The accounts of one server. It holds no datagram; [`crate::Echo`] adds a queue to it.
pub struct Ledger {
    /// What happened so far. A server that can see its waits counts them here.
    pub report: Report,
    local: SocketAddr,
    max_size: usize,
    count: u64,
    verbose: bool,
    json: bool,
    deadline: Option<Instant>,
}

impl Ledger {
    /// For a server on `local`.
    pub fn new(args: &ServerArgs, local: SocketAddr) -> Self {
        Self {
            report: Report::default(),
            local,
            max_size: args.max_size.into(),
            count: args.count.unwrap_or(u64::MAX),
            verbose: args.verbose,
            json: args.json,
            deadline: None,
        }
    }

    /// Bytes of memory that a receive needs: one more than `--max-size`. A datagram that reaches into the last byte is
    /// too big, on every system.
    pub fn slot_size(&self) -> usize {
        self.max_size + 1
    }

    /// Takes the result of a receive into [`slot_size`](Self::slot_size) bytes. Fails only if the socket is unusable.
    pub fn received(&mut self, result: io::Result<(usize, SocketAddr)>) -> Result<Received> {
        match result {
            Ok((len, peer)) => Ok(self.judge(len, peer)),
            Err(error) if policy::is_too_big(&error) => {
                self.report.received += 1;
                self.report.too_big += 1;
                self.log(format_args!("receive: {error}"));
                Ok(Received::Nothing)
            }
            Err(error) => match policy::on_recv(&error) {
                Verdict::Interrupted => Ok(Received::Nothing),
                Verdict::WouldBlock => {
                    self.report.would_block_recv += 1;
                    Ok(Received::WouldBlock)
                }
                Verdict::OnlyThis => {
                    self.report.recv_errors += 1;
                    self.log(format_args!("receive: {error}"));
                    Ok(Received::Nothing)
                }
                Verdict::Fatal => Err(error).attempt(format_args!("receive on {}", self.local)),
            },
        }
    }

    fn judge(&mut self, len: usize, peer: SocketAddr) -> Received {
        self.report.received += 1;
        let (counter, why) = match policy::refusal(peer, self.local) {
            Some(Refusal::SourcePortZero) => (&mut self.report.refused_source_port_zero, "refused: source port 0"),
            Some(Refusal::OwnPort) => (&mut self.report.refused_own_port, "refused: own port"),
            None if len > self.max_size => (&mut self.report.too_big, "refused: too big"),
            None => {
                self.log(format_args!("{len} bytes from {peer}"));
                return Received::Datagram(len, peer);
            }
        };
        *counter += 1;
        self.log(format_args!("{len} bytes from {peer}: {why}"));
        Received::Nothing
    }

    /// Takes the result of a send. Fails only if the socket is unusable.
    pub fn sent(&mut self, result: io::Result<usize>) -> Result<Sent> {
        match result {
            Ok(_) => {
                self.report.echoed += 1;
                Ok(Sent::Over)
            }
            Err(error) => match policy::on_send(&error) {
                Verdict::Interrupted => Ok(Sent::Again),
                Verdict::WouldBlock => {
                    self.report.would_block_send += 1;
                    Ok(Sent::WouldBlock)
                }
                Verdict::OnlyThis => {
                    self.report.send_errors += 1;
                    self.log(format_args!("send: {error}"));
                    Ok(Sent::Over)
                }
                Verdict::Fatal => Err(error).attempt(format_args!("send from {}", self.local)),
            },
        }
    }

    /// So many datagrams that were to be echoed are dropped.
    pub fn unsent(&mut self, count: usize) {
        self.report.unsent += count as u64;
    }

    /// Echoes to go until `--count`.
    pub fn to_come(&self) -> u64 {
        self.count.saturating_sub(self.report.echoed)
    }

    /// A stop signal came: no more receives, and [`DRAIN_DEADLINE`] for what is queued.
    pub fn stop(&mut self) {
        self.deadline.get_or_insert_with(|| Instant::now() + DRAIN_DEADLINE);
    }

    /// How long a wait may last: for ever, or, after [`stop`](Self::stop), until the deadline.
    pub fn timeout(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether the loop ends: stopped or counted out with `nothing_queued` to be sent, or out of time.
    pub fn is_done(&self, nothing_queued: bool) -> bool {
        let left = self.timeout();
        (left.is_some() || self.to_come() == 0) && (nothing_queued || left == Some(Duration::ZERO))
    }

    /// Prints the summary, with what the kernel dropped on `socket`.
    pub fn finish<'s>(&mut self, socket: impl Into<SockRef<'s>>) -> Result<()> {
        self.report.kernel_drops = crate::net::kernel_drops(socket);
        self.report.print(self.json)
    }

    fn log(&self, line: Arguments<'_>) {
        if self.verbose {
            log_line(line);
        }
    }
}
