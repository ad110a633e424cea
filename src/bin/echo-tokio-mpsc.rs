//! UDP echo in two tokio tasks: a reader and a writer, joined by a bounded channel.
//!
//! Run:             cargo run --bin echo-tokio-mpsc
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    as echo-tokio; under load the reader receives until no buffer is left, then the writer sends them
//!                  all. A wake-up of the writer does not poll the reader.
//! Left out:        threads: both tasks share one.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.
//!
//! There are `--queue` buffers, and they go round: to the writer when full, back to the reader when empty. So nothing
//! is allocated for a datagram, and a reader without a buffer does not receive (backpressure). The channel alone would
//! hold one datagram more: the one that the writer has taken out and cannot send yet.

use echo_lab::ledger::{DRAIN_DEADLINE, Ledger, Received, Sent};
use echo_lab::{Attempt, Result, cli, net, report, stop};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::{JoinError, JoinSet, LocalSet};

struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    peer: SocketAddr,
}

/// What both tasks use; they run on one thread, and neither keeps the ledger borrowed while it waits.
struct Shared {
    socket: UdpSocket,
    ledger: RefCell<Ledger>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    LocalSet::new().run_until(serve()).await
}

async fn serve() -> Result<()> {
    let (args, idle) = cli::parse_with_idle(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let socket = UdpSocket::from_std(socket).attempt("register the socket")?;
    for socket in net::idle(idle)? {
        let socket = UdpSocket::from_std(socket).attempt("register an idle socket")?;
        tokio::spawn(async move { socket.readable().await });
    }
    let stopped = stop::future()?;
    let ledger = Ledger::new(&args, local);

    let (to_writer, full) = mpsc::channel(args.queue.into());
    let (to_reader, empty) = mpsc::channel(args.queue.into());
    for _ in 0..args.queue {
        let bytes = vec![0; ledger.slot_size()].into_boxed_slice();
        to_reader.try_send(Buffer { bytes, len: 0, peer: local }).attempt("fill the channel of buffers")?;
    }
    let shared = Rc::new(Shared { socket, ledger: RefCell::new(ledger) });
    let mut tasks = JoinSet::new();
    let reader = tasks.spawn_local(read(shared.clone(), empty, to_writer));
    tasks.spawn_local(write(shared.clone(), full, to_reader));
    report::listening(local)?;

    tokio::select! {
        Some(ended) = tasks.join_next() => outcome(ended)?,
        () = stopped => {}
    }
    // The channel ends with the reader; the writer ends when it has sent what was in it.
    reader.abort();
    let drain = async {
        while let Some(ended) = tasks.join_next().await {
            outcome(ended)?;
        }
        Ok(())
    };
    tokio::time::timeout(DRAIN_DEADLINE, drain).await.unwrap_or(Ok(()))?;
    let waits = tokio::runtime::Handle::current().metrics().worker_park_count(0);
    shared.ledger.borrow_mut().report.waits = waits;
    shared.ledger.borrow_mut().finish(&shared.socket)
}

fn outcome(ended: std::result::Result<Result<()>, JoinError>) -> Result<()> {
    match ended {
        Err(error) if error.is_cancelled() => Ok(()),
        ended => ended.attempt("finish a task")?,
    }
}

async fn read(shared: Rc<Shared>, mut empty: Receiver<Buffer>, to_writer: Sender<Buffer>) -> Result<()> {
    while let Some(mut buffer) = empty.recv().await {
        loop {
            let result = shared.socket.try_recv_from(&mut buffer.bytes);
            let received = shared.ledger.borrow_mut().received(result)?;
            match received {
                Received::Datagram(len, peer) => {
                    (buffer.len, buffer.peer) = (len, peer);
                    break;
                }
                Received::Nothing => tokio::task::consume_budget().await,
                Received::WouldBlock => shared.socket.readable().await.attempt("wait until the socket is readable")?,
            }
        }
        if to_writer.send(buffer).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn write(shared: Rc<Shared>, mut full: Receiver<Buffer>, to_reader: Sender<Buffer>) -> Result<()> {
    while let Some(buffer) = full.recv().await {
        loop {
            let result = shared.socket.try_send_to(&buffer.bytes[..buffer.len], buffer.peer);
            let sent = shared.ledger.borrow_mut().sent(result)?;
            match sent {
                Sent::Over => break,
                Sent::Again => {}
                Sent::WouldBlock => shared.socket.writable().await.attempt("wait until the socket is writable")?,
            }
        }
        // The reader may have gone: it was told to stop, and nobody needs the buffer.
        let _ = to_reader.send(buffer).await;
        if shared.ledger.borrow().to_come() == 0 {
            break;
        }
    }
    Ok(())
}
