//! TCP echo with a thread for each connection, and nothing but blocking calls: the baseline of the TCP servers.
//!
//! Run:             cargo run --bin echo-tcp-threads
//! Second terminal: nc 127.0.0.1 2000
//! In the trace:    recvfrom and sendto, by a thread of each connection's own; accept4 by the first.
//! Left out:        a limit to the threads but the system's own: at it, connections are closed as they come.
//! Oldest system:   any that the standard library supports. Ctrl-C ends the reads of idle connections on POSIX systems;
//!                  elsewhere they take a second. On Linux it ends the accept by a shutdown of the listener, elsewhere by a
//!                  connection, which needs a free port.

use echo_lab::stream::{Accepted, Ledger, Moved, PAUSE, Streams, Transit};
use echo_lab::{Attempt, Result, cli, ledger::DRAIN_DEADLINE, net, report, stop};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Bytes: the buffer is not on the stack.
const STACK: usize = 64 << 10;

/// What the threads share. The lock is held between calls, never during one.
struct Shared {
    streams: Mutex<Streams>,
    open: Mutex<HashMap<u64, Arc<TcpStream>>>,
    closed: Condvar,
}

fn main() -> Result<()> {
    let args: cli::StreamArgs = cli::parse_as(env!("CARGO_BIN_NAME"));
    let listener = net::listen(&args)?;
    let local = listener.local_addr().attempt("read the bound address")?;
    stop::in_accept(&listener)?;
    let shared =
        Arc::new(Shared { streams: Streams::new(&args, local).into(), open: Mutex::default(), closed: Condvar::new() });
    report::listening(local)?;

    for id in 0.. {
        let result = listener.accept();
        if stop::requested() {
            break;
        }
        let accepted = shared.ledger(|ledger| ledger.accepted(result))?;
        let Accepted::Connection(stream) = accepted else {
            if !shared.ledger(|ledger| ledger.accepts()) {
                thread::sleep(PAUSE);
            }
            continue;
        };
        let stream = Arc::new(stream);
        lock(&shared.open).insert(id, stream.clone());
        let of_thread = shared.clone();
        let spawned = thread::Builder::new().stack_size(STACK).spawn(move || {
            serve(&stream, &of_thread);
            of_thread.close(id);
        });
        if let Err(error) = spawned {
            shared.ledger(|ledger| ledger.exhausted(&error));
            shared.close(id);
            thread::sleep(PAUSE);
        }
    }
    for stream in lock(&shared.open).values() {
        // What has arrived can still be read, then the stream ends. Fails if the peer has gone already.
        let _ = stream.shutdown(Shutdown::Read);
    }
    let some_open = |streams: &mut Streams| streams.ledger.open() > 0;
    let waited = shared.closed.wait_timeout_while(lock(&shared.streams), DRAIN_DEADLINE, some_open);
    waited.unwrap_or_else(PoisonError::into_inner).0.finish()
}

/// Echoes until the peer sends no more.
fn serve(mut stream: &TcpStream, shared: &Shared) {
    let mut transit = Transit::default();
    loop {
        let moved = if let Some(bytes) = transit.front() {
            let result = stream.write(bytes);
            lock(&shared.streams).wrote(&mut transit, result)
        } else {
            let vacant = lock(&shared.streams).vacant(&mut transit);
            let result = stream.read(vacant);
            lock(&shared.streams).read(&mut transit, result)
        };
        if moved == Moved::Over {
            return;
        }
    }
}

impl Shared {
    fn ledger<T>(&self, with: impl FnOnce(&mut Ledger) -> T) -> T {
        with(&mut lock(&self.streams).ledger)
    }

    /// Forgets a connection: this closes it, since its thread has ended.
    fn close(&self, id: u64) {
        lock(&self.open).remove(&id);
        self.ledger(Ledger::closed);
        self.closed.notify_all();
    }
}

/// Nothing behind these locks is ever left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
