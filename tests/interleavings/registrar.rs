//! The notifications of echo-tcp-registrar, and its channel, in thousands of orders in which their threads can run. shuttle
//! picks the orders, since loom has neither a wait with a condition nor a channel that tells of its end. A lost wake-up is a
//! deadlock, which fails.

#[path = "../../src/bin/echo-tcp-registrar/channel.rs"]
mod channel;
#[path = "../../src/bin/echo-tcp-registrar/mailbox.rs"]
#[expect(dead_code, reason = "timers are not here")]
mod mailbox;

use channel::TryRecvError;
use mailbox::{Batch, Mailbox, Ready};
use poller::{Id, Registrar};
use shuttle::thread;
use std::time::Duration;
use sync::{Arc, Mutex, MutexGuard, PoisonError};

mod sync {
    pub use shuttle::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
    use std::cell::Cell;
    use std::time::Duration;

    thread_local! {
        /// How often somebody was to be woken. All threads of shuttle are one of the system's.
        pub static WAKES: Cell<usize> = const { Cell::new(0) };
    }

    #[derive(Default)]
    pub struct Condvar(shuttle::sync::Condvar);

    type Waited<'a, T> = Result<(MutexGuard<'a, T>, shuttle::sync::WaitTimeoutResult), Poisoned<'a, T>>;
    type Poisoned<'a, T> = PoisonError<(MutexGuard<'a, T>, shuttle::sync::WaitTimeoutResult)>;

    impl Condvar {
        pub fn notify_one(&self) {
            WAKES.set(WAKES.get() + 1);
            self.0.notify_one();
        }

        pub fn wait_while<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            condition: impl FnMut(&mut T) -> bool,
        ) -> Result<MutexGuard<'a, T>, PoisonError<MutexGuard<'a, T>>> {
            self.0.wait_while(guard, condition)
        }

        pub fn wait_timeout_while<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            timeout: Duration,
            condition: impl FnMut(&mut T) -> bool,
        ) -> Waited<'a, T> {
            self.0.wait_timeout_while(guard, timeout, condition)
        }
    }
}

mod poller {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Id(pub usize);

    pub struct Registrar(pub Id);

    impl Registrar {
        pub fn new_id(&self) -> Id {
            self.0
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// At random, and with the few changes of priority that most errors need (PCT, Burckhardt and others, 2010).
fn in_many_orders(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(scenario.clone(), 1000);
    shuttle::check_pct(scenario, 1000, 3);
}

/// What has come, all of it.
fn take(mailbox: &Mailbox) -> Batch {
    let mut batch = Batch::default();
    mailbox.take(&mut batch, None);
    assert!(!batch.is_empty(), "woken for nothing");
    batch
}

#[test]
fn no_notification_is_lost() {
    const ALL: [(Id, Ready); 6] = [
        (Id(0), Ready::READABLE),
        (Id(1), Ready::READABLE),
        (Id(0), Ready::WRITABLE),
        (Id(2), Ready::CLOSED),
        (Id(1), Ready::ERROR),
        (Id(0), Ready::MESSAGE),
    ];
    in_many_orders(|| {
        let mailbox = Arc::new(Mailbox::default());
        for part in ALL.chunks(2) {
            let mailbox = mailbox.clone();
            thread::spawn(move || part.iter().for_each(|(id, ready)| mailbox.notify(*id, *ready)));
        }
        let mut missing = ALL.to_vec();
        while !missing.is_empty() {
            let batch = take(&mailbox);
            missing.retain(|(id, ready)| !batch.get(id).is_some_and(|found| found.contains(*ready)));
        }
    });
}

#[test]
fn each_message_comes_and_then_the_end() {
    in_many_orders(|| {
        let mailbox = Arc::new(Mailbox::default());
        let mut receivers = Vec::new();
        for number in 0..2 {
            let (sender, receiver) = channel::new(&Registrar(Id(number)), &mailbox);
            thread::spawn(move || (0..3).for_each(|value| sender.send(value).unwrap()));
            receivers.push((receiver, 0));
        }
        while !receivers.is_empty() {
            let batch = take(&mailbox);
            receivers.retain_mut(|(receiver, next)| {
                while batch.contains_key(&receiver.id) {
                    match receiver.try_recv() {
                        Ok(value) => {
                            assert_eq!(value, *next);
                            *next += 1;
                        }
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => {
                            assert_eq!(*next, 3);
                            return false;
                        }
                    }
                }
                true
            });
        }
    });
}

#[test]
fn a_burst_is_one_wake_up() {
    let burst = || {
        sync::WAKES.set(0);
        let mailbox = Arc::new(Mailbox::default());
        let (sender, receiver) = channel::new(&Registrar(Id(0)), &mailbox);
        for burst in 1..=3 {
            (0..100).for_each(|value| sender.send(value).unwrap());
            assert_eq!(sync::WAKES.get(), burst);
            let mut batch = Batch::default();
            mailbox.take(&mut batch, Some(Duration::ZERO));
            assert_eq!(batch, Batch::from([(Id(0), Ready::MESSAGE)]));
            (0..100).for_each(|value| assert_eq!(receiver.try_recv(), Ok(value)));
        }
    };
    shuttle::check_random(burst, 1);
}
