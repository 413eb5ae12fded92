//! The queue of a run's tasks.
//!
//! Each stage has a window at the head of its queue: requests, each with the task ranges of earlier
//! stages that it needs. A request is ready once these tasks are finished. Requests of later stages
//! come first, so that few intermediates exist at a time. Retries of tasks that failed, or whose
//! results were lost, come before the windows. A request that takes much longer than others is
//! dispatched a second time, as a backup.
//!
//! This module has the queue as executors see it. `state` defines the state of tasks, `next`
//! selects the tasks to dispatch, `outcomes` processes outcomes, `intermediates` removes
//! intermediates, and `memory` compares measured memory with its projection.

mod intermediates;
mod memory;
mod next;
mod outcomes;
mod state;

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::attempts::{Attempts, Policy};
use super::recovery::{ReceiptFilter, Recovered};
use super::{Run, RunError};
use crate::events::Event;
use crate::executor::{Next, TaskSource};
use crate::journal::Journal;
use crate::plan::reads::writers;
use crate::plan::{ArrayId, FinalizedPlan, LocalMemory, Stage, StageId};
use crate::storage::Store;
use crate::system::System;
use crate::task::{TaskOutcome, TaskRequest};
use crate::worker::Cancel;

use memory::MemoryWatch;
pub(super) use outcomes::receipts_fit;
use state::{InFlight, PendingEvents, Selected, State};

/// The minimum number of retries of a run. Longer runs have half as many as they have tasks.
const MIN_RETRIES: u64 = 200;
/// The longest wait of an executor for a change. A delayed retry and a cancellation send no signal.
const MAX_WAIT: Duration = Duration::from_millis(20);

/// A run's folder in the work directory.
#[derive(Clone, Copy)]
pub(super) struct RunFolder<'a> {
    /// The store of the intermediates: the work directory, or a memory tier over it.
    pub(super) intermediates: &'a dyn Store,
    pub(super) name: &'a str,
    /// The journal; `None` if the run cannot be resumed.
    pub(super) journal: Option<&'a Journal>,
}

/// The memory of the processes that run tasks.
#[derive(Clone, Copy)]
pub(super) struct MemoryBudget {
    pub(super) local: LocalMemory,
    /// The bytes that concurrent tasks may hold together.
    pub(super) task_bytes: u64,
}

/// The unfinished tasks of a run and the state of the others.
pub(super) struct Queue<'a> {
    plan: &'a FinalizedPlan,
    run: &'a Run<'a>,
    local: LocalMemory,
    task_bytes: u64,
    slots: usize,
    workers: usize,
    folder: RunFolder<'a>,
    /// The writer of each array: a stage and the index of its output.
    writers: Vec<Option<(StageId, usize)>>,
    receipt_filter: ReceiptFilter,
    memory: Option<MemoryWatch>,
    /// Stops running tasks once the run is cancelled or has failed.
    stop: Cancel,
    state: Mutex<State>,
    changed: Condvar,
}

impl<'a> Queue<'a> {
    pub(super) fn new(
        plan: &'a FinalizedPlan,
        run: &'a Run<'a>,
        budget: MemoryBudget,
        folder: RunFolder<'a>,
        stop: Cancel,
        mut recovered: Recovered,
    ) -> Queue<'a> {
        let writers = writers(plan.plan());
        invalidate_removed(plan, &writers, &mut recovered);
        let n_tasks = plan.plan().stages.iter().map(Stage::n_tasks).fold(0, u64::saturating_add);
        let attempts = Attempts::new(Policy {
            retries: run.spec.retries,
            budget: (n_tasks / 2).max(MIN_RETRIES),
            seed: xxhash_rust::xxh3::xxh3_64(folder.name.as_bytes()),
        });
        Queue {
            plan,
            run,
            local: budget.local,
            task_bytes: budget.task_bytes,
            slots: run.executor.slots(),
            workers: run.executor.workers(),
            folder,
            writers,
            receipt_filter: ReceiptFilter::new(plan, run.publisher),
            memory: None,
            stop,
            state: Mutex::new(State::new(plan, attempts, recovered)),
            changed: Condvar::new(),
        }
    }

    /// Returns the clock and the random numbers of the run.
    pub(super) fn system(&self) -> &System {
        self.run.stores.system()
    }

    /// Returns true if all tasks are finished and the run has not failed.
    pub(super) fn is_done(&self) -> bool {
        let state = self.lock();
        state.error.is_none()
            && (0..state.stages.len()).all(|i| self.is_finished(&state, StageId(i)))
    }

    /// Returns the number of finished tasks of each stage.
    pub(super) fn finished_tasks(&self) -> Vec<u64> {
        self.lock().stages.iter().map(|s| s.finished.count()).collect()
    }

    /// Ends the run with an error. The first error counts.
    pub(super) fn fail(&self, error: RunError) {
        self.fail_locked(&mut self.lock(), error);
        self.changed.notify_all();
    }

    fn fail_locked(&self, state: &mut State, error: RunError) {
        state.error.get_or_insert(error);
        self.stop.cancel();
    }

    pub(super) fn into_state(self) -> State {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, event: &Event<'_>) {
        self.run.observers.iter().for_each(|o| o.on_event(event));
    }

    /// Returns the projected bytes of a running task of a stage.
    fn bytes(&self, stage: StageId) -> u64 {
        self.local.bytes(self.plan, stage)
    }

    /// Returns true if the memory budget admits another request of a stage.
    fn admits(&self, state: &State, stage: StageId) -> bool {
        state.in_flight_bytes + self.bytes(stage) <= self.task_bytes
    }

    /// Returns true if all tasks of a stage are finished.
    fn is_finished(&self, state: &State, stage: StageId) -> bool {
        state.stages[stage.0].finished.count() == self.plan.plan().stages[stage.0].n_tasks()
    }

    /// Returns true if every task of a stage was dispatched at least once.
    fn is_dispatched(&self, state: &State, stage: StageId) -> bool {
        let progress = &state.stages[stage.0];
        progress.window.is_empty() && progress.next >= self.plan.plan().stages[stage.0].n_tasks()
    }

    /// Adds selected tasks to the requests in flight.
    fn dispatch(&self, state: &mut State, selected: Selected) -> TaskRequest {
        let Selected { stage, first, count, attempt, backup_of } = selected;
        state.last_id += 1;
        let id = state.last_id;
        let timeout_ms = self.run.spec.task_timeout.map(|t| t.as_millis() as u64);
        let request = TaskRequest { id, stage, first, count, attempt, backup_of, timeout_ms };
        state.in_flight_bytes += self.bytes(stage);
        state.backups[0] += u64::from(backup_of.is_some());
        if let Some(slow) = backup_of.and_then(|id| state.in_flight.get_mut(&id)) {
            slow.twin = Some(id);
        }
        let in_flight = InFlight {
            request: request.clone(),
            since: self.system().now(),
            twin: backup_of,
            is_wanted: true,
        };
        state.in_flight.insert(id, in_flight);
        request
    }

    /// Updates the state by an outcome. Returns the intermediates to remove.
    fn process(&self, outcome: &TaskOutcome, events: &mut PendingEvents) -> Option<Vec<ArrayId>> {
        let id = outcome.request.stage;
        let checked = self
            .check_receipts(outcome)
            .and_then(|()| self.folder.journal.map_or(Ok(()), |journal| journal.done(outcome)));
        let measured = self.measured_peak(outcome);
        let mut state = self.lock();
        // A request is unknown if it was returned before.
        let in_flight = state.in_flight.remove(&outcome.request.id)?;
        state.in_flight_bytes -= self.bytes(id);
        state.worker_peak_bytes = state.worker_peak_bytes.max(outcome.worker_peak_bytes);
        events.memory_excess = self.check_memory(&mut state, outcome, measured);
        match checked {
            Err(error) => self.fail_locked(&mut state, error),
            Ok(()) => self.record_finished(&mut state, outcome, &in_flight, events),
        }
        let mut unneeded = Vec::new();
        if self.is_finished(&state, id) && events.counted > 0 {
            events.is_stage_ended = !std::mem::replace(&mut state.stages[id.0].is_ended, true);
            unneeded = self.unneeded_intermediates(&mut state, id);
        }
        match &outcome.failure {
            Some(failure) => {
                self.handle_failure(&mut state, outcome, failure, in_flight.twin, events)
            }
            None => self.requeue_unstarted(&mut state, outcome),
        }
        Some(unneeded)
    }

    /// Notifies observers of an outcome and its events.
    fn notify_outcome(&self, outcome: &TaskOutcome, events: &PendingEvents) {
        self.notify(&Event::Outcome { outcome, counted: events.counted });
        if let Some(excess) = &events.memory_excess {
            self.notify(&Event::MemoryExceeded(excess));
        }
        if let (Some(failure), Some((attempt, delay))) = (&outcome.failure, events.retried) {
            self.notify(&Event::Retried { failure, attempt, delay });
        }
        let why = outcome.failure.as_ref().map_or("", |f| &f.message);
        for (stage, tasks) in &events.recomputed {
            self.notify(&Event::Recomputed { stage: *stage, tasks: *tasks, why });
        }
        if events.is_stage_ended {
            self.notify(&Event::StageEnded { stage: outcome.request.stage });
        }
    }
}

impl TaskSource for Queue<'_> {
    fn try_next(&self) -> Next {
        let mut state = self.lock();
        if self.stop.is_cancelled() {
            return if state.in_flight.is_empty() { Next::Stop } else { Next::Wait };
        }
        let Some(selected) = self.select(&mut state) else {
            let mut stages = (0..state.stages.len()).map(StageId);
            let is_exhausted =
                state.retries.is_empty() && stages.all(|id| self.is_dispatched(&state, id));
            let is_over = is_exhausted && state.in_flight.is_empty();
            return if is_over { Next::Stop } else { Next::Wait };
        };
        let stage = selected.stage;
        let request = self.dispatch(&mut state, selected);
        let is_first = !std::mem::replace(&mut state.stages[stage.0].is_started, true);
        drop(state);
        if is_first {
            self.notify(&Event::StageStarted { stage });
        }
        self.notify(&Event::Started { request: &request });
        Next::Run(request)
    }

    fn wait(&self) {
        let state = self.lock();
        if !state.in_flight.is_empty() || !state.retries.is_empty() {
            let wait = self.system().clock.wait_bound(MAX_WAIT);
            drop(self.changed.wait_timeout(state, wait));
        }
    }

    fn is_wanted(&self, request: &TaskRequest) -> bool {
        !self.stop.is_cancelled()
            && self.lock().in_flight.get(&request.id).is_some_and(|f| f.is_wanted)
    }

    fn finished(&self, outcome: TaskOutcome) {
        let mut events = PendingEvents::default();
        let Some(unneeded) = self.process(&outcome, &mut events) else { return };
        self.remove(&unneeded);
        self.changed.notify_all();
        self.notify_outcome(&outcome, &events);
    }
}

/// Marks tasks of a resumed run as unfinished if their results were removed and a stage that reads
/// them has unfinished tasks. Only a second fault causes this: a removed intermediate has no
/// readers.
fn invalidate_removed(
    plan: &FinalizedPlan,
    writers: &[Option<(StageId, usize)>],
    recovered: &mut Recovered,
) {
    for (i, stage) in plan.plan().stages.iter().enumerate().rev() {
        if recovered.finished.get(i).is_none_or(|f| f.count() == stage.n_tasks()) {
            continue;
        }
        for id in stage.inputs.iter().flat_map(|i| &i.sources) {
            if let (Some(rewritten), Some((writer, _))) =
                (recovered.removed.remove(id), writers[id.0])
            {
                recovered.finished[writer.0] = rewritten;
            }
        }
    }
}
