//! What the TCP echo servers share: accounts of connections and bytes, and a buffer for what was read from a connection
//! and is not yet written. It makes no call itself.
//!
//! [`Streams`] is to TCP what [`crate::Echo`] is to UDP: an example asks where to read and what to write, makes the call,
//! and hands over the result. Nothing is read from a connection while something waits to be written to it, so one that
//! does not read costs one buffer, and one that is idle costs none.

mod ledger;
mod split;

pub use ledger::{Accepted, Ledger, Moved, PAUSE};
pub use split::{Inbox, Split, TooLong};

use crate::Result;
use crate::cli::StreamArgs;
use std::io;
use std::net::SocketAddr;

/// The accounts of a server, and the buffers that its connections share.
pub struct Streams {
    /// What happened so far, and when to end.
    pub ledger: Ledger,
    size: usize,
    spare: Vec<Box<[u8]>>,
    /// Bytes in all [`Transit`]s.
    held: usize,
}

/// Buffers kept for the next reads; a server that has had many blocked connections gives the others back.
const SPARE: usize = 64;

/// What one connection has read and not yet written. It holds memory only while there is something.
#[derive(Default)]
pub struct Transit {
    bytes: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Transit {
    /// What is to be written next; `None` if there is nothing.
    pub fn front(&self) -> Option<&[u8]> {
        let bytes = self.bytes.as_deref()?;
        (self.start < self.end).then(|| &bytes[self.start..self.end])
    }
}

impl Streams {
    /// For a server on `local`.
    pub fn new(args: &StreamArgs, local: SocketAddr) -> Self {
        Self { ledger: Ledger::new(args, local), size: args.buffer as usize, spare: Vec::new(), held: 0 }
    }

    /// Where to read to, once [`Transit::front`] is `None`.
    pub fn vacant<'t>(&mut self, transit: &'t mut Transit) -> &'t mut [u8] {
        (transit.start, transit.end) = (0, 0);
        let new = || vec![0; self.size].into_boxed_slice();
        transit.bytes.get_or_insert_with(|| self.spare.pop().unwrap_or_else(new))
    }

    /// Takes the result of a read into [`vacant`](Self::vacant).
    pub fn read(&mut self, transit: &mut Transit, result: io::Result<usize>) -> Moved {
        let moved = self.ledger.read(result);
        match moved {
            Moved::Bytes(count) => {
                transit.end = count;
                self.held += count;
            }
            _ => self.give_back(transit),
        }
        moved
    }

    /// Takes the result of a write of [`Transit::front`].
    pub fn wrote(&mut self, transit: &mut Transit, result: io::Result<usize>) -> Moved {
        let moved = self.ledger.wrote(result);
        if let Moved::Bytes(count) = moved {
            transit.start += count;
            self.held -= count;
        }
        if transit.front().is_none() || moved == Moved::Over {
            self.give_back(transit);
        }
        moved
    }

    /// What is left in it is thrown away: its connection is over.
    fn give_back(&mut self, transit: &mut Transit) {
        let left = transit.end - transit.start;
        self.held -= left;
        self.ledger.unsent(left);
        (transit.start, transit.end) = (0, 0);
        self.spare.extend(transit.bytes.take().filter(|_| self.spare.len() < SPARE));
    }

    /// Prints the summary. What connections still hold is thrown away.
    pub fn finish(&mut self) -> Result<()> {
        self.ledger.unsent(std::mem::take(&mut self.held));
        self.ledger.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};

    fn streams() -> Streams {
        let command = StreamArgs::augment_args(Command::new("test"));
        let args = StreamArgs::from_arg_matches(&command.get_matches_from(["test", "--buffer", "4"])).unwrap();
        Streams::new(&args, args.bind)
    }

    #[test]
    fn what_is_not_written_stays_at_the_front() {
        let (mut streams, mut transit) = (streams(), Transit::default());
        assert_eq!(transit.front(), None);
        streams.vacant(&mut transit).copy_from_slice(b"abcd");
        assert_eq!(streams.read(&mut transit, Ok(3)), Moved::Bytes(3));
        assert_eq!(transit.front(), Some(&b"abc"[..]));
        assert_eq!(streams.wrote(&mut transit, Ok(1)), Moved::Bytes(1));
        assert_eq!(streams.wrote(&mut transit, Err(io::ErrorKind::WouldBlock.into())), Moved::WouldBlock);
        assert_eq!(transit.front(), Some(&b"bc"[..]));
        assert_eq!(streams.wrote(&mut transit, Ok(2)), Moved::Bytes(2));
        assert_eq!(transit.front(), None);
    }

    #[test]
    fn a_connection_without_bytes_holds_no_buffer() {
        let mut streams = streams();
        let mut transits: Vec<_> = (0..100).map(|_| Transit::default()).collect();
        for transit in &mut transits {
            streams.vacant(transit);
            assert_eq!(streams.read(transit, Ok(4)), Moved::Bytes(4));
        }
        for transit in &mut transits {
            streams.wrote(transit, Ok(4));
            streams.vacant(transit);
            assert_eq!(streams.read(transit, Err(io::ErrorKind::WouldBlock.into())), Moved::WouldBlock);
        }
        assert!(transits.iter().all(|transit| transit.bytes.is_none()));
        assert_eq!(streams.spare.len(), SPARE);
    }
}
