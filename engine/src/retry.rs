//! Retry policies: how often something is tried, and how long the pauses between the tries are.
//!
//! Each failure is retried at one level. A request that crosses a network is retried by the store's client ([`Retry::REQUESTS`]), which then says
//! that it [gave up](crate::storage::StorageError::GaveUp). What no client retries, such as a busy file, the driver retries ([`Retry::STORAGE`]). A
//! task whose requests were given up, or whose worker was lost, is handed out again by the driver's queue.

use std::time::Duration;

/// Pauses that double, up to a longest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The pause after the first failure.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Backoff {
    /// The pause after so many failures, at least one. `jitter` is from 0 to 1, and takes up to half of the pause away: what failed together is not
    /// tried again together.
    pub fn pause(&self, failures: u32, jitter: f64) -> Duration {
        let whole = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.longest);
        whole.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

/// How often something is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries in all, the first one included.
    pub tries: u32,
    /// Pauses between the tries.
    pub backoff: Backoff,
    /// No try begins later than this after the first one.
    pub within: Duration,
}

impl Retry {
    /// Requests to an object store or server, by its client.
    pub const REQUESTS: Retry =
        Retry { tries: 6, backoff: Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(5) }, within: Duration::from_secs(20) };

    /// What the driver asks of storage, where the store has not retried it. It may be long, as a commit is.
    pub const STORAGE: Retry =
        Retry { tries: 6, backoff: Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) }, within: Duration::MAX };

    /// The pause before the next try after so many failed ones, the first of which began so long ago; `None` where there is no next try.
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
        let backoff = Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(10) };
        let pauses: Vec<u128> = (1..12).map(|n| backoff.pause(n, 0.0).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        assert_eq!(backoff.pause(u32::MAX, 1.0), Duration::from_secs(5));
        assert_eq!(backoff.pause(3, 0.5), Duration::from_millis(150));
    }

    #[test]
    fn tries_and_time_are_bounded() {
        let retry = Retry { tries: 3, backoff: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(9) }, within: Duration::from_secs(5) };
        let second = Duration::from_secs(1);
        assert_eq!(retry.next(1, Duration::ZERO, 0.0), Some(second));
        assert_eq!(retry.next(2, 3 * second, 0.0), Some(2 * second));
        assert_eq!(retry.next(2, 4 * second, 0.0), None, "the next try would begin too late");
        assert_eq!(retry.next(3, second, 0.0), None, "three tries are all");
    }
}
