//! From requests to invocations, and from their replies to outcomes.
//!
//! One loop, on the thread that calls the executor, does everything but waiting for sockets and for
//! storage; these are tasks of a small runtime, each of which sends what became of one invocation.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use freestone_engine::executor::{ExecutorError, Invocations, Next, TaskSource};
use freestone_engine::remote::{self, RefusalKind};
use freestone_engine::retry::{Backoff, Retry};
use freestone_engine::storage::Store;
use freestone_engine::system::System;
use freestone_engine::task::{FailureKind, RunAddress, TaskOutcome, TaskRequest};
use freestone_engine::worker::RunContext;
use freestone_worker::{Answer, Call, Environment, Invocation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::batch::Pace;
use super::client::{self, Client};
use super::reply::Reply;
use super::window::Window;
use super::{LambdaExecutor, Probed};
use crate::lost;

/// A probe that is told of too many invocations is made again so long, and one that fails otherwise
/// so often.
const PROBE_TIME: Duration = Duration::from_secs(60);
const PROBES: Retry = Retry {
    tries: 4,
    backoff: Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(5) },
    within: Duration::MAX,
};
/// The loop looks around so often at least, and asks so often whether outcomes are still wanted.
const TICK: Duration = Duration::from_millis(20);
const WANTED_TICK: Duration = Duration::from_millis(100);
/// Pauses before invocations that were refused are made again. Their requests are not retried by
/// anybody else: what they ask for is no request to a store.
const PAUSES: Backoff =
    Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(5) };
/// Where no invocation was accepted for so long, none will be.
const STARVED: Duration = Duration::from_secs(600);
/// The records of an answer that was lost are waited for so long at least, and looked for so often
/// at first.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Answers whose records are looked for at once, each by a thread with a connection of its own:
/// less than what `client` leaves for other descriptors than its own.
pub(super) const LOOKS: usize = 32;

/// Asks the function whether it can run the plan.
pub(super) fn probe(of: &LambdaExecutor, context: &RunContext) -> Result<Probed, ExecutorError> {
    let (runtime, client) = of.client(of.function_timeout)?;
    let invocation =
        Invocation::new(context.address.clone(), client_name(context.stores.system()), Call::Probe);
    let system = context.stores.system();
    let (start, mut refused, mut failures) = (system.now(), 0, 0);
    loop {
        let (reply, _) = runtime.block_on(client.invoke(&invocation));
        let why = match reply {
            Reply::Answer(answer) => match *answer {
                Answer::Ready { environment, slots, remaining_ms } => {
                    let time = remaining_ms.map_or(of.function_timeout, Duration::from_millis);
                    return Ok(Probed {
                        folder: context.address.folder.clone(),
                        environment,
                        slots,
                        time,
                    });
                }
                Answer::Refused { refusal, .. } if refusal.kind != RefusalKind::Storage => {
                    return Err(ExecutorError::Refused { worker: of.worker(), refusal });
                }
                Answer::Refused { refusal, .. } => refusal.message,
                Answer::Done { .. } => "expected the answer to a probe, got outcomes".into(),
            },
            Reply::Throttled { .. }
                if system.elapsed(start) < PROBE_TIME && !context.cancel.is_cancelled() =>
            {
                refused += 1;
                system.sleep(PAUSES.pause(refused, system.fraction()));
                continue;
            }
            Reply::Throttled { why, .. } => return Err(of.unavailable(starved(&why))),
            Reply::Ended(FailureKind::OutOfMemory, message) => message,
            Reply::Ended(_, message) => format!("{message} (hint: see the function's log)"),
            Reply::Lost { message, .. } => message,
            Reply::Refused { message, .. } => return Err(of.unavailable(message)),
        };
        failures += 1;
        match PROBES.next(failures, system.elapsed(start), system.fraction()) {
            Some(pause) if !context.cancel.is_cancelled() => system.sleep(pause),
            _ => return Err(of.unavailable(why)),
        }
    }
}

fn starved(why: &str) -> String {
    format!(
        "every invocation is throttled ({why}) (hint: the concurrency of the account or the \
            function's reserved concurrency is 0 or used up)"
    )
}

/// Names this process, and no other that ever drives the run.
fn client_name(system: &System) -> String {
    format!("{:x}-{}", system.since_epoch().as_nanos(), std::process::id())
}

/// Runs until the source stops, and says what that took.
pub(super) fn run(
    of: &LambdaExecutor,
    probed: Option<Probed>,
    context: &RunContext,
    source: &dyn TaskSource,
) -> (Invocations, Result<(), ExecutorError>) {
    let (system, time) =
        (context.stores.system(), probed.as_ref().map_or(of.function_timeout, |p| p.time));
    let opened = of.client(time).and_then(|(runtime, client)| {
        let work = context
            .stores
            .open(&context.address.work_dir)
            .map_err(|e| of.unavailable(e.to_string()))?;
        Ok((
            runtime,
            Remote {
                client,
                work,
                address: context.address.clone(),
                name: client_name(system),
                time,
                looks: Semaphore::new(LOOKS),
                system: system.clone(),
            },
        ))
    });
    let (runtime, remote) = match opened {
        Ok(opened) => opened,
        Err(error) => return (Invocations::default(), Err(error)),
    };
    let stages = &context.plan.plan().stages;
    let tasks = stages.iter().map(|s| s.n_tasks()).fold(0, u64::saturating_add);
    let (memory_bytes, slots) = probed
        .map_or_else(|| (0, vec![1; stages.len()]), |p| (p.environment.memory_bytes, p.slots));
    let concurrency = client::sockets(of.concurrency);
    let (send, receive) = channel();
    let now = system.now();
    let mut dispatch = Dispatch {
        of,
        context,
        source,
        runtime: &runtime,
        remote: Arc::new(remote),
        send,
        window: Window::new(concurrency, now),
        pace: Pace::new(of.batch_time, of.batch, &slots, tasks, concurrency),
        waiting: VecDeque::new(),
        again: VecDeque::new(),
        calls: HashMap::new(),
        out: 0,
        n_calls: 0,
        accepted: now,
        looked: now,
        invoked: Invocations { memory_bytes, ..Invocations::default() },
        error: None,
    };
    dispatch.go(&receive);
    let (invoked, error) = (dispatch.invoked, dispatch.error.take());
    drop(dispatch);
    runtime.shutdown_background();
    (invoked, error.map_or(Ok(()), Err))
}

/// What tasks of the runtime share.
#[derive(Debug)]
struct Remote {
    client: Arc<Client>,
    work: Arc<dyn Store>,
    address: RunAddress,
    /// In the keys of records.
    name: String,
    /// What an invocation may take.
    time: Duration,
    /// So many may look for records.
    looks: Semaphore,
    system: System,
}

/// An invocation under way.
struct UnderWay {
    /// Requests whose outcomes are not given back yet; none if nobody needs them any more.
    owed: Vec<TaskRequest>,
    /// How often it was refused before.
    refused: u32,
    made: Instant,
    is_needed: Arc<AtomicBool>,
}

/// Requests that were in an invocation that was refused.
struct Again {
    not_before: Instant,
    refused: u32,
    requests: Vec<TaskRequest>,
}

/// What became of an invocation.
struct Settled {
    call: u64,
    how: How,
    outcomes: Vec<TaskOutcome>,
    /// Not started, and nobody's fault.
    not_started: Vec<TaskRequest>,
    /// Nothing is known of these.
    left: Vec<TaskRequest>,
    /// How many outcomes come from records.
    recovered: u64,
    environment: Option<Environment>,
    wall_ms: u64,
    /// Holds the room that the answer takes.
    _permit: Option<OwnedSemaphorePermit>,
}

enum How {
    Answered,
    /// Too many at once, or in a time.
    Throttled {
        too_often: bool,
    },
    /// The environment has ended, or a whole invocation's time.
    Ended(FailureKind, String),
    Lost(String),
    /// No further invocation will do better.
    Hopeless(FailureKind, ExecutorError),
}

struct Dispatch<'a> {
    of: &'a LambdaExecutor,
    context: &'a RunContext,
    source: &'a dyn TaskSource,
    runtime: &'a tokio::runtime::Runtime,
    remote: Arc<Remote>,
    send: Sender<Settled>,
    window: Window,
    pace: Pace,
    /// Requests that are in no invocation yet.
    waiting: VecDeque<TaskRequest>,
    again: VecDeque<Again>,
    calls: HashMap<u64, UnderWay>,
    /// Requests that were handed out to us and not given back.
    out: usize,
    n_calls: u64,
    /// When the last invocation was accepted.
    accepted: Instant,
    looked: Instant,
    invoked: Invocations,
    error: Option<ExecutorError>,
}

impl Dispatch<'_> {
    fn system(&self) -> &System {
        self.context.stores.system()
    }

    fn go(&mut self, settled: &Receiver<Settled>) {
        loop {
            while let Ok(settled) = settled.try_recv() {
                self.settle(settled);
            }
            if self.system().elapsed(self.looked) >= WANTED_TICK
                || self.context.cancel.is_cancelled()
            {
                self.looked = self.system().now();
                self.give_up_unwanted();
            }
            self.window.look(self.system().now(), self.calls.len());
            let stopped = self.pull();
            self.invoke();
            if self.out == 0 {
                if stopped {
                    break;
                }
                self.source.wait();
                continue;
            }
            let pause = self.window.pause(self.system().now());
            match settled.recv_timeout(if pause.is_zero() { TICK } else { pause.min(TICK) }) {
                Ok(settled) => self.settle(settled),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
        // They can only be waited for. Workers that are told so do not begin what nobody waits for;
        // storage that does not answer is not waited for.
        let end = self.system().now() + self.of.linger;
        let told = (!self.calls.is_empty()).then(|| {
            let (remote, (telling, told)) = (Arc::clone(&self.remote), channel());
            #[allow(
                clippy::disallowed_methods,
                reason = "it ends with its one request, which is \
                waited for as long as the invocations are"
            )]
            std::thread::spawn(move || {
                telling.send(remote::write_over(
                    &*remote.work,
                    &remote.address.folder,
                    &remote.name,
                ))
            });
            told
        });
        while !self.calls.is_empty()
            && let Ok(settled) =
                settled.recv_timeout(end.saturating_duration_since(self.system().now()))
        {
            self.settle(settled);
        }
        // Not into a folder that is removed meanwhile.
        if let Some(told) = told {
            let _ = told.recv_timeout(end.saturating_duration_since(self.system().now()));
        }
    }

    /// Invocations that can be made now.
    fn room(&self) -> usize {
        self.window.size().saturating_sub(self.calls.len())
    }

    /// Takes as many requests from the source as there is use for; true once there are no more.
    fn pull(&mut self) -> bool {
        let room = self.room();
        loop {
            let useful = room.saturating_mul(self.waiting.back().map_or(1, |r| self.pace.most(r)));
            if self.out > 0
                && (self.waiting.len() >= useful
                    || self.out >= self.of.batch.saturating_mul(self.of.concurrency))
            {
                return false;
            }
            match self.source.try_next() {
                Next::Run(request) => {
                    self.out += 1;
                    match &self.error {
                        Some(error) => {
                            self.fail(vec![request], FailureKind::Denied, &error.to_string())
                        }
                        None => self.waiting.push_back(request),
                    }
                }
                Next::Wait => return false,
                Next::Stop => return true,
            }
        }
    }

    /// Makes invocations as there is room for them.
    fn invoke(&mut self) {
        let now = self.system().now();
        while self.room() > 0 && self.window.pause(now).is_zero() {
            if let Some(at) = self.again.iter().position(|a| a.not_before <= now)
                && let Some(Again { refused, requests, .. }) = self.again.remove(at)
            {
                self.call(requests, refused);
                continue;
            }
            let room = self.room();
            let requests = self.pace.next(&mut self.waiting, room);
            if requests.is_empty() {
                break;
            }
            self.call(requests, 0);
        }
        self.invoked.most_at_once = self.invoked.most_at_once.max(self.calls.len() as u64);
        if self.calls.is_empty()
            && !self.again.is_empty()
            && self.system().elapsed(self.accepted) > STARVED
        {
            self.give_up(FailureKind::Denied, self.of.unavailable(starved("for ten minutes")));
        }
    }

    fn call(&mut self, requests: Vec<TaskRequest>, refused: u32) {
        self.n_calls += 1;
        let call = self.n_calls;
        let is_needed = Arc::new(AtomicBool::new(true));
        let expected = self.pace.expected(&requests);
        let made = self.system().now();
        self.window.made(made);
        self.calls.insert(
            call,
            UnderWay { owed: requests.clone(), refused, made, is_needed: Arc::clone(&is_needed) },
        );
        let (remote, send) = (Arc::clone(&self.remote), self.send.clone());
        self.runtime.spawn(async move {
            let settled = remote.invoke(call, requests, expected, &is_needed).await;
            let _ = send.send(settled);
        });
    }

    fn settle(&mut self, settled: Settled) {
        let Settled {
            call, how, outcomes, not_started, left, recovered, environment, wall_ms, ..
        } = settled;
        let Some(UnderWay { owed, refused, made, .. }) = self.calls.remove(&call) else {
            debug_assert!(false, "an invocation ends once");
            let error = self.of.unavailable(format!(
                "internal error: invocation {call} ended twice (hint: please report this defect)"
            ));
            return self.give_up(FailureKind::Internal, error);
        };
        let mut owed: HashMap<u64, TaskRequest> = owed.into_iter().map(|r| (r.id, r)).collect();
        let now = self.system().now();
        match &how {
            How::Throttled { too_often } => {
                self.invoked.throttled += 1;
                if *too_often { self.window.slow(now, made) } else { self.window.shrink(now) }
            }
            _ => {
                self.accepted = now;
                self.invoked.invocations += 1;
                self.invoked.recovered += recovered;
                self.invoked.lost_answers += u64::from(matches!(how, How::Lost(_)));
                self.invoked.crashes += u64::from(matches!(how, How::Ended(..)));
                let is_cold = environment.as_ref().is_some_and(|e| e.invocations == 1);
                self.invoked.cold_starts += u64::from(is_cold);
                self.invoked.plans += u64::from(environment.as_ref().is_some_and(|e| !e.had_plan));
                self.invoked.records += outcomes.len() as u64;
                let init_ms = environment.as_ref().filter(|_| is_cold).map_or(0, |e| e.init_ms);
                self.invoked.memory_bytes =
                    environment.map_or(self.invoked.memory_bytes, |e| e.memory_bytes);
                self.invoked.byte_ms +=
                    self.invoked.memory_bytes as f64 * (wall_ms + init_ms) as f64;
            }
        }
        // Storage asks for fewer, too: of tasks, or of workers that could not even fetch the plan.
        let is_throttle =
            |o: &TaskOutcome| o.failure.as_ref().is_some_and(|f| f.kind == FailureKind::Throttled);
        if outcomes.iter().any(is_throttle) || matches!(how, How::Ended(FailureKind::Transient, _))
        {
            self.window.shrink(now);
        }
        for outcome in outcomes {
            self.pace.learn(&outcome);
            if owed.remove(&outcome.request.id).is_some() {
                self.give_back(outcome);
            }
        }
        let mut still = |requests: Vec<TaskRequest>| {
            requests.into_iter().filter_map(|r| owed.remove(&r.id)).collect::<Vec<TaskRequest>>()
        };
        let (not_started, left) = (still(not_started), still(left));
        let worker = format!("lambda invocation {call}");
        self.unstarted(not_started, &worker);
        if left.is_empty() && !matches!(how, How::Hopeless(..)) {
            return;
        }
        match how {
            How::Throttled { .. } => {
                // They do not come back together.
                let not_before = now + PAUSES.pause(refused + 1, self.system().fraction());
                self.again.push_back(Again { not_before, refused: refused + 1, requests: left });
            }
            How::Answered => self.lose(
                left,
                &worker,
                FailureKind::WorkerLost,
                "the request is in neither the answer nor the records",
            ),
            // Perhaps only one of them is to blame. Each is tried alone before it is said of any.
            How::Ended(
                FailureKind::Crashed | FailureKind::OutOfMemory | FailureKind::TimedOut,
                _,
            ) if left.len() > 1 => {
                self.pace.suspect(&left);
                self.unstarted(left, &worker);
            }
            How::Ended(kind, message) => self.lose(left, &worker, kind, &message),
            How::Lost(message) => self.lose(
                left,
                &worker,
                FailureKind::WorkerLost,
                &format!("lost the answer: {message}"),
            ),
            How::Hopeless(kind, error) => {
                self.fail(left, kind, &error.to_string());
                self.give_up(kind, error);
            }
        }
    }

    /// Nothing that is asked of the function will go well.
    fn give_up(&mut self, kind: FailureKind, error: ExecutorError) {
        let requests =
            self.waiting.drain(..).chain(self.again.drain(..).flat_map(|a| a.requests)).collect();
        self.fail(requests, kind, &error.to_string());
        self.error.get_or_insert(error);
    }

    fn give_back(&mut self, outcome: TaskOutcome) {
        self.out = self.out.saturating_sub(1);
        self.source.finished(outcome);
    }

    fn unstarted(&mut self, requests: Vec<TaskRequest>, worker: &str) {
        for request in requests {
            self.give_back(TaskOutcome {
                request,
                worker: worker.to_owned(),
                done: Vec::new(),
                failure: None,
                worker_peak_bytes: None,
            });
        }
    }

    fn lose(&mut self, requests: Vec<TaskRequest>, worker: &str, kind: FailureKind, message: &str) {
        for request in requests {
            self.give_back(lost(
                self.context,
                request,
                worker.to_owned(),
                kind,
                message.to_owned(),
            ));
        }
    }

    fn fail(&mut self, requests: Vec<TaskRequest>, kind: FailureKind, message: &str) {
        self.lose(requests, "lambda", kind, message);
    }

    /// Gives back what nobody waits for any more. Its invocations go on; their outcomes are not
    /// looked at.
    fn give_up_unwanted(&mut self) {
        let cancelled = self.context.cancel.is_cancelled();
        let source = self.source;
        let unwanted = |r: &TaskRequest| cancelled || !source.is_wanted(r);
        let mut given_up = Vec::new();
        let mut sift = |requests: Vec<TaskRequest>| -> Vec<TaskRequest> {
            let (gone, kept): (Vec<_>, Vec<_>) = requests.into_iter().partition(unwanted);
            given_up.extend(gone);
            kept
        };
        self.waiting = sift(std::mem::take(&mut self.waiting).into()).into();
        self.again.iter_mut().for_each(|a| a.requests = sift(std::mem::take(&mut a.requests)));
        self.again.retain(|a| !a.requests.is_empty());
        for call in self.calls.values_mut() {
            call.owed = sift(std::mem::take(&mut call.owed));
            if call.owed.is_empty() {
                call.is_needed.store(false, Ordering::Relaxed);
            }
        }
        let (kind, message) = if cancelled {
            (FailureKind::Cancelled, "the run was cancelled")
        } else {
            (FailureKind::Superseded, "another worker finished the request first")
        };
        self.fail(given_up, kind, message);
    }
}

impl Remote {
    /// Makes an invocation, waits for its answer, and looks for records of what is missing in it.
    async fn invoke(
        self: &Arc<Remote>,
        call: u64,
        requests: Vec<TaskRequest>,
        expected: Duration,
        is_needed: &AtomicBool,
    ) -> Settled {
        let start = self.system.now();
        let invocation =
            Invocation::new(self.address.clone(), self.name.as_str(), Call::Run(requests.clone()));
        let (reply, permit) = self.client.invoke(&invocation).await;
        let mut settled = Settled {
            call,
            how: How::Answered,
            outcomes: Vec::new(),
            not_started: Vec::new(),
            left: requests,
            recovered: 0,
            environment: None,
            wall_ms: 0,
            _permit: permit,
        };
        match reply {
            Reply::Answer(answer) => self.answered(&mut settled, *answer).await,
            Reply::Throttled { too_often, .. } => settled.how = How::Throttled { too_often },
            Reply::Ended(kind, message) => {
                settled.how = How::Ended(kind, message);
                settled.recovered = self.find_records(&mut settled).await;
            }
            Reply::Lost { message, is_over } => {
                settled.how = How::Lost(message);
                // Where only the connection is lost, its worker may still be at it.
                let patience = if is_over {
                    Duration::ZERO
                } else {
                    PATIENCE.max(expected.mul_f64(1.5)).min(self.time)
                };
                let mut pause = LOOK_AGAIN;
                loop {
                    settled.recovered += self.find_records(&mut settled).await;
                    let now = self.system.elapsed(start);
                    if settled.left.is_empty()
                        || now >= patience
                        || !is_needed.load(Ordering::Relaxed)
                    {
                        break;
                    }
                    self.system.wait(pause.min(patience - now)).await;
                    pause = (2 * pause).min(Duration::from_secs(2));
                }
            }
            Reply::Refused { denied, message } => {
                let kind = if denied { FailureKind::Denied } else { FailureKind::Plan };
                settled.how = How::Hopeless(
                    kind,
                    ExecutorError::Unavailable { worker: "on AWS Lambda".into(), message },
                );
            }
        }
        if settled.environment.is_none() {
            settled.wall_ms = self.system.elapsed(start).as_millis() as u64;
        }
        settled
    }

    async fn answered(self: &Arc<Remote>, settled: &mut Settled, answer: Answer) {
        match answer {
            Answer::Done { environment, outcomes, not_started, wall_ms, .. } => {
                (settled.environment, settled.wall_ms) = (Some(environment), wall_ms);
                let ended: HashSet<u64> = outcomes.iter().map(|o| o.request.id).collect();
                let free: HashSet<u64> = not_started.into_iter().collect();
                let left = std::mem::take(&mut settled.left)
                    .into_iter()
                    .filter(|r| !ended.contains(&r.id));
                (settled.not_started, settled.left) = left.partition(|r| free.contains(&r.id));
                settled.outcomes = outcomes;
                // What was too long for the answer.
                self.find_records(settled).await;
            }
            Answer::Refused { environment, refusal } if refusal.kind == RefusalKind::Storage => {
                settled.environment = Some(environment);
                settled.how = How::Ended(FailureKind::Transient, refusal.message);
            }
            Answer::Refused { refusal, .. } => {
                settled.how = How::Hopeless(
                    FailureKind::Plan,
                    ExecutorError::Refused { worker: "on AWS Lambda".into(), refusal },
                );
            }
            Answer::Ready { .. } => {
                settled.how = How::Lost("expected outcomes, got the answer to a probe".into())
            }
        }
    }

    /// Moves requests that have records from those of which nothing is known to the outcomes; how
    /// many.
    async fn find_records(self: &Arc<Remote>, settled: &mut Settled) -> u64 {
        if settled.left.is_empty() {
            return 0;
        }
        // Threads are left for others while these wait.
        let _turn = self.looks.acquire().await;
        let (remote, left) = (Arc::clone(self), std::mem::take(&mut settled.left));
        let asked = left.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let look = |request: TaskRequest| {
                // One that cannot be read now is none.
                let found = remote::read_record(
                    &*remote.work,
                    &remote.address.folder,
                    &remote.name,
                    &request,
                )
                .ok()
                .flatten();
                found
                    .map(|mut outcome| {
                        outcome.request = request.clone();
                        outcome
                    })
                    .ok_or(request)
            };
            left.into_iter().map(look).collect::<Vec<_>>()
        });
        let before = settled.outcomes.len();
        // Where the look itself breaks off, nothing is known of any of them.
        for found in looked.await.unwrap_or_else(|_| asked.into_iter().map(Err).collect()) {
            match found {
                Ok(outcome) => settled.outcomes.push(outcome),
                Err(request) => settled.left.push(request),
            }
        }
        (settled.outcomes.len() - before) as u64
    }
}
