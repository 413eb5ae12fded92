//! Which request is handed out next.
//!
//! Each stage has a window at the head of its queue; what is in it waits for tasks of earlier
//! stages. Tasks that are run again come before it, and where nobody has anything else to do, a
//! request that takes much longer than others is repeated.

use std::time::Duration;

use super::{Again, Flight, Queue, State, Waiting};
use crate::driver::batching::{MAX_BATCH, MAX_BATCH_BYTES, MAX_BATCH_TIME, REQUESTS_PER_WORKER};
use crate::plan::reads::{TaskRange, tasks_read};
use crate::plan::{Stage, StageId};
use crate::task::TaskRequest;

/// Requests in a stage's window, for each slot and in all.
const WINDOW_PER_SLOT: usize = 4;
const MAX_WINDOW: usize = 64;
/// A request is repeated once it has taken so many times the median of its stage's tasks, if so
/// many of these are finished, and half of them, and it has taken so long at least.
const SLOW: u32 = 3;
const MIN_FINISHED: u64 = 10;
const MIN_SLOW: Duration = Duration::from_millis(250);

impl Queue<'_> {
    /// The next request: of the last stage that has one ready.
    ///
    /// A worker that goes from one stage to another loses its buffers. While those before a stage
    /// have tasks left, it is left alone until each slot can have two requests of it, unless nobody
    /// had anything else to do (`at_once`).
    pub(super) fn next_request(
        &self,
        state: &mut State,
        at_once: bool,
    ) -> Option<(StageId, u64, u64)> {
        for (i, stage) in self.plan.plan().stages.iter().enumerate().rev() {
            let id = StageId(i);
            if self.is_handed_out(state, id) || !self.admits(state, id) {
                continue;
            }
            self.look_ahead(state, id);
            let Some((at, n_ready)) = self.ready(state, id) else {
                state.stages[i].open = false;
                continue;
            };
            let enough = n_ready >= (2 * self.slots).min(state.stages[i].window.len());
            let is_open = at_once
                || enough
                || state.stages[i].open
                || stage.after.iter().all(|s| self.is_handed_out(state, *s));
            if is_open && let Some(Waiting { first, count, .. }) = state.stages[i].window.remove(at)
            {
                state.stages[i].open = true;
                return Some((id, first, count));
            }
        }
        None
    }

    /// The first of the tasks that are run once more which can be: stage, first task, count,
    /// attempt.
    pub(super) fn next_again(&self, state: &mut State) -> Option<(StageId, u64, u64, u32)> {
        let now = self.system().now();
        let mut at = 0;
        while at < state.again.len() {
            let open = |a: &Again| state.stages[a.stage.0].finished.gap(a.first, a.first + a.count);
            let tasks = open(&state.again[at]);
            // Somebody else has finished them meanwhile.
            if tasks.is_empty() {
                state.again.remove(at);
                continue;
            }
            let again = &state.again[at];
            let is_ready = again
                .needs
                .iter()
                .all(|r| state.stages[r.stage.0].finished.contains(r.first, r.end));
            if again.not_before > now || !is_ready || !self.admits(state, again.stage) {
                at += 1;
                continue;
            }
            let Again { stage, first, count, attempt, .. } = *again;
            let (end, rest) = (first + count, tasks.end);
            if rest < end {
                (state.again[at].first, state.again[at].count) = (rest, end - rest);
            } else {
                state.again.remove(at);
            }
            return Some((stage, tasks.start, tasks.end - tasks.start, attempt));
        }
        None
    }

    /// A request that takes much longer than others of its stage, and is not repeated yet.
    pub(super) fn slow(&self, state: &State) -> Option<TaskRequest> {
        if self.run.executor.shares_process() {
            return None;
        }
        // What a task may take, by stage: there may be very many flights.
        let limits: Vec<Option<Duration>> = state
            .stages
            .iter()
            .zip(&self.plan.plan().stages)
            .map(|(stage, of)| {
                let enough = stage.durations.count() >= MIN_FINISHED
                    && 2 * stage.finished.count() >= of.n_tasks();
                enough.then(|| SLOW * stage.durations.median())
            })
            .collect();
        if limits.iter().all(Option::is_none) {
            return None;
        }
        let is_slow = |f: &&Flight| {
            let over = |l: Duration| {
                self.system().elapsed(f.since)
                    > l.saturating_mul(u32::try_from(f.request.count).unwrap_or(u32::MAX))
                        .max(MIN_SLOW)
            };
            f.twin.is_none() && f.wanted && limits[f.request.stage.0].is_some_and(over)
        };
        let slow = state.flights.values().filter(is_slow).min_by_key(|f| f.since)?;
        self.admits(state, slow.request.stage).then(|| slow.request.clone())
    }

    /// Fills a stage's window; leaves it where nothing of it can be ready.
    fn look_ahead(&self, state: &mut State, id: StageId) {
        let stage = &self.plan.plan().stages[id.0];
        let n = stage.n_tasks();
        if !stage
            .after
            .iter()
            .all(|s| state.stages[s.0].finished.count() > 0 || self.is_finished(state, *s))
        {
            return;
        }
        // Towards the end fewer, so that all workers come to it together.
        let workers = self.workers as u64;
        let even = (n / (REQUESTS_PER_WORKER * workers))
            .min((n - state.stages[id.0].next) / (2 * workers));
        // Tasks that keep chunks for each other go together, while every slot gets some.
        let together =
            stage.inner_axis.map_or(1, |d| stage.tasks.axes()[d].n_chunks().min(n / (2 * workers)));
        // Not more than can be done again without much regret.
        let few = (MAX_BATCH_BYTES / self.input_bytes(stage)).min(
            (MAX_BATCH_TIME.as_nanos() / state.stages[id.0].walls.median().as_nanos().max(1))
                as u64,
        );
        let batch = even.max(together).min(few).clamp(1, MAX_BATCH);
        let all = stage.after.iter().all(|s| self.is_finished(state, *s));
        let window = (WINDOW_PER_SLOT * self.slots).min(MAX_WINDOW);
        let progress = &mut state.stages[id.0];
        while progress.window.len() < window && progress.next < n {
            let open = progress.finished.gap(progress.next, n);
            let (first, count) = (open.start, batch.min(open.end - open.start));
            progress.next = first + count;
            if count > 0 {
                let needs = if all {
                    Vec::new()
                } else {
                    tasks_read(self.plan.plan(), &self.writers, id, first..first + count)
                };
                progress.window.push_back(Waiting { first, count, needs });
            }
        }
    }

    /// The place in a stage's window of the first request that is ready, and how many are.
    fn ready(&self, state: &mut State, id: StageId) -> Option<(usize, usize)> {
        let mut window = std::mem::take(&mut state.stages[id.0].window);
        let is_finished = |r: &TaskRange| state.stages[r.stage.0].finished.contains(r.first, r.end);
        let mut found = None;
        for (at, waiting) in window.iter_mut().enumerate() {
            // Each range is found finished once; between that, one look is enough.
            while waiting.needs.last().is_some_and(is_finished) {
                waiting.needs.pop();
            }
            if waiting.needs.is_empty() {
                found = Some(found.map_or((at, 1), |(first, n)| (first, n + 1)));
            }
        }
        state.stages[id.0].window = window;
        found
    }

    /// Bytes that a task of a stage looks at, about.
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
