//! Dispatch of requests to invocations, and of their results to the driver.
//!
//! One loop, on the thread that calls the executor, does everything except waiting for sockets and
//! storage. The invocations are tasks of a small runtime, each of which sends its result to the
//! loop.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use freestone_engine::executor::{ExecutorError, Invocations, Next, TaskSource};
use freestone_engine::retry::Backoff;
use freestone_engine::system::System;
use freestone_engine::task::{FailureKind, TaskOutcome, TaskRequest};
use freestone_engine::worker::RunContext;

use super::LambdaExecutor;
use super::batch::Pace;
use super::client;
use super::invocation::{End, Ended, InvocationLimits, Invoker};
use super::probe::Probed;
use super::window::Window;
use crate::lost;

/// The longest pause of the loop.
const TICK: Duration = Duration::from_millis(20);
/// The interval of checks whether outcomes are still wanted.
const WANTED_INTERVAL: Duration = Duration::from_millis(100);
/// The pauses before a throttled invocation is repeated. No other level retries it, because
/// throttling by Lambda is not a failure of storage.
pub(super) const THROTTLE_BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(5) };
/// The time without an accepted invocation after which the run fails.
const THROTTLE_LIMIT: Duration = Duration::from_secs(600);

/// Returns the error message of a function whose invocations are all throttled.
pub(super) fn throttled_message(reason: &str) -> String {
    format!(
        "every invocation is throttled ({reason}) (hint: raise the account's concurrency limit \
            or the function's reserved concurrency)"
    )
}

/// Runs requests until the source stops. Returns the statistics of the invocations.
pub(super) fn run(
    executor: &LambdaExecutor,
    probed: Option<Probed>,
    context: &RunContext,
    source: &dyn TaskSource,
) -> (Invocations, Result<(), ExecutorError>) {
    let time = probed.as_ref().map_or(executor.function_timeout, |p| p.time);
    let opened = executor.client(time).and_then(|(runtime, client)| {
        let work = context.stores.open(&context.address.work_dir);
        let work = work.map_err(|e| executor.unavailable(e.to_string()))?;
        let limits = InvocationLimits { time, record_wait: executor.record_wait };
        Ok((runtime, Invoker::new(client, work, context, limits)))
    });
    let (runtime, invoker) = match opened {
        Ok(opened) => opened,
        Err(error) => return (Invocations::default(), Err(error)),
    };
    let stages = &context.plan.plan().stages;
    let tasks = stages.iter().map(|s| s.n_tasks()).fold(0, u64::saturating_add);
    let (memory_bytes, slots) = probed
        .map_or_else(|| (0, vec![1; stages.len()]), |p| (p.environment.memory_bytes, p.slots));
    let concurrency = client::sockets(executor.concurrency);
    let (send, receive) = channel();
    let now = context.stores.system().now();
    let mut dispatcher = Dispatcher {
        executor,
        context,
        source,
        runtime: &runtime,
        invoker: Arc::new(invoker),
        send,
        window: Window::new(concurrency, now),
        pace: Pace::new(executor.batch_time, executor.batch, &slots, tasks, concurrency),
        waiting: VecDeque::new(),
        throttled: VecDeque::new(),
        active: HashMap::new(),
        n_unreported: 0,
        last_id: 0,
        last_accepted: now,
        last_wanted_check: now,
        invoked: Invocations { memory_bytes, ..Invocations::default() },
        error: None,
    };
    dispatcher.run(&receive);
    dispatcher.linger(&receive);
    let (invoked, error) = (dispatcher.invoked, dispatcher.error.take());
    drop(dispatcher);
    runtime.shutdown_background();
    (invoked, error.map_or(Ok(()), Err))
}

/// An invocation in flight.
struct ActiveInvocation {
    /// The requests whose outcomes are not reported yet; empty if none is wanted any more.
    unreported: Vec<TaskRequest>,
    /// The number of times that it was throttled before.
    n_throttled: u32,
    start: Instant,
    is_needed: Arc<AtomicBool>,
}

/// The requests of a throttled invocation.
struct ThrottledEntry {
    not_before: Instant,
    n_throttled: u32,
    requests: Vec<TaskRequest>,
}

struct Dispatcher<'a> {
    executor: &'a LambdaExecutor,
    context: &'a RunContext,
    source: &'a dyn TaskSource,
    runtime: &'a tokio::runtime::Runtime,
    invoker: Arc<Invoker>,
    send: Sender<Ended>,
    window: Window,
    pace: Pace,
    /// The requests that were in no invocation yet.
    waiting: VecDeque<TaskRequest>,
    throttled: VecDeque<ThrottledEntry>,
    active: HashMap<u64, ActiveInvocation>,
    /// The number of requests taken from the source and not reported yet.
    n_unreported: usize,
    last_id: u64,
    /// The time of the last accepted invocation.
    last_accepted: Instant,
    last_wanted_check: Instant,
    invoked: Invocations,
    error: Option<ExecutorError>,
}

impl Dispatcher<'_> {
    fn system(&self) -> &System {
        self.context.stores.system()
    }

    /// Runs the loop until the source stops and all requests are reported.
    fn run(&mut self, ended: &Receiver<Ended>) {
        loop {
            while let Ok(ended) = ended.try_recv() {
                self.complete(ended);
            }
            if self.system().elapsed(self.last_wanted_check) >= WANTED_INTERVAL
                || self.context.cancel.is_cancelled()
            {
                self.last_wanted_check = self.system().now();
                self.abandon_unwanted();
            }
            self.window.update(self.system().now(), self.active.len());
            let is_stopped = self.pull();
            self.start_invocations();
            if self.n_unreported == 0 {
                if is_stopped {
                    return;
                }
                self.source.wait();
                continue;
            }
            let pause = self.window.pause(self.system().now());
            match ended.recv_timeout(if pause.is_zero() { TICK } else { pause.min(TICK) }) {
                Ok(ended) => self.complete(ended),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    /// Waits for invocations whose outcomes are not wanted any more, up to a limit. Workers are
    /// told to start no further requests.
    fn linger(&mut self, ended: &Receiver<Ended>) {
        let limit = self.system().now() + self.executor.linger;
        let written = (!self.active.is_empty()).then(|| {
            let (invoker, (send, receive)) = (Arc::clone(&self.invoker), channel());
            #[allow(
                clippy::disallowed_methods,
                reason = "the thread ends with its one request; the end of a run does not wait for \
                    storage that does not answer"
            )]
            std::thread::spawn(move || {
                invoker.write_over();
                let _ = send.send(());
            });
            receive
        });
        while !self.active.is_empty()
            && let Ok(ended) =
                ended.recv_timeout(limit.saturating_duration_since(self.system().now()))
        {
            self.complete(ended);
        }
        // The caller may remove the folder, so the request should end first.
        if let Some(written) = written {
            let _ = written.recv_timeout(limit.saturating_duration_since(self.system().now()));
        }
    }

    /// Returns the number of invocations that may start now.
    fn room(&self) -> usize {
        self.window.size().saturating_sub(self.active.len())
    }

    /// Takes as many requests from the source as can be used. Returns true if the source has
    /// stopped.
    fn pull(&mut self) -> bool {
        let room = self.room();
        let limit = self.executor.batch.saturating_mul(self.executor.concurrency);
        loop {
            let useful = room.saturating_mul(self.waiting.back().map_or(1, |r| self.pace.most(r)));
            if self.n_unreported > 0 && (self.waiting.len() >= useful || self.n_unreported >= limit)
            {
                return false;
            }
            match self.source.try_next() {
                Next::Run(request) => {
                    self.n_unreported += 1;
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

    /// Starts as many invocations as the window permits, throttled ones first.
    fn start_invocations(&mut self) {
        let now = self.system().now();
        while self.room() > 0 && self.window.pause(now).is_zero() {
            if let Some(at) = self.throttled.iter().position(|entry| entry.not_before <= now)
                && let Some(entry) = self.throttled.remove(at)
            {
                self.start(entry.requests, entry.n_throttled);
                continue;
            }
            let room = self.room();
            let requests = self.pace.next(&mut self.waiting, room);
            if requests.is_empty() {
                break;
            }
            self.start(requests, 0);
        }
        self.invoked.most_at_once = self.invoked.most_at_once.max(self.active.len() as u64);
        if self.active.is_empty()
            && !self.throttled.is_empty()
            && self.system().elapsed(self.last_accepted) > THROTTLE_LIMIT
        {
            let message = throttled_message("for ten minutes");
            self.fail_all(FailureKind::Denied, self.executor.unavailable(message));
        }
    }

    fn start(&mut self, requests: Vec<TaskRequest>, n_throttled: u32) {
        self.last_id += 1;
        let id = self.last_id;
        let is_needed = Arc::new(AtomicBool::new(true));
        let expected = self.pace.expected(&requests);
        let start = self.system().now();
        self.window.started(start);
        let active = ActiveInvocation {
            unreported: requests.clone(),
            n_throttled,
            start,
            is_needed: Arc::clone(&is_needed),
        };
        self.active.insert(id, active);
        let (invoker, send) = (Arc::clone(&self.invoker), self.send.clone());
        self.runtime.spawn(async move {
            let _ = send.send(invoker.invoke(id, requests, expected, &is_needed).await);
        });
    }

    /// Processes the end of an invocation.
    fn complete(&mut self, mut ended: Ended) {
        let id = ended.id;
        let Some(active) = self.active.remove(&id) else {
            debug_assert!(false, "an invocation ends once");
            let error = self.executor.unavailable(format!(
                "internal error: invocation {id} ended twice (hint: please report this defect)"
            ));
            return self.fail_all(FailureKind::Internal, error);
        };
        let now = self.system().now();
        match &ended.end {
            End::Throttled { too_often } => {
                self.invoked.throttled += 1;
                if *too_often {
                    self.window.slow(now, active.start);
                } else {
                    self.window.shrink(now);
                }
            }
            _ => {
                self.last_accepted = now;
                self.add_statistics(&ended);
            }
        }
        if is_throttled_by_storage(&ended) {
            self.window.shrink(now);
        }
        let mut unreported: HashMap<u64, TaskRequest> =
            active.unreported.into_iter().map(|r| (r.id, r)).collect();
        for outcome in std::mem::take(&mut ended.outcomes) {
            self.pace.learn(&outcome);
            if unreported.remove(&outcome.request.id).is_some() {
                self.report(outcome);
            }
        }
        let mut still_wanted = |requests: Vec<TaskRequest>| {
            requests.into_iter().filter_map(|r| unreported.remove(&r.id)).collect::<Vec<_>>()
        };
        let not_started = still_wanted(std::mem::take(&mut ended.not_started));
        let unknown = still_wanted(std::mem::take(&mut ended.unknown));
        let worker = format!("lambda invocation {id}");
        self.return_unstarted(not_started, &worker);
        self.complete_unknown(unknown, ended.end, active.n_throttled, &worker);
    }

    /// Processes the requests of which nothing is known after their invocation.
    fn complete_unknown(
        &mut self,
        unknown: Vec<TaskRequest>,
        end: End,
        n_throttled: u32,
        worker: &str,
    ) {
        if unknown.is_empty() && !matches!(end, End::Fatal(..)) {
            return;
        }
        match end {
            End::Throttled { .. } => {
                let n_throttled = n_throttled + 1;
                // Jitter, so that the invocations are not repeated together.
                let pause = THROTTLE_BACKOFF.pause(n_throttled, self.system().fraction());
                let not_before = self.system().now() + pause;
                let entry = ThrottledEntry { not_before, n_throttled, requests: unknown };
                self.throttled.push_back(entry);
            }
            End::Answered => {
                let message = "the request is in neither the answer nor the records";
                self.lose(unknown, worker, FailureKind::WorkerLost, message);
            }
            // One request may have caused the failure. Each runs alone before it counts as failed.
            End::Failed(
                FailureKind::Crashed | FailureKind::OutOfMemory | FailureKind::TimedOut,
                _,
            ) if unknown.len() > 1 => {
                self.pace.suspect(&unknown);
                self.return_unstarted(unknown, worker);
            }
            End::Failed(kind, message) => self.lose(unknown, worker, kind, &message),
            End::Lost(message) => {
                let message = format!("lost the answer: {message}");
                self.lose(unknown, worker, FailureKind::WorkerLost, &message);
            }
            End::Fatal(kind, error) => {
                self.fail(unknown, kind, &error.to_string());
                self.fail_all(kind, error);
            }
        }
    }

    /// Adds an accepted invocation to the statistics.
    fn add_statistics(&mut self, ended: &Ended) {
        let (invoked, environment) = (&mut self.invoked, ended.environment.as_ref());
        invoked.invocations += 1;
        invoked.recovered += ended.recovered;
        invoked.lost_answers += u64::from(matches!(ended.end, End::Lost(_)));
        invoked.crashes += u64::from(matches!(ended.end, End::Failed(..)));
        let is_cold = environment.is_some_and(|e| e.invocations == 1);
        invoked.cold_starts += u64::from(is_cold);
        invoked.plans += u64::from(environment.is_some_and(|e| !e.had_plan));
        invoked.records += ended.outcomes.len() as u64;
        let init_ms = environment.filter(|_| is_cold).map_or(0, |e| e.init_ms);
        invoked.memory_bytes = environment.map_or(invoked.memory_bytes, |e| e.memory_bytes);
        invoked.byte_ms += invoked.memory_bytes as f64 * (ended.wall_ms + init_ms) as f64;
    }

    /// Fails all waiting and future requests.
    fn fail_all(&mut self, kind: FailureKind, error: ExecutorError) {
        let throttled = self.throttled.drain(..).flat_map(|entry| entry.requests);
        let requests = self.waiting.drain(..).chain(throttled).collect();
        self.fail(requests, kind, &error.to_string());
        self.error.get_or_insert(error);
    }

    fn report(&mut self, outcome: TaskOutcome) {
        self.n_unreported = self.n_unreported.saturating_sub(1);
        self.source.finished(outcome);
    }

    fn return_unstarted(&mut self, requests: Vec<TaskRequest>, worker: &str) {
        for request in requests {
            self.report(TaskOutcome {
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
            let outcome = lost(self.context, request, worker.to_owned(), kind, message.to_owned());
            self.report(outcome);
        }
    }

    fn fail(&mut self, requests: Vec<TaskRequest>, kind: FailureKind, message: &str) {
        self.lose(requests, "lambda", kind, message);
    }

    /// Reports the requests whose outcomes are not wanted any more. Their invocations continue, but
    /// the outcomes are discarded.
    fn abandon_unwanted(&mut self) {
        let is_cancelled = self.context.cancel.is_cancelled();
        let source = self.source;
        let is_unwanted = |r: &TaskRequest| is_cancelled || !source.is_wanted(r);
        let mut abandoned = Vec::new();
        let mut retain_wanted = |requests: Vec<TaskRequest>| -> Vec<TaskRequest> {
            let (unwanted, wanted): (Vec<_>, Vec<_>) = requests.into_iter().partition(is_unwanted);
            abandoned.extend(unwanted);
            wanted
        };
        self.waiting = retain_wanted(std::mem::take(&mut self.waiting).into()).into();
        for entry in &mut self.throttled {
            entry.requests = retain_wanted(std::mem::take(&mut entry.requests));
        }
        self.throttled.retain(|entry| !entry.requests.is_empty());
        for active in self.active.values_mut() {
            active.unreported = retain_wanted(std::mem::take(&mut active.unreported));
            if active.unreported.is_empty() {
                active.is_needed.store(false, Ordering::Relaxed);
            }
        }
        let (kind, message) = if is_cancelled {
            (FailureKind::Cancelled, "the run was cancelled")
        } else {
            (FailureKind::Superseded, "another worker finished the request first")
        };
        self.fail(abandoned, kind, message);
    }
}

/// Returns true if a store asked a task for fewer requests, or if a worker could not fetch the
/// plan. Fewer concurrent invocations help in both cases.
fn is_throttled_by_storage(ended: &Ended) -> bool {
    let is_throttled =
        |o: &TaskOutcome| o.failure.as_ref().is_some_and(|f| f.kind == FailureKind::Throttled);
    ended.outcomes.iter().any(is_throttled)
        || matches!(ended.end, End::Failed(FailureKind::Transient, _))
}
