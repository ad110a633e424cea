//! What does mio do with nothing registered? One system call to make the poll, one to wait. The pipe of its first
//! versions is gone; a Waker, which takes its place, costs an eventfd and a registration, if it is asked for.
//!
//! Run:             cargo run --bin mio-empty
//! Second terminal: nothing
//! In the trace:    epoll_create1 and epoll_wait, and nothing else; with --waker, eventfd2 and EPOLL_CTL_ADD between.
//! Left out:        waking it: see mio-pipe.
//! Oldest system:   what mio supports: Linux, the BSDs, macOS, Windows and others.

use clap::Parser;
use echo_lab::{Attempt, Result, report::print_line};
use mio::{Events, Poll, Token, Waker};
use std::io::ErrorKind;
use std::time::Duration;

/// What does mio do with nothing registered?
#[derive(Parser)]
#[command(version)]
struct Args {
    /// How long to wait for events that cannot come, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    timeout: u64,
    /// Register a waker, too
    #[arg(long)]
    waker: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut poll = Poll::new().attempt("create a poll")?;
    let _waker = match args.waker {
        true => Some(Waker::new(poll.registry(), Token(0)).attempt("create a waker")?),
        false => None,
    };
    let mut events = Events::with_capacity(8);
    match poll.poll(&mut events, Some(Duration::from_millis(args.timeout))) {
        Err(error) if error.kind() != ErrorKind::Interrupted => Err(error).attempt("poll"),
        _ => print_line(format_args!("poll returned with {} events", events.iter().count())),
    }
}
