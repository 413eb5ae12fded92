//! How many invocations may be under way at once.
//!
//! Additive increase, multiplicative decrease: the window grows by so many a second while it is used up, and shrinks to a part where the cloud or
//! storage asks for fewer. Until that happens for the first time it grows as fast as Lambda adds environments.

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

/// The window.
#[derive(Clone, Debug)]
pub(super) struct Window {
    size: f64,
    most: f64,
    shrunk: Option<Instant>,
    looked: Instant,
}

impl Window {
    /// One that never exceeds `most`.
    pub(super) fn new(most: usize, now: Instant) -> Window {
        let most = (most as f64).max(1.0);
        Window { size: FIRST.min(most), most, shrunk: None, looked: now }
    }

    /// Invocations that may be under way.
    pub(super) fn size(&self) -> usize {
        (self.size + 1e-6) as usize
    }

    /// Takes note of the time and of how many are under way: what is not used does not grow.
    pub(super) fn look(&mut self, now: Instant, under_way: usize) {
        let elapsed = now.saturating_duration_since(std::mem::replace(&mut self.looked, now)).as_secs_f64().min(1.0);
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
}
