//! Which tasks of a stage are finished.

use std::collections::BTreeMap;

/// A set of task numbers, as ranges: as many as there were tasks under way out of order, whatever the number of tasks.
#[derive(Debug, Default)]
pub(super) struct Finished {
    /// First task and the one after the last.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl Finished {
    /// Number of tasks.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn insert(&mut self, task: u64) {
        let before = self.ranges.range(..=task).next_back().map(|(first, end)| (*first, *end)).filter(|(_, end)| *end >= task);
        if before.is_some_and(|(_, end)| end > task) {
            return;
        }
        self.count += 1;
        let end = self.ranges.remove(&(task + 1)).unwrap_or(task + 1);
        self.ranges.insert(before.map_or(task, |(first, _)| first), end);
    }

    /// True if it has all of `first..end`.
    pub(super) fn contains(&self, first: u64, end: u64) -> bool {
        first >= end || self.ranges.range(..=first).next_back().is_some_and(|(_, last)| *last >= end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(tasks in prop::collection::vec(0u64..40, 0..60)) {
            let mut found = Finished::default();
            let mut expect = std::collections::BTreeSet::new();
            for task in tasks {
                found.insert(task);
                expect.insert(task);
                prop_assert_eq!(found.count(), expect.len() as u64);
                let gaps = expect.iter().filter(|t| !expect.contains(&(*t + 1))).count();
                prop_assert_eq!(found.ranges.len(), gaps);
            }
            for first in 0..42 {
                for end in first..42 {
                    prop_assert_eq!(found.contains(first, end), (first..end).all(|t| expect.contains(&t)));
                }
            }
        }
    }
}
