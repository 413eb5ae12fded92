//! The limits of concurrent invocations and of invocations per second.
//!
//! The window of concurrent invocations follows additive increase, multiplicative decrease. It
//! grows at a constant rate while it is full, and shrinks by a factor if Lambda or storage asks for
//! fewer requests. Until the first such reply it grows as fast as Lambda adds environments.
//!
//! If invocations are too frequent, fewer concurrent ones may still be too frequent, so they are
//! paced. A throttled invocation halves the rate. Each invocation raises the rate by a tenth, at
//! most once in [`GROWTH_INTERVAL`]. There are therefore `ln 2 / ln 1.1`, or 7, invocations for
//! each throttled one that halves the rate. In addition, `log2` of the maximum over the minimum
//! rate are throttled to find the rate, and those in flight when the rate was halved.

use std::time::{Duration, Instant};

/// The initial size.
const INITIAL_SIZE: f64 = 64.0;
/// The growth before the first throttling. Lambda adds 1000 environments in 10 seconds.
const RAMP_PER_SECOND: f64 = 100.0;
/// The time of growth from zero to the maximum after the first throttling.
const RECOVERY_SECONDS: f64 = 30.0;
/// The factor by which throttling shrinks the window.
const SHRINK: f64 = 0.7;
/// The interval within which several throttled invocations count as one.
const SHRINK_INTERVAL: Duration = Duration::from_millis(500);
/// The time without growth after throttling.
const HOLD: Duration = Duration::from_secs(1);

/// The invocations per second that Lambda permits for each concurrent invocation.
const RATE_PER_INVOCATION: f64 = 10.0;
/// The minimum rate per second.
const MIN_RATE: f64 = 1.0;
/// The maximum delay of an invocation that later ones make up for.
const MAX_LAG: Duration = Duration::from_millis(5);
/// The factors by which the rate grows and shrinks.
const RATE_GROWTH: f64 = 1.1;
const RATE_SHRINK: f64 = 0.5;
/// The minimum interval between two growths of the rate.
const GROWTH_INTERVAL: Duration = Duration::from_millis(100);

/// The limits of concurrent invocations and of their rate.
#[derive(Clone, Debug)]
pub(super) struct Window {
    size: f64,
    most: f64,
    shrunk: Option<Instant>,
    last_update: Instant,
    /// Invocations per second; infinite until the first invocation that was too frequent.
    rate: f64,
    slowed: Option<Instant>,
    grown: Option<Instant>,
    due: Instant,
}

impl Window {
    /// Creates a window of at most `most` invocations.
    pub(super) fn new(most: usize, now: Instant) -> Window {
        let most = (most as f64).max(1.0);
        Window {
            size: INITIAL_SIZE.min(most),
            most,
            shrunk: None,
            last_update: now,
            rate: f64::INFINITY,
            slowed: None,
            grown: None,
            due: now,
        }
    }

    /// Returns the maximum of concurrent invocations.
    pub(super) fn size(&self) -> usize {
        (self.size + 1e-6) as usize
    }

    /// Grows the window by the elapsed time if it is full.
    pub(super) fn update(&mut self, now: Instant, in_flight: usize) {
        let elapsed = now
            .saturating_duration_since(std::mem::replace(&mut self.last_update, now))
            .as_secs_f64()
            .min(1.0);
        let per_second = match self.shrunk {
            None => RAMP_PER_SECOND,
            Some(then) if now.saturating_duration_since(then) < HOLD => 0.0,
            Some(_) => (self.most / RECOVERY_SECONDS).max(1.0),
        };
        if in_flight + 1 >= self.size() {
            self.size = (self.size + per_second * elapsed).min(self.most);
        }
    }

    /// Shrinks the window after throttling.
    pub(super) fn shrink(&mut self, now: Instant) {
        if self.shrunk.is_none_or(|then| now.saturating_duration_since(then) >= SHRINK_INTERVAL) {
            self.size = (self.size * SHRINK).max(1.0);
            self.shrunk = Some(now);
        }
    }

    /// Returns the pause before the next invocation.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// Records the start of an invocation.
    pub(super) fn started(&mut self, now: Instant) {
        if self.rate.is_finite() {
            let since = now.checked_sub(MAX_LAG).map_or(self.due, |then| self.due.max(then));
            self.due = since + Duration::from_secs_f64(1.0 / self.rate);
            if self.grown.is_none_or(|then| now.saturating_duration_since(then) >= GROWTH_INTERVAL)
            {
                self.rate = (self.rate * RATE_GROWTH).min(self.max_rate());
                self.grown = Some(now);
            }
        }
    }

    /// Halves the rate after an invocation, started at `start`, was too frequent. An invocation
    /// from before the last halving says nothing about the new rate.
    pub(super) fn slow(&mut self, now: Instant, start: Instant) {
        if self.slowed.is_none_or(|then| start > then) {
            self.rate = (self.rate.min(self.max_rate()) * RATE_SHRINK).max(MIN_RATE);
            self.slowed = Some(now);
            self.due = now + Duration::from_secs_f64(1.0 / self.rate);
        }
    }

    fn max_rate(&self) -> f64 {
        RATE_PER_INVOCATION * self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_while_full_and_shrinks_when_throttled() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut window = Window::new(1000, start);
        assert_eq!(window.size(), 64);
        (1..=50).for_each(|i| window.update(at(100 * i), 10));
        assert_eq!(window.size(), 64, "an unused window does not grow");
        (51..=100).for_each(|i| window.update(at(100 * i), window.size()));
        assert!((560..=566).contains(&window.size()), "{window:?}");
        (101..=200).for_each(|i| window.update(at(100 * i), window.size()));
        assert_eq!(window.size(), 1000);
        (0..100).for_each(|_| window.shrink(at(20_000)));
        assert_eq!(window.size(), 700, "throttled invocations within the interval count once");
        window.shrink(at(20_600));
        assert_eq!(window.size(), 490);
        (206..=216).for_each(|i| window.update(at(100 * i), window.size()));
        assert!(
            (490..=495).contains(&window.size()),
            "no growth right after throttling: {window:?}"
        );
        (217..=600).for_each(|i| window.update(at(100 * i), window.size()));
        assert_eq!(window.size(), 1000);
        (0..100).for_each(|i| window.shrink(at(100_000 + 1000 * i)));
        assert_eq!(window.size(), 1, "one invocation remains");
        assert_eq!(Window::new(3, start).size(), 3);
    }

    /// Simulates a service with a token bucket: the number of throttled invocations stays within
    /// the bound, and most of the permitted rate is used.
    #[test]
    fn frequent_invocations_are_paced() {
        for (most, per_second, burst) in [
            (8, 5.0, 8.0),
            (8, 40.0, 8.0),
            (1000, 100.0, 1000.0),
            (1000, 3000.0, 500.0),
            (1, 2.0, 1.0),
        ] {
            let start = Instant::now();
            let mut window = Window::new(most, start);
            let (mut tokens, mut made, mut refused) = (burst, 0u32, 0u32);
            // The latency is one millisecond.
            let mut answers = std::collections::VecDeque::new();
            for ms in 0..100_000 {
                let now = start + Duration::from_millis(ms);
                tokens = f64::min(tokens + per_second / 1e3, burst);
                while let Some((at, is_refused)) = answers.pop_front() {
                    if is_refused {
                        window.slow(now, at);
                    }
                }
                while answers.len() < window.size() && window.pause(now).is_zero() {
                    window.started(now);
                    made += 1;
                    let is_refused = tokens < 1.0;
                    tokens -= f64::from(u8::from(!is_refused));
                    refused += u32::from(is_refused);
                    answers.push_back((now, is_refused));
                }
            }
            let finding =
                (RATE_PER_INVOCATION * most as f64 / MIN_RATE).log2() + window.size() as f64;
            let bound = f64::ln(RATE_GROWTH) / -f64::ln(RATE_SHRINK) * f64::from(made) + finding;
            assert!(
                refused > 0 && f64::from(refused) < 1.3 * bound,
                "{refused} of {made}, {bound}"
            );
            let used = f64::from(made - refused) / (burst + 100.0 * per_second);
            assert!(used > 0.6, "{used} of what {most} with {per_second} a second could have had");
        }
    }
}
