//! Where tasks run.
//!
//! An executor pulls requests from the driver and gives outcomes back. It knows requests, not
//! plans; the driver owns order, retries and budgets, the executor only how many requests it has
//! under way.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::plan::LocalMemory;
use crate::remote::Refusal;
use crate::task::{TaskOutcome, TaskRequest};
use crate::worker::RunContext;

/// What an executor cannot do.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum ExecutorError {
    #[error("threads could not be started: {0}")]
    Threads(String),
    #[error("the worker `{}` could not be started: {message}", command.display())]
    Start { command: PathBuf, message: String },
    #[error("the worker `{}` does not speak this program's protocol: {message}", command.display())]
    Protocol { command: PathBuf, message: String },
    /// This process is a worker itself: it has been started as one, but does not serve.
    #[error(
        "cannot start worker processes: this process is itself a worker (`{variable}` is set) and \
            would start itself over and over (hint: call \
         `freestone::serve` first thing in `main` when the program is started with `{argument}`)"
    )]
    Nested { argument: String, variable: &'static str },
    /// A worker does not run this plan.
    #[error("the worker {worker} does not run this plan: {}", refusal.message)]
    Refused { worker: String, refusal: Refusal },
    /// A worker on another machine cannot be asked.
    #[error("the worker {worker} cannot be asked: {message}")]
    Unavailable { worker: String, message: String },
    #[error(
        "{0} is in the memory of this process, where workers in other processes cannot see it: use \
            a directory or an object store, or run on threads"
    )]
    Unreachable(String),
    /// The work directory is elsewhere, so the workers are.
    #[error(
        "{array} has its place in a directory of this machine, {place}, which workers that share \
            the work directory {work_dir} do not see: give it one in \
         an object store too, such as s3://BUCKET/PREFIX, or run on threads"
    )]
    Local { array: String, place: String, work_dir: String },
}

/// What a run has taken of somebody else's machines, where that is counted, and how their answers
/// came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Invocations {
    /// Invocations that were accepted.
    pub invocations: u64,
    /// Of these, the first of an environment.
    pub cold_starts: u64,
    /// Requests that have ended, and have left a record.
    pub records: u64,
    /// Environments that had to fetch the plan: cold ones, and those that had another.
    pub plans: u64,
    /// Bytes of the function's memory, once an environment has told it.
    pub memory_bytes: u64,
    /// Memory of the function times the time that it ran, in bytes and milliseconds; what is paid
    /// for.
    pub byte_ms: f64,
    /// Invocations that were refused because there were too many, and made again.
    pub throttled: u64,
    /// Answers that did not come.
    pub lost_answers: u64,
    /// Requests whose answers did not come, and whose records told of them.
    pub recovered: u64,
    /// Environments that ended in the middle of an invocation.
    pub crashes: u64,
    /// The most invocations under way at once.
    pub most_at_once: u64,
}

impl Invocations {
    /// Gigabytes (2³⁰ bytes) times seconds, as clouds count them.
    pub fn gb_seconds(&self) -> f64 {
        self.byte_ms / f64::from(1u32 << 30) / 1e3
    }
}

/// The driver's side: where requests come from and outcomes go. Shared by an executor's threads.
pub trait TaskSource: Sync {
    /// The next request, without waiting.
    fn try_next(&self) -> Next;

    /// Waits until something may have changed since a [`Next::Wait`].
    fn wait(&self);

    /// False once nobody waits for a request's outcome any more: somebody else has finished it, or
    /// the run ends. Who can stop it should, and give it back as
    /// [`Superseded`](crate::task::FailureKind::Superseded).
    fn is_wanted(&self, _request: &TaskRequest) -> bool {
        true
    }

    /// Gives an outcome back. Every request that was handed out must come back once.
    fn finished(&self, outcome: TaskOutcome);
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run this.
    Run(TaskRequest),
    /// Nothing just now: [`TaskSource::wait`], then ask again.
    Wait,
    /// Nothing any more.
    Stop,
}

/// Runs requests until there are none.
///
/// Contract: every request that is pulled is given back exactly once, also when its worker dies;
/// nothing runs any more when [`run`](Executor::run) returns.
pub trait Executor: Send + Sync + fmt::Debug {
    /// For people.
    fn name(&self) -> &str;

    /// Requests that it can have under way at once.
    fn slots(&self) -> usize;

    /// Of these, requests that are worked at, if the others only wait with a worker: what tasks are
    /// shared out among.
    fn workers(&self) -> usize {
        self.slots()
    }

    /// True if all its tasks run in this process, so that reserved memory counts once; false if
    /// each has a process of its own.
    fn shares_process(&self) -> bool;

    /// True if its tasks run on other machines, so that they take nothing of this one's memory.
    /// What their machines may hold is theirs to check, in [`check`](Executor::check).
    fn is_remote(&self) -> bool {
        false
    }

    /// What this machine may hold of a run, if it may hold so many bytes, and how tasks share that.
    fn local_memory(&self, local_mem: u64) -> LocalMemory {
        let limit = if self.is_remote() { u64::MAX } else { local_mem };
        LocalMemory { limit, shared: self.shares_process() }
    }

    /// What the last [`run`](Executor::run) has taken of machines that are paid for by use.
    fn invoked(&self) -> Option<Invocations> {
        None
    }

    /// Finds out whether its workers can be had and can reach what the plan names, before anything
    /// is replaced.
    ///
    /// # Errors
    /// Where they cannot.
    fn check(&self, context: &RunContext) -> Result<(), ExecutorError>;

    /// Pulls and runs until the source stops.
    ///
    /// # Errors
    /// Where no worker can be had at all; failures of tasks are outcomes.
    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError>;
}
