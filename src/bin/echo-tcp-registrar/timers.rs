//! Timeouts and intervals, in the order in which they are due.

use crate::mailbox::{Mailbox, Ready};
use crate::poller::Id;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Default)]
pub struct Timers {
    due: BTreeSet<(Instant, Id)>,
    by_id: HashMap<Id, Timer>,
}

struct Timer {
    at: Instant,
    every: Option<Duration>,
    owner: Arc<Mailbox>,
}

impl Timers {
    /// Whether it is the next one that is due: a wait that has begun has to be shortened.
    pub fn set(&mut self, id: Id, at: Instant, every: Option<Duration>, owner: Arc<Mailbox>) -> bool {
        self.by_id.insert(id, Timer { at, every, owner });
        self.due.insert((at, id));
        self.due.first() == Some(&(at, id))
    }

    /// `None` if there is no such timer.
    pub fn cancel(&mut self, id: Id) -> Option<()> {
        let timer = self.by_id.remove(&id)?;
        self.due.remove(&(timer.at, id));
        Some(())
    }

    /// How long until the next one is due.
    pub fn until_next(&self, now: Instant) -> Option<Duration> {
        self.due.first().map(|(at, _)| at.saturating_duration_since(now))
    }

    /// Notifies the owners of those that are due. An interval is set anew only afterwards: of zero, it would be due again.
    pub fn fire(&mut self, now: Instant) {
        let mut again = Vec::new();
        while let Some((_, id)) = self.due.first().filter(|(at, _)| *at <= now).copied() {
            self.due.pop_first();
            let Some(mut timer) = self.by_id.remove(&id) else { continue };
            timer.owner.notify(id, Ready::TIMEOUT);
            if let Some(every) = timer.every {
                timer.at = (timer.at + every).max(now);
                again.push((id, timer));
            }
        }
        for (id, timer) in again {
            self.set(id, timer.at, timer.every, timer.owner);
        }
    }
}
