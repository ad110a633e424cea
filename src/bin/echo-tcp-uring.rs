//! TCP echo in one thread over io_uring(7): the program says what is to be done, the kernel does it when it can, and one
//! call, io_uring_enter, carries the new operations there and the completions back.
//!
//! Run:             cargo run --bin echo-tcp-uring --features uring
//! Second terminal: nc 127.0.0.1 2000
//! In the trace:    io_uring_enter, once for an echo: it submits the send of one message and the next receive, linked
//!                  (IOSQE_IO_LINK), and waits for that. An accept is submitted once and completes many times (multishot).
//! Left out:        a multishot receive: it goes on while the peer reads nothing, into one buffer after another, so memory
//!                  is not bounded by `--buffer`. Registered files, zero-copy sends, a kernel thread that polls (SQPOLL).
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
    use echo_lab::ring::{self, GROUP, Provided, Ring};
    use echo_lab::stream::{Accepted, Ledger, Moved};
    use echo_lab::{Attempt, Result, cli, net, report, stop};
    use io_uring::types::{Fd, SubmitArgs, Timespec};
    use io_uring::{cqueue, opcode, squeue};
    use slab::Slab;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::ops::Range;
    use std::os::fd::{AsRawFd, FromRawFd};

    /// Buffers that lie ready for the kernel: connections of which one turn can receive. A receive that finds none is over,
    /// and has to be submitted again.
    const READY: u16 = 64;
    /// Bytes in a buffer at the most, whatever `--buffer` allows. The kernel gives a send that has waited for room too
    /// often (APOLL_MAX_RETRY, 128 times) to a thread of its own; one of this size never has to.
    const LARGEST: usize = 64 << 10;

    /// IORING_RECVSEND_POLL_FIRST: wait until something arrives before the first try. The peer has yet to read the answer, so
    /// a try at once would be in vain.
    const POLL_FIRST: u16 = 1;

    /// What an operation is for: its user data, which its completion brings back.
    #[derive(Clone, Copy)]
    enum Op {
        Signal,
        Accept,
        Cancel,
        Send(u32),
        Receive(u32),
    }

    impl Op {
        /// The kind in the upper 32 bits; in the lower the key of the connection, if it is about one.
        fn encode(self) -> u64 {
            let (kind, key) = match self {
                Op::Signal => (0, 0),
                Op::Accept => (1, 0),
                Op::Cancel => (2, 0),
                Op::Send(key) => (3, key),
                Op::Receive(key) => (4, key),
            };
            kind << 32 | u64::from(key)
        }

        fn decode(data: u64) -> Self {
            match (data >> 32, data as u32) {
                (0, _) => Op::Signal,
                (1, _) => Op::Accept,
                (2, _) => Op::Cancel,
                (3, key) => Op::Send(key),
                (_, key) => Op::Receive(key),
            }
        }
    }

    pub fn main() -> Result<()> {
        let args: cli::StreamArgs = cli::parse_as(env!("CARGO_BIN_NAME"));
        let listener = net::listen(&args)?;
        let local = listener.local_addr().attempt("read the bound address")?;
        let signals = stop::descriptor()?;
        let ring = ring::open(256)?;
        let buffers = Provided::new(&ring, READY, (args.buffer as usize).min(LARGEST), u16::MAX)?;
        let (connections, starved) = (Slab::new(), Vec::new());
        let ledger = Ledger::new(&args, local);
        let mut server = Server { ring, listener, buffers, connections, starved, accepting: false, ledger };
        let poll = opcode::PollAdd::new(Fd(signals.as_raw_fd()), libc::POLLIN as u32);
        server.queue(&[poll.build().user_data(Op::Signal.encode())])?;
        report::listening(local)?;
        server.serve()?;
        let owed = server.connections.iter().filter_map(|(_, connection)| connection.owed.as_ref());
        server.ledger.unsent(owed.map(|(_, rest)| rest.len()).sum());
        server.ledger.finish()
    }

    struct Server {
        // The first field is dropped first: no operation is under way when the memory and the descriptors below go.
        ring: Ring,
        listener: TcpListener,
        buffers: Provided,
        connections: Slab<Connection>,
        /// Connections whose receive found no buffer.
        starved: Vec<u32>,
        accepting: bool,
        ledger: Ledger,
    }

    /// Each has one chain of operations under way, of which there is one completion: whoever handles that may close it, or
    /// begins the next chain.
    struct Connection {
        stream: TcpStream,
        /// A buffer received, and the part of it that is still to be sent. The kernel reads it until the chain is over.
        owed: Option<(u16, Range<usize>)>,
    }

    impl Server {
        fn serve(&mut self) -> Result<()> {
            while !self.ledger.is_done() {
                self.accept()?;
                self.enter()?;
                while let Some(completion) = self.ring.next_completion() {
                    match Op::decode(completion.user_data()) {
                        Op::Signal => self.stop()?,
                        Op::Accept => self.accepted(&completion)?,
                        Op::Cancel => {}
                        Op::Send(key) => self.sent(key, &completion)?,
                        Op::Receive(key) => self.received(key, &completion)?,
                    }
                }
                // Buffers given back lie ready again; those that found none try once more.
                self.buffers.refill();
                while let (false, Some(key)) = (self.buffers.is_empty(), self.starved.last().copied()) {
                    self.starved.pop();
                    self.go_on(key)?;
                }
            }
            Ok(())
        }

        /// Submits what is queued, and waits for a completion.
        fn enter(&mut self) -> Result<()> {
            self.ledger.waits += 1;
            let timeout = self.ledger.timeout().map(Timespec::from);
            let limit = timeout.as_ref().map_or(SubmitArgs::new(), |timeout| SubmitArgs::new().timespec(timeout));
            ring::entered(self.ring.submitter().submit_with_args(1, &limit))
        }

        /// Queues all of `chain`. If there is no room it submits what is queued before: a chain submitted in two parts
        /// would be two.
        fn queue(&mut self, chain: &[squeue::Entry]) -> Result<()> {
            // SAFETY: what an entry points to is in a buffer that is given back only when its chain is over, and the
            // buffers outlive the ring.
            while unsafe { self.ring.submission().push_multiple(chain) }.is_err() {
                ring::entered(self.ring.submit())?;
            }
            Ok(())
        }

        fn accept(&mut self) -> Result<()> {
            if self.accepting || !self.ledger.accepts() {
                return Ok(());
            }
            self.accepting = true;
            let accept = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC);
            self.queue(&[accept.build().user_data(Op::Accept.encode())])
        }

        fn accepted(&mut self, completion: &cqueue::Entry) -> Result<()> {
            self.accepting = cqueue::more(completion.flags());
            if completion.result() == -libc::ECANCELED {
                return Ok(());
            }
            let outcome = ring::outcome(completion.result()).map(|descriptor| {
                // SAFETY: the kernel has just made it, and nobody else knows it.
                let stream = unsafe { TcpStream::from_raw_fd(descriptor as i32) };
                // Accepts of one operation share no place for an address. A peer that has gone already has none.
                let peer = stream.peer_addr().unwrap_or_else(|_| ([0; 4], 0).into());
                (stream, peer)
            });
            let Accepted::Connection(stream) = self.ledger.accepted(outcome)? else { return Ok(()) };
            if self.ledger.is_stopping() {
                let _ = stream.shutdown(Shutdown::Read);
            }
            let key = self.connections.insert(Connection { stream, owed: None });
            self.go_on(key as u32)
        }

        /// Begins the next chain of a connection: sends what is owed, then receives.
        fn go_on(&mut self, key: u32) -> Result<()> {
            let Connection { stream, owed } = &self.connections[key as usize];
            let fd = Fd(stream.as_raw_fd());
            // The kernel picks a buffer when something has arrived: a connection that is idle holds none.
            let receive = opcode::Recv::new(fd, std::ptr::null_mut(), 0).buf_group(GROUP).ioprio(POLL_FIRST).build();
            let receive = receive.flags(squeue::Flags::BUFFER_SELECT).user_data(Op::Receive(key).encode());
            let Some((buffer, rest)) = owed else { return self.queue(&[receive]) };
            let rest = &self.buffers.bytes(*buffer)[rest.clone()];
            let send = opcode::Send::new(fd, rest.as_ptr(), rest.len() as u32);
            // It goes on until all is sent (MSG_WAITALL), however long the peer reads nothing; only then the receive begins
            // (IO_LINK). A success is not told (CQE_SKIP_SUCCESS), since the receive tells it. A failure is told, and it
            // cancels the receive, which then does not tell of itself (io_uring_enter(2)).
            let send = send.flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build().user_data(Op::Send(key).encode());
            self.queue(&[send.flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS), receive])
        }

        /// The receive is over, and so is the send before it: what that sent is done with.
        fn received(&mut self, key: u32, completion: &cqueue::Entry) -> Result<()> {
            let connection = &mut self.connections[key as usize];
            if let Some((buffer, rest)) = connection.owed.take() {
                self.ledger.wrote(Ok(rest.len()));
                self.buffers.give_back(buffer);
            }
            if completion.result() == -libc::ENOBUFS {
                self.starved.push(key);
                return Ok(());
            }
            let moved = self.ledger.read(ring::outcome(completion.result()));
            if let Some(buffer) = cqueue::buffer_select(completion.flags()) {
                self.buffers.take(buffer);
                match moved {
                    Moved::Bytes(len) => connection.owed = Some((buffer, 0..len)),
                    _ => self.buffers.give_back(buffer),
                }
            }
            if moved == Moved::Over { self.close(key) } else { self.go_on(key) }
        }

        /// The send has failed, or has sent a part and then failed; the next one will say how. The receive never began.
        fn sent(&mut self, key: u32, completion: &cqueue::Entry) -> Result<()> {
            let moved = self.ledger.wrote(ring::outcome(completion.result()));
            if let (Moved::Bytes(count), Some((_, rest))) = (moved, &mut self.connections[key as usize].owed) {
                rest.start += count;
            }
            if moved == Moved::Over { self.close(key) } else { self.go_on(key) }
        }

        /// Nothing is under way for it any more.
        fn close(&mut self, key: u32) -> Result<()> {
            if let Some((buffer, rest)) = self.connections.remove(key as usize).owed {
                self.ledger.unsent(rest.len());
                self.buffers.give_back(buffer);
            }
            self.ledger.closed();
            Ok(())
        }

        fn stop(&mut self) -> Result<()> {
            self.ledger.stop();
            for (_, connection) in &self.connections {
                // What has arrived can still be received, then the stream ends. Fails if the peer has gone already.
                let _ = connection.stream.shutdown(Shutdown::Read);
            }
            let cancel = opcode::AsyncCancel::new(Op::Accept.encode());
            self.queue(&[cancel.build().user_data(Op::Cancel.encode())])
        }
    }
}
