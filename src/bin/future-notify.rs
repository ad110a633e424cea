//! Who polls a future again, and when? The executor does, once for each call of the waker that the future was given. A
//! future that returns Pending without having arranged for that call sleeps for ever: here, a thread makes it.
//!
//! Run:             cargo run --bin future-notify
//! Second terminal: nothing
//! In the trace:    no epoll: the executor parks its thread on a futex, and the other thread wakes it.
//! Left out:        I/O. A runtime's reactor does what the thread does here.
//! Oldest system:   any that the standard library supports.

use clap::Parser;
use echo_lab::{Result, report::print_line};
use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// Who polls a future again, and when?
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Polls until the future is complete
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    polls: u32,
    /// Time from one poll to the next, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    interval: u64,
}

/// Completes at its `of`th poll.
struct Notified {
    polls: u32,
    of: u32,
    interval: Duration,
    due: Instant,
    request: Sender<Instant>,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl Future for Notified {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        // A future may be polled by another task each time: only the waker of the last poll counts.
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        if Instant::now() < self.due {
            return Poll::Pending; // Polled without reason, which is allowed. The thread still has its request.
        }
        self.polls += 1;
        if let Err(error) = print_line(format_args!("poll {} of {}", self.polls, self.of)) {
            return Poll::Ready(Err(error));
        }
        if self.polls == self.of {
            return Poll::Ready(Ok(()));
        }
        self.due = Instant::now() + self.interval;
        // The thread lives as long as this sender.
        let _ = self.request.send(self.due);
        Poll::Pending
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let interval = Duration::from_millis(args.interval);
    let (request, requests) = channel();
    let waker = Arc::new(Mutex::new(None::<Waker>));
    let future = Notified { polls: 0, of: args.polls, interval, due: Instant::now(), request, waker: waker.clone() };
    thread::spawn(move || {
        for due in requests {
            // Early, the poll would not count, and nobody would ask for another.
            while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                thread::sleep(left);
            }
            // The lock is released before the call: an executor may poll from within it, and the future locks.
            let waker = waker.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    });
    futures::executor::block_on(future)
}
