//! What a connection sends: at once if the kernel takes it, else in order when there is room.

use super::codec::Codec;
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
pub type Then = Box<dyn FnOnce(bool) + Send>;

/// Holds memory only while it holds bytes.
#[derive(Default)]
pub struct Outbox {
    waiting: Vec<u8>,
    /// Where those begin that were not sent.
    start: usize,
    /// Bytes ever sent or queued, and those sent: the difference waits.
    queued: u64,
    sent: u64,
    /// Up to where a message reaches, and who is to be told when that was sent.
    told: VecDeque<(u64, Then)>,
    failed: bool,
}

impl Outbox {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.waiting.len() - self.start
    }

    /// A write failed: the connection is over.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    pub fn send(
        &mut self,
        stream: &TcpStream,
        codec: &dyn Codec,
        ledger: &Mutex<Ledger>,
        message: &[u8],
        then: Option<Then>,
    ) -> Result<(), Full> {
        let mut result = Ok(());
        codec.encode(message, &mut |parts| result = self.send_parts(stream, ledger, parts));
        if let (Ok(()), Some(then)) = (result, then) {
            self.told.push_back((self.queued, then));
            self.tell();
        }
        result
    }

    fn send_parts(&mut self, mut stream: &TcpStream, ledger: &Mutex<Ledger>, parts: &[IoSlice]) -> Result<(), Full> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let waits = self.len();
        if waits > 0 && waits + len > LIMIT {
            lock(ledger).unsent(len);
            return Err(Full);
        }
        self.queued += len as u64;
        let mut written = 0;
        if waits == 0 && !self.failed && len > 0 {
            let result = match parts {
                [part] => stream.write(part),
                parts => stream.write_vectored(parts),
            };
            match lock(ledger).wrote(result) {
                Moved::Bytes(count) => written = count,
                Moved::Over => self.failed = true,
                Moved::Again | Moved::WouldBlock => {}
            }
        }
        self.sent += written as u64;
        if written == len {
            return Ok(());
        }
        self.waiting.drain(..self.start);
        self.start = 0;
        if waits == 0 {
            self.waiting.reserve_exact(len - written);
        }
        for part in parts {
            self.waiting.extend_from_slice(&part[written.min(part.len())..]);
            written = written.saturating_sub(part.len());
        }
        Ok(())
    }

    /// Sends what waits, in one call.
    pub fn flush(&mut self, mut stream: &TcpStream, ledger: &Mutex<Ledger>) -> Moved {
        let result = stream.write(&self.waiting[self.start..]);
        let moved = lock(ledger).wrote(result);
        if let Moved::Bytes(count) = moved {
            self.sent += count as u64;
            self.start += count;
            if self.start == self.waiting.len() {
                (self.waiting, self.start) = (Vec::new(), 0);
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
