//! Retry policies: the number of tries and the pauses between them.
//!
//! Each failure is retried at one level. The store's client retries network requests
//! ([`Retry::REQUESTS`]), and then reports that it [gave
//! up](crate::storage::StorageError::RetriesExhausted). The driver retries failures that no client
//! retries, such as a busy file ([`Retry::STORAGE`]). The driver's queue reschedules a task whose
//! requests were given up or whose worker was lost.

use std::time::Duration;

/// Exponential backoff: pauses double up to a maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The pause after the first failure.
    pub first: Duration,
    /// The maximum pause.
    pub longest: Duration,
}

impl Backoff {
    /// Returns the pause after `failures` failures, at least one.
    ///
    /// `jitter` is from 0 to 1 and shortens the pause by up to half, so that operations that failed
    /// together are not retried together.
    pub fn pause(&self, failures: u32, jitter: f64) -> Duration {
        let whole =
            self.first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.longest);
        whole.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

/// A retry policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The maximum number of tries, including the first.
    pub tries: u32,
    /// The pauses between tries.
    pub backoff: Backoff,
    /// The maximum time between the first try and the start of the last.
    pub within: Duration,
}

impl Retry {
    /// The policy of a client for requests to an object store or server.
    pub const REQUESTS: Retry = Retry {
        tries: 10,
        backoff: Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(5) },
        within: Duration::from_secs(20),
    };

    /// The driver's policy for storage operations that the store has not retried. It has no time
    /// limit, because an operation such as a commit may be long.
    pub const STORAGE: Retry = Retry {
        tries: 6,
        backoff: Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) },
        within: Duration::MAX,
    };

    /// Returns the pause before the next try, or `None` if no try is left. `elapsed` is the time
    /// since the first try began.
    pub fn next(&self, failures: u32, elapsed: Duration, jitter: f64) -> Option<Duration> {
        let pause = self.backoff.pause(failures, jitter);
        (failures < self.tries && elapsed.saturating_add(pause) <= self.within).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff =
            Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(10) };
        let pauses: Vec<u128> = (1..12).map(|n| backoff.pause(n, 0.0).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        assert_eq!(backoff.pause(u32::MAX, 1.0), Duration::from_secs(5));
        assert_eq!(backoff.pause(3, 0.5), Duration::from_millis(150));
    }

    #[test]
    fn tries_and_time_are_bounded() {
        let retry = Retry {
            tries: 3,
            backoff: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(9) },
            within: Duration::from_secs(5),
        };
        let second = Duration::from_secs(1);
        assert_eq!(retry.next(1, Duration::ZERO, 0.0), Some(second));
        assert_eq!(retry.next(2, 3 * second, 0.0), Some(2 * second));
        assert_eq!(retry.next(2, 4 * second, 0.0), None, "the next try would begin too late");
        assert_eq!(retry.next(3, second, 0.0), None, "three tries are all");
    }
}
