//! UDP echo over compio, a runtime whose operations complete (io_uring(7)): an operation owns its memory until it is over,
//! so the types say what the comments say in a program over the bare ring. One receive brings datagram after datagram, in
//! order, into buffers that the kernel picks from the runtime's pool; each is sent from where it lies.
//!
//! Run:             cargo run --bin echo-compio --features compio
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    io_uring_enter, twice for an echo: one submits the send and waits for it, the other waits for the next
//!                  datagram. Under load one call carries many of both.
//! Left out:        links between operations, which this runtime does not offer. Of two sends under way the second might
//!                  overtake the first, so there is one at a time for each sender. `--depth` takes the place of `--queue`.
//!                  compio allocates for each operation, and panics if the ring itself becomes unusable.
//! Oldest system:   Linux 6.1, for DEFER_TASKRUN.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "io_uring(7)")
}

#[cfg(target_os = "linux")]
use {
    clap::{Args, value_parser},
    compio::BufResult,
    compio::buf::{IntoInner, IoBuf},
    compio::driver::op::{RecvFromMultiResult, SendFlags, SendTo},
    compio::driver::{ProactorBuilder, SharedFd, ToSharedFd},
    compio::net::UdpSocket,
    compio::runtime::fd::PollFd,
    compio::runtime::{RuntimeBuilder, Submit, submit},
    echo_lab::ledger::{Ledger, Received, Sent},
    echo_lab::{Attempt, Result, cli, net, no_ring, report, stop},
    futures::stream::Stream,
    nix::sys::signalfd::SignalFd,
    socket2::Socket,
    std::collections::VecDeque,
    std::future::poll_fn,
    std::io::{self, ErrorKind},
    std::net::SocketAddr,
    std::num::NonZeroU16,
    std::pin::{Pin, pin},
    std::task::Poll,
};

#[cfg(target_os = "linux")]
#[derive(Args)]
struct Flags {
    #[command(flatten)]
    server: cli::ServerArgs,

    /// Datagrams received or sent at a time. There is memory for a power of two
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u16).range(1..=1024))]
    depth: u16,
}

/// What the kernel puts before each datagram: struct io_uring_recvmsg_out, and room for its sender.
#[cfg(target_os = "linux")]
const HEADER: usize = 16 + size_of::<libc::sockaddr_storage>();

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    let Flags { server: args, depth } = cli::parse_as(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let mut ledger = Ledger::new(&args, local);
    let mut driver = ProactorBuilder::new();
    // Only this thread enters the ring, and only there the kernel works for it.
    driver.single_issuer(true).defer_taskrun(true);
    let buffers = NonZeroU16::MIN.saturating_add(depth - 1);
    driver.buffer_pool_size(buffers).buffer_pool_buffer_len(HEADER + ledger.slot_size());
    let runtime = RuntimeBuilder::new().with_proactor(driver).build().map_err(no_ring)?;
    let signals = stop::descriptor()?;
    report::listening(local)?;
    let kept = socket.try_clone().attempt("share the socket")?;
    runtime.block_on(async {
        let socket = UdpSocket::from_std(socket).attempt("register the socket")?;
        let signals = PollFd::new(signals).attempt("register the signalfd")?;
        serve(&socket, &signals, &mut ledger, depth.into()).await
    })?;
    ledger.finish(&kept)
}

/// A datagram. The memory is the pool's, and goes back there when this is dropped.
#[cfg(target_os = "linux")]
struct Datagram(RecvFromMultiResult);

#[cfg(target_os = "linux")]
impl IoBuf for Datagram {
    fn as_init(&self) -> &[u8] {
        self.0.data()
    }
}

/// A send under way, and whom it is for.
#[cfg(target_os = "linux")]
struct Send {
    operation: Submit<SendTo<Datagram, SharedFd<Socket>>>,
    peer: SocketAddr,
}

/// What the loop waits for.
#[cfg(target_os = "linux")]
enum Event {
    Received(io::Result<RecvFromMultiResult>),
    Sent(BufResult<usize, Datagram>, SocketAddr),
    Stopped,
}

#[cfg(target_os = "linux")]
async fn serve(socket: &UdpSocket, signals: &PollFd<SignalFd>, ledger: &mut Ledger, depth: usize) -> Result<()> {
    let fd = socket.to_shared_fd();
    let mut receives = pin!(socket.recv_from_multi());
    let mut exhausted = false;
    // One send for each sender is under way, in no order; what else came from them waits, in order.
    let mut sends = Vec::<Send>::with_capacity(depth);
    let mut waiting = VecDeque::with_capacity(depth);
    let send = |datagram, peer: SocketAddr| {
        let operation = submit(SendTo::new(fd.clone(), datagram, peer.into(), SendFlags::empty()));
        Send { operation, peer }
    };

    while !ledger.is_done(waiting.is_empty() && sends.is_empty()) {
        let (held, stopping) = (waiting.len() + sends.len(), ledger.timeout());
        exhausted &= held > depth / 2;
        let wants_recv = stopping.is_none() && !exhausted && held < depth && (held as u64) < ledger.to_come();
        let waits = &mut ledger.report.waits;
        let event = poll_fn(|cx| {
            if wants_recv {
                if let Poll::Ready(Some(result)) = receives.as_mut().poll_next(cx) {
                    return Poll::Ready(Event::Received(result));
                }
            }
            for at in 0..sends.len() {
                if let Poll::Ready(result) = Pin::new(&mut sends[at].operation).poll(cx) {
                    let peer = sends.swap_remove(at).peer;
                    return Poll::Ready(Event::Sent(result.into_inner(), peer));
                }
            }
            if stopping.is_none() && signals.poll_read_ready(cx).is_ready() {
                return Poll::Ready(Event::Stopped);
            }
            *waits += 1;
            Poll::Pending
        });
        let event = match stopping {
            None => event.await,
            Some(left) => match compio::time::timeout(left, event).await {
                Ok(event) => event,
                Err(_) => break,
            },
        };
        match event {
            Event::Received(Ok(datagram)) => {
                let peer = datagram.addr().and_then(|peer| peer.as_socket()).unwrap_or(([0; 4], 0).into());
                if let Received::Datagram(..) = ledger.received(Ok((datagram.data().len(), peer)))? {
                    let datagram = Datagram(datagram);
                    if sends.iter().any(|send| send.peer == peer) {
                        waiting.push_back((datagram, peer));
                    } else {
                        sends.push(send(datagram, peer));
                    }
                }
            }
            // The kernel found no buffer. It is asked again when there are some.
            Event::Received(Err(error)) if error.kind() == ErrorKind::ResourceBusy => exhausted = true,
            Event::Received(Err(error)) => drop(ledger.received(Err(error))?),
            Event::Sent(BufResult(result, datagram), peer) => {
                let next = match ledger.sent(result)? {
                    Sent::Over => {
                        let at = waiting.iter().position(|(_, other)| *other == peer);
                        at.and_then(|at| waiting.remove(at))
                    }
                    _ => Some((datagram, peer)),
                };
                sends.extend(next.map(|(datagram, peer)| send(datagram, peer)));
            }
            Event::Stopped => ledger.stop(),
        }
    }
    Ok(())
}
