//! TCP echo with a tokio task for each connection, as such a program is usually written: read, await, write, await. Written
//! like the threads of echo-tcp-threads, run like the loop of echo-tcp-epoll.
//!
//! Run:             cargo run --bin echo-tcp-tokio
//! Second terminal: cargo run --bin say -- --tcp (or: nc 127.0.0.1 2000)
//! In the trace:    EPOLLET, then epoll_wait, recvfrom, sendto. tokio takes a read that does not fill the buffer for the
//!                  last, so it spares the one that would end with EAGAIN. A read also ends at a mark of urgent data,
//!                  tcp(7): then what stands behind the mark stays unread until more arrives.
//! Left out:        sparing memory: each connection holds its buffer for as long as it is open, which echo-tcp-tokio-pooled
//!                  avoids. And more than one thread.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::ledger::DRAIN_DEADLINE;
use echo_lab::stream::{Accepted, Ledger, Moved, PAUSE};
use echo_lab::{Attempt, Result, cli, net, report, stop};
use socket2::SockRef;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// What the tasks share: the ledger, and how many bytes they have read and not yet written.
type Shared = Arc<Mutex<(Ledger, usize)>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: cli::StreamArgs = cli::parse_as(env!("CARGO_BIN_NAME"));
    let listener = net::listen(&args)?;
    listener.set_nonblocking(true).attempt("make the listener non-blocking")?;
    let local = listener.local_addr().attempt("read the bound address")?;
    let listener = TcpListener::from_std(listener).attempt("register the listener")?;
    let stopped = stop::future()?;
    let (stop, stopping) = watch::channel(());
    let shared = Shared::new(Mutex::new((Ledger::new(&args, local), 0)));
    report::listening(local)?;

    tokio::select! {
        result = accept(listener, args.buffer as usize, &shared, stopping) => result?,
        () = stopped => {}
    }
    // The accept is dropped, with the listener. Each task has a receiver: `closed` ends when all tasks have ended.
    let _ = stop.send(());
    let _ = timeout(DRAIN_DEADLINE, stop.closed()).await;
    let (ledger, held) = &mut *lock(&shared);
    ledger.waits = tokio::runtime::Handle::current().metrics().worker_park_count(0);
    ledger.unsent(*held);
    ledger.finish()
}

async fn accept(listener: TcpListener, size: usize, shared: &Shared, stopping: watch::Receiver<()>) -> Result<()> {
    loop {
        let result = listener.accept().await;
        let accepted = lock(shared).0.accepted(result)?;
        match accepted {
            Accepted::Connection(stream) => drop(tokio::spawn(serve(stream, size, shared.clone(), stopping.clone()))),
            Accepted::Nothing => {}
            // Out of descriptors: the next accept would fail at once, and the one after it.
            Accepted::Wait => sleep(PAUSE).await,
        }
    }
}

/// The task of one connection: echoes until the peer sends no more.
async fn serve(mut stream: TcpStream, size: usize, shared: Shared, mut stopping: watch::Receiver<()>) {
    let mut buffer = vec![0; size];
    loop {
        let result = tokio::select! {
            result = stream.read(&mut buffer) => result,
            // What has arrived can still be read, then the stream ends. Fails if the peer has gone already.
            Ok(()) = stopping.changed() => {
                let _ = SockRef::from(&stream).shutdown(Shutdown::Read);
                continue;
            }
        };
        let moved = lock(&shared).0.read(result);
        let Moved::Bytes(count) = moved else { if moved == Moved::Over { break } else { continue } };
        lock(&shared).1 += count;
        let result = stream.write_all(&buffer[..count]).await;
        let (ledger, held) = &mut *lock(&shared);
        *held -= count;
        if ledger.wrote(result.map(|()| count)) != Moved::Bytes(count) {
            ledger.unsent(count);
            break;
        }
    }
    lock(&shared).0.closed();
}

/// The tasks run on one thread, and none keeps the lock while it awaits: it is always free.
fn lock(shared: &Shared) -> MutexGuard<'_, (Ledger, usize)> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
