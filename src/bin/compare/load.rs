//! A load: datagrams over several sockets, or messages over several connections, each checked when it comes back. Closed loop: a window of them is always
//! outstanding. Open loop: one is due at every tick of a schedule, whatever the server does.

use crate::wire::{Batch, Segments, Stream, Wire};
use hdrhistogram::Histogram;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Sequence number and slice number.
const HEADER: usize = 12;
/// After so long without an answer the outstanding datagrams count as lost. TCP loses none: there something is wrong.
const LOST_AFTER: Duration = Duration::from_millis(250);
const TCP_LOST_AFTER: Duration = Duration::from_secs(5);

/// The shape of a load.
#[derive(Clone, Debug)]
pub struct Shape {
    pub flows: usize,
    /// Datagrams outstanding at most, over all flows.
    pub window: usize,
    /// Bytes of the datagrams, in turn.
    pub sizes: Vec<usize>,
    /// Send and receive with segmentation offload.
    pub gso: bool,
    /// Over TCP: a flow is a connection.
    pub tcp: bool,
    /// TCP: more connections, on which nothing is sent.
    pub idle: usize,
}

/// What became of the datagrams of one slice.
pub struct Tally {
    pub received: u64,
    pub lost: u64,
    /// Open loop: due, but never sent, because the window was full.
    pub unsent: u64,
    pub duplicates: u64,
    pub reordered: u64,
    pub corrupt: u64,
    /// From the first send to the last answer.
    pub elapsed: Duration,
    /// Nanoseconds from send to answer.
    pub latency: Histogram<u64>,
    /// Open loop: nanoseconds from when it was due to the answer, so that a server that stalls, and thereby delays the
    /// sends that would have shown it, does not look good (coordinated omission). One unsent counts as it was at the end.
    pub corrected: Histogram<u64>,
}

impl Tally {
    pub fn new() -> Self {
        // From 100 ns to a minute, with three digits: always valid bounds.
        let latency = Histogram::new_with_bounds(100, 60_000_000_000, 3).expect("valid bounds");
        let (corrected, elapsed) = (latency.clone(), Duration::ZERO);
        Self { received: 0, lost: 0, unsent: 0, duplicates: 0, reordered: 0, corrupt: 0, elapsed, latency, corrected }
    }

    /// Adds what another slice gave.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.lost += other.lost;
        self.unsent += other.unsent;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.corrupt += other.corrupt;
        self.elapsed += other.elapsed;
        self.latency.add(&other.latency).expect("the same bounds");
        self.corrected.add(&other.corrected).expect("the same bounds");
    }
}

/// Sockets connected to one server, with all memory that a slice needs.
pub struct Load {
    flows: Vec<Flow>,
    content: Content,
    ready: Option<Ready>,
    _idle: Vec<TcpStream>,
}

/// Of many connections, those on which something has come. A few sockets are simply asked.
struct Ready {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

/// What is sent, and has to come back.
struct Content {
    slice: u32,
    sizes: Vec<usize>,
    pattern: Vec<u8>,
}

struct Flow {
    wire: Box<dyn Wire>,
    ready: bool,
    window: usize,
    /// Each outstanding datagram, by sequence number modulo the length.
    pending: Vec<Option<Pending>>,
    outstanding: usize,
    next: u64,
    expected: u64,
    schedule: Option<Schedule>,
}

#[derive(Clone, Copy)]
struct Pending {
    sequence: u64,
    due: Instant,
    sent: Instant,
}

/// Open loop: when the next datagram is due, and how long after it the one behind it.
struct Schedule {
    next: Instant,
    interval: Duration,
}

impl Schedule {
    /// Datagrams due before `now`.
    fn due(&self, now: Instant) -> usize {
        let late = now.saturating_duration_since(self.next).as_nanos();
        late.div_ceil(self.interval.as_nanos().max(1)) as usize
    }
}

impl Load {
    /// To `server`; without one, each socket to itself: what the client alone can do.
    pub fn new(server: Option<SocketAddr>, shape: &Shape) -> io::Result<Self> {
        let window = shape.window.div_ceil(shape.flows);
        let largest = shape.sizes.iter().copied().max().unwrap_or(HEADER);
        let pattern: Vec<u8> = (0..largest).map(|at| (at * 31 + 7) as u8).collect();
        let flow = |_| {
            let wire: Box<dyn Wire> = match (shape.tcp, shape.gso) {
                (true, _) => Box::new(Stream::new(connect(server)?, window, &pattern, &shape.sizes)?),
                (_, true) => Box::new(Segments::new(socket(server)?, window, &pattern)?),
                _ => Box::new(Batch::new(socket(server)?, window, &pattern)),
            };
            // Longer than the window, so that a late answer is told from one that is outstanding.
            let pending = vec![None; window * 4];
            Ok(Flow { wire, ready: true, window, pending, outstanding: 0, next: 0, expected: 0, schedule: None })
        };
        let flows = (0..shape.flows).map(flow).collect::<io::Result<Vec<_>>>()?;
        let ready = shape.tcp.then(|| Ready::new(&flows)).transpose()?;
        let idle = (0..shape.idle).map(|_| connect(server)).collect::<io::Result<_>>()?;
        Ok(Self { flows, content: Content { slice: 0, sizes: shape.sizes.clone(), pattern }, ready, _idle: idle })
    }

    /// Loads the server for `duration`, then waits for what is outstanding. Closed loop: keeps the window full. With a
    /// `rate`, in datagrams per second: open loop, in which the window only bounds what a stalled server is sent.
    pub fn run(&mut self, duration: Duration, rate: Option<u32>) -> io::Result<Tally> {
        self.content.slice += 1;
        let mut tally = Tally::new();
        let start = Instant::now();
        let (end, mut progress) = (start + duration, start);
        let count = self.flows.len() as u32;
        for (flow, number) in self.flows.iter_mut().zip(0..) {
            flow.schedule = rate.map(|rate| {
                let tick = Duration::from_secs(1) / rate;
                Schedule { next: start + tick * number, interval: tick * count }
            });
        }
        loop {
            let (mut outstanding, mut got) = (0, false);
            if let Some(ready) = &mut self.ready {
                ready.look(&mut self.flows)?;
            }
            for flow in &mut self.flows {
                if flow.outstanding < flow.window {
                    let now = Instant::now();
                    if now < end {
                        flow.send(&self.content, now)?;
                    }
                }
                if flow.ready {
                    got |= flow.receive(&self.content, &mut tally)?;
                }
                outstanding += flow.outstanding;
            }
            if got {
                progress = Instant::now();
            } else if progress.elapsed() > if self.ready.is_some() { TCP_LOST_AFTER } else { LOST_AFTER } {
                tally.lost += self.flows.iter_mut().map(Flow::give_up).sum::<u64>();
                (outstanding, progress) = (0, Instant::now());
            }
            if outstanding == 0 && Instant::now() >= end {
                self.flows.iter().for_each(|flow| flow.unsent(end, &mut tally));
                tally.elapsed = progress - start;
                return Ok(tally);
            }
        }
    }
}

/// To `server`; without one, to itself.
fn socket(server: Option<SocketAddr>) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server.map_or_else(|| socket.local_addr(), Ok)?)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// To `server`; without one, to itself: a simultaneous open (RFC 9293, 3.5).
fn connect(server: Option<SocketAddr>) -> io::Result<TcpStream> {
    if let Some(server) = server {
        return TcpStream::connect(server);
    }
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.connect(&socket.local_addr()?)?;
    Ok(socket.into())
}

impl Ready {
    fn new(flows: &[Flow]) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (flow, number) in flows.iter().zip(0..) {
            epoll.add(flow.wire.socket(), EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        }
        Ok(Self { epoll, events: vec![EpollEvent::empty(); flows.len().clamp(1, 256)] })
    }

    /// Marks those that are ready, without waiting.
    fn look(&mut self, flows: &mut [Flow]) -> io::Result<()> {
        flows.iter_mut().for_each(|flow| flow.ready = false);
        let count = match self.epoll.wait(&mut self.events, EpollTimeout::ZERO) {
            Err(nix::errno::Errno::EINTR) => 0,
            result => result?,
        };
        self.events[..count].iter().for_each(|event| flows[event.data() as usize].ready = true);
        Ok(())
    }
}

impl Flow {
    fn send(&mut self, content: &Content, now: Instant) -> io::Result<()> {
        let room = self.window - self.outstanding;
        let count = self.schedule.as_ref().map_or(room, |schedule| schedule.due(now).min(room));
        if count == 0 {
            return Ok(());
        }
        for (at, sequence) in (0..count).zip(self.next..) {
            let datagram = self.wire.outgoing(at, content.size(sequence));
            datagram[..8].copy_from_slice(&sequence.to_le_bytes());
            datagram[8..HEADER].copy_from_slice(&content.slice.to_le_bytes());
        }
        let sent = self.wire.send(count)?;
        for _ in 0..sent {
            let due = self.schedule.as_mut().map_or(now, |schedule| {
                let due = schedule.next;
                schedule.next += schedule.interval;
                due
            });
            let slots = self.pending.len() as u64;
            self.pending[(self.next % slots) as usize] = Some(Pending { sequence: self.next, due, sent: now });
            self.next += 1;
        }
        self.outstanding += sent;
        Ok(())
    }

    fn receive(&mut self, content: &Content, tally: &mut Tally) -> io::Result<bool> {
        let got = self.wire.receive()?;
        let now = Instant::now();
        for at in 0..got {
            let datagram = self.wire.incoming(at);
            let Some((sequence, slice)) = content.check(datagram) else {
                tally.corrupt += 1;
                continue;
            };
            let slots = self.pending.len() as u64;
            let slot = &mut self.pending[(sequence % slots) as usize];
            match *slot {
                Some(pending) if pending.sequence == sequence && slice == content.slice => {
                    *slot = None;
                    self.outstanding -= 1;
                    tally.received += 1;
                    tally.reordered += u64::from(sequence < self.expected);
                    self.expected = self.expected.max(sequence + 1);
                    tally.latency.saturating_record((now - pending.sent).as_nanos() as u64);
                    if self.schedule.is_some() {
                        tally.corrected.saturating_record((now - pending.due).as_nanos() as u64);
                    }
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

    /// Counts what was due before `end` and is still here.
    fn unsent(&self, end: Instant, tally: &mut Tally) {
        let Some(schedule) = &self.schedule else { return };
        let count = schedule.due(end) as u32;
        tally.unsent += u64::from(count);
        for number in 0..count {
            let late = end - (schedule.next + schedule.interval * number);
            tally.corrected.saturating_record(late.as_nanos() as u64);
        }
    }
}

impl Content {
    fn size(&self, sequence: u64) -> usize {
        self.sizes[(sequence % self.sizes.len() as u64) as usize]
    }

    /// The sequence and slice number of a datagram, if it is as it was sent.
    fn check(&self, datagram: &[u8]) -> Option<(u64, u32)> {
        let (sequence, rest) = datagram.split_first_chunk()?;
        let (slice, _) = rest.split_first_chunk()?;
        let sequence = u64::from_le_bytes(*sequence);
        let size = self.size(sequence);
        let intact = datagram.len() == size && datagram[HEADER..] == self.pattern[HEADER..size];
        intact.then_some((sequence, u32::from_le_bytes(*slice)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn shape(sizes: Vec<usize>, gso: bool) -> Shape {
        Shape { flows: 2, window: 8, sizes, gso, tcp: false, idle: 0 }
    }

    fn against(answer: impl Fn(u64, &UdpSocket, &mut [u8], SocketAddr) + Send + 'static) -> Tally {
        loaded(None, answer)
    }

    /// Runs a short load against a server that treats its `n`th datagram as `answer` says.
    fn loaded(rate: Option<u32>, answer: impl Fn(u64, &UdpSocket, &mut [u8], SocketAddr) + Send + 'static) -> Tally {
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
        let mut load = Load::new(Some(addr), &shape(vec![64], false)).unwrap();
        let tally = load.run(Duration::from_millis(50), rate).unwrap();
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
    fn every_size_of_a_mix_comes_back() {
        // To itself: what is sent is what comes back.
        for (sizes, gso) in [(vec![16, 1400, 64], false), (vec![9000], false), (vec![100], true), (vec![9000], true)] {
            let tally = Load::new(None, &shape(sizes, gso)).unwrap().run(Duration::from_millis(20), None).unwrap();
            assert!(tally.received > 20, "{}", tally.received);
            assert_eq!((tally.lost, tally.duplicates, tally.reordered, tally.corrupt), (0, 0, 0, 0));
        }
    }

    #[test]
    fn messages_of_a_connection_come_back() {
        for (flows, sizes) in [(1, vec![64]), (300, vec![64]), (4, vec![16, 50_000, 64])] {
            let shape = Shape { flows, window: flows * 2, tcp: true, ..shape(sizes, false) };
            let tally = Load::new(None, &shape).unwrap().run(Duration::from_millis(50), None).unwrap();
            assert!(tally.received > 300, "{}", tally.received);
            assert_eq!((tally.lost, tally.duplicates, tally.reordered, tally.corrupt), (0, 0, 0, 0));
        }
    }

    /// In pieces of any size, and one byte wrong.
    #[test]
    fn a_connection_is_checked_and_its_end_is_an_error() {
        use std::io::{Read, Write};
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = server.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let (mut buffer, mut total) = ([0; 333], 0);
            while total < 2_000 {
                let count = stream.read(&mut buffer).unwrap();
                if (total..total + count).contains(&1_000) {
                    buffer[1_000 - total] ^= 1;
                }
                buffer[..count].chunks(7).for_each(|piece| stream.write_all(piece).unwrap());
                total += count;
            }
        });
        let shape = Shape { flows: 1, window: 4, tcp: true, ..shape(vec![100], false) };
        let mut load = Load::new(Some(addr), &shape).unwrap();
        let tally = load.run(Duration::from_secs(5), None);
        assert_eq!(tally.err().map(|error| error.kind()), Some(io::ErrorKind::UnexpectedEof));
        thread.join().unwrap();
    }

    #[test]
    fn an_open_loop_keeps_its_rate() {
        let tally = loaded(Some(2000), |_, server, datagram, peer| echo(server, datagram, peer));
        // On a busy machine the server may stall, and then the window is full.
        assert_eq!((tally.received + tally.unsent, tally.lost), (100, 0));
        assert!(tally.received >= 16, "{}", tally.received);
        assert_eq!(tally.corrected.len(), 100);
    }

    /// While the server stalls, a window of 8 is all that the uncorrected figure sees; 40 datagrams were due.
    #[test]
    fn a_stall_shows_in_the_corrected_latency() {
        let tally = loaded(Some(2000), |number, server, datagram, peer| {
            if number == 40 {
                std::thread::sleep(Duration::from_millis(20));
            }
            echo(server, datagram, peer);
        });
        let slow = |histogram: &Histogram<u64>| histogram.count_between(2_000_000, u64::MAX);
        let (uncorrected, corrected) = (slow(&tally.latency), slow(&tally.corrected));
        // A busy machine adds stalls of its own, to both.
        assert!(corrected >= 30 && 2 * uncorrected <= corrected + 2, "{uncorrected} and {corrected}");
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
