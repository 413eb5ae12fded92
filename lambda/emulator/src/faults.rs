//! What goes wrong on purpose, and to whom.

use std::ops::Range;
use std::time::Duration;

/// What goes wrong. Each is a share of invocations, from 0 to 1; which ones follows from the seed
/// and from the number of the invocation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Other seeds choose others.
    pub seed: u64,
    /// Gets a 429.
    pub throttle: f64,
    /// Its process is killed, after a time from [`kill_after`](Faults::kill_after), or when it
    /// answers if that is sooner.
    pub kill: f64,
    /// When.
    pub kill_after: Range<Duration>,
    /// The work is done, but the client's connection is closed without an answer.
    pub lose: f64,
    /// Runs in a second environment, too, whose answer nobody gets.
    pub duplicate: f64,
    /// Its process gets a share of its time only.
    pub slow: f64,
    /// One part in so many.
    pub slow_factor: u32,
}

/// What goes wrong with one invocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) throttle: bool,
    pub(crate) kill: Option<Duration>,
    pub(crate) lose: bool,
    pub(crate) duplicate: bool,
    pub(crate) slow: Option<u32>,
}

impl Faults {
    /// The fate of the `n`-th invocation. One that is killed loses nothing besides.
    pub(crate) fn fate(&self, n: u64) -> Fate {
        let hit = |kind: u64, share: f64| share > 0.0 && unit(self.seed, kind, n) < share;
        if hit(0, self.throttle) {
            return Fate { throttle: true, ..Fate::default() };
        }
        let span = self.kill_after.end.saturating_sub(self.kill_after.start);
        let kill =
            hit(1, self.kill).then(|| self.kill_after.start + span.mul_f64(unit(self.seed, 2, n)));
        Fate {
            throttle: false,
            lose: kill.is_none() && hit(3, self.lose),
            kill,
            duplicate: hit(4, self.duplicate),
            slow: hit(5, self.slow).then_some(self.slow_factor.max(1)),
        }
    }
}

/// A number in [0, 1) that looks random: SplitMix64 (Steele, Lea & Flood, 2014) of what it is for.
pub(crate) fn unit(seed: u64, kind: u64, n: u64) -> f64 {
    let mix = |x: u64| {
        let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (mix(mix(mix(seed) ^ kind) ^ n) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates_follow_from_seed_and_number_and_come_as_often_as_asked() {
        let faults = Faults {
            seed: 7,
            throttle: 0.1,
            kill: 0.05,
            kill_after: Duration::from_millis(10)..Duration::from_millis(20),
            lose: 0.05,
            duplicate: 0.02,
            slow: 0.02,
            slow_factor: 20,
        };
        let fates: Vec<Fate> = (0..20_000).map(|n| faults.fate(n)).collect();
        assert_eq!(fates, (0..20_000).map(|n| faults.fate(n)).collect::<Vec<_>>());
        let share =
            |is: &dyn Fn(&Fate) -> bool| fates.iter().filter(|f| is(f)).count() as f64 / 20_000.0;
        for (found, asked) in [
            (share(&|f| f.throttle), 0.1),
            (share(&|f| f.kill.is_some()), 0.045),
            (share(&|f| f.lose), 0.9 * 0.95 * 0.05),
            (share(&|f| f.duplicate), 0.018),
            (share(&|f| f.slow == Some(20)), 0.018),
        ] {
            assert!((found / asked - 1.0).abs() < 0.2, "{found} of {asked}");
        }
        assert!(fates.iter().filter_map(|f| f.kill).all(|t| faults.kill_after.contains(&t)));
        assert_ne!(
            fates,
            (0..20_000).map(|n| Faults { seed: 8, ..faults.clone() }.fate(n)).collect::<Vec<_>>()
        );
        assert!((0..1000).all(|n| Faults::default().fate(n) == Fate::default()));
    }
}
