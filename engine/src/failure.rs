//! Why a run did not end well.

use std::time::Duration;

use thiserror::Error;

use crate::executor::ExecutorError;
use crate::plan::PlanError;
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
    #[error("the run was interrupted")]
    Cancelled,
    #[error("the run has taken longer than the {} that deadline allows", humantime::format_duration(*.0))]
    Deadline(Duration),
    #[error("there is no run at {run} that can be resumed: {why}")]
    NoRun { run: String, why: String },
    #[error("the run {run} is still going on in another process; if that is gone, try again in a minute")]
    Running { run: String },
    /// This process had given no sign of life for a while, or the lock was removed.
    #[error("the lock on the run {run} is not this process's any more: another one goes on with it, or it was removed. What is here ends")]
    TakenOver { run: String },
    #[error(
        "{place} is not what it was when the run began ({what}): nothing is computed from it any more. Start a new run. It concerns {}",
        stages.join(", ")
    )]
    InputChanged { place: String, what: &'static str, stages: Vec<String> },
    /// The error, where finished work is kept.
    #[error("{error}\nFinished work is kept. To go on: freestone resume {run}{}", option(error))]
    Stopped { error: Box<RunError>, run: String },
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
    /// What went wrong, whether or not finished work is kept.
    pub fn cause(&self) -> &RunError {
        match self {
            RunError::Stopped { error, .. } => error.cause(),
            other => other,
        }
    }

    /// True where nobody goes on with the run, here or elsewhere: its outputs' places can be given up.
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
