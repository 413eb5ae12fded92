//! Where tasks run: one after the other ([`Serial`]), on threads ([`Threads`]), in processes
//! ([`Processes`]), and with feature `lambda` on AWS Lambda (`LambdaExecutor`).
//!
//! All of them pull requests from the driver. In this process they run them with the engine's
//! [`Worker`](freestone_engine::worker::Worker), elsewhere they ask the worker of
//! `freestone-worker`; every executor passes the suite in [`conformance`].

pub mod conformance;
#[cfg(feature = "lambda")]
#[cfg_attr(not(test), warn(clippy::disallowed_methods))]
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

/// Slots that a plan has tasks for.
fn useful(slots: usize, context: &RunContext) -> usize {
    let tasks = context.plan.plan().stages.iter().map(|s| s.n_tasks()).fold(0, u64::saturating_add);
    slots.min(usize::try_from(tasks).unwrap_or(usize::MAX)).max(1)
}

/// What is in the memory of this process is not seen by workers in others.
fn in_reach(context: &RunContext) -> Result<(), ExecutorError> {
    let hidden = context.plan.plan().arrays.iter().find_map(|a| match &a.place {
        Place::Input { url, .. } | Place::Output { url, .. } if is_in_memory(url) => {
            Some(a.name.clone())
        }
        _ => None,
    });
    hidden.map_or(Ok(()), |name| Err(ExecutorError::Unreachable(format!("`{name}`"))))
}

/// Workers on other machines see directories of this one only if they have it as a network's file
/// system; that they see the work directory, a plan that they have found there tells. Chunks that
/// are not there would be fill values, and results would go where nobody looks.
#[cfg(feature = "lambda")]
fn in_reach_from_afar(context: &RunContext) -> Result<(), ExecutorError> {
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

/// Finds out whether this program knows the kernels of a plan.
fn knows_kernels(context: &RunContext) -> Result<(), ExecutorError> {
    let refused = |message| ExecutorError::Refused {
        worker: "in this process".into(),
        refusal: Refusal::new(RefusalKind::UnknownKernel, message),
    };
    context.check_kernels().map_err(refused)
}

/// The outcome of a request whose worker is gone.
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
