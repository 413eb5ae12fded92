//! Time and randomness: the only sources of nondeterminism that the engine uses.
//!
//! Each program passes a [`System`] along with its [`Stores`](crate::storage::Stores); there is no
//! global instance. Programs use the machine's clock. Tests use a [`ManualClock`], which they
//! advance explicitly.

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// A clock.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the current instant, for measuring elapsed time.
    fn now(&self) -> Instant;

    /// Returns the current wall-clock time.
    fn system_time(&self) -> SystemTime;

    /// Blocks until `time` has passed.
    fn sleep(&self, time: Duration);

    /// Returns the maximum duration to wait before checking the clock again, within a wait of
    /// `time`.
    fn wait_bound(&self, time: Duration) -> Duration;
}

/// A source of random numbers.
pub trait Random: fmt::Debug + Send + Sync {
    /// Returns the next number, uniform in all bits.
    fn next(&self) -> u64;
}

/// The clock and random number source of a program or test.
#[derive(Clone, Debug)]
pub struct System {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The random number source.
    pub random: Arc<dyn Random>,
}

impl Default for System {
    fn default() -> System {
        System { clock: Arc::new(MachineClock), random: Arc::new(SplitMix::from_machine()) }
    }
}

impl System {
    /// Returns the current instant, for measuring elapsed time.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Returns the time elapsed since an instant.
    pub fn elapsed(&self, since: Instant) -> Duration {
        self.clock.now().saturating_duration_since(since)
    }

    /// Blocks until `time` has passed.
    pub fn sleep(&self, time: Duration) {
        self.clock.sleep(time);
    }

    /// Returns a random number in the range 0 to 1, excluding 1.
    pub fn fraction(&self) -> f64 {
        (self.random.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns the time since the Unix epoch.
    pub fn since_epoch(&self) -> Duration {
        self.clock.system_time().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    /// Waits asynchronously until `time` has passed.
    #[cfg(feature = "object-stores")]
    pub async fn wait(&self, time: Duration) {
        let begun = self.now();
        loop {
            let left = time.saturating_sub(self.elapsed(begun));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(self.clock.wait_bound(left)).await;
        }
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct MachineClock;

#[allow(clippy::disallowed_methods, reason = "the only place that reads the machine's clock")]
impl Clock for MachineClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn system_time(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn wait_bound(&self, time: Duration) -> Duration {
        time
    }
}

/// A clock for tests that advances only when told to, or by a sleep.
#[derive(Clone, Debug)]
pub struct ManualClock {
    start: Instant,
    passed: Arc<Mutex<Duration>>,
}

impl Default for ManualClock {
    fn default() -> ManualClock {
        ManualClock { start: MachineClock.now(), passed: Arc::default() }
    }
}

impl ManualClock {
    /// Advances the clock.
    pub fn advance(&self, time: Duration) {
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner) += time;
    }

    /// Returns the time that has passed since the clock was created.
    pub fn passed(&self) -> Duration {
        *self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.start + self.passed()
    }

    fn system_time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.passed()
    }

    fn sleep(&self, time: Duration) {
        self.advance(time);
    }

    fn wait_bound(&self, time: Duration) -> Duration {
        time.min(Duration::from_millis(1))
    }
}

/// The SplitMix generator of Steele, Lea & Flood (2014). Used for jitter and names; not suitable
/// for secrets.
#[derive(Debug)]
pub struct SplitMix(AtomicU64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl SplitMix {
    /// Creates a generator from a seed.
    pub fn new(seed: u64) -> SplitMix {
        SplitMix(AtomicU64::new(seed))
    }

    /// Creates a generator with a seed from the operating system.
    #[allow(
        clippy::disallowed_methods,
        reason = "the only place that reads the system's randomness"
    )]
    pub fn from_machine() -> SplitMix {
        SplitMix::new(std::collections::hash_map::RandomState::new().build_hasher().finish())
    }
}

impl Random for SplitMix {
    fn next(&self) -> u64 {
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_by_hand_and_by_sleeping() {
        let clock = ManualClock::default();
        let (begun, date) = (clock.now(), clock.system_time());
        assert_eq!(clock.now(), begun);
        clock.advance(Duration::from_secs(3600));
        clock.sleep(Duration::from_secs(60));
        assert_eq!(
            (clock.now() - begun, clock.system_time().duration_since(date).unwrap()),
            (clock.passed(), Duration::from_secs(3660))
        );
    }

    #[test]
    fn random_numbers_follow_from_their_seed() {
        let numbers = |seed| {
            let random = SplitMix::new(seed);
            [random.next(), random.next(), random.next()]
        };
        // The values of the reference implementation for the seed 1234567.
        assert_eq!(
            numbers(1_234_567),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
        assert_ne!(numbers(1), numbers(2));
        let system = System::default();
        assert!((0..1000).all(|_| (0.0..1.0).contains(&system.fraction())));
    }
}
