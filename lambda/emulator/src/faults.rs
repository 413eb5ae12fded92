//! Injected faults of invocations.

use std::ops::Range;
use std::time::Duration;

/// The rates of injected faults, each as a fraction of invocations from 0 to 1. The seed and the
/// number of an invocation determine its faults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// The seed of the selection.
    pub seed: u64,
    /// The client receives status 429.
    pub throttle: f64,
    /// The process is killed after a delay in [`kill_after`](Faults::kill_after), or at its answer
    /// if that is sooner.
    pub kill: f64,
    /// The range of delays before a kill.
    pub kill_after: Range<Duration>,
    /// The invocation completes, but the client's connection is closed without an answer.
    pub lose: f64,
    /// The invocation also runs in a second environment, whose answer is discarded.
    pub duplicate: f64,
    /// The process runs only a part of the time.
    pub slow: f64,
    /// The factor by which a process is slowed down.
    pub slow_factor: u32,
}

/// The faults of one invocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InvocationFaults {
    pub(crate) throttle: bool,
    pub(crate) kill: Option<Duration>,
    pub(crate) lose: bool,
    pub(crate) duplicate: bool,
    pub(crate) slow: Option<u32>,
}

impl Faults {
    /// Returns the faults of the `n`-th invocation. A killed invocation does not also lose its
    /// answer.
    pub(crate) fn of_invocation(&self, n: u64) -> InvocationFaults {
        let hit = |kind: u64, share: f64| share > 0.0 && unit(self.seed, kind, n) < share;
        if hit(0, self.throttle) {
            return InvocationFaults { throttle: true, ..InvocationFaults::default() };
        }
        let span = self.kill_after.end.saturating_sub(self.kill_after.start);
        let kill =
            hit(1, self.kill).then(|| self.kill_after.start + span.mul_f64(unit(self.seed, 2, n)));
        InvocationFaults {
            throttle: false,
            lose: kill.is_none() && hit(3, self.lose),
            kill,
            duplicate: hit(4, self.duplicate),
            slow: hit(5, self.slow).then_some(self.slow_factor.max(1)),
        }
    }
}

/// Returns a pseudorandom number in [0, 1): the SplitMix64 hash (Steele, Lea & Flood, 2014) of the
/// arguments.
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
    fn faults_are_deterministic_and_match_their_rates() {
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
        let all: Vec<InvocationFaults> = (0..20_000).map(|n| faults.of_invocation(n)).collect();
        assert_eq!(all, (0..20_000).map(|n| faults.of_invocation(n)).collect::<Vec<_>>());
        let share = |is: &dyn Fn(&InvocationFaults) -> bool| {
            all.iter().filter(|f| is(f)).count() as f64 / 20_000.0
        };
        for (found, asked) in [
            (share(&|f| f.throttle), 0.1),
            (share(&|f| f.kill.is_some()), 0.045),
            (share(&|f| f.lose), 0.9 * 0.95 * 0.05),
            (share(&|f| f.duplicate), 0.018),
            (share(&|f| f.slow == Some(20)), 0.018),
        ] {
            assert!((found / asked - 1.0).abs() < 0.2, "{found} of {asked}");
        }
        assert!(all.iter().filter_map(|f| f.kill).all(|t| faults.kill_after.contains(&t)));
        assert_ne!(
            all,
            (0..20_000)
                .map(|n| Faults { seed: 8, ..faults.clone() }.of_invocation(n))
                .collect::<Vec<_>>()
        );
        assert!(
            (0..1000).all(|n| Faults::default().of_invocation(n) == InvocationFaults::default())
        );
    }
}
