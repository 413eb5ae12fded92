//! Processing of outcomes: finished tasks are recorded, unstarted tasks return to the queue, failed
//! tasks are retried or end the run.
//!
//! `attempts` decides about retries. If results are damaged or lost, the tasks that wrote them are
//! invalidated, and so are the tasks before these whose results were removed.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::state::{InFlight, PendingEvents, RetryEntry};
use super::{Queue, State};
use crate::driver::RunError;
use crate::driver::attempts::Decision;
use crate::memory::size;
use crate::plan::reads::{TaskRange, tasks_read, tasks_writing};
use crate::plan::{ArrayId, FinalizedPlan, Stage, StageId};
use crate::task::{FailureKind, TaskFailure, TaskOutcome, TaskReport, TaskRequest};

impl Queue<'_> {
    /// Checks that an outcome's receipts name exactly the chunks that the plan assigns to its
    /// tasks.
    pub(super) fn check_receipts(&self, outcome: &TaskOutcome) -> Result<(), RunError> {
        let stage = &self.plan.plan().stages[outcome.request.stage.0];
        for (i, report) in outcome.done.iter().enumerate() {
            let is_next = report.task == outcome.request.first + i as u64;
            if !is_next || !receipts_fit(self.plan, stage, report) {
                let text = format!("task {} of stage `{}`", report.task, stage.name);
                return Err(RunError::Receipts(text));
            }
        }
        Ok(())
    }

    /// Records the finished tasks of an outcome.
    pub(super) fn record_finished(
        &self,
        state: &mut State,
        outcome: &TaskOutcome,
        in_flight: &InFlight,
        events: &mut PendingEvents,
    ) {
        let stage = &self.plan.plan().stages[outcome.request.stage.0];
        let progress = &mut state.stages[outcome.request.stage.0];
        for report in &outcome.done {
            if progress.finished.insert(report.task) {
                events.counted += 1;
                state.receipts.extend(self.receipt_filter.select(&report.receipts));
                for output in &stage.outputs {
                    if let Some(rewritten) = state.removed.get_mut(&output.array) {
                        rewritten.insert(report.task);
                    }
                }
            }
            progress.walls.add(Duration::from_nanos(report.wall_ns), 1);
            progress.report.traffic.add(report.traffic);
            progress.report.cpu += Duration::from_nanos(report.cpu_ns);
            progress.report.peak_bytes = progress.report.peak_bytes.max(report.peak_bytes);
        }
        if let (Ok(n @ 1..), None) = (u32::try_from(outcome.done.len()), &outcome.failure) {
            progress.durations.add(self.system().elapsed(in_flight.since) / n, u64::from(n));
        }
        if let Some(twin) = in_flight.twin.and_then(|id| state.in_flight.get_mut(&id)) {
            let TaskRequest { first, count, .. } = twin.request;
            if progress.finished.contains(first, first + count) {
                twin.is_wanted = false;
                state.backups[1] += u64::from(outcome.request.backup_of.is_some());
            }
        }
    }

    /// Requeues the tasks that a worker did not start. They keep their attempt number.
    pub(super) fn requeue_unstarted(&self, state: &mut State, outcome: &TaskOutcome) {
        let request = &outcome.request;
        let first = request.first + outcome.done.len() as u64;
        self.requeue(state, outcome, first..request.first + request.count, self.system().now());
    }

    /// Requeues tasks of an outcome's request, if there are any.
    fn requeue(&self, state: &mut State, outcome: &TaskOutcome, tasks: Range<u64>, now: Instant) {
        if tasks.start < tasks.end {
            state.retries.push_back(RetryEntry {
                not_before: now,
                stage: outcome.request.stage,
                first: tasks.start,
                count: tasks.end - tasks.start,
                attempt: outcome.request.attempt,
                needs: Vec::new(),
            });
        }
    }

    /// Schedules a retry of a failed request's unfinished tasks, or ends the run.
    pub(super) fn handle_failure(
        &self,
        state: &mut State,
        outcome: &TaskOutcome,
        failure: &TaskFailure,
        twin: Option<u64>,
        events: &mut PendingEvents,
    ) {
        let request = &outcome.request;
        if matches!(failure.kind, FailureKind::Cancelled | FailureKind::Superseded) {
            return;
        }
        let decision = state.attempts.decide(request.stage, failure, &outcome.worker);
        let (attempt, delay) = match decision {
            Decision::Retry { attempt, delay } => (attempt, delay),
            Decision::Stop { failure, attempts, mut note } => {
                if failure.kind == FailureKind::OutOfMemory {
                    let projected = self.plan.layout(request.stage).estimate.total();
                    note = format!("{note}; projected {}", size(projected));
                }
                return self.fail_locked(state, RunError::Task { failure, attempts, note });
            }
        };
        // The twin runs the same tasks, and may get another backup.
        if let Some(twin) = twin.and_then(|id| state.in_flight.get_mut(&id)) {
            twin.twin = None;
            return;
        }
        events.retried = Some((attempt, delay));
        let mut needs = Vec::new();
        if let FailureKind::Damaged { array, object } = failure.kind {
            let plan = self.plan.plan();
            for tasks in tasks_writing(plan, &self.writers, array, object) {
                self.invalidate(state, tasks, events);
            }
            let task = failure.task..failure.task + 1;
            needs = tasks_read(plan, &self.writers, request.stage, task);
        }
        let now = self.system().now();
        // The failed task is retried alone, so that the others do not wait for its delay.
        state.retries.push_back(RetryEntry {
            not_before: now + delay,
            stage: request.stage,
            first: failure.task,
            count: 1,
            attempt,
            needs,
        });
        self.requeue(state, outcome, failure.task + 1..request.first + request.count, now);
    }

    /// Marks finished tasks as unfinished, because their results are damaged or lost. Also marks
    /// the tasks whose results they read and that were removed.
    fn invalidate(&self, state: &mut State, tasks: TaskRange, events: &mut PendingEvents) {
        let plan = self.plan.plan();
        let mut todo = vec![tasks];
        while let Some(TaskRange { stage, first, end }) = todo.pop() {
            for task in first..end {
                if !state.stages[stage.0].finished.remove(task) {
                    continue;
                }
                state.recomputed += 1;
                *events.recomputed.entry(stage).or_default() += 1;
                for output in &plan.stages[stage.0].outputs {
                    if let Some(rewritten) = state.removed.get_mut(&output.array) {
                        rewritten.remove(task);
                    }
                }
                let needs = tasks_read(plan, &self.writers, stage, task..task + 1);
                for need in &needs {
                    todo.extend(self.removed_results(state, stage, need));
                }
                state.retries.push_back(RetryEntry {
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

    /// Returns the tasks of a range whose results `reader` reads and that were removed and not
    /// rewritten, each as a range of its own.
    fn removed_results(&self, state: &State, reader: StageId, tasks: &TaskRange) -> Vec<TaskRange> {
        let stages = &self.plan.plan().stages;
        let reads = |id: &ArrayId| stages[reader.0].inputs.iter().any(|i| i.sources.contains(id));
        let removed: Vec<_> = stages[tasks.stage.0]
            .outputs
            .iter()
            .filter(|o| reads(&o.array))
            .filter_map(|o| state.removed.get(&o.array))
            .collect();
        let is_removed =
            |task: &u64| removed.iter().any(|rewritten| !rewritten.contains(*task, task + 1));
        (tasks.first..tasks.end)
            .filter(is_removed)
            .map(|task| TaskRange { stage: tasks.stage, first: task, end: task + 1 })
            .collect()
    }
}

/// Returns true if a task's receipts name exactly the chunks that the plan assigns to it.
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
        let written = report.receipts.iter().filter(|r| r.array == output.array);
        let mut seen: Vec<u64> = written.map(|r| r.chunk).collect();
        seen.sort_unstable();
        seen.dedup();
        let is_inside = |c: &u64| {
            *c < grid.n_chunks()
                && grid
                    .coords(*c)
                    .iter()
                    .zip(chunks.start.iter().zip(&chunks.shape))
                    .all(|(c, (s, n))| s <= c && *c < s + n)
        };
        if seen.len() as u64 != chunks.n_elements() || !seen.iter().all(is_inside) {
            return false;
        }
        left = left.saturating_sub(seen.len() as u64);
    }
    left == 0
}
