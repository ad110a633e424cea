//! UDP echo over io_uring(7) with a receive that is submitted once and brings datagram after datagram (multishot), each in
//! a buffer that the kernel picks from those provided. The sends are from the same buffers.
//!
//! Run:             cargo run --bin echo-uring-multishot --features uring
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    io_uring_enter, once for an echo: it submits the send and waits for the next datagram. Under load it
//!                  submits a chain of sends (IOSQE_IO_LINK), and brings as many datagrams. A send that is alone does not
//!                  wait (MSG_DONTWAIT), and has no completion if it succeeds: it is over when the call returns. Of a chain
//!                  there is one completion. A send that found no room is submitted again, alone, and waits.
//! Left out:        a kernel thread that polls (SQPOLL): it takes a core. `--buffers` takes the place of `--queue`.
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
    echo_lab::ring::{self, GROUP, Provided},
    echo_lab::{Attempt, Error, Result, cli, net, policy, report, stop},
    io_uring::types::{Fd, Fixed, RecvMsgOut, SubmitArgs, Timespec},
    io_uring::{cqueue, opcode, squeue},
    libc::msghdr,
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

    /// Buffers for datagrams: those received and not yet sent, and those that the kernel may fill
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u16).range(1..=4096))]
    buffers: u16,
}

/// The user data of completions: these, or the number of the buffer that is sent.
#[cfg(target_os = "linux")]
const RECEIVE: u64 = u64::MAX;
#[cfg(target_os = "linux")]
const SIGNAL: u64 = u64::MAX - 1;
#[cfg(target_os = "linux")]
const CANCEL: u64 = u64::MAX - 2;

/// Sends in one chain at the most: an error of one cancels those behind it, which are submitted again.
#[cfg(target_os = "linux")]
const CHAIN: usize = 64;

/// The server's socket, the first of the registered files: the kernel need not look it up for each operation.
#[cfg(target_os = "linux")]
const SOCKET: Fixed = Fixed(0);

/// What the kernel puts in front of a datagram: lengths (io_uring_recvmsg_out), then the sender's address.
#[cfg(target_os = "linux")]
const LENGTHS: usize = 16;
#[cfg(target_os = "linux")]
const NAME: usize = size_of::<libc::sockaddr_in6>();

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    let Flags { server: args, buffers: count } = cli::parse_as(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let signals = stop::descriptor()?;
    let mut ledger = Ledger::new(&args, local);
    let mut ring = ring::open(u32::from(count) + 4)?;
    ring.submitter().register_files(&[socket.as_raw_fd()]).attempt("register the socket with the ring")?;
    let mut buffers = Provided::new(&ring, count, LENGTHS + NAME + ledger.slot_size(), count)?;
    // SAFETY: all zeroes is a valid msghdr: no name, no vectors, no control data.
    let mut form: msghdr = unsafe { std::mem::zeroed() };
    form.msg_namelen = NAME as u32;
    let receive = opcode::RecvMsgMulti::new(SOCKET, &form, GROUP).build().user_data(RECEIVE);
    let poll = opcode::PollAdd::new(Fd(signals.as_raw_fd()), libc::POLLIN as u32).build().user_data(SIGNAL);
    let cancel = opcode::AsyncCancel::new(RECEIVE).build().user_data(CANCEL);
    // SAFETY: it points to no memory.
    unsafe { ring::push(&mut ring, &poll) }?;
    // What is to be sent, oldest first: buffer, length of the datagram, length of the address.
    let mut waiting = VecDeque::<(u16, usize, usize)>::with_capacity(count.into());
    // How many of those in front are under way; whether they tell only of a failure.
    let (mut sending, mut silent) = (0, false);
    // Whether the receive is under way; whether the last send found no room.
    let (mut receiving, mut full) = (false, false);
    report::listening(local)?;

    while !ledger.is_done((waiting.is_empty() || ledger.to_come() == 0) && !(receiving && ledger.timeout().is_some())) {
        if !receiving && ledger.timeout().is_none() && !buffers.is_empty() {
            receiving = true;
            // SAFETY: `form` lives as long as the ring, and says lengths only; the kernel picks a buffer provided.
            unsafe { ring::push(&mut ring, &receive) }?;
        }
        if sending == 0 && !waiting.is_empty() {
            let to_come = usize::try_from(ledger.to_come()).unwrap_or(usize::MAX);
            sending = if full { 1 } else { waiting.len().min(to_come).min(CHAIN) };
            // If nothing is to be done once it has succeeded, that is not worth a completion.
            let last = waiting.len() == 1 && to_come > 1 && receiving && ledger.timeout().is_none();
            silent = last && !full;
            for (at, (id, len, name)) in waiting.iter().take(sending).enumerate() {
                let (_, name_and_bytes) = buffers.bytes(*id).split_at(LENGTHS);
                let (peer, bytes) = name_and_bytes.split_at(NAME);
                let send = opcode::Send::new(SOCKET, bytes.as_ptr(), *len as u32);
                let send = send.dest_addr(peer.as_ptr().cast()).dest_addr_len(*name as u32);
                let send = if full { send } else { send.flags(libc::MSG_DONTWAIT) };
                // Each begins when the one before it has succeeded, and one that fails cancels those behind it: none
                // overtakes another. Only the last tells of its success, and one that fails tells for those behind it
                // (CQE_SKIP_SUCCESS in io_uring_enter(2)): one completion for a chain, well or not.
                let flags = match (at + 1 < sending, silent) {
                    (true, _) => squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS,
                    (false, true) => squeue::Flags::SKIP_SUCCESS,
                    (false, false) => squeue::Flags::empty(),
                };
                // SAFETY: the buffer, with datagram and address, is given back only when the send is over.
                unsafe { ring::push(&mut ring, &send.build().flags(flags).user_data((*id).into())) }?;
            }
        }
        ledger.report.waits += 1;
        let timeout = ledger.timeout().map(Timespec::from);
        let limit = timeout.as_ref().map_or(SubmitArgs::new(), |timeout| SubmitArgs::new().timespec(timeout));
        ring::entered(ring.submitter().submit_with_args(1, &limit))?;

        // Whether all that was queued has been submitted, and all that has completed can be seen below.
        let settled = ring.submission().is_empty() && !ring.submission().cq_overflow();
        let mut stopped = false;
        for completion in ring.completion() {
            let result = completion.result();
            match completion.user_data() {
                SIGNAL => {
                    stopped = true;
                    ledger.stop();
                }
                CANCEL => {}
                RECEIVE => {
                    receiving = cqueue::more(completion.flags());
                    let Some(id) = cqueue::buffer_select(completion.flags()) else {
                        // No buffer was free, or this program wished it to end.
                        if ![-libc::ENOBUFS, -libc::ECANCELED].contains(&result) {
                            ledger.received(ring::outcome(result).map(|_| (0, local)))?;
                        }
                        continue;
                    };
                    buffers.take(id);
                    let datagram = RecvMsgOut::parse(buffers.bytes(id), &form);
                    let datagram = datagram.map_err(|()| Error::new("io_uring filled a buffer in an unknown form"))?;
                    let (bytes, name) = (datagram.payload_data(), datagram.name_data());
                    if let Received::Datagram(..) = ledger.received(Ok((bytes.len(), peer(name))))? {
                        waiting.push_back((id, bytes.len(), name.len()));
                    } else {
                        buffers.give_back(id);
                    }
                }
                id => {
                    let before = waiting.iter().take_while(|(own, ..)| u64::from(*own) != id).count();
                    for (id, ..) in waiting.drain(..before) {
                        ledger.sent(Ok(0))?;
                        buffers.give_back(id);
                    }
                    let sent = ledger.sent(ring::outcome(result))?;
                    full = sent == Sent::WouldBlock;
                    if let (Sent::Over, Some((id, ..))) = (sent, waiting.front()) {
                        buffers.give_back(*id);
                        waiting.pop_front();
                    }
                    // What was behind it is not under way any more.
                    sending = 0;
                }
            }
        }
        if silent && settled {
            // It did not wait, and its failure would have been among the completions.
            for (id, ..) in waiting.drain(..sending) {
                ledger.sent(Ok(0))?;
                buffers.give_back(id);
            }
            (sending, silent) = (0, false);
        }
        buffers.refill();
        if stopped && receiving {
            // SAFETY: it points to no memory.
            unsafe { ring::push(&mut ring, &cancel) }?;
        }
    }
    ledger.unsent(waiting.len());
    ledger.finish(&socket)
}

/// The sender that the kernel has put in front of a datagram.
#[cfg(target_os = "linux")]
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
