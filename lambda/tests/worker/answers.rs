//! The worker's answers: probes, refusals, records, and failures.

use std::fs;
use std::sync::Arc;

use freestone_engine::plan::{ENGINE, FinalizedPlan};
use freestone_engine::remote::{RefusalKind, read_record, read_records};
use freestone_engine::storage::{MemoryStore, Store, Stores};
use freestone_engine::task::{FailureKind, RunAddress, TaskRequest};
use freestone_executors::Threads;
use freestone_lambda::DType;
use freestone_lambda_emulator::{Emulator, Faults};
use freestone_ops::io::Target;
use freestone_ops::{Array, random_normal};
use freestone_worker::{Call, Invocation, PROTOCOL, slots};
use serde_json::Value;

use crate::functions::{
    BOOTSTRAP, CLIENT, EmulatorExecutor, Place, ask, assert_complete, done, ready,
    recorded_requests, refused, request, scripted_function, stock_function, written,
};
use crate::runs::{numbers, plan, run, scripted, tree};
use crate::scripted::{Scripted, begun};

#[test]
fn a_probe_reports_slots_and_caches_the_plan() {
    let place = Place::new();
    let spec = place.spec();
    let emulator = stock_function(|c| c.memory_mib = 128);
    let array = random_normal([1000, 1000], 0.0, 1.0, 1, DType::Float64, [500, 1000]);
    let plan = plan(&[Target::array(&array.mean(0), place.at("mean"))], &spec);
    let address = written(&plan, &spec);
    let (environment, found) = ready(ask(&emulator, &address, Call::Probe));
    assert_eq!(found, slots(&plan, 128 << 20, 8).unwrap());
    assert!(found.iter().any(|n| *n > 1), "{found:?}");
    assert_eq!(
        (environment.invocations, environment.had_plan, environment.memory_bytes),
        (1, false, 128 << 20)
    );
    assert!(environment.peak_bytes > 0);
    // A warm environment has the plan even after its removal from storage.
    fs::remove_file(format!("{}/plan.json", address.path())).unwrap();
    let (again, _) = ready(ask(&emulator, &address, Call::Probe));
    assert_eq!((again.id, again.invocations, again.had_plan), (environment.id.clone(), 2, true));
    // Another plan replaces it.
    let other = written(&plan_of_numbers(&place, 3), &spec);
    let (_, outcomes, _, _) = done(ask(&emulator, &other, Call::Run(vec![request(1, 0, 0..3)])));
    assert_complete(&outcomes[0]);
    assert!(outcomes[0].worker.contains(&environment.id), "{}", outcomes[0].worker);
    let (kind, message) = refused(ask(&emulator, &address, Call::Probe));
    assert!(kind == RefusalKind::Plan && message.contains("cannot find the plan"), "{message}");
}

/// Plans an array of numbers in chunks of 10, of which each is a task.
fn plan_of_numbers(place: &Place, n_chunks: u64) -> FinalizedPlan {
    plan(&[Target::array(&numbers(n_chunks), place.at("numbers")).overwrite(true)], &place.spec())
}

/// Asserts that a probe and a run are both refused, for a reason of this kind.
#[track_caller]
fn check_refusal(emulator: &Emulator, address: &RunAddress, kind: RefusalKind, expected: &str) {
    for call in [Call::Probe, Call::Run(vec![request(1, 0, 0..1)])] {
        let (found, message) = refused(ask(emulator, address, call));
        assert!(found == kind && message.contains(expected), "{found:?}: {message}");
    }
}

#[test]
fn plans_that_do_not_fit_the_worker_are_refused() {
    let place = Place::new();
    let spec = place.spec();
    let emulator = stock_function(|c| c.memory_mib = 128);
    let plan_of = |array: &Array| {
        let spec = place.spec_with(|s| s.allowed_mem = Some(1_000_000_000));
        plan(&[Target::array(array, place.at("out"))], &spec)
    };
    let big = random_normal([20_000_000], 0.0, 1.0, 1, DType::Float64, [20_000_000]);
    let address = written(&plan_of(&big), &spec);
    check_refusal(&emulator, &address, RefusalKind::ExceedsMemory, "give the worker more memory");

    let kernel = plan_of(&scripted(2, &Scripted::default()));
    let address = written(&kernel, &spec);
    let expected = "unknown kernel `scripted`";
    check_refusal(&emulator, &address, RefusalKind::UnknownKernel, expected);

    let good = written(&plan_of_numbers(&place, 3), &spec);
    let path = format!("{}/plan.json", good.path());
    let text = fs::read_to_string(&path).unwrap();
    let mut body: Value = serde_json::from_str(&text).unwrap();
    body["format"] = 0.into();
    fs::write(&path, body.to_string()).unwrap();
    check_refusal(&emulator, &good, RefusalKind::Format, "format 0");
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    check_refusal(&emulator, &good, RefusalKind::Plan, "");
    fs::write(&path, kernel.to_bytes().unwrap()).unwrap();
    check_refusal(&emulator, &good, RefusalKind::Plan, "has changed since the run began");
    fs::remove_file(&path).unwrap();
    check_refusal(&emulator, &good, RefusalKind::Plan, "cannot find the plan");
    assert_eq!(emulator.stats().function_errors, 0, "a refusal is an answer");
}

#[test]
fn unreachable_locations_are_refused() {
    let place = Place::new();
    let spec = place.spec();
    let emulator = stock_function(|_| ());
    let folder = written(&plan_of_numbers(&place, 3), &spec).folder;
    let unknown_scheme = RunAddress { work_dir: "gopher://hole".into(), folder };
    check_refusal(&emulator, &unknown_scheme, RefusalKind::Unreachable, "gopher");
    let (memory, stores) = (MemoryStore::new(), Stores::default());
    let url = format!("{}/n", memory.url());
    stores.insert(Arc::new(memory));
    let in_memory = Target::array(&numbers(3), &url).with_stores(&stores);
    let address = written(&plan(&[in_memory], &spec), &spec);
    check_refusal(&emulator, &address, RefusalKind::Unreachable, "memory of another process");
}

#[test]
fn invocations_of_other_versions_are_refused() {
    let place = Place::new();
    let emulator = stock_function(|_| ());
    let address = written(&plan_of_numbers(&place, 3), &place.spec());
    let invocation = serde_json::to_value(Invocation::new(address, CLIENT, Call::Probe)).unwrap();
    let check = |body: String, kind: RefusalKind, expected: &[&str]| {
        let answer = emulator.invoke(body.as_bytes()).unwrap();
        let (found, message) = refused(serde_json::from_slice(&answer.body).unwrap());
        assert!(found == kind && expected.iter().all(|e| message.contains(e)), "{message}");
    };
    for (field, value, kind, expected) in [
        ("protocol", Value::from(PROTOCOL + 1), RefusalKind::Protocol, &["deploy the worker"][..]),
        ("engine", "9.9.9".into(), RefusalKind::Engine, &["deploy the worker", "9.9.9", ENGINE]),
    ] {
        let mut body = invocation.clone();
        body[field] = value;
        check(body.to_string(), kind, expected);
    }
    check("[1, 2]".into(), RefusalKind::Protocol, &[]);
    assert_eq!(emulator.stats().function_errors, 0, "a refusal is an answer");
}

#[test]
fn a_panic_of_a_kernel_fails_only_its_task() {
    let place = Place::new();
    let spec = place.spec();
    let plan = plan(
        &[Target::array(
            &scripted(4, &Scripted { panic_at: Some(10), ..Scripted::default() }),
            place.at("out"),
        )],
        &spec,
    );
    let address = written(&plan, &spec);
    let emulator = scripted_function(|_| ());
    let mut peaks = Vec::new();
    for id in 0..20 {
        let (environment, outcomes, _, _) = done(ask(
            &emulator,
            &address,
            Call::Run(vec![request(2 * id, 0, 0..4), request(2 * id + 1, 0, 2..4)]),
        ));
        let failed = outcomes.iter().find(|o| o.request.first == 0).unwrap();
        let failure = failed.failure.as_ref().unwrap();
        assert_eq!((failed.done.len(), failure.kind, failure.task), (1, FailureKind::Kernel, 1));
        assert!(
            failure.message.contains("panicked: assertion `left != right` failed: requested panic")
                && failure.message.contains("scripted.rs:"),
            "{}",
            failure.message
        );
        assert_complete(outcomes.iter().find(|o| o.request.first == 2).unwrap());
        assert_eq!(environment.invocations, id + 1);
        peaks.push(environment.peak_bytes);
    }
    assert!(peaks[19] < peaks[0] + 8_000_000, "{peaks:?}");
}

#[test]
fn lost_answers_are_recovered_from_records() {
    let place = Place::new();
    let spec = place.spec();
    let log = place.at("log");
    let targets = [Target::array(
        &scripted(40, &Scripted { log: Some(log.clone()), ..Scripted::default() }),
        place.at("out"),
    )];
    let plan = plan(&targets, &spec);
    let address = written(&plan, &spec);
    let emulator = scripted_function(|c| {
        c.faults.lose = 1.0;
        c.record_bodies = true;
    });
    let body = serde_json::to_vec(&Invocation::new(
        address.clone(),
        CLIENT,
        Call::Run(vec![request(1, 0, 0..5), request(2, 0, 5..7)]),
    ))
    .unwrap();
    assert!(emulator.invoke(&body).is_err());
    let work = Stores::default().open(&address.work_dir).unwrap();
    for (id, tasks) in [(1, 0..5), (2, 5..7)] {
        let found =
            read_record(&*work, &address.folder, CLIENT, &request(id, 0, tasks)).unwrap().unwrap();
        assert_complete(&found);
        assert!(found.done.iter().all(|d| d.receipts.len() == 1));
    }
    let mut found = Vec::new();
    read_records(&*work, &address.folder, &mut |_, tasks| tasks.start > 0, &mut |o| found.push(o))
        .unwrap();
    assert_eq!(found.iter().map(|o| o.request.id).collect::<Vec<_>>(), [2]);
    fs::remove_dir_all(address.path()).unwrap();
    fs::remove_file(&log).unwrap();
    let before = emulator.recorded_invocations().len();

    // A run that loses a third of its answers computes no task twice.
    emulator.set_faults(Faults { seed: 5, lose: 0.34, ..Faults::default() });
    let report = run(&targets, &spec, &EmulatorExecutor { emulator: &emulator, slots: 4 });
    assert!(emulator.stats().faults.lost > 3);
    assert_eq!(report.retries, 0);
    // On a busy machine, the driver may start backups of slow requests.
    let requests = recorded_requests(&emulator, before);
    let (first, backups): (Vec<_>, Vec<_>) =
        requests.into_iter().partition(|r| r.backup_of.is_none());
    let tasks = |requests: &[TaskRequest]| requests.iter().map(|r| r.count).sum::<u64>();
    assert_eq!(tasks(&first), 40);
    assert_eq!(begun(&log) as u64, 40 + tasks(&backups));
    let values = tree(place.at("out"));
    assert_eq!(values.len(), 41);
}

#[test]
fn duplicate_invocations_write_the_same_bytes() {
    let place = Place::new();
    let spec = place.spec();
    let make = |to: &str| {
        [Target::array(
            &scripted(30, &Scripted { sleep_ms: 5, ..Scripted::default() }),
            place.at(to),
        )]
    };
    run(&make("here"), &spec, &Threads::new(2));
    let emulator = scripted_function(|c| {
        c.faults = Faults { seed: 1, duplicate: 0.5, lose: 0.2, ..Faults::default() }
    });
    let report = run(&make("there"), &spec, &EmulatorExecutor { emulator: &emulator, slots: 3 });
    assert_eq!(tree(place.at("here")), tree(place.at("there")));
    let stats = emulator.stats();
    assert!(
        stats.faults.duplicated > 0 && stats.faults.lost > 0,
        "{:?} after {report}",
        stats.faults
    );
}

#[test]
fn outcomes_that_exceed_the_answer_are_in_records() {
    let place = Place::new();
    let spec = place.spec_with(|s| s.work_dir = Some(place.at("work")));
    let numbers = freestone_ops::arange(0.0, 24_000.0, 1.0, DType::Float64, 1);
    let plan = plan(&[Target::array(&numbers, place.at("numbers"))], &spec);
    let address = written(&plan, &spec);
    let emulator = stock_function(|_| ());
    let requests: Vec<_> = (0..48).map(|i| request(i, 0, 500 * i..500 * (i + 1))).collect();
    let (_, outcomes, recorded, not_started) =
        done(ask(&emulator, &address, Call::Run(requests.clone())));
    assert!(
        !recorded.is_empty() && !outcomes.is_empty(),
        "{} and {}",
        recorded.len(),
        outcomes.len()
    );
    assert_eq!((outcomes.len() + recorded.len(), not_started.len()), (48, 0));
    let work = Stores::default().open(&address.work_dir).unwrap();
    for id in recorded {
        assert_complete(
            &read_record(&*work, &address.folder, CLIENT, &requests[id as usize]).unwrap().unwrap(),
        );
    }
    assert_eq!(emulator.stats().function_errors, 0);
}

/// Prints start times, which `freestone-bench bars --only starts` checks against limits.
#[test]
fn idle_environments_are_small_and_start_times_are_printed() {
    let place = Place::new();
    let address = written(&plan_of_numbers(&place, 3), &place.spec());
    let emulator = stock_function(|_| ());
    let mut cold = Vec::new();
    for _ in 0..10 {
        ready(ask(&emulator, &address, Call::Probe));
        let stats = emulator.stats().environments.pop().unwrap();
        cold.push(stats.init_ms.unwrap());
        assert!(stats.idle_rss_bytes.unwrap() < 15_000_000, "{stats:?}");
        emulator.kill_environments();
    }
    cold.sort_by(f64::total_cmp);
    ready(ask(&emulator, &address, Call::Probe));
    let start = std::time::Instant::now();
    let n = 200;
    (0..n).for_each(|_| drop(ready(ask(&emulator, &address, Call::Probe))));
    let warm = start.elapsed().as_secs_f64() * 1000.0 / f64::from(n);
    let stats = emulator.stats().environments.pop().unwrap();
    let bytes = fs::metadata(BOOTSTRAP).unwrap().len();
    println!(
        "cold start {:.0} ms (median of 10; {:.0} to {:.0}), warm {warm:.2} ms, idle {:.1} MB \
            resident, program of {} MB",
        cold[5],
        cold[0],
        cold[9],
        stats.idle_rss_bytes.unwrap() as f64 / 1e6,
        bytes / 1_000_000
    );
}
