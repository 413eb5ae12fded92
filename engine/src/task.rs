//! What travels between driver and workers: plain data, no code, no credentials.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::{ArrayId, PlanError, StageId};
use crate::storage::StorageError;
use crate::storage::codec::CodecError;
use crate::storage::reader::{ChunkError, Traffic, Written};

/// Where a run's plan lies: workers fetch it from there, requests carry only this.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunAddress {
    /// The work directory.
    pub work_dir: String,
    /// The run's folder in it: the run's name, and what sets this try apart from others of the same
    /// plan.
    pub folder: String,
}

/// A range of tasks of one stage, to be run by one worker one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRequest {
    /// Its number in this run: no two requests have the same.
    pub id: u64,
    /// The stage.
    pub stage: StageId,
    /// First task.
    pub first: u64,
    /// Number of tasks.
    pub count: u64,
    /// 0 for the first try.
    pub attempt: u32,
    /// The request that this one repeats while it is still under way, because it takes so long.
    pub backup_of: Option<u64>,
    /// Milliseconds that each task may take.
    pub timeout_ms: Option<u64>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskOutcome {
    /// The request.
    pub request: TaskRequest,
    /// Which worker ran it: a thread's or process's name.
    pub worker: String,
    /// The tasks that were finished, in order.
    pub done: Vec<TaskReport>,
    /// Why the next one was not. If there is no reason, the rest was not started, and is handed out
    /// again at no cost.
    pub failure: Option<TaskFailure>,
    /// Highest resident memory of the worker's process since it fetched the plan, where the worker
    /// is one of its own.
    pub worker_peak_bytes: Option<u64>,
}

/// A finished task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Its number.
    pub task: u64,
    /// What it wrote, one receipt for each chunk.
    pub receipts: Vec<Receipt>,
    /// What it moved.
    pub traffic: Traffic,
    /// CPU time of its thread.
    pub cpu_ns: u64,
    /// Time from start to end.
    pub wall_ns: u64,
    /// The most bytes that its buffers took.
    pub peak_bytes: u64,
}

/// Proof that a chunk was written, or that nothing had to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The array.
    pub array: ArrayId,
    /// The place, in C order, of the chunk or shard that was written.
    pub chunk: u64,
    /// What became of it.
    pub written: Written,
}

/// Why a task failed; decides whether it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The store may answer next time.
    Transient,
    /// The store asks for fewer requests.
    Throttled,
    /// The worker was stopped from outside, or nothing is heard of it any more.
    WorkerLost,
    /// The worker ended by itself in the middle of the task.
    Crashed,
    /// The task took longer than it may.
    TimedOut,
    /// The system stopped the worker for want of memory.
    OutOfMemory,
    /// A chunk that this run has written is damaged or gone.
    Damaged {
        /// The array.
        array: ArrayId,
        /// The place, in C order, of the object.
        object: u64,
    },
    /// An object is damaged or of another kind.
    BadInput,
    /// No space is left.
    NoSpace,
    /// Not permitted.
    Denied,
    /// Somebody else has what the task writes.
    Refused,
    /// The store failed for good.
    Storage,
    /// More memory was asked for than was projected.
    Overrun,
    /// The run was cancelled.
    Cancelled,
    /// Somebody else has finished the request meanwhile.
    Superseded,
    /// Plan and worker do not fit together.
    Plan,
    /// A user's kernel failed.
    Kernel,
    /// An invariant of the engine does not hold: a defect, never the user's to mend.
    Internal,
}

impl FailureKind {
    /// For people, and for counting.
    pub fn name(self) -> &'static str {
        match self {
            FailureKind::Transient => "storage",
            FailureKind::Throttled => "throttled",
            FailureKind::WorkerLost => "worker lost",
            FailureKind::Crashed => "crashed",
            FailureKind::TimedOut => "timed out",
            FailureKind::OutOfMemory => "out of memory",
            FailureKind::Damaged { .. } => "damaged intermediate",
            FailureKind::BadInput => "bad input",
            FailureKind::NoSpace => "no space",
            FailureKind::Denied => "denied",
            FailureKind::Refused => "refused",
            FailureKind::Storage => "storage, for good",
            FailureKind::Overrun => "memory overrun",
            FailureKind::Cancelled => "cancelled",
            FailureKind::Superseded => "superseded",
            FailureKind::Plan => "plan",
            FailureKind::Kernel => "kernel",
            FailureKind::Internal => "internal error",
        }
    }
}

/// A failed task, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailure {
    /// Why.
    pub kind: FailureKind,
    /// In words.
    pub message: String,
    /// The stage's name.
    pub stage: String,
    /// The task.
    pub task: u64,
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} of stage `{}` failed: {}", self.task, self.stage, self.message)
    }
}

/// The kind of a failure and its words.
pub(crate) type Cause = (FailureKind, String);

/// The cause of a chunk that did not come or go.
pub(crate) fn cause_of_chunk(error: &ChunkError) -> Cause {
    let kind = match error {
        ChunkError::Storage(e) => kind_of_storage(e),
        ChunkError::Codec { error: CodecError::Overrun(_), .. } | ChunkError::Overrun(_) => {
            FailureKind::Overrun
        }
        ChunkError::Codec { .. } => FailureKind::BadInput,
        ChunkError::Damaged { array, object, .. } => {
            FailureKind::Damaged { array: ArrayId(*array), object: *object }
        }
    };
    (kind, error.to_string())
}

/// What a storage error means for a task.
pub fn kind_of_storage(error: &StorageError) -> FailureKind {
    match error {
        e if e.is_transient() => FailureKind::Transient,
        e if e.is_throttle() => FailureKind::Throttled,
        StorageError::TooLong { .. } | StorageError::Truncated { .. } => FailureKind::BadInput,
        StorageError::NoSpace { .. } => FailureKind::NoSpace,
        StorageError::Denied { .. } => FailureKind::Denied,
        StorageError::Refused { .. } => FailureKind::Refused,
        StorageError::Internal { .. } => FailureKind::Internal,
        _ => FailureKind::Storage,
    }
}

/// The cause of a broken invariant: a panic in debug builds, else an error that ends the run, never
/// a wrong result.
pub(crate) fn internal(invariant: &str) -> Cause {
    debug_assert!(false, "broken invariant: {invariant}");
    (
        FailureKind::Internal,
        format!(
            "internal error: broken invariant: {invariant} (hint: this is a defect of Freestone, \
                please report it)"
        ),
    )
}

/// The cause of a plan that a worker cannot run.
pub(crate) fn cause_of_plan(error: &PlanError) -> Cause {
    (FailureKind::Plan, error.to_string())
}
