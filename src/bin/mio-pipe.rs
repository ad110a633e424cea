//! What does a wake-up cost while nobody is polling? A system call, each: a Waker does not know whether it is needed.
//! What to do about it: a flag in front of it, so that only the first wake-up since the last poll pays. (mio issue 785 was
//! about the writes to a pipe that mio 0.6 made for its own queue of events. Queue and pipe went with mio 0.7.)
//!
//! Run:             cargo run --bin mio-pipe -- --wakes 3
//! Second terminal: nothing
//! In the trace:    a write to the eventfd for each wake-up, before any epoll_wait, which then reports one event.
//!                  With --flag, one write.
//! Left out:        the thread that wakes: it makes the same calls.
//! Oldest system:   what mio supports: Linux, the BSDs, macOS, Windows and others.

use clap::Parser;
use echo_lab::{Attempt, Result, report::print_line};
use mio::{Events, Poll, Token, Waker};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What does a wake-up cost while nobody is polling?
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Wake-ups before the poll
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    wakes: u32,
    /// Wake only if nobody has done so since the last poll
    #[arg(long)]
    flag: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut poll = Poll::new().attempt("create a poll")?;
    let waker = Waker::new(poll.registry(), Token(0)).attempt("create a waker")?;
    let woken = AtomicBool::new(false);
    for _ in 0..args.wakes {
        // Whoever sets the flag wakes. The poller clears it before it looks at what it was woken for, and with a swap, not
        // a store: it must see what was written by those who found the flag set and did not wake.
        if !args.flag || !woken.swap(true, Ordering::AcqRel) {
            waker.wake().attempt("wake the poll")?;
        }
    }
    let mut events = Events::with_capacity(8);
    match poll.poll(&mut events, Some(Duration::from_millis(100))) {
        Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).attempt("poll"),
        _ => drop(woken.swap(false, Ordering::AcqRel)),
    }
    print_line(format_args!("{} wake-ups, {} events", args.wakes, events.iter().count()))
}
