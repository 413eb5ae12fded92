//! The Lambda executor, with workers in the emulator.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use freestone_engine::driver::RunError;
use freestone_engine::executor::{Executor, ExecutorError};
use freestone_engine::remote::RefusalKind;
use freestone_engine::storage::Stores;
use freestone_engine::task::{FailureKind, RunAddress};
use freestone_engine::worker::{Cancel, RunContext};
use freestone_executors::{LambdaExecutor, Threads, conformance};
use freestone_lambda::DType;
use freestone_lambda_emulator::Cap;
use freestone_ops::io::{Target, open_in};

use crate::equivalence;
use crate::functions::{LIMIT, Place, scripted_function, stock_function, written};
use crate::runs::{executor, numbers, plan, run, scripted, tree, try_run};
use crate::scripted::Scripted;

#[test]
fn the_client_passes_the_executor_conformance_suite() {
    let place = Place::new();
    let emulator = stock_function(|_| ());
    conformance::check(place.0.path(), |slots| {
        Box::new(executor(&emulator.url(), slots, 1000).batches(1, Duration::from_secs(1)))
    });
    // The same number of requests in one invocation.
    conformance::check(&place.0.path().join("batches"), |slots| {
        Box::new(executor(&emulator.url(), 1, 1000).batches(slots, Duration::from_secs(1)))
    });
}

/// Credentials only sign requests. Neither messages nor the work directory contain them.
#[test]
fn credentials_are_neither_sent_nor_stored() {
    let place = Place::new();
    let emulator = scripted_function(|config| {
        (config.record_bodies, config.require_signatures) = (true, true);
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
    // A failed run keeps its folder.
    let kernel = Scripted { panic_at: Some(100), ..Scripted::default() };
    let error =
        try_run(&[Target::array(&scripted(20, &kernel), place.at("out"))], &place.spec(), &lambda)
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
    let recorded = emulator.recorded_invocations();
    assert!(recorded.len() > 2);
    let bodies = recorded
        .iter()
        .flat_map(|i| [("a request".to_owned(), &i.request), ("an answer".to_owned(), &i.answer)]);
    for (what, bytes) in found.iter().map(|(path, bytes)| (path.clone(), bytes)).chain(bodies) {
        assert!(!String::from_utf8_lossy(bytes).contains("-4711-"), "{what} contains credentials");
    }
}

/// Requests that do not fit into an invocation of a function with a short timeout are sent again.
#[test]
fn a_function_with_a_short_timeout_is_invoked_more_often() {
    let place = Place::new();
    let emulator = scripted_function(|config| {
        (config.deadline, config.timeout) = (Some(Duration::from_secs(3)), LIMIT);
    });
    let lambda = LambdaExecutor::new("freestone", "us-east-1")
        .endpoint(&emulator.url())
        .credentials("key", "secret", None);
    // Eight tasks at a time take twice the deadline.
    let kernel = Scripted { sleep_ms: 300, ..Scripted::default() };
    run(
        &[Target::array(&scripted(150, &kernel), place.at("out"))],
        &place.spec(),
        &lambda.concurrency(1).batches(150, Duration::from_secs(600)),
    );
    assert_eq!(tree(place.at("out/c")).len(), 150);
    assert!(emulator.stats().invocations > 3, "{:?}", emulator.stats());
}

#[test]
fn plans_write_the_same_bytes_through_the_client() {
    let place = Place::new();
    let emulator = stock_function(|_| ());
    let reports =
        equivalence::check_same_bytes(&executor(&emulator.url(), 4, 200), &place.at("there"));
    let invoked: Vec<_> = reports.iter().map(|r| r.invoked.unwrap()).collect();
    // Reports do not count probes.
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
        "invocations hold several requests: {invocations} for {tasks} tasks"
    );
}

#[test]
fn refused_runs_change_nothing() {
    let place = Place::new();
    let emulator = stock_function(|config| config.memory_mib = 128);
    let spec = place.spec_with(|s| s.allowed_mem = Some(400_000_000));
    let array = freestone_ops::arange(0.0, 1e7, 1.0, DType::Float64, 10_000_000);
    let error = try_run(
        &[Target::array(&array, place.at("out"))],
        &spec,
        &executor(&emulator.url(), 2, 1000),
    )
    .unwrap_err();
    let RunError::Executor(ExecutorError::Refused { refusal, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(refusal.kind, RefusalKind::ExceedsMemory);
    let error = try_run(
        &[Target::array(&scripted(3, &Scripted::default()), place.at("out"))],
        &place.spec(),
        &executor(&emulator.url(), 2, 1000),
    )
    .unwrap_err();
    let RunError::Executor(ExecutorError::Refused { refusal, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(refusal.kind, RefusalKind::UnknownKernel);
    let other = LambdaExecutor::new("other", "r")
        .endpoint(&emulator.url())
        .credentials("key", "secret", None);
    let error = try_run(&[Target::array(&array, place.at("out"))], &spec, &other).unwrap_err();
    assert!(error.to_string().contains("deploy the function"), "{error}");
    assert!(!fs::exists(place.at("out")).unwrap());
}

/// Environments have other directories than this machine. Missing chunks would be read as fill
/// values, and results would be lost.
#[test]
fn locations_that_the_function_cannot_reach_are_refused() {
    let place = Place::new();
    let emulator = stock_function(|_| ());
    let (spec, executor) = (place.spec(), executor(&emulator.url(), 2, 1000));
    run(&[Target::array(&numbers(3), place.at("in"))], &spec, &Threads::new(2));
    let input = open_in(&Stores::default().open(&place.at("in")).unwrap(), "").unwrap();
    let plan = Arc::new(plan(&[Target::array(&input.rechunk([15]), place.at("out"))], &spec));
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
        [("has changed since planning", None), ("no Zarr array", Some(place.at("in/zarr.json")))]
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

/// A kernel exceeds its projection, but not the memory of the function. The run reports the kernel.
#[test]
fn memory_above_the_projection_is_reported() {
    for allocate_mib in [0, 300] {
        let place = Place::new();
        let emulator = scripted_function(|config| config.memory_mib = 1024);
        let kernel = Scripted { allocate_mib, ..Scripted::default() };
        let targets = [Target::array(&scripted(1, &kernel), place.at("out"))];
        let report = run(&targets, &place.spec(), &executor(&emulator.url(), 1, 1000));
        let excess = report.memory_excess.as_ref();
        assert_eq!(excess.is_some(), allocate_mib > 0, "{report}");
        assert!(excess.is_none_or(|e| e.measured_bytes > 300 << 20), "{report}");
        assert!(excess.is_none_or(|e| e.kernel.is_some()), "{report}");
    }
}

/// A kernel exceeds its projection, and its environment is killed. The run fails and names the
/// stage.
#[test]
fn an_out_of_memory_kill_is_reported_as_such() {
    let place = Place::new();
    let emulator =
        scripted_function(|config| (config.memory_mib, config.cap) = (192, Cap::Required));
    let kernel = Scripted { allocate_mib: 400, ..Scripted::default() };
    let error = try_run(
        &[Target::array(&scripted(12, &kernel), place.at("out"))],
        &place.spec(),
        &executor(&emulator.url(), 3, 1000),
    )
    .unwrap_err();
    let RunError::Task { failure, note, .. } = error.cause() else { panic!("{error}") };
    assert_eq!(failure.kind, FailureKind::OutOfMemory, "{error}");
    assert!(failure.stage.starts_with("scripted") && note.contains("two workers"), "{error}");
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
