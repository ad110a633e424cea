//! A closed-loop load: a window of datagrams outstanding, spread over several sockets, each checked when it comes back.

use hdrhistogram::Histogram;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Sequence number and slice number.
const HEADER: usize = 12;
/// After so long without an answer the outstanding datagrams count as lost.
const LOST_AFTER: Duration = Duration::from_millis(250);

/// The shape of a load.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub flows: usize,
    /// Datagrams outstanding, over all flows.
    pub window: usize,
    /// Bytes of each datagram.
    pub size: usize,
}

/// What became of the datagrams of one slice.
pub struct Tally {
    pub received: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub reordered: u64,
    pub corrupt: u64,
    /// From the first send to the last answer.
    pub elapsed: Duration,
    /// Nanoseconds from send to answer, under this load.
    pub latency: Histogram<u64>,
}

impl Tally {
    pub fn new() -> Self {
        // From 100 ns to a minute, with three digits: always valid bounds.
        let latency = Histogram::new_with_bounds(100, 60_000_000_000, 3).expect("valid bounds");
        let elapsed = Duration::ZERO;
        Self { received: 0, lost: 0, duplicates: 0, reordered: 0, corrupt: 0, elapsed, latency }
    }

    /// Adds what another slice gave.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.lost += other.lost;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.elapsed += other.elapsed;
        self.latency.add(&other.latency).expect("the same bounds");
    }
}

/// Sockets connected to one server, with all memory that a slice needs.
pub struct Load {
    flows: Vec<Flow>,
    slice: u32,
}

struct Flow {
    socket: UdpSocket,
    out: Batch,
    back: Batch,
    /// When each outstanding datagram was sent, by sequence number modulo the length.
    pending: Vec<Option<(u64, Instant)>>,
    outstanding: usize,
    next: u64,
    expected: u64,
}

impl Load {
    pub fn new(server: SocketAddr, shape: Shape) -> io::Result<Self> {
        let window = shape.window.div_ceil(shape.flows);
        let any: SocketAddr = if server.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { ([0u16; 8], 0).into() };
        let flow = |_| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            Ok(Flow {
                socket,
                out: Batch::new(window, shape.size),
                back: Batch::new(window, shape.size + 1),
                // Longer than the window, so that a late answer is told from one that is outstanding.
                pending: vec![None; window * 4],
                outstanding: 0,
                next: 0,
                expected: 0,
            })
        };
        Ok(Self { flows: (0..shape.flows).map(flow).collect::<io::Result<_>>()?, slice: 0 })
    }

    /// Keeps the window full for `duration`, then waits for what is outstanding.
    pub fn run(&mut self, duration: Duration) -> io::Result<Tally> {
        self.slice += 1;
        let mut tally = Tally::new();
        let start = Instant::now();
        let (end, mut progress) = (start + duration, start);
        loop {
            let mut outstanding = 0;
            for flow in &mut self.flows {
                let now = Instant::now();
                if now < end {
                    flow.send(self.slice, now)?;
                }
                if flow.receive(self.slice, &mut tally)? {
                    progress = Instant::now();
                }
                outstanding += flow.outstanding;
            }
            if progress.elapsed() > LOST_AFTER {
                tally.lost += self.flows.iter_mut().map(Flow::give_up).sum::<u64>();
                (outstanding, progress) = (0, Instant::now());
            }
            if outstanding == 0 && Instant::now() >= end {
                tally.elapsed = progress - start;
                return Ok(tally);
            }
        }
    }
}

impl Flow {
    fn send(&mut self, slice: u32, now: Instant) -> io::Result<()> {
        let room = self.out.len() - self.outstanding;
        for at in 0..room {
            let datagram = self.out.datagram(at);
            datagram[..8].copy_from_slice(&(self.next + at as u64).to_le_bytes());
            datagram[8..HEADER].copy_from_slice(&slice.to_le_bytes());
        }
        let sent = if room > 0 { self.out.send(&self.socket, room)? } else { 0 };
        for _ in 0..sent {
            let slots = self.pending.len() as u64;
            self.pending[(self.next % slots) as usize] = Some((self.next, now));
            self.next += 1;
        }
        self.outstanding += sent;
        Ok(())
    }

    fn receive(&mut self, slice: u32, tally: &mut Tally) -> io::Result<bool> {
        let got = self.back.receive(&self.socket)?;
        let now = Instant::now();
        for at in 0..got {
            let (datagram, size) = (self.back.received(at), self.out.size);
            if datagram.len() != size || datagram[HEADER..] != self.out.pattern()[HEADER..] {
                tally.corrupt += 1;
                continue;
            }
            let (sequence, rest) = datagram.split_at(8);
            let sequence = u64::from_le_bytes(sequence.try_into().expect("8 bytes"));
            let slots = self.pending.len() as u64;
            let slot = &mut self.pending[(sequence % slots) as usize];
            match *slot {
                Some((outstanding, sent)) if outstanding == sequence && rest[..4] == slice.to_le_bytes() => {
                    *slot = None;
                    self.outstanding -= 1;
                    tally.received += 1;
                    tally.reordered += u64::from(sequence < self.expected);
                    self.expected = self.expected.max(sequence + 1);
                    tally.latency.saturating_record((now - sent).as_nanos() as u64);
                }
                _ => tally.duplicates += 1,
            }
        }
        Ok(got > 0)
    }

    fn give_up(&mut self) -> u64 {
        self.pending.fill(None);
        std::mem::take(&mut self.outstanding) as u64
    }
}

/// Datagrams for one call of sendmmsg or recvmmsg, in one piece of memory.
struct Batch {
    size: usize,
    bytes: Vec<u8>,
    pattern: Vec<u8>,
    headers: Vec<libc::mmsghdr>,
    // The headers point to these, and these into the bytes. None of the three is ever resized.
    _vectors: Vec<libc::iovec>,
}

impl Batch {
    fn new(len: usize, size: usize) -> Self {
        let pattern: Vec<u8> = (0..size).map(|at| (at * 31 + 7) as u8).collect();
        let mut bytes = pattern.repeat(len);
        let vector = |datagram: &mut [u8]| libc::iovec { iov_base: datagram.as_mut_ptr().cast(), iov_len: size };
        let mut vectors: Vec<_> = bytes.chunks_exact_mut(size).map(vector).collect();
        let header = |vector: &mut libc::iovec| {
            // SAFETY: all zeroes is a valid mmsghdr: no name, no control data.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (vector, 1);
            header
        };
        let headers = vectors.iter_mut().map(header).collect();
        Self { size, bytes, pattern, headers, _vectors: vectors }
    }

    fn len(&self) -> usize {
        self.headers.len()
    }

    fn pattern(&self) -> &[u8] {
        &self.pattern
    }

    fn datagram(&mut self, at: usize) -> &mut [u8] {
        &mut self.bytes[at * self.size..][..self.size]
    }

    fn received(&self, at: usize) -> &[u8] {
        &self.bytes[at * self.size..][..self.headers[at].msg_len as usize]
    }

    fn send(&mut self, socket: &UdpSocket, count: usize) -> io::Result<usize> {
        // SAFETY: the first `count` headers and what they point to live as long as `self`.
        calls(unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count as u32, 0) })
    }

    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let count = self.headers.len() as u32;
        // SAFETY: as in `send`; the kernel writes into `bytes` only, which nothing else borrows.
        calls(unsafe { libc::recvmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, 0, std::ptr::null_mut()) })
    }
}

/// A count of datagrams; none if the call would have blocked, was interrupted, or reported an earlier refusal (ICMP).
fn calls(result: i32) -> io::Result<usize> {
    let error = match usize::try_from(result) {
        Ok(count) => return Ok(count),
        Err(_) => io::Error::last_os_error(),
    };
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused => Ok(0),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Runs a short load against a server that treats its `n`th datagram as `answer` says.
    fn against(answer: impl Fn(u64, &UdpSocket, &mut [u8], SocketAddr) + Send + 'static) -> Tally {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = server.local_addr().unwrap();
        server.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            let mut number = 0;
            while !until.load(Ordering::Relaxed) {
                if let Ok((len, peer)) = server.recv_from(&mut buffer) {
                    answer(number, &server, &mut buffer[..len], peer);
                    number += 1;
                }
            }
        });
        let mut load = Load::new(addr, Shape { flows: 2, window: 8, size: 64 }).unwrap();
        let tally = load.run(Duration::from_millis(50)).unwrap();
        over.store(true, Ordering::Relaxed);
        thread.join().unwrap();
        tally
    }

    fn echo(server: &UdpSocket, datagram: &[u8], peer: SocketAddr) {
        server.send_to(datagram, peer).unwrap();
    }

    #[test]
    fn a_good_server_loses_nothing() {
        let tally = against(|_, server, datagram, peer| echo(server, datagram, peer));
        assert!(tally.received > 100);
        assert_eq!((tally.lost, tally.duplicates, tally.reordered, tally.corrupt), (0, 0, 0, 0));
        assert_eq!(tally.latency.len(), tally.received);
    }

    #[test]
    fn drops_are_counted() {
        let tally = against(|number, server, datagram, peer| {
            if number != 5 {
                echo(server, datagram, peer);
            }
        });
        assert_eq!((tally.lost, tally.duplicates, tally.corrupt), (1, 0, 0));
    }

    #[test]
    fn duplicates_are_counted() {
        let tally = against(|number, server, datagram, peer| {
            echo(server, datagram, peer);
            if number == 5 {
                echo(server, datagram, peer);
            }
        });
        assert_eq!((tally.lost, tally.duplicates, tally.corrupt), (0, 1, 0));
    }

    #[test]
    fn corruption_is_counted_and_is_a_loss() {
        let tally = against(|number, server, datagram, peer| {
            if number == 5 {
                datagram[40] ^= 1;
            }
            echo(server, datagram, peer);
        });
        assert_eq!((tally.lost, tally.duplicates, tally.corrupt), (1, 0, 1));
        let cut = against(|number, server, datagram, peer| {
            let len = if number == 5 { 63 } else { 64 };
            echo(server, &datagram[..len], peer);
        });
        assert_eq!((cut.lost, cut.duplicates, cut.corrupt), (1, 0, 1));
    }

    #[test]
    fn a_delay_shows_in_the_latency() {
        let tally = against(|number, server, datagram, peer| {
            if number == 5 {
                std::thread::sleep(Duration::from_millis(20));
            }
            echo(server, datagram, peer);
        });
        assert!(tally.latency.max() > 19_000_000, "{}", tally.latency.max());
        assert!(tally.latency.value_at_quantile(0.5) < tally.latency.max() / 2);
    }
}
