//! One connection: what is held of it, what is under way for it, and what its completions mean.

use echo_lab::ring::{self, Provided};
use echo_lab::stream::{Ledger, Moved};
use io_uring::cqueue;
use std::collections::VecDeque;
use std::net::TcpStream;

/// What is under way for the part in front.
#[derive(Clone, Copy, PartialEq)]
pub enum Sending {
    /// Nothing.
    No,
    /// A send of so many bytes that does not wait: it is over when the call that submits it returns.
    Try(usize),
    /// A send that waits until the peer has read enough: the kernel goes on with it, and tells when all is sent.
    Wait,
}

pub struct Connection {
    pub stream: TcpStream,
    /// Buffers received and not yet sent, with their lengths, and how much of the first is sent. In order: only the first
    /// is ever being sent.
    pub parts: VecDeque<(u16, usize)>,
    pub sent: usize,
    pub sending: Sending,
    /// The peer does not read: the next send waits.
    pub full: bool,
    pub receiving: bool,
    pub cancelling: bool,
    /// The peer sends no more, or the connection failed.
    pub over: bool,
}

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        let (parts, sending) = (VecDeque::new(), Sending::No);
        Self { stream, parts, sent: 0, sending, full: false, receiving: false, cancelling: false, over: false }
    }

    /// Takes a completion of the receive.
    pub fn received(&mut self, completion: &cqueue::Entry, buffers: &mut Provided, ledger: &mut Ledger) {
        let (result, flags) = (completion.result(), completion.flags());
        self.receiving = cqueue::more(flags);
        self.cancelling &= self.receiving;
        if let Some(id) = cqueue::buffer_select(flags) {
            buffers.take(id);
            match result {
                1.. if !self.over => self.parts.push_back((id, result as usize)),
                _ => buffers.give_back(id),
            }
        }
        // No buffer was free, or this program wished it to end: it is armed again when there is reason to.
        if !self.over && ![-libc::ENOBUFS, -libc::ECANCELED].contains(&result) {
            let outcome = ring::outcome(result);
            let failed = outcome.is_err();
            if ledger.read(outcome) == Moved::Over {
                self.over = true;
                if failed {
                    self.give_up(buffers, ledger);
                }
            }
        }
    }

    /// Takes the end of the send.
    pub fn sent(&mut self, result: i32, buffers: &mut Provided, ledger: &mut Ledger) {
        let tried = matches!(self.sending, Sending::Try(_));
        self.sending = Sending::No;
        match ledger.wrote(ring::outcome(result)) {
            Moved::Bytes(count) => {
                self.sent += count;
                self.full = tried;
                if let Some((id, _)) = self.parts.front().filter(|(_, len)| *len == self.sent) {
                    buffers.give_back(*id);
                    self.parts.pop_front();
                    (self.sent, self.full) = (0, false);
                }
            }
            Moved::WouldBlock => self.full = true,
            Moved::Again => {}
            Moved::Over => {
                self.over = true;
                self.give_up(buffers, ledger);
            }
        }
    }

    /// Bytes received and not yet sent.
    pub fn held(&self) -> usize {
        self.parts.iter().map(|(_, len)| len).sum::<usize>() - self.sent
    }

    /// Nothing more is sent. The part of a send under way stays until that ends.
    fn give_up(&mut self, buffers: &mut Provided, ledger: &mut Ledger) {
        let held = self.held();
        let kept = usize::from(self.sending != Sending::No);
        self.parts.drain(kept..).for_each(|(id, _)| buffers.give_back(id));
        if self.parts.is_empty() {
            self.sent = 0;
        }
        ledger.unsent(held - self.held());
    }
}
