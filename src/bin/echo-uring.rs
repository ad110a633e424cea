//! UDP echo over io_uring(7), with operations that complete once: a receive or a send is submitted with memory that is the
//! kernel's until its completion. One call carries many of them there, and their completions back.
//!
//! Run:             cargo run --bin echo-uring --features uring
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    io_uring_enter, twice for an echo: one submits its send and the next receive, and waits for the send;
//!                  the other waits for the receive. Under load one call carries up to `--depth` of both.
//! Left out:        many receives that wait at once: each datagram would wake them all, and one that is woken in vain too
//!                  often (APOLL_MAX_RETRY) goes to a thread of the kernel's, where it loses its turn. So one receive
//!                  waits, and others only take what is there already. The address that was asked (IP_PKTINFO, in control
//!                  data): on a wildcard address the route picks the one that answers. `--depth` takes the place of
//!                  `--queue`.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   Linux 6.1, for DEFER_TASKRUN.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "io_uring(7)")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use clap::{Args, value_parser};
    use echo_lab::ledger::{Ledger, Received, Sent};
    use echo_lab::ring::{self, Ring};
    use echo_lab::{Attempt, Result, cli, net, policy, report, stop};
    use io_uring::types::{Fd, SubmitArgs, Timespec};
    use io_uring::{opcode, squeue};
    use libc::{iovec, msghdr};
    use socket2::{SockAddr, SockAddrStorage};
    use std::collections::VecDeque;
    use std::net::SocketAddr;
    use std::os::fd::AsRawFd;

    #[derive(Args)]
    struct Flags {
        #[command(flatten)]
        server: cli::ServerArgs,

        /// Datagrams received or sent at a time, each with memory of its own
        #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u16).range(1..=1024))]
        depth: u16,
    }

    /// Sends in one chain at the most: an error of one cancels those behind it, which are submitted again.
    const CHAIN: usize = 64;

    /// What an operation is for: its user data, which its completion brings back.
    #[derive(Clone, Copy)]
    enum Op {
        Signal,
        Cancel,
        /// Of the oldest datagram whose send has not completed: they complete in order.
        Send,
        /// Takes a datagram that is there already, or fails with EAGAIN.
        TryReceive(u32),
        /// Waits until there is one.
        Receive(u32),
    }

    impl Op {
        /// The kind in the upper 32 bits; in the lower the number of the slot, if it is about one.
        fn encode(self) -> u64 {
            let (kind, slot) = match self {
                Op::Signal => (0, 0),
                Op::Cancel => (1, 0),
                Op::Send => (2, 0),
                Op::TryReceive(slot) => (3, slot),
                Op::Receive(slot) => (4, slot),
            };
            kind << 32 | u64::from(slot)
        }

        fn decode(data: u64) -> Self {
            match (data >> 32, data as u32) {
                (0, _) => Op::Signal,
                (1, _) => Op::Cancel,
                (2, _) => Op::Send,
                (3, slot) => Op::TryReceive(slot),
                (_, slot) => Op::Receive(slot),
            }
        }
    }

    pub fn main() -> Result<()> {
        let Flags { server: args, depth } = cli::parse_as(env!("CARGO_BIN_NAME"));
        let socket = net::bind(&args)?;
        let local = socket.local_addr().attempt("read the bound address")?;
        let signals = stop::descriptor()?;
        let ledger = Ledger::new(&args, local);
        let mut server = Server {
            ring: ring::open(u32::from(depth) + 4)?,
            fd: Fd(socket.as_raw_fd()),
            slots: (0..depth).map(|_| Slot::new(ledger.slot_size())).collect(),
            free: (0..depth.into()).collect(),
            waiting: VecDeque::with_capacity(depth.into()),
            sending: Sending::Nothing,
            full: false,
            trying: 0,
            armed: None,
            burst: 0,
            ledger,
        };
        let poll = opcode::PollAdd::new(Fd(signals.as_raw_fd()), libc::POLLIN as u32);
        server.queue(poll.build().user_data(Op::Signal.encode()))?;
        report::listening(local)?;
        server.serve()?;
        server.ledger.unsent(server.waiting.len());
        server.ledger.finish(&socket)
    }

    struct Server {
        // The first field is dropped first: no operation is under way when the slots go.
        ring: Ring,
        fd: Fd,
        /// Memory for datagrams. A slot is free, or the kernel receives into it, or it waits to be sent.
        #[expect(clippy::vec_box, reason = "a reference to all slots would cover those that are the kernel's")]
        slots: Vec<Box<Slot>>,
        free: Vec<u32>,
        /// Slots received and not sent, oldest first, with the lengths of their datagrams.
        waiting: VecDeque<(u32, usize)>,
        sending: Sending,
        /// The last send found no room.
        full: bool,
        /// Receives under way that do not wait.
        trying: usize,
        /// The receive that waits.
        armed: Option<u32>,
        /// Receives to be tried besides the one that waits: as many as the last turn is likely to have left.
        burst: usize,
        ledger: Ledger,
    }

    /// What is under way for the datagrams in front.
    #[derive(Clone, Copy, PartialEq)]
    enum Sending {
        Nothing,
        /// So many that do not wait: each has a completion before the call returns.
        Chain(usize),
        /// One that waits for room.
        Waits,
    }

    impl Server {
        fn serve(&mut self) -> Result<()> {
            while !self.ledger.is_done(self.waiting.is_empty() && self.trying == 0 && self.armed.is_none()) {
                self.send()?;
                let fresh = self.receive()?;
                self.enter()?;
                let before = self.ledger.report.received;
                while let Some(completion) = self.ring.next_completion() {
                    let result = completion.result();
                    match Op::decode(completion.user_data()) {
                        Op::Signal => self.stop()?,
                        Op::Cancel => {}
                        Op::Send => self.sent(result)?,
                        Op::TryReceive(slot) => {
                            self.trying -= 1;
                            self.received(slot, result)?;
                        }
                        Op::Receive(slot) => {
                            self.armed = None;
                            self.received(slot, result)?;
                        }
                    }
                }
                // All that were asked for were there at once, so there may be more; or fewer; or one had to be waited for.
                let got = (self.ledger.report.received - before) as usize;
                self.burst = if !fresh { 0 } else { got * if self.armed.is_none() { 2 } else { 1 } };
            }
            Ok(())
        }

        /// Submits what is queued, and waits for what is over within this call, or else for one completion.
        fn enter(&mut self) -> Result<()> {
            self.ledger.report.waits += 1;
            let timeout = self.ledger.timeout().map(Timespec::from);
            let limit = timeout.as_ref().map_or(SubmitArgs::new(), |timeout| SubmitArgs::new().timespec(timeout));
            ring::entered(self.ring.submitter().submit_with_args(self.prompt().max(1), &limit))
        }

        /// Completions that come without waiting.
        fn prompt(&self) -> usize {
            self.trying + if let Sending::Chain(count) = self.sending { count } else { 0 }
        }

        /// There is room in the ring for all slots, the signal and its cancellation.
        fn queue(&mut self, entry: squeue::Entry) -> Result<()> {
            // SAFETY: what it points to is in a slot, which never moves, and which nobody touches before the completion: it
            // is neither free nor sent a second time until then. The slots outlive the ring.
            unsafe { self.ring.submission().push(&entry) }.attempt("queue an operation")
        }

        /// Queues the sends of what waits, if none is under way.
        fn send(&mut self) -> Result<()> {
            if self.sending != Sending::Nothing || self.waiting.is_empty() {
                return Ok(());
            }
            let count = if self.full { 1 } else { self.waiting.len().min(CHAIN) };
            self.sending = if self.full { Sending::Waits } else { Sending::Chain(count) };
            for at in 0..count {
                let (slot, len) = self.waiting[at];
                let Slot { bytes, name, header, .. } = &*self.slots[slot as usize];
                let send = opcode::Send::new(self.fd, bytes.as_ptr(), len as u32);
                let send = send.dest_addr((&raw const *name).cast()).dest_addr_len(header.msg_namelen);
                // The one that found no room goes on until there is some; then the next chain begins.
                let send = if self.full { send } else { send.flags(libc::MSG_DONTWAIT) };
                // Each begins when the one before it has succeeded, and one that fails cancels those behind it: none
                // overtakes another.
                let flags = if at + 1 < count { squeue::Flags::IO_LINK } else { squeue::Flags::empty() };
                self.queue(send.build().flags(flags).user_data(Op::Send.encode()))?;
            }
            Ok(())
        }

        /// The send of the datagram in front is over, or was cancelled because one before it failed.
        fn sent(&mut self, result: i32) -> Result<()> {
            self.sending = match self.sending {
                Sending::Chain(count) if count > 1 => Sending::Chain(count - 1),
                _ => Sending::Nothing,
            };
            if result == -libc::ECANCELED {
                return Ok(());
            }
            let sent = self.ledger.sent(ring::outcome(result))?;
            self.full = sent == Sent::WouldBlock;
            if sent == Sent::Over {
                self.free.extend(self.waiting.pop_front().map(|(slot, _)| slot));
            }
            Ok(())
        }

        /// Queues receives, if none is under way. Whether the call will find out how many datagrams are there.
        fn receive(&mut self) -> Result<bool> {
            if self.trying > 0 || self.armed.is_some() || self.ledger.timeout().is_some() {
                return Ok(false);
            }
            let to_come = self.ledger.to_come().saturating_sub(self.waiting.len() as u64);
            let count = to_come.min(1 + self.burst as u64).min(self.free.len() as u64);
            // All run in this order in this thread, inside the call: so they complete in the datagrams' order.
            for left in (0..count).rev() {
                let Some(slot) = self.free.pop() else { break };
                let receive = opcode::RecvMsg::new(self.fd, self.slots[slot as usize].vacant());
                if left > 0 {
                    self.trying += 1;
                    let receive = receive.flags(libc::MSG_DONTWAIT as u32).build();
                    self.queue(receive.user_data(Op::TryReceive(slot).encode()))?;
                } else {
                    self.armed = Some(slot);
                    self.queue(receive.build().user_data(Op::Receive(slot).encode()))?;
                }
            }
            Ok(count > 0 && self.prompt() > 0)
        }

        fn received(&mut self, slot: u32, result: i32) -> Result<()> {
            if result != -libc::ECANCELED {
                let peer = self.slots[slot as usize].peer();
                let outcome = ring::outcome(result).map(|len| (len, peer));
                if let Received::Datagram(len, _) = self.ledger.received(outcome)? {
                    self.waiting.push_back((slot, len));
                    return Ok(());
                }
            }
            self.free.push(slot);
            Ok(())
        }

        /// No more receives; the one that waits has to be ended.
        fn stop(&mut self) -> Result<()> {
            self.ledger.stop();
            let Some(slot) = self.armed else { return Ok(()) };
            let cancel = opcode::AsyncCancel::new(Op::Receive(slot).encode());
            self.queue(cancel.build().user_data(Op::Cancel.encode()))
        }
    }

    /// Memory for one datagram, with the header that the kernel is given.
    struct Slot {
        bytes: Box<[u8]>,
        name: SockAddrStorage,
        vector: iovec,
        header: msghdr,
    }

    impl Slot {
        fn new(size: usize) -> Box<Self> {
            let vector = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            // SAFETY: all zeroes is a valid msghdr: no name, no vectors, no control data.
            let header = unsafe { std::mem::zeroed() };
            Box::new(Self { bytes: vec![0; size].into(), name: SockAddrStorage::zeroed(), vector, header })
        }

        /// The header for a receive. From its submission on the slot is the kernel's.
        fn vacant(&mut self) -> *mut msghdr {
            self.vector = iovec { iov_base: self.bytes.as_mut_ptr().cast(), iov_len: self.bytes.len() };
            (self.header.msg_iov, self.header.msg_iovlen) = (&raw mut self.vector, 1);
            self.header.msg_name = (&raw mut self.name).cast();
            self.header.msg_namelen = size_of::<SockAddrStorage>() as u32;
            &raw mut self.header
        }

        /// Who sent what was received.
        fn peer(&self) -> SocketAddr {
            // SAFETY: the kernel has filled in the name, and says its length.
            let name = unsafe { SockAddr::new((&raw const self.name).read(), self.header.msg_namelen) };
            name.as_socket().unwrap_or(policy::NOBODY)
        }
    }
}
