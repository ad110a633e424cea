//! What is to be done later. It asks no clock: whoever uses it says what time it is.

use std::collections::BTreeMap;
use std::time::Instant;

pub struct Deferred<T> {
    /// By time, and in the order of their coming where that is the same.
    waiting: BTreeMap<(Instant, u64), T>,
    came: u64,
}

impl<T> Deferred<T> {
    pub fn new() -> Self {
        Self { waiting: BTreeMap::new(), came: 0 }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// For `at`, or soon after it.
    pub fn insert(&mut self, at: Instant, item: T) {
        self.came += 1;
        self.waiting.insert((at, self.came), item);
    }

    /// When there will be something to do.
    pub fn next(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next whose time has come, if it is `now`.
    pub fn due(&mut self, now: Instant) -> Option<T> {
        self.waiting.first_entry().filter(|first| first.key().0 <= now).map(|first| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Several are outstanding. The clock is a number.
    #[test]
    fn each_is_due_at_its_time_and_not_before() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut deferred = Deferred::new();
        for (number, millis) in [60, 20, 40, 0, 20].into_iter().enumerate() {
            deferred.insert(at(millis), (number, millis));
        }
        assert_eq!(deferred.len(), 5);
        let mut came = Vec::new();
        for now in 0..=60 {
            while let Some((number, millis)) = deferred.due(at(now)) {
                assert_eq!(millis, now, "number {number}");
                came.push(number);
            }
            assert!(deferred.next().is_none_or(|next| next > at(now)));
        }
        assert_eq!(came, [3, 1, 4, 2, 0]);
        assert_eq!((deferred.len(), deferred.next()), (0, None));
    }

    /// A long wait: all that have become due meanwhile come in the order of their times.
    #[test]
    fn whoever_comes_late_finds_them_in_order() {
        let start = Instant::now();
        let mut deferred = Deferred::new();
        (0..1000).for_each(|number| deferred.insert(start + Duration::from_nanos(number * 7919 % 1000), number));
        let came: Vec<_> = std::iter::from_fn(|| deferred.due(start + Duration::from_secs(1))).collect();
        assert_eq!(came.len(), 1000);
        assert!(came.is_sorted_by_key(|number| number * 7919 % 1000));
    }
}
