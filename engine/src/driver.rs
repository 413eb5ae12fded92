//! The driver of a run: scheduling, retries, memory budget, backups, journal and commit.
//!
//! Executors pull requests, which are ranges of tasks, from a queue (`queue`). A task is ready once
//! its inputs are finished. Tasks are admitted while the sum of their projections fits `local_mem`.
//! If tasks run in this process, the rest of `local_mem` holds intermediates.
//!
//! [`run`] starts a run, and [`resume`] continues one that has ended early, also in another
//! process. Both prepare a run and execute it (`execution`). A thread (`supervisor`) writes the
//! journal every second, so that the run can be recovered after a crash (`recovery`).

mod attempts;
pub mod batching;
mod durations;
mod execution;
mod inputs;
mod queue;
pub mod record;
mod recovery;
mod retry;
mod supervisor;

use std::sync::Arc;

use crate::events::{Observer, RunReport};
use crate::executor::Executor;
use crate::plan::FinalizedPlan;
use crate::publish::Publisher;
use crate::spec::Spec;
use crate::storage::{StorageError, Stores};
use crate::task::RunAddress;
use crate::user::KernelRegistry;
use crate::work_dir;
use crate::worker::Cancel;

pub use crate::failure::RunError;
use execution::PreparedRun;
use record::{RECORD_FORMAT, RunRecord, StoredRun};
use recovery::{Recovered, recover};
use retry::{retry_publish, retry_storage};

/// The environment of a run: everything except its plan.
#[derive(Clone)]
#[allow(missing_debug_implementations)]
pub struct Run<'a> {
    /// The limits and the work directory.
    pub spec: &'a Spec,
    /// The open stores, including those in memory, which cannot be opened by URL.
    pub stores: &'a Stores,
    /// The users' kernels of this process.
    pub kernels: &'a KernelRegistry,
    /// The executor of the tasks.
    pub executor: &'a dyn Executor,
    /// The publisher of the outputs.
    pub publisher: &'a dyn Publisher,
    /// The observers of the run's events.
    pub observers: &'a [&'a dyn Observer],
    /// The flag that cancels the run.
    pub cancel: Cancel,
}

/// Runs a plan.
///
/// Checks that the outputs and the work directory can be written before writing anything.
///
/// # Errors
/// Returns a [`RunError`] if the run cannot start or fails. Nothing is published then.
pub fn run(plan: &Arc<FinalizedPlan>, run: &Run<'_>) -> Result<RunReport, RunError> {
    let prepared = PreparedRun::new(plan, run)?;
    retry_publish(run.stores.system(), &|| run.publisher.check(plan))?;
    // The name is unique, so that runs of the same plan do not share intermediates.
    let now = run.stores.system().since_epoch();
    let folder = format!("{}-{:x}-{}", plan.run_id(), now.as_nanos(), std::process::id());
    let address = RunAddress { work_dir: run.spec.work_dir.clone(), folder };
    let record = RunRecord {
        format: RECORD_FORMAT,
        began_ms: now.as_millis() as u64,
        session: run.publisher.ticket(),
    };
    let record = serde_json::to_vec(&record)
        .map_err(|e| RunError::internal(format!("a run's record can be serialized ({e})")))?;
    work_dir::make(&run.spec.work_dir).map_err(RunError::Work)?;
    let Some(lock) = address.lock(prepared.work())? else {
        return Err(RunError::Running { run: address.path() });
    };
    let plan_bytes = plan.to_bytes()?;
    if let Err(error) = write_records(&prepared, &address.folder, &record, &plan_bytes) {
        let _ = record::remove_folder(prepared.work(), &address.folder);
        return Err(RunError::Work(error));
    }
    prepared.execute(&address, &lock, Recovered::default(), &|| run.publisher.begin(plan))
}

/// Writes `run.json` and `plan.json`.
fn write_records(
    prepared: &PreparedRun<'_>,
    folder: &str,
    record: &[u8],
    plan: &[u8],
) -> Result<(), StorageError> {
    [("run.json", record), ("plan.json", plan)].into_iter().try_for_each(|(name, bytes)| {
        let key = format!("{folder}/{name}");
        retry_storage(prepared.system(), || prepared.work().write(&key, bytes))
    })
}

/// Resumes a run that has ended early, from its stored plan. Tasks that are finished according to
/// the journal are not run again.
///
/// If the machine has been rebooted since, outputs are read once, and chunks that do not match
/// their receipts are recomputed. With `verify_inputs`, the modification time of each chunk of the
/// inputs that unfinished stages read is requested, which takes one request per chunk. Otherwise
/// only the metadata of these inputs is compared.
///
/// # Errors
/// Returns [`RunError::Running`] if another process drives the run, [`RunError::InputChanged`] if
/// an input has changed, and any other [`RunError`] if the run cannot start or fails.
pub fn resume(
    stored: &StoredRun,
    run: &Run<'_>,
    verify_inputs: bool,
) -> Result<RunReport, RunError> {
    let (plan, address) = (&stored.plan, &stored.address);
    let prepared = PreparedRun::new(plan, run)?;
    let Some(lock) = address.lock(prepared.work())? else {
        return Err(RunError::Running { run: address.path() });
    };
    let recovered = recover(stored, run, prepared.work())?;
    inputs::check(stored, prepared.work(), run.stores, &recovered.finished, verify_inputs)?;
    let (is_begun, is_finished) = (recovered.is_begun, recovered.is_finished(plan));
    if !is_begun {
        retry_publish(prepared.system(), &|| run.publisher.check(plan))?;
    }
    prepared.execute(address, &lock, recovered, &|| {
        if is_begun { run.publisher.resume(plan, is_finished) } else { run.publisher.begin(plan) }
    })
}
