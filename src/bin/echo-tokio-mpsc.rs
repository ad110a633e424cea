//! UDP echo in two tokio tasks: a reader and a writer, joined by a bounded channel. A second channel takes the buffers back.
//!
//! Run:             cargo run --bin echo-tokio-mpsc
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    as echo-tokio; under load the reader receives until no buffer is left, then the writer sends them
//!                  all. A wake-up of the writer does not poll the reader.
//! Left out:        threads: both tasks share one.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.
//!
//! There are `--queue` buffers, which go round: nothing is allocated for a datagram. A reader that finds none waits until
//! the writer returns one (backpressure). A new buffer for each datagram would need a permit to bound them, since the
//! channel alone bounds those on their way, not the one that each task holds.

use echo_lab::ledger::{DRAIN_DEADLINE, Ledger, Received, Sent};
use echo_lab::{Attempt, Result, cli, net, report, stop};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

struct Datagram {
    bytes: Box<[u8]>,
    len: usize,
    peer: SocketAddr,
}

/// What both tasks use. They run on one thread, and neither keeps the ledger borrowed while it awaits.
struct Shared {
    socket: UdpSocket,
    ledger: RefCell<Ledger>,
    /// Datagrams received and not yet sent.
    held: Cell<usize>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = cli::parse(env!("CARGO_BIN_NAME"));
    let socket = net::bind(&args)?;
    socket.set_nonblocking(true).attempt("make the socket non-blocking")?;
    let local = socket.local_addr().attempt("read the bound address")?;
    let socket = UdpSocket::from_std(socket).attempt("register the socket")?;
    let ledger = Ledger::new(&args, local);

    let (full, to_send) = mpsc::channel(args.queue.into());
    let (free, vacant) = mpsc::channel(args.queue.into());
    for _ in 0..args.queue {
        let datagram = Datagram { bytes: vec![0; ledger.slot_size()].into(), len: 0, peer: local };
        free.try_send(datagram).attempt("fill the channel of buffers")?;
    }
    let shared = Rc::new(Shared { socket, ledger: RefCell::new(ledger), held: Cell::new(0) });
    // A LocalSet runs tasks that stay on its thread, and so may share an Rc.
    LocalSet::new().run_until(serve(&shared, (vacant, full), (to_send, free))).await?;
    let mut ledger = shared.ledger.borrow_mut();
    ledger.report.waits = tokio::runtime::Handle::current().metrics().worker_park_count(0);
    ledger.unsent(shared.held.get());
    ledger.finish(&shared.socket)
}

/// A task receives datagrams from one channel, and sends them into the other.
type Ends = (Receiver<Datagram>, Sender<Datagram>);

/// Two tasks: a wake-up of one does not poll the other. Ends when the writer does.
async fn serve(shared: &Rc<Shared>, of_reader: Ends, of_writer: Ends) -> Result<()> {
    let (stopped, too_late) = (stop::future()?, stop::future()?);
    let reading = read(shared.clone(), of_reader);
    let reader = spawn_local(async move {
        tokio::select! {
            result = reading => result,
            () = stopped => Ok(()),
        }
    });
    let writer = spawn_local(write(shared.clone(), of_writer));
    report::listening(shared.socket.local_addr().attempt("read the bound address")?)?;

    tokio::select! {
        ended = writer => ended.attempt("finish the writer")??,
        () = async { too_late.await; sleep(DRAIN_DEADLINE).await } => {}
    }
    reader.abort();
    match reader.await {
        Err(error) if error.is_cancelled() => Ok(()),
        ended => ended.attempt("finish the reader")?,
    }
}

/// Ends with an error, or with the writer. Dropped, it closes the channel to the writer.
async fn read(shared: Rc<Shared>, (mut vacant, full): Ends) -> Result<()> {
    while let Some(mut datagram) = vacant.recv().await {
        loop {
            let result = shared.socket.recv_from(&mut datagram.bytes).await;
            if let Received::Datagram(len, peer) = shared.ledger.borrow_mut().received(result)? {
                (datagram.len, datagram.peer) = (len, peer);
                shared.held.set(shared.held.get() + 1);
                break;
            }
        }
        if full.send(datagram).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Ends when it has sent all that the reader sent it, and the reader has ended; or with --count.
async fn write(shared: Rc<Shared>, (mut to_send, free): Ends) -> Result<()> {
    while let Some(datagram) = to_send.recv().await {
        loop {
            let result = shared.socket.send_to(&datagram.bytes[..datagram.len], datagram.peer).await;
            if shared.ledger.borrow_mut().sent(result)? == Sent::Over {
                break;
            }
        }
        shared.held.set(shared.held.get() - 1);
        if shared.ledger.borrow().to_come() == 0 {
            break;
        }
        // There is room: the channel has a place for each buffer. It fails when the reader has ended.
        let _ = free.send(datagram).await;
    }
    Ok(())
}
