//! What becomes of an outcome: finished tasks count, what is left goes back into the queue, and
//! what nobody reads any more may go.
//!
//! Who is to blame for a failure, and whether it is tried again, `attempts` decides. Where results
//! are damaged or gone, the tasks that made them are taken back, and those before these whose
//! results were removed.

use std::time::Duration;

use super::{Again, Flight, Queue, State, Told};
use crate::driver::RunError;
use crate::driver::attempts::Decision;
use crate::finished::Finished;
use crate::memory::size;
use crate::plan::reads::{TaskRange, tasks_read, tasks_writing};
use crate::plan::{ArrayId, FinalizedPlan, Place, Stage, StageId};
use crate::task::{FailureKind, TaskFailure, TaskOutcome, TaskReport};

impl Queue<'_> {
    /// The tasks' receipts name exactly the chunks that the plan gives to them.
    pub(super) fn check_receipts(&self, outcome: &TaskOutcome) -> Result<(), RunError> {
        let stage = &self.plan.plan().stages[outcome.request.stage.0];
        for (i, report) in outcome.done.iter().enumerate() {
            if report.task != outcome.request.first + i as u64
                || !receipts_fit(self.plan, stage, report)
            {
                return Err(RunError::Receipts(format!(
                    "task {} of stage `{}`",
                    report.task, stage.name
                )));
            }
        }
        Ok(())
    }

    /// Takes note of an outcome's finished tasks.
    pub(super) fn count(
        &self,
        state: &mut State,
        outcome: &TaskOutcome,
        flight: &Flight,
        told: &mut Told,
    ) {
        let stage = &self.plan.plan().stages[outcome.request.stage.0];
        let progress = &mut state.stages[outcome.request.stage.0];
        for report in &outcome.done {
            if progress.finished.insert(report.task) {
                told.counted += 1;
                state.receipts.extend(self.kept.of_outputs(&report.receipts));
                for output in &stage.outputs {
                    state.removed.get_mut(&output.array).map(|again| again.insert(report.task));
                }
            }
            progress.walls.add(Duration::from_nanos(report.wall_ns), 1);
            progress.report.traffic.add(report.traffic);
            progress.report.cpu += Duration::from_nanos(report.cpu_ns);
            progress.report.peak_bytes = progress.report.peak_bytes.max(report.peak_bytes);
        }
        if let (Ok(n @ 1..), None) = (u32::try_from(outcome.done.len()), &outcome.failure) {
            progress.durations.add(self.system().elapsed(flight.since) / n, u64::from(n));
        }
        if let Some(twin) = flight.twin.and_then(|id| state.flights.get_mut(&id))
            && progress
                .finished
                .contains(twin.request.first, twin.request.first + twin.request.count)
        {
            twin.wanted = false;
            state.backups[1] += u64::from(outcome.request.backup_of.is_some());
        }
    }

    /// The intermediates that a stage read and that no other stage will. Those that the journal has
    /// nothing of are removed by the caller, the others after the next flush.
    pub(super) fn superseded(&self, state: &mut State, ended: StageId) -> Vec<ArrayId> {
        let plan = self.plan.plan();
        let mut read: Vec<ArrayId> =
            plan.stages[ended.0].inputs.iter().flat_map(|i| i.sources.iter().copied()).collect();
        read.sort_unstable();
        read.dedup();
        read.retain(|id| {
            let is_there = state.removed.get(id).is_none_or(|again| again.count() > 0)
                && !state.removing.contains(id);
            plan.array(*id).place == Place::Work && is_there && self.is_read_by_all(state, *id)
        });
        if let Some(journal) = self.folder.journal
            && let Err(error) = read.iter().try_for_each(|id| journal.removed(*id))
        {
            self.fail_in(state, error);
            return Vec::new();
        }
        let (later, now): (Vec<ArrayId>, Vec<ArrayId>) = read
            .into_iter()
            .partition(|id| self.writers[id.0].is_some_and(|w| state.stages[w.0.0].journaled));
        state.removing.extend(later);
        now.iter().for_each(|id| drop(state.removed.insert(*id, Finished::default())));
        now
    }

    /// Tasks that a worker has not come to are nobody's fault: they are handed out again as they
    /// were.
    pub(super) fn given_back(&self, state: &mut State, outcome: &TaskOutcome) {
        let request = &outcome.request;
        let (first, end) =
            (request.first + outcome.done.len() as u64, request.first + request.count);
        if first < end {
            let again = Again {
                not_before: self.system().now(),
                stage: request.stage,
                first,
                count: end - first,
                attempt: request.attempt,
                needs: Vec::new(),
            };
            state.again.push_back(again);
        }
    }

    /// Puts what a failed request left undone back, or ends the run.
    pub(super) fn failed(
        &self,
        state: &mut State,
        outcome: &TaskOutcome,
        failure: &TaskFailure,
        twin: Option<u64>,
        told: &mut Told,
    ) {
        let request = &outcome.request;
        if matches!(failure.kind, FailureKind::Cancelled | FailureKind::Superseded) {
            return;
        }
        // What another worker is at, too, is left to it.
        let in_hand = twin.is_some_and(|id| state.flights.contains_key(&id));
        let decision = state.attempts.decide(request.stage, failure, &outcome.worker);
        let (attempt, delay) = match decision {
            Decision::Again { attempt, delay } => (attempt, delay),
            Decision::Stop { failure, attempts, mut note } => {
                if failure.kind == FailureKind::OutOfMemory {
                    let projected = self.plan.layout(request.stage).estimate.total();
                    note = format!("{note}; projected {}", size(projected));
                }
                return self.fail_in(state, RunError::Task { failure, attempts, note });
            }
        };
        if in_hand {
            // It may be repeated once more.
            if let Some(other) = twin.and_then(|id| state.flights.get_mut(&id)) {
                other.twin = None;
            }
            return;
        }
        told.retried = Some((attempt, delay));
        let mut needs = Vec::new();
        if let FailureKind::Damaged { array, object } = failure.kind {
            for r in tasks_writing(self.plan.plan(), &self.writers, array, object) {
                self.take_back(state, r, told);
            }
            needs = tasks_read(
                self.plan.plan(),
                &self.writers,
                request.stage,
                failure.task..failure.task + 1,
            );
        }
        let (now, end) = (self.system().now(), request.first + request.count);
        // The task that failed alone, so that what comes after it does not wait for its next
        // failure.
        state.again.push_back(Again {
            not_before: now + delay,
            stage: request.stage,
            first: failure.task,
            count: 1,
            attempt,
            needs,
        });
        if failure.task + 1 < end {
            let (first, count) = (failure.task + 1, end - failure.task - 1);
            state.again.push_back(Again {
                not_before: now,
                stage: request.stage,
                first,
                count,
                attempt: request.attempt,
                needs: Vec::new(),
            });
        }
    }

    /// Finished tasks are so no more, because what they wrote is damaged or gone; nor are those
    /// whose results they read and that were removed.
    fn take_back(&self, state: &mut State, tasks: TaskRange, told: &mut Told) {
        let plan = self.plan.plan();
        let mut todo = vec![tasks];
        while let Some(TaskRange { stage, first, end }) = todo.pop() {
            for task in first..end {
                if !state.stages[stage.0].finished.remove(task) {
                    continue;
                }
                state.recomputed += 1;
                *told.recomputed.entry(stage).or_default() += 1;
                for output in &plan.stages[stage.0].outputs {
                    state.removed.get_mut(&output.array).map(|again| again.remove(task));
                }
                let needs = tasks_read(plan, &self.writers, stage, task..task + 1);
                for need in &needs {
                    let reads = |id: &ArrayId| {
                        plan.stages[stage.0].inputs.iter().any(|i| i.sources.contains(id))
                    };
                    let gone: Vec<ArrayId> = plan.stages[need.stage.0]
                        .outputs
                        .iter()
                        .map(|o| o.array)
                        .filter(|id| reads(id) && state.removed.contains_key(id))
                        .collect();
                    for t in need.first..need.end {
                        if gone.iter().any(|id| {
                            state.removed.get(id).is_some_and(|again| !again.contains(t, t + 1))
                        }) {
                            todo.push(TaskRange { stage: need.stage, first: t, end: t + 1 });
                        }
                    }
                }
                state.again.push_back(Again {
                    not_before: self.system().now(),
                    stage,
                    first: task,
                    count: 1,
                    attempt: 0,
                    needs,
                });
            }
        }
    }
}

/// A task's receipts name exactly the chunks that the plan gives to it.
pub(in crate::driver) fn receipts_fit(
    plan: &FinalizedPlan,
    stage: &Stage,
    report: &TaskReport,
) -> bool {
    let coords = stage.task_coords(report.task);
    let mut left = report.receipts.len() as u64;
    for output in &stage.outputs {
        let grid = plan.plan().array(output.array).info.objects();
        let chunks = grid.overlapping(&stage.output_region(output, &coords));
        let mine = report.receipts.iter().filter(|r| r.array == output.array);
        let mut seen: Vec<u64> = mine.map(|r| r.chunk).collect();
        seen.sort_unstable();
        seen.dedup();
        let inside = |c: &u64| {
            *c < grid.n_chunks()
                && grid
                    .coords(*c)
                    .iter()
                    .zip(chunks.start.iter().zip(&chunks.shape))
                    .all(|(c, (s, n))| s <= c && *c < s + n)
        };
        if seen.len() as u64 != chunks.n_elements() || !seen.iter().all(inside) {
            return false;
        }
        left = left.saturating_sub(seen.len() as u64);
    }
    left == 0
}
