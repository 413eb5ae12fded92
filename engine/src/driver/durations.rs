//! The distribution of task durations of a stage.

use std::time::Duration;

/// A histogram of durations with bins of a quarter octave. Its size does not depend on the number
/// of durations.
#[derive(Clone, Debug)]
pub(super) struct Durations {
    bins: Vec<u64>,
    count: u64,
}

/// The number of bins, from a nanosecond to centuries.
const BINS: usize = 4 * 64;

impl Default for Durations {
    fn default() -> Durations {
        Durations { bins: vec![0; BINS], count: 0 }
    }
}

impl Durations {
    /// Adds `n` tasks of the same duration.
    pub(super) fn add(&mut self, each: Duration, n: u64) {
        let nanoseconds = (each.as_nanos() as f64).max(1.0);
        self.bins[((4.0 * nanoseconds.log2()) as usize).min(BINS - 1)] += n;
        self.count += n;
    }

    /// Returns the number of tasks.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Returns the median, or up to a fifth more.
    pub(super) fn median(&self) -> Duration {
        let mut seen = 0;
        for (i, n) in self.bins.iter().enumerate() {
            seen += n;
            if 2 * seen >= self.count && seen > 0 {
                return Duration::from_nanos(((i + 1) as f64 / 4.0).exp2() as u64);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_found_in_its_bin() {
        let mut durations = Durations::default();
        assert_eq!((durations.count(), durations.median()), (0, Duration::ZERO));
        for ms in [1, 5, 900, 4, 6, 5, 70_000] {
            durations.add(Duration::from_millis(ms), 1);
        }
        let (median, exact) = (durations.median().as_secs_f64(), 0.005);
        assert!(median >= exact && median <= 1.2 * exact, "{median}");
        durations.add(Duration::from_secs(2), 100);
        let median = durations.median().as_secs_f64();
        assert!((2.0..=2.4).contains(&median), "{median}");
        durations.add(Duration::ZERO, 1);
        assert_eq!(durations.count(), 108);
    }
}
