//! UDP echo on several cores: a thread for each, with a socket of its own on the same address (SO_REUSEPORT). The kernel
//! picks the socket by a hash of both addresses and ports: all datagrams of one sender go to one thread, so their order is
//! kept, and many senders spread over all threads, but not evenly.
//!
//! Run:             cargo run --bin echo-reuseport --features reuseport -- --threads 2
//! Second terminal: nc -u 127.0.0.1 2000; another one may land on the other thread: the summary counts for each
//! In the trace:    recvfrom and sendto of echo-blocking, of one sender always by the same thread.
//! Left out:        spreading by anything else than the hash, which takes a program for the kernel
//!                  (SO_ATTACH_REUSEPORT_EBPF). `--queue` has no use here.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   Linux 3.9.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for its SO_REUSEPORT")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use clap::Args;
    use echo_lab::report::Report;
    use echo_lab::{Attempt, Echo, Error, Result, cli, ledger::DRAIN_DEADLINE, net, report, stop};
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;
    use socket2::SockRef;
    use std::io;
    use std::mem::MaybeUninit;
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::{AsRawFd, RawFd};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread::{self, ScopedJoinHandle};

    #[derive(Args)]
    struct Flags {
        #[command(flatten)]
        server: cli::ServerArgs,

        /// Threads, each with a socket, each pinned to a core in turn (default: one for each core that may be used).
        /// `--count` is that of all; what another thread has received by then is still echoed
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
        threads: Option<u16>,
    }

    pub fn main() -> Result<()> {
        let Flags { server: args, threads } = cli::parse_as(env!("CARGO_BIN_NAME"));
        let allowed = sched_getaffinity(Pid::from_raw(0)).attempt("read which cores may be used")?;
        let cores: Vec<_> = (0..CpuSet::count()).filter(|core| allowed.is_set(*core) == Ok(true)).collect();
        let count = threads.map_or(cores.len(), usize::from);
        let sockets = net::bind_group(&args, count)?;
        let local = sockets[0].local_addr().attempt("read the bound address")?;
        let all = Arc::new(All {
            descriptors: sockets.iter().map(AsRawFd::as_raw_fd).collect(),
            to_come: AtomicU64::new(args.count.unwrap_or(u64::MAX)),
        });
        let waked = all.clone();
        // SAFETY: shutdown(2) is safe in a signal handler.
        unsafe { stop::on_signal(move || waked.end()) }?;
        report::listening(local)?;

        let reports = thread::scope(|scope| {
            let serve = |(number, socket)| {
                let (core, args, all) = (cores[number % cores.len()], &args, &all);
                scope.spawn(move || serve(socket, args, core, all).inspect_err(|_| all.end()))
            };
            let threads: Vec<_> = sockets.iter().enumerate().map(serve).collect();
            let join = |thread: ScopedJoinHandle<_>| thread.join().map_err(|_| Error::new("a thread panicked"))?;
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        });
        Report::of_threads(&reports?).print(args.json)
    }

    /// What the threads share: how to end all of them, and how many echoes are to come before that.
    struct All {
        descriptors: Vec<RawFd>,
        to_come: AtomicU64,
    }

    impl All {
        /// Ends all receives, those to come as well.
        fn end(&self) {
            self.to_come.store(0, Ordering::Relaxed);
            for fd in &self.descriptors {
                // It fails, since the sockets are not connected, and works: Linux wakes whoever waits (inet_shutdown).
                // SAFETY: no memory is involved.
                unsafe { libc::shutdown(*fd, libc::SHUT_RD) };
            }
        }

        fn has_ended(&self) -> bool {
            self.to_come.load(Ordering::Relaxed) == 0
        }

        /// One echo more. The last one ends all threads.
        fn count(&self) {
            let count = |left: u64| left.checked_sub(1);
            if self.to_come.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) == Ok(1) {
                self.end();
            }
        }
    }

    /// The loop of one thread.
    fn serve(socket: &UdpSocket, args: &cli::ServerArgs, core: usize, all: &All) -> Result<Report> {
        let mut cores = CpuSet::new();
        cores.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cores)).attempt("pin a thread to a core")?;
        let local = socket.local_addr().attempt("read the bound address")?;
        // A send blocks while the socket's send buffer is full. It must not outlast the time to stop.
        socket.set_write_timeout(Some(DRAIN_DEADLINE)).attempt("limit the time of a send")?;
        let mut echo = Echo::new(args, local);
        while !echo.is_done() {
            if let Some(slot) = echo.vacant() {
                let result = receive(socket, slot);
                echo.received(result)?;
            }
            while let Some((datagram, peer)) = echo.front() {
                let result = socket.send_to(datagram, peer);
                let sent = result.is_ok();
                echo.sent(result)?;
                if sent {
                    all.count();
                }
                if all.has_ended() {
                    break;
                }
            }
            if all.has_ended() {
                echo.stop();
            }
        }
        Ok(echo.into_report(socket))
    }

    /// A receive that [`All::end`] ends brings nothing, from nobody, which is no more than an interruption. The one of std cannot
    /// be used: it takes what lies on the stack for the address that the kernel has not given, and panics or fails.
    fn receive(socket: &UdpSocket, slot: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        // SAFETY: the bytes are initialised, and stay so: the kernel only puts others in their place.
        let slot = unsafe { &mut *(slot as *mut [u8] as *mut [MaybeUninit<u8>]) };
        let (len, peer) = SockRef::from(socket).recv_from(slot)?;
        let peer = peer.as_socket().ok_or(io::ErrorKind::Interrupted)?;
        Ok((len, peer))
    }
}
