//! Why does `join_all` poll 30 futures for one wake-up, and one of 31? Up to 30 it keeps its futures in a plain list, with
//! one waker for all, and does not know which of them was woken: it polls each. Beyond that it gives each a waker of its own
//! (`FuturesOrdered`), for an allocation each. What to do about it: nothing for a few; for many that are woken one by one,
//! `FuturesUnordered`, or a task each (the tokio-multisocket probes).
//!
//! Run:             cargo run --bin probe-join-threshold
//! Second terminal: nothing
//! In the trace:    nothing: no system call is involved.
//! Left out:        sockets; tokio-multisocket-join shows the same with them.
//! Oldest system:   any that the standard library supports.

use echo_lab::{Result, report::print_line};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::executor::block_on;
use futures::future::{join_all, poll_fn};
use std::cell::Cell;
use std::pin::pin;
use std::task::Poll;

fn main() -> Result<()> {
    for count in [2, 30, 31, 1000] {
        let polls = polls_for_one_wake_up(count);
        print_line(format_args!("{count} futures, one of them woken: {polls} polled"))?;
    }
    Ok(())
}

fn polls_for_one_wake_up(count: usize) -> usize {
    let polls = Cell::new(0);
    let (mut senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| oneshot::channel::<()>()).unzip();
    let waiting = receivers.into_iter().map(|mut receiver| {
        let polls = &polls;
        poll_fn(move |context| {
            polls.set(polls.get() + 1);
            receiver.poll_unpin(context)
        })
    });
    let mut all = pin!(join_all(waiting));
    block_on(poll_fn(|context| {
        assert!(all.as_mut().poll(context).is_pending(), "none of them has been woken yet");
        Poll::Ready(())
    }));
    polls.set(0);
    // One of them is woken, and whoever polls the whole learns of it.
    drop(senders.swap_remove(count / 2));
    block_on(poll_fn(|context| {
        assert!(all.as_mut().poll(context).is_pending(), "the others have not been woken");
        Poll::Ready(())
    }));
    polls.get()
}
