//! UDP echo in two tokio tasks: a reader and a writer, joined by a bounded channel.
//!
//! Run:             cargo run --bin echo-tokio-mpsc
//! Second terminal: nc -u 127.0.0.1 2000
//! In the trace:    as echo-tokio; under load the reader receives until no buffer is left, then the writer sends them
//!                  all. A wake-up of the writer does not poll the reader.
//! Left out:        threads: both tasks share one.
//!                  On a wildcard address the route, not the client, picks the address that answers: probe-wildcard-source.
//! Oldest system:   what tokio supports: Linux, the BSDs, macOS, Windows and others.
//!
//! There are `--queue` buffers. A reader that finds none waits until the writer returns one (backpressure), and nothing is
//! allocated for a datagram. What bounds the memory is their number: the channel alone would let the writer hold as many
//! again. The buffer used last is taken first, since it is still in the cache.

use echo_lab::ledger::{DRAIN_DEADLINE, Ledger, Received, Sent};
use echo_lab::{Attempt, Result, cli, net, report, stop};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::{JoinError, JoinSet, LocalSet};

/// A pointer, so that little is moved into the channel and out of it.
struct Buffer(Box<Datagram>);

struct Datagram {
    bytes: Box<[u8]>,
    len: usize,
    peer: SocketAddr,
}

/// What both tasks use; they run on one thread, and neither keeps anything borrowed while it waits.
struct Shared {
    socket: UdpSocket,
    ledger: RefCell<Ledger>,
    vacant: RefCell<Vec<Buffer>>,
    returned: Notify,
    /// Datagrams received and not yet sent: in the channel, or with the writer.
    waiting: Cell<usize>,
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
    let bytes = || vec![0; ledger.slot_size()].into_boxed_slice();
    let buffer = || Buffer(Box::new(Datagram { bytes: bytes(), len: 0, peer: local }));
    let vacant = RefCell::new(std::iter::repeat_with(buffer).take(args.queue.into()).collect());
    let (ledger, returned, waiting) = (RefCell::new(ledger), Notify::new(), Cell::new(0));
    let shared = Rc::new(Shared { socket, ledger, vacant, returned, waiting });
    let mut tasks = JoinSet::new();
    let reader = tasks.spawn_local(read(shared.clone(), to_writer));
    tasks.spawn_local(write(shared.clone(), full));
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
    let mut ledger = shared.ledger.borrow_mut();
    ledger.report.waits = waits;
    ledger.unsent(shared.waiting.get());
    ledger.finish(&shared.socket)
}

fn outcome(ended: std::result::Result<Result<()>, JoinError>) -> Result<()> {
    match ended {
        Err(error) if error.is_cancelled() => Ok(()),
        ended => ended.attempt("finish a task")?,
    }
}

async fn read(shared: Rc<Shared>, to_writer: Sender<Buffer>) -> Result<()> {
    loop {
        let vacant = shared.vacant.borrow_mut().pop();
        let Some(Buffer(mut datagram)) = vacant else {
            shared.returned.notified().await;
            continue;
        };
        loop {
            let result = shared.socket.try_recv_from(&mut datagram.bytes);
            let received = shared.ledger.borrow_mut().received(result)?;
            match received {
                Received::Datagram(len, peer) => {
                    (datagram.len, datagram.peer) = (len, peer);
                    shared.waiting.set(shared.waiting.get() + 1);
                    break;
                }
                Received::Nothing => tokio::task::consume_budget().await,
                Received::WouldBlock => shared.socket.readable().await.attempt("wait until the socket is readable")?,
            }
        }
        if to_writer.send(Buffer(datagram)).await.is_err() {
            return Ok(());
        }
    }
}

async fn write(shared: Rc<Shared>, mut full: Receiver<Buffer>) -> Result<()> {
    let limit = full.max_capacity();
    let mut taken = Vec::with_capacity(limit);
    while full.recv_many(&mut taken, limit).await > 0 {
        for Buffer(datagram) in taken.drain(..) {
            loop {
                let result = shared.socket.try_send_to(&datagram.bytes[..datagram.len], datagram.peer);
                let sent = shared.ledger.borrow_mut().sent(result)?;
                match sent {
                    Sent::Over => break,
                    Sent::Again => {}
                    Sent::WouldBlock => shared.socket.writable().await.attempt("wait until the socket is writable")?,
                }
            }
            shared.waiting.set(shared.waiting.get() - 1);
            shared.vacant.borrow_mut().push(Buffer(datagram));
            shared.returned.notify_one();
            if shared.ledger.borrow().to_come() == 0 {
                return Ok(());
            }
        }
    }
    Ok(())
}
