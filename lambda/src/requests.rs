//! The requests of one invocation, several at once: as many as fit into memory, and as far as there is time.
//!
//! Each thread takes one request after another and runs its tasks in turn. Before each task it looks at the clock: one that would hardly end in time
//! is not begun, unless it is the thread's first, which has as much time as any task ever gets. From time to time it looks whether anybody still waits
//! for the results; if not, what was not begun is given back.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use freestone_engine::machine;
use freestone_engine::plan::StageId;
use freestone_engine::remote::{is_over, write_record};
use freestone_engine::storage::Store;
use freestone_engine::task::{FailureKind, TaskFailure, TaskOutcome, TaskRequest};
use freestone_engine::worker::{RunContext, Worker};

use crate::log;

/// When an invocation must have been answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    end: Instant,
    /// Set aside for records and the answer.
    reserve: Duration,
}

impl Deadline {
    /// One of an invocation that began at `start` and may take so long: a tenth of it, at most two seconds, is set aside.
    pub(crate) fn new(start: Instant, left: Duration) -> Deadline {
        Deadline { end: start + left, reserve: (left / 10).min(Duration::from_secs(2)) }
    }

    /// Time that is left for tasks.
    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now()).saturating_sub(self.reserve)
    }
}

/// For each stage, how long its slowest task took.
#[derive(Debug)]
pub(crate) struct Pace(Vec<Duration>);

impl Pace {
    /// Of so many stages of which nothing is known.
    pub(crate) fn new(n_stages: usize) -> Pace {
        Pace(vec![Duration::ZERO; n_stages])
    }

    fn slowest(&self, stage: StageId) -> Duration {
        self.0.get(stage.0).copied().unwrap_or_default()
    }

    fn add(&mut self, stage: StageId, time: Duration) {
        if let Some(slowest) = self.0.get_mut(stage.0) {
            *slowest = time.max(*slowest);
        }
    }
}

/// What became of requests; each is in one of these.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) outcomes: Vec<TaskOutcome>,
    pub(crate) recorded: Vec<u64>,
    pub(crate) not_started: Vec<u64>,
}

/// What the threads share.
struct Shared<'a> {
    context: &'a RunContext,
    work: Option<std::sync::Arc<dyn Store>>,
    environment: &'a str,
    client: &'a str,
    deadline: Deadline,
    state: Mutex<State<'a>>,
    changed: Condvar,
    /// When it was last looked whether anybody waits for the results, and how often before.
    looked: Mutex<(Instant, u64)>,
    is_over: AtomicBool,
}

struct State<'a> {
    todo: VecDeque<TaskRequest>,
    /// Parts of the room that are taken, of 1.
    taken: f64,
    pace: &'a mut Pace,
    ended: Ended,
    answer_bytes: usize,
}

/// Outcomes in one answer; the others are left in their records. Lambda would take three times as much, but an answer is in no task's projection.
const OUTCOME_BYTES: usize = 2_000_000;
/// A record is written so often where storage fails in a way that may pass.
const RECORD_ATTEMPTS: u32 = 3;
/// It is looked so often at most whether anybody waits for the results: a request to storage each time.
const LOOK: Duration = Duration::from_secs(1);

/// Runs requests, at most `slots` of a stage at once; stages share the room in proportion.
pub(crate) fn run(
    context: &RunContext,
    slots: &[u32],
    pace: &mut Pace,
    environment: &str,
    client: &str,
    requests: Vec<TaskRequest>,
    deadline: Deadline,
) -> Ended {
    let of = |r: &TaskRequest| slots.get(r.stage.0).copied().unwrap_or(1).max(1);
    let threads = requests.iter().map(of).max().unwrap_or(0).min(u32::try_from(requests.len()).unwrap_or(u32::MAX));
    let state = State { todo: requests.into(), taken: 0.0, pace, ended: Ended::default(), answer_bytes: 0 };
    let shared = Shared {
        context,
        work: context.stores.open(&context.address.work_dir).ok(),
        environment,
        client,
        deadline,
        state: Mutex::new(state),
        changed: Condvar::new(),
        looked: Mutex::new((Instant::now(), 0)),
        is_over: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        // What a thread cannot be started for is done by the others; the first is this one.
        for slot in 1..threads {
            let shared = &shared;
            let _ = std::thread::Builder::new().name(format!("task-{slot}")).spawn_scoped(scope, move || shared.work(slot, slots));
        }
        shared.work(0, slots);
    });
    let State { mut ended, todo, .. } = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.not_started.extend(todo.iter().map(|r| r.id));
    ended
}

impl<'a> Shared<'a> {
    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            && let Some(work) = &self.work
            && let Some(look) = due()
            && is_over(&**work, &self.context.address.folder, self.client, look)
        {
            self.is_over.store(true, Ordering::Relaxed);
        }
        self.is_over.load(Ordering::Relaxed)
    }

    /// One thread's part.
    fn work(&self, slot: u32, slots: &[u32]) {
        let mut worker = Worker::new(self.context.clone(), format!("lambda {}/{slot}", self.environment));
        let mut is_first = true;
        while let Some((request, share)) = self.next(&mut worker, slots, is_first) {
            let outcome = self.run_request(&mut worker, &request, &mut is_first);
            // Where it is done, its room is free for others before its record is written.
            self.lock().taken -= share;
            self.changed.notify_all();
            self.ended(outcome);
        }
    }

    /// The next request that there is room and time for, and what it takes of the room.
    fn next(&self, worker: &mut Worker, slots: &[u32], is_first: bool) -> Option<(TaskRequest, f64)> {
        let share = |r: &TaskRequest| 1.0 / f64::from(slots.get(r.stage.0).copied().unwrap_or(1).max(1));
        loop {
            if self.is_over() {
                return None;
            }
            let mut state = self.lock();
            let left = self.deadline.left();
            let fits = |r: &TaskRequest| state.taken == 0.0 || state.taken + share(r) < 1.0 + 1e-6;
            let in_time = |r: &TaskRequest| left > Duration::ZERO && (is_first || left > 2 * state.pace.slowest(r.stage));
            if !state.todo.iter().any(in_time) {
                return None;
            }
            if let Some(at) = state.todo.iter().position(|r| in_time(r) && fits(r)) {
                let request = state.todo.remove(at)?;
                let share = share(&request);
                state.taken += share;
                return Some((request, share));
            }
            // Who waits holds nothing: its share of memory is for those who work.
            drop(state);
            worker.rest();
            drop(self.changed.wait_timeout(self.lock(), Duration::from_millis(20)));
        }
    }

    /// Runs a request's tasks until one fails, all are done, or time is short.
    fn run_request(&self, worker: &mut Worker, request: &TaskRequest, is_first: &mut bool) -> TaskOutcome {
        let name = worker.name().to_owned();
        let mut outcome = TaskOutcome { request: request.clone(), worker: name, done: Vec::new(), failure: None, worker_peak_bytes: None };
        for task in request.first..request.first.saturating_add(request.count) {
            let first = std::mem::replace(is_first, false);
            // A look may take its time, so it comes before that of the task is known.
            if !first && self.is_over() {
                break;
            }
            let left = self.deadline.left();
            if left.is_zero() || (!first && left < 2 * self.lock().pace.slowest(request.stage)) {
                break;
            }
            let limit = left.as_millis() as u64;
            let is_ours = request.timeout_ms.is_none_or(|ms| limit < ms);
            let one = TaskRequest { first: task, count: 1, timeout_ms: Some(request.timeout_ms.map_or(limit, |ms| ms.min(limit))), ..request.clone() };
            let start = Instant::now();
            // A panic is a defect; it must not take the results of others with it.
            let ran = catch_unwind(AssertUnwindSafe(|| worker.run(&one)));
            let ran = ran.unwrap_or_else(|_| {
                *worker = Worker::new(self.context.clone(), outcome.worker.clone());
                let message = "the task panicked: please report this".to_owned();
                let stage = self.context.plan.plan().stages.get(request.stage.0).map(|s| s.name.clone()).unwrap_or_default();
                TaskOutcome { failure: Some(TaskFailure { kind: FailureKind::Plan, message, stage, task }), ..outcome.clone() }
            });
            match ran.failure {
                Some(failure) if failure.kind == FailureKind::TimedOut && is_ours => {
                    // It has never been slower, as far as is known: with a whole invocation for itself it may still end in time.
                    self.lock().pace.add(request.stage, start.elapsed());
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
                    self.lock().pace.add(request.stage, start.elapsed());
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
        let recorded = self.record(&outcome);
        let mut state = self.lock();
        match recorded {
            Ok(length) if state.answer_bytes + length > OUTCOME_BYTES => state.ended.recorded.push(outcome.request.id),
            Ok(length) => {
                state.answer_bytes += length;
                state.ended.outcomes.push(outcome);
            }
            Err(error) => {
                log(&format!("request {} has no record: {error}", outcome.request.id));
                state.ended.outcomes.push(outcome);
            }
        }
    }

    /// Writes the record of a request; its length.
    fn record(&self, outcome: &TaskOutcome) -> Result<usize, String> {
        let work = self.work.as_ref().ok_or("the work directory cannot be opened")?;
        let mut attempt = 1;
        loop {
            match write_record(&**work, &self.context.address.folder, self.client, outcome) {
                Err(error) if error.may_be_retried() && attempt < RECORD_ATTEMPTS && !self.deadline.left().is_zero() => attempt += 1,
                result => return result.map_err(|e| e.to_string()),
            }
        }
    }
}
