//! The executor trait: where tasks run.
//!
//! An executor pulls requests from the driver and returns outcomes. It handles requests, not plans.
//! The driver controls order, retries and budgets; the executor controls the number of requests in
//! flight.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::plan::{FinalizedPlan, LocalMemory};
use crate::remote::Refusal;
use crate::task::{TaskOutcome, TaskRequest};
use crate::worker::RunContext;

/// The error of an executor.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum ExecutorError {
    #[error("cannot start threads: {0}")]
    Threads(String),
    #[error("cannot start the worker `{}`: {message}", command.display())]
    Start { command: PathBuf, message: String },
    #[error("protocol error of the worker `{}`: {message}", command.display())]
    Protocol { command: PathBuf, message: String },
    /// This process was started as a worker, but does not serve.
    #[error(
        "cannot start worker processes: this process is itself a worker (`{variable}` is set) and \
            would start itself without end (hint: call `freestone::serve` at the start of `main` \
            if the program is started with `{argument}`)"
    )]
    Nested { argument: String, variable: &'static str },
    /// A worker refuses to run this plan.
    #[error("the worker `{worker}` refuses this plan: {}", refusal.message)]
    Refused { worker: String, refusal: Refusal },
    /// A worker on another machine is not available.
    #[error("the worker `{worker}` is not available: {message}")]
    Unavailable { worker: String, message: String },
    #[error(
        "{0} is in the memory of this process, which workers in other processes cannot access \
            (hint: use a directory or an object store, or run on threads)"
    )]
    Unreachable(String),
    /// An array is in a local directory, but the work directory and thus the workers are remote.
    #[error(
        "{array} is in the local directory `{place}`, which workers with the work directory \
            `{work_dir}` cannot access (hint: use an object store, such as s3://BUCKET/PREFIX, or \
            run on threads)"
    )]
    Local { array: String, place: String, work_dir: String },
}

/// Statistics of a run's invocations on machines that are billed by use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Invocations {
    /// Accepted invocations.
    pub invocations: u64,
    /// Accepted invocations that were the first of their environment.
    pub cold_starts: u64,
    /// Finished requests with a record.
    pub records: u64,
    /// Environments that fetched the plan: cold ones, and those that had another plan.
    pub plans: u64,
    /// The function's memory in bytes, once an environment has reported it.
    pub memory_bytes: u64,
    /// The billed product of the function's memory in bytes and its duration in milliseconds.
    pub byte_ms: f64,
    /// Invocations that were rejected by a rate or concurrency limit, and repeated.
    pub throttled: u64,
    /// Lost answers.
    pub lost_answers: u64,
    /// Requests with a lost answer whose outcome was found in a record.
    pub recovered: u64,
    /// Environments that ended during an invocation.
    pub crashes: u64,
    /// The maximum number of concurrent invocations.
    pub most_at_once: u64,
}

impl Invocations {
    /// Returns the billed GB-seconds. A gigabyte is 2³⁰ bytes here, as in the bills of clouds.
    pub fn gb_seconds(&self) -> f64 {
        self.byte_ms / f64::from(1u32 << 30) / 1e3
    }
}

/// The driver's interface to an executor: the source of requests and receiver of outcomes. An
/// executor's threads share it.
pub trait TaskSource: Sync {
    /// Returns the next request without waiting.
    fn try_next(&self) -> Next;

    /// Waits until the answer may have changed after a [`Next::Wait`].
    fn wait(&self);

    /// Returns false if the driver does not need a request's outcome, because another worker has
    /// finished it or the run is ending. An executor should then stop the request if it can, and
    /// return it as [`Superseded`](crate::task::FailureKind::Superseded).
    fn is_wanted(&self, _request: &TaskRequest) -> bool {
        true
    }

    /// Returns an outcome to the driver. Each request must be returned exactly once.
    fn finished(&self, outcome: TaskOutcome);
}

/// The result of [`TaskSource::try_next`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A request to run.
    Run(TaskRequest),
    /// No request is available. Call [`TaskSource::wait`], then try again.
    Wait,
    /// No request will follow.
    Stop,
}

/// Runs the requests of a [`TaskSource`].
///
/// Contract: each request is returned exactly once, even if its worker is lost. No request is
/// running when [`run`](Executor::run) returns.
pub trait Executor: Send + Sync + fmt::Debug {
    /// Returns the executor's name for display.
    fn name(&self) -> &str;

    /// Returns the maximum number of requests in flight.
    fn slots(&self) -> usize;

    /// Returns the number of requests that are processed concurrently, if the others only wait at a
    /// worker. The driver divides tasks among these.
    fn workers(&self) -> usize {
        self.slots()
    }

    /// Returns true if all tasks run in this process, so that reserved memory counts once. Returns
    /// false if each runs in a process of its own.
    fn shares_process(&self) -> bool;

    /// Returns true if tasks run on other machines and use no memory of this one. The memory of
    /// those machines is checked in [`check`](Executor::check).
    fn is_remote(&self) -> bool {
        false
    }

    /// Returns the memory limit of this machine for a run, and whether tasks share a process.
    fn local_memory(&self, local_mem: u64) -> LocalMemory {
        let limit = if self.is_remote() { u64::MAX } else { local_mem };
        LocalMemory { limit, shared: self.shares_process() }
    }

    /// Returns the projected memory of a worker on another machine, in bytes, after a successful
    /// [`check`](Executor::check). Returns `None` if it is unknown or tasks run on this machine.
    fn remote_worker_mem(&self, _plan: &FinalizedPlan) -> Option<u64> {
        None
    }

    /// Returns the invocations of the last [`run`](Executor::run), if machines are billed by use.
    fn invoked(&self) -> Option<Invocations> {
        None
    }

    /// Checks that workers are available and can access the plan's arrays. The driver calls this
    /// before it replaces any output.
    ///
    /// # Errors
    /// Returns an error if workers are not available or cannot access an array.
    fn check(&self, context: &RunContext) -> Result<(), ExecutorError>;

    /// Runs requests until the source returns [`Next::Stop`].
    ///
    /// # Errors
    /// Returns an error if no worker is available. Failures of tasks are outcomes, not errors.
    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError>;
}
