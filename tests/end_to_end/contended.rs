//! Competing runs: takeovers, and the lock of a repository.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use freestone::sessions::{CommitOptions, Format, MAIN, Repository, RepositoryPublisher};
use freestone::{Cancel, DType, Error, ExitCode, Plan, RunOptions, Serial, Session, Spec, Stores};
use freestone_engine::driver::RunError;
use freestone_engine::driver::record::folders;
use freestone_engine::events::{Event, Observer};
use freestone_engine::plan::FinalizedPlan;
use freestone_engine::publish::{PublishError, Publisher};
use freestone_engine::storage::{StorageError, Store};
use freestone_engine::task::{FailureKind, Receipt};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use crate::support::Place;

/// Calls a function when the named run starts, or once all of its tasks are finished.
struct Hook<F> {
    tasks: Option<u64>,
    finished: AtomicU64,
    action: F,
}

impl<F> Hook<F> {
    fn at_the_beginning(action: F) -> Hook<F> {
        Hook { tasks: None, finished: AtomicU64::new(0), action }
    }

    fn after_the_tasks(planned: &Plan, action: F) -> Hook<F> {
        let tasks = planned.finalized().plan().stages.iter().map(|s| s.n_tasks()).sum();
        Hook { tasks: Some(tasks), finished: AtomicU64::new(0), action }
    }
}

impl<F: Fn(&str) + Send + Sync> Observer for Hook<F> {
    fn on_event(&self, event: &Event<'_>) {
        match (event, self.tasks) {
            (Event::RunStarted(start), None) => (self.action)(start.run),
            (Event::Outcome { counted, .. }, Some(tasks))
                if self.finished.fetch_add(*counted, Ordering::SeqCst) + counted == tasks =>
            {
                (self.action)("")
            }
            _ => {}
        }
    }
}

fn repository(place: &Place) -> Repository {
    Repository::open_or_create(&place.at("repository"), Format::default()).unwrap()
}

fn planned(session: &Session, spec: &Spec) -> Plan {
    let ramp = freestone::arange(0.0, 200.0, 1.0, DType::Float64, 10);
    freestone::plan(&[session.target(&ramp, "ramp")], spec).unwrap()
}

/// The exit code once was that of a failure if a task noticed the takeover, and of a conflict if
/// the commit did.
#[test]
fn a_taken_over_run_ends_with_a_conflict() {
    let place = Place::quick();
    let (repository, spec) = (repository(&place), place.spec());
    let check = |by_tasks: bool, expect: &dyn Fn(&RunError) -> bool| {
        let shared = repository.create_session(MAIN, "taken", None).unwrap();
        let session = Session::joined(shared.join("worker").unwrap());
        let planned = planned(&session, &spec);
        let other = Mutex::new(None);
        let take = |_: &str| *other.lock().unwrap() = Some(shared.join("worker").unwrap());
        let hook = if by_tasks {
            Hook::at_the_beginning(take)
        } else {
            Hook::after_the_tasks(&planned, take)
        };
        let run = session.publishing("", CommitOptions::default()).unwrap();
        let error = freestone::run_with(
            &planned,
            &spec,
            &Serial,
            &RunOptions { session: Some(&run), observers: &[&hook], ..RunOptions::default() },
        )
        .unwrap_err();
        assert!(error.to_string().contains("another process has joined session"), "{error}");
        assert_eq!(error.exit_code(), ExitCode::Conflict, "{error}");
        let Error::Run(error) = error else { panic!("{error}") };
        assert!(expect(error.cause()), "{error:?}");
    };
    check(
        true,
        &|e| matches!(e, RunError::Task { failure, .. } if failure.kind == FailureKind::Refused),
    );
    check(false, &|e| matches!(e, RunError::Publish(PublishError::Rejected { .. })));
    // The process that took the run over needs the finished tasks.
    assert_eq!(folders(&Stores::default(), &spec.work_dir).unwrap().len(), 1);
}

/// Resuming an active run was refused only after it had joined the run's session, so that the run
/// could not end.
#[test]
fn an_active_run_is_not_taken_over() {
    let place = Place::quick();
    let (repository, spec) = (repository(&place), place.spec());
    let shared = repository.create_session(MAIN, "kept", None).unwrap();
    let session = Session::joined(shared.join("worker").unwrap());
    let planned = planned(&session, &spec);
    let refused = Mutex::new(None);
    let hook = Hook::at_the_beginning(|run: &str| {
        let stored =
            freestone::open_run(format!("{}/{run}", spec.work_dir), &Stores::default()).unwrap();
        *refused.lock().unwrap() =
            freestone::resume(&stored, &spec, &Serial, &RunOptions::default()).err();
    });
    let run = session.publishing("", CommitOptions::default()).unwrap();
    freestone::run_with(
        &planned,
        &spec,
        &Serial,
        &RunOptions { session: Some(&run), observers: &[&hook], ..RunOptions::default() },
    )
    .unwrap();
    let refused = refused.lock().unwrap().take().unwrap();
    assert!(
        matches!(&refused, Error::Run(RunError::Running { .. }))
            && refused.exit_code() == ExitCode::Conflict,
        "{refused}"
    );
    shared.commit().unwrap();
}

/// Cancels the run after its commit has checked for cancellation a number of times, which it does
/// while it waits for the lock.
struct Impatient {
    inner: RepositoryPublisher,
    cancel: Cancel,
    asked: AtomicU64,
}

impl Publisher for Impatient {
    fn store(&self) -> Option<Arc<dyn Store>> {
        self.inner.store()
    }

    fn needs_receipts(&self) -> bool {
        self.inner.needs_receipts()
    }

    fn check(&self, plan: &FinalizedPlan) -> Result<(), PublishError> {
        self.inner.check(plan)
    }

    fn begin(&self, plan: &FinalizedPlan) -> Result<(), PublishError> {
        self.inner.begin(plan)
    }

    fn ticket(&self) -> Value {
        self.inner.ticket()
    }

    fn resume(&self, plan: &FinalizedPlan, finished: bool) -> Result<(), PublishError> {
        self.inner.resume(plan, finished)
    }

    fn is_intact(&self, plan: &FinalizedPlan, receipt: &Receipt) -> Result<bool, StorageError> {
        self.inner.is_intact(plan, receipt)
    }

    fn commit(
        &self,
        plan: &FinalizedPlan,
        receipts: &[Receipt],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<String>, PublishError> {
        self.inner.commit(plan, receipts, &|| {
            if self.asked.fetch_add(1, Ordering::SeqCst) == 3 {
                self.cancel.cancel();
            }
            is_cancelled()
        })
    }

    fn abandon(&self, plan: &FinalizedPlan) {
        self.inner.abandon(plan);
    }
}

/// A cancelled run stops while its commit waits for the repository's lock.
#[test]
fn a_commit_that_waits_for_the_lock_can_be_cancelled() {
    let place = Place::quick();
    let (repository, spec) = (repository(&place), place.spec());
    let session = Session::begin(&repository, MAIN).unwrap();
    let planned = planned(&session, &spec);
    let lock = File::options()
        .append(true)
        .open(format!("{}/_freestone/lock", place.at("repository")))
        .unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let cancel = Cancel::default();
    let waiting = Impatient {
        inner: session.publishing("a ramp", CommitOptions::default()).unwrap(),
        cancel: cancel.clone(),
        asked: AtomicU64::new(0),
    };
    let error = freestone::run_with(
        &planned,
        &spec,
        &Serial,
        &RunOptions { session: Some(&waiting), cancel, ..RunOptions::default() },
    )
    .unwrap_err();
    assert_eq!(waiting.asked.load(Ordering::SeqCst), 4, "it has waited");
    assert_eq!(error.exit_code(), ExitCode::Interrupted, "{error}");
    let Error::Run(error) = error else { panic!("{error}") };
    assert!(matches!(error.cause(), RunError::Cancelled), "{error:?}");
    assert_eq!(repository.history(&MAIN.into()).unwrap().len(), 1, "nothing is committed");

    drop(lock);
    let stored = freestone::open_run(error.resumable_run().unwrap(), &Stores::default()).unwrap();
    let report = freestone::resume(&stored, &spec, &Serial, &RunOptions::default()).unwrap();
    assert!(report.snapshot.is_some() && report.finished_before > 0);
    let ramp = freestone::compute::<f64>(
        &freestone::open_version(&repository, MAIN, "ramp").unwrap(),
        &spec,
    )
    .unwrap();
    assert_eq!(ramp.sum(), 19_900.0);
}
