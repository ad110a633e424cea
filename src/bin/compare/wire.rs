//! Three ways to hand many messages to the kernel in one call: two for datagrams, and a connection.

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A socket, memory for messages on their way, and the calls that move them. No call blocks.
pub trait Wire {
    /// The socket.
    fn socket(&self) -> BorrowedFd<'_>;
    /// Where the `at`th message to be sent is written: `len` bytes. They are asked for in order.
    fn outgoing(&mut self, at: usize, len: usize) -> &mut [u8];
    /// Sends the first `count`; how many were taken.
    fn send(&mut self, count: usize) -> io::Result<usize>;
    /// Receives what is there; how many.
    fn receive(&mut self) -> io::Result<usize>;
    /// The `at`th message of the last receive.
    fn incoming(&self, at: usize) -> &[u8];
}

/// sendmmsg(2) and recvmmsg(2).
pub struct Batch {
    socket: UdpSocket,
    out: Messages,
    back: Messages,
}

impl Batch {
    /// Up to `count` datagrams a call, each with `content` to begin with.
    pub fn new(socket: UdpSocket, count: usize, content: &[u8]) -> Self {
        // A datagram longer than any that was sent shows as one byte longer.
        let longer = [content, &[0]].concat();
        Self { socket, out: Messages::new(count, content), back: Messages::new(count, &longer) }
    }
}

impl Wire for Batch {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn outgoing(&mut self, at: usize, len: usize) -> &mut [u8] {
        self.out.vectors[at].iov_len = len;
        &mut self.out.bytes[at * self.out.slot..][..len]
    }

    fn send(&mut self, count: usize) -> io::Result<usize> {
        let headers = self.out.headers.as_mut_ptr();
        // SAFETY: the first `count` headers and what they point to live as long as `self`.
        counted(unsafe { libc::sendmmsg(self.socket.as_raw_fd(), headers, count as u32, 0) })
    }

    fn receive(&mut self) -> io::Result<usize> {
        let (headers, count) = (self.back.headers.as_mut_ptr(), self.back.headers.len() as u32);
        // SAFETY: as in `send`; the kernel writes into `bytes` only, which nothing else borrows.
        counted(unsafe { libc::recvmmsg(self.socket.as_raw_fd(), headers, count, 0, std::ptr::null_mut()) })
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
    socket: UdpSocket,
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
    pub fn new(socket: UdpSocket, count: usize, content: &[u8]) -> io::Result<Self> {
        setsockopt(&socket, sockopt::UdpGsoSegment, &(content.len() as i32))?;
        setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
        let size = content.len();
        let out = content.repeat(count);
        Ok(Self { socket, size, out, back: vec![0; 65536], received: (0, size), control: cmsg_space!(i32) })
    }
}

impl Wire for Segments {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn outgoing(&mut self, at: usize, len: usize) -> &mut [u8] {
        &mut self.out[at * self.size..][..len]
    }

    fn send(&mut self, count: usize) -> io::Result<usize> {
        let count = count.min(MAX_SEGMENTS).min((MAX_BYTES / self.size).max(1));
        let sent = or_none(self.socket.send(&self.out[..count * self.size]))?;
        Ok(sent / self.size)
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut vectors = [IoSliceMut::new(&mut self.back)];
        let message =
            recvmsg::<()>(self.socket.as_raw_fd(), &mut vectors, Some(&mut self.control), MsgFlags::MSG_DONTWAIT);
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

/// A connection, on which messages follow one another; their sizes say where each ends.
pub struct Stream {
    stream: TcpStream,
    sizes: Vec<usize>,
    content: Vec<u8>,
    out: Vec<u8>,
    /// Bytes of `out` that were sent and not taken by the kernel, and those written behind them.
    unsent: usize,
    written: usize,
    back: Vec<u8>,
    /// Bytes in `back`; where the messages of the last receive end; how many there were before them.
    filled: usize,
    ends: Vec<usize>,
    received: usize,
}

impl Stream {
    /// Messages with `content`, cut to these `sizes` in turn, up to `count` outstanding.
    pub fn new(stream: TcpStream, count: usize, content: &[u8], sizes: &[usize]) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let room = (count * content.len()).max(1);
        let (out, back, ends) = (vec![0; room], vec![0; room], Vec::with_capacity(count));
        let (sizes, content) = (sizes.to_vec(), content.to_vec());
        Ok(Self { stream, sizes, content, out, unsent: 0, written: 0, back, filled: 0, ends, received: 0 })
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.unsent > 0 {
            let count = or_none((&self.stream).write(&self.out[..self.unsent]))?;
            self.out.copy_within(count..self.unsent, 0);
            self.unsent -= count;
        }
        Ok(())
    }
}

impl Wire for Stream {
    fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn outgoing(&mut self, at: usize, len: usize) -> &mut [u8] {
        if at == 0 {
            self.written = self.unsent;
        }
        let message = &mut self.out[self.written..][..len];
        self.written += len;
        message.copy_from_slice(&self.content[..len]);
        message
    }

    fn send(&mut self, count: usize) -> io::Result<usize> {
        self.unsent = self.written;
        self.flush().map(|()| count)
    }

    fn receive(&mut self) -> io::Result<usize> {
        self.flush()?;
        let taken = self.ends.last().copied().unwrap_or(0);
        self.back.copy_within(taken..self.filled, 0);
        self.filled -= taken;
        self.received += self.ends.len();
        self.ends.clear();
        self.filled += match (&self.stream).read(&mut self.back[self.filled..]) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed a connection")),
            result => or_none(result)?,
        };
        let mut end = 0;
        loop {
            end += self.sizes[(self.received + self.ends.len()) % self.sizes.len()];
            if end > self.filled {
                return Ok(self.ends.len());
            }
            self.ends.push(end);
        }
    }

    fn incoming(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.back[start..self.ends[at]]
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
