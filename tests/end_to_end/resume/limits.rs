//! Deadlines, timeouts, and interrupted runs that leave nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use freestone::{
    Cancel, DType, Error, ExitCode, RunOptions, Serial, Spec, Stores, Target, Threads,
};
use freestone_engine::driver::RunError;
use freestone_engine::driver::record::folders;
use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::storage::Store;
use freestone_engine::task::{FailureKind, TaskOutcome};
use freestone_engine::worker::RunContext;

use super::{Counting, resume, stages};
use crate::support::{Place, processes, tree};

/// An executor that runs the first request, and no other before the run is stopped.
#[derive(Debug)]
struct Stalling;

/// A source that returns one request, and then waits for the end of the run.
struct OneRequest<'a> {
    source: &'a dyn TaskSource,
    cancel: &'a Cancel,
    handed_out: AtomicBool,
}

impl TaskSource for OneRequest<'_> {
    fn try_next(&self) -> Next {
        let stopped = self.cancel.is_cancelled();
        if self.handed_out.swap(true, Ordering::Relaxed) && !stopped {
            Next::Wait
        } else {
            self.source.try_next()
        }
    }

    fn wait(&self) {
        self.source.wait();
    }

    fn finished(&self, outcome: TaskOutcome) {
        self.source.finished(outcome);
    }
}

impl Executor for Stalling {
    fn name(&self) -> &str {
        "stalling"
    }

    fn slots(&self) -> usize {
        1
    }

    fn shares_process(&self) -> bool {
        true
    }

    fn check(&self, _: &RunContext) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        Serial.run(
            context,
            &OneRequest { source, cancel: &context.cancel, handed_out: AtomicBool::new(false) },
        )
    }
}

#[test]
fn a_deadline_stops_a_run_and_it_can_be_resumed() {
    let place = Place::new();
    // A busy machine may not finish the first request in time, and then no run folder is kept.
    let stopped = |seconds: u64| {
        let spec = Spec { deadline: Some(Duration::from_secs(seconds)), ..place.spec() };
        let planned = stages(&place, "out", &spec);
        let error =
            freestone::run_with(&planned, &spec, &Stalling, &RunOptions::default()).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Deadline);
        let Error::Run(error) = error else { panic!("{error}") };
        assert!(matches!(error.cause(), RunError::Deadline(_)), "{error}");
        error.resumable_run().map(str::to_owned)
    };
    let folder = [1, 5, 25, 125].into_iter().find_map(stopped).expect("one request is finished");
    resume(&folder, &place.spec(), &Serial, &Counting::default()).unwrap();
}

#[test]
fn a_task_over_its_timeout_fails_the_run() {
    let place = Place::new();
    let x = freestone::random_uniform([4000, 4000], 0.5, 1.0, 7, DType::Float32, [1000, 1000]);
    // Each task reads many chunks; the timeout is checked between them.
    for executor in [&Threads::new(2) as &dyn Executor, &processes(2)] {
        let spec = Spec { task_timeout: Some(Duration::from_millis(1)), ..place.spec() };
        let planned =
            freestone::plan(&[Target::array(&x.std(()), place.at("out"))], &spec).unwrap();
        let error = freestone::run(&planned, &spec, executor).unwrap_err();
        let Error::Run(ran) = &error else { panic!("{error}") };
        let RunError::Task { failure, .. } = ran.cause() else { panic!("{error}") };
        assert_eq!(failure.kind, FailureKind::TimedOut, "{error}");
        assert!(error.to_string().contains("exceeded the `task_timeout` of 1ms"), "{error}");
        assert!(freestone::open(place.at("out")).is_err());
    }
}

/// Nothing can be resumed, so neither a run folder nor outputs are left.
#[test]
fn a_run_without_finished_tasks_leaves_nothing() {
    let place = Place::new();
    let spec = place.spec();
    let planned = stages(&place, "out", &spec);
    let cancel = Cancel::default();
    cancel.cancel();
    let error = freestone::run_with(
        &planned,
        &spec,
        &Serial,
        &RunOptions { cancel, ..RunOptions::default() },
    )
    .unwrap_err();
    let Error::Run(error) = error else { panic!("{error}") };
    assert!(matches!(error, RunError::Cancelled), "{error}");
    assert_eq!(folders(&Stores::default(), &spec.work_dir).unwrap(), Vec::<String>::new());
    assert!(tree(place.at("out-y")).is_empty());
}

/// Another process cannot resume from a work directory in memory, so nothing is kept there.
#[test]
fn an_interrupted_run_in_memory_leaves_nothing() {
    let place = Place::new();
    let store = Arc::new(freestone::MemoryStore::new());
    let stores = Stores::default();
    stores.insert(Arc::<freestone::MemoryStore>::clone(&store));
    let spec = Spec { work_dir: store.url().to_owned(), ..place.spec() };
    let planned = stages(&place, "out", &spec);
    let stopped = Counting { cancel_after: Some(20), ..Counting::default() };
    let options = RunOptions {
        observers: &[&stopped],
        cancel: stopped.cancel.clone(),
        stores,
        ..RunOptions::default()
    };
    let error = freestone::run_with(&planned, &spec, &Serial, &options).unwrap_err();
    assert!(matches!(&error, Error::Run(RunError::Cancelled)), "{error}");
    assert!(store.keys().is_empty());
}
