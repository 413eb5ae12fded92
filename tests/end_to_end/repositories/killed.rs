//! Drivers that are killed while they overwrite an array: a reader sees the old one or the new one, and who resumes the run commits once.
//!
//! A test starts this binary again as the driver ([`faults_repository_child`]), which kills itself at its [`Moment`].

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use freestone::engine::events::{Event, Observer};
use freestone::engine::executor::Executor;
use freestone::engine::plan::FinalizedPlan;
use freestone::engine::session::{Session as EngineSession, SessionError};
use freestone::engine::storage::{StorageError, Store};
use freestone::engine::task::Receipt;
use freestone::sessions::{CommitOptions, Format, MAIN, Repository, RunSession};
use freestone::{DType, Options, Serial, Session, Spec, Stores, Threads};
use ndarray::ArrayD;
use serde_json::{Value, json};

use super::values;
use crate::command::stdout;
use crate::intermediates::without_room;
use crate::support::{BINARY, Place, processes, spec_in};

/// Tells [`faults_repository_child`] what to do.
const CHILD: &str = "FREESTONE_REPOSITORY_CHILD";

/// When the driver is killed.
#[derive(Clone, Debug, PartialEq)]
enum Moment {
    /// When so many tasks are finished.
    Tasks(u64),
    /// All tasks are finished, and the commit is about to begin.
    BeforeCommit,
    /// So many microseconds after it began.
    InCommit(u64),
    /// It is done, and the driver does not know it yet.
    AfterCommit,
}

impl Moment {
    fn as_json(&self) -> Value {
        match self {
            Moment::Tasks(n) => json!(["tasks", n]),
            Moment::BeforeCommit => json!(["before", 0]),
            Moment::InCommit(us) => json!(["in", us]),
            Moment::AfterCommit => json!(["after", 0]),
        }
    }

    fn parse(value: &Value) -> Moment {
        let n = value[1].as_u64().unwrap();
        match value[0].as_str().unwrap() {
            "tasks" => Moment::Tasks(n),
            "before" => Moment::BeforeCommit,
            "in" => Moment::InCommit(n),
            _ => Moment::AfterCommit,
        }
    }
}

/// SIGKILL, to this very process.
fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        thread::park();
    }
}

/// Dies at its moment.
struct Mortal {
    moment: Moment,
    inner: RunSession,
    tasks: AtomicU64,
}

impl Observer for Mortal {
    fn on(&self, event: &Event<'_>) {
        if let Event::Outcome { counted, .. } = event {
            let tasks = self.tasks.fetch_add(*counted, Ordering::SeqCst) + counted;
            if matches!(self.moment, Moment::Tasks(n) if tasks >= n) {
                die();
            }
            // So that the journal is written in between.
            thread::sleep(Duration::from_millis(30));
        }
    }
}

impl EngineSession for Mortal {
    fn store(&self) -> Option<Arc<dyn Store>> {
        self.inner.store()
    }

    fn takes_receipts(&self) -> bool {
        self.inner.takes_receipts()
    }

    fn check(&self, plan: &FinalizedPlan) -> Result<(), SessionError> {
        self.inner.check(plan)
    }

    fn begin(&self, plan: &FinalizedPlan) -> Result<(), SessionError> {
        self.inner.begin(plan)
    }

    fn ticket(&self) -> Value {
        self.inner.ticket()
    }

    fn resume(&self, plan: &FinalizedPlan, finished: bool) -> Result<(), SessionError> {
        self.inner.resume(plan, finished)
    }

    fn holds(&self, plan: &FinalizedPlan, receipt: &Receipt) -> Result<bool, StorageError> {
        self.inner.holds(plan, receipt)
    }

    fn commit(&self, plan: &FinalizedPlan, receipts: &[Receipt], is_cancelled: &dyn Fn() -> bool) -> Result<Option<String>, SessionError> {
        match self.moment {
            Moment::BeforeCommit => die(),
            Moment::InCommit(us) => drop(thread::spawn(move || {
                thread::sleep(Duration::from_micros(us));
                die()
            })),
            _ => {}
        }
        let done = self.inner.commit(plan, receipts, is_cancelled);
        if self.moment == Moment::AfterCommit || matches!(self.moment, Moment::InCommit(_)) {
            die();
        }
        done
    }

    fn abandon(&self, plan: &FinalizedPlan) {
        self.inner.abandon(plan);
    }
}

const SHAPE: [u64; 2] = [1280, 64];

/// From rows to columns and back, over what is there.
fn overwriting(folder: &str) -> (freestone::Planned, Spec, Session) {
    let repository = Repository::open(&format!("{folder}/repository")).unwrap();
    let session = Session::begin(&repository, MAIN).unwrap();
    let x = freestone::random_uniform(&SHAPE, 0.5, 1.0, 7, DType::Float64, &[16, 64]).unwrap();
    let rows = (x.rechunk(&[1280, 2]).unwrap() * 2.0).rechunk(&[16, 64]).unwrap();
    let spec = spec_in(&format!("{folder}/work"));
    let planned = freestone::plan(&[session.target(&rows, "data/rows").overwrite(true)], &spec).unwrap();
    let spec = without_room(&spec, &planned, 2);
    (planned, spec, session)
}

#[test]
#[ignore = "is the other process of tests here"]
fn faults_repository_child() {
    let Ok(asked) = std::env::var(CHILD) else { return };
    let asked: Value = serde_json::from_str(&asked).unwrap();
    let (planned, spec, session) = overwriting(asked["folder"].as_str().unwrap());
    let mortal =
        Mortal { moment: Moment::parse(&asked["moment"]), inner: session.publishing("overwritten", CommitOptions::default()), tasks: AtomicU64::new(0) };
    let executor: Box<dyn Executor> = if asked["on"] == "processes" { Box::new(processes(2)) } else { Box::new(Threads::new(2)) };
    let _ = freestone::run_with(&planned, &spec, &*executor, &Options { session: Some(&mortal), observers: &[&mortal], ..Options::default() });
    panic!("it should have died");
}

/// Kills at the moment, looks at what readers see, resumes, and looks again. Gives the number of finished tasks, and whether the commit had come through.
fn check_killed(place: &Place, on: &str, moment: &Moment, expect: &ArrayD<f64>) -> bool {
    let folder = place.at(&format!("{on}-{}", moment.as_json().to_string().replace(['[', ']', '"', ','], "-")));
    let repository = Repository::open_or_create(&format!("{folder}/repository"), Format::default()).unwrap();
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&freestone::full(&SHAPE, -1.0, DType::Float64, &[16, 64]).unwrap(), "data/rows").unwrap();
    let spec = spec_in(&format!("{folder}/reader"));
    session.commit("old", &spec).unwrap();

    let child = Command::new(std::env::current_exe().unwrap())
        .args(["repositories::killed::faults_repository_child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, json!({"folder": folder, "on": on, "moment": moment.as_json()}).to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child), Some(9), "{moment:?}");

    let repository = Repository::open(&format!("{folder}/repository")).unwrap();
    let seen = values(&repository, MAIN, "data/rows", &spec);
    let is_new = seen == *expect;
    assert!(is_new || seen.iter().all(|v| *v == -1.0), "{moment:?}: a reader sees neither the old array nor the new one");
    match moment {
        Moment::Tasks(_) | Moment::BeforeCommit => assert!(!is_new, "{moment:?}"),
        Moment::AfterCommit => assert!(is_new, "{moment:?}"),
        Moment::InCommit(_) => {}
    }
    let runs = freestone::engine::driver::record::folders(&Stores::default(), &format!("{folder}/work")).unwrap();
    let [run] = runs.as_slice() else { panic!("{moment:?}: {runs:?}") };
    let run = Path::new(&folder).join("work").join(run);
    let output = Command::new(BINARY).arg("resume").arg(run).arg("--json").output().unwrap();
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let repository = Repository::open(&format!("{folder}/repository")).unwrap();
    assert_eq!(values(&repository, MAIN, "data/rows", &spec), *expect, "{moment:?}");
    let history = repository.history(&MAIN.into()).unwrap();
    let messages: Vec<&str> = history.iter().map(|s| s.message.as_str()).collect();
    assert_eq!(messages[..2], ["overwritten", "old"], "{moment:?}: committed once");
    assert_eq!(report["snapshot"], json!(history[0].id), "{moment:?}");
    is_new
}

fn check_all_killed(on: &str, moments: &[Moment]) {
    let place = Place::quick();
    let whole = place.at("undisturbed");
    let repository = Repository::open_or_create(&format!("{whole}/repository"), Format::default()).unwrap();
    let (planned, spec, session) = overwriting(&whole);
    let total: u64 = planned.plan().plan().stages.iter().map(|s| s.n_tasks()).sum();
    let run = session.publishing("undisturbed", CommitOptions::default());
    freestone::run_with(&planned, &spec, &Serial, &Options { session: Some(&run), ..Options::default() }).unwrap();
    let expect = values(&repository, MAIN, "data/rows", &spec);
    assert_eq!(expect.shape(), [1280, 64]);
    let mut histogram = [0; 5];
    for moment in moments {
        let moment = if let Moment::Tasks(twentieth) = moment { Moment::Tasks((twentieth * total / 20).max(1)) } else { moment.clone() };
        let is_new = check_killed(&place, on, &moment, &expect);
        let bin = if let Moment::Tasks(n) = moment { (4 * n / total).min(3) as usize } else { 4 };
        histogram[bin] += 1;
        println!("{on}: killed at {moment:?} of {total} tasks: a reader sees the {} array", if is_new { "new" } else { "old" });
    }
    println!("{on}: killed in each quarter of the tasks and after the last one: {histogram:?}");
    assert!(moments.len() < 20 || (histogram[..4].iter().all(|n| *n >= 4) && histogram[4] >= 3), "{histogram:?}");
}

#[test]
fn a_killed_driver_leaves_the_old_array_or_the_new_one() {
    check_all_killed("threads", &[Moment::Tasks(9), Moment::BeforeCommit, Moment::InCommit(3_000), Moment::AfterCommit]);
}

fn twenty() -> Vec<Moment> {
    // Four of each quarter, between a fortieth and the next quarter.
    let tasks = [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19].map(Moment::Tasks);
    tasks.into_iter().chain([Moment::BeforeCommit, Moment::InCommit(500), Moment::InCommit(4_000), Moment::AfterCommit]).collect()
}

#[test]
#[ignore = "takes minutes: run by .ci/run"]
fn faults_repository_overwritten_on_threads() {
    check_all_killed("threads", &twenty());
}

#[test]
#[ignore = "takes minutes: run by .ci/run"]
fn faults_repository_overwritten_on_processes() {
    check_all_killed("processes", &twenty());
}
