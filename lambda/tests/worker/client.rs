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
use freestone_engine::publish::PlainZarr;
use freestone_engine::remote::RefusalKind;
use freestone_engine::spec::Spec;
use freestone_engine::storage::Stores;
use freestone_engine::task::{FailureKind, RunAddress};
use freestone_engine::worker::{Cancel, RunContext};
use freestone_executors::{LambdaExecutor, Threads, conformance};
use freestone_lambda::DType;
use freestone_lambda_emulator::{Cap, Emulator, Faults, Rate, StoreFaults, StoreProxy};
use freestone_ops::io::{Target, open_in, outputs};
use freestone_sessions::{Format, MAIN, Repository};
use freestone_worker::{Call, Invocation};

use crate::anywhere;
use crate::support::{Odd, Place, kernels, odd, own, plan, run, stock, through, tree, written};

/// So many environments, and invocations that are not longer than so.
pub(crate) fn executor(url: &str, concurrency: usize, batch_ms: u64) -> LambdaExecutor {
    let executor = LambdaExecutor::new("freestone", "us-east-1")
        .endpoint(url)
        .credentials("key", "secret", None);
    executor
        .concurrency(concurrency)
        .batches(8, Duration::from_millis(batch_ms))
        .function_timeout(Duration::from_secs(30))
}

/// Plans and runs, whatever comes of it.
fn tried(targets: &[Target], spec: &Spec, executor: &dyn Executor) -> Result<RunReport, RunError> {
    let lowered = outputs(targets, &Stores::default()).unwrap();
    let plan = Arc::new(lower(&lowered, spec).unwrap());
    let stores = stores_of(&lowered).unwrap();
    let session = PlainZarr::new(stores.clone());
    let kernels = kernels_of(&lowered).unwrap();
    driver::run(
        &plan,
        &Run {
            spec,
            stores: &stores,
            kernels: &kernels,
            executor,
            publisher: &session,
            observers: &[],
            cancel: Cancel::default(),
        },
    )
}

#[test]
fn the_suite_for_executors_passes_through_the_client() {
    let place = Place::new();
    let emulator = stock(|_| ());
    conformance::check(place.0.path(), |slots| {
        Box::new(executor(&emulator.url(), slots, 1000).batches(1, Duration::from_secs(1)))
    });
    // As many requests in one invocation.
    conformance::check(&place.0.path().join("batches"), |slots| {
        Box::new(executor(&emulator.url(), 1, 1000).batches(slots, Duration::from_secs(1)))
    });
}

/// Credentials sign requests: they are in nothing that travels, nor in what a run leaves in its
/// work directory.
#[test]
fn nobody_is_told_of_credentials() {
    let place = Place::new();
    let emulator = own(|config| {
        (config.keep_bodies, config.signed) = (true, true);
        let variables = [
            ("AWS_ACCESS_KEY_ID", "id-4711-worker"),
            ("AWS_SECRET_ACCESS_KEY", "key-4711-worker"),
            ("AWS_SESSION_TOKEN", "token-4711-worker"),
        ];
        config.variables =
            variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    });
    let lambda = executor(&emulator.url(), 2, 100).credentials(
        "id-4711-client",
        "key-4711-client",
        Some("token-4711-client"),
    );
    // It fails in the middle, so that its folder stays.
    let kernel = Odd { panic_at: Some(100), ..Odd::default() };
    let error =
        tried(&[Target::array(&odd(20, &kernel), &place.at("out"))], &place.spec(), &lambda)
            .unwrap_err();
    assert!(matches!(error, RunError::Stopped { .. }), "{error}");
    let found = tree(place.at("work"));
    for name in ["run.json", "plan.json", ".jsonl", "/answers/"] {
        assert!(
            found.keys().any(|path| path.contains(name)),
            "{name} is not in {:?}",
            found.keys()
        );
    }
    let kept = emulator.kept();
    assert!(kept.len() > 2);
    let bodies = kept
        .iter()
        .flat_map(|k| [("a request".to_owned(), &k.request), ("an answer".to_owned(), &k.answer)]);
    for (what, bytes) in found.iter().map(|(path, bytes)| (path.clone(), bytes)).chain(bodies) {
        assert!(!String::from_utf8_lossy(bytes).contains("-4711-"), "{what} tells of credentials");
    }
}

/// What does not fit into an invocation of a function with little time is asked for again.
#[test]
fn a_function_with_little_time_is_invoked_more_often() {
    let place = Place::new();
    let emulator = own(|config| config.timeout = Duration::from_secs(3));
    let lambda = LambdaExecutor::new("freestone", "us-east-1")
        .endpoint(&emulator.url())
        .credentials("key", "secret", None);
    let kernel = Odd { sleep_ms: 300, ..Odd::default() };
    // Eight at once take twice what there is.
    run(
        &[Target::array(&odd(150, &kernel), &place.at("out"))],
        &place.spec(),
        &lambda.concurrency(1).batches(150, Duration::from_secs(600)),
    );
    assert_eq!(tree(place.at("out/c")).len(), 150);
    assert!(emulator.stats().invocations > 3, "{:?}", emulator.stats());
}

#[test]
fn plans_have_the_same_bytes_through_the_client() {
    let place = Place::new();
    let emulator = stock(|_| ());
    let reports =
        anywhere::plans_have_the_same_bytes(&executor(&emulator.url(), 4, 200), &place.at("there"));
    let invoked: Vec<_> = reports.iter().map(|r| r.invoked.unwrap()).collect();
    // The probes are not the runs'.
    let invocations: u64 = invoked.iter().map(|i| i.invocations).sum();
    assert_eq!(invocations + reports.len() as u64, emulator.stats().invocations);
    for (report, invoked) in reports.iter().zip(&invoked) {
        assert!(
            invoked.gb_seconds() > 0.0 && invoked.most_at_once <= 4 && invoked.crashes == 0,
            "{report}"
        );
        assert!(report.worker_peak_bytes.is_some());
    }
    let tasks: u64 = reports.iter().flat_map(|r| &r.stages).map(|s| s.tasks).sum();
    assert!(
        invocations < tasks,
        "several requests go into an invocation: {invocations} for {tasks}"
    );
}

#[test]
fn what_the_function_cannot_run_ends_before_anything_is_replaced() {
    let place = Place::new();
    let emulator = stock(|config| config.memory_mib = 128);
    let spec = place.spec_with(|s| s.allowed_mem = Some(400_000_000));
    let numbers = freestone_ops::arange(0.0, 1e7, 1.0, DType::Float64, 10_000_000);
    let error = tried(
        &[Target::array(&numbers, &place.at("out"))],
        &spec,
        &executor(&emulator.url(), 2, 1000),
    )
    .unwrap_err();
    let RunError::Executor(ExecutorError::Refused { refusal, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(refusal.kind, RefusalKind::ExceedsMemory);
    let error = tried(
        &[Target::array(&odd(3, &Odd::default()), &place.at("out"))],
        &place.spec(),
        &executor(&emulator.url(), 2, 1000),
    )
    .unwrap_err();
    assert!(
        matches!(&error, RunError::Executor(ExecutorError::Refused { refusal, .. }) if refusal.kind == RefusalKind::UnknownKernel),
        "{error}"
    );
    let other = LambdaExecutor::new("other", "r")
        .endpoint(&emulator.url())
        .credentials("key", "secret", None);
    let error = tried(&[Target::array(&numbers, &place.at("out"))], &spec, &other).unwrap_err();
    assert!(error.to_string().contains("deploy it"), "{error}");
    assert!(!fs::exists(place.at("out")).unwrap());
}

/// Environments see other directories than this machine: chunks that are not there would be fill
/// values, and results would be lost.
#[test]
fn places_that_the_function_does_not_see_are_refused() {
    let place = Place::new();
    let emulator = stock(|_| ());
    let (spec, executor) = (place.spec(), executor(&emulator.url(), 2, 1000));
    let numbers = freestone_ops::arange(0.0, 30.0, 1.0, DType::Float64, 10);
    run(&[Target::array(&numbers, &place.at("in"))], &spec, &Threads::new(2));
    let input = open_in(&Stores::default().open(&place.at("in")).unwrap(), "").unwrap();
    let plan = Arc::new(plan(&[Target::array(&input.rechunk(&[15]), &place.at("out"))], &spec));
    let context = |address: RunAddress| RunContext {
        plan: Arc::clone(&plan),
        address,
        stores: Stores::default(),
        kernels: Arc::default(),
        cancel: Cancel::default(),
    };
    let address = written(&plan, &spec);
    executor.check(&context(address.clone())).unwrap();

    let far = RunAddress { work_dir: "s3://bucket/work".into(), ..address.clone() };
    let error = executor.check(&context(far)).unwrap_err();
    assert!(
        matches!(&error, ExecutorError::Local { place: named, .. } if *named == place.at("out")),
        "{error}"
    );

    let mut document: serde_json::Value =
        serde_json::from_slice(&fs::read(place.at("in/zarr.json")).unwrap()).unwrap();
    document["fill_value"] = 7.0.into();
    fs::write(place.at("in/zarr.json"), document.to_string()).unwrap();
    for (says, change) in
        [("is not what it was", None), ("no Zarr array", Some(place.at("in/zarr.json")))]
    {
        change.map(fs::remove_file).transpose().unwrap();
        let error = executor.check(&context(address.clone())).unwrap_err();
        let ExecutorError::Refused { refusal, .. } = &error else { panic!("{error}") };
        assert!(
            refusal.kind == RefusalKind::Unreachable && refusal.message.contains(says),
            "{error}"
        );
    }
}

/// A kernel takes what no projection knows of, and its environment is killed for it: the run ends,
/// and says so of the stage.
#[test]
fn an_environment_without_memory_is_told_from_one_that_was_lost() {
    let place = Place::new();
    let emulator = own(|config| (config.memory_mib, config.cap) = (192, Cap::Always));
    let hog = Odd { hog_mib: 400, ..Odd::default() };
    let error = tried(
        &[Target::array(&odd(12, &hog), &place.at("out"))],
        &place.spec(),
        &executor(&emulator.url(), 3, 1000),
    )
    .unwrap_err();
    let RunError::Task { failure, note, .. } = error.cause() else { panic!("{error}") };
    assert_eq!(failure.kind, FailureKind::OutOfMemory, "{error}");
    assert!(failure.stage.starts_with("odd") && note.contains("two workers"), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(
            "the environment of 192 MB was killed because it is out of memory (hint: give the \
            function more memory) ("
        ) && !text.contains("last failure"),
        "{text}"
    );
    assert!(emulator.stats().oom_kills >= 2);
}

/// 5 % kills, 5 % lost answers, 10 % throttling, 2 % that run twice, 2 % stragglers.
fn chaos(concurrency: usize, variables: Vec<(String, String)>) -> Emulator {
    own(|config| {
        (config.concurrency, config.variables) = (concurrency, variables);
        config.faults = Faults {
            seed: 11,
            throttle: 0.1,
            kill: 0.05,
            kill_after: Duration::ZERO..Duration::from_millis(40),
            lose: 0.05,
            duplicate: 0.02,
            slow: 0.02,
            slow_factor: 20,
        };
    })
}

/// So many tasks were computed, by their log, for each that there is; each kind of fault has come
/// at least half as often as asked.
fn assert_survived(emulator: &Emulator, report: &RunReport, log: &str, n: u64, since: Instant) {
    let stats = emulator.stats();
    let computed = fs::read(log).unwrap().iter().filter(|b| **b == b'+').count() as f64 / n as f64;
    println!(
        "{:.1} s, {computed:.3} × computed\n{report}\n{:?} of {} invocations",
        since.elapsed().as_secs_f64(),
        stats.faults,
        stats.asked
    );
    assert!(computed <= 1.25, "{computed}");
    let asked = stats.asked as f64;
    let fired = &stats.faults;
    let shares = [
        (fired.throttled, 0.1),
        (fired.killed, 0.05),
        (fired.lost, 0.05),
        (fired.duplicated, 0.02),
        (fired.slowed, 0.02),
    ];
    for (fired, share) in shares {
        assert!(fired as f64 >= 0.5 * share * asked, "{:?} of {asked}", stats.faults);
    }
    let invoked = report.invoked.unwrap();
    assert!(
        invoked.throttled >= stats.faults.throttled / 2
            && invoked.recovered > 0
            && invoked.crashes > 0,
        "{invoked:?}"
    );
}

/// Kills, lost answers, throttling, and stragglers: the result is right, and little was computed
/// twice.
#[test]
fn a_run_survives_what_goes_wrong() {
    let place = Place::new();
    const N: u64 = 2000;
    let log = place.at("log");
    let kernel = Odd { sleep_ms: 4, log: Some(log.clone()), ..Odd::default() };
    let emulator = chaos(16, Vec::new());
    let start = Instant::now();
    // Short invocations, so that there are enough to go wrong.
    let report = run(
        &[Target::array(&odd(N, &kernel), &place.at("out"))],
        &place.spec(),
        &executor(&emulator.url(), 16, 30).batches(4, Duration::from_millis(30)),
    );
    run(
        &[Target::array(&odd(N, &Odd::default()), &place.at("expect"))],
        &place.spec(),
        &Threads::new(2),
    );
    let chunks = |name: &str| {
        let mut files = tree(place.at(name));
        // It has the kernel's parameters in no place, but is said of another plan.
        files.retain(|path, _| path.starts_with("c/"));
        files
    };
    assert!(chunks("out").len() as u64 == N && chunks("out") == chunks("expect"));
    assert_survived(&emulator, &report, &log, N, start);
}

/// The same, and 2 % of what is asked of the object store goes wrong: there are inputs, work
/// directory, and the repository that the run commits to.
#[test]
#[ignore = "needs an S3 server: .ci/run lambda"]
fn lambda_a_run_survives_what_goes_wrong_with_storage_too() {
    let store = std::env::var("AWS_ENDPOINT").unwrap();
    let faults =
        StoreFaults { seed: 2, slow_down: 0.008, fail: 0.006, lose: 0.006, lose_conditional: 1.0 };
    let proxy =
        StoreProxy::start(store.trim_start_matches("http://").parse().unwrap(), faults).unwrap();
    // Another process, which finds the proxy where others find the store.
    let client = Command::new(std::env::current_exe().unwrap())
        .args(["client::the_client_of_a_faulty_store", "--exact", "--ignored", "--nocapture"])
        .env("AWS_ENDPOINT", proxy.url())
        .env("FREESTONE_TEST_FAULTY", "yes")
        .output()
        .unwrap();
    let stats = proxy.stats();
    // Its count of tests is none of this run's.
    String::from_utf8_lossy(&client.stdout)
        .lines()
        .filter(|l| !l.starts_with("test "))
        .for_each(|line| println!("{line}"));
    println!("{stats:?}");
    assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
    assert!(stats.lost_conditional > 0, "{stats:?}");
    let asked = stats.requests as f64;
    for (fired, share) in [
        (stats.slowed_down, faults.slow_down),
        (stats.failed, faults.fail),
        (stats.lost, faults.lose),
    ] {
        assert!(fired as f64 >= 0.5 * share * asked, "{stats:?}");
    }
}

/// Not a test: what the one above runs with a proxy in place of its object store.
#[test]
#[ignore = "not a test: started by another one"]
fn the_client_of_a_faulty_store() {
    assert!(std::env::var_os("FREESTONE_TEST_FAULTY").is_some(), "it is started by another test");
    const N: u64 = 2000;
    let place = Place::new();
    let root = format!("{}/chaos-{}", std::env::var("FREESTONE_S3").unwrap(), std::process::id());
    let spec = place.spec_with(|s| s.work_dir = Some(format!("{root}/work")));
    let numbers = freestone_ops::arange(0.0, 10.0 * N as f64, 1.0, DType::Float64, 10);
    run(&[Target::array(&numbers, &format!("{root}/numbers"))], &spec, &Threads::new(16));
    let numbers =
        open_in(&Stores::default().open(&format!("{root}/numbers")).unwrap(), "").unwrap();
    let log = place.at("log");
    let kernel = Odd { sleep_ms: 4, log: Some(log.clone()), ..Odd::default() };
    let emulator =
        chaos(16, std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect());
    let lambda = executor(&emulator.url(), 16, 30).batches(4, Duration::from_millis(30));
    let repository =
        Repository::open_or_create(&format!("{root}/repository"), Format::default()).unwrap();
    let start = Instant::now();
    // It asserts that there is one commit of it.
    let (snapshot, report) = anywhere::committed(
        &repository,
        &[("numbers", through(&kernel, &numbers))],
        &spec,
        &lambda,
    );
    let mut found = repository.readonly_session(&MAIN.into()).unwrap().array("numbers").unwrap();
    let expect: Vec<u8> = (0..10 * N).flat_map(|i| (i as f64).to_le_bytes()).collect();
    assert!(found.read().unwrap() == expect);
    println!("{} tasks in one commit, {}", N, snapshot.id);
    assert_survived(&emulator, &report, &log, N, start);
}

/// One commit for a whole run, with receipts from the workers, some of whom are killed or lose
/// their answers.
#[test]
fn a_run_is_one_commit() {
    let place = Place::new();
    let emulator = stock(|config| {
        config.concurrency = 4;
        config.faults = Faults {
            seed: 5,
            throttle: 0.1,
            kill: 0.05,
            kill_after: Duration::ZERO..Duration::from_millis(20),
            lose: 0.1,
            ..Faults::default()
        };
    });
    anywhere::a_run_is_one_commit(&executor(&emulator.url(), 4, 50), &place.at("there"));
    println!("{:?}", emulator.stats().faults);
}

/// Not a test: the client that the test below kills.
#[test]
#[ignore = "not a test: started by another one"]
fn the_client_itself() {
    let setup = std::env::var("FREESTONE_TEST_CLIENT").expect("it is started by another test");
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

/// The run is cancelled while a long invocation is under way: its worker does not begin all that it
/// was asked for.
#[test]
fn what_nobody_waits_for_is_not_begun() {
    let place = Place::new();
    let emulator = own(|config| {
        (config.concurrency, config.keep_bodies, config.timeout) =
            (1, true, Duration::from_secs(60))
    });
    let kernel = Odd { sleep_ms: 500, log: Some(place.at("log")), ..Odd::default() };
    let begun = || {
        fs::read(place.at("log")).unwrap_or_default().iter().filter(|b| **b == b'+').count() as u64
    };
    let executor = executor(&emulator.url(), 1, 60_000).batches(64, Duration::from_secs(60));
    let spec = place.spec();
    let lowered =
        outputs(&[Target::array(&odd(2000, &kernel), &place.at("out"))], &Stores::default())
            .unwrap();
    let plan = Arc::new(lower(&lowered, &spec).unwrap());
    let (stores, kernels, cancel) =
        (stores_of(&lowered).unwrap(), kernels_of(&lowered).unwrap(), Cancel::default());
    let session = PlainZarr::new(stores.clone());
    let run = Run {
        spec: &spec,
        stores: &stores,
        kernels: &kernels,
        executor: &executor,
        publisher: &session,
        observers: &[],
        cancel: cancel.clone(),
    };
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

/// The client is killed half-way, with answers lost before: what the workers have finished is not
/// computed again.
#[test]
fn a_client_that_was_killed_goes_on() {
    let place = Place::new();
    let emulator = own(|config| {
        config.concurrency = 8;
        config.faults = Faults { seed: 3, lose: 0.2, ..Faults::default() };
    });
    let setup = format!("{} {}", emulator.url(), place.0.path().display());
    let mut client = Command::new(std::env::current_exe().unwrap())
        .args(["client::the_client_itself", "--exact", "--ignored", "--nocapture"])
        .env("FREESTONE_TEST_CLIENT", setup)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun =
        |log: &str| fs::read(log).unwrap_or_default().iter().filter(|b| **b == b'+').count();
    let start = Instant::now();
    while begun(&place.at("log")) < 150 {
        assert!(
            start.elapsed() < Duration::from_secs(60) && client.try_wait().unwrap().is_none(),
            "the client does nothing"
        );
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
    let [folder] = &folders(&stores, &spec.work_dir).unwrap()[..] else {
        panic!("there is one run")
    };
    let stored = StoredRun::open(
        &stores,
        RunAddress { work_dir: spec.work_dir.clone(), folder: folder.clone() },
    )
    .unwrap();
    let session = PlainZarr::of_ticket(stores.clone(), &stored.record.session).unwrap();
    let executor = executor(&emulator.url(), 8, 100);
    let kernels = kernels();
    let run = Run {
        spec: &spec,
        stores: &stores,
        kernels: &kernels,
        executor: &executor,
        publisher: &session,
        observers: &[],
        cancel: Cancel::default(),
    };
    let report = driver::resume(&stored, &run, false).unwrap();
    println!(
        "{before} of 300 were begun, {} known when it went on; {} answers lost",
        report.finished_before,
        emulator.stats().faults.lost
    );
    assert_eq!(report.finished_before, before as u64);
    while !is_idle(&emulator) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(begun(&place.at("log")), 300, "each task is computed once");
    assert!(emulator.stats().faults.lost > 0);
    assert_eq!(tree(place.at("out/c")).len(), 300);
}

/// The account's rate is far below what the function could do, as is how fast environments are
/// added: what is refused is a share that follows from how the client paces itself (`window`), and
/// the run ends with the right result.
#[test]
fn a_low_rate_of_invocations_is_kept_to() {
    const N: u64 = 100;
    let rate = |burst, per_second| Some(Rate { burst, per_second });
    for (requests, scaling) in [(rate(8, 20.0), None), (None, rate(2, 2.0))] {
        let place = Place::new();
        let emulator = own(|config| (config.requests, config.scaling) = (requests, scaling));
        // A few requests in an invocation, and all of them out at once.
        let lambda = executor(&emulator.url(), 8, 1000).batches(64, Duration::from_millis(1));
        let kernel = Odd { sleep_ms: 4, ..Odd::default() };
        let report =
            run(&[Target::array(&odd(N, &kernel), &place.at("out"))], &place.spec(), &lambda);
        run(
            &[Target::array(&odd(N, &kernel), &place.at("expect"))],
            &place.spec(),
            &Threads::new(8),
        );
        let found = tree(place.at("out/c"));
        assert!(found.len() as u64 == N && found == tree(place.at("expect/c")));
        let (asked, refused) = (emulator.stats().asked as f64, emulator.stats().throttled as f64);
        println!("{refused} of {asked} were refused, {:.1} s", report.wall.as_secs_f64());
        // Of the first window; by what finds out the rate, `log2` of 80; and one in eight. Each may
        // have taken another one with it that was under way.
        assert!(
            refused > 0.0 && refused <= 2.0 * (8.0 + 6.4 + asked * 1.1f64.log2()),
            "{refused} of {asked}"
        );
        assert_eq!(report.invoked.unwrap().throttled as f64, refused);
    }
}
