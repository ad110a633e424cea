//! The way of orders between threads, in every order in which the threads can run: loom takes the place of the standard
//! library, and tries them all. `cargo test --manifest-path tests/interleavings/Cargo.toml`
//!
//! A package of its own: as a dependency of the collection's tests, loom would change how mio and tokio are built for them.

#![cfg(test)]

#[path = "../../src/bin/echo-tcp-reactor/reactor/mailbox.rs"]
mod mailbox;
mod registrar;

use loom::sync::{Arc, Mutex, Notify};
use loom::thread;
use mailbox::{Mailbox, Returned};

/// As a runtime does it: it sleeps until it is woken, takes what is there, and closes at a time of its own. Whoever gives
/// an order wakes it if asked to. A wake-up that is missing is a deadlock, which loom reports.
#[test]
fn each_order_is_taken_or_returned() {
    loom::model(|| {
        let shared = Arc::new((Mailbox::new(2), Notify::new()));
        let (runtime, giver) = (shared.clone(), shared.clone());
        let runtime = thread::spawn(move || {
            let mut taken = 0;
            while taken < 2 {
                runtime.1.wait();
                taken += runtime.0.take().len();
            }
            taken + runtime.0.close().len()
        });
        let giver = thread::spawn(move || give(&giver, 2));
        let returned = give(&shared, 1) + giver.join().unwrap();
        assert_eq!(runtime.join().unwrap() + returned, 3);
        assert_eq!(shared.0.put(()), Err(Returned::Closed(())));
    });
}

/// How many of so many orders come back.
fn give((mailbox, waker): &(Mailbox<()>, Notify), orders: usize) -> usize {
    let mut returned = 0;
    for _ in 0..orders {
        match mailbox.put(()) {
            Ok(true) => waker.notify(),
            Ok(false) => {}
            Err(Returned::Full(()) | Returned::Closed(())) => returned += 1,
        }
    }
    returned
}
