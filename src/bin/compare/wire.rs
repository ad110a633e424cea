//! Two ways to hand many datagrams to the kernel in one call.

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use std::io::{self, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Memory for datagrams on their way, and the calls that move them. No call blocks.
pub trait Wire {
    /// Where the `at`th datagram to be sent is written: `len` bytes.
    fn outgoing(&mut self, at: usize, len: usize) -> &mut [u8];
    /// Sends the first `count`; how many the kernel took.
    fn send(&mut self, socket: &UdpSocket, count: usize) -> io::Result<usize>;
    /// Receives what is there; how many.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize>;
    /// The `at`th datagram of the last receive.
    fn incoming(&self, at: usize) -> &[u8];
}

/// sendmmsg(2) and recvmmsg(2).
pub struct Batch {
    out: Messages,
    back: Messages,
}

impl Batch {
    /// Up to `count` datagrams a call, each with `content` to begin with.
    pub fn new(count: usize, content: &[u8]) -> Self {
        // A datagram longer than any that was sent shows as one byte longer.
        let longer = [content, &[0]].concat();
        Self { out: Messages::new(count, content), back: Messages::new(count, &longer) }
    }
}

impl Wire for Batch {
    fn outgoing(&mut self, at: usize, len: usize) -> &mut [u8] {
        self.out.vectors[at].iov_len = len;
        &mut self.out.bytes[at * self.out.slot..][..len]
    }

    fn send(&mut self, socket: &UdpSocket, count: usize) -> io::Result<usize> {
        let headers = self.out.headers.as_mut_ptr();
        // SAFETY: the first `count` headers and what they point to live as long as `self`.
        counted(unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count as u32, 0) })
    }

    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let (headers, count) = (self.back.headers.as_mut_ptr(), self.back.headers.len() as u32);
        // SAFETY: as in `send`; the kernel writes into `bytes` only, which nothing else borrows.
        counted(unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, count, 0, std::ptr::null_mut()) })
    }

    fn incoming(&self, at: usize) -> &[u8] {
        &self.back.bytes[at * self.back.slot..][..self.back.headers[at].msg_len as usize]
    }
}

/// The headers point to the vectors, and these into the bytes. None of the three is ever resized.
struct Messages {
    slot: usize,
    bytes: Vec<u8>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Messages {
    fn new(count: usize, content: &[u8]) -> Self {
        let slot = content.len();
        let mut bytes = content.repeat(count);
        let vector = |datagram: &mut [u8]| libc::iovec { iov_base: datagram.as_mut_ptr().cast(), iov_len: slot };
        let mut vectors: Vec<_> = bytes.chunks_exact_mut(slot).map(vector).collect();
        let header = |vector: &mut libc::iovec| {
            // SAFETY: all zeroes is a valid mmsghdr: no name, no control data.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (vector, 1);
            header
        };
        let headers = vectors.iter_mut().map(header).collect();
        Self { slot, bytes, vectors, headers }
    }
}

/// Segmentation offload: UDP_SEGMENT (Linux 4.18) cuts one send into datagrams of one size, UDP_GRO (Linux 5.0) joins
/// those that arrive (udp(7)).
pub struct Segments {
    size: usize,
    out: Vec<u8>,
    back: Vec<u8>,
    /// Bytes of the last receive, and of each datagram in it but the last.
    received: (usize, usize),
    control: Vec<u8>,
}

/// Datagrams in one send: UDP_MAX_SEGMENTS was 64 before Linux 6.9.
const MAX_SEGMENTS: usize = 64;
/// Bytes of one send.
const MAX_BYTES: usize = 65507;

impl Segments {
    /// Up to `count` datagrams a call, each with `content` to begin with.
    pub fn new(socket: &UdpSocket, count: usize, content: &[u8]) -> io::Result<Self> {
        setsockopt(socket, sockopt::UdpGsoSegment, &(content.len() as i32))?;
        setsockopt(socket, sockopt::UdpGroSegment, &true)?;
        let size = content.len();
        let out = content.repeat(count);
        Ok(Self { size, out, back: vec![0; 65536], received: (0, size), control: cmsg_space!(i32) })
    }
}

impl Wire for Segments {
    fn outgoing(&mut self, at: usize, len: usize) -> &mut [u8] {
        &mut self.out[at * self.size..][..len]
    }

    fn send(&mut self, socket: &UdpSocket, count: usize) -> io::Result<usize> {
        let count = count.min(MAX_SEGMENTS).min((MAX_BYTES / self.size).max(1));
        let sent = or_none(socket.send(&self.out[..count * self.size]))?;
        Ok(sent / self.size)
    }

    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut vectors = [IoSliceMut::new(&mut self.back)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut self.control), MsgFlags::MSG_DONTWAIT);
        let Some(message) = or_none(message.map(Some).map_err(io::Error::from))? else { return Ok(0) };
        let size = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        // Without the message it is one datagram.
        self.received = (message.bytes, size.unwrap_or(message.bytes).max(1));
        Ok(message.bytes.div_ceil(self.received.1).max(1))
    }

    fn incoming(&self, at: usize) -> &[u8] {
        let (bytes, size) = self.received;
        &self.back[at * size..bytes.min((at + 1) * size)]
    }
}

fn counted(result: i32) -> io::Result<usize> {
    or_none(usize::try_from(result).map_err(|_| io::Error::last_os_error()))
}

/// Nothing, if the call would have blocked, was interrupted, or reported an earlier refusal (ICMP).
fn or_none<T: Default>(result: io::Result<T>) -> io::Result<T> {
    use io::ErrorKind::{ConnectionRefused, Interrupted, WouldBlock};
    match result {
        Err(error) if [WouldBlock, Interrupted, ConnectionRefused].contains(&error.kind()) => Ok(T::default()),
        result => result,
    }
}
