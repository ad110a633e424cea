//! TCP echo on reactors: what a connection does when it is connected, gets a message or a command, or is closed. A runtime
//! in each thread calls them, one after another, so they need no locks. After the reactio crate.
//!
//! Run:             cargo run --bin echo-tcp-reactor -- --frames
//! Second terminal: nc 127.0.0.1 2000, without --frames; with it, pingpong speaks the same frames to itself
//! In the trace:    epoll_wait, recvfrom, sendto (with --frames: writev, header and message in one call), and a recvfrom
//!                  that ends with EAGAIN: only then will an edge tell of more. While nothing happens, nothing: no timer
//!                  ticks.
//! Left out:        moving a reactor to another runtime once it has begun.
//! Oldest system:   what mio supports: Linux, the BSDs, macOS, Windows and others.
//!
//! | file | what it is |
//! | --- | --- |
//! | `reactor/mod.rs` | the contract; `Reactor`, and what it may do when it is called: `Context` |
//! | `reactor/runtime.rs` | the loop of one thread: sockets, then deferred orders, then orders |
//! | `reactor/deferred.rs` | orders by time |
//! | `reactor/remote.rs` | orders from any thread, each with a completion; runtimes by name |
//! | `reactor/mailbox.rs` | how orders get from one thread to another |
//! | `reactor/codec.rs` | where a message ends in a stream |
//! | `reactor/inbox.rs` | what was read, and is no whole message yet |
//! | `reactor/outbox.rs` | what is sent, or waits to be |

#[allow(dead_code, unused_imports, reason = "pingpong uses what this program does not")]
mod reactor;
#[cfg(test)]
mod tests;

use clap::{Args, value_parser};
use echo_lab::stream::Ledger;
use echo_lab::{Attempt, Error, Result, cli, net, report, stop};
use mio::net::TcpListener;
use reactor::{Context, Flow, Frames, Names, Order, Raw, Reactor, Runtime, Settings};
use std::sync::{Arc, Mutex};
use std::thread;

#[derive(Args)]
struct Flags {
    #[command(flatten)]
    server: cli::StreamArgs,

    /// Echo whole frames only: four bytes of length, big-endian, and as many bytes
    #[arg(long)]
    frames: bool,

    /// Longest frame that is echoed; a longer one ends its connection
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = value_parser!(u32).range(..=1 << 30))]
    max_frame: u32,

    /// Runtimes, a thread each, which get the connections in turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u8).range(1..=64))]
    runtimes: u8,
}

fn main() -> Result<()> {
    let flags: Flags = cli::parse_as(env!("CARGO_BIN_NAME"));
    let listener = net::listen(&flags.server)?;
    listener.set_nonblocking(true).attempt("make the listener non-blocking")?;
    let local = listener.local_addr().attempt("read the bound address")?;
    let settings = Settings {
        codec: match flags.frames {
            true => Arc::new(Frames { limit: flags.max_frame as usize }),
            false => Arc::new(Raw),
        },
        buffer: flags.server.buffer as usize,
    };
    let ledger = Arc::new(Mutex::new(Ledger::new(&flags.server, local)));
    let names = Names::default();
    let new = |number| Runtime::new(&format!("runtime-{number}"), &names, settings.clone(), ledger.clone());
    let runtimes = (0..flags.runtimes).map(new).collect::<Result<Vec<Runtime<()>>>>()?;
    let remotes: Vec<_> = runtimes.iter().map(Runtime::remote).collect();
    let waked = remotes.clone();
    // SAFETY: a wake-up is one system call: write(2) to an eventfd on Linux.
    unsafe { stop::on_signal(move || waked.iter().for_each(|remote| remote.wake())) }?;

    // A listener says for each connection where it is to live, and what it does: here, a callback for its messages.
    let mut turn = (0..flags.runtimes).cycle().skip(1);
    let place = move || {
        let runtime = turn.next().and_then(|number| names.find(&format!("runtime-{number}")));
        let echo = |context: &mut Context<()>, message: &[u8]| match context.send(message) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Close,
        };
        (runtime, Box::new(echo) as Box<dyn Reactor<()>>)
    };
    remotes[0].order(Order::Listen(TcpListener::from_std(listener), Box::new(place)), |_| ());

    let run = |runtime: Runtime<()>| {
        let all = remotes.clone();
        thread::Builder::new().name(runtime.name().into()).spawn(move || {
            let waits = runtime.run();
            // One that has failed ends the others.
            all.iter().for_each(|remote| remote.order(Order::Stop, |_| ()));
            waits
        })
    };
    let threads = runtimes.into_iter().map(run).collect::<std::io::Result<Vec<_>>>().attempt("start a thread")?;
    report::listening(local)?;
    let mut waits = 0;
    for thread in threads {
        waits += thread.join().map_err(|_| Error::new("a runtime panicked"))??;
    }
    let mut ledger = reactor::lock(&ledger);
    ledger.waits = waits;
    ledger.finish()
}
