//! The error of the facade, its kinds, and exit statuses.

use std::io;

use freestone_engine::driver::RunError;
use freestone_engine::executor::ExecutorError;
use freestone_engine::memory::size;
use freestone_engine::plan::PlanError;
use freestone_engine::publish::{PublishError, Rejection};
use freestone_engine::spec::SpecError;
use freestone_engine::storage::metadata::MetadataError;
use freestone_engine::storage::{EncodingError, StorageError};
use freestone_engine::task::FailureKind;
use freestone_kernels::{DType, ExprError};
use freestone_ops::{Error as ArrayError, RegionError};
use thiserror::Error;

/// The error of this crate.
///
/// [`kind`](Error::kind) classifies errors by the action that a caller can take. The variants hold
/// the details.
///
/// ```
/// use freestone::{Error, ErrorKind};
///
/// let error: Error = freestone::open("no/such/array").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::NotFound);
/// ```
#[derive(Debug, Error)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Error {
    #[error(transparent)]
    Array(#[from] ArrayError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[cfg(feature = "sessions")]
    #[error(transparent)]
    Repository(#[from] freestone_sessions::Error),
    #[error(
        "`{place}` is in a repository, but the run has no session (hint: set \
            `RunOptions::session`)"
    )]
    NoSession { place: String },
    #[error(
        "cannot commit: `{grown}` has {after} elements along `{axis}` now, but {} still {before}, \
            so that readers such as Xarray refuse the group (hint: append to \
         all of them in one session, as in `session.append(&values, \"{}\", 0)?`)",
        have(left), left.first().map_or("", String::as_str)
    )]
    Uneven { grown: String, axis: String, before: u64, after: u64, left: Vec<String> },
    #[error(
        "internal error: broken invariant: {invariant} (hint: this is a defect of Freestone, \
            please report it)"
    )]
    Internal { invariant: &'static str },
    #[error("invalid element type {asked}: the result has dtype {found}")]
    ResultType { found: DType, asked: DType },
    #[error("invalid result shape {shape:?}: expected one element")]
    NotScalar { shape: Vec<u64> },
    #[error(
        "the result has {}, but local_mem is {} (hint: store it instead, or raise local_mem)",
        size(*bytes), size(*local_mem)
    )]
    ResultExceedsMemory { bytes: u64, local_mem: u64 },
    #[error("the session has been committed (hint: begin another session)")]
    SessionEnded,
}

fn have(arrays: &[String]) -> String {
    let names: Vec<String> = arrays.iter().map(|name| format!("`{name}`")).collect();
    format!("{} {}", names.join(", "), if names.len() == 1 { "has" } else { "have" })
}

/// Conversions of an error to the error that contains it.
macro_rules! from_inner {
    ($($inner:ty => $outer:ty),* $(,)?) => { $(
        impl From<$inner> for Error {
            fn from(error: $inner) -> Error {
                <$outer>::from(error).into()
            }
        }
    )* };
}

from_inner!(
    EncodingError => ArrayError,
    ExprError => ArrayError,
    MetadataError => ArrayError,
    RegionError => ArrayError,
    StorageError => ArrayError,
    PublishError => RunError,
);

/// The kind of an [`Error`](enum@Error), by the action that a caller can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Storage or a worker did not answer: retry later.
    Unavailable,
    /// The memory limits are too low: raise them, or use smaller chunks.
    ExceedsMemory,
    /// Settings are missing or contradict each other: change them.
    InvalidSettings,
    /// An array, an argument or a stored input cannot be used: change the input.
    InvalidInput,
    /// An array, a run, a repository or a version does not exist.
    NotFound,
    /// Another array, run or commit conflicts: choose another location, overwrite, rebase or wait.
    Conflict,
    /// The caller cancelled the run. Finished tasks are kept.
    Cancelled,
    /// The run reached its deadline. Finished tasks are kept.
    Deadline,
    /// Storage failed permanently: check permissions, space and damaged objects.
    Storage,
    /// A worker cannot be started, or failed repeatedly in the same way.
    Worker,
    /// A user's kernel failed: change the kernel or its input.
    Kernel,
    /// A defect of Freestone: report it.
    Internal,
}

/// The exit status of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum ExitCode {
    /// A task or the system failed.
    Failed = 1,
    /// The command line or the settings are invalid.
    Usage = 2,
    /// The memory limits are too low.
    Memory = 3,
    /// An input is invalid, or does not match the others.
    Input = 4,
    /// Another array, run or commit conflicts.
    Conflict = 5,
    /// The run reached its deadline; finished work is kept.
    Deadline = 124,
    /// The run was interrupted; finished work is kept.
    Interrupted = 130,
}

impl From<ErrorKind> for ExitCode {
    fn from(kind: ErrorKind) -> ExitCode {
        match kind {
            ErrorKind::ExceedsMemory => ExitCode::Memory,
            ErrorKind::InvalidSettings => ExitCode::Usage,
            ErrorKind::InvalidInput | ErrorKind::NotFound => ExitCode::Input,
            ErrorKind::Conflict => ExitCode::Conflict,
            ErrorKind::Cancelled => ExitCode::Interrupted,
            ErrorKind::Deadline => ExitCode::Deadline,
            ErrorKind::Unavailable
            | ErrorKind::Storage
            | ErrorKind::Worker
            | ErrorKind::Kernel
            | ErrorKind::Internal => ExitCode::Failed,
        }
    }
}

impl Error {
    /// Returns the kind of the error, by the action that a caller can take.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Array(error) => of_array(error.cause()),
            Error::Plan(error) => of_plan(error),
            Error::Run(error) => of_run(error.cause()),
            Error::Executor(error) => of_executor(error),
            Error::Io(error) => of_io(error),
            Error::Uneven { .. } | Error::ResultType { .. } | Error::NotScalar { .. } => {
                ErrorKind::InvalidInput
            }
            Error::ResultExceedsMemory { .. } => ErrorKind::ExceedsMemory,
            Error::SessionEnded => ErrorKind::Conflict,
            Error::Internal { .. } => ErrorKind::Internal,
            #[cfg(feature = "sessions")]
            Error::Repository(error) => of_repository(error),
            Error::Spec(SpecError::NoRoom { .. }) => ErrorKind::ExceedsMemory,
            Error::Spec(_) | Error::NoSession { .. } => ErrorKind::InvalidSettings,
        }
    }

    /// Returns the exit status for the error's kind.
    pub fn exit_code(&self) -> ExitCode {
        self.kind().into()
    }

    /// Returns the folder of the failed run if it can be resumed, for
    /// [`open_run`](crate::open_run).
    pub fn resumable_run(&self) -> Option<&str> {
        match self {
            Error::Run(error) => error.resumable_run(),
            _ => None,
        }
    }
}

fn of_array(error: &ArrayError) -> ErrorKind {
    match error {
        ArrayError::Coordinates { .. } => ErrorKind::Conflict,
        ArrayError::Metadata(MetadataError::Storage(error)) | ArrayError::Storage(error) => {
            of_storage(error)
        }
        ArrayError::Metadata(MetadataError::NoZarr { .. } | MetadataError::NoGroup { .. })
        | ArrayError::Region(RegionError::Missing { .. }) => ErrorKind::NotFound,
        _ => ErrorKind::InvalidInput,
    }
}

/// Returns the kind of an error that occurred while opening an array.
fn of_storage(error: &StorageError) -> ErrorKind {
    match error {
        StorageError::InvalidUrl { .. } | StorageError::NotInProcess(_) => ErrorKind::InvalidInput,
        // Metadata with an unexpected length are invalid metadata.
        StorageError::TooLong { .. } | StorageError::Truncated { .. } => ErrorKind::InvalidInput,
        StorageError::NotFound { .. } => ErrorKind::NotFound,
        StorageError::NotPrivate { .. } => ErrorKind::InvalidSettings,
        StorageError::Internal { .. } => ErrorKind::Internal,
        error if error.is_transient() || error.is_throttle() => ErrorKind::Unavailable,
        // For example, the location is a file, or the repository does not exist.
        StorageError::Io { .. } => ErrorKind::InvalidInput,
        _ => ErrorKind::Storage,
    }
}

fn of_plan(error: &PlanError) -> ErrorKind {
    match error {
        PlanError::ExceedsMemory { .. } | PlanError::ExceedsLocalMemory { .. } => {
            ErrorKind::ExceedsMemory
        }
        _ => ErrorKind::InvalidInput,
    }
}

fn of_io(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
        io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => ErrorKind::Unavailable,
        _ => ErrorKind::Storage,
    }
}

fn of_executor(error: &ExecutorError) -> ErrorKind {
    match error {
        ExecutorError::Unreachable(_) | ExecutorError::Local { .. } => ErrorKind::InvalidInput,
        ExecutorError::Unavailable { .. } => ErrorKind::Unavailable,
        _ => ErrorKind::Worker,
    }
}

fn of_run(error: &RunError) -> ErrorKind {
    match error {
        RunError::Plan(
            error @ (PlanError::ExceedsMemory { .. } | PlanError::ExceedsLocalMemory { .. }),
        ) => of_plan(error),
        RunError::Publish(error) => of_publish(error),
        RunError::Executor(error) => of_executor(error),
        RunError::Task { failure, .. } => of_failure(failure.kind),
        RunError::Running { .. } | RunError::TakenOver { .. } => ErrorKind::Conflict,
        RunError::Cancelled => ErrorKind::Cancelled,
        RunError::Deadline(_) => ErrorKind::Deadline,
        RunError::NoRun { .. } => ErrorKind::NotFound,
        RunError::OtherEngine { .. } | RunError::InputChanged { .. } => ErrorKind::InvalidInput,
        RunError::Work(error) if error.is_transient() || error.is_throttle() => {
            ErrorKind::Unavailable
        }
        RunError::Work(_) => ErrorKind::Storage,
        _ => ErrorKind::Internal,
    }
}

fn of_publish(error: &PublishError) -> ErrorKind {
    match error {
        PublishError::Storage(error) if error.is_transient() || error.is_throttle() => {
            ErrorKind::Unavailable
        }
        PublishError::Storage(_) => ErrorKind::Storage,
        PublishError::Rejected { why, .. } => match why {
            Rejection::Transient => ErrorKind::Unavailable,
            Rejection::Failed => ErrorKind::Storage,
            Rejection::Cancelled => ErrorKind::Cancelled,
            _ => ErrorKind::Conflict,
        },
        _ => ErrorKind::Conflict,
    }
}

fn of_failure(kind: FailureKind) -> ErrorKind {
    match kind {
        FailureKind::Transient | FailureKind::Throttled | FailureKind::TimedOut => {
            ErrorKind::Unavailable
        }
        FailureKind::OutOfMemory | FailureKind::Overrun => ErrorKind::ExceedsMemory,
        FailureKind::BadInput => ErrorKind::InvalidInput,
        FailureKind::Refused | FailureKind::Superseded => ErrorKind::Conflict,
        FailureKind::Damaged { .. }
        | FailureKind::NoSpace
        | FailureKind::Denied
        | FailureKind::Storage => ErrorKind::Storage,
        FailureKind::WorkerLost | FailureKind::Crashed => ErrorKind::Worker,
        FailureKind::Cancelled => ErrorKind::Cancelled,
        FailureKind::Kernel => ErrorKind::Kernel,
        _ => ErrorKind::Internal,
    }
}

#[cfg(feature = "sessions")]
fn of_repository(error: &freestone_sessions::Error) -> ErrorKind {
    use freestone_sessions::Error as E;
    match error {
        E::InvalidUrl { .. }
        | E::InvalidFormat { .. }
        | E::InvalidName { .. }
        | E::InvalidRef { .. }
        | E::TooLong { .. }
        | E::SharingOff { .. } => ErrorKind::InvalidSettings,
        E::NoRepository { .. } | E::NoVersion { .. } | E::NoNode { .. } | E::NoSession { .. } => {
            ErrorKind::NotFound
        }
        E::NotInProcess { .. } | E::InvalidNode { .. } => ErrorKind::InvalidInput,
        E::Exists { .. }
        | E::Occupied { .. }
        | E::RefExists { .. }
        | E::NodeExists { .. }
        | E::Conflict(_)
        | E::Contended { .. }
        | E::Closed { .. }
        | E::Committing { .. }
        | E::Stale { .. }
        | E::OpenJoiners { .. }
        | E::Replaced { .. }
        | E::CreatedTwice { .. }
        | E::WrittenTwice { .. }
        | E::Collected { .. } => ErrorKind::Conflict,
        E::Cancelled => ErrorKind::Cancelled,
        E::Internal { .. } => ErrorKind::Internal,
        E::Repository { transient: true, .. } => ErrorKind::Unavailable,
        _ => ErrorKind::Storage,
    }
}
