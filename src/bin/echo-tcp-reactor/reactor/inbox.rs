//! What was read of one connection and is no whole message yet, or waits until what was sent is on its way.

/// Holds memory only while it holds bytes.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// Where those begin that were not used.
    start: usize,
}

impl Inbox {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The first `count` bytes are done with.
    pub fn used(&mut self, count: usize) {
        self.start += count;
    }

    /// Appends what was read of a message that has `len` bytes at least. Its memory doubles as they arrive: a header that
    /// announces much costs nothing. It ends at `len`, so a message takes no more than its own size.
    pub fn append(&mut self, read: &[u8], len: usize, spare: &mut Vec<u8>) {
        if read.is_empty() {
            return;
        }
        if self.bytes.capacity() == 0 {
            self.bytes = std::mem::take(spare);
        }
        self.bytes.drain(..self.start);
        self.start = 0;
        let needed = self.bytes.len() + read.len();
        if self.bytes.capacity() < needed {
            self.bytes.reserve_exact(needed.max(len.min(2 * needed)) - self.bytes.len());
        }
        self.bytes.extend_from_slice(read);
    }

    /// Keeps no memory for what was used. It goes to `spare`, for the next inbox that needs some.
    pub fn tidy(&mut self, spare: &mut Vec<u8>) {
        if self.start == 0 {
            return;
        }
        let rest = self.bytes().to_vec();
        let mut memory = std::mem::replace(&mut self.bytes, rest);
        self.start = 0;
        if memory.capacity() > spare.capacity() {
            memory.clear();
            *spare = memory;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_what_arrives_up_to_one_message() {
        let (mut inbox, mut spare) = (Inbox::default(), Vec::new());
        inbox.append(&[7; 1000], 1 << 20, &mut spare);
        assert!(inbox.bytes.capacity() <= 2000, "{}", inbox.bytes.capacity());
        while inbox.bytes().len() < 1 << 20 {
            let rest = (1 << 20) - inbox.bytes().len();
            inbox.append(&[7; 1000][..rest.min(1000)], 1 << 20, &mut spare);
        }
        assert_eq!(inbox.bytes.capacity(), 1 << 20);
        inbox.used((1 << 20) - 10);
        inbox.tidy(&mut spare);
        assert_eq!((inbox.bytes(), inbox.bytes.capacity(), spare.capacity()), (&[7; 10][..], 10, 1 << 20));
    }

    /// One that was used up leaves its memory to the next.
    #[test]
    fn memory_is_given_back() {
        let (mut first, mut second, mut spare) = (Inbox::default(), Inbox::default(), Vec::new());
        for _ in 0..3 {
            first.append(&[1; 10_000], 20_000, &mut spare);
            assert_eq!(spare.capacity(), 0);
            first.used(10_000);
            first.tidy(&mut spare);
            assert_eq!((first.bytes.capacity(), spare.capacity()), (0, 20_000));
            second.append(&[2; 5000], 20_000, &mut spare);
            assert_eq!((second.bytes.capacity(), spare.capacity()), (20_000, 0));
            second.used(5000);
            second.tidy(&mut spare);
        }
    }
}
