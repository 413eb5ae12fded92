//! Worker processes: identity, failures, and interrupted runs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::{Condvar, Mutex};

use freestone::{
    Array, Cancel, Error, ExitCode, Plan, Processes, RunOptions, RunReport, Spec, Target, Threads,
};
use freestone_engine::driver::RunError;
use freestone_engine::events::{Event, Observer};
use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::task::TaskOutcome;
use freestone_engine::worker::RunContext;

use crate::support::{Place, WINDS_V3, in_memory, names, open_in_memory, processes, tree};

/// Many small tasks: time means of the winds, with one task per chunk.
fn many_tasks(output: &str, spec: &Spec) -> Plan {
    let u = freestone::open(format!("{WINDS_V3}/u")).unwrap();
    let doubled: Array = &u * 2.0;
    freestone::plan(&[Target::array(&doubled, output).chunks([1, 8, 8])], spec).unwrap()
}

fn run(
    planned: &Plan,
    spec: &Spec,
    executor: &dyn Executor,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<RunReport, Error> {
    let options =
        RunOptions { observers: &[observer], cancel: cancel.clone(), ..RunOptions::default() };
    freestone::run_with(planned, spec, executor, &options)
}

/// Calls a function with the worker's name of each outcome.
struct Workers<F>(F);

impl<F: Fn(&str) + Send + Sync> Observer for Workers<F> {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Outcome { outcome, .. } = event {
            (self.0)(&outcome.worker);
        }
    }
}

/// Parses the process id of a worker's name, `process PID (i)`.
fn pid(worker: &str) -> u32 {
    worker
        .split_whitespace()
        .nth(1)
        .and_then(|pid| pid.parse().ok())
        .unwrap_or_else(|| panic!("`{worker}` names no pid"))
}

fn kill(pid: u32) {
    signal("-KILL", pid);
}

fn signal(which: &str, pid: u32) {
    assert!(Command::new("kill").args([which, &pid.to_string()]).status().unwrap().success());
}

/// A process executor that delays outcomes until each worker has one.
#[derive(Debug)]
struct Together {
    inner: Processes,
    /// The workers' names.
    worked: Mutex<BTreeSet<String>>,
    changed: Condvar,
}

impl Executor for Together {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn slots(&self) -> usize {
        self.inner.slots()
    }

    fn shares_process(&self) -> bool {
        self.inner.shares_process()
    }

    fn check(&self, context: &RunContext) -> Result<(), ExecutorError> {
        self.inner.check(context)
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        self.inner.run(context, &Waiting { together: self, source })
    }
}

struct Waiting<'a> {
    together: &'a Together,
    source: &'a dyn TaskSource,
}

impl TaskSource for Waiting<'_> {
    fn try_next(&self) -> Next {
        self.source.try_next()
    }

    fn wait(&self) {
        self.source.wait();
    }

    fn finished(&self, outcome: TaskOutcome) {
        let mut worked = self.together.worked.lock().unwrap();
        worked.insert(outcome.worker.clone());
        self.together.changed.notify_all();
        let slots = self.together.slots();
        drop(self.together.changed.wait_while(worked, |worked| worked.len() < slots).unwrap());
        self.source.finished(outcome);
    }
}

#[test]
fn workers_are_separate_processes() {
    let place = Place::new();
    let seen = Mutex::new(BTreeSet::new());
    let observer = Workers(|worker: &str| {
        seen.lock().unwrap().insert(pid(worker));
    });
    let planned = many_tasks(&place.at("out"), &place.spec());
    // The first outcomes are delayed until every worker has one, so that all workers take part.
    let executor =
        Together { inner: processes(3), worked: Mutex::default(), changed: Condvar::new() };
    let report = run(&planned, &place.spec(), &executor, &observer, &Cancel::default()).unwrap();
    let pids = seen.into_inner().unwrap();
    assert_eq!(pids.len(), 3, "{pids:?}");
    assert!(!pids.contains(&std::process::id()));
    assert_eq!((report.retries, report.slots), (0, 3));
    assert!(report.worker_peak_bytes.is_some_and(|b| b > 1_000_000), "{report:?}");
    assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()), "none is left");
}

/// Two stopped workers no longer respond. Their requests are started a second time.
#[test]
fn a_hanging_worker_is_backed_up() {
    let place = Place::new();
    let (expect, found) = (place.at("expect"), place.at("found"));
    freestone::run(&many_tasks(&expect, &place.spec()), &place.spec(), &Threads::new(1)).unwrap();
    let stopped = Mutex::new(BTreeSet::new());
    let observer = Workers(|worker: &str| {
        let mut stopped = stopped.lock().unwrap();
        if stopped.len() < 2 && stopped.insert(pid(worker)) {
            signal("-STOP", pid(worker));
        }
    });
    let report = run(
        &many_tasks(&found, &place.spec()),
        &place.spec(),
        &processes(4),
        &observer,
        &Cancel::default(),
    )
    .unwrap();
    assert!(report.backups[0] >= 2 && report.backups[1] >= 2, "{report}");
    assert_eq!(report.retries, 0, "{report}");
    assert!(tree(&expect) == tree(&found));
    let stopped = stopped.into_inner().unwrap();
    assert!(
        stopped.len() == 2
            && stopped.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()),
        "none is left"
    );
}

#[test]
fn a_killed_worker_is_replaced_and_the_bytes_are_the_same() {
    let place = Place::new();
    let (expect, found) = (place.at("expect"), place.at("found"));
    freestone::run(&many_tasks(&expect, &place.spec()), &place.spec(), &Threads::new(1)).unwrap();

    let seen = Mutex::new(BTreeSet::new());
    let observer = Workers(|worker: &str| {
        let mut seen = seen.lock().unwrap();
        if seen.is_empty() {
            kill(pid(worker));
        }
        seen.insert(pid(worker));
    });
    let report = run(
        &many_tasks(&found, &place.spec()),
        &place.spec(),
        &processes(1),
        &observer,
        &Cancel::default(),
    )
    .unwrap();
    assert!(report.retries >= 1, "{report:?}");
    assert_eq!(seen.into_inner().unwrap().len(), 2, "another process took over");
    assert!(tree(&expect) == tree(&found));
}

#[track_caller]
fn check_start(command: &str, arguments: &[&str], expect: &str) {
    let place = Place::new();
    let executor = Processes::new(2, command, arguments);
    let error = run(
        &many_tasks(&place.at("out"), &place.spec()),
        &place.spec(),
        &executor,
        &Workers(|_: &str| {}),
        &Cancel::default(),
    )
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains(expect) && text.contains(command), "{text}");
    assert_eq!(error.exit_code(), ExitCode::Failed);
    assert!(!Path::new(&place.at("out")).exists(), "nothing is published");
}

#[test]
fn an_invalid_worker_command_is_named() {
    check_start("/no/such/program", &[], "cannot start the worker");
    check_start("true", &[], "protocol error of the worker");
    check_start("echo", &["hello, this is no frame at all"], "protocol error of the worker");
}

#[test]
fn processes_cannot_use_memory_stores() {
    let place = Place::new();
    let store = in_memory(WINDS_V3);
    let sum = open_in_memory(&store, "u").sum(0);
    let planned = freestone::plan(&[Target::array(&sum, place.at("out"))], &place.spec()).unwrap();
    let error = freestone::run(&planned, &place.spec(), &processes(2)).unwrap_err();
    assert!(
        matches!(&error, Error::Run(RunError::Executor(ExecutorError::Unreachable(_)))),
        "{error:?}"
    );
    assert_eq!(error.exit_code(), ExitCode::Input);
    assert!(!Path::new(&place.at("out")).exists());
    assert!(tree(place.at("work")).is_empty(), "a run that cannot begin leaves no plan behind");
}

#[test]
fn an_interrupted_run_keeps_its_work_and_publishes_nothing() {
    let place = Place::new();
    let cancel = Cancel::default();
    let observer = Workers(|_: &str| cancel.cancel());
    let planned = many_tasks(&place.at("out"), &place.spec());
    let error = run(&planned, &place.spec(), &processes(2), &observer, &cancel).unwrap_err();
    assert!(
        matches!(&error, Error::Run(e) if matches!(e.cause(), RunError::Cancelled)),
        "{error:?}"
    );
    assert_eq!(error.exit_code(), ExitCode::Interrupted);
    let work = tree(place.at("work"));
    let run = planned.finalized().run_id().to_string();
    assert!(
        work.keys().any(|k| k.starts_with(&run) && k.ends_with("/plan.json")),
        "{:?}",
        work.keys()
    );
    assert!(
        work.keys().any(|k| k.starts_with(&run) && k.contains("/journal/")),
        "{:?}",
        work.keys()
    );
    assert!(
        names(place.at("out")).iter().all(|n| !n.ends_with("zarr.json")),
        "no array can be opened"
    );
    assert!(freestone::open(place.at("out")).is_err());

    // Remaining files do not block another run.
    freestone::run(&planned, &place.spec(), &Threads::new(2)).unwrap();
    assert!(freestone::open(place.at("out")).is_ok());
    assert!(tree(place.at("work")) == work, "each try has a folder of its own");
}

#[test]
fn processes_conform() {
    let place = Place::new();
    freestone_executors::conformance::check(place.folder.path(), |slots| {
        Box::new(processes(slots))
    });
}

/// An executor that cannot start fails before anything is removed.
#[test]
fn a_failed_executor_start_keeps_existing_outputs() {
    let place = Place::new();
    let store = in_memory(WINDS_V3);
    let spec = place.spec();
    freestone::run(&many_tasks(&place.at("out"), &spec), &spec, &Threads::new(2)).unwrap();
    let before = tree(place.at("out"));
    let hidden = open_in_memory(&store, "u").sum(0);
    let planned =
        freestone::plan(&[Target::array(&hidden, place.at("out")).overwrite(true)], &spec).unwrap();
    assert!(freestone::run(&planned, &spec, &processes(1)).is_err());
    assert!(tree(place.at("out")) == before, "the old array is gone");
}
