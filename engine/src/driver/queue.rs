//! Which tasks are next.
//!
//! Each stage has a window at the head of its queue: requests with what they wait for, as ranges of
//! tasks of earlier stages. A request is ready when these are finished. Requests of later stages
//! come first, so that little lies between stages at any time. Tasks that failed, or whose results
//! got lost, stand in a line of their own before them; a request that takes much longer than others
//! is handed out a second time.
//!
//! Here is what is known of tasks, and the queue as executors see it; `next` chooses what is handed
//! out, `outcomes` takes note of what comes back.

mod next;
mod outcomes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::attempts::{Attempts, Policy};
use super::durations::Durations;
use super::{Before, Kept, Run, RunError};
use crate::events::{Event, MemoryExcess, StageReport};
use crate::executor::{Next, TaskSource};
use crate::finished::Finished;
use crate::journal::Journal;
use crate::machine;
use crate::plan::reads::{TaskRange, writers};
use crate::plan::{ArrayId, FinalizedPlan, LocalMemory, Stage, StageId};
use crate::storage::{StorageError, Store};
use crate::system::System;
use crate::task::{Receipt, TaskOutcome, TaskRequest};
use crate::worker::Cancel;

pub(super) use outcomes::receipts_fit;

/// So many tries of failed tasks a run has at least; longer ones have half as many as they have
/// tasks.
const MIN_BUDGET: u64 = 200;

/// The run's folder in the work directory.
#[derive(Clone, Copy)]
pub(super) struct Folder<'a> {
    /// Where intermediates are: the work directory, or a memory tier over it.
    pub(super) between: &'a dyn Store,
    pub(super) name: &'a str,
    /// None where nothing could be resumed.
    pub(super) journal: Option<&'a Journal>,
}

/// The tasks that are left, and what is known of those that are not.
pub(super) struct Queue<'a> {
    plan: &'a FinalizedPlan,
    run: &'a Run<'a>,
    local: LocalMemory,
    /// Bytes that tasks may hold together.
    room: u64,
    slots: usize,
    workers: usize,
    folder: Folder<'a>,
    /// For each array, who writes it.
    writers: Vec<Option<(StageId, usize)>>,
    kept: Kept,
    /// Bytes that a process that runs tasks is projected to hold, and those that it is not to be
    /// measured beyond.
    memory: Option<[u64; 2]>,
    /// Ends what is under way: because the run is cancelled, or because it has failed.
    stop: Cancel,
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) struct State {
    pub(super) stages: Vec<Progress>,
    again: VecDeque<Again>,
    flights: HashMap<u64, Flight>,
    in_flight_bytes: u64,
    next_id: u64,
    pub(super) attempts: Attempts,
    pub(super) backups: [u64; 2],
    pub(super) recomputed: u64,
    /// Removed intermediates, and the tasks that have written theirs again since.
    removed: BTreeMap<ArrayId, Finished>,
    /// Of the outputs' chunks, where the commit is made of them; of a task that was run again,
    /// twice.
    pub(super) receipts: Vec<Receipt>,
    /// Intermediates that nobody reads any more, to be removed once the journal says so.
    removing: Vec<ArrayId>,
    pub(super) worker_peak_bytes: Option<u64>,
    pub(super) memory_excess: Option<MemoryExcess>,
    pub(super) error: Option<RunError>,
}

pub(super) struct Progress {
    /// First task that is in no request yet.
    next: u64,
    /// The requests that come next.
    window: VecDeque<Waiting>,
    started: bool,
    /// Its requests are handed out as long as some are ready.
    open: bool,
    ended: bool,
    /// The journal may say of its tasks that they are finished.
    journaled: bool,
    pub(super) finished: Finished,
    /// From handing out to outcome, of each task.
    durations: Durations,
    /// Of tasks alone, as workers say.
    walls: Durations,
    pub(super) report: StageReport,
}

/// A request that is under way.
struct Flight {
    request: TaskRequest,
    since: Instant,
    /// The other one of a slow request and its backup.
    twin: Option<u64>,
    wanted: bool,
}

/// Tasks that are run once more.
struct Again {
    not_before: Instant,
    stage: StageId,
    first: u64,
    count: u64,
    attempt: u32,
    needs: Vec<TaskRange>,
}

/// What observers are told once nobody waits for the state.
#[derive(Default)]
struct Told {
    counted: u64,
    retried: Option<(u32, Duration)>,
    /// Finished tasks of stages that are run once more.
    recomputed: BTreeMap<StageId, u64>,
    ended: bool,
    memory_excess: Option<MemoryExcess>,
}

/// A request in a window.
struct Waiting {
    first: u64,
    count: u64,
    /// What was not finished when last looked at.
    needs: Vec<TaskRange>,
}

impl<'a> Queue<'a> {
    pub(super) fn new(
        plan: &'a FinalizedPlan,
        run: &'a Run<'a>,
        local: LocalMemory,
        room: u64,
        folder: Folder<'a>,
        stop: Cancel,
        before: Before,
    ) -> Queue<'a> {
        let mut before = before;
        let n_tasks = plan.plan().stages.iter().map(Stage::n_tasks).fold(0, u64::saturating_add);
        let writers = writers(plan.plan());
        forget_what_is_gone(plan, &writers, &mut before);
        before.finished.resize_with(plan.plan().stages.len(), Finished::default);
        let stages =
            plan.stages().zip(before.finished).map(|((_, stage, layout), finished)| Progress {
                next: 0,
                window: VecDeque::new(),
                started: false,
                open: false,
                ended: finished.count() == stage.n_tasks(),
                journaled: finished.count() > 0,
                finished,
                durations: Durations::default(),
                walls: Durations::default(),
                report: StageReport {
                    name: stage.name.clone(),
                    tasks: stage.n_tasks(),
                    projected_bytes: layout.estimate.total(),
                    ..StageReport::default()
                },
            });
        let policy = Policy {
            retries: run.spec.retries,
            budget: (n_tasks / 2).max(MIN_BUDGET),
            seed: xxhash_rust::xxh3::xxh3_64(folder.name.as_bytes()),
        };
        let state = State {
            stages: stages.collect(),
            again: VecDeque::new(),
            flights: HashMap::new(),
            in_flight_bytes: 0,
            next_id: 0,
            attempts: Attempts::new(policy),
            backups: [0; 2],
            recomputed: 0,
            removed: before.removed,
            receipts: before.receipts,
            removing: Vec::new(),
            worker_peak_bytes: None,
            memory_excess: None,
            error: None,
        };
        let kept = Kept::of(plan, run.session);
        Queue {
            plan,
            run,
            local,
            room,
            slots: run.executor.slots(),
            workers: run.executor.workers(),
            folder,
            writers,
            kept,
            memory: None,
            stop,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Watches the memory of processes that run tasks, which are projected to hold so many bytes.
    /// Machines far away are left to themselves.
    pub(super) fn watch_memory(&mut self, projected: u64) {
        if self.run.executor.is_remote() {
            return;
        }
        let more = if self.run.executor.shares_process() {
            // What the program held before beyond what is reserved for it is not the run's, and an
            // earlier peak tells nothing of this run.
            let held = machine::rss_bytes().saturating_sub(self.plan.plan().reserved_mem);
            held.max(machine::peak_rss_bytes().saturating_sub(projected))
        } else {
            0
        };
        self.memory = Some([projected, projected.saturating_add(more)]);
    }

    /// Takes note of an outcome's worker that holds more than was projected; true if it is the
    /// first.
    fn exceeded(&self, state: &mut State, outcome: &TaskOutcome, measured: u64) -> bool {
        let Some([projected, limit]) = self.memory else { return false };
        if measured <= limit {
            return false;
        }
        if let Some(excess) = &mut state.memory_excess {
            excess.measured_bytes = excess.measured_bytes.max(measured);
            return false;
        }
        let stages = &self.plan.plan().stages;
        // Where tasks share a process, any that runs now may have taken it: most likely one of a
        // kernel that allocates by itself.
        let others = if self.local.shared {
            state.flights.values().map(|f| f.request.stage).collect()
        } else {
            Vec::new()
        };
        let all = || {
            std::iter::once(outcome.request.stage)
                .chain(others.iter().copied())
                .filter_map(|id| stages.get(id.0))
        };
        let Some(stage) = all().find(|s| s.kernel.user_kernel().is_some()).or_else(|| all().next())
        else {
            return false;
        };
        state.memory_excess = Some(MemoryExcess {
            stage: stage.name.clone(),
            kernel: stage.kernel.user_kernel().map(str::to_owned),
            worker: outcome.worker.clone(),
            measured_bytes: measured,
            projected_bytes: projected,
        });
        true
    }

    /// The clock of the run.
    pub(super) fn system(&self) -> &System {
        self.run.stores.system()
    }

    /// True if every task is finished, and nothing went wrong.
    pub(super) fn is_done(&self) -> bool {
        let state = self.lock();
        state.error.is_none()
            && (0..state.stages.len()).all(|i| self.is_finished(&state, StageId(i)))
    }

    /// For each stage, how many of its tasks are finished.
    pub(super) fn finished_tasks(&self) -> Vec<u64> {
        self.lock().stages.iter().map(|s| s.finished.count()).collect()
    }

    /// Ends the run with an error, unless it has one.
    pub(super) fn fail(&self, error: RunError) {
        self.fail_in(&mut self.lock(), error);
        self.changed.notify_all();
    }

    fn fail_in(&self, state: &mut State, error: RunError) {
        state.error.get_or_insert(error);
        self.stop.cancel();
    }

    /// Makes durable what was finished until now, and removes intermediates that nobody reads any
    /// more.
    ///
    /// That something cannot be removed is no failure; it goes with the folder.
    pub(super) fn flush(
        &self,
        save: impl FnOnce(&dyn Fn(&str) -> bool) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let leaving: Vec<String> = {
            let mut state = self.lock();
            state.stages.iter_mut().for_each(|s| s.journaled |= s.started);
            state.removing.iter().map(|id| self.plan.plan().array(*id).name.clone()).collect()
        };
        if let Some(journal) = self.folder.journal {
            journal.flush(|| save(&|array| leaving.iter().any(|l| l == array)))?;
        }
        let superseded = {
            let mut state = self.lock();
            // One that was asked for again stays.
            let removing: Vec<ArrayId> = std::mem::take(&mut state.removing)
                .into_iter()
                .filter(|id| self.is_read_by_all(&state, *id))
                .collect();
            // What came after the flush waits for the next one.
            let (now, later): (Vec<ArrayId>, Vec<ArrayId>) = removing
                .into_iter()
                .partition(|id| leaving.iter().any(|l| *l == self.plan.plan().array(*id).name));
            state.removing = later;
            now.iter().for_each(|id| drop(state.removed.insert(*id, Finished::default())));
            now
        };
        self.remove(&superseded);
        Ok(())
    }

    /// True if intermediates wait for a flush to be removed.
    pub(super) fn has_to_remove(&self) -> bool {
        !self.lock().removing.is_empty()
    }

    fn remove(&self, arrays: &[ArrayId]) {
        for id in arrays {
            let _ = self.folder.between.remove(&format!(
                "{}/{}/",
                self.folder.name,
                self.plan.plan().array(*id).name
            ));
        }
    }

    pub(super) fn into_state(self) -> State {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: &Event<'_>) {
        self.run.observers.iter().for_each(|o| o.on_event(event));
    }

    fn bytes(&self, stage: StageId) -> u64 {
        self.local.bytes(self.plan, stage)
    }

    fn admits(&self, state: &State, stage: StageId) -> bool {
        state.in_flight_bytes + self.bytes(stage) <= self.room
    }

    fn hand_out(
        &self,
        state: &mut State,
        stage: StageId,
        first: u64,
        count: u64,
        attempt: u32,
        backup_of: Option<u64>,
    ) -> TaskRequest {
        state.next_id += 1;
        let timeout_ms = self.run.spec.task_timeout.map(|t| t.as_millis() as u64);
        let request =
            TaskRequest { id: state.next_id, stage, first, count, attempt, backup_of, timeout_ms };
        state.in_flight_bytes += self.bytes(stage);
        if let Some(slow) = backup_of.and_then(|id| state.flights.get_mut(&id)) {
            slow.twin = Some(request.id);
        }
        state.flights.insert(
            request.id,
            Flight {
                request: request.clone(),
                since: self.system().now(),
                twin: backup_of,
                wanted: true,
            },
        );
        request
    }

    fn is_finished(&self, state: &State, stage: StageId) -> bool {
        state.stages[stage.0].finished.count() == self.plan.plan().stages[stage.0].n_tasks()
    }

    /// All its tasks are under way or finished, or at least were once.
    fn is_handed_out(&self, state: &State, stage: StageId) -> bool {
        let progress = &state.stages[stage.0];
        progress.window.is_empty() && progress.next >= self.plan.plan().stages[stage.0].n_tasks()
    }

    fn is_read_by_all(&self, state: &State, id: ArrayId) -> bool {
        let reads = |stage: &Stage| stage.inputs.iter().any(|i| i.sources.contains(&id));
        !self
            .plan
            .plan()
            .stages
            .iter()
            .enumerate()
            .any(|(i, stage)| reads(stage) && !self.is_finished(state, StageId(i)))
    }
}

impl TaskSource for Queue<'_> {
    fn try_next(&self) -> Next {
        let mut state = self.lock();
        if self.stop.is_cancelled() {
            return if state.flights.is_empty() { Next::Stop } else { Next::Wait };
        }
        let found = self
            .next_again(&mut state)
            .map(|(stage, first, count, attempt)| (stage, first, count, attempt, None));
        let found = found.or_else(|| {
            let next = self
                .next_request(&mut state, false)
                .or_else(|| self.next_request(&mut state, true));
            next.map(|(stage, first, count)| (stage, first, count, 0, None))
        });
        let found = found.or_else(|| {
            self.slow(&state).map(|r| (r.stage, r.first, r.count, r.attempt, Some(r.id)))
        });
        let Some((stage, first, count, attempt, backup_of)) = found else {
            let mut stages = (0..state.stages.len()).map(StageId);
            let all_out = state.again.is_empty() && stages.all(|id| self.is_handed_out(&state, id));
            return if all_out && state.flights.is_empty() { Next::Stop } else { Next::Wait };
        };
        state.backups[0] += u64::from(backup_of.is_some());
        let request = self.hand_out(&mut state, stage, first, count, attempt, backup_of);
        let is_first = !std::mem::replace(&mut state.stages[stage.0].started, true);
        drop(state);
        if is_first {
            self.tell(&Event::StageStarted { stage });
        }
        self.tell(&Event::Started { request: &request });
        Next::Run(request)
    }

    fn wait(&self) {
        let state = self.lock();
        if !state.flights.is_empty() || !state.again.is_empty() {
            // A little at a time: a delayed retry comes due, or the run is cancelled, without
            // anybody's signal.
            drop(
                self.changed
                    .wait_timeout(state, self.system().clock.wait_bound(Duration::from_millis(20))),
            );
        }
    }

    fn is_wanted(&self, request: &TaskRequest) -> bool {
        !self.stop.is_cancelled() && self.lock().flights.get(&request.id).is_some_and(|f| f.wanted)
    }

    fn finished(&self, outcome: TaskOutcome) {
        let id = outcome.request.stage;
        let checked = self
            .check_receipts(&outcome)
            .and_then(|()| self.folder.journal.map_or(Ok(()), |journal| journal.done(&outcome)));
        let mut told = Told::default();
        let mut superseded = Vec::new();
        let measured = outcome
            .worker_peak_bytes
            .unwrap_or_else(|| if self.local.shared { machine::peak_rss_bytes() } else { 0 });
        {
            let mut state = self.lock();
            // Nobody knows of it, or it was given back before.
            let Some(flight) = state.flights.remove(&outcome.request.id) else { return };
            state.in_flight_bytes -= self.bytes(id);
            state.worker_peak_bytes = state.worker_peak_bytes.max(outcome.worker_peak_bytes);
            if self.exceeded(&mut state, &outcome, measured) {
                told.memory_excess = state.memory_excess.clone();
            }
            match checked {
                Err(error) => self.fail_in(&mut state, error),
                Ok(()) => self.count(&mut state, &outcome, &flight, &mut told),
            }
            let progress = &mut state.stages[id.0];
            if progress.finished.count() == self.plan.plan().stages[id.0].n_tasks()
                && told.counted > 0
            {
                told.ended = !std::mem::replace(&mut progress.ended, true);
                superseded = self.superseded(&mut state, id);
            }
            match &outcome.failure {
                Some(failure) => self.failed(&mut state, &outcome, failure, flight.twin, &mut told),
                None => self.given_back(&mut state, &outcome),
            }
        }
        self.remove(&superseded);
        self.changed.notify_all();
        self.tell(&Event::Outcome { outcome: &outcome, counted: told.counted });
        if let Some(excess) = &told.memory_excess {
            self.tell(&Event::MemoryExceeded(excess));
        }
        if let (Some(failure), Some((attempt, delay))) = (&outcome.failure, told.retried) {
            self.tell(&Event::Retried { failure, attempt, delay });
        }
        for (stage, tasks) in told.recomputed {
            self.tell(&Event::Recomputed {
                stage,
                tasks,
                why: outcome.failure.as_ref().map_or("", |f| &f.message),
            });
        }
        if told.ended {
            self.tell(&Event::StageEnded { stage: id });
        }
    }
}

/// Of a run that is resumed: tasks whose results were removed are to be run again, where a stage
/// that reads them has tasks left. That is so only if something else went wrong, too: what is
/// removed is read by nobody.
fn forget_what_is_gone(
    plan: &FinalizedPlan,
    writers: &[Option<(StageId, usize)>],
    before: &mut Before,
) {
    for (i, stage) in plan.plan().stages.iter().enumerate().rev() {
        if before.finished.get(i).is_none_or(|f| f.count() == stage.n_tasks()) {
            continue;
        }
        for id in stage.inputs.iter().flat_map(|i| &i.sources) {
            if let (Some(again), Some((writer, _))) = (before.removed.remove(id), writers[id.0]) {
                before.finished[writer.0] = again;
            }
        }
    }
}
