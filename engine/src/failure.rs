//! Why a run did not end well.

use std::time::Duration;

use thiserror::Error;

use crate::executor::ExecutorError;
use crate::plan::{ENGINE, PlanError};
use crate::session::{Refusal, SessionError};
use crate::storage::StorageError;
use crate::task::TaskFailure;

/// Why a run did not end well. Nothing is published then.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the work directory cannot be used: {0}")]
    Work(#[source] StorageError),
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    #[error("{failure}{}", after(*attempts, note))]
    Task { failure: TaskFailure, attempts: u32, note: String },
    #[error("a task reported other chunks than its plan says: {0}")]
    Receipts(String),
    /// A state that cannot happen: a defect of the engine.
    #[error(
        "internal error: broken invariant: {invariant} (hint: this is a defect of Freestone, \
            please report it)"
    )]
    Internal { invariant: String },
    #[error("the run was interrupted")]
    Cancelled,
    #[error("the run has taken longer than the {} that deadline \
        allows", humantime::format_duration(*.0))]
    Deadline(Duration),
    #[error("there is no run at {run} that can be resumed: {why}")]
    NoRun { run: String, why: String },
    #[error(
        "the run {run} is still going on in another process; if that is gone, try again in a minute"
    )]
    Running { run: String },
    /// This process had given no sign of life for a while, or the lock was removed.
    #[error(
        "the lock on the run {run} is not this process's any more: another one goes on with it, or \
            it was removed. What is here ends"
    )]
    TakenOver { run: String },
    #[error(
        "{place} is not what it was when the run began ({what}): nothing is computed from it any \
            more. Start a new run. It concerns {}",
        stages.join(", ")
    )]
    InputChanged { place: String, what: &'static str, stages: Vec<String> },
    /// The error, where finished work is kept.
    #[error("{error}\nFinished work is kept. To go on: {}", how_to_resume(error, run, kernels))]
    Stopped {
        error: Box<RunError>,
        run: String,
        /// The users' kernels of the plan, which the command does not know.
        kernels: Vec<String>,
    },
    /// The run was begun by another version of the engine.
    #[error(
        "cannot resume {run}: it was begun by Freestone {found}, this program is Freestone \
            {ENGINE} (hint: resume it with version {found}, or start a new run)"
    )]
    OtherEngine { run: String, found: String },
}

fn how_to_resume(error: &RunError, run: &str, kernels: &[String]) -> String {
    match kernels {
        [] => format!("freestone resume {run}{}", option(error)),
        _ => format!(
            "call `freestone::resume` for {run} in the program that has the kernel {}, registered \
                in `Options::kernels` (the command `freestone resume` does not \
             know it)",
            kernels.join(", ")
        ),
    }
}

/// The option without which a resumed run would be refused again.
fn option(error: &RunError) -> &'static str {
    match error.cause() {
        RunError::Session(SessionError::Refused { why: Refusal::Moved, .. }) => " --rebase",
        _ => "",
    }
}

fn after(attempts: u32, note: &str) -> String {
    match (attempts, note) {
        (..=1, "") => String::new(),
        (..=1, note) => format!(" ({note})"),
        (n, "") => format!(" ({n} attempts)"),
        (n, note) => format!(" ({n} attempts; {note})"),
    }
}

impl RunError {
    /// A state that cannot happen: a panic in debug builds, else an error that ends the run.
    pub(crate) fn internal(invariant: impl Into<String>) -> RunError {
        let invariant = invariant.into();
        debug_assert!(false, "broken invariant: {invariant}");
        RunError::Internal { invariant }
    }

    /// What went wrong, whether or not finished work is kept.
    pub fn cause(&self) -> &RunError {
        match self {
            RunError::Stopped { error, .. } => error.cause(),
            other => other,
        }
    }

    /// True where nobody goes on with the run, here or elsewhere: its outputs' places can be given
    /// up.
    pub fn is_final(&self) -> bool {
        !matches!(self, RunError::Stopped { .. } | RunError::TakenOver { .. })
    }

    /// The run's folder, if it can be resumed.
    pub fn kept(&self) -> Option<&str> {
        match self {
            RunError::Stopped { run, .. } => Some(run),
            _ => None,
        }
    }
}
