//! The executor that invokes functions, with workers in real processes under the emulator.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use freestone_engine::driver::record::{StoredRun, folders};
use freestone_engine::driver::{self, Run, RunError};
use freestone_engine::events::RunReport;
use freestone_engine::executor::{Executor, ExecutorError};
use freestone_engine::plan::lower::{kernels_of, lower, stores_of};
use freestone_engine::remote::{Call, Invocation, RefusalKind};
use freestone_engine::session::PlainZarr;
use freestone_engine::spec::Spec;
use freestone_engine::storage::Stores;
use freestone_engine::task::{FailureKind, RunAddress};
use freestone_engine::worker::Cancel;
use freestone_executors::{LambdaExecutor, Threads, conformance};
use freestone_lambda::DType;
use freestone_lambda_emulator::{Cap, Emulator, Faults};
use freestone_ops::io::{Target, open_in, outputs};
use freestone_ops::random_normal;
use freestone_sessions::{CommitOptions, Format, MAIN, Repository, RunSession};

use crate::support::{Odd, Place, kernels, odd, own, run, stock, tree};

/// So many environments, and invocations that are not longer than so.
fn executor(url: &str, concurrency: usize, batch_ms: u64) -> LambdaExecutor {
    let executor = LambdaExecutor::new("freestone", "eu-central-1").endpoint(url).credentials("key", "secret", None);
    executor.concurrency(concurrency).batches(8, Duration::from_millis(batch_ms)).function_timeout(Duration::from_secs(30))
}

/// Plans and runs, whatever comes of it.
fn tried(targets: &[Target], spec: &Spec, executor: &dyn Executor) -> Result<RunReport, RunError> {
    let lowered = outputs(targets, &Stores::default()).unwrap();
    let plan = Arc::new(lower(&lowered, spec).unwrap());
    let stores = stores_of(&lowered).unwrap();
    let session = PlainZarr::new(stores.clone());
    let kernels = kernels_of(&lowered).unwrap();
    driver::run(&plan, &Run { spec, stores: &stores, kernels: &kernels, executor, session: &session, observers: &[], cancel: Cancel::default() })
}

#[test]
fn the_suite_for_executors_passes_through_the_client() {
    let place = Place::new();
    let emulator = stock(|_| ());
    conformance::check(place.0.path(), |slots| Box::new(executor(&emulator.url(), slots, 1000).batches(1, Duration::from_secs(1))));
}

#[test]
fn plans_have_the_same_bytes_through_the_client() {
    let place = Place::new();
    let spec = place.spec_with(|s| s.allowed_mem = Some(60_000_000));
    let emulator = stock(|_| ());
    let u = random_normal(&[64, 300, 200], 0.0, 1.0, 1, DType::Float32, &[8, 300, 200]).unwrap();
    run(&[Target::array(&u, &place.at("u"))], &spec, &Threads::new(2));
    let u = open_in(&Stores::default().open(&place.at("u")).unwrap(), "").unwrap();
    let targets = |to: &str| {
        let mean = (&u * &u).mean(0).unwrap();
        vec![Target::in_group(&mean, &place.at(to), "mean"), Target::in_group(&u.rechunk(&[64, 30, 20]).unwrap(), &place.at(to), "columns")]
    };
    run(&targets("threads"), &spec, &Threads::new(2));
    let report = run(&targets("lambda"), &spec, &executor(&emulator.url(), 4, 200));
    assert_eq!(tree(place.at("threads")), tree(place.at("lambda")));
    let invoked = report.invoked.unwrap();
    // The probe is not one of the run's.
    assert_eq!(invoked.invocations + 1, emulator.stats().invocations, "{report}");
    assert!(invoked.gb_seconds() > 0.0 && invoked.most_at_once <= 4 && invoked.crashes == 0, "{report}");
    assert!(invoked.invocations < report.stages.iter().map(|s| s.tasks).sum(), "several requests go into an invocation: {report}");
    assert!(report.worker_peak_bytes.is_some());
}

#[test]
fn what_the_function_cannot_run_ends_before_anything_is_replaced() {
    let place = Place::new();
    let emulator = stock(|config| config.memory_mib = 128);
    let spec = place.spec_with(|s| s.allowed_mem = Some(400_000_000));
    let numbers = freestone_ops::arange(0.0, 1e7, 1.0, DType::Float64, 10_000_000).unwrap();
    let error = tried(&[Target::array(&numbers, &place.at("out"))], &spec, &executor(&emulator.url(), 2, 1000)).unwrap_err();
    let RunError::Executor(ExecutorError::Refused { refusal, .. }) = &error else { panic!("{error}") };
    assert_eq!(refusal.kind, RefusalKind::ExceedsMemory);
    let error = tried(&[Target::array(&odd(3, &Odd::default()), &place.at("out"))], &place.spec(), &executor(&emulator.url(), 2, 1000)).unwrap_err();
    assert!(matches!(&error, RunError::Executor(ExecutorError::Refused { refusal, .. }) if refusal.kind == RefusalKind::UnknownKernel), "{error}");
    let other = LambdaExecutor::new("other", "r").endpoint(&emulator.url()).credentials("key", "secret", None);
    let error = tried(&[Target::array(&numbers, &place.at("out"))], &spec, &other).unwrap_err();
    assert!(error.to_string().contains("deploy it"), "{error}");
    assert!(!fs::exists(place.at("out")).unwrap());
}

/// A kernel takes what no projection knows of, and its environment is killed for it: the run ends, and says so of the stage.
#[test]
fn an_environment_without_memory_is_told_from_one_that_was_lost() {
    let place = Place::new();
    let emulator = own(|config| (config.memory_mib, config.cap) = (192, Cap::Always));
    let hog = Odd { hog_mib: 400, ..Odd::default() };
    let error = tried(&[Target::array(&odd(12, &hog), &place.at("out"))], &place.spec(), &executor(&emulator.url(), 3, 1000)).unwrap_err();
    let RunError::Task { failure, note, .. } = error.cause() else { panic!("{error}") };
    assert_eq!(failure.kind, FailureKind::OutOfMemory, "{error}");
    assert!(failure.stage.starts_with("odd") && note.contains("two workers"), "{error}");
    assert!(emulator.stats().oom_kills >= 2);
}

/// Kills, lost answers, throttling, stragglers, and duplicates: the result is right, and little was computed twice.
#[test]
fn a_run_survives_what_goes_wrong() {
    let place = Place::new();
    const N: u64 = 2000;
    let log = place.at("log");
    let kernel = Odd { sleep_ms: 4, log: Some(log.clone()), ..Odd::default() };
    let faults = Faults {
        seed: 11,
        throttle: 0.1,
        kill: 0.05,
        kill_after: Duration::ZERO..Duration::from_millis(40),
        lose: 0.05,
        duplicate: 0.0,
        slow: 0.02,
        slow_factor: 20,
    };
    let emulator = own(|config| (config.concurrency, config.faults) = (16, faults.clone()));
    let start = Instant::now();
    // Short invocations, so that there are enough to go wrong.
    let report =
        run(&[Target::array(&odd(N, &kernel), &place.at("out"))], &place.spec(), &executor(&emulator.url(), 16, 30).batches(4, Duration::from_millis(30)));
    let stats = emulator.stats();
    let computed = fs::read(&log).unwrap().iter().filter(|b| **b == b'+').count() as f64 / N as f64;
    println!("{:.1} s, {computed:.3} × computed\n{report}\n{:?} of {} invocations", start.elapsed().as_secs_f64(), stats.faults, stats.asked);
    run(&[Target::array(&odd(N, &Odd::default()), &place.at("expect"))], &place.spec(), &Threads::new(2));
    let chunks = |name: &str| {
        let mut files = tree(place.at(name));
        // It has the kernel's parameters in no place, but is said of another plan.
        files.retain(|path, _| path.starts_with("c/"));
        files
    };
    assert!(chunks("out").len() as u64 == N && chunks("out") == chunks("expect"));
    assert!(computed <= 1.25, "{computed}");
    let asked = stats.asked as f64;
    for (fired, share) in [(stats.faults.throttled, 0.1), (stats.faults.killed, 0.05), (stats.faults.lost, 0.05), (stats.faults.slowed, 0.02)] {
        assert!(fired as f64 >= 0.5 * share * asked, "{:?} of {asked}", stats.faults);
    }
    let invoked = report.invoked.unwrap();
    assert!(invoked.throttled >= stats.faults.throttled / 2 && invoked.recovered > 0 && invoked.crashes > 0, "{invoked:?}");
}

/// One commit for a whole run, with receipts from the workers, some of whom are killed or lose their answers: the same objects as threads write.
#[test]
fn a_run_is_one_commit() {
    let place = Place::new();
    let emulator = stock(|config| {
        config.concurrency = 4;
        config.faults = Faults { seed: 5, throttle: 0.1, kill: 0.05, kill_after: Duration::ZERO..Duration::from_millis(20), lose: 0.1, ..Faults::default() };
    });
    let lambda = executor(&emulator.url(), 4, 50);
    let threads = Threads::new(2);
    let spec = place.spec();
    let source = random_normal(&[200, 60], 0.0, 1.0, 1, DType::Float64, &[2, 60]).unwrap();
    let executors: [(&str, &dyn Executor); 2] = [("threads", &threads), ("lambda", &lambda)];
    let mut objects = Vec::new();
    for (name, executor) in executors {
        let repository = Repository::open_or_create(&place.at(name), Format::default()).unwrap();
        let session = repository.writable_session(MAIN).unwrap();
        let stores = freestone_lambda::stores();
        stores.insert(session.store());
        let url = session.store().url().to_owned();
        let target = |array, name: &str| Target::in_group(array, &url, name).with_stores(&stores);
        let rows = source.rechunk(&[20, 30]).unwrap();
        let lowered = outputs(&[target(&(&source * 2.0), "group/twice"), target(&rows, "group/rows")], &stores).unwrap();
        let plan = Arc::new(lower(&lowered, &spec).unwrap());
        let commit = RunSession::committing(&session, "by many", CommitOptions::default());
        stores.insert(freestone_engine::session::Session::store(&commit).unwrap());
        let kernels = kernels_of(&lowered).unwrap();
        let run = Run { spec: &spec, stores: &stores, kernels: &kernels, executor, session: &commit, observers: &[], cancel: Cancel::default() };
        let report = driver::run(&plan, &run).unwrap();
        let history = repository.history(&MAIN.into()).unwrap();
        assert_eq!((history.len(), report.snapshot.as_ref()), (2, Some(&history[0].id)), "{name}");
        let mut twice = repository.readonly_session(&MAIN.into()).unwrap().array("group/twice").unwrap();
        assert_eq!(twice.read().unwrap().len(), 200 * 60 * 8);
        // What killed workers were writing lies there too, under names that begin with a dot, until garbage is collected.
        let objects_of = tree(place.at(&format!("{name}/chunks"))).into_iter().filter(|(file, _)| !file.starts_with('.'));
        let mut chunks: Vec<Vec<u8>> = objects_of.map(|(_, bytes)| bytes).collect();
        chunks.sort_unstable();
        objects.push(chunks);
    }
    assert_eq!((objects[0].len(), objects[1].len()), (120, 120));
    assert!(objects[0] == objects[1]);
    println!("{:?}", emulator.stats().faults);
}

/// Not a test: the client that the test below kills.
#[test]
fn the_client_itself() {
    let Ok(setup) = std::env::var("FREESTONE_TEST_CLIENT") else { return };
    let [url, root] = setup.split(' ').collect::<Vec<_>>()[..] else { panic!("{setup}") };
    let at = |name: &str| format!("{root}/{name}");
    let kernel = Odd { sleep_ms: 20, log: Some(at("log")), ..Odd::default() };
    let spec = Place::new().spec_with(|s| s.work_dir = Some(at("work")));
    let _ = tried(&[Target::array(&odd(300, &kernel), &at("out"))], &spec, &executor(url, 8, 100));
}

fn is_idle(emulator: &Emulator) -> bool {
    let stats = emulator.stats();
    stats.asked == stats.invocations + stats.throttled
}

/// The run is cancelled while a long invocation is under way: its worker does not begin all that it was asked for.
#[test]
fn what_nobody_waits_for_is_not_begun() {
    let place = Place::new();
    let emulator = own(|config| (config.concurrency, config.keep_bodies, config.timeout) = (1, true, Duration::from_secs(60)));
    let kernel = Odd { sleep_ms: 500, log: Some(place.at("log")), ..Odd::default() };
    let begun = || fs::read(place.at("log")).unwrap_or_default().iter().filter(|b| **b == b'+').count() as u64;
    let executor = executor(&emulator.url(), 1, 60_000).batches(64, Duration::from_secs(60));
    let spec = place.spec();
    let lowered = outputs(&[Target::array(&odd(2000, &kernel), &place.at("out"))], &Stores::default()).unwrap();
    let plan = Arc::new(lower(&lowered, &spec).unwrap());
    let (stores, kernels, cancel) = (stores_of(&lowered).unwrap(), kernels_of(&lowered).unwrap(), Cancel::default());
    let session = PlainZarr::new(stores.clone());
    let run = Run { spec: &spec, stores: &stores, kernels: &kernels, executor: &executor, session: &session, observers: &[], cancel: cancel.clone() };
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            while begun() < 8 {
                std::thread::sleep(Duration::from_millis(20));
            }
            cancel.cancel();
        });
        driver::run(&plan, &run).unwrap_err()
    });
    assert!(matches!(error.cause(), RunError::Cancelled), "{error}");
    while !is_idle(&emulator) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let requests = |body: &[u8]| match serde_json::from_slice::<Invocation>(body).unwrap().call {
        Call::Run(requests) => requests.iter().map(|r| r.count).sum(),
        Call::Probe => 0,
    };
    let asked: u64 = emulator.kept().iter().map(|k| requests(&k.request)).sum();
    println!("{} of {asked} were begun", begun());
    assert!(begun() < asked, "{} of {asked}", begun());
}

/// The client is killed half-way, with answers lost before: what the workers have finished is not computed again.
#[test]
fn a_client_that_was_killed_goes_on() {
    let place = Place::new();
    let emulator = own(|config| {
        config.concurrency = 8;
        config.faults = Faults { seed: 3, lose: 0.2, ..Faults::default() };
    });
    let setup = format!("{} {}", emulator.url(), place.0.path().display());
    let mut client = Command::new(std::env::current_exe().unwrap())
        .args(["client::the_client_itself", "--exact", "--nocapture"])
        .env("FREESTONE_TEST_CLIENT", setup)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = |log: &str| fs::read(log).unwrap_or_default().iter().filter(|b| **b == b'+').count();
    let start = Instant::now();
    while begun(&place.at("log")) < 150 {
        assert!(start.elapsed() < Duration::from_secs(60) && client.try_wait().unwrap().is_none(), "the client does nothing");
        std::thread::sleep(Duration::from_millis(2));
    }
    client.kill().unwrap();
    client.wait().unwrap();
    while !is_idle(&emulator) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = begun(&place.at("log"));
    assert!((150..300).contains(&before), "{before} were begun when the client was killed");
    let stores = Stores::default();
    let spec = place.spec();
    let [folder] = &folders(&stores, &spec.work_dir).unwrap()[..] else { panic!("there is one run") };
    let stored = StoredRun::open(&stores, RunAddress { work_dir: spec.work_dir.clone(), folder: folder.clone() }).unwrap();
    let session = PlainZarr::of_ticket(stores.clone(), &stored.record.session).unwrap();
    let executor = executor(&emulator.url(), 8, 100);
    let kernels = kernels();
    let run = Run { spec: &spec, stores: &stores, kernels: &kernels, executor: &executor, session: &session, observers: &[], cancel: Cancel::default() };
    let report = driver::resume(&stored, &run, false).unwrap();
    println!("{before} of 300 were begun, {} known when it went on; {} answers lost", report.finished_before, emulator.stats().faults.lost);
    assert_eq!(report.finished_before, before as u64);
    while !is_idle(&emulator) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(begun(&place.at("log")), 300, "each task is computed once");
    assert!(emulator.stats().faults.lost > 0);
    assert_eq!(tree(place.at("out/c")).len(), 300);
}
