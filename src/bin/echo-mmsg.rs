//! UDP echo in batches: recvmmsg(2) takes what has arrived, up to `--batch` datagrams, in one call, and sendmmsg(2) answers
//! them in one. What that saves is the entry into the kernel, not the work there.
//!
//! Run:             cargo run --bin echo-mmsg --features mmsg
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    recvmmsg and sendmmsg, one of each for an echo: nobody waits for a batch to fill (MSG_WAITFORONE).
//!                  Under load one of each serves many.
//! Left out:        receiving while a send is blocked, as in echo-blocking. The batch takes the place of `--queue`.
//! Oldest system:   Linux 3.2, which the standard library needs; recvmmsg and sendmmsg are older.

#[cfg(not(target_os = "linux"))]
fn main() -> echo_lab::Result<()> {
    echo_lab::unsupported(env!("CARGO_BIN_NAME"), "Linux, for recvmmsg(2)")
}

#[cfg(target_os = "linux")]
fn main() -> echo_lab::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use echo_lab::batch::Batch;
    use echo_lab::ledger::{DRAIN_DEADLINE, Ledger, Received, Sent};
    use echo_lab::{Attempt, Result, cli, control, net, report, stop};
    use std::io;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::ptr::null_mut;

    pub fn main() -> Result<()> {
        let cli::BatchArgs { server: args, batch } = cli::parse_as(env!("CARGO_BIN_NAME"));
        let socket = net::bind(&args)?;
        let local = socket.local_addr().attempt("read the bound address")?;
        control::ask_for_destination(&socket, local)?;
        // A send blocks while the socket's send buffer is full. It must not outlast the time to stop.
        socket.set_write_timeout(Some(DRAIN_DEADLINE)).attempt("limit the time of a send")?;
        stop::by_time_limit(&socket)?;
        let mut ledger = Ledger::new(&args, local);
        let mut batch = Batch::new(batch.into(), ledger.slot_size(), local);
        report::listening(local)?;
        serve(&mut ledger, &socket, &mut batch)?;
        ledger.unsent(batch.len());
        ledger.finish(&socket)
    }

    fn serve(ledger: &mut Ledger, socket: &UdpSocket, batch: &mut Batch) -> Result<()> {
        while !ledger.is_done(batch.is_empty()) {
            if batch.is_empty() {
                receive(ledger, socket, batch)?;
            }
            send(ledger, socket, batch)?;
            if stop::requested() {
                ledger.stop();
            }
        }
        Ok(())
    }

    /// Takes what has arrived. If nothing has, it waits for one datagram, not for a whole batch: MSG_WAITFORONE.
    fn receive(ledger: &mut Ledger, socket: &UdpSocket, batch: &mut Batch) -> Result<()> {
        let headers = batch.vacant(ledger.to_come());
        let (at, len) = (headers.as_mut_ptr(), headers.len() as u32);
        // SAFETY: `len` headers, which point to memory of `batch`; nothing else uses it during the call.
        let count = unsafe { libc::recvmmsg(socket.as_raw_fd(), at, len, libc::MSG_WAITFORONE, null_mut()) };
        if count < 0 {
            ledger.received(Err(io::Error::last_os_error()))?;
        }
        for at in 0..count.max(0) as usize {
            if let Received::Datagram(..) = ledger.received(Ok(batch.received(at)))? {
                batch.keep(at);
            }
        }
        Ok(())
    }

    /// Sends the whole batch, in as many calls as the kernel asks for, unless a stop signal comes between two.
    fn send(ledger: &mut Ledger, socket: &UdpSocket, batch: &mut Batch) -> Result<()> {
        while !batch.is_empty() {
            let headers = batch.front();
            // SAFETY: as in `receive`.
            let count = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as u32, 0) };
            // It may take some of them only. Then the next call begins with the one that failed, and tells its error.
            if count >= 0 {
                (0..count).try_for_each(|_| ledger.sent(Ok(0)).map(drop))?;
                batch.pop(count as usize);
            } else if ledger.sent(Err(io::Error::last_os_error()))? == Sent::Over {
                batch.pop(1);
            }
            if stop::requested() {
                break;
            }
        }
        Ok(())
    }
}
