//! UDP echo with tokio's readiness and the kernel's batches: tokio has no recvmmsg(2), but `AsyncFd` waits for any
//! descriptor.
//!
//! Run:             cargo run --bin echo-tokio-batch --features tokio,mmsg
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    epoll_wait, recvmmsg, sendmmsg, the recvmmsg that ends with EAGAIN; before each wait the socket is
//!                  registered, and after it no more: else each datagram sent would wake epoll, to find no interest in it.
//!                  Under load one recvmmsg and one sendmmsg serve many datagrams, and there is hardly a wait.
//! Left out:        receiving while a send is blocked (echo-tokio). The batch takes the place of `--queue`.
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
    use std::os::fd::{AsFd, AsRawFd};
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    #[tokio::main(flavor = "current_thread")]
    pub async fn main() -> Result<()> {
        let cli::BatchArgs { server: args, batch } = cli::parse_as(env!("CARGO_BIN_NAME"));
        let socket = net::bind(&args)?;
        socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
        let local = socket.local_addr().attempt("read the bound address")?;
        control::ask_for_destination(&socket, local)?;
        let stopped = stop::future()?;
        let mut ledger = Ledger::new(&args, local);
        let mut batch = Batch::new(batch.into(), ledger.slot_size(), local);
        report::listening(local)?;

        tokio::select! {
            result = serve(&socket, &mut ledger, &mut batch) => result?,
            () = stopped => {
                // What was received when the signal came is still sent.
                let _ = tokio::time::timeout(DRAIN_DEADLINE, send(&socket, &mut ledger, &mut batch)).await;
            }
        }
        ledger.unsent(batch.len());
        ledger.report.waits = tokio::runtime::Handle::current().metrics().worker_park_count(0);
        ledger.finish(&socket)
    }

    async fn serve(socket: &UdpSocket, ledger: &mut Ledger, batch: &mut Batch) -> Result<()> {
        while ledger.to_come() > 0 {
            receive(socket, ledger, batch).await?;
            send(socket, ledger, batch).await?;
            // A flood gives no other reason to wait: let the stop signal have its turn.
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    async fn receive(socket: &UdpSocket, ledger: &mut Ledger, batch: &mut Batch) -> Result<()> {
        let headers = batch.vacant(ledger.to_come());
        let (at, len) = (headers.as_mut_ptr(), headers.len() as u32);
        // SAFETY: `len` headers, which point to memory of `batch`; nothing else uses it during the call.
        let result = unsafe { libc::recvmmsg(socket.as_raw_fd(), at, len, 0, std::ptr::null_mut()) };
        match count(result) {
            Ok(count) => {
                for at in 0..count {
                    if let Received::Datagram(..) = ledger.received(Ok(batch.received(at)))? {
                        batch.keep(at);
                    }
                }
            }
            Err(error) => {
                if ledger.received(Err(error))? == Received::WouldBlock {
                    ready(socket, Interest::READABLE).await.attempt("wait until the socket is readable")?;
                }
            }
        }
        Ok(())
    }

    async fn send(socket: &UdpSocket, ledger: &mut Ledger, batch: &mut Batch) -> Result<()> {
        while !batch.is_empty() {
            let headers = batch.front();
            // SAFETY: as in `receive`.
            let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as u32, 0) };
            match count(result) {
                Ok(count) => {
                    (0..count).try_for_each(|_| ledger.sent(Ok(0)).map(drop))?;
                    batch.pop(count);
                }
                // It may have taken some of them only; an error is that of the first.
                Err(error) => match ledger.sent(Err(error))? {
                    Sent::Over => batch.pop(1),
                    Sent::Again => {}
                    Sent::WouldBlock => {
                        ready(socket, Interest::WRITABLE).await.attempt("wait until the socket is writable")?;
                    }
                },
            }
        }
        Ok(())
    }

    /// Registering tells of what is ready already, so nothing is missed before it.
    async fn ready(socket: &UdpSocket, interest: Interest) -> io::Result<()> {
        // SAFETY: the socket is open for as long as it is borrowed.
        let registered = unsafe { AsyncFd::register_with_interest(socket.as_fd(), interest) };
        registered.map_err(io::Error::from)?.ready(interest).await.map(drop)
    }

    fn count(result: i32) -> io::Result<usize> {
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}
