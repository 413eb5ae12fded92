//! Concurrent execution of the requests of one invocation, limited by memory and time.
//!
//! Each thread takes one request after another and runs its tasks in sequence. Before each task it
//! checks the remaining time, and does not start a task that would probably exceed the deadline.
//! This does not apply to a thread's first task, because no task ever gets more time. Threads
//! periodically check whether the client still waits for results. If not, requests that have not
//! started are returned.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use freestone_engine::plan::{FinalizedPlan, StageId};
use freestone_engine::remote::{is_over, write_record};
use freestone_engine::storage::Store;
use freestone_engine::system::System;
use freestone_engine::task::{FailureKind, TaskFailure, TaskOutcome, TaskRequest};
use freestone_engine::worker::{RunContext, Worker};
use freestone_engine::{machine, panics};

use crate::log;

/// The deadline of an invocation's answer; `None` in `end` means no limit.
#[derive(Clone, Debug)]
pub(crate) struct Deadline {
    system: System,
    end: Option<Instant>,
    /// The time reserved for records and the answer.
    reserve: Duration,
}

impl Deadline {
    /// Creates the deadline of an invocation that begins now, with `left` as its limit. Reserves a
    /// tenth of the limit, at most two seconds.
    pub(crate) fn new(system: &System, left: Option<Duration>) -> Deadline {
        Deadline {
            system: system.clone(),
            end: left.map(|left| system.now() + left),
            reserve: left.map_or(Duration::ZERO, |left| (left / 10).min(Duration::from_secs(2))),
        }
    }

    /// Returns the time left for tasks.
    fn left(&self) -> Duration {
        self.end.map_or(Duration::MAX, |end| {
            end.saturating_duration_since(self.system.now()).saturating_sub(self.reserve)
        })
    }
}

/// The duration of the slowest task of each stage.
#[derive(Debug)]
struct Pace(Mutex<Vec<Duration>>);

impl Pace {
    /// Returns the duration of a stage's slowest task; zero if none is known.
    fn slowest(&self, stage: StageId) -> Duration {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(stage.0)
            .copied()
            .unwrap_or_default()
    }

    fn add(&self, stage: StageId, time: Duration) {
        if let Some(slowest) =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(stage.0)
        {
            *slowest = time.max(*slowest);
        }
    }
}

/// Admission control by memory, for all invocations of a process.
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

/// A request's reserved memory, released on drop.
#[derive(Debug)]
struct Permit<'a> {
    of: &'a Admission,
    bytes: u64,
}

impl Admission {
    fn lock(&self) -> MutexGuard<'_, Admitted> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves memory for a task if enough is free. A task that runs alone is always admitted,
    /// because the plan's check ensures that it fits.
    fn admit(&self, bytes: u64) -> Option<Permit<'_>> {
        let mut admitted = self.lock();
        let fits = admitted.tasks < self.most && admitted.bytes.saturating_add(bytes) <= self.room;
        (admitted.tasks == 0 || fits).then(|| {
            admitted.tasks += 1;
            admitted.bytes = admitted.bytes.saturating_add(bytes);
            Permit { of: self, bytes }
        })
    }

    /// Waits until memory may have been released.
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

/// The state that all invocations of a plan share.
#[derive(Debug)]
pub(crate) struct LoadedPlan {
    /// The plan and its location.
    pub(crate) context: RunContext,
    /// The number of concurrent tasks of each stage.
    pub(crate) slots: Vec<u32>,
    admission: Admission,
    pace: Pace,
    /// The worker that is kept for the next task, if only one task runs at a time.
    idle: Mutex<Option<Worker>>,
}

impl LoadedPlan {
    /// Creates the shared state for a plan whose tasks are limited to `room` bytes and `most` at
    /// once.
    pub(crate) fn new(context: RunContext, slots: Vec<u32>, room: u64, most: u32) -> LoadedPlan {
        let admission = Admission {
            room,
            most: most.max(1),
            admitted: Mutex::default(),
            changed: Condvar::new(),
        };
        LoadedPlan {
            pace: Pace(Mutex::new(vec![Duration::ZERO; slots.len()])),
            context,
            slots,
            admission,
            idle: Mutex::default(),
        }
    }

    fn slots(&self, stage: StageId) -> u32 {
        self.slots.get(stage.0).copied().unwrap_or(1)
    }

    fn idle(&self) -> MutexGuard<'_, Option<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the bytes that a request's tasks need, one at a time. Returns 0 for a stage that is not
/// in the plan; the outcome then reports the error.
fn bytes(plan: &FinalizedPlan, request: &TaskRequest) -> u64 {
    if request.stage.0 < plan.plan().stages.len() {
        plan.layout(request.stage).estimate.per_task()
    } else {
        0
    }
}

/// The results of requests. Each request is in exactly one list.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) outcomes: Vec<TaskOutcome>,
    pub(crate) recorded: Vec<u64>,
    pub(crate) not_started: Vec<u64>,
}

/// The state that all threads of an invocation share.
struct Shared<'a> {
    plan: &'a LoadedPlan,
    /// The worker's name in outcomes.
    name: &'a str,
    records: Option<Records<'a>>,
    deadline: &'a Deadline,
    state: Mutex<State>,
    /// The time of the last check whether the client still waits, and the number of checks.
    last_check: Mutex<(Instant, u64)>,
    is_over: AtomicBool,
}

/// The destination of records.
struct Records<'a> {
    client: &'a str,
    work: Result<Arc<dyn Store>, String>,
}

struct State {
    todo: VecDeque<TaskRequest>,
    ended: Ended,
    answer_bytes: usize,
}

/// The maximum bytes of outcomes in one answer; other outcomes are only in their records.
///
/// Lambda permits three times as much, but no task's projection includes the answer.
const OUTCOME_BYTES: usize = 2_000_000;
/// The maximum number of tries to write a record, for transient storage failures.
const RECORD_ATTEMPTS: u32 = 3;
/// The minimum interval between checks whether the client still waits. Each check is a storage
/// request.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs requests concurrently as far as memory permits. Records outcomes if the client has a name.
pub(crate) fn run(
    plan: &LoadedPlan,
    name: &str,
    client: Option<&str>,
    requests: Vec<TaskRequest>,
    deadline: &Deadline,
) -> Ended {
    let most = requests.iter().map(|r| plan.slots(r.stage)).max().unwrap_or(0);
    let threads = most.min(u32::try_from(requests.len()).unwrap_or(u32::MAX));
    let address = &plan.context.address;
    let shared = Shared {
        plan,
        name,
        records: client.map(|client| Records {
            client,
            work: plan.context.stores.open(&address.work_dir).map_err(|e| e.to_string()),
        }),
        deadline,
        state: Mutex::new(State {
            todo: requests.into(),
            ended: Ended::default(),
            answer_bytes: 0,
        }),
        last_check: Mutex::new((deadline.system.now(), 0)),
        is_over: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        // If a thread cannot be started, the others take its share. This thread is the first.
        for slot in 1..threads {
            let shared = &shared;
            let _ = std::thread::Builder::new()
                .name(format!("task-{slot}"))
                .spawn_scoped(scope, move || shared.work(slot));
        }
        shared.work(0);
    });
    let State { mut ended, todo, .. } =
        shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.not_started.extend(todo.iter().map(|r| r.id));
    ended
}

impl Shared<'_> {
    fn system(&self) -> &System {
        &self.deadline.system
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker(&self, slot: u32) -> Worker {
        let name = if self.plan.admission.most == 1 {
            self.name.to_owned()
        } else {
            format!("{}/{slot}", self.name)
        };
        Worker::new(self.plan.context.clone(), name)
    }

    /// Returns true once the client no longer waits for results.
    fn is_over(&self) -> bool {
        let due = || {
            let mut last = self.last_check.lock().unwrap_or_else(PoisonError::into_inner);
            (self.system().elapsed(last.0) >= CHECK_INTERVAL).then(|| {
                let number = last.1;
                *last = (self.system().now(), number + 1);
                number
            })
        };
        if !self.is_over.load(Ordering::Relaxed)
            && let Some(Records { client, work: Ok(work) }) = &self.records
            && let Some(check) = due()
            && is_over(&**work, &self.plan.context.address.folder, client, check)
        {
            self.is_over.store(true, Ordering::Relaxed);
        }
        self.is_over.load(Ordering::Relaxed)
    }

    /// Runs requests on one thread.
    fn work(&self, slot: u32) {
        let (mut own, mut is_first) = (None, true);
        while let Some((request, permit)) = self.next(&mut own, is_first) {
            // An idle worker holds the memory of one task, so only a thread with a permit may take
            // it.
            let mut worker =
                own.take().or_else(|| self.plan.idle().take()).unwrap_or_else(|| self.worker(slot));
            let outcome = self.run_request(&mut worker, &request, &mut is_first, slot);
            if self.plan.admission.most == 1 {
                *self.plan.idle() = Some(worker);
            } else {
                own = Some(worker);
            }
            // Memory is released before the record is written.
            drop(permit);
            self.ended(outcome);
        }
    }

    /// Returns the next request for which memory and time suffice.
    fn next(
        &self,
        worker: &mut Option<Worker>,
        is_first: bool,
    ) -> Option<(TaskRequest, Permit<'_>)> {
        let LoadedPlan { admission, pace, context, .. } = self.plan;
        loop {
            if self.is_over() {
                return None;
            }
            let mut state = self.lock();
            let left = self.deadline.left();
            let in_time = |r: &TaskRequest| {
                left > Duration::ZERO && (is_first || left > 2 * pace.slowest(r.stage))
            };
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
            // A waiting thread releases its memory for running threads.
            drop(state);
            worker.iter_mut().for_each(Worker::release);
            admission.wait();
        }
    }

    /// Runs a request's tasks until one fails, all are done, or the time does not suffice.
    fn run_request(
        &self,
        worker: &mut Worker,
        request: &TaskRequest,
        is_first: &mut bool,
        slot: u32,
    ) -> TaskOutcome {
        let name = worker.name().to_owned();
        let pace = &self.plan.pace;
        let mut outcome = TaskOutcome {
            request: request.clone(),
            worker: name,
            done: Vec::new(),
            failure: None,
            worker_peak_bytes: None,
        };
        for task in request.first..request.first.saturating_add(request.count) {
            let first = std::mem::replace(is_first, false);
            // The check may take time, so it precedes the computation of the time left.
            if !first && self.is_over() {
                break;
            }
            let left = self.deadline.left();
            if left.is_zero() || (!first && left < 2 * pace.slowest(request.stage)) {
                break;
            }
            let limit = self.deadline.end.map(|_| left.as_millis() as u64);
            let is_deadline =
                limit.is_some_and(|limit| request.timeout_ms.is_none_or(|ms| limit < ms));
            let timeout_ms = request.timeout_ms.into_iter().chain(limit).min();
            let one = TaskRequest { first: task, count: 1, timeout_ms, ..request.clone() };
            let start = self.system().now();
            let ran = self.run_task(worker, one, slot);
            match ran.failure {
                Some(failure) if failure.kind == FailureKind::TimedOut && is_deadline => {
                    // No slower task of this stage is known. With a whole invocation for itself,
                    // the task may still finish in time.
                    pace.add(request.stage, self.system().elapsed(start));
                    outcome.failure = first.then(|| over_deadline(failure, left));
                    break;
                }
                Some(failure) => {
                    outcome.failure = Some(failure);
                    break;
                }
                None => {
                    pace.add(request.stage, self.system().elapsed(start));
                    outcome.done.extend(ran.done);
                }
            }
        }
        outcome.worker_peak_bytes = Some(machine::peak_rss_bytes());
        outcome
    }

    /// Runs a request of one task.
    fn run_task(&self, worker: &mut Worker, request: TaskRequest, slot: u32) -> TaskOutcome {
        // A panic is a defect, but must not discard the results of other tasks.
        panics::caught(|| worker.run(&request)).unwrap_or_else(|panic| {
            *worker = self.worker(slot);
            TaskOutcome {
                failure: Some(panicked(&self.plan.context, &request, &panic)),
                request,
                worker: worker.name().to_owned(),
                done: Vec::new(),
                worker_peak_bytes: None,
            }
        })
    }

    /// Records a finished request and adds it to the answer.
    fn ended(&self, outcome: TaskOutcome) {
        if outcome.done.is_empty() && outcome.failure.is_none() {
            self.lock().ended.not_started.push(outcome.request.id);
            return;
        }
        let recorded = self.records.as_ref().map(|records| self.record(records, &outcome));
        let mut state = self.lock();
        match recorded {
            Some(Ok(length)) if state.answer_bytes + length > OUTCOME_BYTES => {
                state.ended.recorded.push(outcome.request.id)
            }
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

    /// Writes the record of a request and returns its length.
    fn record(&self, records: &Records<'_>, outcome: &TaskOutcome) -> Result<usize, String> {
        let work =
            records.work.as_ref().map_err(|e| format!("cannot open the work directory: {e}"))?;
        let mut attempt = 1;
        loop {
            match write_record(&**work, &self.plan.context.address.folder, records.client, outcome)
            {
                Err(error)
                    if error.is_retryable()
                        && attempt < RECORD_ATTEMPTS
                        && !self.deadline.left().is_zero() =>
                {
                    attempt += 1
                }
                result => return result.map_err(|e| e.to_string()),
            }
        }
    }
}

/// Returns the failure of a task that exceeds the time of a whole invocation.
fn over_deadline(failure: TaskFailure, left: Duration) -> TaskFailure {
    let message = format!(
        "exceeded {:.1} s, the time limit of a task in one invocation (hint: raise the function's \
            timeout, or make tasks smaller)",
        left.as_secs_f64()
    );
    TaskFailure { message, ..failure }
}

/// Returns the failure of a task that panicked outside a user's kernel.
pub fn panicked(context: &RunContext, request: &TaskRequest, panic: &str) -> TaskFailure {
    let stage =
        context.plan.plan().stages.get(request.stage.0).map(|s| s.name.clone()).unwrap_or_default();
    let message = format!(
        "internal error: the task panicked: {panic} (hint: this is a defect of Freestone, please \
            report it)"
    );
    TaskFailure { kind: FailureKind::Internal, message, stage, task: request.first }
}
