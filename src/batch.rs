//! Memory for recvmmsg(2) and sendmmsg(2): datagrams, each with its header. The calls are the example's.

use crate::control::Control;
use crate::policy::NOBODY;
use libc::{iovec, mmsghdr};
use socket2::{SockAddr, SockAddrStorage};
use std::net::SocketAddr;
use std::ptr::{NonNull, null_mut};

/// A batch is first received, then sent, then vacant again. Everything is allocated once, and nothing is copied: what was
/// received is sent from where it lies. On a wildcard address each answer comes from the address that was asked.
pub struct Batch {
    slot_size: usize,
    headers: Vec<mmsghdr>,
    /// Of the headers, those from `sent` to `kept` wait to be sent.
    kept: usize,
    sent: usize,
    /// Whether the kernel says where a datagram was sent to.
    wildcard: bool,
    // The headers point to the slots, and the slots to the bytes. So there is no reference to either, which would claim them
    // for itself: all go by the pointers that the two allocations were first known by.
    slots: NonNull<[Slot]>,
    bytes: NonNull<[u8]>,
}

/// What a header points to.
struct Slot {
    vector: iovec,
    name: SockAddrStorage,
    control: Control,
}

// SAFETY: all that the headers point to belongs to the batch, and moves with it.
unsafe impl Send for Batch {}

impl Drop for Batch {
    fn drop(&mut self) {
        // SAFETY: both come from a box, and nobody uses the headers any more.
        unsafe { (drop(Box::from_raw(self.slots.as_ptr())), drop(Box::from_raw(self.bytes.as_ptr()))) };
    }
}

impl Batch {
    /// Up to `count` datagrams of up to `slot_size` bytes, for a server on `local`, whose socket has been through
    /// [`crate::control::ask_for_destination`].
    pub fn new(count: usize, slot_size: usize, local: SocketAddr) -> Self {
        let slot = |_| Slot {
            vector: iovec { iov_base: null_mut(), iov_len: 0 },
            name: SockAddrStorage::zeroed(),
            control: Control::default(),
        };
        let slots = NonNull::from(Box::leak((0..count).map(slot).collect::<Box<[_]>>()));
        let bytes = NonNull::from(Box::leak(vec![0; count * slot_size].into_boxed_slice()));
        let header = |at| {
            // SAFETY: all zeroes is a valid mmsghdr: no name, no vectors, no control data. `at` is less than `count`.
            unsafe {
                let mut header: mmsghdr = std::mem::zeroed();
                let slot = slots.as_ptr().cast::<Slot>().add(at);
                (*slot).vector.iov_base = bytes.as_ptr().cast::<u8>().add(at * slot_size).cast();
                (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (&raw mut (*slot).vector, 1);
                header.msg_hdr.msg_name = (&raw mut (*slot).name).cast();
                header.msg_hdr.msg_control = (&raw mut (*slot).control).cast();
                header
            }
        };
        let headers = (0..count).map(header).collect();
        Self { slot_size, headers, kept: 0, sent: 0, wildcard: local.ip().is_unspecified(), slots, bytes }
    }

    /// Nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.sent == self.kept
    }

    /// Headers to receive into, at most `limit`. What was kept before is forgotten.
    pub fn vacant(&mut self, limit: u64) -> &mut [mmsghdr] {
        (self.kept, self.sent) = (0, 0);
        let count = self.headers.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        for header in &mut self.headers[..count] {
            header.msg_hdr.msg_namelen = size_of::<SockAddrStorage>() as u32;
            // SAFETY: it points to a vector of this batch, which nothing else borrows.
            unsafe { (*header.msg_hdr.msg_iov).iov_len = self.slot_size };
            if self.wildcard {
                header.msg_hdr.msg_controllen = control(header).room().len() as _;
            }
        }
        &mut self.headers[..count]
    }

    /// The length and the sender of the `at`th datagram that was received.
    pub fn received(&self, at: usize) -> (usize, SocketAddr) {
        let header = &self.headers[at];
        let (name, len) = (header.msg_hdr.msg_name.cast::<SockAddrStorage>(), header.msg_hdr.msg_namelen);
        // SAFETY: it points to a name of this batch, which the kernel has filled in, with its length.
        let name = unsafe { SockAddr::new(name.read(), len) };
        (header.msg_len as usize, name.as_socket().unwrap_or(NOBODY))
    }

    /// Keeps the `at`th datagram, to be sent after those kept before. To be called in the order of the datagrams.
    pub fn keep(&mut self, at: usize) {
        let header = &mut self.headers[at];
        // SAFETY: as in `vacant`.
        unsafe { (*header.msg_hdr.msg_iov).iov_len = header.msg_len as usize };
        if self.wildcard {
            let control = control(header);
            let asked = control.destination();
            control.clear();
            asked.into_iter().for_each(|ip| control.push_source(ip));
            let len = control.bytes().len();
            header.msg_hdr.msg_controllen = len as _;
        }
        self.headers.swap(self.kept, at);
        self.kept += 1;
    }

    /// What waits to be sent, each to its sender.
    pub fn front(&mut self) -> &mut [mmsghdr] {
        &mut self.headers[self.sent..self.kept]
    }

    /// So many were sent, or are lost.
    pub fn pop(&mut self, count: usize) {
        self.sent = self.kept.min(self.sent + count);
    }

    /// Datagrams that wait to be sent.
    pub fn len(&self) -> usize {
        self.kept - self.sent
    }
}

/// The control data that one of a batch's headers points to.
fn control(header: &mut mmsghdr) -> &mut Control {
    // SAFETY: the batch made it point there, and nothing else borrows it. The bytes, of which the kernel knows, come first.
    unsafe { &mut *header.msg_hdr.msg_control.cast::<Control>() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    /// What is kept is sent, in order, from where it lies; what is not sent at first stays in front.
    #[test]
    fn keeps_some_and_sends_them_in_parts() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let mut batch = Batch::new(8, 16, server.local_addr().unwrap());
        for round in 0..3u8 {
            (0..6u8).for_each(|number| assert_eq!(client.send(&[round, number]).unwrap(), 2));
            let headers = batch.vacant(u64::MAX);
            let (at, len) = (headers.as_mut_ptr(), headers.len() as u32);
            // SAFETY: `len` headers, which point to memory of `batch`.
            let count =
                unsafe { libc::recvmmsg(server.as_raw_fd(), at, len, libc::MSG_WAITFORONE, std::ptr::null_mut()) };
            assert_eq!(count, 6);
            for at in 0..6 {
                assert_eq!(batch.received(at), (2, client.local_addr().unwrap()));
                if at % 3 != 0 {
                    batch.keep(at);
                }
            }
            for left in [4, 2] {
                assert_eq!(batch.len(), left);
                // SAFETY: as above; two of the headers that wait.
                let count = unsafe { libc::sendmmsg(server.as_raw_fd(), batch.front().as_mut_ptr(), 2, 0) };
                batch.pop(count as usize);
            }
            assert!(batch.is_empty());
            let mut got = [0; 16];
            for number in [1, 2, 4, 5] {
                assert_eq!((client.recv(&mut got).unwrap(), &got[..2]), (2, &[round, number][..]));
            }
        }
        assert_eq!(batch.vacant(3).len(), 3);
    }
}
