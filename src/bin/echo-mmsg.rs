//! UDP echo in batches: recvmmsg(2) takes what has arrived, up to `--batch` datagrams, in one call, and sendmmsg(2) answers
//! them in one. What that saves is the entry into the kernel, not the work there.
//!
//! Run:             cargo run --bin echo-mmsg --features mmsg
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    recvmmsg and sendmmsg, one of each for an echo: nobody waits for a batch to fill (MSG_WAITFORONE).
//!                  Under load one of each serves many. With --epoll the calls do not block, and the socket is
//!                  registered while there is nothing to do: what echo-tokio-batch does, without the runtime.
//! Left out:        receiving while a send is blocked, as in echo-blocking. The batch takes the place of `--queue`.
//! Oldest system:   Linux 3.2, which the standard library needs; recvmmsg and sendmmsg are older.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for recvmmsg(2)")
}

#[cfg(target_os = "linux")]
use {
    clap::Args,
    echo_lab::batch::Batch,
    echo_lab::ledger::{DRAIN_DEADLINE, Ledger, Received, Sent},
    echo_lab::{Attempt, Result, cli, control, net, report, stop},
    nix::errno::Errno,
    nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    std::io,
    std::os::fd::AsRawFd,
    std::time::Duration,
};

#[cfg(target_os = "linux")]
#[derive(Args)]
struct Flags {
    #[command(flatten)]
    batch: cli::BatchArgs,

    /// Do not wait in the calls, but with epoll
    #[arg(long)]
    epoll: bool,
}

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    let Flags { batch: cli::BatchArgs { server: args, batch }, epoll } = cli::parse_as(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    let fd = socket.as_raw_fd();
    let local = socket.local_addr().attempt("read the bound address")?;
    control::ask_for_destination(&socket, local)?;
    // A send blocks while the socket's send buffer is full. It must not outlast the time to stop.
    socket.set_write_timeout(Some(DRAIN_DEADLINE)).attempt("limit the time of a send")?;
    let epoll = epoll.then(|| Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC));
    let epoll = epoll.transpose().attempt("create an epoll instance")?;
    let _stopped = match &epoll {
        None => stop::by_time_limit(&socket).map(|()| None)?,
        Some(epoll) => {
            let stopped = stop::by_socket()?;
            // It stays readable. That is reported once.
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, 0);
            epoll.add(&stopped, event).attempt("register the socket for the stop signal")?;
            Some(stopped)
        }
    };
    let (receive, send) =
        if epoll.is_some() { (libc::MSG_DONTWAIT, libc::MSG_DONTWAIT) } else { (libc::MSG_WAITFORONE, 0) };
    let wait = |interest, limit: Option<Duration>| -> Result<u64> {
        let Some(epoll) = &epoll else { return Ok(0) };
        let limit = limit.map_or(EpollTimeout::NONE, |limit| limit.try_into().unwrap_or(EpollTimeout::MAX));
        // A send on a socket that is registered would wake epoll: METHODOLOGY.md.
        epoll.add(&socket, EpollEvent::new(interest, 0)).attempt("register the socket")?;
        match epoll.wait(&mut [EpollEvent::empty()], limit) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).attempt("wait with epoll"),
        }
        epoll.delete(&socket).attempt("end the registration of the socket")?;
        Ok(1)
    };
    let mut ledger = Ledger::new(&args, local);
    let mut batch = Batch::new(batch.into(), ledger.slot_size(), local);
    report::listening(local)?;

    while !ledger.is_done(batch.is_empty()) {
        if batch.is_empty() {
            let headers = batch.vacant(ledger.to_come());
            let (at, len) = (headers.as_mut_ptr(), headers.len() as u32);
            // SAFETY: `len` headers, which point to memory of `batch`; nothing else uses it during the call.
            let count = unsafe { libc::recvmmsg(fd, at, len, receive, std::ptr::null_mut()) };
            if count < 0 && ledger.received(Err(io::Error::last_os_error()))? == Received::WouldBlock {
                ledger.report.waits += wait(EpollFlags::EPOLLIN, None)?;
            }
            for at in 0..count.max(0) as usize {
                if let Received::Datagram(..) = ledger.received(Ok(batch.received(at)))? {
                    batch.keep(at);
                }
            }
        }
        while !batch.is_empty() {
            let headers = batch.front();
            // SAFETY: as above.
            let count = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), headers.len() as u32, send) };
            // It may have taken some of them only; an error is that of the first.
            if count < 0 {
                match ledger.sent(Err(io::Error::last_os_error()))? {
                    Sent::Over => batch.pop(1),
                    Sent::Again => {}
                    Sent::WouldBlock => ledger.report.waits += wait(EpollFlags::EPOLLOUT, Some(DRAIN_DEADLINE))?,
                }
            } else {
                (0..count).try_for_each(|_| ledger.sent(Ok(0)).map(drop))?;
                batch.pop(count as usize);
            }
            if stop::requested() {
                break;
            }
        }
        if stop::requested() {
            ledger.stop();
        }
    }
    ledger.unsent(batch.len());
    ledger.finish(&socket)
}
