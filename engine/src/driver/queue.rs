//! Which tasks are next.
//!
//! Each stage has a window at the head of its queue: requests with what they wait for, as ranges of tasks of earlier stages. A request is
//! ready when these are finished. Requests of later stages come first, so that little lies between stages at any time. Tasks that failed, or
//! whose results got lost, stand in a line of their own before them; a request that takes much longer than others is handed out a second time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::attempts::{Attempts, Decision, Policy};
use super::durations::Durations;
use super::{Before, Kept, Run, RunError};
use crate::events::{Event, StageReport};
use crate::executor::{Next, TaskSource};
use crate::finished::Finished;
use crate::journal::Journal;
use crate::memory::size;
use crate::plan::reads::{TaskRange, tasks_read, tasks_writing, writers};
use crate::plan::{ArrayId, FinalizedPlan, LocalMemory, Place, Stage, StageId};
use crate::storage::{StorageError, Store};
use crate::task::{FailureKind, Receipt, TaskFailure, TaskOutcome, TaskReport, TaskRequest};
use crate::worker::Cancel;

/// Tasks in one request, at most, what these read, and how long they take: what is lost with a worker.
const MAX_BATCH: u64 = 64;
const MAX_BATCH_BYTES: u64 = 500_000_000;
const MAX_BATCH_TIME: Duration = Duration::from_secs(1);
/// Requests in a stage's window, for each slot and in all.
const WINDOW_PER_SLOT: usize = 4;
const MAX_WINDOW: usize = 64;

/// So many tries of failed tasks a run has at least; longer ones have half as many as they have tasks.
const MIN_BUDGET: u64 = 200;
/// A request is repeated once it has taken so many times the median of its stage's tasks, if so many of these are finished, and half of them,
/// and it has taken so long at least.
const SLOW: u32 = 3;
const MIN_FINISHED: u64 = 10;
const MIN_SLOW: Duration = Duration::from_millis(250);

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
    /// Of the outputs' chunks, where the commit is made of them; of a task that was run again, twice.
    pub(super) receipts: Vec<Receipt>,
    /// Intermediates that nobody reads any more, to be removed once the journal says so.
    removing: Vec<ArrayId>,
    pub(super) worker_peak_bytes: Option<u64>,
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
}

/// A request in a window.
struct Waiting {
    first: u64,
    count: u64,
    /// What was not finished when last looked at.
    needs: Vec<TaskRange>,
}

impl<'a> Queue<'a> {
    pub(super) fn new(plan: &'a FinalizedPlan, run: &'a Run<'a>, local: LocalMemory, room: u64, folder: Folder<'a>, stop: Cancel, before: Before) -> Queue<'a> {
        let mut before = before;
        let n_tasks = plan.plan().stages.iter().map(Stage::n_tasks).fold(0, u64::saturating_add);
        let writers = writers(plan.plan());
        forget_what_is_gone(plan, &writers, &mut before);
        before.finished.resize_with(plan.plan().stages.len(), Finished::default);
        let stages = plan.stages().zip(before.finished).map(|((_, stage, layout), finished)| Progress {
            next: 0,
            window: VecDeque::new(),
            started: false,
            open: false,
            ended: finished.count() == stage.n_tasks(),
            journaled: finished.count() > 0,
            finished,
            durations: Durations::default(),
            walls: Durations::default(),
            report: StageReport { name: stage.name.clone(), tasks: stage.n_tasks(), projected_bytes: layout.estimate.total(), ..StageReport::default() },
        });
        let policy = Policy { retries: run.spec.retries, budget: (n_tasks / 2).max(MIN_BUDGET), seed: xxhash_rust::xxh3::xxh3_64(folder.name.as_bytes()) };
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
            stop,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// True if every task is finished, and nothing went wrong.
    pub(super) fn is_done(&self) -> bool {
        let state = self.lock();
        state.error.is_none() && (0..state.stages.len()).all(|i| self.is_finished(&state, StageId(i)))
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

    /// Makes durable what was finished until now, and removes intermediates that nobody reads any more.
    ///
    /// That something cannot be removed is no failure; it goes with the folder.
    pub(super) fn flush(&self, save: impl FnOnce(&dyn Fn(&str) -> bool) -> Result<(), StorageError>) -> Result<(), StorageError> {
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
            let removing: Vec<ArrayId> = std::mem::take(&mut state.removing).into_iter().filter(|id| self.is_read_by_all(&state, *id)).collect();
            // What came after the flush waits for the next one.
            let (now, later): (Vec<ArrayId>, Vec<ArrayId>) =
                removing.into_iter().partition(|id| leaving.iter().any(|l| *l == self.plan.plan().array(*id).name));
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
            let _ = self.folder.between.remove(&format!("{}/{}/", self.folder.name, self.plan.plan().array(*id).name));
        }
    }

    pub(super) fn into_state(self) -> State {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: &Event<'_>) {
        self.run.observers.iter().for_each(|o| o.on(event));
    }

    fn bytes(&self, stage: StageId) -> u64 {
        self.local.bytes(self.plan, stage)
    }

    /// Bytes that a task of a stage looks at, about.
    fn input_bytes(&self, stage: &Stage) -> u64 {
        let elements = stage.tasks.max_chunk().iter().fold(1u64, |n, len| n.saturating_mul(*len));
        let sizes = stage.inputs.iter().filter_map(|i| i.sources.first()).map(|id| self.plan.plan().array(*id).info.dtype.size() as u64);
        elements.saturating_mul(sizes.sum::<u64>().max(1)).max(1)
    }

    fn admits(&self, state: &State, stage: StageId) -> bool {
        state.in_flight_bytes + self.bytes(stage) <= self.room
    }

    fn hand_out(&self, state: &mut State, stage: StageId, first: u64, count: u64, attempt: u32, backup_of: Option<u64>) -> TaskRequest {
        state.next_id += 1;
        let timeout_ms = self.run.spec.task_timeout.map(|t| t.as_millis() as u64);
        let request = TaskRequest { id: state.next_id, stage, first, count, attempt, backup_of, timeout_ms };
        state.in_flight_bytes += self.bytes(stage);
        if let Some(slow) = backup_of.and_then(|id| state.flights.get_mut(&id)) {
            slow.twin = Some(request.id);
        }
        state.flights.insert(request.id, Flight { request: request.clone(), since: Instant::now(), twin: backup_of, wanted: true });
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

    /// Fills a stage's window; leaves it where nothing of it can be ready.
    fn look_ahead(&self, state: &mut State, id: StageId) {
        let stage = &self.plan.plan().stages[id.0];
        let n = stage.n_tasks();
        if !stage.after.iter().all(|s| state.stages[s.0].finished.count() > 0 || self.is_finished(state, *s)) {
            return;
        }
        // Towards the end fewer, so that all workers come to it together.
        let workers = self.workers as u64;
        let even = (n / (16 * workers)).min((n - state.stages[id.0].next) / (2 * workers));
        // Tasks that keep chunks for each other go together, while every slot gets some.
        let together = stage.sweep.map_or(1, |d| stage.tasks.axes()[d].n_chunks().min(n / (2 * workers)));
        // Not more than can be done again without much regret.
        let few = (MAX_BATCH_BYTES / self.input_bytes(stage)).min((MAX_BATCH_TIME.as_nanos() / state.stages[id.0].walls.median().as_nanos().max(1)) as u64);
        let batch = even.max(together).min(few).clamp(1, MAX_BATCH);
        let all = stage.after.iter().all(|s| self.is_finished(state, *s));
        let window = (WINDOW_PER_SLOT * self.slots).min(MAX_WINDOW);
        let progress = &mut state.stages[id.0];
        while progress.window.len() < window && progress.next < n {
            let open = progress.finished.gap(progress.next, n);
            let (first, count) = (open.start, batch.min(open.end - open.start));
            progress.next = first + count;
            if count > 0 {
                let needs = if all { Vec::new() } else { tasks_read(self.plan.plan(), &self.writers, id, first..first + count) };
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

    /// The next request: of the last stage that has one ready.
    ///
    /// A worker that goes from one stage to another loses its buffers. While those before a stage have tasks left, it is left alone until each
    /// slot can have two requests of it, unless nobody had anything else to do (`at_once`).
    fn next_request(&self, state: &mut State, at_once: bool) -> Option<(StageId, u64, u64)> {
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
            let is_open = at_once || enough || state.stages[i].open || stage.after.iter().all(|s| self.is_handed_out(state, *s));
            if is_open && let Some(Waiting { first, count, .. }) = state.stages[i].window.remove(at) {
                state.stages[i].open = true;
                return Some((id, first, count));
            }
        }
        None
    }

    /// The first of the tasks that are run once more which can be: stage, first task, count, attempt.
    fn next_again(&self, state: &mut State) -> Option<(StageId, u64, u64, u32)> {
        let now = Instant::now();
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
            let is_ready = again.needs.iter().all(|r| state.stages[r.stage.0].finished.contains(r.first, r.end));
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
    fn slow(&self, state: &State) -> Option<TaskRequest> {
        if self.run.executor.shares_process() {
            return None;
        }
        // What a task may take, by stage: there may be very many flights.
        let limits: Vec<Option<Duration>> = state
            .stages
            .iter()
            .zip(&self.plan.plan().stages)
            .map(|(stage, of)| {
                let enough = stage.durations.count() >= MIN_FINISHED && 2 * stage.finished.count() >= of.n_tasks();
                enough.then(|| SLOW * stage.durations.median())
            })
            .collect();
        if limits.iter().all(Option::is_none) {
            return None;
        }
        let is_slow = |f: &&Flight| {
            let over = |l: Duration| f.since.elapsed() > l.saturating_mul(u32::try_from(f.request.count).unwrap_or(u32::MAX)).max(MIN_SLOW);
            f.twin.is_none() && f.wanted && limits[f.request.stage.0].is_some_and(over)
        };
        let slow = state.flights.values().filter(is_slow).min_by_key(|f| f.since)?;
        self.admits(state, slow.request.stage).then(|| slow.request.clone())
    }

    fn is_read_by_all(&self, state: &State, id: ArrayId) -> bool {
        let reads = |stage: &Stage| stage.inputs.iter().any(|i| i.sources.contains(&id));
        !self.plan.plan().stages.iter().enumerate().any(|(i, stage)| reads(stage) && !self.is_finished(state, StageId(i)))
    }

    /// The intermediates that a stage read and that no other stage will. Those that the journal has nothing of are removed by the caller, the
    /// others after the next flush.
    fn superseded(&self, state: &mut State, ended: StageId) -> Vec<ArrayId> {
        let plan = self.plan.plan();
        let mut read: Vec<ArrayId> = plan.stages[ended.0].inputs.iter().flat_map(|i| i.sources.iter().copied()).collect();
        read.sort_unstable();
        read.dedup();
        read.retain(|id| {
            let is_there = state.removed.get(id).is_none_or(|again| again.count() > 0) && !state.removing.contains(id);
            plan.array(*id).place == Place::Work && is_there && self.is_read_by_all(state, *id)
        });
        if let Some(journal) = self.folder.journal {
            read.iter().for_each(|id| journal.removed(*id));
        }
        let (later, now): (Vec<ArrayId>, Vec<ArrayId>) = read.into_iter().partition(|id| self.writers[id.0].is_some_and(|w| state.stages[w.0.0].journaled));
        state.removing.extend(later);
        now.iter().for_each(|id| drop(state.removed.insert(*id, Finished::default())));
        now
    }

    /// Tasks that a worker has not come to are nobody's fault: they are handed out again as they were.
    fn given_back(&self, state: &mut State, outcome: &TaskOutcome) {
        let request = &outcome.request;
        let (first, end) = (request.first + outcome.done.len() as u64, request.first + request.count);
        if first < end {
            let again = Again { not_before: Instant::now(), stage: request.stage, first, count: end - first, attempt: request.attempt, needs: Vec::new() };
            state.again.push_back(again);
        }
    }

    /// Puts what a failed request left undone back, or ends the run.
    fn failed(&self, state: &mut State, outcome: &TaskOutcome, failure: &TaskFailure, twin: Option<u64>, told: &mut Told) {
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
                    note = format!("{note}; {} projected", size(projected));
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
            needs = tasks_read(self.plan.plan(), &self.writers, request.stage, failure.task..failure.task + 1);
        }
        let (now, end) = (Instant::now(), request.first + request.count);
        // The task that failed alone, so that what comes after it does not wait for its next failure.
        state.again.push_back(Again { not_before: now + delay, stage: request.stage, first: failure.task, count: 1, attempt, needs });
        if failure.task + 1 < end {
            let (first, count) = (failure.task + 1, end - failure.task - 1);
            state.again.push_back(Again { not_before: now, stage: request.stage, first, count, attempt: request.attempt, needs: Vec::new() });
        }
    }

    /// Finished tasks are so no more, because what they wrote is damaged or gone; nor are those whose results they read and that were removed.
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
                    let reads = |id: &ArrayId| plan.stages[stage.0].inputs.iter().any(|i| i.sources.contains(id));
                    let gone: Vec<ArrayId> =
                        plan.stages[need.stage.0].outputs.iter().map(|o| o.array).filter(|id| reads(id) && state.removed.contains_key(id)).collect();
                    for t in need.first..need.end {
                        if gone.iter().any(|id| state.removed.get(id).is_some_and(|again| !again.contains(t, t + 1))) {
                            todo.push(TaskRange { stage: need.stage, first: t, end: t + 1 });
                        }
                    }
                }
                state.again.push_back(Again { not_before: Instant::now(), stage, first: task, count: 1, attempt: 0, needs });
            }
        }
    }

    /// The tasks' receipts name exactly the chunks that the plan gives to them.
    fn check_receipts(&self, outcome: &TaskOutcome) -> Result<(), RunError> {
        let stage = &self.plan.plan().stages[outcome.request.stage.0];
        for (i, report) in outcome.done.iter().enumerate() {
            if report.task != outcome.request.first + i as u64 || !receipts_fit(self.plan, stage, report) {
                return Err(RunError::Receipts(format!("task {} of stage `{}`", report.task, stage.name)));
            }
        }
        Ok(())
    }
}

/// A task's receipts name exactly the chunks that the plan gives to it.
pub(super) fn receipts_fit(plan: &FinalizedPlan, stage: &Stage, report: &TaskReport) -> bool {
    let coords = stage.task_coords(report.task);
    let mut left = report.receipts.len() as u64;
    for output in &stage.outputs {
        let grid = plan.plan().array(output.array).info.objects();
        let chunks = grid.overlapping(&stage.output_region(output, &coords));
        let mine = report.receipts.iter().filter(|r| r.array == output.array);
        let mut seen: Vec<u64> = mine.map(|r| r.chunk).collect();
        seen.sort_unstable();
        seen.dedup();
        let inside =
            |c: &u64| *c < grid.n_chunks() && grid.coords(*c).iter().zip(chunks.start.iter().zip(&chunks.shape)).all(|(c, (s, n))| s <= c && *c < s + n);
        if seen.len() as u64 != chunks.n_elements() || !seen.iter().all(inside) {
            return false;
        }
        left = left.saturating_sub(seen.len() as u64);
    }
    left == 0
}

/// Of a run that is resumed: tasks whose results were removed are to be run again, where a stage that reads them has tasks left. That is so
/// only if something else went wrong, too: what is removed is read by nobody.
fn forget_what_is_gone(plan: &FinalizedPlan, writers: &[Option<(StageId, usize)>], before: &mut Before) {
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

impl TaskSource for Queue<'_> {
    fn try_next(&self) -> Next {
        let mut state = self.lock();
        if self.stop.is_cancelled() {
            return if state.flights.is_empty() { Next::Stop } else { Next::Wait };
        }
        let found = self.next_again(&mut state).map(|(stage, first, count, attempt)| (stage, first, count, attempt, None));
        let found = found.or_else(|| {
            let next = self.next_request(&mut state, false).or_else(|| self.next_request(&mut state, true));
            next.map(|(stage, first, count)| (stage, first, count, 0, None))
        });
        let found = found.or_else(|| self.slow(&state).map(|r| (r.stage, r.first, r.count, r.attempt, Some(r.id))));
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
            // A little at a time: a delayed retry comes due, or the run is cancelled, without anybody's signal.
            drop(self.changed.wait_timeout(state, Duration::from_millis(20)));
        }
    }

    fn is_wanted(&self, request: &TaskRequest) -> bool {
        !self.stop.is_cancelled() && self.lock().flights.get(&request.id).is_some_and(|f| f.wanted)
    }

    fn finished(&self, outcome: TaskOutcome) {
        let id = outcome.request.stage;
        let checked = self.check_receipts(&outcome);
        if let (Ok(()), Some(journal)) = (&checked, self.folder.journal) {
            journal.done(&outcome);
        }
        let mut told = Told::default();
        let mut superseded = Vec::new();
        {
            let mut state = self.lock();
            // Nobody knows of it, or it was given back before.
            let Some(flight) = state.flights.remove(&outcome.request.id) else { return };
            state.in_flight_bytes -= self.bytes(id);
            state.worker_peak_bytes = state.worker_peak_bytes.max(outcome.worker_peak_bytes);
            match checked {
                Err(error) => self.fail_in(&mut state, error),
                Ok(()) => self.count(&mut state, &outcome, &flight, &mut told),
            }
            let progress = &mut state.stages[id.0];
            if progress.finished.count() == self.plan.plan().stages[id.0].n_tasks() && told.counted > 0 {
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
        if let (Some(failure), Some((attempt, delay))) = (&outcome.failure, told.retried) {
            self.tell(&Event::Retried { failure, attempt, delay });
        }
        for (stage, tasks) in told.recomputed {
            self.tell(&Event::Recomputed { stage, tasks, why: outcome.failure.as_ref().map_or("", |f| &f.message) });
        }
        if told.ended {
            self.tell(&Event::StageEnded { stage: id });
        }
    }
}

impl Queue<'_> {
    /// Takes note of an outcome's finished tasks.
    fn count(&self, state: &mut State, outcome: &TaskOutcome, flight: &Flight, told: &mut Told) {
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
            progress.durations.add(flight.since.elapsed() / n, u64::from(n));
        }
        if let Some(twin) = flight.twin.and_then(|id| state.flights.get_mut(&id))
            && progress.finished.contains(twin.request.first, twin.request.first + twin.request.count)
        {
            twin.wanted = false;
            state.backups[1] += u64::from(outcome.request.backup_of.is_some());
        }
    }
}
