//! TCP echo with a tokio task for each connection, which borrows a buffer only while there is something to read. Tuned form
//! of echo-tcp-tokio, whose tasks hold a buffer each: an idle connection costs the task alone.
//!
//! Run:             cargo run --bin echo-tcp-tokio-pooled
//! Second terminal: cargo run --bin say -- --tcp (or: nc 127.0.0.1 2000)
//! In the trace:    EPOLLET, then epoll_wait, recvfrom, sendto. A read that does not fill the buffer has taken all there
//!                  is, so tokio spares the one that would end with EAGAIN.
//! Left out:        `AsyncReadExt::read`, which would hold the buffer while it waits. And more than one thread.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.

use echo_lab::stream::{Accepted, Moved, Streams, Transit};
use echo_lab::{Attempt, Result, cli, net, report, stop};
use socket2::SockRef;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Of all tasks. They run on one thread, and none keeps the lock while it waits: it is always free. (A `LocalSet` would
/// spare it, and poll the future below for each echo.)
type Shared = Arc<Mutex<Streams>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: cli::StreamArgs = cli::parse_as(env!("CARGO_BIN_NAME"));
    let listener = net::listen(&args)?;
    listener.set_nonblocking(true).attempt("make the listener non-blocking")?;
    let local = listener.local_addr().attempt("read the bound address")?;
    let listener = TcpListener::from_std(listener).attempt("register the listener")?;
    let mut stopped = pin!(stop::future()?);
    let (stop, stopping) = watch::channel(());
    let shared: Shared = Arc::new(Mutex::new(Streams::new(&args, local)));
    report::listening(local)?;

    while !lock(&shared).ledger.is_stopping() {
        let accepts = lock(&shared).ledger.accepts();
        let pause = lock(&shared).ledger.timeout().unwrap_or(Duration::MAX);
        tokio::select! {
            () = &mut stopped => lock(&shared).ledger.stop(),
            () = tokio::time::sleep(pause), if !accepts => {}
            result = listener.accept(), if accepts => {
                if let Accepted::Connection(stream) = lock(&shared).ledger.accepted(result)? {
                    tokio::spawn(serve(stream, shared.clone(), stopping.clone()));
                }
            }
        }
    }
    drop((listener, stopping, stop.send(())));
    // Ends when no task is left to listen.
    let deadline = lock(&shared).ledger.timeout().unwrap_or_default();
    let _ = tokio::time::timeout(deadline, stop.closed()).await;
    let mut streams = lock(&shared);
    streams.ledger.waits = tokio::runtime::Handle::current().metrics().worker_park_count(0);
    streams.finish()
}

/// The task of one connection: echoes until the peer sends no more.
async fn serve(mut stream: TcpStream, shared: Shared, mut stopping: watch::Receiver<()>) {
    let mut transit = Transit::default();
    let (mut changed, mut stopped) = (pin!(stopping.changed()), false);
    loop {
        let moved = if let Some(bytes) = transit.front() {
            let result = stream.write(bytes).await;
            lock(&shared).wrote(&mut transit, result)
        } else {
            tokio::select! {
                biased;
                moved = read(&mut stream, &shared, &mut transit) => moved,
                _ = &mut changed, if !stopped => {
                    stopped = true;
                    // What has arrived can still be read, then the stream ends. Fails if the peer has gone already.
                    let _ = SockRef::from(&stream).shutdown(Shutdown::Read);
                    Moved::Again
                }
            }
        };
        if moved == Moved::Over {
            break;
        }
    }
    lock(&shared).ledger.closed();
}

/// Reads, as soon as there is something. It holds a buffer only during the call.
async fn read(stream: &mut TcpStream, shared: &Shared, transit: &mut Transit) -> Moved {
    poll_fn(|context| {
        let mut streams = lock(shared);
        let mut buffer = ReadBuf::new(streams.vacant(transit));
        match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
            Poll::Ready(result) => {
                let count = buffer.filled().len();
                Poll::Ready(streams.read(transit, result.map(|()| count)))
            }
            Poll::Pending => {
                streams.read(transit, Err(ErrorKind::WouldBlock.into()));
                Poll::Pending
            }
        }
    })
    .await
}

/// Nothing behind it is ever left half changed.
fn lock(shared: &Shared) -> MutexGuard<'_, Streams> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
