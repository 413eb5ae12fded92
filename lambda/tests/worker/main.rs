//! The worker, in real processes under the emulator. Plans are made by the library, answers are
//! read as a client reads them.

// Tests say by panicking that something is wrong, also in functions that only help them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod anywhere;
mod client;
#[path = "helper/odd.rs"]
mod odd;
mod second;
mod support;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use freestone_engine::plan::{ENGINE, FinalizedPlan};
use freestone_engine::remote::{RefusalKind, read_record, read_records};
use freestone_engine::storage::{MemoryStore, Store, Stores};
use freestone_engine::task::{FailureKind, RunAddress, TaskOutcome, TaskRequest};
use freestone_executors::{Threads, conformance};
use freestone_lambda::{Allocator, DType};
use freestone_lambda_emulator::{Cap, Emulator, Faults};
use freestone_ops::io::{Target, open_in};
use freestone_ops::{Array, random_normal};
use freestone_worker::{Answer, Call, Environment, Invocation, PROTOCOL, slots};
use serde_json::Value;

use support::{
    BOOTSTRAP, CLIENT, Odd, Place, Remote, ask, odd, own, plan, request, run, stock, through, tree,
    written,
};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Requests' outcomes and the rest of an answer to [`Call::Run`].
#[track_caller]
fn done(answer: Answer) -> (Environment, Vec<TaskOutcome>, Vec<u64>, Vec<u64>) {
    match answer {
        Answer::Done { environment, outcomes, recorded, not_started, .. } => {
            (environment, outcomes, recorded, not_started)
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn ready(answer: Answer) -> (Environment, Vec<u32>) {
    match answer {
        Answer::Ready { environment, slots, .. } => (environment, slots),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(answer: Answer) -> (RefusalKind, String) {
    match answer {
        Answer::Refused { refusal, .. } => (refusal.kind, refusal.message),
        other => panic!("{other:?}"),
    }
}

fn assert_whole(outcome: &TaskOutcome) {
    assert_eq!(outcome.failure, None);
    let tasks: Vec<u64> = outcome.done.iter().map(|d| d.task).collect();
    assert_eq!(
        tasks,
        (outcome.request.first..outcome.request.first + outcome.request.count).collect::<Vec<_>>()
    );
}

#[test]
fn a_probe_says_what_fits_and_the_plan_stays_at_hand() {
    let place = Place::new();
    let spec = place.spec();
    let emulator = stock(|c| c.memory_mib = 128);
    let numbers = random_normal(&[1000, 1000], 0.0, 1.0, 1, DType::Float64, &[500, 1000]);
    let plan = plan(&[Target::array(&numbers.mean(0), &place.at("mean"))], &spec);
    let address = written(&plan, &spec);
    let (environment, found) = ready(ask(&emulator, &address, Call::Probe));
    assert_eq!(found, slots(&plan, 128 << 20, 8).unwrap());
    assert!(found.iter().any(|n| *n > 1), "{found:?}");
    assert_eq!(
        (environment.invocations, environment.had_plan, environment.memory_bytes),
        (1, false, 128 << 20)
    );
    assert!(environment.peak_bytes > 0);
    // What is gone from storage is still at hand in a warm environment.
    fs::remove_file(format!("{}/plan.json", address.path())).unwrap();
    let (again, _) = ready(ask(&emulator, &address, Call::Probe));
    assert_eq!((again.id, again.invocations, again.had_plan), (environment.id.clone(), 2, true));
    // Another plan takes its place.
    let other = written(&plan_of_numbers(&place, 3), &spec);
    let (_, outcomes, _, _) = done(ask(&emulator, &other, Call::Run(vec![request(1, 0, 0..3)])));
    assert_whole(&outcomes[0]);
    assert!(outcomes[0].worker.contains(&environment.id), "{}", outcomes[0].worker);
    let (kind, message) = refused(ask(&emulator, &address, Call::Probe));
    assert!(kind == RefusalKind::Plan && message.contains("there is no plan"), "{message}");
}

fn plan_of_numbers(place: &Place, n_chunks: u64) -> FinalizedPlan {
    let numbers = freestone_ops::arange(0.0, 10.0 * n_chunks as f64, 1.0, DType::Float64, 10);
    plan(&[Target::array(&numbers, &place.at("numbers")).overwrite(true)], &place.spec())
}

#[test]
fn real_plans_have_the_same_bytes_as_on_threads() {
    let place = Place::new();
    let spec = place.spec_with(|s| s.allowed_mem = Some(60_000_000));
    let emulator = stock(|_| ());
    let stored = |name: &str, array: &Array| {
        run(&[Target::array(array, &place.at(name))], &spec, &Threads::new(2));
        open_in(&Stores::default().open(&place.at(name)).unwrap(), "").unwrap()
    };
    let u =
        stored("u", &random_normal(&[64, 300, 200], 0.0, 1.0, 1, DType::Float32, &[8, 300, 200]));
    let v =
        stored("v", &random_normal(&[64, 300, 200], 1.0, 2.0, 2, DType::Float32, &[8, 300, 200]));
    let a = stored("a", &random_normal(&[300, 400], 0.0, 1.0, 3, DType::Float64, &[100, 100]));
    let quad = |to: &str| {
        [("uu", &u * &u), ("uv", &u * &v), ("vv", &v * &v)]
            .map(|(name, product)| Target::in_group(&product.mean(0), &place.at(to), name))
            .to_vec()
    };
    let rechunk = |to: &str| vec![Target::array(&u.rechunk(&[64, 30, 20]), &place.at(to))];
    let matmul = |to: &str| vec![Target::array(&a.matmul(&a.matrix_transpose()), &place.at(to))];
    type Targets<'a> = &'a dyn Fn(&str) -> Vec<Target>;
    let kinds: [(&str, Targets<'_>); 3] =
        [("quad", &quad), ("rechunk", &rechunk), ("matmul", &matmul)];
    for (name, targets) in kinds {
        let (here, there) = (format!("{name}-threads"), format!("{name}-lambda"));
        run(&targets(&here), &spec, &Threads::new(2));
        let report = run(&targets(&there), &spec, &Remote { emulator: &emulator, slots: 4 });
        let (here, there) = (tree(place.at(&here)), tree(place.at(&there)));
        assert!(here.len() > 1);
        assert_eq!(here, there, "{name}");
        assert!(report.worker_peak_bytes.is_some() && report.failures.is_empty());
        assert!(
            fs::read_dir(&spec.work_dir).unwrap().next().is_none(),
            "records go with the run's folder"
        );
    }
    assert_eq!(emulator.stats().function_errors, 0);
}

#[test]
fn the_suite_for_executors_passes() {
    let place = Place::new();
    let emulator = Box::leak(Box::new(stock(|_| ())));
    conformance::check(place.0.path(), |slots| Box::new(Remote { emulator, slots }));
    emulator.lose_environments();
}

#[test]
fn what_cannot_be_run_is_refused_by_kind() {
    let place = Place::new();
    let spec = place.spec();
    let emulator = stock(|c| c.memory_mib = 128);
    #[track_caller]
    fn check(emulator: &Emulator, address: &RunAddress, kind: RefusalKind, says: &str) {
        // With a probe and without one.
        for call in [Call::Probe, Call::Run(vec![request(1, 0, 0..1)])] {
            let (found, message) = refused(ask(emulator, address, call));
            assert!(found == kind && message.contains(says), "{found:?}: {message}");
        }
    }
    let plan_of = |array: &Array| {
        plan(
            &[Target::array(array, &place.at("out"))],
            &place.spec_with(|s| s.allowed_mem = Some(1_000_000_000)),
        )
    };

    let big = random_normal(&[20_000_000], 0.0, 1.0, 1, DType::Float64, &[20_000_000]);
    check(
        &emulator,
        &written(&plan_of(&big), &spec),
        RefusalKind::ExceedsMemory,
        "give the worker more memory",
    );
    let kernel = odd(2, &Odd::default());
    check(
        &emulator,
        &written(&plan_of(&kernel), &spec),
        RefusalKind::UnknownKernel,
        "unknown kernel `odd`",
    );

    let numbers = plan_of_numbers(&place, 3);
    let good = written(&numbers, &spec);
    let path = format!("{}/plan.json", good.path());
    let text = fs::read_to_string(&path).unwrap();
    let mut body: Value = serde_json::from_str(&text).unwrap();
    body["format"] = 0.into();
    fs::write(&path, body.to_string()).unwrap();
    check(&emulator, &good, RefusalKind::Format, "format 0");
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    check(&emulator, &good, RefusalKind::Plan, "");
    fs::write(&path, plan_of(&kernel).to_bytes().unwrap()).unwrap();
    check(&emulator, &good, RefusalKind::Plan, "is not what it was");
    fs::remove_file(&path).unwrap();
    check(&emulator, &good, RefusalKind::Plan, "there is no plan");
    let elsewhere = RunAddress { work_dir: "gopher://hole".into(), folder: good.folder.clone() };
    check(&emulator, &elsewhere, RefusalKind::Unreachable, "gopher");
    let hidden = {
        let (memory, stores) = (MemoryStore::new(), Stores::default());
        let url = memory.url().to_owned();
        stores.insert(Arc::new(memory));
        plan(&[Target::array(&numbers_array(), &format!("{url}/n")).with_stores(&stores)], &spec)
    };
    check(
        &emulator,
        &written(&hidden, &spec),
        RefusalKind::Unreachable,
        "memory of another process",
    );

    let invocation = serde_json::to_value(Invocation::new(good, CLIENT, Call::Probe)).unwrap();
    for (field, value, kind) in [
        ("protocol", Value::from(PROTOCOL + 1), RefusalKind::Protocol),
        ("engine", "9.9.9".into(), RefusalKind::Engine),
    ] {
        let mut body = invocation.clone();
        body[field] = value;
        let answer = emulator.invoke(body.to_string().as_bytes()).unwrap();
        let (found, message) = refused(serde_json::from_slice(&answer.body).unwrap());
        assert!(
            found == kind
                && message.contains("deploy the worker")
                && (kind != RefusalKind::Engine
                    || message.contains("9.9.9") && message.contains(ENGINE)),
            "{message}"
        );
    }
    let answer = emulator.invoke(b"[1, 2]").unwrap();
    assert_eq!(refused(serde_json::from_slice(&answer.body).unwrap()).0, RefusalKind::Protocol);
    assert!(ENGINE.contains('.'));
    assert_eq!(emulator.stats().function_errors, 0, "a refusal is an answer");
}

fn numbers_array() -> Array {
    freestone_ops::arange(0.0, 30.0, 1.0, DType::Float64, 10)
}

#[test]
fn tasks_run_at_once_as_far_as_memory_reaches() {
    let place = Place::new();
    let spec = place.spec();
    let log = place.at("log");
    let kernel = Odd { sleep_ms: 300, log: Some(log.clone()), ..Odd::default() };
    let blocks = random_normal(&[6 * 500_000], 0.0, 1.0, 1, DType::Float64, &[500_000]);
    let plan = plan(&[Target::array(&through(&kernel, &blocks), &place.at("out"))], &spec);
    let address = written(&plan, &spec);
    let layout = plan.layout(freestone_engine::plan::StageId(0));
    // Room for two tasks and a half, and for many.
    let tight = mib(plan.plan().reserved_mem + layout.estimate.per_task() * 5 / 2);
    for (memory_mib, most) in [(tight, 2), (1024, 6)] {
        let emulator = own(|c| {
            c.memory_mib = memory_mib;
            c.cap = Cap::WherePossible;
        });
        let fits = ready(ask(&emulator, &address, Call::Probe)).1[0];
        let requests = (0..6).map(|i| request(i, 0, i..i + 1)).collect();
        let (_, outcomes, _, _) = done(ask(&emulator, &address, Call::Run(requests)));
        assert_eq!(outcomes.len(), 6);
        outcomes.iter().for_each(assert_whole);
        let (mut now, mut highest) = (0, 0);
        for mark in fs::read(&log).unwrap() {
            now += if mark == b'+' { 1 } else { -1 };
            highest = highest.max(now);
        }
        fs::remove_file(&log).unwrap();
        assert_eq!(highest, most.min(fits as i32), "{memory_mib} MiB, {fits} slots");
        let mut threads: Vec<&str> = outcomes.iter().map(|o| o.worker.as_str()).collect();
        threads.sort_unstable();
        threads.dedup();
        assert_eq!(threads.len() as i32, highest);
    }
}

#[test]
fn what_there_is_no_time_for_is_given_back() {
    let place = Place::new();
    let spec = place.spec();
    let log = place.at("log");
    let plan = plan(
        &[Target::array(
            &odd(60, &Odd { sleep_ms: 80, log: Some(log.clone()), ..Odd::default() }),
            &place.at("out"),
        )],
        &spec,
    );
    let address = written(&plan, &spec);
    let emulator = own(|c| c.timeout = Duration::from_millis(2500));
    let memory_for_one =
        |c: &mut freestone_lambda_emulator::Config| c.memory_mib = mib(plan.projected_mem());
    let one = own(|c| {
        c.timeout = Duration::from_millis(2500);
        memory_for_one(c);
    });
    for emulator in [&emulator, &one] {
        let (_, outcomes, recorded, not_started) = done(ask(
            emulator,
            &address,
            Call::Run((0..6).map(|i| request(i, 0, 10 * i..10 * i + 10)).collect()),
        ));
        assert!(recorded.is_empty());
        assert_eq!(outcomes.len() + not_started.len(), 6, "each request is in one list");
        assert!(outcomes.iter().all(|o| o.failure.is_none() && !o.done.is_empty()));
        for outcome in &outcomes {
            let found = read_record(
                &*Stores::default().open(&address.work_dir).unwrap(),
                &address.folder,
                CLIENT,
                &outcome.request,
            )
            .unwrap();
            assert_eq!(found.as_ref(), Some(outcome));
        }
        assert_eq!(emulator.stats().timeouts, 0);
    }
    let n = fs::read(&log).unwrap().len();
    // One at a time, 60 tasks of 80 ms are 4.8 s.
    let mut left = vec![request(7, 0, 0..60)];
    let mut invocations = 0;
    while let Some(request) = left.pop() {
        let (_, outcomes, _, not_started) =
            done(ask(&one, &address, Call::Run(vec![request.clone()])));
        invocations += 1;
        assert!(not_started.is_empty(), "a new invocation always gets on");
        let n = outcomes[0].done.len() as u64;
        if n < request.count {
            assert_eq!(outcomes[0].failure, None);
            left.push(support::request(request.id + 1, 0, request.first + n..60));
        }
    }
    assert!(invocations >= 3, "{invocations}");
    assert_eq!(fs::read(&log).unwrap().len() - n, 120, "no task began twice, none was cut off");
    assert_eq!(one.stats().timeouts, 0);
}

#[test]
fn a_task_that_no_invocation_has_time_for_says_so_itself() {
    let place = Place::new();
    let spec = place.spec_with(|s| s.parallelism = Some(1));
    let long = random_normal(&[4_000_000_000], 0.0, 1.0, 1, DType::Float64, &[500_000]);
    let plan = plan(&[Target::array(&long.mean(0), &place.at("mean"))], &spec);
    let address = written(&plan, &spec);
    let emulator = stock(|c| c.timeout = Duration::from_secs(2));
    let (_, outcomes, _, _) = done(ask(&emulator, &address, Call::Run(vec![request(1, 0, 0..1)])));
    let failure = outcomes[0].failure.as_ref().unwrap();
    assert!(
        failure.kind == FailureKind::TimedOut
            && failure.message.contains("raise the function's timeout"),
        "{failure:?}"
    );
    // The user's own limit is told of as such.
    let mut limited = request(2, 0, 0..1);
    limited.timeout_ms = Some(50);
    let (_, outcomes, _, _) = done(ask(&emulator, &address, Call::Run(vec![limited])));
    let failure = outcomes[0].failure.as_ref().unwrap();
    assert!(
        failure.kind == FailureKind::TimedOut && failure.message.contains("task_timeout"),
        "{failure:?}"
    );
    assert_eq!((emulator.stats().timeouts, emulator.stats().exits), (0, 0));
}

#[test]
fn a_kernel_that_panics_is_a_failure_and_no_more() {
    let place = Place::new();
    let spec = place.spec();
    let plan = plan(
        &[Target::array(&odd(4, &Odd { panic_at: Some(10), ..Odd::default() }), &place.at("out"))],
        &spec,
    );
    let address = written(&plan, &spec);
    let emulator = own(|_| ());
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
            failure
                .message
                .contains("panicked: assertion `left != right` failed: it was told to panic")
                && failure.message.contains("odd.rs:"),
            "{}",
            failure.message
        );
        assert_whole(outcomes.iter().find(|o| o.request.first == 2).unwrap());
        assert_eq!(environment.invocations, id + 1);
        peaks.push(environment.peak_bytes);
    }
    assert!(peaks[19] < peaks[0] + 8_000_000, "{peaks:?}");
}

#[test]
fn answers_that_are_lost_are_found_in_the_records() {
    let place = Place::new();
    let spec = place.spec();
    let log = place.at("log");
    let targets = [Target::array(
        &odd(40, &Odd { log: Some(log.clone()), ..Odd::default() }),
        &place.at("out"),
    )];
    let plan = plan(&targets, &spec);
    let address = written(&plan, &spec);
    let emulator = own(|c| {
        c.faults.lose = 1.0;
        c.keep_bodies = true;
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
        assert_whole(&found);
        assert!(found.done.iter().all(|d| d.receipts.len() == 1));
    }
    let mut found = Vec::new();
    read_records(&*work, &address.folder, &mut |_, tasks| tasks.start > 0, &mut |o| found.push(o))
        .unwrap();
    assert_eq!(found.iter().map(|o| o.request.id).collect::<Vec<_>>(), [2]);
    fs::remove_dir_all(address.path()).unwrap();
    fs::remove_file(&log).unwrap();
    let before = emulator.kept().len();

    // A run that loses a third of its answers computes nothing twice.
    emulator.set_faults(Faults { seed: 5, lose: 0.34, ..Faults::default() });
    let report = run(&targets, &spec, &Remote { emulator: &emulator, slots: 4 });
    assert!(emulator.stats().faults.lost > 3);
    assert_eq!(report.retries, 0);
    let asked = emulator.kept().split_off(before);
    let asked = asked.iter().filter_map(|k| {
        match serde_json::from_slice::<Invocation>(&k.request).unwrap().call {
            Call::Run(requests) => Some(requests),
            Call::Probe => None,
        }
    });
    // A machine that is busy may make the driver repeat what takes long.
    let (first, backups): (Vec<_>, Vec<_>) = asked.flatten().partition(|r| r.backup_of.is_none());
    let tasks = |requests: &[TaskRequest]| requests.iter().map(|r| r.count).sum::<u64>();
    assert_eq!(tasks(&first), 40);
    assert_eq!(fs::read(&log).unwrap().len() as u64, 2 * (40 + tasks(&backups)));
    let values = tree(place.at("out"));
    assert_eq!(values.len(), 41);
}

#[test]
fn what_runs_twice_at_once_does_no_harm() {
    let place = Place::new();
    let spec = place.spec();
    let make =
        |to: &str| [Target::array(&odd(30, &Odd { sleep_ms: 5, ..Odd::default() }), &place.at(to))];
    run(&make("here"), &spec, &Threads::new(2));
    let emulator =
        own(|c| c.faults = Faults { seed: 1, duplicate: 0.5, lose: 0.2, ..Faults::default() });
    let report = run(&make("there"), &spec, &Remote { emulator: &emulator, slots: 3 });
    assert_eq!(tree(place.at("here")), tree(place.at("there")));
    let stats = emulator.stats();
    assert!(
        stats.faults.duplicated > 0 && stats.faults.lost > 0,
        "{:?} after {report}",
        stats.faults
    );
}

#[test]
fn an_answer_that_would_be_too_long_is_left_in_the_records() {
    let place = Place::new();
    let spec = place.spec_with(|s| s.work_dir = Some(place.at("work")));
    let numbers = freestone_ops::arange(0.0, 24_000.0, 1.0, DType::Float64, 1);
    let plan = plan(&[Target::array(&numbers, &place.at("numbers"))], &spec);
    let address = written(&plan, &spec);
    let emulator = stock(|_| ());
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
        assert_whole(
            &read_record(&*work, &address.folder, CLIENT, &requests[id as usize]).unwrap().unwrap(),
        );
    }
    assert_eq!(emulator.stats().function_errors, 0);
}

/// What starts take is only told: `freestone-bench bars --only starts` judges it.
#[test]
fn starts_and_rests_are_small() {
    let place = Place::new();
    let address = written(&plan_of_numbers(&place, 3), &place.spec());
    let emulator = stock(|_| ());
    let mut cold = Vec::new();
    for _ in 0..10 {
        ready(ask(&emulator, &address, Call::Probe));
        let stats = emulator.stats().environments.pop().unwrap();
        cold.push(stats.init_ms.unwrap());
        assert!(stats.idle_rss_bytes.unwrap() < 15_000_000, "{stats:?}");
        emulator.lose_environments();
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
            resident, {} MB of program",
        cold[5],
        cold[0],
        cold[9],
        stats.idle_rss_bytes.unwrap() as f64 / 1e6,
        bytes / 1_000_000
    );
}

/// A function of exactly what a plan is projected to need, on the system's own word.
#[test]
#[ignore = "needs root and memory cgroups: .ci/run lambda"]
fn lambda_plans_run_in_the_memory_that_they_are_projected_to_need() {
    let place = Place::new();
    let spec = place.spec();
    let stored = |name: &str, array: &Array| {
        run(&[Target::array(array, &place.at(name))], &spec, &Threads::new(2));
        open_in(&Stores::default().open(&place.at(name)).unwrap(), "").unwrap()
    };
    // Chunks of 8 MB of noise, so that what codecs may need is needed.
    let u = stored(
        "u",
        &random_normal(&[16, 1000, 1000], 0.0, 1.0, 1, DType::Float32, &[2, 1000, 1000]),
    );
    let v = stored(
        "v",
        &random_normal(&[16, 1000, 1000], 1.0, 2.0, 2, DType::Float32, &[2, 1000, 1000]),
    );
    let a = stored("a", &random_normal(&[2000, 2000], 0.0, 1.0, 3, DType::Float64, &[1000, 1000]));
    let results = [
        ("mean", (&u * &v).mean(0)),
        ("sum of all", u.sum(())),
        ("elementwise", &(&u * &v) + &u),
        ("rechunk", u.rechunk(&[16, 100, 1000])),
        ("matmul", a.matmul(&a.matrix_transpose())),
    ];
    let mut rows = 0;
    for (name, array) in &results {
        let targets = [Target::array(array, &place.at("out")).overwrite(true)];
        let plan = plan(&targets, &spec);
        let emulator = stock(|c| {
            c.memory_mib = mib(plan.projected_mem());
            c.cap = Cap::Always;
        });
        let report = run(&targets, &spec, &Remote { emulator: &emulator, slots: 2 });
        let stats = emulator.stats();
        assert_eq!((stats.exits, stats.oom_kills, report.retries), (0, 0, 0), "{name}: {stats:?}");
        let peak = stats.environments.iter().filter_map(|e| e.max_memory_bytes).max().unwrap();
        println!(
            "{name}: {} MiB projected, {:.1} MiB at most",
            mib(plan.projected_mem()),
            peak as f64 / f64::from(1 << 20)
        );
        rows += 1;
    }
    println!("{rows} rows");
}

/// What takes more than that is killed, which the client is told and the next invocation does not
/// suffer from.
#[test]
#[ignore = "needs root and memory cgroups: .ci/run lambda"]
fn lambda_a_task_that_takes_more_than_it_said_is_killed_and_told_of() {
    let place = Place::new();
    let spec = place.spec();
    let plan = plan(
        &[Target::array(&odd(3, &Odd { hog_mib: 200, ..Odd::default() }), &place.at("out"))],
        &spec,
    );
    let address = written(&plan, &spec);
    let emulator = own(|c| {
        c.memory_mib = 128;
        c.cap = Cap::Always;
    });
    let (before, _) = ready(ask(&emulator, &address, Call::Probe));
    let body = serde_json::to_vec(&Invocation::new(
        address.clone(),
        CLIENT,
        Call::Run(vec![request(1, 0, 0..1)]),
    ))
    .unwrap();
    let answer = emulator.invoke(&body).unwrap();
    assert!(
        answer.is_function_error() && answer.text().contains("signal: killed"),
        "{}",
        answer.text()
    );
    assert_eq!((emulator.stats().oom_kills, emulator.stats().exits), (1, 1));
    let work = Stores::default().open(&address.work_dir).unwrap();
    assert_eq!(
        read_record(&*work, &address.folder, CLIENT, &request(1, 0, 0..1)).unwrap(),
        None,
        "nothing is said of what did not end"
    );
    let (after, _) = ready(ask(&emulator, &address, Call::Probe));
    assert!(after.id != before.id && after.invocations == 1);
}

/// All of it in an object store, with no credentials but those of the function's environment.
#[test]
#[ignore = "needs an S3 server: .ci/run lambda"]
fn lambda_plans_run_on_an_object_store() {
    let place = std::env::var("FREESTONE_S3").unwrap() + "/lambda";
    let own = Place::new();
    let spec = own.spec_with(|s| s.work_dir = Some(format!("{place}/work")));
    let emulator = stock(|c| {
        c.variables = std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect()
    });
    let stored = |name: &str, seed: u64| {
        let array = random_normal(&[24, 200, 200], 0.0, 1.0, seed, DType::Float32, &[8, 200, 200]);
        run(
            &[Target::array(&array, &format!("{place}/{name}")).overwrite(true)],
            &spec,
            &Remote { emulator: &emulator, slots: 3 },
        );
        open_in(&Stores::default().open(&format!("{place}/{name}")).unwrap(), "").unwrap()
    };
    let (u, v) = (stored("u", 1), stored("v", 2));
    let targets =
        |to: &str| [Target::array(&(&u * &v).rechunk(&[24, 50, 50]).mean(0), to).overwrite(true)];
    run(&targets(&own.at("here")), &spec, &Threads::new(2));
    run(&targets(&format!("{place}/there")), &spec, &Remote { emulator: &emulator, slots: 3 });
    let there = Stores::default().open(&format!("{place}/there")).unwrap();
    let here = tree(own.at("here"));
    assert!(here.len() > 1);
    for (key, bytes) in here {
        assert_eq!(
            freestone_engine::storage::read_small(&*there, &key, 1 << 28).unwrap().as_ref(),
            Some(&bytes),
            "{key}"
        );
    }
    let client = client::executor(&emulator.url(), 4, 200);
    anywhere::plans_have_the_same_bytes(&client, &format!("{place}/client"));
    anywhere::a_run_is_one_commit(&client, &format!("{place}/commit"));
    // Processes were stopped between invocations: connections that they had kept still work.
    let stats = emulator.stats();
    assert_eq!(stats.function_errors, 0);
    assert!(stats.environments.iter().any(|e| e.invocations > 1));
}
