//! The requests of one invocation, several at once: as many as fit into memory, and as far as there is time.
//!
//! Each thread takes one request after another and runs its tasks in turn. Before each task it looks at the clock: one that would hardly end in time
//! is not begun, unless it is the thread's first, which has as much time as any task ever gets. From time to time it looks whether the client still
//! waits for the results; if not, what was not begun is given back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use freestone_engine::plan::{FinalizedPlan, StageId};
use freestone_engine::remote::{is_over, write_record};
use freestone_engine::storage::Store;
use freestone_engine::task::{FailureKind, TaskFailure, TaskOutcome, TaskRequest};
use freestone_engine::worker::{RunContext, Worker};
use freestone_engine::{machine, panics};

use crate::log;

/// When an invocation must have been answered; never, where its time is not limited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    end: Option<Instant>,
    /// Set aside for records and the answer.
    reserve: Duration,
}

impl Deadline {
    /// The deadline of an invocation that began at `start` and may take so long: a tenth of it, at most two seconds, is set aside.
    pub(crate) fn new(start: Instant, left: Option<Duration>) -> Deadline {
        Deadline { end: left.map(|left| start + left), reserve: left.map_or(Duration::ZERO, |left| (left / 10).min(Duration::from_secs(2))) }
    }

    /// Time that is left for tasks.
    fn left(&self) -> Duration {
        self.end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()).saturating_sub(self.reserve))
    }
}

/// For each stage, how long its slowest task took.
#[derive(Debug)]
struct Pace(Mutex<Vec<Duration>>);

impl Pace {
    /// Of a stage; zero where nothing is known of it.
    fn slowest(&self, stage: StageId) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(stage.0).copied().unwrap_or_default()
    }

    fn add(&self, stage: StageId, time: Duration) {
        if let Some(slowest) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(stage.0) {
            *slowest = time.max(*slowest);
        }
    }
}

/// Admission of tasks by bytes, for all invocations of a process.
#[derive(Debug)]
struct Admission {
    room: u64,
    most: u32,
    admitted: Mutex<Admitted>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Admitted {
    bytes: u64,
    tasks: u32,
}

/// A request's share of the room, until it is dropped.
#[derive(Debug)]
struct Permit<'a> {
    of: &'a Admission,
    bytes: u64,
}

impl Admission {
    fn lock(&self) -> MutexGuard<'_, Admitted> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for a task of so many bytes, if there is some now. What runs alone always has room: that it fits at all was checked with the plan.
    fn admit(&self, bytes: u64) -> Option<Permit<'_>> {
        let mut admitted = self.lock();
        let fits = admitted.tasks < self.most && admitted.bytes.saturating_add(bytes) <= self.room;
        (admitted.tasks == 0 || fits).then(|| {
            admitted.tasks += 1;
            admitted.bytes = admitted.bytes.saturating_add(bytes);
            Permit { of: self, bytes }
        })
    }

    /// Waits until room may have become free.
    fn wait(&self) {
        drop(self.changed.wait_timeout(self.lock(), Duration::from_millis(20)));
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut admitted = self.of.lock();
        admitted.tasks -= 1;
        admitted.bytes -= self.bytes;
        drop(admitted);
        self.of.changed.notify_all();
    }
}

/// What the invocations of a plan share.
#[derive(Debug)]
pub(crate) struct LoadedPlan {
    /// The plan and where it lies.
    pub(crate) context: RunContext,
    /// For each stage, how many of its tasks run at once.
    pub(crate) slots: Vec<u32>,
    admission: Admission,
    pace: Pace,
    /// What the one task at a time that there is room for has at hand for the next.
    idle: Mutex<Option<Worker>>,
}

impl LoadedPlan {
    /// For a plan of whose tasks so many run at once, in `room` bytes.
    pub(crate) fn new(context: RunContext, slots: Vec<u32>, room: u64, most: u32) -> LoadedPlan {
        let admission = Admission { room, most: most.max(1), admitted: Mutex::default(), changed: Condvar::new() };
        LoadedPlan { pace: Pace(Mutex::new(vec![Duration::ZERO; slots.len()])), context, slots, admission, idle: Mutex::default() }
    }

    fn slots(&self, stage: StageId) -> u32 {
        self.slots.get(stage.0).copied().unwrap_or(1)
    }

    fn idle(&self) -> MutexGuard<'_, Option<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that a request's tasks take, one at a time; none where the plan has no such stage, which its outcome will say.
fn bytes(plan: &FinalizedPlan, request: &TaskRequest) -> u64 {
    if request.stage.0 < plan.plan().stages.len() { plan.layout(request.stage).estimate.per_task() } else { 0 }
}

/// What became of requests; each is in one of these.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) outcomes: Vec<TaskOutcome>,
    pub(crate) recorded: Vec<u64>,
    pub(crate) not_started: Vec<u64>,
}

/// What the threads of an invocation share.
struct Shared<'a> {
    plan: &'a LoadedPlan,
    /// In outcomes.
    name: &'a str,
    records: Option<Records<'a>>,
    deadline: Deadline,
    state: Mutex<State>,
    /// When it was last looked whether anybody waits for the results, and how often before.
    looked: Mutex<(Instant, u64)>,
    is_over: AtomicBool,
}

/// Where records go.
struct Records<'a> {
    client: &'a str,
    work: Result<Arc<dyn Store>, String>,
}

struct State {
    todo: VecDeque<TaskRequest>,
    ended: Ended,
    answer_bytes: usize,
}

/// Outcomes in one answer; the others are left in their records. Lambda would take three times as much, but an answer is in no task's projection.
const OUTCOME_BYTES: usize = 2_000_000;
/// A record is written so often where storage fails in a way that may pass.
const RECORD_ATTEMPTS: u32 = 3;
/// It is looked so often at most whether anybody waits for the results: a request to storage each time.
const LOOK: Duration = Duration::from_secs(1);

/// Runs requests, as many at once as there is room for. Outcomes are recorded where the client has a name.
pub(crate) fn run(plan: &LoadedPlan, name: &str, client: Option<&str>, requests: Vec<TaskRequest>, deadline: Deadline) -> Ended {
    let most = requests.iter().map(|r| plan.slots(r.stage)).max().unwrap_or(0);
    let threads = most.min(u32::try_from(requests.len()).unwrap_or(u32::MAX));
    let address = &plan.context.address;
    let shared = Shared {
        plan,
        name,
        records: client.map(|client| Records { client, work: plan.context.stores.open(&address.work_dir).map_err(|e| e.to_string()) }),
        deadline,
        state: Mutex::new(State { todo: requests.into(), ended: Ended::default(), answer_bytes: 0 }),
        looked: Mutex::new((Instant::now(), 0)),
        is_over: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        // What a thread cannot be started for is done by the others; the first is this one.
        for slot in 1..threads {
            let shared = &shared;
            let _ = std::thread::Builder::new().name(format!("task-{slot}")).spawn_scoped(scope, move || shared.work(slot));
        }
        shared.work(0);
    });
    let State { mut ended, todo, .. } = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.not_started.extend(todo.iter().map(|r| r.id));
    ended
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker(&self, slot: u32) -> Worker {
        let name = if self.plan.admission.most == 1 { self.name.to_owned() } else { format!("{}/{slot}", self.name) };
        Worker::new(self.plan.context.clone(), name)
    }

    /// True once nobody waits for the results any more.
    fn is_over(&self) -> bool {
        let due = || {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            (looked.0.elapsed() >= LOOK).then(|| {
                let number = looked.1;
                *looked = (Instant::now(), number + 1);
                number
            })
        };
        if !self.is_over.load(Ordering::Relaxed)
            && let Some(Records { client, work: Ok(work) }) = &self.records
            && let Some(look) = due()
            && is_over(&**work, &self.plan.context.address.folder, client, look)
        {
            self.is_over.store(true, Ordering::Relaxed);
        }
        self.is_over.load(Ordering::Relaxed)
    }

    /// One thread's part.
    fn work(&self, slot: u32) {
        let (mut own, mut is_first) = (None, true);
        while let Some((request, permit)) = self.next(&mut own, is_first) {
            // What is idle holds the room of a task, so it is there only for who has a permit.
            let mut worker = own.take().or_else(|| self.plan.idle().take()).unwrap_or_else(|| self.worker(slot));
            let outcome = self.run_request(&mut worker, &request, &mut is_first, slot);
            if self.plan.admission.most == 1 {
                *self.plan.idle() = Some(worker);
            } else {
                own = Some(worker);
            }
            // Where it is done, its room is free for others before its record is written.
            drop(permit);
            self.ended(outcome);
        }
    }

    /// The next request that there is room and time for.
    fn next(&self, worker: &mut Option<Worker>, is_first: bool) -> Option<(TaskRequest, Permit<'_>)> {
        let LoadedPlan { admission, pace, context, .. } = self.plan;
        loop {
            if self.is_over() {
                return None;
            }
            let mut state = self.lock();
            let left = self.deadline.left();
            let in_time = |r: &TaskRequest| left > Duration::ZERO && (is_first || left > 2 * pace.slowest(r.stage));
            if !state.todo.iter().any(in_time) {
                return None;
            }
            for at in 0..state.todo.len() {
                if in_time(&state.todo[at])
                    && let Some(permit) = admission.admit(bytes(&context.plan, &state.todo[at]))
                    && let Some(request) = state.todo.remove(at)
                {
                    return Some((request, permit));
                }
            }
            // Who waits holds nothing: its share of memory is for those who work.
            drop(state);
            worker.iter_mut().for_each(Worker::rest);
            admission.wait();
        }
    }

    /// Runs a request's tasks until one fails, all are done, or time is short.
    fn run_request(&self, worker: &mut Worker, request: &TaskRequest, is_first: &mut bool, slot: u32) -> TaskOutcome {
        let name = worker.name().to_owned();
        let pace = &self.plan.pace;
        let mut outcome = TaskOutcome { request: request.clone(), worker: name, done: Vec::new(), failure: None, worker_peak_bytes: None };
        for task in request.first..request.first.saturating_add(request.count) {
            let first = std::mem::replace(is_first, false);
            // A look may take its time, so it comes before that of the task is known.
            if !first && self.is_over() {
                break;
            }
            let left = self.deadline.left();
            if left.is_zero() || (!first && left < 2 * pace.slowest(request.stage)) {
                break;
            }
            let limit = self.deadline.end.map(|_| left.as_millis() as u64);
            let is_ours = limit.is_some_and(|limit| request.timeout_ms.is_none_or(|ms| limit < ms));
            let timeout_ms = request.timeout_ms.into_iter().chain(limit).min();
            let one = TaskRequest { first: task, count: 1, timeout_ms, ..request.clone() };
            let start = Instant::now();
            // A panic is a defect; it must not take the results of others with it.
            let ran = panics::caught(|| worker.run(&one)).unwrap_or_else(|panic| {
                *worker = self.worker(slot);
                TaskOutcome { failure: Some(panicked(&self.plan.context, &one, &panic)), ..outcome.clone() }
            });
            match ran.failure {
                Some(failure) if failure.kind == FailureKind::TimedOut && is_ours => {
                    // It has never been slower, as far as is known: with a whole invocation for itself it may still end in time.
                    pace.add(request.stage, start.elapsed());
                    if first {
                        let message = format!(
                            "it did not end in the {:.1} s that one invocation has for a task: raise the function's timeout, or make tasks smaller",
                            left.as_secs_f64()
                        );
                        outcome.failure = Some(TaskFailure { message, ..failure });
                    }
                    break;
                }
                Some(failure) => {
                    outcome.failure = Some(failure);
                    break;
                }
                None => {
                    pace.add(request.stage, start.elapsed());
                    outcome.done.extend(ran.done);
                }
            }
        }
        outcome.worker_peak_bytes = Some(machine::peak_rss_bytes());
        outcome
    }

    /// Records a request that has ended, and puts it into the answer.
    fn ended(&self, outcome: TaskOutcome) {
        if outcome.done.is_empty() && outcome.failure.is_none() {
            self.lock().ended.not_started.push(outcome.request.id);
            return;
        }
        let recorded = self.records.as_ref().map(|records| self.record(records, &outcome));
        let mut state = self.lock();
        match recorded {
            Some(Ok(length)) if state.answer_bytes + length > OUTCOME_BYTES => state.ended.recorded.push(outcome.request.id),
            Some(Ok(length)) => {
                state.answer_bytes += length;
                state.ended.outcomes.push(outcome);
            }
            Some(Err(error)) => {
                log(&format!("request {} has no record: {error}", outcome.request.id));
                state.ended.outcomes.push(outcome);
            }
            None => state.ended.outcomes.push(outcome),
        }
    }

    /// Writes the record of a request; its length.
    fn record(&self, records: &Records<'_>, outcome: &TaskOutcome) -> Result<usize, String> {
        let work = records.work.as_ref().map_err(|e| format!("cannot open the work directory: {e}"))?;
        let mut attempt = 1;
        loop {
            match write_record(&**work, &self.plan.context.address.folder, records.client, outcome) {
                Err(error) if error.may_be_retried() && attempt < RECORD_ATTEMPTS && !self.deadline.left().is_zero() => attempt += 1,
                result => return result.map_err(|e| e.to_string()),
            }
        }
    }
}

/// The failure of a task that panicked outside of a user's kernel.
pub fn panicked(context: &RunContext, request: &TaskRequest, panic: &str) -> TaskFailure {
    let stage = context.plan.plan().stages.get(request.stage.0).map(|s| s.name.clone()).unwrap_or_default();
    let message = format!("internal error: the task panicked: {panic} (hint: this is a defect of Freestone, please report it)");
    TaskFailure { kind: FailureKind::Internal, message, stage, task: request.first }
}
