//! A run from start to end: order, retries, budgets, backups, journal, commit.
//!
//! The driver hands out ranges of tasks; executors pull them (`driver/queue.rs`). A task is ready
//! when what it reads is finished; tasks are admitted while their projections fit `local_mem`
//! together; what that leaves over keeps intermediates in memory, where tasks run in this process.
//! A thread of its own, the keeper, writes the journal every second, so that a run that ends early
//! for whatever reason goes on from there in another process ([`resume`]).

mod attempts;
pub mod batching;
mod durations;
mod queue;
pub mod record;
mod recovery;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::events::{Event, Observer, RunReport, RunStart};
use crate::executor::{Executor, ExecutorError};
use crate::finished::Finished;
use crate::journal::{Journal, Replay};
use crate::machine;
use crate::plan::{
    ArrayId, FinalizedPlan, LocalMemory, LocalProjection, Place, PlanArray, PlanError, Stage,
};
use crate::publish::{PublishError, Publisher, Rejection};
use crate::retry::Retry;
use crate::spec::Spec;
use crate::storage::metadata::open_array;
use crate::storage::{Lock, StorageError, Store, Stores, TieredStore, identity, join};
use crate::system::System;
use crate::task::{Receipt, RunAddress};
use crate::user::KernelRegistry;
use crate::work_dir;
use crate::worker::{Cancel, RunContext};

pub use crate::failure::RunError;
use queue::{Folder, Queue, receipts_fit};
use record::{RECORD_FORMAT, RunRecord, StoredRun, can_be_resumed};

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
    pub session: &'a dyn Publisher,
    /// Who looks on.
    pub observers: &'a [&'a dyn Observer],
    /// Stops the run when asked.
    pub cancel: Cancel,
}

/// Which receipts are kept for the commit.
#[derive(Clone, Debug, Default)]
struct Kept {
    /// For each array of the plan, whether it is an output of a session that takes receipts.
    arrays: Vec<bool>,
}

impl Kept {
    fn of(plan: &FinalizedPlan, session: &dyn Publisher) -> Kept {
        let is_kept = |array: &PlanArray| {
            session.needs_receipts() && matches!(array.place, Place::Output { .. })
        };
        Kept { arrays: plan.plan().arrays.iter().map(is_kept).collect() }
    }

    fn of_outputs<'a>(&'a self, written: &'a [Receipt]) -> impl Iterator<Item = Receipt> + 'a {
        written.iter().filter(|r| self.arrays.get(r.array.0).copied().unwrap_or(false)).copied()
    }
}

/// What is known of a run from before.
#[derive(Debug, Default)]
struct Before {
    /// For each stage, its finished tasks.
    finished: Vec<Finished>,
    /// Removed intermediates, and tasks that have written theirs again since.
    removed: BTreeMap<ArrayId, Finished>,
    /// Of the outputs' chunks that are finished; none where the session does not take them.
    receipts: Vec<Receipt>,
    /// How often the run was taken up.
    epoch: u32,
}

/// The journal is written so often.
const FLUSH_EVERY: Duration = Duration::from_millis(900);
/// The keeper looks so often.
const KEEPER_TICK: Duration = Duration::from_millis(100);
const MIN_TICK: Duration = Duration::from_millis(1);

/// Runs a plan.
///
/// Nothing is written before it is known that the outputs may be and that the work directory can
/// be.
///
/// # Errors
/// See [`RunError`].
pub fn run(plan: &Arc<FinalizedPlan>, run: &Run<'_>) -> Result<RunReport, RunError> {
    let drive = Drive::prepare(plan, run)?;
    again_session(run.stores.system(), &|| run.session.check(plan))?;
    // Two runs of one plan must not see each other's intermediates, nor those of one that was
    // killed.
    let (system, now) = (run.stores.system(), run.stores.system().since_epoch());
    let folder = format!("{}-{:x}-{}", plan.run_id(), now.as_nanos(), std::process::id());
    let address = RunAddress { work_dir: run.spec.work_dir.clone(), folder };
    let record = RunRecord {
        format: RECORD_FORMAT,
        began_ms: now.as_millis() as u64,
        session: run.session.ticket(),
    };
    let body = serde_json::to_vec(&record)
        .map_err(|e| RunError::internal(format!("a run's record can be serialized ({e})")))?;
    work_dir::make(&run.spec.work_dir).map_err(RunError::Work)?;
    let Some(lock) = address.lock(&*drive.work)? else {
        return Err(RunError::Running { run: address.path() });
    };
    let text = plan.to_bytes()?;
    let objects = [("run.json", &body), ("plan.json", &text)];
    let written = objects.into_iter().try_for_each(|(name, bytes)| {
        again(system, || drive.work.write(&format!("{}/{name}", address.folder), bytes))
    });
    if let Err(error) = written {
        let _ = record::clean(&*drive.work, &address.folder);
        return Err(RunError::Work(error));
    }
    drive.go(&address, &lock, Before::default(), &|| run.session.begin(plan))
}

/// Goes on with a run that has ended early, from its stored plan: tasks that the journal tells of
/// are not run again.
///
/// Where the machine was started again since, outputs are read once, and those that are not what
/// their receipts say are computed again. With `verify_inputs`, each chunk of the inputs that are
/// still to be read is asked for the time of its last change, one request each; without, only their
/// metadata are compared.
///
/// # Errors
/// See [`RunError`]; [`RunError::Running`] while another process is at it,
/// [`RunError::InputChanged`].
pub fn resume(
    stored: &StoredRun,
    run: &Run<'_>,
    verify_inputs: bool,
) -> Result<RunReport, RunError> {
    let (plan, address) = (&stored.plan, &stored.address);
    let drive = Drive::prepare(plan, run)?;
    let Some(lock) = address.lock(&*drive.work)? else {
        return Err(RunError::Running { run: address.path() });
    };
    let (system, boot) = (run.stores.system(), machine::boot_id());
    let verifier = Verifier { plan, session: run.session, boot: &boot };
    let (mut receipts, keep) = (Vec::new(), Kept::of(plan, run.session));
    let replay = again(system, || {
        receipts.clear();
        Journal::read(&*drive.work, &address.journal(), plan, &mut |replay, written| {
            let holds = verifier.is_intact(replay, written);
            if holds {
                receipts.extend(keep.of_outputs(written));
            }
            holds
        })
    });
    let mut replay = replay.map_err(RunError::Work)?;
    if replay.begun.is_empty() {
        receipts.clear();
        // Its outputs' places are to be made the run's again, and with that nothing is there any
        // more that was written before.
        replay = Replay {
            epoch: replay.epoch,
            finished: vec![Finished::default(); plan.plan().stages.len()],
            ..Replay::default()
        };
    }
    if !replay.begun.is_empty() {
        // Workers far away have told of more than came to the journal.
        let holds = |receipts: &[Receipt]| verifier.is_intact(&replay, receipts);
        let found = again(system, || {
            recovery::finished_with_answers(
                &*drive.work,
                &address.folder,
                plan,
                &replay,
                &keep,
                &holds,
            )
        });
        let (finished, recovered) = found.map_err(RunError::Work)?;
        replay.finished = finished;
        receipts.extend(recovered);
    }
    check_inputs(stored, &*drive.work, run.stores, &replay, verify_inputs)?;
    let begun = !replay.begun.is_empty();
    if !begun {
        again_session(system, &|| run.session.check(plan))?;
    }
    let finished =
        replay.finished.iter().zip(&plan.plan().stages).all(|(f, s)| f.count() == s.n_tasks());
    let before = Before {
        finished: replay.finished,
        removed: replay.removed,
        receipts,
        epoch: replay.epoch,
    };
    drive.go(address, &lock, before, &|| {
        if begun { run.session.resume(plan, finished) } else { run.session.begin(plan) }
    })
}

/// A run that is about to start.
struct Drive<'a> {
    plan: &'a Arc<FinalizedPlan>,
    run: &'a Run<'a>,
    local: LocalMemory,
    projection: LocalProjection,
    work: Arc<dyn Store>,
}

impl<'a> Drive<'a> {
    /// Finds out whether there is room for it. Writes nothing.
    fn prepare(plan: &'a Arc<FinalizedPlan>, run: &'a Run<'a>) -> Result<Drive<'a>, RunError> {
        let local = run.executor.local_memory(run.spec.local_mem);
        let projection = plan.projected_local_mem(run.executor.slots(), &local)?;
        check_work_dir(plan, &run.spec.work_dir)?;
        let work = record::open_work(run.stores, &run.spec.work_dir)?;
        Ok(Drive { plan, run, local, projection, work })
    }

    /// Runs what is left. `begin` makes the outputs' places the run's.
    fn go(
        &self,
        address: &RunAddress,
        lock: &Lock,
        before: Before,
        begin: &dyn Fn() -> Result<(), PublishError>,
    ) -> Result<RunReport, RunError> {
        let Drive { plan, run, local, projection, work } = self;
        let (folder, system) = (&address.folder, run.stores.system());
        let resumable = can_be_resumed(plan, &**work);
        let epoch = before.epoch;
        let gone: BTreeSet<String> =
            before.removed.keys().map(|id| plan.plan().array(*id).name.clone()).collect();
        // Tasks see the memory tier in the place of the work directory; plan and journal do not go
        // through it.
        let tier = (projection.intermediates > 0).then(|| {
            Arc::new(TieredStore::new(
                Arc::clone(work),
                format!("{folder}/"),
                projection.intermediates,
                epoch,
            ))
        });
        let between: Arc<dyn Store> =
            tier.as_ref().map_or(Arc::clone(work), |t| Arc::<TieredStore>::clone(t));
        let stop = run.cancel.child();
        let context = RunContext {
            plan: Arc::clone(plan),
            address: address.clone(),
            stores: run.stores.with(&address.work_dir, Arc::clone(&between)),
            kernels: Arc::new(run.kernels.clone()),
            cancel: stop.clone(),
        };
        let journal = resumable
            .then(|| Journal::new(Arc::clone(work), address.journal(), epoch, system.clone()));
        let started = run.executor.check(&context).map_err(RunError::from).and_then(|()| {
            again_session(system, begin)?;
            if let Some(journal) = &journal {
                journal.begun(&machine::boot_id())?;
                again(system, || journal.flush(|| Ok(()))).map_err(RunError::Work)?;
            }
            again(system, || {
                TieredStore::restore(&**work, &format!("{folder}/"), &*between, &|array| {
                    gone.contains(array)
                })
            })
            .map_err(RunError::Work)
        });
        if let Err(error) = started {
            // A run that was resumed keeps what it had.
            if epoch == 0 {
                let _ = record::clean(&**work, folder);
            }
            return Err(error);
        }
        let (start, cpu) = (system.now(), machine::process_cpu_ns());
        let tell = |event: &Event<'_>| run.observers.iter().for_each(|o| o.on_event(event));
        let mut queue = Queue::new(
            plan,
            run,
            *local,
            projection.tasks,
            Folder { between: &*between, name: folder, journal: journal.as_ref() },
            stop,
            before,
        );
        let finished = queue.finished_tasks();
        let projected_bytes = if local.shared { projection.total() } else { plan.projected_mem() };
        queue.watch_memory(projected_bytes);
        let slots = run.executor.workers();
        tell(&Event::RunStarted(&RunStart {
            run: folder,
            plan,
            executor: run.executor.name(),
            slots,
            projected_bytes,
            local_mem: run.spec.local_mem,
            finished: &finished,
        }));
        let flush = |save: bool| {
            queue.flush(|skip| match &tier {
                Some(tier) if save => tier.save(skip),
                _ => Ok(()),
            })
        };
        let is_lost = || lock.is_lost().then(|| RunError::TakenOver { run: address.path() });
        let executed =
            keep(&queue, &is_lost, journal.as_ref(), run.spec.deadline, &|| flush(true), || {
                run.executor.run(&context, &queue)
            });
        // What a run that goes well has left between its stages is not needed any more.
        let whole = executed.is_ok() && queue.is_done();
        // Nothing is known where storage does not answer; then it is this process's, as far as it
        // knows.
        let is_ours = || !lock.is_lost() && lock.confirm().unwrap_or(true);
        let taken_over = || {
            let error = RunError::TakenOver { run: address.path() };
            tell(&Event::RunEnded(Err(&error)));
            error
        };
        // Folder and outputs belong to whoever goes on with it.
        if !is_ours() {
            return Err(taken_over());
        }
        let flushed = if resumable { again(system, || flush(!whole)) } else { Ok(()) };
        let mut report = match self.finish(executed, flushed, queue, folder, epoch > 0) {
            Ok(report) => report,
            Err(_) if !is_ours() => return Err(taken_over()),
            Err(error) => {
                // Where somebody else has the outputs' places, nothing can go on.
                let is_over = matches!(&error.0, RunError::Publish(error) if error.is_final());
                let kept = resumable && !is_over && (error.1 || finished.iter().any(|n| *n > 0));
                let error = if kept {
                    RunError::Stopped {
                        error: Box::new(error.0),
                        run: address.path(),
                        kernels: user_kernels(plan),
                    }
                } else {
                    error.0
                };
                tell(&Event::RunEnded(Err(&error)));
                if !kept {
                    run.session.abandon(plan);
                    let _ = record::clean(&**work, folder);
                }
                return Err(error);
            }
        };
        // That it cannot be removed is no failure of the run.
        let _ = record::clean(&**work, folder);
        report.wall = system.elapsed(start);
        report.process_cpu = Duration::from_nanos(machine::process_cpu_ns().saturating_sub(cpu));
        report.peak_rss_bytes = machine::peak_rss_bytes();
        report.slots = slots;
        report.projected_bytes = projected_bytes;
        report.cached_bytes = tier.map_or(0, |t| t.highest());
        report.finished_before = finished.iter().sum();
        report.invoked = run.executor.invoked();
        tell(&Event::RunEnded(Ok(&report)));
        Ok(report)
    }

    /// Removes what interrupted writes have left beside the results. That it cannot be is no
    /// failure.
    fn sweep(&self) {
        for array in &self.plan.plan().arrays {
            if let Place::Output { url, path } = &array.place
                && let Ok(store) = self.run.stores.open(url)
            {
                let _ = store.remove_partial_writes(&format!("{path}/"));
            }
        }
    }

    /// Publishes, or says why not, and whether any task was finished.
    fn finish(
        &self,
        executed: Result<(), ExecutorError>,
        flushed: Result<(), StorageError>,
        queue: Queue<'_>,
        folder: &str,
        resumed: bool,
    ) -> Result<RunReport, (RunError, bool)> {
        let state = queue.into_state();
        let any = state.stages.iter().any(|s| s.finished.count() > 0);
        let failed = |error: RunError| (error, any);
        // An executor that has no workers fails its tasks too; it knows better why.
        executed.map_err(|e| failed(e.into()))?;
        if let Some(error) = state.error {
            return Err(failed(error));
        }
        if self.run.cancel.is_cancelled() {
            return Err(failed(RunError::Cancelled));
        }
        flushed.map_err(|e| failed(RunError::Work(e)))?;
        let open = state
            .stages
            .iter()
            .zip(&self.plan.plan().stages)
            .find(|(p, s)| p.finished.count() != s.n_tasks());
        if let Some((progress, stage)) = open {
            let text = format!(
                "stage `{}` has {} of {} tasks finished",
                stage.name,
                progress.finished.count(),
                stage.n_tasks()
            );
            return Err(failed(RunError::Receipts(text)));
        }
        if resumed || !state.attempts.failures.is_empty() || state.backups[0] > 0 {
            // Workers that were stopped in the middle of a write have left its beginning.
            self.sweep();
        }
        let committed = again_session(self.run.stores.system(), &|| {
            self.run.session.commit(self.plan, &state.receipts, &|| self.run.cancel.is_cancelled())
        });
        let snapshot = committed.map_err(|error| match error {
            PublishError::Rejected { why: Rejection::Cancelled, .. } => failed(RunError::Cancelled),
            error => failed(error.into()),
        })?;
        Ok(RunReport {
            run: folder.to_owned(),
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
}

/// Names of the users' kernels of a plan.
fn user_kernels(plan: &FinalizedPlan) -> Vec<String> {
    let names: BTreeSet<&str> =
        plan.plan().stages.iter().filter_map(|s| s.kernel.user_kernel()).collect();
    names.into_iter().map(|name| format!("`{name}`")).collect()
}

/// Runs something while a thread looks after the run: it has the journal written, and ends the run
/// at its deadline, and where it is somebody else's.
fn keep<T>(
    queue: &Queue<'_>,
    is_lost: &(dyn Fn() -> Option<RunError> + Sync),
    journal: Option<&Journal>,
    deadline: Option<Duration>,
    flush: &(dyn Fn() -> Result<(), StorageError> + Sync),
    run: impl FnOnce() -> T,
) -> T {
    /// Lets the keeper go, also where an observer panics.
    struct Ending<'a>(&'a Mutex<bool>, &'a Condvar);
    impl Drop for Ending<'_> {
        fn drop(&mut self) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.1.notify_all();
        }
    }
    let system = queue.system();
    let (ended, changed, start) = (Mutex::new(false), Condvar::new(), system.now());
    std::thread::scope(|scope| {
        let _ending = Ending(&ended, &changed);
        scope.spawn(|| {
            let mut is_ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            while !*is_ended {
                let left =
                    deadline.map_or(KEEPER_TICK, |d| d.saturating_sub(system.elapsed(start)));
                let wait = system.clock.wait_bound(left.clamp(MIN_TICK, KEEPER_TICK));
                is_ended =
                    changed.wait_timeout(is_ended, wait).unwrap_or_else(PoisonError::into_inner).0;
                if *is_ended {
                    return;
                }
                drop(is_ended);
                if let Some(error) = is_lost() {
                    queue.fail(error);
                    return;
                }
                if let Some(limit) = deadline.filter(|d| system.elapsed(start) > *d) {
                    queue.fail(RunError::Deadline(limit));
                }
                if journal.is_some_and(|j| j.is_due(FLUSH_EVERY) || queue.has_to_remove())
                    && let Err(error) = again(system, flush)
                {
                    queue.fail(RunError::Work(error));
                }
                is_ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            }
        });
        run()
    })
}

/// Tries again what storage failed, where that may help and the store has not done so.
fn again<T>(
    system: &System,
    action: impl FnMut() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    tried(system, action, StorageError::is_retryable)
}

fn again_session<T>(
    system: &System,
    action: &dyn Fn() -> Result<T, PublishError>,
) -> Result<T, PublishError> {
    tried(system, action, |error| match error {
        PublishError::Storage(error) => error.is_retryable(),
        PublishError::Rejected { why, .. } => *why == Rejection::Transient,
        _ => false,
    })
}

fn tried<T, E>(
    system: &System,
    mut action: impl FnMut() -> Result<T, E>,
    is_passing: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let (begun, mut failures) = (system.now(), 0);
    loop {
        let error = match action() {
            Err(error) if is_passing(&error) => error,
            other => return other,
        };
        failures += 1;
        match Retry::STORAGE.next(failures, system.elapsed(begun), system.fraction()) {
            Some(pause) => system.sleep(pause),
            None => return Err(error),
        }
    }
}

/// Whether what the journal says was written is there.
struct Verifier<'a> {
    plan: &'a FinalizedPlan,
    session: &'a dyn Publisher,
    boot: &'a str,
}

impl Verifier<'_> {
    /// Files that were not flushed may be lost or torn where the machine was started again since;
    /// then they are read.
    fn is_intact(&self, replay: &Replay, receipts: &[Receipt]) -> bool {
        if replay.begun.last().is_none_or(|boot| boot == self.boot) {
            return true;
        }
        receipts.iter().all(|r| self.session.is_intact(self.plan, r).unwrap_or(false))
    }
}

/// Inputs that tasks are still to read are those that the plan was made for.
fn check_inputs(
    stored: &StoredRun,
    work: &dyn Store,
    stores: &Stores,
    replay: &Replay,
    chunks: bool,
) -> Result<(), RunError> {
    let (plan, system) = (stored.plan.plan(), stores.system());
    let is_open = |(i, stage): &(usize, &Stage)| {
        replay.finished.get(*i).is_none_or(|f| f.count() < stage.n_tasks())
    };
    // The store's own clock, where it has one.
    let began = work
        .modified(&format!("{}/plan.json", stored.address.folder))
        .map_err(RunError::Work)?
        .unwrap_or_else(|| stored.record.began());
    for (id, array) in plan.arrays.iter().enumerate() {
        let Place::Input { url, path, tag } = &array.place else { continue };
        let reads = |stage: &Stage| stage.inputs.iter().any(|i| i.sources.contains(&ArrayId(id)));
        let stages: Vec<String> = plan
            .stages
            .iter()
            .enumerate()
            .filter(is_open)
            .filter(|(_, s)| reads(s))
            .map(|(_, s)| format!("`{}`", s.name))
            .collect();
        if stages.is_empty() {
            continue;
        }
        let store = stores.open(url).map_err(RunError::Work)?;
        let changed =
            |place: String, what| RunError::InputChanged { place, what, stages: stages.clone() };
        let there = again(system, || match open_array(&store, path) {
            Ok(there) => Ok(Some(there.tag)),
            Err(crate::storage::metadata::MetadataError::Storage(error)) => Err(error),
            Err(_) => Ok(None),
        });
        if there.map_err(RunError::Work)?.as_deref() != Some(tag) {
            return Err(changed(store.place(path), "has changed or was removed"));
        }
        if !chunks {
            continue;
        }
        let began = if store.is_remote() { stored.record.began() } else { began };
        let objects = array.info.objects();
        for n in 0..objects.n_chunks() {
            let key = join(path, &array.info.object_key(&objects.coords(n)));
            if again(system, || store.modified(&key))
                .map_err(RunError::Work)?
                .is_some_and(|time| time > began)
            {
                return Err(changed(store.place(&key), "was written or removed"));
            }
        }
    }
    Ok(())
}

/// What is replaced is removed first, and the run's own plan and journal must not be in it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::ManualClock;

    /// Checks the number of tries of an action that fails `failures` times, by a clock that moves
    /// only while it sleeps.
    #[track_caller]
    fn check(error: &StorageError, failures: u32, expect: (u32, bool)) {
        let clock = ManualClock::default();
        let (system, mut tries) =
            (System { clock: Arc::new(clock.clone()), ..System::default() }, 0);
        let ended = again(&system, || {
            tries += 1;
            if tries > failures { Ok(()) } else { Err(error.clone()) }
        });
        assert_eq!((tries, ended.is_ok()), expect, "{error}");
        let longest = (1..tries).map(|n| Retry::STORAGE.backoff.pause(n, 0.0)).sum();
        assert!(
            clock.passed() <= longest && clock.passed() >= longest / 2,
            "{:?} of {longest:?}",
            clock.passed()
        );
    }

    #[test]
    fn what_may_pass_is_tried_again_unless_it_was_already() {
        let place = || "p".to_owned();
        let failed = |transient| StorageError::Io {
            place: place(),
            action: "removed",
            message: "m".into(),
            transient,
        };
        let throttled = StorageError::Throttled { place: place(), message: "m".into() };
        let tries = Retry::STORAGE.tries;
        check(&failed(true), 0, (1, true));
        check(&failed(true), tries - 1, (tries, true));
        check(&failed(true), tries, (tries, false));
        check(&throttled, 2, (3, true));
        check(&failed(false), 1, (1, false));
        check(&StorageError::NoSpace { place: place() }, 1, (1, false));
        for is_throttle in [false, true] {
            check(
                &StorageError::RetriesExhausted {
                    place: place(),
                    action: "read",
                    message: "m".into(),
                    is_throttle,
                },
                1,
                (1, false),
            );
        }
    }
}
