//! UDP echo over io_uring(7), with operations that complete once: a receive or a send is submitted with memory that is the
//! kernel's until its completion. One call carries many of them there, and their completions back.
//!
//! Run:             cargo run --bin echo-uring --features uring
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    io_uring_enter, twice for an echo: one submits its send and the next receive, and waits for the send;
//!                  the other waits for the receive. Under load one call carries up to `--depth` of both.
//! Left out:        many receives that wait at once: each datagram would wake them all, and one that is woken in vain too
//!                  often (APOLL_MAX_RETRY) goes to a thread of the kernel's, where it loses its turn. So one receive
//!                  waits, and others only take what is there already. `--depth` takes the place of `--queue`.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   Linux 6.1, for DEFER_TASKRUN.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "io_uring(7)")
}

#[cfg(target_os = "linux")]
use {
    clap::{Args, value_parser},
    echo_lab::ledger::{Ledger, Received, Sent},
    echo_lab::{Attempt, Result, cli, net, policy, report, ring, stop},
    io_uring::types::{Fd, SubmitArgs, Timespec},
    io_uring::{opcode, squeue},
    libc::{iovec, msghdr},
    socket2::{SockAddr, SockAddrStorage},
    std::collections::VecDeque,
    std::net::SocketAddr,
    std::os::fd::AsRawFd,
};

#[cfg(target_os = "linux")]
#[derive(Args)]
struct Flags {
    #[command(flatten)]
    server: cli::ServerArgs,

    /// Datagrams received or sent at a time, each with memory of its own
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u16).range(1..=1024))]
    depth: u16,
}

/// The user data of completions: these, or the number of a slot with what was done with it.
#[cfg(target_os = "linux")]
const SIGNAL: u64 = u64::MAX;
#[cfg(target_os = "linux")]
const CANCEL: u64 = u64::MAX - 1;
#[cfg(target_os = "linux")]
const SEND: u64 = 1 << 32;
/// The operation goes on until it can be done; without this it fails at once with EAGAIN (MSG_DONTWAIT).
#[cfg(target_os = "linux")]
const WAITS: u64 = 1 << 33;

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    let Flags { server: args, depth } = cli::parse_as(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    let fd = Fd(socket.as_raw_fd());
    let local = socket.local_addr().attempt("read the bound address")?;
    let signals = stop::descriptor()?;
    let mut ledger = Ledger::new(&args, local);
    let mut ring = ring::open(u32::from(depth) + 4)?;
    let poll = opcode::PollAdd::new(Fd(signals.as_raw_fd()), libc::POLLIN as u32).build().user_data(SIGNAL);
    // SAFETY: it points to no memory.
    unsafe { ring::push(&mut ring, &poll) }?;
    // A slot is free, or the kernel receives into it, or it waits to be sent, oldest first, those in front under way.
    let mut slots: Vec<_> = (0..depth).map(|_| Slot::new(ledger.slot_size())).collect();
    let mut free: Vec<_> = (0..u64::from(depth)).collect();
    let mut waiting = VecDeque::with_capacity(depth.into());
    let (mut receiving, mut sending) = (0, 0);
    // The receive that waits; whether the socket has no room; receives to be tried besides; operations that do not wait.
    let (mut armed, mut full, mut burst, mut prompt) = (None, false, 0, 0);
    report::listening(local)?;

    while !ledger.is_done(waiting.is_empty() && receiving == 0) {
        let mut queue = |entry: squeue::Entry| {
            // SAFETY: what it points to is in a slot, which never moves, and which this program does not touch before the
            // completion: it is neither free nor sent a second time until then.
            unsafe { ring::push(&mut ring, &entry) }
        };
        if sending == 0 {
            // Each begins when the one before it is over (IO_LINK), and one that fails cancels those behind it, which are
            // sent again: none overtakes another. One that found no room waits for it, alone.
            sending = if full { waiting.len().min(1) } else { waiting.len() };
            prompt += if full { 0 } else { sending };
            for (at, (slot, len)) in waiting.iter().take(sending).enumerate() {
                let Slot { bytes, name, header, .. } = &slots[*slot as usize];
                let send = opcode::Send::new(fd, bytes.as_ptr(), *len as u32);
                let send = send.dest_addr((&raw const *name).cast()).dest_addr_len(header.msg_namelen);
                let flags = if at + 1 < sending { squeue::Flags::IO_LINK } else { squeue::Flags::empty() };
                queue(if full {
                    send.build().user_data(slot | SEND | WAITS)
                } else {
                    send.flags(libc::MSG_DONTWAIT).build().flags(flags).user_data(slot | SEND)
                })?;
            }
        }
        let mut fresh = false;
        if receiving == 0 && ledger.timeout().is_none() {
            let to_come = ledger.to_come().saturating_sub(waiting.len() as u64);
            let count = to_come.min(1 + burst).min(free.len() as u64);
            // All run in this order in this thread, inside the call below: so they complete in the datagrams' order.
            for slot in free.drain(free.len() - count as usize..) {
                let receive = opcode::RecvMsg::new(fd, slots[slot as usize].vacant());
                (receiving, fresh) = (receiving + 1, prompt > 0);
                if receiving < count {
                    prompt += 1;
                    queue(receive.flags(libc::MSG_DONTWAIT as u32).build().user_data(slot))?;
                } else {
                    armed = Some(slot | WAITS);
                    queue(receive.build().user_data(slot | WAITS))?;
                }
            }
        }

        ledger.report.waits += 1;
        let timeout = ledger.timeout().map(Timespec::from);
        let limit = timeout.as_ref().map_or(SubmitArgs::new(), |timeout| SubmitArgs::new().timespec(timeout));
        // Those that do not wait are over when the call returns.
        ring::entered(ring.submitter().submit_with_args(prompt.max(1), &limit))?;

        let (mut got, mut stopped) = (0, false);
        for completion in ring.completion() {
            let (data, result) = (completion.user_data(), completion.result());
            if data == SIGNAL {
                stopped = true;
                ledger.stop();
            }
            if data >= CANCEL {
                continue;
            }
            let slot = data & u64::from(u32::MAX);
            prompt -= usize::from(data & WAITS == 0);
            let outcome = ring::outcome(result);
            if data & SEND != 0 {
                sending -= 1;
                if result != -libc::ECANCELED {
                    let sent = ledger.sent(outcome)?;
                    full = sent == Sent::WouldBlock;
                    if sent == Sent::Over {
                        waiting.pop_front();
                        free.push(slot);
                    }
                }
                continue;
            }
            receiving -= 1;
            armed = armed.filter(|armed| *armed != data);
            let into = &slots[slot as usize];
            match outcome {
                Err(_) if result == -libc::ECANCELED => free.push(slot),
                outcome => match ledger.received(outcome.map(|len| (len, into.peer())))? {
                    Received::Datagram(len, _) => {
                        waiting.push_back((slot, len));
                        got += 1;
                    }
                    _ => free.push(slot),
                },
            }
        }
        // All that were asked for were there at once, so there may be more; or fewer; or one had to be waited for.
        burst = if !fresh { 0 } else { got * if armed.is_none() { 2 } else { 1 } };
        if let (true, Some(armed)) = (stopped, armed) {
            // SAFETY: it points to no memory.
            unsafe { ring::push(&mut ring, &opcode::AsyncCancel::new(armed).build().user_data(CANCEL)) }?;
        }
    }
    ledger.unsent(waiting.len());
    ledger.finish(&socket)
}

/// Memory for one datagram, with the header that the kernel is given.
#[cfg(target_os = "linux")]
struct Slot {
    bytes: Box<[u8]>,
    name: SockAddrStorage,
    vector: iovec,
    header: msghdr,
}

#[cfg(target_os = "linux")]
impl Slot {
    fn new(size: usize) -> Self {
        let vector = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: all zeroes is a valid msghdr: no name, no vectors, no control data.
        let header = unsafe { std::mem::zeroed() };
        Self { bytes: vec![0; size].into(), name: SockAddrStorage::zeroed(), vector, header }
    }

    fn vacant(&mut self) -> *mut msghdr {
        self.vector = iovec { iov_base: self.bytes.as_mut_ptr().cast(), iov_len: self.bytes.len() };
        (self.header.msg_iov, self.header.msg_iovlen) = (&mut self.vector, 1);
        self.header.msg_name = (&raw mut self.name).cast();
        self.header.msg_namelen = size_of::<SockAddrStorage>() as u32;
        &mut self.header
    }

    fn peer(&self) -> SocketAddr {
        // SAFETY: the kernel has filled in the name, and says its length.
        let name = unsafe { SockAddr::new((&raw const self.name).read(), self.header.msg_namelen) };
        name.as_socket().unwrap_or(policy::NOBODY)
    }
}
