//! How a stream is cut into messages: lines, or frames with their length in front.

/// Where a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Nowhere: what has come is passed on as it is.
    Bytes,
    /// After a newline. What stands before it may be any bytes.
    Lines,
    /// After as many bytes as the four before them say, big-endian.
    Frames,
}

/// Bytes of a frame's header.
const HEADER: usize = 4;
/// An inbox that is empty keeps no more memory than this.
const KEPT: usize = 4096;

/// A message is longer than the limit: where the next one begins cannot be known, so the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(Split, usize);

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.0 == Split::Frames { "frame" } else { "line" };
        write!(f, "a {what} of more than {} bytes", self.1)
    }
}

/// What was read of one connection, until it makes up a message and that is written. Its memory grows with what has
/// arrived, not with what a header announces, and never beyond one message and what came with its end.
pub struct Inbox {
    split: Split,
    limit: usize,
    bytes: Vec<u8>,
    /// Where the next message begins, or what is not written of it; where it ends, if that has come.
    start: usize,
    end: usize,
    /// Up to where no newline was found.
    searched: usize,
}

impl Inbox {
    /// Messages may have `limit` bytes, newline or header not counted.
    pub fn new(split: Split, limit: usize) -> Self {
        Self { split, limit, bytes: Vec::new(), start: 0, end: 0, searched: 0 }
    }

    /// Appends what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.end = self.end.saturating_sub(self.start);
        self.searched = self.searched.saturating_sub(self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that were read, and are neither written nor taken as messages.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is to be written next: a whole message as it came, with newline or header, or the rest of one; `None` until
    /// more is read.
    pub fn front(&mut self) -> Result<Option<&[u8]>, TooLong> {
        if self.start >= self.end {
            let Some(len) = self.next_len()? else {
                self.searched = self.bytes.len();
                if self.start == self.bytes.len() {
                    self.bytes.clear();
                    self.bytes.shrink_to(KEPT);
                    (self.start, self.end, self.searched) = (0, 0, 0);
                }
                return Ok(None);
            };
            self.end = self.start + len;
        }
        Ok(Some(&self.bytes[self.start..self.end]))
    }

    /// So much of [`front`](Self::front) is written.
    pub fn wrote(&mut self, count: usize) {
        self.start += count;
    }

    /// The next whole message as it came, for who takes it at once.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, TooLong> {
        if self.front()?.is_none() {
            return Ok(None);
        }
        let start = std::mem::replace(&mut self.start, self.end);
        Ok(Some(&self.bytes[start..self.end]))
    }

    /// How long the message that begins at `start` is, if all of it has come.
    fn next_len(&self) -> Result<Option<usize>, TooLong> {
        let rest = &self.bytes[self.start..];
        let too_long = TooLong(self.split, self.limit);
        Ok(match self.split {
            Split::Bytes => Some(rest.len()).filter(|len| *len > 0),
            Split::Lines => {
                let new = self.searched.max(self.start) - self.start;
                match rest[new..].iter().position(|byte| *byte == b'\n') {
                    Some(at) if new + at > self.limit => return Err(too_long),
                    None if rest.len() > self.limit => return Err(too_long),
                    found => found.map(|at| new + at + 1),
                }
            }
            Split::Frames => match rest.first_chunk::<HEADER>().map(|header| u32::from_be_bytes(*header) as usize) {
                Some(len) if len > self.limit => return Err(too_long),
                len => len.map(|len| HEADER + len).filter(|len| *len <= rest.len()),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(inbox: &mut Inbox) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut messages = Vec::new();
        while let Some(message) = inbox.next_message()? {
            messages.push(message.to_vec());
        }
        Ok(messages)
    }

    /// However the bytes are cut into reads, the messages are the same.
    #[test]
    fn messages_do_not_depend_on_reads() {
        let lines: &[&[u8]] = &[b"one\n", b"\n", b"two\r\n", b"\xff\xfe\x00\n", b"eight 89\n"];
        let frames: &[&[u8]] = &[b"\0\0\0\x03one", b"\0\0\0\0", b"\0\0\0\x08eight678", b"\0\0\0\x01\n"];
        for (split, messages) in [(Split::Lines, lines), (Split::Frames, frames)] {
            let stream = messages.concat();
            for size in 1..=stream.len() {
                let mut inbox = Inbox::new(split, 8);
                let mut found = Vec::new();
                for part in stream.chunks(size) {
                    inbox.push(part);
                    found.extend(all(&mut inbox).unwrap());
                }
                assert_eq!(found, messages, "{split:?} in reads of {size}");
            }
        }
    }

    /// The messages of a stream, and whether one is too long, by who has all of it at hand.
    fn at_once(split: Split, limit: usize, mut stream: &[u8]) -> (Vec<Vec<u8>>, bool) {
        let mut messages = Vec::new();
        loop {
            let (len, whole) = match split {
                Split::Bytes => (stream.len(), stream.len()),
                Split::Lines => match stream.split(|byte| *byte == b'\n').next() {
                    Some(line) => (line.len(), line.len() + 1),
                    None => (0, 1),
                },
                Split::Frames if stream.len() < HEADER => (0, HEADER),
                Split::Frames => {
                    let len = stream[..HEADER].iter().fold(0, |len, byte| 256 * len + usize::from(*byte));
                    (len, HEADER + len)
                }
            };
            if split != Split::Bytes && len > limit {
                return (messages, true);
            }
            if whole == 0 || whole > stream.len() {
                return (messages, false);
            }
            messages.push(stream[..whole].to_vec());
            stream = &stream[whole..];
        }
    }

    /// Any bytes in reads of any size, taken whole or written in parts of any size.
    #[test]
    fn any_stream_in_any_reads() {
        arbtest::arbtest(|random| {
            let split = *random.choose(&[Split::Bytes, Split::Lines, Split::Frames])?;
            let limit = random.int_in_range(0..=20)?;
            let mut stream = Vec::new();
            for _ in 0..random.int_in_range(0..=12)? {
                let beyond = usize::from(random.ratio(1, 8)?);
                let len = random.int_in_range(0..=limit + beyond)?;
                if split == Split::Frames {
                    stream.extend((len as u32).to_be_bytes());
                }
                stream.extend(std::iter::repeat_n(random.arbitrary::<u8>()?, len));
                if split == Split::Lines {
                    stream.push(b'\n');
                }
            }
            stream.truncate(random.int_in_range(0..=stream.len())?);
            let (expected, too_long) = at_once(split, limit, &stream);

            let mut inbox = Inbox::new(split, limit);
            let (mut found, mut failed, mut rest) = (Vec::new(), false, &stream[..]);
            while !rest.is_empty() && !failed {
                let read = random.int_in_range(1..=rest.len())?;
                inbox.push(&rest[..read]);
                rest = &rest[read..];
                assert!(inbox.bytes.len() <= HEADER + limit + read, "{} bytes are kept", inbox.bytes.len());
                loop {
                    if random.ratio(1, 2)? {
                        match inbox.next_message() {
                            Ok(Some(message)) => found.extend(message),
                            Ok(None) => break,
                            Err(_) => failed = true,
                        }
                    } else {
                        match inbox.front().map(|front| front.map(<[u8]>::to_vec)) {
                            Ok(Some(front)) => {
                                let count = random.int_in_range(0..=front.len())?;
                                found.extend(&front[..count]);
                                inbox.wrote(count);
                            }
                            Ok(None) => break,
                            Err(_) => failed = true,
                        }
                    }
                    if failed {
                        break;
                    }
                }
            }
            assert_eq!((found, failed), (expected.concat(), too_long), "{split:?} of {limit}: {stream:?}");
            Ok(())
        });
    }

    #[test]
    fn a_message_beyond_the_limit_is_an_error() {
        for (split, stream) in [
            (Split::Lines, &b"ninebytes"[..]),
            (Split::Lines, b"ninebytes\n"),
            (Split::Frames, b"\0\0\0\x09"),
            (Split::Frames, b"\xff\xff\xff\xff"),
        ] {
            let mut inbox = Inbox::new(split, 8);
            inbox.push(b"");
            assert_eq!(all(&mut inbox), Ok(vec![]));
            inbox.push(stream);
            assert_eq!(all(&mut inbox), Err(TooLong(split, 8)), "{stream:?}");
            assert!(inbox.bytes.capacity() < 64, "memory for what was only announced");
        }
    }

    #[test]
    fn memory_is_given_back() {
        let mut inbox = Inbox::new(Split::Frames, 1 << 20);
        inbox.push(&(1u32 << 20).to_be_bytes());
        inbox.push(&[7; 1 << 20]);
        assert_eq!(all(&mut inbox).unwrap().len(), 1);
        assert!(inbox.bytes.capacity() <= KEPT, "{}", inbox.bytes.capacity());
    }
}
