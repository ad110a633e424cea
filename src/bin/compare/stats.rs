//! The statistics of paired slices. Robust ones: on a shared machine some slices are always disturbed.

use serde::Serialize;

/// A median, with the interval that holds the true one in 95 of 100 repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

    /// Half of the noise around 1: as far as the interval of a ratio that should be 1 reaches on its wider side.
    pub fn noise(&self) -> f64 {
        (self.high - 1.0).max(1.0 - self.low).max(0.0)
    }
}

/// The ratios of the reference to itself.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Noise {
    pub x_eps: Estimate,
    pub x_cpu: Estimate,
    /// The share of all single pairs whose x_cpu is between 0.9 and 1.1.
    pub within_ten_percent: f64,
}

/// For each interval, in any order: 1 and the number of those that end below its beginning by more than the noise.
pub fn ranks(intervals: &[Estimate], noise: f64) -> Vec<usize> {
    let clearly_less =
        |value: &Estimate| intervals.iter().filter(|other| other.high * (1.0 + noise) < value.low).count();
    intervals.iter().map(|value| 1 + clearly_less(value)).collect()
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
    fn what_the_noise_covers_shares_a_rank() {
        let at = |low, high| Estimate { median: (low + high) / 2.0, low, high };
        let intervals = [at(1.0, 1.0), at(1.04, 1.06), at(1.05, 1.08), at(1.2, 1.3)];
        assert_eq!(ranks(&intervals, 0.02), [1, 2, 2, 4]);
        assert_eq!(ranks(&intervals, 0.05), [1, 1, 1, 4]);
        assert_eq!((at(0.97, 1.01).noise(), at(1.02, 1.05).noise() > 0.049), (1.0 - 0.97, true));
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
