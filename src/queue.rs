//! A bounded first-in, first-out queue of datagrams.

use std::net::{Ipv4Addr, SocketAddr};

/// Holds at most `capacity` datagrams. All memory is allocated once; nothing is copied: a receive writes into
/// [`vacant`](Self::vacant), a send reads from [`front`](Self::front).
pub struct EchoQueue {
    slots: Vec<Slot>,
    head: usize,
    len: usize,
}

/// A datagram that waits to be sent, and to whom.
pub type Queued<'q> = (&'q [u8], SocketAddr);

struct Slot {
    bytes: Box<[u8]>,
    len: usize,
    peer: SocketAddr,
}

impl EchoQueue {
    /// `slot_size` in bytes. The pages of a slot are only touched when a datagram is written there.
    pub fn new(capacity: usize, slot_size: usize) -> Self {
        let peer = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let slot = || Slot { bytes: vec![0; slot_size].into_boxed_slice(), len: 0, peer };
        Self { slots: std::iter::repeat_with(slot).take(capacity).collect(), head: 0, len: 0 }
    }

    /// Datagrams held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// No room for another datagram.
    pub fn is_full(&self) -> bool {
        self.len == self.slots.len()
    }

    /// Where the next datagram is to be received; `None` when the queue is full.
    pub fn vacant(&mut self) -> Option<&mut [u8]> {
        let tail = self.tail()?;
        Some(&mut self.slots[tail].bytes)
    }

    /// Keeps what was received into [`vacant`](Self::vacant): `len` bytes from `peer`.
    /// Without this call the slot stays vacant, and the next receive overwrites it.
    pub fn push(&mut self, len: usize, peer: SocketAddr) {
        if let Some(tail) = self.tail() {
            let slot = &mut self.slots[tail];
            (slot.len, slot.peer) = (len.min(slot.bytes.len()), peer);
            self.len += 1;
        }
    }

    /// The oldest datagram and its sender. It stays there until [`pop`](Self::pop).
    pub fn front(&self) -> Option<Queued<'_>> {
        let slot = (!self.is_empty()).then(|| &self.slots[self.head])?;
        Some((&slot.bytes[..slot.len], slot.peer))
    }

    /// [`vacant`](Self::vacant) and [`front`](Self::front) at once: they are never the same slot.
    pub fn vacant_and_front(&mut self) -> (Option<&mut [u8]>, Option<Queued<'_>>) {
        let Some(tail) = self.tail().filter(|_| !self.is_empty()) else {
            return if self.is_empty() { (self.vacant(), None) } else { (None, self.front()) };
        };
        let (low, high) = self.slots.split_at_mut(tail.max(self.head));
        let (vacant, front) =
            if tail < self.head { (&mut low[tail], &high[0]) } else { (&mut high[0], &low[self.head]) };
        (Some(&mut vacant.bytes), Some((&front.bytes[..front.len], front.peer)))
    }

    /// Frees the slot of the oldest datagram.
    pub fn pop(&mut self) {
        if !self.is_empty() {
            self.len -= 1;
            // An empty queue starts over: a server that is never blocked uses one slot, which stays in the cache.
            self.head = if self.is_empty() { 0 } else { (self.head + 1) % self.slots.len() };
        }
    }

    fn tail(&self) -> Option<usize> {
        (!self.is_full()).then(|| (self.head + self.len) % self.slots.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn put(queue: &mut EchoQueue, byte: u8) {
        queue.vacant().unwrap()[0] = byte;
        queue.push(1, SocketAddr::from(([127, 0, 0, 1], byte.into())));
    }

    #[test]
    fn holds_its_capacity_and_no_more() {
        let mut queue = EchoQueue::new(8, 4);
        (1..=8).for_each(|byte| put(&mut queue, byte));
        assert!(queue.is_full());
        assert!(queue.vacant().is_none());
        queue.push(1, SocketAddr::from(([127, 0, 0, 1], 9)));
        assert_eq!(queue.len(), 8);
    }

    #[test]
    fn keeps_order_and_senders_while_it_wraps() {
        let mut queue = EchoQueue::new(3, 4);
        let mut next = 1;
        put(&mut queue, 0);
        for expected in 0..100 {
            while !queue.is_full() {
                put(&mut queue, next);
                next += 1;
            }
            let (bytes, peer) = queue.front().unwrap();
            assert_eq!((bytes, peer.port()), (&[expected][..], expected.into()));
            queue.pop();
        }
    }

    #[test]
    fn a_datagram_that_was_not_kept_leaves_its_slot_vacant() {
        let mut queue = EchoQueue::new(2, 4);
        queue.vacant().unwrap()[0] = 7;
        assert!(queue.front().is_none());
        put(&mut queue, 8);
        assert_eq!(queue.front().unwrap().0, [8]);
    }

    proptest! {
        /// Whatever is done in whatever order, it is a queue of at most so many.
        #[test]
        fn behaves_like_a_naive_queue(capacity in 1usize..6, steps in vec(0u8..5, 0..200)) {
            let (mut queue, mut model) = (EchoQueue::new(capacity, 4), VecDeque::new());
            for (number, step) in steps.into_iter().enumerate() {
                let peer = SocketAddr::from(([127, 0, 0, 1], number as u16));
                match step {
                    // Longer than a slot: what does not fit is cut, as a receive does.
                    0..3 => {
                        let len = [0, 3, 9][usize::from(step)];
                        if let Some(slot) = queue.vacant() {
                            slot.fill(number as u8);
                            model.push_back((vec![number as u8; len.min(4)], peer));
                        }
                        queue.push(len, peer);
                    }
                    // Received, and not kept.
                    3 => queue.vacant().into_iter().for_each(|slot| slot.fill(255)),
                    _ => {
                        queue.pop();
                        model.pop_front();
                    }
                }
                prop_assert_eq!(queue.front(), model.front().map(|(bytes, peer)| (&bytes[..], *peer)));
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.is_empty(), model.is_empty());
                prop_assert_eq!(queue.is_full(), model.len() == capacity);
                prop_assert_eq!(queue.vacant().is_some(), model.len() < capacity);
                let (oldest, vacant) = (queue.front().map(|(bytes, _)| bytes.as_ptr()), queue.vacant().map(|slot| slot.as_ptr()));
                let (slot, front) = queue.vacant_and_front();
                prop_assert_eq!(slot.map(|slot| slot.as_ptr()), vacant);
                prop_assert_eq!(front.map(|(bytes, _)| bytes.as_ptr()), oldest);
                prop_assert_eq!(front, model.front().map(|(bytes, peer)| (&bytes[..], *peer)));
            }
        }
    }

    #[test]
    fn an_empty_datagram_is_a_datagram() {
        let mut queue = EchoQueue::new(1, 4);
        queue.push(0, SocketAddr::from(([127, 0, 0, 1], 1)));
        assert_eq!(queue.front().unwrap().0, []);
        queue.pop();
        queue.pop();
        assert!(queue.is_empty());
    }
}
