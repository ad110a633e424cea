//! UDP echo over io_uring(7) with a receive that is submitted once and brings datagram after datagram (multishot), each in
//! a buffer that the kernel picks from those provided. The sends are from the same buffers.
//!
//! Run:             cargo run --bin echo-uring-multishot --features uring
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    io_uring_enter, once for an echo: it submits the send and waits for the next datagram. Under load it
//!                  submits a chain of sends (IOSQE_IO_LINK), and brings as many datagrams. Sends do not wait (MSG_DONTWAIT),
//!                  so one that is alone is over when the call returns, and has a completion only if it fails. One that
//!                  found no room is submitted again, alone, and waits.
//! Left out:        a kernel thread that polls (SQPOLL): it takes a core. The address that was asked (IP_PKTINFO, in control
//!                  data): on a wildcard address the route picks the one that answers. `--buffers` takes the place of
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
    use echo_lab::ring::{self, GROUP, Provided, Ring};
    use echo_lab::{Attempt, Error, Result, cli, net, policy, report, stop};
    use io_uring::types::{Fd, Fixed, RecvMsgOut, SubmitArgs, Timespec};
    use io_uring::{cqueue, opcode, squeue};
    use libc::msghdr;
    use socket2::{SockAddr, SockAddrStorage};
    use std::collections::VecDeque;
    use std::net::SocketAddr;
    use std::os::fd::AsRawFd;

    #[derive(Args)]
    struct Flags {
        #[command(flatten)]
        server: cli::ServerArgs,

        /// Buffers for datagrams: those received and not yet sent, and those that the kernel may fill
        #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u16).range(1..=4096))]
        buffers: u16,
    }

    /// Sends in one chain at the most: an error of one cancels those behind it, which are submitted again.
    const CHAIN: usize = 64;

    /// The server's socket, the first of the registered files: the kernel need not look it up for each operation.
    const SOCKET: Fixed = Fixed(0);

    /// What the kernel puts in front of a datagram: lengths (io_uring_recvmsg_out), then the sender's address.
    const LENGTHS: usize = 16;
    const NAME: usize = size_of::<libc::sockaddr_in6>();

    /// What an operation is for: its user data, which its completion brings back.
    #[derive(Clone, Copy)]
    enum Op {
        Signal,
        Cancel,
        Receive,
        /// Of the oldest datagram whose send has not completed: they complete in order.
        Send,
    }

    impl Op {
        fn encode(self) -> u64 {
            self as u64
        }

        fn decode(data: u64) -> Self {
            match data {
                0 => Op::Signal,
                1 => Op::Cancel,
                2 => Op::Receive,
                _ => Op::Send,
            }
        }
    }

    pub fn main() -> Result<()> {
        let Flags { server: args, buffers: count } = cli::parse_as(env!("CARGO_BIN_NAME"));
        let socket = net::bind(&args)?;
        let local = socket.local_addr().attempt("read the bound address")?;
        let signals = stop::descriptor()?;
        let ledger = Ledger::new(&args, local);
        let ring = ring::open(u32::from(count) + 4)?;
        ring.submitter().register_files(&[socket.as_raw_fd()]).attempt("register the socket with the ring")?;
        let buffers = Provided::new(&ring, count, LENGTHS + NAME + ledger.slot_size(), count)?;
        // SAFETY: all zeroes is a valid msghdr: no name, no vectors, no control data.
        let mut form: Box<msghdr> = Box::new(unsafe { std::mem::zeroed() });
        form.msg_namelen = NAME as u32;
        let waiting = VecDeque::with_capacity(count.into());
        let (sending, receiving, full) = (Sending::Nothing, false, false);
        let mut server = Server { ring, form, buffers, waiting, sending, full, receiving, local, ledger };
        let poll = opcode::PollAdd::new(Fd(signals.as_raw_fd()), libc::POLLIN as u32);
        server.queue(poll.build().user_data(Op::Signal.encode()))?;
        report::listening(local)?;
        server.serve()?;
        server.ledger.unsent(server.waiting.len());
        server.ledger.finish(&socket)
    }

    struct Server {
        // The first field is dropped first: no operation is under way when the memory below goes.
        ring: Ring,
        /// What the receive leaves room for in front of each datagram. The kernel reads it.
        form: Box<msghdr>,
        buffers: Provided,
        /// What is to be sent, oldest first.
        waiting: VecDeque<Datagram>,
        sending: Sending,
        /// The last send found no room.
        full: bool,
        receiving: bool,
        local: SocketAddr,
        ledger: Ledger,
    }

    /// Received, and not yet sent: a buffer, and the lengths of what is in it. The buffer is this program's from the
    /// completion that named it until it is given back.
    struct Datagram {
        buffer: u16,
        len: usize,
        name: usize,
    }

    /// What is under way for the datagrams in front.
    #[derive(Clone, Copy, PartialEq)]
    enum Sending {
        Nothing,
        /// One that does not wait, and tells only if it fails.
        Silent,
        /// So many that do not wait: each has a completion before the call returns.
        Chain(usize),
        /// One that waits for room.
        Waits,
    }

    impl Server {
        fn serve(&mut self) -> Result<()> {
            while !self.is_done() {
                self.receive()?;
                self.send()?;
                let settled = self.enter()?;
                while let Some(completion) = self.ring.next_completion() {
                    match Op::decode(completion.user_data()) {
                        Op::Signal => self.stop()?,
                        Op::Cancel => {}
                        Op::Receive => self.received(&completion)?,
                        Op::Send => self.sent(completion.result())?,
                    }
                }
                if settled && self.sending == Sending::Silent {
                    // It is over, and its failure would have been among the completions.
                    self.sent(0)?;
                }
                self.buffers.refill();
            }
            Ok(())
        }

        /// With nothing to be sent any more, and, if it was told to stop, no receive that may still bring something.
        fn is_done(&self) -> bool {
            let nothing_queued = self.waiting.is_empty() || self.ledger.to_come() == 0;
            self.ledger.is_done(nothing_queued && !(self.receiving && self.ledger.timeout().is_some()))
        }

        /// Submits what is queued, and waits for what is over within this call, or else for one completion. Whether all has
        /// been submitted, and all that has completed can be seen: io_uring_enter may end early, or find the queue of
        /// completions full.
        fn enter(&mut self) -> Result<bool> {
            self.ledger.report.waits += 1;
            let timeout = self.ledger.timeout().map(Timespec::from);
            let limit = timeout.as_ref().map_or(SubmitArgs::new(), |timeout| SubmitArgs::new().timespec(timeout));
            let prompt = if let Sending::Chain(count) = self.sending { count } else { 1 };
            ring::entered(self.ring.submitter().submit_with_args(prompt, &limit))?;
            let queue = self.ring.submission();
            Ok(queue.is_empty() && !queue.cq_overflow())
        }

        /// There is room in the ring for the sends of all buffers, the receive, the signal and a cancellation.
        fn queue(&mut self, entry: squeue::Entry) -> Result<()> {
            // SAFETY: what it points to is the form, or in a buffer that is given back only when the send is over; both
            // outlive the ring.
            unsafe { self.ring.submission().push(&entry) }.attempt("queue an operation")
        }

        /// Queues the receive, if none is under way. It ends when it finds no buffer.
        fn receive(&mut self) -> Result<()> {
            if self.receiving || self.buffers.is_empty() || self.ledger.timeout().is_some() {
                return Ok(());
            }
            self.receiving = true;
            let receive = opcode::RecvMsgMulti::new(SOCKET, &*self.form, GROUP);
            self.queue(receive.build().user_data(Op::Receive.encode()))
        }

        /// Queues the sends of what waits, if none is under way.
        fn send(&mut self) -> Result<()> {
            if self.sending != Sending::Nothing || self.waiting.is_empty() {
                return Ok(());
            }
            let to_come = usize::try_from(self.ledger.to_come()).unwrap_or(usize::MAX);
            let count = if self.full { 1 } else { self.waiting.len().min(to_come).min(CHAIN) };
            // If nothing is to be done once it has succeeded, that is not worth a completion.
            let last = self.waiting.len() == 1 && to_come > 1 && self.receiving && self.ledger.timeout().is_none();
            self.sending = match last {
                _ if self.full => Sending::Waits,
                true => Sending::Silent,
                false => Sending::Chain(count),
            };
            for at in 0..count {
                let Datagram { buffer, len, name } = self.waiting[at];
                let (_, name_and_bytes) = self.buffers.bytes(buffer).split_at(LENGTHS);
                let (peer, bytes) = name_and_bytes.split_at(NAME);
                let send = opcode::Send::new(SOCKET, bytes.as_ptr(), len as u32);
                let send = send.dest_addr(peer.as_ptr().cast()).dest_addr_len(name as u32);
                // The one that found no room goes on until there is some; then the next chain begins.
                let send = if self.full { send } else { send.flags(libc::MSG_DONTWAIT) };
                // Each begins when the one before it has succeeded, and one that fails cancels those behind it: none
                // overtakes another.
                let flags = match self.sending {
                    Sending::Silent => squeue::Flags::SKIP_SUCCESS,
                    _ if at + 1 < count => squeue::Flags::IO_LINK,
                    _ => squeue::Flags::empty(),
                };
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
                self.give_back_front();
            }
            Ok(())
        }

        fn give_back_front(&mut self) {
            if let Some(Datagram { buffer, .. }) = self.waiting.pop_front() {
                self.buffers.give_back(buffer);
            }
        }

        fn received(&mut self, completion: &cqueue::Entry) -> Result<()> {
            self.receiving = cqueue::more(completion.flags());
            let Some(buffer) = cqueue::buffer_select(completion.flags()) else {
                // No buffer was free, or this program wished it to end.
                if ![-libc::ENOBUFS, -libc::ECANCELED].contains(&completion.result()) {
                    self.ledger.received(ring::outcome(completion.result()).map(|_| (0, self.local)))?;
                }
                return Ok(());
            };
            self.buffers.take(buffer);
            let datagram = RecvMsgOut::parse(self.buffers.bytes(buffer), &self.form);
            let datagram = datagram.map_err(|()| Error::new("io_uring filled a buffer in an unknown form"))?;
            let (len, name) = (datagram.payload_data().len(), datagram.name_data());
            let (peer, name) = (peer(name), name.len());
            match self.ledger.received(Ok((len, peer)))? {
                Received::Datagram(..) => self.waiting.push_back(Datagram { buffer, len, name }),
                _ => self.buffers.give_back(buffer),
            }
            Ok(())
        }

        /// No more receives: the one under way has to be ended.
        fn stop(&mut self) -> Result<()> {
            self.ledger.stop();
            let cancel = opcode::AsyncCancel::new(Op::Receive.encode());
            self.queue(cancel.build().user_data(Op::Cancel.encode()))
        }
    }

    /// The sender that the kernel has put in front of a datagram.
    fn peer(name: &[u8]) -> SocketAddr {
        let mut storage = SockAddrStorage::zeroed();
        let len = name.len().min(NAME);
        // SAFETY: `len` bytes of an address, of which the storage has room for any; the kernel says its family.
        let name = unsafe {
            (&raw mut storage).cast::<u8>().copy_from_nonoverlapping(name.as_ptr(), len);
            SockAddr::new(storage, len as u32)
        };
        name.as_socket().unwrap_or(policy::NOBODY)
    }
}
