//! Errors of a run.

use std::time::Duration;

use thiserror::Error;

use crate::executor::ExecutorError;
use crate::plan::{ENGINE, PlanError};
use crate::publish::{PublishError, Rejection};
use crate::storage::StorageError;
use crate::task::TaskFailure;

/// The error of a run. A run that returns an error has published nothing.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the fields have the names that messages use")]
pub enum RunError {
    /// The plan cannot run on this machine, or cannot be read.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The outputs cannot be written or published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// An operation in the work directory failed.
    #[error("cannot use the work directory: {0}")]
    Work(#[source] StorageError),
    /// The executor cannot run the plan.
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    /// A task failed and is not retried. The note adds details to the failure's message.
    #[error("{failure}{}", attempts_and_note(*attempts, note))]
    Task { failure: TaskFailure, attempts: u32, note: String },
    /// The receipts of finished tasks are not those that the plan requires: a defect of the engine.
    #[error("receipts do not match the plan: {0}")]
    Receipts(String),
    /// A violated invariant: a defect of the engine.
    #[error(
        "internal error: broken invariant: {invariant} (hint: this is a defect of Freestone, \
            please report it)"
    )]
    Internal { invariant: String },
    /// The run was cancelled.
    #[error("the run was cancelled")]
    Cancelled,
    /// The run exceeded its deadline.
    #[error("the run exceeded its deadline of {}", humantime::format_duration(*.0))]
    Deadline(Duration),
    /// The folder is not a run that this program can resume.
    #[error("no resumable run at `{run}`: {why}")]
    NoRun { run: String, why: String },
    /// Another process drives the run.
    #[error(
        "the run `{run}` is in progress in another process (hint: if that process has ended, retry \
            in a minute)"
    )]
    Running { run: String },
    /// This process did not renew the run's lock in time, or the lock was removed.
    #[error(
        "lost the lock of the run `{run}`: another process took the run over, or the lock was \
            removed; stopping without publishing"
    )]
    TakenOver { run: String },
    /// An input has changed since the run began.
    #[error(
        "input `{place}` {what} since the run began, and unfinished stages read it: {} \
            (hint: start a new run)",
        stages.join(", ")
    )]
    InputChanged { place: String, what: &'static str, stages: Vec<String> },
    /// The cause of a failed run whose finished tasks are kept, so that it can be resumed.
    #[error("{error}\nfinished tasks are kept (hint: {})", resume_hint(error, run, kernels))]
    Stopped {
        error: Box<RunError>,
        run: String,
        /// The users' kernels of the plan, which the command does not know.
        kernels: Vec<String>,
    },
    /// The run was begun by another version of the engine.
    #[error(
        "cannot resume `{run}`: it was begun by Freestone {found}, this program is Freestone \
            {ENGINE} (hint: resume it with version {found}, or start a new run)"
    )]
    OtherEngine { run: String, found: String },
}

fn resume_hint(error: &RunError, run: &str, kernels: &[String]) -> String {
    match kernels {
        [] => format!("continue with `freestone resume {run}{}`", required_option(error)),
        _ => format!(
            "call `freestone::resume` for {run} in the program that has the kernel {}, registered \
                in `RunOptions::kernels`; the command `freestone resume` does not know the kernel",
            kernels.join(", ")
        ),
    }
}

/// Returns the option without which the resumed run would fail with the same error.
fn required_option(error: &RunError) -> &'static str {
    match error.cause() {
        RunError::Publish(PublishError::Rejected { why: Rejection::NeedsRebase, .. }) => {
            " --rebase"
        }
        _ => "",
    }
}

fn attempts_and_note(attempts: u32, note: &str) -> String {
    match (attempts, note) {
        (..=1, "") => String::new(),
        (..=1, note) => format!(" ({note})"),
        (n, "") => format!(" ({n} attempts)"),
        (n, note) => format!(" ({n} attempts; {note})"),
    }
}

impl RunError {
    /// Creates the error of a violated invariant. Panics in debug builds.
    pub(crate) fn internal(invariant: impl Into<String>) -> RunError {
        let invariant = invariant.into();
        debug_assert!(false, "broken invariant: {invariant}");
        RunError::Internal { invariant }
    }

    /// Returns the cause: the error itself, or the error inside [`RunError::Stopped`].
    pub fn cause(&self) -> &RunError {
        match self {
            RunError::Stopped { error, .. } => error.cause(),
            other => other,
        }
    }

    /// Returns true if the run cannot continue, in this process or another, so that its output
    /// locations can be released.
    pub fn is_final(&self) -> bool {
        !matches!(self, RunError::Stopped { .. } | RunError::TakenOver { .. })
    }

    /// Returns the run's folder if the run can be resumed.
    pub fn resumable_run(&self) -> Option<&str> {
        match self {
            RunError::Stopped { run, .. } => Some(run),
            _ => None,
        }
    }
}
