//! How many invocations may be under way at once, and how soon one may follow another.
//!
//! Additive increase, multiplicative decrease: the window grows by so many a second while it is
//! used up, and shrinks to a part where the cloud or storage asks for fewer. Until that happens for
//! the first time it grows as fast as Lambda adds environments.
//!
//! Where invocations come too often, fewer at once may still be too many a second. They are spaced
//! then: a refusal halves the rate, an invocation that is made adds a tenth to it, but not twice in
//! [`GROWTH`]. So there are `ln 2 / ln 1.1`, 7 invocations, for each refusal that halves the rate,
//! besides those that find the rate out (`log2` of the fastest over the slowest), and those that
//! were under way when it was halved.

use std::time::{Duration, Instant};

/// At the beginning.
const FIRST: f64 = 64.0;
/// Lambda adds 1000 environments in 10 seconds.
const RAMP_PER_SECOND: f64 = 100.0;
/// After the first refusal: in so many seconds from nothing to the most.
const RECOVERY_SECONDS: f64 = 30.0;
const SHRINK: f64 = 0.7;
/// Refusals that come together are one.
const AT_ONCE: Duration = Duration::from_millis(500);
/// It does not grow so long after a refusal.
const HOLD: Duration = Duration::from_secs(1);

/// Lambda lets a function be invoked so often a second, for each invocation that may be under way.
const RATE_PER_INVOCATION: f64 = 10.0;
/// However often they are refused, invocations are made at this rate.
const SLOWEST: f64 = 1.0;
/// What was not made in time is made up for, if it is no longer ago.
const LAG: Duration = Duration::from_millis(5);
/// The rate grows by a tenth, once in this time.
const FASTER: f64 = 1.1;
const GROWTH: Duration = Duration::from_millis(100);
const SLOWER: f64 = 0.5;

/// The window.
#[derive(Clone, Debug)]
pub(super) struct Window {
    size: f64,
    most: f64,
    shrunk: Option<Instant>,
    looked: Instant,
    /// Invocations a second: as many as there are to make, until one is refused for that.
    rate: f64,
    slowed: Option<Instant>,
    grown: Option<Instant>,
    due: Instant,
}

impl Window {
    /// One that never exceeds `most`.
    pub(super) fn new(most: usize, now: Instant) -> Window {
        let most = (most as f64).max(1.0);
        Window {
            size: FIRST.min(most),
            most,
            shrunk: None,
            looked: now,
            rate: f64::INFINITY,
            slowed: None,
            grown: None,
            due: now,
        }
    }

    /// Invocations that may be under way.
    pub(super) fn size(&self) -> usize {
        (self.size + 1e-6) as usize
    }

    /// Takes note of the time and of how many are under way: what is not used does not grow.
    pub(super) fn look(&mut self, now: Instant, under_way: usize) {
        let elapsed = now
            .saturating_duration_since(std::mem::replace(&mut self.looked, now))
            .as_secs_f64()
            .min(1.0);
        let per_second = match self.shrunk {
            None => RAMP_PER_SECOND,
            Some(then) if now.saturating_duration_since(then) < HOLD => 0.0,
            Some(_) => (self.most / RECOVERY_SECONDS).max(1.0),
        };
        if under_way + 1 >= self.size() {
            self.size = (self.size + per_second * elapsed).min(self.most);
        }
    }

    /// Takes note that somebody asked for fewer.
    pub(super) fn shrink(&mut self, now: Instant) {
        if self.shrunk.is_none_or(|then| now.saturating_duration_since(then) >= AT_ONCE) {
            self.size = (self.size * SHRINK).max(1.0);
            self.shrunk = Some(now);
        }
    }

    /// How long the next invocation has to wait for those before it.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// Takes note that an invocation is made.
    pub(super) fn made(&mut self, now: Instant) {
        if self.rate.is_finite() {
            let since = now.checked_sub(LAG).map_or(self.due, |then| self.due.max(then));
            self.due = since + Duration::from_secs_f64(1.0 / self.rate);
            if self.grown.is_none_or(|then| now.saturating_duration_since(then) >= GROWTH) {
                self.rate = (self.rate * FASTER).min(self.fastest());
                self.grown = Some(now);
            }
        }
    }

    /// Takes note that an invocation, which was made at a time, was refused because there are too
    /// many a second. One that was made before the rate was last halved says nothing about the new
    /// one.
    pub(super) fn slow(&mut self, now: Instant, made: Instant) {
        if self.slowed.is_none_or(|then| made > then) {
            self.rate = (self.rate.min(self.fastest()) * SLOWER).max(SLOWEST);
            self.slowed = Some(now);
            self.due = now + Duration::from_secs_f64(1.0 / self.rate);
        }
    }

    fn fastest(&self) -> f64 {
        RATE_PER_INVOCATION * self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_as_lambda_does_and_shrinks_by_refusals() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut window = Window::new(1000, start);
        assert_eq!(window.size(), 64);
        (1..=50).for_each(|i| window.look(at(100 * i), 10));
        assert_eq!(window.size(), 64, "what is not used does not grow");
        (51..=100).for_each(|i| window.look(at(100 * i), window.size()));
        assert!((560..=566).contains(&window.size()), "{window:?}");
        (101..=200).for_each(|i| window.look(at(100 * i), window.size()));
        assert_eq!(window.size(), 1000);
        (0..100).for_each(|_| window.shrink(at(20_000)));
        assert_eq!(window.size(), 700, "refusals that come together are one");
        window.shrink(at(20_600));
        assert_eq!(window.size(), 490);
        (206..=216).for_each(|i| window.look(at(100 * i), window.size()));
        assert!((490..=495).contains(&window.size()), "it holds still for a while: {window:?}");
        (217..=600).for_each(|i| window.look(at(100 * i), window.size()));
        assert_eq!(window.size(), 1000);
        (0..100).for_each(|i| window.shrink(at(100_000 + 1000 * i)));
        assert_eq!(window.size(), 1, "one is left to find out with");
        assert_eq!(Window::new(3, start).size(), 3);
    }

    /// A cloud with a bucket of tokens, by a clock of its own: what is refused keeps to the bound,
    /// and little of what the rate allows is left unused.
    #[test]
    fn invocations_that_come_too_often_are_spaced() {
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
            // Answers take a millisecond.
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
                    window.made(now);
                    made += 1;
                    let is_refused = tokens < 1.0;
                    tokens -= f64::from(u8::from(!is_refused));
                    refused += u32::from(is_refused);
                    answers.push_back((now, is_refused));
                }
            }
            let finding =
                (RATE_PER_INVOCATION * most as f64 / SLOWEST).log2() + window.size() as f64;
            let bound = f64::ln(FASTER) / -f64::ln(SLOWER) * f64::from(made) + finding;
            assert!(
                refused > 0 && f64::from(refused) < 1.3 * bound,
                "{refused} of {made}, {bound}"
            );
            let used = f64::from(made - refused) / (burst + 100.0 * per_second);
            assert!(used > 0.6, "{used} of what {most} with {per_second} a second could have had");
        }
    }
}
