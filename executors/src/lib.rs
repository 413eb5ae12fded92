//! Executors of tasks: sequential ([`Serial`]), on threads ([`Threads`]), in processes
//! ([`Processes`]), and with feature `lambda` on AWS Lambda (`LambdaExecutor`).
//!
//! Executors pull requests from the driver. Those in this process run requests with the engine's
//! [`Worker`](freestone_engine::worker::Worker), the others send them to the worker of
//! `freestone-worker`. Every executor passes the [`conformance`] suite.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod conformance;
#[cfg(feature = "lambda")]
mod lambda;
mod processes;
mod protocol;
mod threads;

#[cfg(feature = "lambda")]
pub use lambda::{DEFAULT_CONCURRENCY, LambdaExecutor};
pub use processes::{Processes, WORKER_ARGUMENT, WORKER_VARIABLE, serve};
pub use threads::{Serial, Threads};

use freestone_engine::executor::ExecutorError;
use freestone_engine::plan::Place;
use freestone_engine::remote::{Refusal, RefusalKind};
use freestone_engine::storage::is_in_memory;
#[cfg(feature = "lambda")]
use freestone_engine::storage::{is_remote_url, join};
use freestone_engine::task::{FailureKind, TaskFailure, TaskOutcome, TaskRequest};
use freestone_engine::worker::RunContext;

/// Returns the number of slots that a plan has tasks for, at most `slots`.
fn useful_slots(slots: usize, context: &RunContext) -> usize {
    let tasks = context.plan.plan().stages.iter().map(|s| s.n_tasks()).fold(0, u64::saturating_add);
    slots.min(usize::try_from(tasks).unwrap_or(usize::MAX)).max(1)
}

/// Checks that no location is in the memory of this process, which other processes cannot read.
fn check_not_in_memory(context: &RunContext) -> Result<(), ExecutorError> {
    let in_memory = context.plan.plan().arrays.iter().find_map(|a| match &a.place {
        Place::Input { url, .. } | Place::Output { url, .. } if is_in_memory(url) => {
            Some(a.name.clone())
        }
        _ => None,
    });
    in_memory.map_or(Ok(()), |name| Err(ExecutorError::Unreachable(format!("`{name}`"))))
}

/// Checks that workers on other machines can reach all locations.
///
/// A local directory is reachable only through a network file system. If the work directory is
/// local, a worker that finds the plan there has such a file system. Otherwise missing chunks would
/// read as fill values, and results would be lost.
#[cfg(feature = "lambda")]
fn check_reachable_remotely(context: &RunContext) -> Result<(), ExecutorError> {
    let work_dir = &context.address.work_dir;
    let local = context.plan.plan().arrays.iter().find_map(|a| match &a.place {
        Place::Input { url, path, .. } | Place::Output { url, path }
            if is_remote_url(work_dir) && !is_remote_url(url) =>
        {
            Some((&a.name, join(url, path)))
        }
        _ => None,
    });
    local.map_or(Ok(()), |(name, place)| {
        Err(ExecutorError::Local { array: format!("`{name}`"), place, work_dir: work_dir.clone() })
    })
}

/// Checks that this program has the kernels of a plan.
fn check_kernels(context: &RunContext) -> Result<(), ExecutorError> {
    let refused = |message| ExecutorError::Refused {
        worker: "in this process".into(),
        refusal: Refusal::new(RefusalKind::UnknownKernel, message),
    };
    context.check_kernels().map_err(refused)
}

/// Returns the outcome of a request whose worker was lost or could not be used.
fn lost(
    context: &RunContext,
    request: TaskRequest,
    worker: String,
    kind: FailureKind,
    message: String,
) -> TaskOutcome {
    let stage =
        context.plan.plan().stages.get(request.stage.0).map(|s| s.name.clone()).unwrap_or_default();
    let failure = TaskFailure { kind, message, stage, task: request.first };
    TaskOutcome {
        request,
        worker,
        done: Vec::new(),
        failure: Some(failure),
        worker_peak_bytes: None,
    }
}
