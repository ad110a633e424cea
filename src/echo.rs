//! A [`Ledger`] with an [`EchoQueue`]: what stands between the receives and the sends of most servers.

use crate::Result;
use crate::cli::ServerArgs;
use crate::ledger::{Ledger, Received, Sent};
use crate::queue::{EchoQueue, Queued};
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
    /// No call was made: the queue is full, or nothing more is to be received.
    Full,
}

/// An example passes its own system call to [`receive`](Self::receive) and [`send_queued`](Self::send_queued), which
/// decide what the result means. One whose calls do not return at once, because they are awaited or submitted, asks
/// [`vacant`](Self::vacant) where to receive and [`front`](Self::front) what to send, and hands the result to
/// [`received`](Self::received) or [`sent`](Self::sent) later.
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

    /// Receives one datagram with `call`, if there is room for it. Fails only if the socket is unusable.
    pub fn receive(&mut self, call: impl FnOnce(&mut [u8]) -> io::Result<(usize, SocketAddr)>) -> Result<Progress> {
        let Some(slot) = self.vacant() else { return Ok(Progress::Full) };
        let result = call(slot);
        self.received(result)
    }

    /// Sends queued datagrams with `call`, oldest first, until none is left or a send would block. Fails only if the
    /// socket is unusable.
    pub fn send_queued(&mut self, mut call: impl FnMut(&[u8], SocketAddr) -> io::Result<usize>) -> Result<()> {
        while let Some((datagram, peer)) = self.front() {
            let result = call(datagram, peer);
            if self.sent(result)? == Progress::WouldBlock {
                break;
            }
        }
        Ok(())
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
    pub fn front(&self) -> Option<Queued<'_>> {
        self.queue.front()
    }

    /// [`vacant`](Self::vacant) and [`front`](Self::front) at once, for a receive and a send that are both under way.
    pub fn vacant_and_front(&mut self) -> (Option<&mut [u8]>, Option<Queued<'_>>) {
        let wants_recv = self.wants_recv();
        let (vacant, front) = self.queue.vacant_and_front();
        (vacant.filter(|_| wants_recv), front)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::io::{Error, ErrorKind};

    /// What may happen next.
    #[derive(Clone, Debug)]
    enum Step {
        Receive { len: usize, port: u16 },
        ReceiveFails(ErrorKind),
        Send,
        SendFails(ErrorKind),
        Stop,
    }

    fn step() -> impl Strategy<Value = Step> {
        let passing =
            || prop::sample::select(vec![ErrorKind::WouldBlock, ErrorKind::Interrupted, ErrorKind::ConnectionRefused]);
        prop_oneof![
            // The server's own port is 2000, and 10 bytes are the most.
            8 => (0usize..=11, prop::sample::select(vec![0u16, 2000, 3000, 4000])).prop_map(|(len, port)| Step::Receive { len, port }),
            2 => passing().prop_map(Step::ReceiveFails),
            8 => Just(Step::Send),
            2 => passing().prop_map(Step::SendFails),
            1 => Just(Step::Stop),
        ]
    }

    proptest! {
        /// Against a queue that grows and plain counters: which datagrams are sent, in which order, what is counted, and
        /// when it is over.
        #[test]
        fn keeps_the_accounts_of_a_naive_server(
            queue in 1u16..4, count in prop::option::of(1u64..6), steps in vec(step(), 0..60),
        ) {
            let local = SocketAddr::from(([127, 0, 0, 1], 2000));
            let args = ServerArgs {
                bind: local, queue, max_size: 10, count, recv_buffer: None, verbose: false, json: false,
            };
            let mut echo = Echo::new(&args, local);
            let (mut waiting, mut expected, mut stopped) = (VecDeque::new(), Report::default(), false);
            for (number, step) in steps.into_iter().enumerate() {
                let to_come = count.map_or(u64::MAX, |count| count - expected.echoed);
                let wants = !stopped && waiting.len() < queue.into() && (waiting.len() as u64) < to_come;
                prop_assert_eq!(echo.wants_recv(), wants);
                prop_assert_eq!(echo.vacant().is_some(), wants);
                prop_assert_eq!(echo.wants_send(), !waiting.is_empty());
                prop_assert_eq!(echo.timeout().is_some(), stopped);
                prop_assert_eq!(echo.is_done(), waiting.is_empty() && (stopped || to_come == 0));
                let front = waiting.front().map(|(bytes, peer): &(Vec<u8>, _)| (&bytes[..], *peer));
                prop_assert_eq!(echo.front(), front);
                match step {
                    Step::Receive { len, port } if wants => {
                        let peer = SocketAddr::from(([127, 0, 0, 1], port));
                        let slot = echo.vacant().expect("it wants one");
                        prop_assert_eq!(slot.len(), 11);
                        slot.fill(number as u8);
                        expected.received += 1;
                        match (port, len) {
                            (0, _) => expected.refused_source_port_zero += 1,
                            (2000, _) => expected.refused_own_port += 1,
                            (_, 11) => expected.too_big += 1,
                            _ => waiting.push_back((vec![number as u8; len], peer)),
                        }
                        prop_assert_eq!(echo.received(Ok((len, peer))).unwrap(), Progress::Made);
                    }
                    Step::ReceiveFails(kind) if wants => {
                        let progress = echo.received(Err(Error::from(kind))).unwrap();
                        prop_assert_eq!(progress == Progress::WouldBlock, kind == ErrorKind::WouldBlock);
                        expected.would_block_recv += u64::from(kind == ErrorKind::WouldBlock);
                        expected.recv_errors += u64::from(kind == ErrorKind::ConnectionRefused);
                    }
                    Step::Send if !waiting.is_empty() => {
                        waiting.pop_front();
                        expected.echoed += 1;
                        prop_assert_eq!(echo.sent(Ok(0)).unwrap(), Progress::Made);
                    }
                    Step::SendFails(kind) if !waiting.is_empty() => {
                        let progress = echo.sent(Err(Error::from(kind))).unwrap();
                        prop_assert_eq!(progress == Progress::WouldBlock, kind == ErrorKind::WouldBlock);
                        expected.would_block_send += u64::from(kind == ErrorKind::WouldBlock);
                        if kind == ErrorKind::ConnectionRefused {
                            waiting.pop_front();
                            expected.send_errors += 1;
                        }
                    }
                    Step::Stop => {
                        echo.stop();
                        stopped = true;
                    }
                    _ => {}
                }
                prop_assert_eq!(&*echo.report(), &expected);
            }
            let report = echo.into_report(&std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
            prop_assert_eq!(report.unsent, waiting.len() as u64);
        }
    }
}
