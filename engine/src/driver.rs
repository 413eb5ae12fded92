//! A run from start to end: order, retries, budgets, journal, commit.
//!
//! The driver hands out ranges of tasks; executors pull them (`driver/queue.rs`). A task is ready when what it reads is finished;
//! tasks are admitted while their projections fit `local_mem` together; what that leaves over keeps
//! intermediates in memory, where tasks run in this process.

mod finished;
mod queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::events::{Event, Observer, RunReport, RunStart};
use crate::executor::{Executor, ExecutorError};
use crate::journal::Journal;
use crate::machine;
use crate::plan::{FinalizedPlan, LocalMemory, Place, PlanError};
use crate::session::{Session, SessionError};
use crate::spec::Spec;
use crate::storage::{StorageError, Store, Stores, TierStore, identity};
use crate::task::{RunAddress, TaskFailure};
use crate::user::KernelRegistry;
use crate::worker::{Cancel, RunContext};

use queue::{Folder, Queue};

/// Why a run did not end well. Nothing is published then; finished work stays in the work directory.
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
    #[error("{failure}{}", if *attempts > 1 { format!(" ({attempts} attempts)") } else { String::new() })]
    Task { failure: TaskFailure, attempts: u32 },
    #[error("a task reported other chunks than its plan says: {0}")]
    Receipts(String),
    #[error("the run {run} was interrupted; finished work is kept in {work_dir}")]
    Cancelled { run: String, work_dir: String },
}

/// Everything that a run needs besides its plan.
#[derive(Clone)]
#[allow(missing_debug_implementations)]
pub struct Run<'a> {
    /// Limits and places.
    pub spec: &'a Spec,
    /// Stores that are open; those in memory are found only here.
    pub stores: &'a Stores,
    /// Kernels of users that this process knows.
    pub kernels: &'a KernelRegistry,
    /// Where tasks run.
    pub executor: &'a dyn Executor,
    /// Where outputs go.
    pub session: &'a dyn Session,
    /// Who looks on.
    pub observers: &'a [&'a dyn Observer],
    /// Stops the run when asked.
    pub cancel: Cancel,
}

/// Runs a plan.
///
/// Nothing is written before it is known that the outputs may be and that the work directory can be.
///
/// # Errors
/// See [`RunError`].
pub fn run(plan: &Arc<FinalizedPlan>, run: &Run<'_>) -> Result<RunReport, RunError> {
    let slots = run.executor.slots();
    let local = LocalMemory { limit: run.spec.local_mem, shared: run.executor.shares_process() };
    let projection = plan.projected_local_mem(slots, &local)?;
    check_work_dir(plan, &run.spec.work_dir)?;
    run.session.check(plan)?;
    // Two runs of one plan must not see each other's intermediates, nor those of one that was killed.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let folder = format!("{}-{now:x}-{}", plan.run_id(), std::process::id());
    let address = RunAddress { work_dir: run.spec.work_dir.clone(), folder: folder.clone() };
    let work = run.stores.open(&address.work_dir).map_err(RunError::Work)?;
    work.write(&format!("{folder}/plan.json"), &plan.to_bytes()?).map_err(RunError::Work)?;
    // Tasks see the memory tier in the place of the work directory; plan and journal do not go through it.
    let tier = (projection.kept > 0).then(|| Arc::new(TierStore::new(Arc::clone(&work), format!("{folder}/"), projection.kept, 0)));
    let between: Arc<dyn Store> = tier.as_ref().map_or(Arc::clone(&work), |t| Arc::<TierStore>::clone(t));
    let stores = run.stores.with(&address.work_dir, Arc::clone(&between));
    let kernels = Arc::new(run.kernels.clone());
    let context = RunContext { plan: Arc::clone(plan), address, stores, kernels, cancel: run.cancel.clone() };
    if let Err(error) = run.executor.check(&context) {
        clean(&*work, &folder);
        return Err(error.into());
    }
    let journal = Journal::start(Arc::clone(&work), format!("{folder}/journal")).map_err(RunError::Work)?;
    run.session.begin(plan)?;
    let (start, cpu) = (Instant::now(), machine::process_cpu_ns());
    let tell = |event: &Event<'_>| run.observers.iter().for_each(|o| o.on(event));
    let finished = vec![0; plan.plan().stages.len()];
    let projected_bytes = if local.shared { projection.total() } else { plan.projected_mem() };
    tell(&Event::RunStarted(&RunStart {
        run: &folder,
        plan,
        executor: run.executor.name(),
        slots,
        projected_bytes,
        local_mem: run.spec.local_mem,
        finished: &finished,
    }));
    let queue = Queue::new(plan, run, local, projection.tasks, Folder { between: &*between, name: &folder, journal: &journal });
    let executed = run.executor.run(&context, &queue);
    let ended = finish(executed, queue, &journal, run, plan, &folder);
    if ended.is_err() {
        run.session.abandon(plan);
    }
    let mut report = match ended {
        Ok(report) => report,
        Err(error) => {
            tell(&Event::RunEnded(Err(&error)));
            return Err(error);
        }
    };
    clean(&*work, &folder);
    report.wall = start.elapsed();
    report.process_cpu = Duration::from_nanos(machine::process_cpu_ns().saturating_sub(cpu));
    report.peak_rss_bytes = machine::peak_rss_bytes();
    report.slots = slots;
    report.projected_bytes = projected_bytes;
    report.kept_bytes = tier.map_or(0, |t| t.highest());
    tell(&Event::RunEnded(Ok(&report)));
    Ok(report)
}

/// What is replaced is removed first, and the run's own plan and journal must not be in it.
fn check_work_dir(plan: &FinalizedPlan, work_dir: &str) -> Result<(), PlanError> {
    let work = identity(work_dir, "");
    for array in &plan.plan().arrays {
        if let Place::Output { url, path } = &array.place {
            let place = identity(url, path);
            if format!("{work}/").starts_with(&format!("{place}/")) {
                return Err(PlanError::BadOutput(format!("the work directory {work} lies in the result's own place, {place}: choose another work_dir")));
            }
        }
    }
    Ok(())
}

fn finish(
    executed: Result<(), ExecutorError>,
    queue: Queue<'_>,
    journal: &Journal,
    run: &Run<'_>,
    plan: &FinalizedPlan,
    folder: &str,
) -> Result<RunReport, RunError> {
    let journaled = journal.flush();
    let state = queue.into_state();
    // An executor that has no workers fails its tasks too; it knows better why.
    executed?;
    if let Some(error) = state.error {
        return Err(error);
    }
    if run.cancel.is_cancelled() {
        return Err(RunError::Cancelled { run: folder.to_owned(), work_dir: run.spec.work_dir.clone() });
    }
    journaled.map_err(RunError::Work)?;
    if let Some(open) = state.stages.iter().zip(&plan.plan().stages).find(|(p, s)| p.finished.count() != s.n_tasks()) {
        return Err(RunError::Receipts(format!("stage `{}` has {} of {} tasks finished", open.1.name, open.0.finished.count(), open.1.n_tasks())));
    }
    run.session.commit(plan)?;
    Ok(RunReport {
        run: folder.to_owned(),
        stages: state.stages.into_iter().map(|p| p.report).collect(),
        worker_peak_bytes: state.worker_peak_bytes,
        retries: state.retries,
        ..RunReport::default()
    })
}

/// Removes what a successful run leaves; failing to is no failure of the run.
fn clean(work: &dyn Store, folder: &str) {
    let _ = work.remove(&format!("{folder}/"));
}
