//! Which tasks are next.
//!
//! Each stage has a window at the head of its queue: requests with what they wait for, as ranges of tasks of earlier stages. A request is
//! ready when these are finished. Requests of later stages come first, so that little lies between stages at any time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::finished::Finished;
use super::{Run, RunError};
use crate::events::{Event, StageReport};
use crate::executor::{Next, TaskSource};
use crate::journal::Journal;
use crate::plan::reads::{TaskRange, tasks_read, writers};
use crate::plan::{ArrayId, FinalizedPlan, LocalMemory, Place, Stage, StageId};
use crate::storage::{StorageError, Store};
use crate::task::{FailureKind, TaskFailure, TaskOutcome, TaskRequest};

/// A task is tried so often.
const MAX_ATTEMPTS: u32 = 3;
/// Tasks in one request, at most: what is lost with a worker.
const MAX_BATCH: u64 = 64;
/// Requests in a stage's window, for each slot and in all.
const WINDOW_PER_SLOT: usize = 4;
const MAX_WINDOW: usize = 64;

/// The run's folder in the work directory.
#[derive(Clone, Copy)]
pub(super) struct Folder<'a> {
    /// Where intermediates are: the work directory, or a memory tier over it.
    pub(super) between: &'a dyn Store,
    pub(super) name: &'a str,
    pub(super) journal: &'a Journal,
}

impl Folder<'_> {
    /// Removes intermediates that nobody reads any more, once it is journaled that their readers are finished.
    ///
    /// The journal outlives this process, not a power cut: who resumes a run must look whether what a receipt names is there. That
    /// something cannot be removed is no failure; it goes with the folder.
    fn remove_superseded(&self, arrays: &[String]) -> Result<(), StorageError> {
        if arrays.is_empty() {
            return Ok(());
        }
        self.journal.flush()?;
        for array in arrays {
            let _ = self.between.remove(&format!("{}/{array}/", self.name));
        }
        Ok(())
    }
}

/// The tasks that are left, and what is known of those that are not.
pub(super) struct Queue<'a> {
    plan: &'a FinalizedPlan,
    run: &'a Run<'a>,
    local: LocalMemory,
    /// Bytes that tasks may hold together.
    room: u64,
    slots: usize,
    folder: Folder<'a>,
    /// For each array, who writes it.
    writers: Vec<Option<(StageId, usize)>>,
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) struct State {
    pub(super) stages: Vec<Progress>,
    again: VecDeque<(Instant, TaskRequest)>,
    attempts: HashMap<(StageId, u64), u32>,
    in_flight: usize,
    in_flight_bytes: u64,
    next_id: u64,
    pub(super) retries: u64,
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
    pub(super) finished: Finished,
    pub(super) report: StageReport,
}

/// A request in a window.
struct Waiting {
    first: u64,
    count: u64,
    /// What was not finished when last looked at.
    needs: Vec<TaskRange>,
}

impl<'a> Queue<'a> {
    pub(super) fn new(plan: &'a FinalizedPlan, run: &'a Run<'a>, local: LocalMemory, room: u64, folder: Folder<'a>) -> Queue<'a> {
        let stages = plan.stages().map(|(_, stage, layout)| Progress {
            next: 0,
            window: VecDeque::new(),
            started: false,
            open: false,
            finished: Finished::default(),
            report: StageReport { name: stage.name.clone(), tasks: stage.n_tasks(), projected_bytes: layout.estimate.total(), ..StageReport::default() },
        });
        let state = State {
            stages: stages.collect(),
            again: VecDeque::new(),
            attempts: HashMap::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            next_id: 0,
            retries: 0,
            worker_peak_bytes: None,
            error: None,
        };
        let writers = writers(plan.plan());
        Queue { plan, run, local, room, slots: run.executor.slots(), folder, writers, state: Mutex::new(state), changed: Condvar::new() }
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

    fn admits(&self, state: &State, stage: StageId) -> bool {
        state.in_flight_bytes + self.bytes(stage) <= self.room
    }

    fn hand_out(&self, state: &mut State, request: TaskRequest) -> Next {
        state.in_flight += 1;
        state.in_flight_bytes += self.bytes(request.stage);
        Next::Run(request)
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
        let even = n / (16 * self.slots as u64);
        // Tasks that keep chunks for each other go together, while every slot gets some.
        let together = stage.sweep.map_or(1, |d| stage.tasks.axes()[d].n_chunks().min(n / (2 * self.slots as u64)));
        let batch = even.max(together).clamp(1, MAX_BATCH);
        let all = stage.after.iter().all(|s| self.is_finished(state, *s));
        let window = (WINDOW_PER_SLOT * self.slots).min(MAX_WINDOW);
        let progress = &mut state.stages[id.0];
        while progress.window.len() < window && progress.next < n {
            let (first, count) = (progress.next, batch.min(n - progress.next));
            let needs = if all { Vec::new() } else { tasks_read(self.plan.plan(), &self.writers, id, first..first + count) };
            progress.window.push_back(Waiting { first, count, needs });
            progress.next += count;
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
    fn next_request(&self, state: &mut State, at_once: bool) -> Option<TaskRequest> {
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
                state.next_id += 1;
                return Some(TaskRequest { id: state.next_id, stage: id, first, count, attempt: 0, backup_of: None, timeout_ms: None });
            }
        }
        None
    }

    /// Names of the intermediates that a stage read and that no other stage will.
    fn superseded(&self, state: &State, ended: StageId) -> Vec<String> {
        let plan = self.plan.plan();
        let reads = |stage: &Stage, id: &ArrayId| stage.inputs.iter().any(|i| i.sources.contains(id));
        let mut read: Vec<ArrayId> = plan.stages[ended.0].inputs.iter().flat_map(|i| i.sources.iter().copied()).collect();
        read.sort_unstable();
        read.dedup();
        read.retain(|id| {
            let open = |(i, stage): (usize, &Stage)| reads(stage, id) && !self.is_finished(state, StageId(i));
            plan.array(*id).place == Place::Work && !plan.stages.iter().enumerate().any(open)
        });
        read.iter().map(|id| plan.array(*id).name.clone()).collect()
    }

    /// Puts what a failed request left undone back, or ends the run.
    fn failed(&self, state: &mut State, outcome: &TaskOutcome, failure: &TaskFailure) {
        let stage = outcome.request.stage;
        let attempts = state.attempts.entry((stage, failure.task)).or_insert(0);
        *attempts += 1;
        let attempts = *attempts;
        if failure.kind == FailureKind::Cancelled {
            return;
        }
        let worth = matches!(failure.kind, FailureKind::Transient | FailureKind::WorkerLost | FailureKind::Throttled | FailureKind::Crashed);
        if !worth || attempts >= MAX_ATTEMPTS {
            state.error.get_or_insert(RunError::Task { failure: failure.clone(), attempts });
            return;
        }
        state.retries += 1;
        let end = outcome.request.first + outcome.request.count;
        let not_before = Instant::now() + Duration::from_millis(50 << attempts.min(6));
        // The task that failed alone, so that what comes after it does not wait for its next failure.
        state.next_id += 2;
        let again = |id, first, count, attempt| TaskRequest { id, stage, first, count, attempt, backup_of: None, timeout_ms: None };
        let ids = [state.next_id - 1, state.next_id];
        state.again.push_back((not_before, again(ids[0], failure.task, 1, attempts)));
        if failure.task + 1 < end {
            state.again.push_back((Instant::now(), again(ids[1], failure.task + 1, end - failure.task - 1, outcome.request.attempt)));
        }
    }

    /// The tasks' receipts name exactly the chunks that the plan gives to them.
    fn check_receipts(&self, outcome: &TaskOutcome) -> Result<(), RunError> {
        let plan = self.plan.plan();
        let stage = &plan.stages[outcome.request.stage.0];
        for (i, report) in outcome.done.iter().enumerate() {
            let coords = stage.task_coords(report.task);
            let mut left = report.receipts.len() as u64;
            let mut right = report.task == outcome.request.first + i as u64;
            for output in &stage.outputs {
                let grid = plan.array(output.array).info.objects();
                let chunks = grid.overlapping(&stage.output_region(output, &coords));
                let mine = report.receipts.iter().filter(|r| r.array == output.array);
                let mut seen: Vec<u64> = mine.map(|r| r.chunk).collect();
                seen.sort_unstable();
                seen.dedup();
                let inside = |c: &u64| grid.coords(*c).iter().zip(chunks.start.iter().zip(&chunks.shape)).all(|(c, (s, n))| s <= c && *c < s + n);
                right &= seen.len() as u64 == chunks.n_elements() && seen.iter().all(inside);
                left = left.saturating_sub(seen.len() as u64);
            }
            if !right || left != 0 {
                return Err(RunError::Receipts(format!("task {} of stage `{}`", report.task, stage.name)));
            }
        }
        Ok(())
    }
}

impl TaskSource for Queue<'_> {
    fn try_next(&self) -> Next {
        let mut state = self.lock();
        if state.error.is_some() || self.run.cancel.is_cancelled() {
            return if state.in_flight == 0 { Next::Stop } else { Next::Wait };
        }
        let now = Instant::now();
        if let Some(at) = state.again.iter().position(|(t, r)| *t <= now && self.admits(&state, r.stage))
            && let Some((_, request)) = state.again.remove(at)
        {
            return self.hand_out(&mut state, request);
        }
        let Some(request) = self.next_request(&mut state, false).or_else(|| self.next_request(&mut state, true)) else {
            let mut stages = (0..state.stages.len()).map(StageId);
            let all_out = state.again.is_empty() && stages.all(|id| self.is_handed_out(&state, id));
            return if all_out && state.in_flight == 0 { Next::Stop } else { Next::Wait };
        };
        let stage = request.stage;
        let is_first = !std::mem::replace(&mut state.stages[stage.0].started, true);
        let handed = self.hand_out(&mut state, request);
        drop(state);
        if is_first {
            self.tell(&Event::StageStarted { stage });
        }
        if let Next::Run(request) = &handed {
            self.tell(&Event::Started { request });
        }
        handed
    }

    fn wait(&self) {
        let state = self.lock();
        if state.in_flight > 0 || !state.again.is_empty() {
            // A little at a time: a delayed retry comes due, or the run is cancelled, without anybody's signal.
            drop(self.changed.wait_timeout(state, Duration::from_millis(20)));
        }
    }

    fn finished(&self, outcome: TaskOutcome) {
        let id = outcome.request.stage;
        let checked = self.check_receipts(&outcome).and_then(|()| self.folder.journal.record(&outcome).map_err(RunError::Work));
        let mut retried = None;
        let (ended, superseded) = {
            let mut state = self.lock();
            state.in_flight -= 1;
            state.in_flight_bytes -= self.bytes(id);
            state.worker_peak_bytes = state.worker_peak_bytes.max(outcome.worker_peak_bytes);
            if let Err(error) = checked {
                state.error.get_or_insert(error);
            }
            let progress = &mut state.stages[id.0];
            for report in &outcome.done {
                progress.finished.insert(report.task);
                progress.report.traffic.add(report.traffic);
                progress.report.cpu += Duration::from_nanos(report.cpu_ns);
                progress.report.peak_bytes = progress.report.peak_bytes.max(report.peak_bytes);
            }
            let ended = progress.finished.count() == self.plan.plan().stages[id.0].n_tasks() && !outcome.done.is_empty();
            let superseded = if ended && state.error.is_none() { self.superseded(&state, id) } else { Vec::new() };
            if let Some(failure) = &outcome.failure {
                let before = state.retries;
                self.failed(&mut state, &outcome, failure);
                if state.retries > before {
                    retried = Some((failure.clone(), state.attempts.get(&(id, failure.task)).copied().unwrap_or(1)));
                }
            }
            (ended, superseded)
        };
        if let Err(error) = self.folder.remove_superseded(&superseded) {
            self.lock().error.get_or_insert(RunError::Work(error));
        }
        self.changed.notify_all();
        let counted = outcome.done.len() as u64;
        self.tell(&Event::Outcome { outcome: &outcome, counted });
        if let Some((failure, attempt)) = &retried {
            self.tell(&Event::Retried { failure, attempt: *attempt, delay: Duration::ZERO });
        }
        if ended {
            self.tell(&Event::StageEnded { stage: id });
        }
    }
}
