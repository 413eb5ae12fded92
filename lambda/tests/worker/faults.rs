//! Runs under injected faults, with killed clients, cancellation and rate limits.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freestone_engine::driver::record::{StoredRun, folders};
use freestone_engine::driver::{self, Run, RunError};
use freestone_engine::executor::Invocations;
use freestone_engine::plan::lower::{kernels_of, lower, stores_of};
use freestone_engine::publish::PlainZarr;
use freestone_engine::storage::Stores;
use freestone_engine::task::RunAddress;
use freestone_engine::worker::Cancel;
use freestone_executors::Threads;
use freestone_lambda_emulator::{Emulator, Faults, Rate, StoreFaults, StoreProxy};
use freestone_ops::io::{Target, outputs};

use crate::equivalence;
use crate::functions::{
    LIMIT, Place, aws_variables, eventually, is_idle, recorded_requests, scripted_function,
    stock_function, test_client,
};
use crate::runs::{executor, kernels, run, scripted, tree};
use crate::scripted::{Scripted, begun};

/// The number of tasks of runs with injected faults.
const N_TASKS: u64 = 2000;

/// Starts a function that injects faults: 5 % kills, 5 % lost answers, 10 % throttling, 2 %
/// duplicates, and 2 % stragglers.
///
/// The seed is such that the first ten invocations have every kind of fault.
fn faulty_function(variables: Vec<(String, String)>) -> Emulator {
    scripted_function(|config| {
        (config.concurrency, config.variables, config.record_bodies) = (16, variables, true);
        config.faults = Faults {
            seed: 1065,
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

/// Asserts that faults of every kind happened and that few tasks were computed again, by their
/// log.
fn assert_survived(emulator: &Emulator, invocations: &Invocations, log: &str) {
    // The duplicate of an invocation may end after the run.
    eventually(|| emulator.stats().faults.duplicated > 0);
    let stats = emulator.stats();
    let requests = recorded_requests(emulator, 0);
    let backups: u64 = requests.iter().filter(|r| r.backup_of.is_some()).map(|r| r.count).sum();
    let computed = begun(log) as u64;
    println!("{computed} tasks computed, of which {backups} may be backups\n{stats:?}");
    // The number of backups depends on the load of the machine.
    assert!(computed <= N_TASKS * 5 / 4 + backups, "{computed} with {backups} of backups");
    let faults = &stats.faults;
    assert!(
        faults.throttled > 0 && faults.killed > 0 && faults.lost > 0 && faults.slowed > 0,
        "{stats:?}"
    );
    assert!(
        invocations.throttled >= faults.throttled / 2
            && invocations.recovered > 0
            && invocations.crashes > 0,
        "{invocations:?}"
    );
}

/// Kills, lost answers, throttling and stragglers change no result, and few tasks are computed
/// again.
#[test]
fn a_run_survives_faults_of_the_function() {
    let place = Place::new();
    let log = place.at("log");
    let kernel = Scripted { sleep_ms: 4, log: Some(log.clone()), ..Scripted::default() };
    let emulator = faulty_function(Vec::new());
    // Short invocations, so that many can fail.
    let report = run(
        &[Target::array(&scripted(N_TASKS, &kernel), place.at("out"))],
        &place.spec(),
        &executor(&emulator.url(), 16, 30).batches(4, Duration::from_millis(30)),
    );
    run(
        &[Target::array(&scripted(N_TASKS, &Scripted::default()), place.at("expect"))],
        &place.spec(),
        &Threads::new(2),
    );
    // Metadata differs, because it includes the kernel's parameters.
    let (found, expected) = (tree(place.at("out/c")), tree(place.at("expect/c")));
    assert!(found.len() as u64 == N_TASKS && found == expected);
    assert_survived(&emulator, &report.invoked.unwrap(), &log);
}

/// Also fails 2 % of requests to the object store, which has the inputs, the work directory, and
/// the repository to which the run commits.
#[test]
#[ignore = "needs an S3 server: .ci/run lambda"]
fn lambda_a_run_survives_faults_of_function_and_storage() {
    let store = std::env::var("AWS_ENDPOINT").unwrap();
    let faults =
        StoreFaults { seed: 2, slow_down: 0.008, fail: 0.006, lose: 0.006, lose_conditional: 1.0 };
    let proxy =
        StoreProxy::start(store.trim_start_matches("http://").parse().unwrap(), faults).unwrap();
    let place = Place::new();
    let log = place.at("log");
    let mut variables = aws_variables();
    variables.retain(|(name, _)| name != "AWS_ENDPOINT");
    variables.push(("AWS_ENDPOINT".into(), proxy.url()));
    let emulator = faulty_function(variables);
    let root =
        format!("{}/faults-{}", std::env::var("FREESTONE_STORE").unwrap(), std::process::id());
    // The client has its own environment, in which the proxy is the store.
    let client = test_client()
        .args(["commit", &emulator.url(), &root, &log, &N_TASKS.to_string()])
        .env("AWS_ENDPOINT", proxy.url())
        .current_dir(place.0.path())
        .output()
        .unwrap();
    let stats = proxy.stats();
    println!("{stats:?}");
    assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
    let [throttled, recovered, crashes] = serde_json::from_slice(&client.stdout).unwrap();
    let invocations = Invocations { throttled, recovered, crashes, ..Invocations::default() };
    assert_survived(&emulator, &invocations, &log);
    assert!(stats.lost_conditional > 0, "{stats:?}");
    // The rates are those of thousands of requests.
    let requests = stats.requests as f64;
    for (injected, rate) in [
        (stats.slowed_down, faults.slow_down),
        (stats.failed, faults.fail),
        (stats.lost, faults.lose),
    ] {
        assert!(injected as f64 >= 0.5 * rate * requests, "{stats:?}");
    }
}

/// A run makes one commit from the receipts of its workers, some of which are killed or lose their
/// answers.
#[test]
fn a_run_with_faults_is_one_commit() {
    let place = Place::new();
    let emulator = stock_function(|config| {
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
    equivalence::check_one_commit(&executor(&emulator.url(), 4, 50), &place.at("there"));
    println!("{:?}", emulator.stats().faults);
}

/// After a cancelled run, the worker of a long invocation does not start all requested tasks.
#[test]
fn workers_of_a_cancelled_run_stop() {
    let place = Place::new();
    let emulator = scripted_function(|config| {
        (config.concurrency, config.record_bodies, config.timeout) =
            (1, true, Duration::from_secs(60))
    });
    let kernel = Scripted { sleep_ms: 500, log: Some(place.at("log")), ..Scripted::default() };
    let begun = || begun(place.at("log")) as u64;
    let executor = executor(&emulator.url(), 1, 60_000).batches(64, Duration::from_secs(60));
    let spec = place.spec();
    let lowered =
        outputs(&[Target::array(&scripted(2000, &kernel), place.at("out"))], &Stores::default())
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
            eventually(|| begun() >= 8);
            cancel.cancel();
        });
        driver::run(&plan, &run).unwrap_err()
    });
    assert!(matches!(error.cause(), RunError::Cancelled), "{error}");
    eventually(|| is_idle(&emulator));
    let requested: u64 = recorded_requests(&emulator, 0).iter().map(|r| r.count).sum();
    assert!(begun() < requested, "{} of {requested} tasks have begun", begun());
}

/// A run whose client was killed is resumed. Tasks that workers have finished are not computed
/// again, although some answers were lost.
#[test]
fn a_run_of_a_killed_client_is_resumed() {
    const N: usize = 1000;
    let place = Place::new();
    let log = place.at("log");
    let emulator = scripted_function(|config| {
        (config.concurrency, config.timeout, config.record_bodies) = (8, LIMIT, true);
        config.faults = Faults { seed: 3, lose: 0.2, ..Faults::default() };
    });
    // Tasks from the 200th on wait for the gate, so that the client cannot finish.
    let root = place.0.path().display().to_string();
    let mut client = test_client()
        .args(["gated", &emulator.url(), &root, &N.to_string(), "200"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while begun(&log) < 150 {
        assert!(
            start.elapsed() < LIMIT && client.try_wait().unwrap().is_none(),
            "the client has ended or makes no progress"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    client.kill().unwrap();
    client.wait().unwrap();
    fs::write(place.at("gate"), "").unwrap();
    eventually(|| is_idle(&emulator));
    let written = tree(place.at("out/c")).len();
    assert!(written >= 150, "{written} of {N} chunks are written");
    let stores = Stores::default();
    let spec = place.spec();
    let [folder] = &folders(&stores, &spec.work_dir).unwrap()[..] else {
        panic!("expected one run")
    };
    let address = RunAddress { work_dir: spec.work_dir.clone(), folder: folder.clone() };
    let stored = StoredRun::open(&stores, address).unwrap();
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
    assert_eq!(report.finished_before, written as u64);
    eventually(|| is_idle(&emulator));
    // The driver may start backups of slow requests, such as those that waited for the gate.
    let requests = recorded_requests(&emulator, 0);
    let backups: u64 = requests.iter().filter(|r| r.backup_of.is_some()).map(|r| r.count).sum();
    assert!(begun(&log) as u64 <= N as u64 + backups, "{} tasks have begun", begun(&log));
    assert!(emulator.stats().faults.lost > 0);
    assert_eq!(tree(place.at("out/c")).len(), N);
}

/// The account's rate limit, or that of new environments, is far below the function's throughput.
/// The number of refused invocations follows from the client's pacing (`window`).
#[test]
fn invocations_adapt_to_a_low_rate_limit() {
    const N: u64 = 100;
    let rate = |burst, per_second| Some(Rate { burst, per_second });
    for (requests, scaling) in [(rate(2, 10.0), None), (None, rate(2, 2.0))] {
        let place = Place::new();
        let emulator =
            scripted_function(|config| (config.requests, config.scaling) = (requests, scaling));
        // Short invocations, all of them sent at once.
        let lambda = executor(&emulator.url(), 8, 1000).batches(64, Duration::from_millis(1));
        let kernel = Scripted { sleep_ms: 4, ..Scripted::default() };
        let report =
            run(&[Target::array(&scripted(N, &kernel), place.at("out"))], &place.spec(), &lambda);
        run(
            &[Target::array(&scripted(N, &kernel), place.at("expect"))],
            &place.spec(),
            &Threads::new(8),
        );
        let found = tree(place.at("out/c"));
        assert!(found.len() as u64 == N && found == tree(place.at("expect/c")));
        let (requested, refused) =
            (emulator.stats().requested as f64, emulator.stats().throttled as f64);
        println!("{refused} of {requested} were refused, {:.1} s", report.wall.as_secs_f64());
        // Refusals in the first window, while the rate is found (`log2` of 80), and one in eight
        // afterwards. Each may coincide with another one in flight.
        assert!(
            refused > 0.0 && refused <= 2.0 * (8.0 + 6.4 + requested * 1.1f64.log2()),
            "{refused} of {requested}"
        );
        assert_eq!(report.invoked.unwrap().throttled as f64, refused);
    }
}
