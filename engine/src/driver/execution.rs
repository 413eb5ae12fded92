//! Execution of a prepared run, from its start to the commit.

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::queue::{MemoryBudget, Queue, RunFolder};
use super::record::{self, can_be_resumed};
use super::recovery::Recovered;
use super::retry::{retry_publish, retry_storage};
use super::supervisor::Supervisor;
use super::{Run, RunError};
use crate::events::{Event, RunReport, RunStart};
use crate::executor::ExecutorError;
use crate::journal::Journal;
use crate::machine;
use crate::plan::{FinalizedPlan, LocalMemory, LocalProjection, Place, PlanError};
use crate::publish::{PublishError, Rejection};
use crate::storage::{Lock, StorageError, Store, TieredStore, identity};
use crate::system::System;
use crate::task::RunAddress;
use crate::worker::RunContext;

/// The longest time that a run waits for the removal of its folder.
const REMOVAL: Duration = Duration::from_secs(10);

/// Takes the output locations for the run.
type Begin<'a> = &'a dyn Fn() -> Result<(), PublishError>;

/// A run that is ready to start.
pub(super) struct PreparedRun<'a> {
    plan: &'a Arc<FinalizedPlan>,
    run: &'a Run<'a>,
    local: LocalMemory,
    projection: LocalProjection,
    work: Arc<dyn Store>,
}

impl<'a> PreparedRun<'a> {
    /// Checks that memory suffices and opens the work directory. Writes nothing.
    pub(super) fn new(
        plan: &'a Arc<FinalizedPlan>,
        run: &'a Run<'a>,
    ) -> Result<PreparedRun<'a>, RunError> {
        let local = run.executor.local_memory(run.spec.local_mem);
        let projection = plan.projected_local_mem(run.executor.slots(), &local)?;
        check_work_dir(plan, &run.spec.work_dir)?;
        let work = record::open_work_dir(run.stores, &run.spec.work_dir)?;
        Ok(PreparedRun { plan, run, local, projection, work })
    }

    /// Returns the work directory.
    pub(super) fn work(&self) -> &dyn Store {
        &*self.work
    }

    /// Returns the run's clock and random numbers.
    pub(super) fn system(&self) -> &System {
        self.run.stores.system()
    }

    /// Runs the unfinished tasks and commits.
    pub(super) fn execute(
        &self,
        address: &RunAddress,
        lock: &Lock,
        recovered: Recovered,
        begin: Begin<'_>,
    ) -> Result<RunReport, RunError> {
        let active = ActiveRun::open(self, address, lock, recovered.epoch);
        if let Err(error) = active.start(&recovered, begin) {
            // A resumed run keeps its folder.
            if recovered.epoch == 0 {
                active.remove_folder();
            }
            return Err(error);
        }
        active.execute(recovered)
    }
}

/// Checks that no output contains the work directory. Outputs are removed before they are replaced,
/// and with them the plan and the journal would be lost.
fn check_work_dir(plan: &FinalizedPlan, work_dir: &str) -> Result<(), PlanError> {
    let work = identity(work_dir, "");
    for array in &plan.plan().arrays {
        if let Place::Output { url, path } = &array.place {
            let place = identity(url, path);
            if format!("{work}/").starts_with(&format!("{place}/")) {
                return Err(PlanError::BadOutput(format!(
                    "the work directory `{work}` is inside the output `{place}` (hint: choose \
                        another `work_dir`)"
                )));
            }
        }
    }
    Ok(())
}

/// A run whose lock this process holds.
struct ActiveRun<'a> {
    prepared: &'a PreparedRun<'a>,
    address: &'a RunAddress,
    lock: &'a Lock,
    /// The number of times that the run was resumed.
    epoch: u32,
    /// The memory tier over the work directory, if the projection has room for one. Plan and
    /// journal bypass it.
    tier: Option<Arc<TieredStore>>,
    /// The store of the intermediates: the memory tier or the work directory.
    intermediates: Arc<dyn Store>,
    /// The journal; `None` if the run cannot be resumed.
    journal: Option<Journal>,
    context: RunContext,
}

/// The error of a run, and whether any of its tasks is finished.
struct Failure {
    error: RunError,
    has_finished_tasks: bool,
}

impl<'a> ActiveRun<'a> {
    fn open(
        prepared: &'a PreparedRun<'a>,
        address: &'a RunAddress,
        lock: &'a Lock,
        epoch: u32,
    ) -> ActiveRun<'a> {
        let PreparedRun { plan, run, projection, work, .. } = prepared;
        let prefix = format!("{}/", address.folder);
        let tier = (projection.intermediates > 0).then(|| {
            Arc::new(TieredStore::new(Arc::clone(work), prefix, projection.intermediates, epoch))
        });
        let intermediates: Arc<dyn Store> = match &tier {
            Some(tier) => Arc::<TieredStore>::clone(tier),
            None => Arc::clone(work),
        };
        let context = RunContext {
            plan: Arc::clone(plan),
            address: address.clone(),
            stores: run.stores.with(&address.work_dir, Arc::clone(&intermediates)),
            kernels: Arc::new(run.kernels.clone()),
            cancel: run.cancel.child(),
        };
        let system = run.stores.system();
        let journal = can_be_resumed(plan, &**work)
            .then(|| Journal::new(Arc::clone(work), address.journal(), epoch, system.clone()));
        ActiveRun { prepared, address, lock, epoch, tier, intermediates, journal, context }
    }

    /// Checks the executor, takes the output locations, and restores saved intermediates.
    fn start(&self, recovered: &Recovered, begin: Begin<'_>) -> Result<(), RunError> {
        let PreparedRun { plan, run, work, .. } = self.prepared;
        let system = self.prepared.system();
        let removed: BTreeSet<&str> =
            recovered.removed.keys().map(|id| plan.plan().array(*id).name.as_str()).collect();
        run.executor.check(&self.context)?;
        retry_publish(system, begin)?;
        if let Some(journal) = &self.journal {
            journal.begun(&machine::boot_id())?;
            retry_storage(system, || journal.flush(|| Ok(()))).map_err(RunError::Work)?;
        }
        let prefix = format!("{}/", self.address.folder);
        retry_storage(system, || {
            TieredStore::restore(&**work, &prefix, &*self.intermediates, &|array| {
                removed.contains(array)
            })
        })
        .map_err(RunError::Work)
    }

    /// Runs the unfinished tasks and commits.
    fn execute(&self, recovered: Recovered) -> Result<RunReport, RunError> {
        let PreparedRun { plan, run, local, projection, .. } = self.prepared;
        let system = self.prepared.system();
        let (start, cpu) = (system.now(), machine::process_cpu_ns());
        let mut queue = self.queue(recovered);
        let finished = queue.finished_tasks();
        let projected_bytes = if local.shared { projection.total() } else { plan.projected_mem() };
        queue.watch_memory(projected_bytes);
        let slots = run.executor.workers();
        self.notify(&Event::RunStarted(&RunStart {
            run: &self.address.folder,
            plan,
            executor: run.executor.name(),
            slots,
            projected_bytes,
            local_mem: run.spec.local_mem,
            finished: &finished,
        }));
        let executed = self.run_tasks(&queue);
        if !self.is_owner() {
            return Err(self.taken_over());
        }
        // The intermediates of a run that is about to commit are no longer needed.
        let save = executed.is_err() || !queue.is_done();
        let flushed = match &self.journal {
            Some(_) => retry_storage(system, || self.flush(&queue, save)),
            None => Ok(()),
        };
        let mut report = match self.publish(executed, flushed, queue) {
            Ok(report) => report,
            Err(_) if !self.is_owner() => return Err(self.taken_over()),
            Err(failure) => return Err(self.fail(failure, finished.iter().any(|n| *n > 0))),
        };
        report.wall = system.elapsed(start);
        report.process_cpu = Duration::from_nanos(machine::process_cpu_ns().saturating_sub(cpu));
        report.peak_rss_bytes = machine::peak_rss_bytes();
        report.slots = slots;
        report.projected_bytes = projected_bytes;
        report.cached_bytes = self.tier.as_ref().map_or(0, |t| t.highest());
        report.finished_before = finished.iter().sum();
        report.invoked = run.executor.invoked();
        self.notify(&Event::RunEnded(Ok(&report)));
        self.remove_folder();
        Ok(report)
    }

    fn queue(&self, recovered: Recovered) -> Queue<'_> {
        let PreparedRun { plan, run, local, projection, .. } = self.prepared;
        let folder = RunFolder {
            intermediates: &*self.intermediates,
            name: &self.address.folder,
            journal: self.journal.as_ref(),
        };
        let budget = MemoryBudget { local: *local, task_bytes: projection.tasks };
        Queue::new(plan, run, budget, folder, self.context.cancel.clone(), recovered)
    }

    fn notify(&self, event: &Event<'_>) {
        self.prepared.run.observers.iter().for_each(|o| o.on_event(event));
    }

    /// Runs tasks until the queue stops, under supervision.
    fn run_tasks(&self, queue: &Queue<'_>) -> Result<(), ExecutorError> {
        let run = self.prepared.run;
        let check_lock = || {
            if self.lock.is_lost() {
                Err(RunError::TakenOver { run: self.address.path() })
            } else {
                Ok(())
            }
        };
        let supervisor = Supervisor {
            queue,
            journal: self.journal.as_ref(),
            deadline: run.spec.deadline,
            check_lock: &check_lock,
            flush: &|| self.flush(queue, true),
        };
        supervisor.supervise(|| run.executor.run(&self.context, queue))
    }

    /// Flushes the journal, and with `save` first the intermediates that are only in memory.
    fn flush(&self, queue: &Queue<'_>, save: bool) -> Result<(), StorageError> {
        queue.flush(|is_removed| match &self.tier {
            Some(tier) if save => tier.save(is_removed),
            _ => Ok(()),
        })
    }

    /// Returns true if this process holds the run's lock. If storage does not answer, the last
    /// known state counts.
    fn is_owner(&self) -> bool {
        !self.lock.is_lost() && self.lock.confirm().unwrap_or(true)
    }

    /// Ends a run that another process has taken over. Its folder and outputs are left to that
    /// process.
    fn taken_over(&self) -> RunError {
        let error = RunError::TakenOver { run: self.address.path() };
        self.notify(&Event::RunEnded(Err(&error)));
        error
    }

    /// Ends a failed run. Its finished tasks are kept if it can be resumed, else its output
    /// locations and folder are released.
    fn fail(&self, failure: Failure, had_finished_tasks: bool) -> RunError {
        let Failure { error, has_finished_tasks } = failure;
        // The output locations may belong to another run.
        let is_final = matches!(&error, RunError::Publish(error) if error.is_final());
        let is_kept =
            self.journal.is_some() && !is_final && (has_finished_tasks || had_finished_tasks);
        let error = if is_kept {
            RunError::Stopped {
                error: Box::new(error),
                run: self.address.path(),
                kernels: user_kernels(self.prepared.plan),
            }
        } else {
            error
        };
        self.notify(&Event::RunEnded(Err(&error)));
        if !is_kept {
            self.prepared.run.publisher.abandon(self.prepared.plan);
            self.remove_folder();
        }
        error
    }

    /// Removes the run's folder, for at most [`REMOVAL`]. Another thread continues after that; the
    /// command `clean` removes what is left if the process ends first. A failure to remove the
    /// folder does not fail the run.
    fn remove_folder(&self) {
        let (work, folder) = (Arc::clone(&self.prepared.work), self.address.folder.clone());
        let (removed, wait) = mpsc::sync_channel(1);
        let remove = move || {
            let _ = record::remove_folder(&*work, &folder);
            let _ = removed.send(());
        };
        // Without a thread, `remove` is dropped, and the wait ends at once.
        let _ = thread::Builder::new().name("freestone-removal".into()).spawn(remove);
        let _ = wait.recv_timeout(REMOVAL);
    }

    /// Commits the outputs if all tasks are finished.
    fn publish(
        &self,
        executed: Result<(), ExecutorError>,
        flushed: Result<(), StorageError>,
        queue: Queue<'_>,
    ) -> Result<RunReport, Failure> {
        let PreparedRun { plan, run, .. } = self.prepared;
        let state = queue.into_state();
        let has_finished_tasks = state.stages.iter().any(|s| s.finished.count() > 0);
        let failed = |error: RunError| Failure { error, has_finished_tasks };
        // An executor without workers also fails its tasks. Its own error states the cause.
        executed.map_err(|e| failed(e.into()))?;
        if let Some(error) = state.error {
            return Err(failed(error));
        }
        if run.cancel.is_cancelled() {
            return Err(failed(RunError::Cancelled));
        }
        flushed.map_err(|e| failed(RunError::Work(e)))?;
        let stages = &plan.plan().stages;
        let mut progress = state.stages.iter().zip(stages);
        if let Some((progress, stage)) =
            progress.find(|(progress, stage)| progress.finished.count() != stage.n_tasks())
        {
            let (n, of) = (progress.finished.count(), stage.n_tasks());
            let text = format!("stage `{}` has {n} of {of} tasks finished", stage.name);
            return Err(failed(RunError::Receipts(text)));
        }
        if self.epoch > 0 || !state.attempts.failures.is_empty() || state.backups[0] > 0 {
            self.remove_partial_writes();
        }
        let committed = retry_publish(self.prepared.system(), &|| {
            run.publisher.commit(plan, &state.receipts, &|| run.cancel.is_cancelled())
        });
        let snapshot = committed.map_err(|error| match error {
            PublishError::Rejected { why: Rejection::Cancelled, .. } => failed(RunError::Cancelled),
            error => failed(error.into()),
        })?;
        Ok(RunReport {
            run: self.address.folder.clone(),
            snapshot,
            stages: state.stages.into_iter().map(|p| p.report).collect(),
            worker_peak_bytes: state.worker_peak_bytes,
            memory_excess: state.memory_excess,
            retries: state.attempts.retries,
            failures: state.attempts.failures,
            backups: state.backups,
            recomputed: state.recomputed,
            ..RunReport::default()
        })
    }

    /// Removes the remains of interrupted writes next to the outputs. A failure to remove it does
    /// not fail the run.
    fn remove_partial_writes(&self) {
        for array in &self.prepared.plan.plan().arrays {
            if let Place::Output { url, path } = &array.place
                && let Ok(store) = self.prepared.run.stores.open(url)
            {
                let _ = store.remove_partial_writes(&format!("{path}/"));
            }
        }
    }
}

/// Returns the names of a plan's user kernels, in backquotes.
fn user_kernels(plan: &FinalizedPlan) -> Vec<String> {
    let names: BTreeSet<&str> =
        plan.plan().stages.iter().filter_map(|s| s.kernel.user_kernel()).collect();
    names.into_iter().map(|name| format!("`{name}`")).collect()
}
