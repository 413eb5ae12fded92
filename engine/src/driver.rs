//! A run from start to end: order, retries, budgets, journal, commit.
//!
//! The driver hands out ranges of tasks; executors pull them. A stage is ready when the stages that it reads from are
//! finished; tasks are admitted while their projections fit `local_mem` together; what that leaves over keeps
//! intermediates in memory, where tasks run in this process.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::events::{Event, Observer, RunReport, StageReport};
use crate::executor::{Executor, ExecutorError, Next, TaskSource};
use crate::journal::Journal;
use crate::machine;
use crate::plan::{ArrayId, FinalizedPlan, LocalMemory, Place, PlanError, Stage, StageId};
use crate::session::{Session, SessionError};
use crate::spec::Spec;
use crate::storage::{StorageError, Store, Stores, TierStore, identity};
use crate::task::{FailureKind, RunAddress, TaskFailure, TaskOutcome, TaskRequest};
use crate::user::KernelRegistry;
use crate::worker::{Cancel, RunContext};

/// Why a run did not end well. Nothing is published then; finished work stays in the work directory.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the work directory cannot be used: {0}")]
    Work(#[source] StorageError),
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    #[error("{failure}{}", if *attempts > 1 { format!(" ({attempts} attempts)") } else { String::new() })]
    Task { failure: TaskFailure, attempts: u32 },
    #[error("a task reported other chunks than its plan says: {0}")]
    Receipts(String),
    #[error("the run {run} was interrupted; finished work is kept in {work_dir}")]
    Cancelled { run: String, work_dir: String },
}

/// Everything that a run needs besides its plan.
#[derive(Clone)]
#[allow(missing_debug_implementations)]
pub struct Run<'a> {
    /// Limits and places.
    pub spec: &'a Spec,
    /// Stores that are open; those in memory are found only here.
    pub stores: &'a Stores,
    /// Kernels of users that this process knows.
    pub kernels: &'a KernelRegistry,
    /// Where tasks run.
    pub executor: &'a dyn Executor,
    /// Where outputs go.
    pub session: &'a dyn Session,
    /// Who looks on.
    pub observers: &'a [&'a dyn Observer],
    /// Stops the run when asked.
    pub cancel: Cancel,
}

/// A task is tried so often.
const MAX_ATTEMPTS: u32 = 3;
/// Tasks in one request, at most: what is lost with a worker.
const MAX_BATCH: u64 = 64;

/// Runs a plan.
///
/// Nothing is written before it is known that the outputs may be and that the work directory can be.
///
/// # Errors
/// See [`RunError`].
pub fn run(plan: &Arc<FinalizedPlan>, run: &Run<'_>) -> Result<RunReport, RunError> {
    let slots = run.executor.slots();
    let local = LocalMemory { limit: run.spec.local_mem, shared: run.executor.shares_process() };
    let projection = plan.projected_local_mem(slots, &local)?;
    check_work_dir(plan, &run.spec.work_dir)?;
    run.session.check(plan)?;
    // Two runs of one plan must not see each other's intermediates, nor those of one that was killed.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let folder = format!("{}-{now:x}-{}", plan.run_id(), std::process::id());
    let address = RunAddress { work_dir: run.spec.work_dir.clone(), folder: folder.clone() };
    let work = run.stores.open(&address.work_dir).map_err(RunError::Work)?;
    work.write(&format!("{folder}/plan.json"), &plan.to_bytes()?).map_err(RunError::Work)?;
    // Tasks see the memory tier in the place of the work directory; plan and journal do not go through it.
    let tier = (projection.kept > 0).then(|| Arc::new(TierStore::new(Arc::clone(&work), format!("{folder}/"), projection.kept)));
    let between: Arc<dyn Store> = tier.as_ref().map_or(Arc::clone(&work), |t| Arc::<TierStore>::clone(t));
    let stores = run.stores.with(&address.work_dir, Arc::clone(&between));
    let kernels = Arc::new(run.kernels.clone());
    let context = RunContext { plan: Arc::clone(plan), address, stores, kernels, cancel: run.cancel.clone() };
    if let Err(error) = run.executor.check(&context) {
        clean(&*work, &folder);
        return Err(error.into());
    }
    let journal = Journal::start(Arc::clone(&work), format!("{folder}/journal")).map_err(RunError::Work)?;
    run.session.begin(plan)?;
    let (start, cpu) = (Instant::now(), machine::process_cpu_ns());
    let tell = |event: &Event<'_>| run.observers.iter().for_each(|o| o.on(event));
    tell(&Event::RunStarted { plan, executor: run.executor.name(), slots });
    let queue = Queue::new(plan, run, local, projection.tasks, Folder { between: &*between, name: &folder, journal: &journal });
    let executed = run.executor.run(&context, &queue);
    let ended = finish(executed, queue, &journal, run, plan, &folder);
    tell(&Event::RunEnded { succeeded: ended.is_ok() });
    if ended.is_err() {
        run.session.abandon(plan);
    }
    let mut report = ended?;
    clean(&*work, &folder);
    report.wall = start.elapsed();
    report.process_cpu = Duration::from_nanos(machine::process_cpu_ns().saturating_sub(cpu));
    report.peak_rss_bytes = machine::peak_rss_bytes();
    report.slots = slots;
    report.projected_bytes = if local.shared { projection.total() } else { plan.projected_mem() };
    report.kept_bytes = tier.map_or(0, |t| t.highest());
    Ok(report)
}

/// What is replaced is removed first, and the run's own plan and journal must not be in it.
fn check_work_dir(plan: &FinalizedPlan, work_dir: &str) -> Result<(), PlanError> {
    let work = identity(work_dir, "");
    for array in &plan.plan().arrays {
        if let Place::Output { url, path } = &array.place {
            let place = identity(url, path);
            if format!("{work}/").starts_with(&format!("{place}/")) {
                return Err(PlanError::BadOutput(format!("the work directory {work} lies in the result's own place, {place}: choose another work_dir")));
            }
        }
    }
    Ok(())
}

fn finish(
    executed: Result<(), ExecutorError>,
    queue: Queue<'_>,
    journal: &Journal,
    run: &Run<'_>,
    plan: &FinalizedPlan,
    folder: &str,
) -> Result<RunReport, RunError> {
    let journaled = journal.flush();
    let state = queue.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    // An executor that has no workers fails its tasks too; it knows better why.
    executed?;
    if let Some(error) = state.error {
        return Err(error);
    }
    if run.cancel.is_cancelled() {
        return Err(RunError::Cancelled { run: folder.to_owned(), work_dir: run.spec.work_dir.clone() });
    }
    journaled.map_err(RunError::Work)?;
    if let Some(open) = state.stages.iter().zip(&plan.plan().stages).find(|(p, s)| p.done != s.n_tasks()) {
        return Err(RunError::Receipts(format!("stage `{}` has {} of {} tasks finished", open.1.name, open.0.done, open.1.n_tasks())));
    }
    run.session.commit(plan)?;
    Ok(RunReport {
        run: folder.to_owned(),
        stages: state.stages.into_iter().map(|p| p.report).collect(),
        worker_peak_bytes: state.worker_peak_bytes,
        retries: state.retries,
        ..RunReport::default()
    })
}

/// Removes what a successful run leaves; failing to is no failure of the run.
fn clean(work: &dyn Store, folder: &str) {
    let _ = work.remove(&format!("{folder}/"));
}

/// The run's folder in the work directory.
#[derive(Clone, Copy)]
struct Folder<'a> {
    /// Where intermediates are: the work directory, or a memory tier over it.
    between: &'a dyn Store,
    name: &'a str,
    journal: &'a Journal,
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
struct Queue<'a> {
    plan: &'a FinalizedPlan,
    run: &'a Run<'a>,
    local: LocalMemory,
    /// Bytes that tasks may hold together.
    room: u64,
    slots: usize,
    folder: Folder<'a>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    stages: Vec<Progress>,
    again: VecDeque<(Instant, TaskRequest)>,
    attempts: HashMap<(StageId, u64), u32>,
    in_flight: usize,
    in_flight_bytes: u64,
    retries: u64,
    worker_peak_bytes: Option<u64>,
    error: Option<RunError>,
}

struct Progress {
    /// First task that was not handed out yet.
    next: u64,
    done: u64,
    report: StageReport,
}

impl<'a> Queue<'a> {
    fn new(plan: &'a FinalizedPlan, run: &'a Run<'a>, local: LocalMemory, room: u64, folder: Folder<'a>) -> Queue<'a> {
        let stages = plan.stages().map(|(_, stage, layout)| Progress {
            next: 0,
            done: 0,
            report: StageReport { name: stage.name.clone(), tasks: stage.n_tasks(), projected_bytes: layout.estimate.total(), ..StageReport::default() },
        });
        let state = State {
            stages: stages.collect(),
            again: VecDeque::new(),
            attempts: HashMap::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            retries: 0,
            worker_peak_bytes: None,
            error: None,
        };
        Queue { plan, run, local, room, slots: run.executor.slots(), folder, state: Mutex::new(state), changed: Condvar::new() }
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
        state.stages[stage.0].done == self.plan.plan().stages[stage.0].n_tasks()
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
        if !failure.kind.is_worth_retrying() || attempts >= MAX_ATTEMPTS {
            state.error.get_or_insert(RunError::Task { failure: failure.clone(), attempts });
            return;
        }
        state.retries += 1;
        let end = outcome.request.first + outcome.request.count;
        let not_before = Instant::now() + Duration::from_millis(50 << attempts.min(6));
        // The task that failed alone, so that what comes after it does not wait for its next failure.
        state.again.push_back((not_before, TaskRequest { stage, first: failure.task, count: 1, attempt: attempts }));
        if failure.task + 1 < end {
            state
                .again
                .push_back((Instant::now(), TaskRequest { stage, first: failure.task + 1, count: end - failure.task - 1, attempt: outcome.request.attempt }));
        }
    }

    /// The tasks' receipts name exactly the chunks that the plan gives to them.
    fn check_receipts(&self, outcome: &TaskOutcome) -> Result<(), RunError> {
        let plan = self.plan.plan();
        let stage = &plan.stages[outcome.request.stage.0];
        for (i, report) in outcome.done.iter().enumerate() {
            let coords = stage.tasks.coords(report.task);
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
        let mut all_out = state.again.is_empty();
        for (id, stage, _) in self.plan.stages() {
            let n = stage.n_tasks();
            let next = state.stages[id.0].next;
            all_out &= next >= n;
            let ready = stage.after.iter().all(|s| self.is_finished(&state, *s));
            if next >= n || !ready || !self.admits(&state, id) {
                continue;
            }
            let batch = (n / (16 * self.slots as u64)).clamp(1, MAX_BATCH).min(n - next);
            state.stages[id.0].next += batch;
            let request = TaskRequest { stage: id, first: next, count: batch, attempt: 0 };
            let handed = self.hand_out(&mut state, request);
            drop(state);
            if next == 0 {
                self.tell(&Event::StageStarted { stage: id });
            }
            return handed;
        }
        if all_out && state.in_flight == 0 { Next::Stop } else { Next::Wait }
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
            progress.done += outcome.done.len() as u64;
            for report in &outcome.done {
                progress.report.traffic.add(report.traffic);
                progress.report.cpu += Duration::from_nanos(report.cpu_ns);
                progress.report.peak_bytes = progress.report.peak_bytes.max(report.peak_bytes);
            }
            let ended = progress.done == self.plan.plan().stages[id.0].n_tasks() && !outcome.done.is_empty();
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
        self.tell(&Event::Outcome { outcome: &outcome });
        if let Some((failure, attempt)) = &retried {
            self.tell(&Event::Retried { failure, attempt: *attempt });
        }
        if ended {
            self.tell(&Event::StageEnded { stage: id });
        }
    }
}
