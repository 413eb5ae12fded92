//! Messages between driver and workers: plain data without code and credentials.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::{ArrayId, PlanError, StageId};
use crate::storage::StorageError;
use crate::storage::codec::CodecError;
use crate::storage::reader::{ChunkError, Traffic, Written};

/// The location of a run's plan, from which workers fetch it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunAddress {
    /// The work directory.
    pub work_dir: String,
    /// The run's folder in the work directory: the run's name with a suffix that distinguishes runs
    /// of the same plan.
    pub folder: String,
}

/// A range of tasks of one stage, which one worker runs in sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRequest {
    /// The unique number of the request in this run.
    pub id: u64,
    /// The stage.
    pub stage: StageId,
    /// The first task.
    pub first: u64,
    /// The number of tasks.
    pub count: u64,
    /// The number of earlier attempts.
    pub attempt: u32,
    /// The slow request in flight of which this one is a backup.
    pub backup_of: Option<u64>,
    /// The maximum duration of each task in milliseconds.
    pub timeout_ms: Option<u64>,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskOutcome {
    /// The request.
    pub request: TaskRequest,
    /// The worker: the name of a thread or process.
    pub worker: String,
    /// The finished tasks, in order.
    pub done: Vec<TaskReport>,
    /// The failure of the next task. If there is none, the remaining tasks were not started and are
    /// scheduled again without counting as retries.
    pub failure: Option<TaskFailure>,
    /// The peak resident memory of a worker process since it fetched the plan.
    pub worker_peak_bytes: Option<u64>,
}

/// A finished task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// The index of the task.
    pub task: u64,
    /// The receipts of the written chunks.
    pub receipts: Vec<Receipt>,
    /// The bytes and requests.
    pub traffic: Traffic,
    /// The CPU time of the thread.
    pub cpu_ns: u64,
    /// The duration.
    pub wall_ns: u64,
    /// The peak size of the task's buffers in bytes.
    pub peak_bytes: u64,
}

/// The receipt of a written chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The array.
    pub array: ArrayId,
    /// The index of the chunk or shard in C order.
    pub chunk: u64,
    /// The result of the write.
    pub written: Written,
}

/// The kind of a failure, which determines whether the task is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// A transient failure of storage.
    Transient,
    /// The store limited the request rate.
    Throttled,
    /// The worker was stopped or does not respond.
    WorkerLost,
    /// The worker crashed during the task.
    Crashed,
    /// The task exceeded its timeout.
    TimedOut,
    /// The system killed the worker because memory was exhausted.
    OutOfMemory,
    /// A chunk that this run has written is damaged or missing.
    Damaged {
        /// The array.
        array: ArrayId,
        /// The index of the object in C order.
        object: u64,
    },
    /// An input object is damaged or of another kind.
    BadInput,
    /// The storage is full.
    NoSpace,
    /// Permission was denied.
    Denied,
    /// The store accepts no writes from this run.
    Refused,
    /// A permanent failure of storage.
    Storage,
    /// The task requested more memory than projected.
    Overrun,
    /// The run was cancelled.
    Cancelled,
    /// Another worker has finished the request.
    Superseded,
    /// The worker cannot run the plan.
    Plan,
    /// A user's kernel failed.
    Kernel,
    /// A broken invariant of the engine: a defect.
    Internal,
}

impl FailureKind {
    /// Returns the name of the kind, for display and counting.
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
            FailureKind::Storage => "permanent storage failure",
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
    /// The kind.
    pub kind: FailureKind,
    /// The message.
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

/// The kind and message of a failure.
pub(crate) type Cause = (FailureKind, String);

/// Returns the cause of a failed read or write of a chunk.
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

/// Returns the failure kind of a storage error.
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

/// Returns the cause of a broken invariant, which ends the run before it can publish a wrong
/// result. Panics in debug builds.
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

/// Returns the cause of a plan that a worker cannot run.
pub(crate) fn cause_of_plan(error: &PlanError) -> Cause {
    (FailureKind::Plan, error.to_string())
}
