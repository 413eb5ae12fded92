//! Selection of the next tasks: retries first, then windows, then backups.

use std::time::{Duration, Instant};

use super::state::{InFlight, RetryEntry, Selected, WindowEntry};
use super::{Queue, State};
use crate::driver::batching::{MAX_BATCH, MAX_BATCH_BYTES, MAX_BATCH_TIME, REQUESTS_PER_WORKER};
use crate::plan::reads::{TaskRange, tasks_read};
use crate::plan::{Stage, StageId};

/// The number of requests in a stage's window: per slot, and the maximum.
const WINDOW_PER_SLOT: usize = 4;
const MAX_WINDOW: usize = 64;
/// A request is backed up once it has taken `SLOW` times the median of its stage's tasks, and at
/// least `MIN_SLOW`. At least `MIN_FINISHED` and half of the stage's tasks must be finished.
const SLOW: u32 = 3;
const MIN_FINISHED: u64 = 10;
const MIN_SLOW: Duration = Duration::from_millis(250);

impl Queue<'_> {
    /// Returns the tasks to dispatch next, if any are ready.
    pub(super) fn select(&self, state: &mut State) -> Option<Selected> {
        self.next_retry(state)
            .or_else(|| self.next_request(state, false))
            .or_else(|| self.next_request(state, true))
            .or_else(|| self.next_backup(state))
    }

    /// Returns the next request of the last stage that has one ready.
    ///
    /// A worker that changes stages loses its buffers. Therefore, while earlier stages have
    /// undispatched tasks, a stage waits until each slot can have two of its requests. With
    /// `at_once` it does not wait, because nothing else is ready.
    fn next_request(&self, state: &mut State, at_once: bool) -> Option<Selected> {
        for (i, stage) in self.plan.plan().stages.iter().enumerate().rev() {
            let id = StageId(i);
            if self.is_dispatched(state, id) || !self.admits(state, id) {
                continue;
            }
            self.fill_window(state, id);
            let Some((at, n_ready)) = first_ready(state, id) else {
                state.stages[i].is_open = false;
                continue;
            };
            let enough = n_ready >= (2 * self.slots).min(state.stages[i].window.len());
            let is_open = at_once
                || enough
                || state.stages[i].is_open
                || stage.after.iter().all(|s| self.is_dispatched(state, *s));
            if is_open
                && let Some(WindowEntry { first, count, .. }) = state.stages[i].window.remove(at)
            {
                state.stages[i].is_open = true;
                return Some(Selected { stage: id, first, count, attempt: 0, backup_of: None });
            }
        }
        None
    }

    /// Returns the first retry that is due, ready and admitted.
    fn next_retry(&self, state: &mut State) -> Option<Selected> {
        let now = self.system().now();
        let mut at = 0;
        while at < state.retries.len() {
            let entry = &state.retries[at];
            let tasks =
                state.stages[entry.stage.0].finished.gap(entry.first, entry.first + entry.count);
            // Another request has finished the tasks meanwhile.
            if tasks.is_empty() {
                state.retries.remove(at);
                continue;
            }
            if !self.may_retry(state, entry, now) {
                at += 1;
                continue;
            }
            let RetryEntry { stage, first, count, attempt, .. } = *entry;
            let (end, rest) = (first + count, tasks.end);
            if rest < end {
                (state.retries[at].first, state.retries[at].count) = (rest, end - rest);
            } else {
                state.retries.remove(at);
            }
            let (first, count) = (tasks.start, tasks.end - tasks.start);
            return Some(Selected { stage, first, count, attempt, backup_of: None });
        }
        None
    }

    fn may_retry(&self, state: &State, entry: &RetryEntry, now: Instant) -> bool {
        let is_ready = || entry.needs.iter().all(|r| is_range_finished(state, r));
        entry.not_before <= now && is_ready() && self.admits(state, entry.stage)
    }

    /// Returns the oldest slow request without a backup.
    fn next_backup(&self, state: &State) -> Option<Selected> {
        if self.run.executor.shares_process() {
            return None;
        }
        // Computed by stage, because many requests may be in flight.
        let limits: Vec<Option<Duration>> = state
            .stages
            .iter()
            .zip(&self.plan.plan().stages)
            .map(|(progress, stage)| {
                let enough = progress.durations.count() >= MIN_FINISHED
                    && 2 * progress.finished.count() >= stage.n_tasks();
                enough.then(|| SLOW * progress.durations.median())
            })
            .collect();
        if limits.iter().all(Option::is_none) {
            return None;
        }
        let exceeds = |f: &InFlight, limit: Duration| {
            let n_tasks = u32::try_from(f.request.count).unwrap_or(u32::MAX);
            self.system().elapsed(f.since) > limit.saturating_mul(n_tasks).max(MIN_SLOW)
        };
        let is_slow = |f: &&InFlight| {
            f.twin.is_none()
                && f.is_wanted
                && limits[f.request.stage.0].is_some_and(|limit| exceeds(f, limit))
        };
        let slow = &state.in_flight.values().filter(is_slow).min_by_key(|f| f.since)?.request;
        self.admits(state, slow.stage).then_some(Selected {
            stage: slow.stage,
            first: slow.first,
            count: slow.count,
            attempt: slow.attempt,
            backup_of: Some(slow.id),
        })
    }

    /// Fills a stage's window, unless none of its requests can be ready.
    fn fill_window(&self, state: &mut State, id: StageId) {
        let stage = &self.plan.plan().stages[id.0];
        let n = stage.n_tasks();
        let has_results =
            |s: &StageId| state.stages[s.0].finished.count() > 0 || self.is_finished(state, *s);
        if !stage.after.iter().all(has_results) {
            return;
        }
        let batch = self.batch(state, id);
        let needs_nothing = stage.after.iter().all(|s| self.is_finished(state, *s));
        let window = (WINDOW_PER_SLOT * self.slots).min(MAX_WINDOW);
        let progress = &mut state.stages[id.0];
        while progress.window.len() < window && progress.next < n {
            let unfinished = progress.finished.gap(progress.next, n);
            let (first, count) = (unfinished.start, batch.min(unfinished.end - unfinished.start));
            progress.next = first + count;
            if count > 0 {
                let needs = if needs_nothing {
                    Vec::new()
                } else {
                    tasks_read(self.plan.plan(), &self.writers, id, first..first + count)
                };
                progress.window.push_back(WindowEntry { first, count, needs });
            }
        }
    }

    /// Returns the number of tasks of a stage's next requests.
    fn batch(&self, state: &State, id: StageId) -> u64 {
        let stage = &self.plan.plan().stages[id.0];
        let (n, workers) = (stage.n_tasks(), self.workers as u64);
        // Requests get smaller towards the end, so that all workers finish together.
        let even = (n / (REQUESTS_PER_WORKER * workers))
            .min((n - state.stages[id.0].next) / (2 * workers));
        // Tasks that share cached chunks belong in one request, but each slot needs requests.
        let together =
            stage.inner_axis.map_or(1, |d| stage.tasks.axes()[d].n_chunks().min(n / (2 * workers)));
        // The loss of a request must not cost much.
        let median = state.stages[id.0].walls.median().as_nanos().max(1);
        let limit = (MAX_BATCH_BYTES / self.input_bytes(stage))
            .min((MAX_BATCH_TIME.as_nanos() / median) as u64);
        even.max(together).min(limit).clamp(1, MAX_BATCH)
    }

    /// Returns the approximate bytes that a task of a stage reads.
    fn input_bytes(&self, stage: &Stage) -> u64 {
        let elements = stage.tasks.max_chunk().iter().fold(1u64, |n, len| n.saturating_mul(*len));
        let sizes = stage
            .inputs
            .iter()
            .filter_map(|i| i.sources.first())
            .map(|id| self.plan.plan().array(*id).info.dtype.size() as u64);
        elements.saturating_mul(sizes.sum::<u64>().max(1)).max(1)
    }
}

/// Returns the index of the first ready request of a stage's window, and the number of ready
/// requests.
fn first_ready(state: &mut State, id: StageId) -> Option<(usize, usize)> {
    let mut window = std::mem::take(&mut state.stages[id.0].window);
    let mut found = None;
    for (at, entry) in window.iter_mut().enumerate() {
        // A range that was finished once is not checked again.
        while entry.needs.last().is_some_and(|r| is_range_finished(state, r)) {
            entry.needs.pop();
        }
        if entry.needs.is_empty() {
            found = Some(found.map_or((at, 1), |(first, n)| (first, n + 1)));
        }
    }
    state.stages[id.0].window = window;
    found
}

fn is_range_finished(state: &State, range: &TaskRange) -> bool {
    state.stages[range.stage.0].finished.contains(range.first, range.end)
}
