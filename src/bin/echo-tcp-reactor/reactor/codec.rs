//! Where a message ends in a stream.

use std::fmt;
use std::io::IoSlice;

/// Cuts a stream into messages, and makes a stream of them. A program may have its own.
pub trait Codec: Send + Sync {
    /// What `bytes` begin with; there is at least one.
    fn decode<'b>(&self, bytes: &'b [u8]) -> Result<Next<'b>, TooLong>;

    /// Calls `write` once, with the parts that make up `message`.
    fn encode(&self, message: &[u8], write: &mut dyn FnMut(&[IoSlice]));
}

/// What the bytes of a stream begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'b> {
    /// A message, and how many bytes it takes with what is around it.
    Message(&'b [u8], usize),
    /// A part of one, for which so many bytes are needed at least.
    More(usize),
}

/// A message has more bytes than its limit: where the next one begins cannot be known, so the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(pub usize);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a message of more than {} bytes", self.0)
    }
}

/// No messages: bytes as they come.
pub struct Raw;

impl Codec for Raw {
    fn decode<'b>(&self, bytes: &'b [u8]) -> Result<Next<'b>, TooLong> {
        Ok(Next::Message(bytes, bytes.len()))
    }

    fn encode(&self, message: &[u8], write: &mut dyn FnMut(&[IoSlice])) {
        write(&[IoSlice::new(message)]);
    }
}

/// Four bytes of length, big-endian, and as many bytes.
pub struct Frames {
    /// Bytes of the longest message.
    pub limit: usize,
}

impl Codec for Frames {
    fn decode<'b>(&self, bytes: &'b [u8]) -> Result<Next<'b>, TooLong> {
        let Some((header, rest)) = bytes.split_first_chunk() else { return Ok(Next::More(4)) };
        let len = u32::from_be_bytes(*header) as usize;
        match rest.get(..len) {
            _ if len > self.limit => Err(TooLong(self.limit)),
            Some(message) => Ok(Next::Message(message, 4 + len)),
            None => Ok(Next::More(4 + len)),
        }
    }

    fn encode(&self, message: &[u8], write: &mut dyn FnMut(&[IoSlice])) {
        write(&[IoSlice::new(&(message.len() as u32).to_be_bytes()), IoSlice::new(message)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(codec: &dyn Codec, message: &[u8]) -> Vec<u8> {
        let mut stream = Vec::new();
        codec.encode(message, &mut |parts| parts.iter().for_each(|part| stream.extend_from_slice(part)));
        stream
    }

    #[test]
    fn a_frame_is_whole_with_its_last_byte() {
        let frames = Frames { limit: 8 };
        for message in [&b""[..], b"x", b"\0\0\0\x01", b"eight678"] {
            let stream = encoded(&frames, message);
            for len in 1..stream.len() {
                let needed = if len < 4 { 4 } else { stream.len() };
                assert_eq!(frames.decode(&stream[..len]), Ok(Next::More(needed)), "{message:?}");
            }
            for rest in [&b""[..], b"\xff\xff\xff\xff"] {
                let found = frames.decode(&[&stream, rest].concat()).map(|next| match next {
                    Next::Message(found, used) => (found == message, used),
                    Next::More(_) => (false, 0),
                });
                assert_eq!(found, Ok((true, stream.len())), "{message:?}");
            }
        }
    }

    #[test]
    fn a_frame_beyond_the_limit_is_an_error_before_it_comes() {
        let frames = Frames { limit: 8 };
        assert_eq!(frames.decode(b"\0\0\0\x09"), Err(TooLong(8)));
        assert_eq!(frames.decode(b"\xff\xff\xff\xff"), Err(TooLong(8)));
    }

    #[test]
    fn raw_bytes_are_a_message_as_they_come() {
        assert_eq!(Raw.decode(b"abc"), Ok(Next::Message(b"abc", 3)));
        assert_eq!(encoded(&Raw, b"abc"), b"abc");
    }
}
