//! One error for whoever uses the facade, and what a command exits with.

use freestone_engine::driver::RunError;
use freestone_engine::executor::ExecutorError;
use freestone_engine::plan::PlanError;
use freestone_engine::publish::{PublishError, Rejection};
use freestone_engine::spec::SpecError;
use freestone_engine::task::FailureKind;
use freestone_ops::Error as ArrayError;
use thiserror::Error;

/// Why something was not computed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Array(#[from] freestone_ops::Error),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[cfg(feature = "sessions")]
    #[error(transparent)]
    Repository(#[from] freestone_sessions::Error),
    #[error("`{place}` is in a repository: give the run its session, which commits it")]
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
    #[error("the result is {found}, not {asked}")]
    ResultType { found: freestone_kernels::DType, asked: freestone_kernels::DType },
}

fn have(arrays: &[String]) -> String {
    let names: Vec<String> = arrays.iter().map(|name| format!("`{name}`")).collect();
    format!("{} {}", names.join(", "), if names.len() == 1 { "has" } else { "have" })
}

/// What a command tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// A task or the system failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The plan does not fit the memory allowed.
    Memory = 3,
    /// An input cannot be used, or does not fit the others.
    Input = 4,
    /// Something else is where the result should go.
    Conflict = 5,
    /// Stopped at its deadline; finished work is kept.
    Deadline = 124,
    /// Stopped on request; finished work is kept.
    Interrupted = 130,
}

impl Error {
    /// The exit code for this error.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Error::Plan(error) => of_plan(error),
            Error::Run(error) => of_run(error.cause()),
            Error::Array(error) if matches!(error.cause(), ArrayError::Coordinates { .. }) => {
                ExitCode::Conflict
            }
            Error::Array(_) | Error::Uneven { .. } | Error::ResultType { .. } => ExitCode::Input,
            Error::Internal { .. } => ExitCode::Failed,
            Error::NoSession { .. } => ExitCode::Usage,
            #[cfg(feature = "sessions")]
            Error::Repository(error) => of_repository(error),
            Error::Spec(SpecError::NoRoom { .. }) => ExitCode::Memory,
            Error::Spec(_) => ExitCode::Usage,
        }
    }
}

fn of_plan(error: &PlanError) -> ExitCode {
    match error {
        PlanError::ExceedsMemory { .. } | PlanError::ExceedsLocalMemory { .. } => ExitCode::Memory,
        _ => ExitCode::Input,
    }
}

fn of_run(error: &RunError) -> ExitCode {
    match error {
        RunError::Plan(PlanError::ExceedsMemory { .. } | PlanError::ExceedsLocalMemory { .. }) => {
            ExitCode::Memory
        }
        RunError::Publish(
            PublishError::Storage(_)
            | PublishError::Rejected { why: Rejection::Transient | Rejection::Failed, .. },
        ) => ExitCode::Failed,
        RunError::Publish(_) | RunError::Running { .. } | RunError::TakenOver { .. } => {
            ExitCode::Conflict
        }
        RunError::Cancelled => ExitCode::Interrupted,
        RunError::Deadline(_) => ExitCode::Deadline,
        RunError::NoRun { .. }
        | RunError::OtherEngine { .. }
        | RunError::InputChanged { .. }
        | RunError::Executor(ExecutorError::Unreachable(_) | ExecutorError::Local { .. }) => {
            ExitCode::Input
        }
        RunError::Task { failure, .. } if failure.kind == FailureKind::BadInput => ExitCode::Input,
        RunError::Task { failure, .. } if failure.kind == FailureKind::Refused => {
            ExitCode::Conflict
        }
        _ => ExitCode::Failed,
    }
}

#[cfg(feature = "sessions")]
fn of_repository(error: &freestone_sessions::Error) -> ExitCode {
    use freestone_sessions::Error as E;
    match error {
        E::InvalidUrl { .. }
        | E::InvalidFormat { .. }
        | E::InvalidName { .. }
        | E::InvalidRef { .. }
        | E::TooLong { .. }
        | E::SharingOff { .. } => ExitCode::Usage,
        E::NoRepository { .. }
        | E::NotInProcess { .. }
        | E::NoVersion { .. }
        | E::NoNode { .. }
        | E::NoSession { .. }
        | E::InvalidNode { .. } => ExitCode::Input,
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
        | E::Collected { .. } => ExitCode::Conflict,
        E::Cancelled => ExitCode::Interrupted,
        _ => ExitCode::Failed,
    }
}
