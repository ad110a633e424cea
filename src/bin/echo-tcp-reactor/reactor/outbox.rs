//! What a connection sends: at once if the kernel takes it, else in order when there is room.

use super::lock;
use echo_lab::stream::{Ledger, Moved};
use mio::net::TcpStream;
use std::collections::VecDeque;
use std::io::{IoSlice, Write};
use std::sync::Mutex;

/// Bytes that may wait. What comes on top is refused, so a peer that does not read costs no more.
const LIMIT: usize = 16 << 20;

/// Too much waits to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Told whether a message was handed to the kernel.
type Then = Box<dyn FnOnce(bool) + Send>;

pub struct Outbox {
    frames: bool,
    waiting: Vec<u8>,
    /// Bytes ever sent or queued, and those sent: the difference waits.
    queued: u64,
    sent: u64,
    /// Up to where a message reaches, and who is to be told when that was sent.
    told: VecDeque<(u64, Then)>,
    failed: bool,
}

impl Outbox {
    pub fn new(frames: bool) -> Self {
        Self { frames, waiting: Vec::new(), queued: 0, sent: 0, told: VecDeque::new(), failed: false }
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A write failed: the connection is over.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    pub fn send(
        &mut self,
        mut stream: &TcpStream,
        ledger: &Mutex<Ledger>,
        message: &[u8],
        then: Option<Then>,
    ) -> Result<(), Full> {
        let header = (message.len() as u32).to_be_bytes();
        let header = if self.frames { &header[..] } else { &[] };
        let len = header.len() + message.len();
        if self.waiting.len() + len > LIMIT && !self.waiting.is_empty() {
            lock(ledger).unsent(len);
            return Err(Full);
        }
        self.queued += len as u64;
        let mut written = 0;
        if self.waiting.is_empty() && !self.failed && len > 0 {
            let result = match self.frames {
                true => stream.write_vectored(&[IoSlice::new(header), IoSlice::new(message)]),
                false => stream.write(message),
            };
            match lock(ledger).wrote(result) {
                Moved::Bytes(count) => written = count,
                Moved::Over => self.failed = true,
                Moved::Again | Moved::WouldBlock => {}
            }
        }
        self.sent += written as u64;
        self.waiting.extend(header.iter().chain(message).skip(written));
        if let Some(then) = then {
            self.told.push_back((self.queued, then));
            self.tell();
        }
        Ok(())
    }

    /// Sends what waits, in one call.
    pub fn flush(&mut self, mut stream: &TcpStream, ledger: &Mutex<Ledger>) -> Moved {
        let result = stream.write(&self.waiting);
        let moved = lock(ledger).wrote(result);
        if let Moved::Bytes(count) = moved {
            self.sent += count as u64;
            self.waiting.drain(..count);
            if self.waiting.is_empty() {
                self.waiting = Vec::new();
            }
            self.tell();
        }
        moved
    }

    fn tell(&mut self) {
        while self.told.front().is_some_and(|(end, _)| *end <= self.sent) {
            self.told.pop_front().into_iter().for_each(|(_, then)| then(true));
        }
    }
}

/// The connection is closed: whoever still waits is told that it was not sent.
impl Drop for Outbox {
    fn drop(&mut self) {
        self.told.drain(..).for_each(|(_, then)| then(false));
    }
}
