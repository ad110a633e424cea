//! TCP echo with one thread that polls and others that work: workers register their connections straight with the kernel,
//! and the poller, which nobody wakes for that, forwards what happens to whoever registered it. After the amy crate.
//!
//! Run:             cargo run --bin echo-tcp-registrar -- --lines
//! Second terminal: nc 127.0.0.1 2000
//! In the trace:    EPOLL_CTL_ADD by a worker while the poller is inside epoll_wait, and no write to an eventfd; then for
//!                  each echo the poller's epoll_wait and futex, and the worker's recvfrom, sendto, the recvfrom that ends
//!                  with EAGAIN, and futex: the price of the hop from one thread to the other.
//! Left out:        moving a connection to another worker. One that reads slowly stays where it is.
//! Oldest system:   what mio supports: Linux, the BSDs, macOS, Windows and others.
//!
//! | file | what it is |
//! | --- | --- |
//! | `poller.rs` | the poller's loop; `Registrar`, which any thread may use; ids that are never used again |
//! | `mailbox.rs` | where a thread waits for notifications |
//! | `timers.rs` | timeouts and intervals: notifications as well |
//! | `channel.rs` | a channel whose messages are announced by a notification |
//! | `worker.rs` | the connections of one worker: bytes, lines or frames |

mod channel;
mod mailbox;
mod poller;
mod timers;
mod worker;

use clap::{Args, value_parser};
use echo_lab::stream::{Accepted, PAUSE, Split, Streams};
use echo_lab::{Attempt, Error, Result, cli, net, report, stop};
use mailbox::{Batch, Mailbox, Ready};
use mio::Interest;
use mio::net::TcpListener;
use poller::Poller;
use std::sync::{self, Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use worker::{Rules, Worker};

#[derive(Args)]
struct Flags {
    #[command(flatten)]
    server: cli::StreamArgs,

    /// Echo whole lines only
    #[arg(long)]
    lines: bool,

    /// Echo whole frames only: four bytes of length, big-endian, and as many bytes
    #[arg(long, conflicts_with = "lines")]
    frames: bool,

    /// Longest frame, or line, that is echoed; a longer one ends its connection
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = value_parser!(u32).range(..=1 << 30))]
    max_frame: u32,

    /// Worker threads, which get the connections in turn
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = value_parser!(u8).range(1..=64))]
    workers: u8,

    /// Close a connection on which nothing came for so many milliseconds
    #[arg(long, value_name = "MS")]
    idle_timeout: Option<u64>,

    /// Every so many milliseconds a line on standard error: how many connections are open
    #[arg(long, value_name = "MS")]
    interval: Option<u64>,
}

fn main() -> Result<()> {
    let flags: Flags = cli::parse_as(env!("CARGO_BIN_NAME"));
    let args = &flags.server;
    let listener = net::listen(args)?;
    listener.set_nonblocking(true).attempt("make the listener non-blocking")?;
    let local = listener.local_addr().attempt("read the bound address")?;
    let mut listener = TcpListener::from_std(listener);
    let split = match (flags.lines, flags.frames) {
        (true, _) => Split::Lines,
        (_, true) => Split::Frames,
        _ => Split::Bytes,
    };
    let rules = Rules {
        split,
        limit: flags.max_frame as usize,
        buffer: args.buffer as usize,
        idle: flags.idle_timeout.map(Duration::from_millis),
    };
    let streams = Arc::new(Mutex::new(Streams::new(args, local)));

    let mailbox = Arc::new(Mailbox::default());
    let (poller, registrar) = Poller::new()?;
    let signal = registrar.new_id();
    let waker = registrar.waker();
    // SAFETY: a wake-up is one system call: write(2) to an eventfd on Linux.
    unsafe { stop::on_signal(move || drop(waker.wake())) }?;
    let (main, polled) = (mailbox.clone(), registrar.new_id());
    let polling = named("poller", move || {
        let result = poller.run(|| main.notify(signal, Ready::MESSAGE));
        main.notify(polled, Ready::MESSAGE);
        result
    })?;

    let (mut incoming, mut workers) = (Vec::new(), Vec::new());
    for number in 0..flags.workers {
        let own = Arc::new(Mailbox::default());
        let (sender, receiver) = channel::new(&registrar, &own);
        incoming.push(sender);
        let mut worker = Worker::new(registrar.try_clone()?, own, receiver, rules.clone(), streams.clone());
        workers.push(named(&format!("worker-{number}"), move || worker.run())?);
    }
    let listening = registrar.register(&mut listener, Interest::READABLE, &mailbox).attempt("register the listener")?;
    let interval = flags.interval.map(|millis| registrar.interval(Duration::from_millis(millis), &mailbox));
    report::listening(local)?;

    let mut batch = Batch::default();
    let (mut more, mut next, mut pause, mut over) = (false, 0, None, false);
    while !stop::requested() && !over {
        mailbox.take(&mut batch, None);
        for (id, _) in batch.drain() {
            // The poller ends before the others only if its wait fails.
            over |= id == polled;
            more |= id == listening;
            pause = pause.filter(|pause| *pause != id);
            if Some(id) == interval {
                let open = lock(&streams).ledger.open();
                report::log_line(format_args!("{open} connections open"));
            }
        }
        while more && lock(&streams).ledger.accepts() {
            let result = listener.accept();
            let accepted = lock(&streams).ledger.accepted(result)?;
            match accepted {
                Accepted::Connection(stream) => {
                    next = (next + 1) % incoming.len();
                    incoming[next].send(stream).map_err(|_| Error::new("a worker has ended"))?;
                }
                Accepted::Nothing => {}
                // There is none, or no descriptor for it.
                Accepted::Wait => more = !lock(&streams).ledger.accepts(),
            }
        }
        // Here, or in a worker, the system was at a limit: this thread is to be woken after the pause.
        if more && pause.is_none() {
            pause = Some(registrar.timeout(PAUSE, &mailbox));
        }
    }

    // The workers see the channel's end, and finish with what has arrived, within the time there is.
    lock(&streams).ledger.stop();
    drop(incoming);
    for thread in workers {
        thread.join().map_err(|_| Error::new("a worker panicked"))??;
    }
    registrar.end();
    let waits = polling.join().map_err(|_| Error::new("the poller panicked"))??;
    let mut streams = lock(&streams);
    streams.ledger.waits = waits;
    streams.finish()
}

fn named<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> Result<thread::JoinHandle<T>> {
    thread::Builder::new().name(name.into()).spawn(run).attempt(format_args!("start the thread {name}"))
}

/// Nothing behind the locks of this program is ever left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
