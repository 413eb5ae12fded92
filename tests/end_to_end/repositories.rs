//! Runs that commit to repositories: one plan, one commit, whoever is killed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, thread};

use freestone::engine::events::{Event, Observer};
use freestone::engine::executor::Executor;
use freestone::engine::plan::FinalizedPlan;
use freestone::engine::session::{Session as EngineSession, SessionError};
use freestone::engine::storage::{StorageError, Store};
use freestone::engine::task::Receipt;
use freestone::sessions::{Closed, CommitOptions, Error as RepositoryError, Format, MAIN, Rebase, Repository, RunSession, SessionState, Version};
use freestone::{Array, DType, Error, ExitCode, Options, Serial, Session, Spec, Stores, Target, Threads};
use ndarray::{ArrayD, Axis};
use serde_json::{Value, json};

use crate::command::{check_failure, freestone_in, stdout};
use crate::intermediates::without_room;
use crate::support::{BINARY, Place, WINDS_V3, processes, spec_in, tree};

fn repository(place: &Place) -> Repository {
    Repository::open_or_create(&place.at("repository"), Format::default()).unwrap()
}

fn ramp(n: f64) -> Array {
    freestone::arange(0.0, n, 1.0, DType::Float64, 10).unwrap()
}

fn values(repository: &Repository, version: impl Into<Version>, path: &str, spec: &Spec) -> ArrayD<f64> {
    freestone::compute(&freestone::open_version(repository, version, path).unwrap(), spec).unwrap()
}

fn n_snapshots(repository: &Repository) -> usize {
    repository.history(&MAIN.into()).unwrap().len()
}

#[test]
fn several_arrays_are_one_plan_and_one_commit() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&ramp(40.0), "a/up").unwrap().store(&(ramp(40.0) * -1.0), "a/b/down").unwrap();
    assert!(freestone::open_version(&repository, MAIN, "a/up").is_err(), "nothing is there before the commit");
    let report = session.commit("both", &spec).unwrap();
    assert_eq!(report.stages.len(), 2, "one plan for both");
    assert_eq!(n_snapshots(&repository), 2);
    assert_eq!(values(&repository, MAIN, "a/b/down", &spec).sum(), -780.0);
    let newest = &repository.history(&MAIN.into()).unwrap()[0];
    assert_eq!((Some(&newest.id), newest.message.as_str()), (report.snapshot.as_ref(), "both"));
    assert!(newest.properties.contains_key("freestone_plan"));

    // The result of one commit is the input of the next, and the old snapshot stays readable.
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let up = session.open("a/up").unwrap();
    let target = session.target(&(&up + 1.0), "a/up").overwrite(true);
    session.add(target);
    session.commit("one more", &spec).unwrap();
    assert_eq!(values(&repository, MAIN, "a/up", &spec).sum(), 820.0);
    assert_eq!(values(&repository, Version::Snapshot(newest.id.clone()), "a/up", &spec).sum(), 780.0);
}

#[test]
fn a_plan_reads_the_snapshot_that_it_was_made_for() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let commit = |value: f64| {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        let array = freestone::full(&[20], value, DType::Float64, &[10]).unwrap();
        let target = session.target(&array, "x").overwrite(true);
        session.add(target);
        session.commit("a value", &spec).unwrap();
    };
    commit(1.0);
    let x = freestone::open(&format!("icechunk+{}#branch=main/x", place.at("repository"))).unwrap();
    let planned = freestone::plan(&[Target::array(&(&x + 0.0), &place.at("plain"))], &spec).unwrap();
    commit(2.0);
    freestone::run(&planned, &spec, &processes(2)).unwrap();
    let plain = freestone::compute::<f64>(&freestone::open(&place.at("plain")).unwrap(), &spec).unwrap();
    assert_eq!(plain.sum(), 20.0);
}

/// Coordinates come along, on every executor the same bytes.
#[test]
fn executors_commit_the_same() {
    let place = Place::quick();
    let u = freestone::open(&format!("{WINDS_V3}/u")).unwrap();
    let (threads, processes) = (Threads::new(2), processes(2));
    let executors: [&dyn Executor; 3] = [&Serial, &threads, &processes];
    let mut chunks = Vec::new();
    for executor in executors {
        let repository = Repository::open_or_create(&place.at(executor.name()), Format::default()).unwrap();
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session.store(&(&u * &u).mean(0).unwrap(), "means/uu").unwrap().store(&u.rechunk(&[12, 20, 20]).unwrap(), "means/u").unwrap();
        session.commit_with("means", &place.spec(), executor, CommitOptions::default(), &Options::default()).unwrap();
        let mean = freestone::open_version(&repository, MAIN, "means/uu").unwrap();
        let names: Vec<_> = mean.dims().unwrap().iter().map(|d| d.name.clone().unwrap()).collect();
        assert_eq!(names, ["latitude", "longitude"]);
        assert_eq!(freestone::open_version(&repository, MAIN, "means/latitude").unwrap().shape().unwrap(), [73]);
        let mut all: Vec<Vec<u8>> = tree(format!("{}/chunks", place.at(executor.name()))).into_values().collect();
        all.sort_unstable();
        chunks.push(all);
    }
    assert!(!chunks[0].is_empty() && chunks.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn an_array_grows_by_whole_chunks() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let part = |n: u64, value: f64| freestone::full(&[n, 6], value, DType::Float64, &[2, 3]).unwrap();
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&part(4, 1.0), "t").unwrap();
    session.commit("first", &spec).unwrap();
    for (value, n) in [(2.0, 2), (3.0, 1)] {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session.append(&part(n, value), "t", 0).unwrap();
        session.commit("more", &spec).unwrap();
    }
    let rows: Vec<f64> = values(&repository, MAIN, "t", &spec).mean_axis(Axis(1)).unwrap().into_iter().collect();
    assert_eq!(rows, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0]);
    // Now it ends inside of a chunk.
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let error = session.append(&part(2, 4.0), "t", 0).unwrap_err().to_string();
    assert!(error.contains("ends at 7 along axis 0, inside of a chunk of 2: append where a chunk ends, or rewrite it from 6 on"), "{error}");
    let error = session.append(&freestone::zeros(&[2, 5], DType::Float64, &[2, 5]).unwrap(), "t", 0).unwrap_err().to_string();
    assert!(error.contains("all other axes must be of the same length"), "{error}");
    // A region that cuts a chunk names the boundary.
    let target = session.target(&part(3, 5.0), "t").region(&[1..4, 0..6]);
    session.add(target);
    let error = session.commit("cut", &spec).unwrap_err().to_string();
    assert!(error.contains("0..4"), "{error}");
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let target = session.target(&part(2, 5.0), "t").region(&[2..4, 0..6]);
    session.add(target);
    session.commit("a region", &spec).unwrap();
    assert_eq!(values(&repository, MAIN, "t", &spec).sum(), 6.0 * (1.0 + 1.0 + 5.0 + 5.0 + 2.0 + 2.0 + 3.0));
}

/// What a session has changed itself can be read on threads, and not silently as it was before elsewhere.
#[test]
fn own_changes_are_read_where_they_are_known() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&ramp(20.0), "x").unwrap();
    session.commit("x", &spec).unwrap();
    let begin = || {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        let twos: Vec<u8> = [2.0f64; 10].iter().flat_map(|v| v.to_ne_bytes()).collect();
        session.writable().unwrap().array("x").unwrap().write_chunk(&[0], &twos).unwrap();
        let x = session.open("x").unwrap();
        session.store(&(x * 1.0), "y").unwrap();
        session
    };
    let error = begin().commit_with("y", &spec, &processes(1), CommitOptions::default(), &Options::default()).unwrap_err().to_string();
    assert!(error.contains("commit it first, or compute on threads"), "{error}");
    begin().commit("y", &spec).unwrap();
    assert_eq!(values(&repository, MAIN, "y", &spec).sum(), 20.0 + 145.0);
    assert_eq!(values(&repository, MAIN, "x", &spec).sum(), 20.0 + 145.0);
}

/// Of two runs on one branch one wins; the other's work is kept, and goes on top if that is allowed.
#[test]
fn a_run_that_comes_second_can_go_on_top() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let mut sessions = Vec::new();
    for name in ["first", "second"] {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session.store(&ramp(30.0), name).unwrap();
        sessions.push(session);
    }
    let second = sessions.pop().unwrap();
    sessions.pop().unwrap().commit("first", &spec).unwrap();
    let error = second.commit("second", &spec).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Conflict);
    let Error::Run(ran) = &error else { panic!("{error}") };
    let run = ran.kept().expect("what was computed is kept").to_owned();
    assert!(error.to_string().contains("the two are disjoint"), "{error}");
    let stored = freestone::open_run(&run, &Stores::default()).unwrap();
    let again = freestone::resume(&stored, &spec, &Serial, &Options::default()).unwrap_err().to_string();
    assert!(again.contains("came first"), "{again}");
    let on_top = RunSession::of_ticket(&stored.record.session).unwrap().unwrap().with_rebase(Rebase::Disjoint { attempts: 5 });
    let report = freestone::resume(&stored, &spec, &Serial, &Options { session: Some(&on_top), ..Options::default() }).unwrap();
    assert_eq!(report.finished_before, 3, "no task is run again");
    assert_eq!(values(&repository, MAIN, "second", &spec).sum(), values(&repository, MAIN, "first", &spec).sum());

    // The same array by both: one is refused, whatever is allowed.
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let target = session.target(&ramp(20.0), "first").overwrite(true);
    session.add(target);
    let mut other = Session::begin(&repository, MAIN).unwrap();
    let target = other.target(&ramp(10.0), "first").overwrite(true);
    other.add(target);
    other.commit("shorter", &spec).unwrap();
    let rebase = CommitOptions { rebase: Rebase::Disjoint { attempts: 5 }, ..CommitOptions::default() };
    let error = session.commit_with("longer", &spec, &Serial, rebase, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("the metadata of `first`"), "{error}");
    assert_eq!(values(&repository, MAIN, "first", &spec).sum(), 45.0);
}

#[test]
fn what_is_in_the_way_is_found_before_anything_runs() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&ramp(20.0), "x").unwrap();
    session.commit("x", &spec).unwrap();
    let before = tree(place.at("repository"));
    let check = |path: &str, says: &str| {
        let mut session = Session::begin(&repository, MAIN).unwrap();
        session.store(&ramp(20.0), path).unwrap();
        let error = session.commit("no", &spec).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(tree(place.at("repository")), before);
    };
    check("x", "there is an array or group `x`");
    check("x/y", "`x` is an array, so nothing can lie in it");
    // Results in two places cannot be published at once.
    let session = Session::begin(&repository, MAIN).unwrap();
    let targets = [session.target(&ramp(20.0), "y"), Target::array(&ramp(20.0), &place.at("plain"))];
    let planned = freestone::plan(&targets, &spec).unwrap();
    let run = session.publishing("both", CommitOptions::default());
    let error = freestone::run_with(&planned, &spec, &Serial, &Options { session: Some(&run), ..Options::default() }).unwrap_err().to_string();
    assert!(error.contains("all results of one run go to one session"), "{error}");
    let error = freestone::run(&planned, &spec, &Serial).unwrap_err().to_string();
    assert!(error.contains("give the run its session"), "{error}");
    assert_eq!(tree(place.at("repository")), before);
}

/// `tests/interop/icechunk_read.py` looks at it.
#[test]
#[ignore = "needs Python's icechunk: run by .ci/run"]
fn icechunk_reads_what_runs_commit() {
    let place = Place::new();
    let folder = std::env::var("FREESTONE_ICECHUNK").expect("FREESTONE_ICECHUNK is set by .ci/run");
    let path = format!("{folder}/ours-run");
    let _ = fs::remove_dir_all(&path);
    let repository = Repository::create(&path, Format::default()).unwrap();
    let u = freestone::open(&format!("{WINDS_V3}/u")).unwrap();
    let mut session = Session::begin(&repository, MAIN).unwrap();
    session.store(&(&u * &u).mean(0).unwrap(), "means/uu").unwrap();
    session.commit("squares", &place.spec()).unwrap();
    let mut session = Session::begin(&repository, MAIN).unwrap();
    let twice = session.open("means/uu").unwrap() * 2.0;
    session.store(&twice, "means/twice").unwrap();
    session.commit_with("twice that", &place.spec(), &processes(2), CommitOptions::default(), &Options::default()).unwrap();
}

// --- The driver is killed -------------------------------------------------------------------------------------------

/// Tells [`repository_child`] what to do.
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
        .args(["repositories::faults_repository_child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
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

// --- Shared by id ---------------------------------------------------------------------------------------------------

fn id_of(output: &std::process::Output) -> String {
    stdout(output).trim().to_owned()
}

/// Eight programs that know the repository and an id only; one is killed half-way and started again: one commit, all values.
#[test]
fn programs_join_by_id_and_one_dies() {
    let place = Place::quick();
    let run = |arguments: &[&str]| freestone_in(&place, &[], arguments);
    let id = id_of(&run(&["session", "create", "--repository", "r", "-m", "by eight"]));
    let compute = |n: usize| {
        let mut command = Command::new(BINARY);
        command
            .current_dir(place.folder.path())
            .env("FREESTONE_WORK_DIR", place.at(&format!("work-{n}")))
            .args(["compute", &format!("u * {n}"), "-i", &format!("u={WINDS_V3}/u"), "-o", &format!("all/u{n}"), "--chunks", "1,10,10"])
            .args(["--repository", "r", "--session", &id, "--executor", "threads"])
            .stdout(Stdio::null());
        command.spawn().unwrap()
    };
    let mut children: Vec<_> = (0..8).map(compute).collect();
    thread::sleep(Duration::from_millis(60));
    children[3].kill().unwrap();
    let refused = run(&["session", "commit", &id, "--repository", "r"]);
    let status = children[3].wait().unwrap();
    for (n, mut child) in children.into_iter().enumerate().filter(|(n, _)| *n != 3) {
        assert!(child.wait().unwrap().success(), "{n}");
    }
    // Unless it was quicker than the signal.
    if !status.success() {
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(5) && text.contains("open writers"), "{text}");
        let text = stdout(&run(&["session", "status", &id, "--repository", "r"]));
        let written = |l: &&str| l.contains("compute-all-u3");
        assert!(text.lines().find(written).is_none_or(|l| l.ends_with(": 0 chunks, open")), "{text}");
        assert!(compute(3).wait().unwrap().success());
    }
    let snapshot = id_of(&run(&["session", "commit", &id, "--repository", "r"]));
    let repository = Repository::open(&place.at("r")).unwrap();
    assert_eq!(n_snapshots(&repository), 2);
    assert_eq!(repository.resolve(&MAIN.into()).unwrap(), snapshot);
    let spec = place.spec();
    let u = freestone::compute::<f32>(&freestone::open(&format!("{WINDS_V3}/u")).unwrap(), &spec).unwrap();
    for n in 0..8 {
        let found = freestone::compute::<f32>(&freestone::open_version(&repository, MAIN, &format!("all/u{n}")).unwrap(), &spec).unwrap();
        assert_eq!(found, &u * n as f32, "{n}");
    }
    // After the commit nobody joins.
    let late = freestone_in(&place, &[], &["compute", "u", "-i", &format!("u={WINDS_V3}/u"), "-o", "late", "--repository", "r", "--session", &id]);
    assert_eq!(late.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&late.stderr).contains(&format!("committed as snapshot {snapshot}")));
}

#[test]
fn sessions_by_command() {
    let place = Place::quick();
    let run = |arguments: &[&str]| freestone_in(&place, &[("FREESTONE_REPOSITORY", "r"), ("FREESTONE_SESSION_EXPIRY", "2h")], arguments);
    let id = id_of(&run(&["session", "create", "-m", "for a while"]));
    let status: Value = serde_json::from_str(&stdout(&run(&["session", "status", &id, "--json"]))).unwrap();
    let left = status["expires_ms"].as_u64().unwrap() - status["created_ms"].as_u64().unwrap();
    assert_eq!((left, &status["state"], &status["message"]), (7_200_000, &json!("open"), &json!("for a while")));
    stdout(&run(&["session", "extend", &id, "3d"]));
    stdout(&run(&["session", "join", &id, "--name", "later"]));
    let refused = run(&["session", "commit", &id]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("(later)"));
    let compute = ["compute", "u + 1", "-i", &format!("u={WINDS_V3}/u"), "-o", "u1", "--session", &id, "--name", "later"];
    stdout(&run(&compute));
    let text = stdout(&run(&["session", "list"]));
    assert!(text.contains("1 joined, 0 open: for a while"), "{text}");
    let snapshot = id_of(&run(&["session", "commit", &id]));
    let log: Value = serde_json::from_str(&stdout(&run(&["repo", "log", "--json"]))).unwrap();
    assert_eq!((&log[0]["id"], &log[0]["message"]), (&json!(snapshot), &json!("for a while")));
    let branches = stdout(&run(&["repo", "branches", "--create", "other", "--tag", "v1"]));
    assert_eq!(branches, format!("branch  main  {snapshot}\nbranch  other  {snapshot}\ntag     v1  {snapshot}\n"));
    stdout(&run(&["compute", "a*2", "-i", "a=icechunk+r#tag=v1/u1", "-o", "u2", "--branch", "other", "-m", "twice"]));
    assert_eq!(stdout(&run(&["repo", "log", "--branch", "other"])).lines().count(), 3);
    assert_eq!(stdout(&run(&["repo", "log", "-n", "1"])).lines().count(), 1);
    assert!(stdout(&run(&["repo", "gc"])).starts_with("removed 0 chunks"));
    assert!(stdout(&run(&["repo", "expire", "30d"])).starts_with("0 snapshots"));

    let gone = id_of(&run(&["session", "create", "--expires-in", "1h"]));
    stdout(&run(&["session", "abandon", &gone]));
    for arguments in [&["session", "extend", &gone, "1h"][..], &["session", "commit", &gone], &["session", "join", &gone, "--name", "x"]] {
        let refused = run(arguments);
        assert_eq!(refused.status.code(), Some(5), "{arguments:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("abandoned"), "{arguments:?}");
    }
    let short = id_of(&run(&["session", "create", "--expires-in", "1ms"]));
    thread::sleep(Duration::from_millis(5));
    let refused = run(&["session", "commit", &short]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("expired"));
}

/// Code, then command line, environment, file, defaults.
#[test]
fn settings_of_sessions_come_in_layers() {
    let place = Place::quick();
    fs::write(place.at("freestone.toml"), "repository = \"of-file\"\nsharing = false\n").unwrap();
    let create = |variables: &[(&str, &str)], arguments: &[&str]| {
        freestone_in(&place, variables, &[&["compute", "u", "-i", &format!("u={WINDS_V3}/u"), "-o", "u", "-m", "m"], arguments].concat())
    };
    stdout(&create(&[], &[]));
    stdout(&create(&[("FREESTONE_REPOSITORY", "of-environment")], &[]));
    stdout(&create(&[("FREESTONE_REPOSITORY", "of-environment")], &["--repository", "of-command-line"]));
    for name in ["of-file", "of-environment", "of-command-line"] {
        assert_eq!(n_snapshots(&Repository::open(&place.at(name)).unwrap()), 2, "{name}");
    }
    // With sharing off nobody shares or joins, and no record is kept.
    let refused = freestone_in(&place, &[], &["session", "create"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("switched off"));
    assert!(!fs::exists(place.at("of-file/_freestone/sessions")).unwrap());
    let id = id_of(&freestone_in(&place, &[("FREESTONE_SHARING", "true")], &["session", "create"]));
    for arguments in [&["session", "join", &id, "--name", "x"][..], &["compute", "u", "-i", &format!("u={WINDS_V3}/u"), "-o", "v", "--session", &id]] {
        let refused = freestone_in(&place, &[], arguments);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}");
    }
    let refused = freestone_in(&place, &[("FREESTONE_SHARING", "perhaps")], &["session", "create"]);
    assert_eq!(refused.status.code(), Some(2));
    // Without any of its arguments, nothing is committed anywhere.
    stdout(&freestone_in(&place, &[], &["compute", "u", "-i", &format!("u={WINDS_V3}/u"), "-o", "plain.zarr"]));
    assert!(fs::exists(place.at("plain.zarr/zarr.json")).unwrap());
}

#[test]
fn wrong_places_in_repositories() {
    let place = Place::quick();
    let input = format!("u={WINDS_V3}/u");
    let compute = |output: &str, more: &[&str], code: i32, says: &str| {
        check_failure(&place, &[&["compute", "u", "-i", &input, "-o", output], more].concat(), code, &[says]);
    };
    compute("u", &["--session", "0123", "--repository", "none"], 4, "there is no repository at");
    compute("u", &["--branch", "side"], 4, "there is no repository at");
    compute("u", &["--session", "0123", "-m", "x"], 2, "cannot be used with");
    check_failure(&place, &["info", "icechunk+none#branch=main/x"], 4, &["there is no repository at"]);
    check_failure(&place, &["info", "icechunk+none#main/x"], 4, &["#branch=NAME/PATH"]);
    check_failure(&place, &["repo", "log"], 4, &["freestone.icechunk"]);
    stdout(&freestone_in(&place, &[], &["compute", "u", "-i", &input, "-o", "u", "-m", "first"]));
    for path in ["a:b", "a//b", "a/c", "..", "a/zarr.json"] {
        compute(path, &["-m", "x"], 2, "is no path in a repository");
    }
    compute("v", &["-m", "x", "--branch", "side"], 4, "branch `side`");
    check_failure(&place, &["info", "icechunk+freestone.icechunk#branch=side/x"], 4, &["branch `side`"]);
    check_failure(&place, &["session", "status", "0123456789"], 4, &["there is no session `0123456789`"]);
}

/// What was found by hostile hands.
#[test]
fn places_that_are_no_repositories() {
    let place = Place::quick();
    let input = format!("u={WINDS_V3}/u");
    fs::create_dir(place.at("other")).unwrap();
    fs::write(place.at("other/file"), "something").unwrap();
    fs::write(place.at("file"), "something").unwrap();
    for at in ["other", "file", "file/below"] {
        check_failure(&place, &["compute", "u", "-i", &input, "-o", "u", "--repository", at], 5, &["name another place"]);
        check_failure(&place, &["session", "create", "--repository", at], 5, &["name another place"]);
    }
    let run = |arguments: &[&str]| freestone_in(&place, &[("FREESTONE_REPOSITORY", "r")], arguments);
    stdout(&run(&["compute", "u", "-i", &input, "-o", "u", "-m", "m"]));
    for (arguments, code) in [(["--create", "main"], 5), (["--delete", "none"], 4), (["--delete", "main"], 2), (["--create", ""], 2), (["--tag", " "], 2)] {
        assert_eq!(run(&["repo", "branches", arguments[0], arguments[1]]).status.code(), Some(code), "{arguments:?}");
    }
    stdout(&run(&["repo", "branches", "--create", "side/x", "--tag", "v1"]));
    assert_eq!(run(&["repo", "branches", "--tag", "v1"]).status.code(), Some(5));
    assert!(stdout(&run(&["info", "icechunk+r#branch=side%2Fx/u"])).contains("float32"));
}

/// Sessions that are there in part, or damaged, are in nobody's way.
#[test]
fn damaged_sessions_block_nothing() {
    let place = Place::quick();
    let run = |arguments: &[&str]| freestone_in(&place, &[("FREESTONE_REPOSITORY", "r")], arguments);
    let half = id_of(&run(&["session", "create"]));
    fs::remove_dir_all(place.at(&format!("r/_freestone/sessions/{half}/state"))).unwrap();
    let damaged = id_of(&run(&["session", "create"]));
    for file in tree(place.at(&format!("r/_freestone/sessions/{damaged}/state"))).keys() {
        fs::write(place.at(&format!("r/_freestone/sessions/{damaged}/state/{file}")), "{").unwrap();
    }
    let text = stdout(&run(&["session", "list"]));
    assert!(text.contains(&format!("{damaged}  damaged")) && !text.contains(&half), "{text}");
    stdout(&run(&["repo", "gc", "--older-than", "1ms"]));
    stdout(&run(&["repo", "expire", "1ms"]));
    stdout(&run(&["session", "abandon", &damaged]));
    assert!(stdout(&run(&["session", "list"])).contains("abandoned"));
    let long = id_of(&run(&["session", "create"]));
    assert_eq!(run(&["session", "extend", &long, "18446744073709551s616ms"]).status.code(), Some(2));
    assert!(stdout(&run(&["session", "status", &long])).contains("open"));
}

/// A writer that comes again with other metadata takes back what it wrote before, and one that died in the middle of telling has told nothing.
#[test]
fn writers_that_come_again() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let shared = repository.create_session(MAIN, "again", None).unwrap();
    for n in [60.0, 20.0] {
        let mut session = Session::joined(shared.join("w").unwrap());
        session.store(&ramp(n), "g/a").unwrap();
        session.commit("", &spec).unwrap();
    }
    // As a run leaves it that is killed while it tells: its batches are there, their end is not.
    let mut session = Session::joined(shared.join("dead").unwrap());
    session.store(&ramp(30.0), "g/b").unwrap();
    session.commit("", &spec).unwrap();
    let receipts = place.at(&format!("repository/_freestone/sessions/{}/receipts/dead", shared.id()));
    let last = tree(&receipts).into_keys().last().unwrap();
    assert!(last.ends_with("-0.json"), "{last}");
    fs::remove_file(format!("{receipts}/{last}")).unwrap();
    shared.join("dead").unwrap().close().unwrap();
    shared.commit().unwrap();
    assert_eq!(values(&repository, MAIN, "g/a", &spec).sum(), 190.0);
    assert!(freestone::open_version(&repository, MAIN, "g/b").is_err());
}

/// A commit's memory is part of the projection, and a record that got lost is missed.
#[test]
fn commits_of_many_chunks() {
    let place = Place::quick();
    let run = |arguments: &[&str]| freestone_in(&place, &[("FREESTONE_REPOSITORY", "r")], arguments);
    let compute = ["compute", "zeros((40000,)) + arange(40000)", "--chunks", "1", "--codec", "none", "--threads", "1"];
    let report: Value = serde_json::from_str(&stdout(&run(&[&compute[..], &["-o", "x", "-m", "many", "--json"]].concat()))).unwrap();
    let (peak, projected) = (report["peak_mem"].as_u64().unwrap(), report["projected_mem"].as_u64().unwrap());
    println!("40 000 chunks: {peak} bytes measured, {projected} projected");
    assert!(peak <= projected, "{peak} bytes measured, {projected} projected");
    let refused = run(&[&compute[..], &["-o", "y", "-m", "many", "--local-mem", "40MB"]].concat());
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));

    let id = id_of(&run(&["session", "create"]));
    let u = format!("u={WINDS_V3}/u");
    stdout(&run(&["compute", "u", "-i", &u, "-o", "z", "--session", &id, "--name", "w"]));
    let receipts = place.at(&format!("r/_freestone/sessions/{id}/receipts/w"));
    fs::remove_file(format!("{receipts}/{}", tree(&receipts).into_keys().next().unwrap())).unwrap();
    let refused = run(&["session", "commit", &id]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("1 of the 2 records"), "{refused:?}");
    stdout(&run(&["session", "leave", &id, "--name", "w", "--drop"]));
    assert!(!run(&["session", "commit", &id]).status.success(), "nothing is left to commit");
}

/// Nothing comes to lie in an array, whoever comes first.
#[test]
fn arrays_hold_no_arrays() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let shared = repository.create_session(MAIN, "inside", None).unwrap();
    for path in ["m", "m/n"] {
        let mut session = Session::joined(shared.join(&path.replace('/', "-")).unwrap());
        session.store(&ramp(20.0), path).unwrap();
        session.commit("", &spec).unwrap();
    }
    let error = shared.commit().unwrap_err().to_string();
    assert!(error.contains("`m` is made an array, so nothing can lie in it"), "{error}");
    // One of them takes back what it wrote, and the other's work is not lost.
    shared.join("m").unwrap().retract().unwrap();
    shared.commit().unwrap();
    assert_eq!(values(&repository, MAIN, "m/n", &spec).sum(), 190.0);
    for (first, second) in [("p", "p/q"), ("r/s", "r")] {
        let mut sessions: Vec<Session> = [first, second].iter().map(|_| Session::begin(&repository, MAIN).unwrap()).collect();
        sessions[0].store(&ramp(20.0), first).unwrap();
        sessions[1].store(&ramp(20.0), second).unwrap();
        let late = sessions.pop().unwrap();
        sessions.pop().unwrap().commit("first", &spec).unwrap();
        let rebase = CommitOptions { rebase: Rebase::Disjoint { attempts: 5 }, ..CommitOptions::default() };
        let error = late.commit_with("second", &spec, &Serial, rebase, &Options::default()).unwrap_err();
        assert!(error.to_string().contains("changed the same") && error.exit_code() == ExitCode::Conflict, "{error}");
    }
}

/// Nothing that is written for others, or for later, has the secrets that a process was given.
#[test]
fn credentials_do_not_travel() {
    let place = Place::quick();
    let secrets = [("AWS_ACCESS_KEY_ID", "AKIASECRETKEYID"), ("AWS_SECRET_ACCESS_KEY", "very/secret+key"), ("AWS_SESSION_TOKEN", "token-of-secrets")];
    let run = |arguments: &[&str]| freestone_in(&place, &secrets, arguments);
    let id = id_of(&run(&["session", "create", "--repository", "r", "-m", "m"]));
    let input = format!("u={WINDS_V3}/u");
    stdout(&run(&["compute", "u", "-i", &input, "-o", "a", "--repository", "r", "--session", &id, "--history", "h.jsonl", "--report", "r.html"]));
    stdout(&run(&["session", "commit", &id, "--repository", "r"]));
    // A run that is stopped leaves its plan, its journal and its ticket.
    let stopped = run(&["compute", "u", "-i", &input, "-o", "b", "--repository", "r", "-m", "m", "--deadline", "1ms", "--chunks", "1,5,5"]);
    assert_eq!(stopped.status.code(), Some(124));
    let all = tree(place.folder.path());
    assert!(all.keys().any(|n| n.contains("_freestone/sessions")) && all.contains_key("h.jsonl"), "{:?}", all.keys());
    for (name, bytes) in &all {
        for (_, secret) in secrets {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{name} has a secret in it");
        }
    }
}

/// A session that its creator has shared takes whole arrays of who joins, each made by one of them only.
#[test]
fn who_joins_makes_arrays_of_its_own() {
    let place = Place::quick();
    let spec = place.spec();
    let repository = repository(&place);
    let shared = repository.create_session(MAIN, "two", None).unwrap();
    let add = |name: &str, path: &str, array: &Array| -> Result<freestone::RunReport, Error> {
        let mut session = Session::joined(shared.join(name)?);
        session.store(array, path)?;
        session.commit("", &spec)
    };
    assert_eq!(add("one", "g/a", &ramp(30.0)).unwrap().snapshot, None);
    add("two", "g/b", &ramp(20.0)).unwrap();
    // The same once more under the same name takes its place; nobody notices.
    add("two", "g/b", &ramp(20.0)).unwrap();
    assert!(freestone::open_version(&repository, MAIN, "g/a").is_err());
    shared.commit().unwrap();
    assert_eq!(values(&repository, MAIN, "g/a", &spec).sum() - values(&repository, MAIN, "g/b", &spec).sum(), 435.0 - 190.0);
    assert!(matches!(shared.status().unwrap().state, SessionState::Closed(Closed::Committed { .. })));

    // Two who make different arrays at one place are told so, and nothing is committed.
    let shared = repository.create_session(MAIN, "clash", None).unwrap();
    for (name, n) in [("one", 30.0), ("two", 20.0)] {
        let mut session = Session::joined(shared.join(name).unwrap());
        session.store(&ramp(n), "same").unwrap();
        session.commit("", &spec).unwrap();
    }
    assert!(matches!(shared.commit(), Err(RepositoryError::MadeTwice { path }) if path == "same"));
    // One that fails to plan does not keep others waiting.
    let shared = repository.create_session(MAIN, "fails", None).unwrap();
    let mut session = Session::joined(shared.join("one").unwrap());
    session.store(&ramp(30.0), "g/a").unwrap();
    assert!(session.commit("", &spec).unwrap_err().to_string().contains("there is an array or group `g/a`"));
    assert!(shared.status().unwrap().joiners.iter().all(|j| !j.open && j.n_chunks == 0));
}
