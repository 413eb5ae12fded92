//! One invocation: the request to Lambda, its answer, and the records of requests that the answer
//! lacks.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use freestone_engine::executor::ExecutorError;
use freestone_engine::remote::{self, RefusalKind};
use freestone_engine::storage::Store;
use freestone_engine::system::System;
use freestone_engine::task::{FailureKind, RunAddress, TaskOutcome, TaskRequest};
use freestone_engine::worker::RunContext;
use freestone_worker::{Answer, Call, Environment, Invocation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::client::Client;
use super::reply::Reply;

/// The pauses between polls for the records of a lost answer.
const FIRST_POLL_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_POLL_PAUSE: Duration = Duration::from_secs(2);
/// The maximum number of answers whose records are read at once, each by a thread with a
/// connection. `client` leaves more descriptors than this for other purposes than invocations.
pub(super) const MAX_RECORD_READS: usize = 32;

/// Invokes the function for a run. Shared by the tasks of the runtime.
#[derive(Debug)]
pub(super) struct Invoker {
    client: Arc<Client>,
    work: Arc<dyn Store>,
    address: RunAddress,
    /// The client's name in the keys of records.
    name: String,
    limits: InvocationLimits,
    /// Limits concurrent reads of records.
    record_reads: Semaphore,
    system: System,
}

/// The time limits of invocations.
#[derive(Clone, Copy, Debug)]
pub(super) struct InvocationLimits {
    /// The time limit of an invocation.
    pub(super) time: Duration,
    /// The minimum time for which the records of a lost answer are polled.
    pub(super) record_wait: Duration,
}

/// An invocation that has ended, with the state of each of its requests.
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) end: End,
    pub(super) outcomes: Vec<TaskOutcome>,
    /// The requests that the worker did not start, for lack of time.
    pub(super) not_started: Vec<TaskRequest>,
    /// The requests of which nothing is known.
    pub(super) unknown: Vec<TaskRequest>,
    /// The number of outcomes found in records.
    pub(super) recovered: u64,
    pub(super) environment: Option<Environment>,
    pub(super) wall_ms: u64,
    /// Reserves the memory of the answer.
    _permit: Option<OwnedSemaphorePermit>,
}

/// The end of an invocation.
pub(super) enum End {
    Answered,
    /// Too many concurrent invocations, or with `too_often` too many per second. Nothing was run.
    Throttled {
        too_often: bool,
    },
    /// The environment ended, or the invocation's time limit was reached.
    Failed(FailureKind, String),
    /// The answer was lost.
    Lost(String),
    /// Further invocations would fail in the same way.
    Fatal(FailureKind, ExecutorError),
}

/// Returns the name of this process as a client. No other process that ever drives the run has the
/// same name.
pub(super) fn client_name(system: &System) -> String {
    format!("{:x}-{}", system.since_epoch().as_nanos(), std::process::id())
}

impl Invoker {
    /// Creates an invoker for a run whose work directory is `work`.
    pub(super) fn new(
        client: Arc<Client>,
        work: Arc<dyn Store>,
        context: &RunContext,
        limits: InvocationLimits,
    ) -> Invoker {
        let system = context.stores.system().clone();
        Invoker {
            client,
            work,
            address: context.address.clone(),
            name: client_name(&system),
            limits,
            record_reads: Semaphore::new(MAX_RECORD_READS),
            system,
        }
    }

    /// Tells workers that this client no longer waits for results, so that they start no further
    /// requests.
    pub(super) fn write_over(&self) {
        // A failure only delays the workers.
        let _ = remote::write_over(&*self.work, &self.address.folder, &self.name);
    }

    /// Invokes the function, waits for its answer, and reads the records of requests that the
    /// answer lacks. `expected` is the expected duration. `is_needed` becomes false once the
    /// outcomes are not needed any more.
    pub(super) async fn invoke(
        self: &Arc<Invoker>,
        id: u64,
        requests: Vec<TaskRequest>,
        expected: Duration,
        is_needed: &AtomicBool,
    ) -> Ended {
        let start = self.system.now();
        let invocation =
            Invocation::new(self.address.clone(), self.name.as_str(), Call::Run(requests.clone()));
        let (reply, permit) = self.client.invoke(&invocation).await;
        let mut ended = Ended {
            id,
            end: End::Answered,
            outcomes: Vec::new(),
            not_started: Vec::new(),
            unknown: requests,
            recovered: 0,
            environment: None,
            wall_ms: 0,
            _permit: permit,
        };
        match reply {
            Reply::Answer(answer) => self.answered(&mut ended, *answer).await,
            Reply::Throttled { too_often, .. } => ended.end = End::Throttled { too_often },
            Reply::Ended(kind, message) => {
                ended.end = End::Failed(kind, message);
                ended.recovered = self.read_records(&mut ended).await;
            }
            Reply::Lost { message, is_over } => {
                ended.end = End::Lost(message);
                // If only the connection was lost, the worker may still run.
                let limit = if is_over {
                    Duration::ZERO
                } else {
                    self.limits.record_wait.max(expected.mul_f64(1.5)).min(self.limits.time)
                };
                self.poll_records(&mut ended, start, limit, is_needed).await;
            }
            Reply::Refused { denied, message } => {
                let kind = if denied { FailureKind::Denied } else { FailureKind::Plan };
                let worker = "on AWS Lambda".into();
                ended.end = End::Fatal(kind, ExecutorError::Unavailable { worker, message });
            }
        }
        if ended.environment.is_none() {
            ended.wall_ms = self.system.elapsed(start).as_millis() as u64;
        }
        ended
    }

    /// Evaluates an answer.
    async fn answered(self: &Arc<Invoker>, ended: &mut Ended, answer: Answer) {
        match answer {
            Answer::Done { environment, outcomes, not_started, wall_ms, .. } => {
                (ended.environment, ended.wall_ms) = (Some(environment), wall_ms);
                let answered: HashSet<u64> = outcomes.iter().map(|o| o.request.id).collect();
                let not_started: HashSet<u64> = not_started.into_iter().collect();
                let rest = std::mem::take(&mut ended.unknown)
                    .into_iter()
                    .filter(|r| !answered.contains(&r.id));
                (ended.not_started, ended.unknown) =
                    rest.partition(|r| not_started.contains(&r.id));
                ended.outcomes = outcomes;
                // Outcomes that would make the answer too long are only in records.
                self.read_records(ended).await;
            }
            Answer::Refused { environment, refusal } if refusal.kind == RefusalKind::Storage => {
                ended.environment = Some(environment);
                ended.end = End::Failed(FailureKind::Transient, refusal.message);
            }
            Answer::Refused { refusal, .. } => {
                let worker = "on AWS Lambda".into();
                let error = ExecutorError::Refused { worker, refusal };
                ended.end = End::Fatal(FailureKind::Plan, error);
            }
            Answer::Ready { .. } => {
                ended.end = End::Lost("expected outcomes, got the answer to a probe".into());
            }
        }
    }

    /// Reads records until all requests are known, the outcomes are not needed any more, or `limit`
    /// has passed since the start of the invocation.
    async fn poll_records(
        self: &Arc<Invoker>,
        ended: &mut Ended,
        start: std::time::Instant,
        limit: Duration,
        is_needed: &AtomicBool,
    ) {
        let mut pause = FIRST_POLL_PAUSE;
        loop {
            ended.recovered += self.read_records(ended).await;
            let elapsed = self.system.elapsed(start);
            if ended.unknown.is_empty() || elapsed >= limit || !is_needed.load(Ordering::Relaxed) {
                return;
            }
            self.system.wait(pause.min(limit - elapsed)).await;
            pause = (2 * pause).min(LONGEST_POLL_PAUSE);
        }
    }

    /// Reads the records of unknown requests, and moves those that have one to the outcomes.
    /// Returns their number.
    async fn read_records(self: &Arc<Invoker>, ended: &mut Ended) -> u64 {
        if ended.unknown.is_empty() {
            return 0;
        }
        // Other blocking tasks need threads too.
        let _permit = self.record_reads.acquire().await;
        let (invoker, requests) = (Arc::clone(self), std::mem::take(&mut ended.unknown));
        let copy = requests.clone();
        let read = tokio::task::spawn_blocking(move || {
            requests.into_iter().map(|request| invoker.read_record(request)).collect::<Vec<_>>()
        });
        let before = ended.outcomes.len();
        // If the reading thread panics, all requests remain unknown.
        for found in read.await.unwrap_or_else(|_| copy.into_iter().map(Err).collect()) {
            match found {
                Ok(outcome) => ended.outcomes.push(outcome),
                Err(request) => ended.unknown.push(request),
            }
        }
        (ended.outcomes.len() - before) as u64
    }

    /// Returns the recorded outcome of a request, or the request if there is no readable record.
    fn read_record(&self, request: TaskRequest) -> Result<TaskOutcome, TaskRequest> {
        let found = remote::read_record(&*self.work, &self.address.folder, &self.name, &request);
        match found.ok().flatten() {
            Some(outcome) => Ok(TaskOutcome { request, ..outcome }),
            None => Err(request),
        }
    }
}
