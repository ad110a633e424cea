//! How long does a message take there and back? Client and server on the reactors of echo-tcp-reactor, in one thread or in
//! two; and how long does an order from another thread take to reach an idle runtime?
//!
//! Run:             cargo run --release --bin pingpong --features pingpong -- --between two
//! Second terminal: nothing: the client is in here.
//! In the trace:    epoll_wait, recvfrom and writev, by one thread, or by two in turn.
//! Left out:        throughput: one message is on its way at a time. scripts/compare --tcp has that.
//! Oldest system:   what mio supports: Linux, the BSDs, macOS, Windows and others.

#[allow(dead_code, unused_imports, reason = "echo-tcp-reactor uses what this program does not")]
#[path = "echo-tcp-reactor/reactor/mod.rs"]
mod reactor;

use clap::{Parser, ValueEnum};
use echo_lab::cli::StreamArgs;
use echo_lab::report::{log_line, print_line};
use echo_lab::stream::Ledger;
use echo_lab::{Attempt, Error, Result};
use hdrhistogram::Histogram;
use mio::net::TcpListener;
use reactor::{Context, Flow, Frames, Id, Names, Order, Reactor, Refused, Remote, Runtime, Settings};
use std::net::SocketAddr;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long does a message take there and back, over reactors?
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where client and server live
    #[arg(long, value_enum, default_value = "one")]
    between: Between,

    /// Messages, one after another
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    count: u32,

    /// Bytes of each
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(..=1 << 20))]
    size: u32,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Between {
    /// Both in one runtime: a single thread
    One,
    /// Each in a runtime of its own
    Two,
    /// No message at all: orders from another thread to a runtime that is idle, one each millisecond
    Orders,
}

/// Nobody is silent for so long, unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends, waits for the answer, and sends again.
struct Ping {
    message: Vec<u8>,
    left: u32,
    sent: Instant,
    /// Nanoseconds of each round trip.
    took: Sender<u64>,
}

impl Ping {
    fn send(&mut self, context: &mut Context<Instant>) -> Flow {
        self.sent = Instant::now();
        match context.send(&self.message) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Close,
        }
    }
}

impl Reactor<Instant> for Ping {
    fn connected(&mut self, context: &mut Context<Instant>) -> Flow {
        if self.left > 0 { self.send(context) } else { Flow::Continue }
    }

    fn message(&mut self, context: &mut Context<Instant>, message: &[u8]) -> Flow {
        let took = self.sent.elapsed();
        self.left -= 1;
        if message != self.message || self.took.send(took.as_nanos() as u64).is_err() || self.left == 0 {
            return Flow::Close;
        }
        self.send(context)
    }

    /// An order: how long it took to get here.
    fn command(&mut self, _: &mut Context<Instant>, given: Instant) -> Flow {
        let _ = self.took.send(given.elapsed().as_nanos() as u64);
        Flow::Continue
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).attempt("listen on 127.0.0.1")?;
    let address = listener.local_addr().attempt("read the bound address")?;
    let names = Names::default();
    let server = start("server", &names, address)?;
    let client = if args.between == Between::Two { start("client", &names, address)? } else { server.clone() };

    let pong = |context: &mut Context<Instant>, message: &[u8]| match context.send(message) {
        Ok(()) => Flow::Continue,
        Err(_) => Flow::Close,
    };
    server.order(Order::Listen(listener, Box::new(move || (None, Box::new(pong)))), |_| ());
    let (took, times) = channel();
    let left = if args.between == Between::Orders { 0 } else { args.count };
    let message = (0..args.size).map(|at| at as u8).collect();
    let ping = Ping { message, left, sent: Instant::now(), took };
    let (done, connected) = channel();
    let tell = move |result: std::result::Result<Id, Refused>| drop(done.send(result));
    client.order(Order::Connect(address, Box::new(ping)), tell);
    let id = connected.recv().attempt("connect")?.attempt(format_args!("connect to {address}"))?;

    // From 1 ns to a minute, with three digits: always valid bounds.
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds");
    for number in 0..args.count {
        if args.between == Between::Orders {
            thread::sleep(Duration::from_millis(1));
            client.order(Order::Command(id, Instant::now()), |_| ());
        }
        let took = times.recv_timeout(PATIENCE).map_err(|error| {
            let why = if error == RecvTimeoutError::Timeout { "nothing came for 10 s" } else { "the connection ended" };
            Error::new(format!("cannot finish: {why} after {number} of {}", args.count))
        })?;
        histogram.saturating_record(took);
    }
    report(&args, &histogram)?;
    for remote in [server, client] {
        remote.order(Order::Stop, |_| ());
    }
    Ok(())
}

/// A runtime in a thread of its own name.
fn start(name: &str, names: &Names<Instant>, bind: SocketAddr) -> Result<Remote<Instant>> {
    let buffer = 65536;
    let ledger = Ledger::new(&StreamArgs { bind, buffer, verbose: false, json: false }, bind);
    let settings = Settings { codec: Arc::new(Frames { limit: 1 << 20 }), buffer: buffer as usize };
    let runtime = Runtime::new(name, names, settings, Arc::new(Mutex::new(ledger)))?;
    let remote = runtime.remote();
    let run = || {
        if let Err(error) = runtime.run() {
            log_line(format_args!("Error: {error}"));
        }
    };
    thread::Builder::new().name(name.into()).spawn(run).attempt(format_args!("start the thread {name}"))?;
    Ok(remote)
}

fn report(args: &Args, histogram: &Histogram<u64>) -> Result<()> {
    let what = match args.between {
        Between::One => "round trips in one runtime",
        Between::Two => "round trips between two runtimes",
        Between::Orders => "orders from another thread to an idle runtime",
    };
    print_line(format_args!("{} {what}, microseconds", histogram.len()))?;
    let at = |quantile| histogram.value_at_quantile(quantile);
    for (name, nanos) in [
        ("min", histogram.min()),
        ("p50", at(0.5)),
        ("p90", at(0.9)),
        ("p99", at(0.99)),
        ("p99.9", at(0.999)),
        ("p99.99", at(0.9999)),
        ("max", histogram.max()),
    ] {
        print_line(format_args!("{name:>7} {:10.1}", nanos as f64 / 1000.0))?;
    }
    Ok(())
}
