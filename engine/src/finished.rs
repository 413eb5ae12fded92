//! The set of finished tasks of a stage.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of task numbers, stored as ranges. Its size depends on the number of tasks that finish out
/// of order, not on the number of tasks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finished {
    /// The ranges, by first task, with the task after the last.
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl Finished {
    /// Returns the number of tasks in the set.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Inserts a task. Returns false if it was already in the set.
    pub(crate) fn insert(&mut self, task: u64) -> bool {
        let before = self
            .ranges
            .range(..=task)
            .next_back()
            .map(|(first, end)| (*first, *end))
            .filter(|(_, end)| *end >= task);
        if before.is_some_and(|(_, end)| end > task) {
            return false;
        }
        self.count += 1;
        let end = self.ranges.remove(&(task + 1)).unwrap_or(task + 1);
        self.ranges.insert(before.map_or(task, |(first, _)| first), end);
        true
    }

    /// Removes a task. Returns false if it was not in the set.
    pub(crate) fn remove(&mut self, task: u64) -> bool {
        let Some((first, end)) = self
            .ranges
            .range(..=task)
            .next_back()
            .map(|(first, end)| (*first, *end))
            .filter(|(_, end)| *end > task)
        else {
            return false;
        };
        self.count -= 1;
        self.ranges.remove(&first);
        if first < task {
            self.ranges.insert(first, task);
        }
        if task + 1 < end {
            self.ranges.insert(task + 1, end);
        }
        true
    }

    /// Returns the first range of tasks in `first..end` that are not in the set. Returns an empty
    /// range at `end` if all are.
    pub(crate) fn gap(&self, first: u64, end: u64) -> Range<u64> {
        let covering =
            self.ranges.range(..=first).next_back().map(|(_, end)| *end).filter(|end| *end > first);
        let start = covering.unwrap_or(first).min(end);
        let next = self.ranges.range(start..).next().map_or(end, |(first, _)| (*first).min(end));
        start..next.max(start)
    }

    /// Returns true if all of `first..end` are in the set.
    pub(crate) fn contains(&self, first: u64, end: u64) -> bool {
        first >= end
            || self.ranges.range(..=first).next_back().is_some_and(|(_, last)| *last >= end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn finished_is_a_set(
            tasks in prop::collection::vec((0u64..40, prop::bool::weighted(0.7)), 0..60)
        ) {
            let mut found = Finished::default();
            let mut expect = std::collections::BTreeSet::new();
            for (task, is_inserted) in tasks {
                if is_inserted {
                    prop_assert_eq!(found.insert(task), expect.insert(task));
                } else {
                    prop_assert_eq!(found.remove(task), expect.remove(&task));
                }
                prop_assert_eq!(found.count(), expect.len() as u64);
                let gaps = expect.iter().filter(|t| !expect.contains(&(*t + 1))).count();
                prop_assert_eq!(found.ranges.len(), gaps);
            }
            for first in 0..42 {
                for end in first..42 {
                    let start = (first..end).find(|t| !expect.contains(t)).unwrap_or(end);
                    let stop = (start..end).find(|t| expect.contains(t)).unwrap_or(end);
                    prop_assert_eq!(found.gap(first, end), start..stop);
                    let contains = (first..end).all(|t| expect.contains(&t));
                    prop_assert_eq!(found.contains(first, end), contains);
                }
            }
        }
    }
}
