//! A [`Ledger`] with an [`EchoQueue`]: what stands between the receives and the sends of most servers.

use crate::Result;
use crate::cli::ServerArgs;
use crate::ledger::{Ledger, Received, Sent};
use crate::queue::EchoQueue;
use crate::report::Report;
use socket2::SockRef;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Whether to call again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The call did something, or was interrupted: the next one may do something too.
    Made,
    /// The call would have blocked: wait for readiness.
    WouldBlock,
}

/// An example asks [`vacant`](Self::vacant) where to receive and [`front`](Self::front) what to send, makes the call,
/// and hands the result to [`received`](Self::received) or [`sent`](Self::sent), which decide what it means.
pub struct Echo {
    ledger: Ledger,
    queue: EchoQueue,
}

impl Echo {
    /// For a server on `local`. Everything that a datagram will need is allocated here.
    pub fn new(args: &ServerArgs, local: SocketAddr) -> Self {
        let ledger = Ledger::new(args, local);
        let queue = EchoQueue::new(args.queue.into(), ledger.slot_size());
        Self { ledger, queue }
    }

    /// The counters. A server that can see its waits counts them here.
    pub fn report(&mut self) -> &mut Report {
        &mut self.ledger.report
    }

    /// Whether to receive: there is room, and neither a stop nor `--count` forbids it.
    pub fn wants_recv(&self) -> bool {
        let stopping = self.ledger.timeout().is_some();
        !stopping && !self.queue.is_full() && (self.queue.len() as u64) < self.ledger.to_come()
    }

    /// Whether something waits to be sent.
    pub fn wants_send(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Where to receive the next datagram; `None` unless [`wants_recv`](Self::wants_recv).
    pub fn vacant(&mut self) -> Option<&mut [u8]> {
        if self.wants_recv() { self.queue.vacant() } else { None }
    }

    /// Takes the result of a receive into [`vacant`](Self::vacant). Fails only if the socket is unusable.
    pub fn received(&mut self, result: io::Result<(usize, SocketAddr)>) -> Result<Progress> {
        match self.ledger.received(result)? {
            Received::Datagram(len, peer) => self.queue.push(len, peer),
            Received::Nothing => {}
            Received::WouldBlock => return Ok(Progress::WouldBlock),
        }
        Ok(Progress::Made)
    }

    /// The oldest datagram that waits to be sent, and to whom.
    pub fn front(&self) -> Option<(&[u8], SocketAddr)> {
        self.queue.front()
    }

    /// Takes the result of a send of [`front`](Self::front): what would have blocked stays at the front.
    /// Fails only if the socket is unusable.
    pub fn sent(&mut self, result: io::Result<usize>) -> Result<Progress> {
        match self.ledger.sent(result)? {
            Sent::Over => self.queue.pop(),
            Sent::Again => {}
            Sent::WouldBlock => return Ok(Progress::WouldBlock),
        }
        Ok(Progress::Made)
    }

    /// A stop signal came: receive no more, end when the queue is empty or [`crate::ledger::DRAIN_DEADLINE`] has passed.
    pub fn stop(&mut self) {
        self.ledger.stop();
    }

    /// How long a wait may last: for ever, or, after [`stop`](Self::stop), until the deadline.
    pub fn timeout(&self) -> Option<Duration> {
        self.ledger.timeout()
    }

    /// Whether the loop ends: stopped or counted out with nothing left to send, or out of time.
    pub fn is_done(&self) -> bool {
        self.ledger.is_done(self.queue.is_empty())
    }

    /// The counters of one thread of a server, with what the kernel dropped on its `socket`.
    pub fn into_report<'s>(mut self, socket: impl Into<SockRef<'s>>) -> Report {
        self.ledger.unsent(self.queue.len());
        self.ledger.report.kernel_drops = crate::net::kernel_drops(socket);
        self.ledger.report
    }

    /// Prints the summary, with what the kernel dropped on `socket`.
    pub fn finish<'s>(mut self, socket: impl Into<SockRef<'s>>) -> Result<()> {
        self.ledger.unsent(self.queue.len());
        self.ledger.finish(socket)
    }
}
