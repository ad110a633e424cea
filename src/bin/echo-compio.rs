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
//!                  compio allocates for each send, and panics if the ring itself becomes unusable.
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
    use compio::BufResult;
    use compio::buf::{IntoInner, IoBuf};
    use compio::driver::op::{SendFlags, SendTo};
    use compio::driver::{BufferRef, ProactorBuilder, SharedFd, ToSharedFd};
    use compio::net::UdpSocket;
    use compio::runtime::fd::PollFd;
    use compio::runtime::{RuntimeBuilder, Submit, submit};
    use echo_lab::ledger::{Ledger, Received, Sent};
    use echo_lab::{Attempt, Result, cli, net, no_ring, policy, report, stop};
    use futures::stream::Stream;
    use nix::sys::signalfd::SignalFd;
    use socket2::Socket;
    use std::collections::VecDeque;
    use std::future::poll_fn;
    use std::io::ErrorKind;
    use std::net::SocketAddr;
    use std::num::NonZeroU16;
    use std::pin::{Pin, pin};
    use std::task::Poll;

    #[derive(Args)]
    struct Flags {
        #[command(flatten)]
        server: cli::ServerArgs,

        /// Datagrams received or sent at a time. There is memory for a power of two
        #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u16).range(1..=1024))]
        depth: u16,
    }

    /// What the kernel puts before each datagram: struct io_uring_recvmsg_out, and room for its sender.
    const HEADER: usize = 16 + size_of::<libc::sockaddr_storage>();

    pub fn main() -> Result<()> {
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
        runtime.block_on(async {
            let socket = UdpSocket::from_std(socket).attempt("register the socket")?;
            let signals = PollFd::new(signals).attempt("register the signalfd")?;
            serve(&socket, &signals, &mut ledger, depth.into()).await?;
            ledger.finish(&socket)
        })
    }

    /// A datagram, behind its header. The memory is the pool's, and goes back there when this is dropped.
    struct Datagram(BufferRef);

    impl IoBuf for Datagram {
        fn as_init(&self) -> &[u8] {
            &self.0[HEADER..]
        }
    }

    async fn serve(socket: &UdpSocket, signals: &PollFd<SignalFd>, ledger: &mut Ledger, depth: usize) -> Result<()> {
        let fd = socket.to_shared_fd();
        let mut receives = pin!(socket.recv_from_multi());
        let mut exhausted = false;
        // Sends under way, no two to one sender; and what waits to be sent, oldest first.
        let mut sends = Vec::<(Submit<SendTo<Datagram, SharedFd<Socket>>>, SocketAddr)>::with_capacity(depth);
        let mut waiting = VecDeque::<(Datagram, SocketAddr)>::with_capacity(depth);

        while !ledger.is_done(waiting.is_empty() && sends.is_empty()) {
            let stopping = ledger.timeout();
            let turn = poll_fn(|cx| -> Poll<Result<()>> {
                let mut at = 0;
                while let Some((send, peer)) = sends.get_mut(at) {
                    let Poll::Ready(BufResult(result, datagram)) = Pin::new(send).poll(cx) else {
                        at += 1;
                        continue;
                    };
                    if ledger.sent(result)? != Sent::Over {
                        waiting.push_front((datagram.into_inner(), *peer));
                    }
                    sends.swap_remove(at);
                }
                while stopping.is_none() {
                    let held = waiting.len() + sends.len();
                    exhausted &= held > depth / 2;
                    if exhausted || held == depth || held as u64 >= ledger.to_come() {
                        break;
                    }
                    let Poll::Ready(Some(result)) = receives.as_mut().poll_next(cx) else { break };
                    match result {
                        Ok(datagram) => {
                            let peer = datagram.addr().and_then(|peer| peer.as_socket()).unwrap_or(policy::NOBODY);
                            if let Received::Datagram(..) = ledger.received(Ok((datagram.data().len(), peer)))? {
                                waiting.push_back((Datagram(datagram.into_inner()), peer));
                            }
                        }
                        // The kernel found no buffer. It is asked again when there are some.
                        Err(error) if error.kind() == ErrorKind::ResourceBusy => exhausted = true,
                        Err(error) => drop(ledger.received(Err(error))?),
                    }
                }
                let mut at = 0;
                while let Some((_, peer)) = waiting.get(at) {
                    if sends.iter().any(|(_, busy)| busy == peer) {
                        at += 1;
                        continue;
                    }
                    let Some((datagram, peer)) = waiting.remove(at) else { break };
                    let mut send = submit(SendTo::new(fd.clone(), datagram, peer.into(), SendFlags::empty()));
                    match Pin::new(&mut send).poll(cx) {
                        Poll::Pending => sends.push((send, peer)),
                        Poll::Ready(BufResult(result, datagram)) => {
                            if ledger.sent(result)? != Sent::Over {
                                waiting.insert(at, (datagram.into_inner(), peer));
                            }
                        }
                    }
                }
                if stopping.is_none() && signals.poll_read_ready(cx).is_ready() {
                    ledger.stop();
                } else if !ledger.is_done(waiting.is_empty() && sends.is_empty()) {
                    ledger.report.waits += 1;
                    return Poll::Pending;
                }
                Poll::Ready(Ok(()))
            });
            match stopping {
                None => turn.await?,
                Some(left) => match compio::time::timeout(left, turn).await {
                    Ok(result) => result?,
                    Err(_) => break,
                },
            }
        }
        ledger.unsent(waiting.len() + sends.len());
        Ok(())
    }
}
