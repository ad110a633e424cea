//! The statistics of paired slices. Robust ones: on a shared machine some slices are always disturbed.

use serde::Serialize;

/// A median, with the interval that holds the true one in 95 of 100 repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// Of at least one value. The interval comes from order statistics: the number of values below the true median is
    /// binomial (n, 1/2), whatever their distribution. With fewer than six values no interval holds it that often: it
    /// is then the whole range.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (n, last) = (sorted.len(), sorted.len().checked_sub(1)?);
        let rank = interval_rank(n);
        let median = (sorted[last / 2] + sorted[n / 2]) / 2.0;
        Some(Self { median, low: sorted[rank], high: sorted[last - rank] })
    }

    /// Whether the two intervals share a value.
    pub fn overlaps(&self, low: f64, high: f64) -> bool {
        self.low <= high && low <= self.high
    }
}

/// The largest rank k (from 0) for which P(fewer than k + 1 of n values lie below the median) is at most 2.5 %.
fn interval_rank(n: usize) -> usize {
    let mut probability = 0.5f64.powi(n as i32);
    let mut below = probability;
    let mut rank = 0;
    for k in 1..=n {
        probability *= (n - k + 1) as f64 / k as f64;
        if below + probability > 0.025 {
            break;
        }
        below += probability;
        rank = k;
    }
    rank
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_tables() {
        // Conover, Practical Nonparametric Statistics: for n = 10 the interval is from the 2nd to the 9th value, for
        // n = 27 from the 8th to the 20th.
        assert_eq!((interval_rank(5), interval_rank(6), interval_rank(10), interval_rank(27)), (0, 0, 1, 7));
    }

    #[test]
    fn estimates_known_values() {
        let values: Vec<f64> = (1..=27).rev().map(f64::from).collect();
        assert_eq!(Estimate::of(&values), Some(Estimate { median: 14.0, low: 8.0, high: 20.0 }));
        assert_eq!(Estimate::of(&[2.0, 1.0]), Some(Estimate { median: 1.5, low: 1.0, high: 2.0 }));
        assert_eq!(Estimate::of(&[]), None);
    }

    #[test]
    fn the_interval_covers_the_median_as_often_as_it_says() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut covered = 0;
        for _ in 0..2000 {
            // A skewed distribution, with outliers, whose median is 1.
            let values: Vec<f64> = (0..27).map(|_| -random.f64().log2()).collect();
            covered += i32::from(Estimate::of(&values).is_some_and(|estimate| estimate.overlaps(1.0, 1.0)));
        }
        assert!((1900..2000).contains(&covered), "{covered} of 2000");
    }
}
