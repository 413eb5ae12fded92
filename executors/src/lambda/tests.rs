//! The executor against a service in this process, with every failure of Lambda.

mod fake;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use freestone_engine::executor::Invocations;
use freestone_engine::remote::RefusalKind;
use freestone_engine::storage::Stores;
use freestone_engine::system::{ManualClock, System};
use freestone_engine::task::{FailureKind, TaskOutcome};

use super::*;
use crate::conformance::{self, Recording};
use fake::{EARLY, Fake, Fate, is_probe};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn the_executor_passes_the_conformance_suite() {
    let fake = Fake::start(|_, _| Fate::Done);
    let folder = folder();
    conformance::check(folder.path(), |slots| {
        Box::new(fake.executor(slots).batches(1, Duration::from_secs(1)))
    });
}

/// Runs 60 tasks in requests of `count`. Returns the outcomes by first task, `None` if all tasks
/// are done, and the statistics.
#[track_caller]
fn outcomes(
    folder: &Path,
    executor: &LambdaExecutor,
    count: u64,
) -> (BTreeMap<u64, Option<(FailureKind, String)>>, Invocations) {
    outcomes_in(&conformance::context(folder), executor, count)
}

#[track_caller]
fn outcomes_in(
    context: &RunContext,
    executor: &LambdaExecutor,
    count: u64,
) -> (BTreeMap<u64, Option<(FailureKind, String)>>, Invocations) {
    let requests = (0..60 / count).map(|i| conformance::request(i * count, count));
    let recorded = Recording::new(executor, requests).run(executor, context);
    conformance::assert_all_returned(&recorded);
    let of = |o: &TaskOutcome| match &o.failure {
        Some(f) => Some((f.kind, f.message.clone())),
        None if (o.done.len() as u64) < o.request.count => {
            Some((FailureKind::Superseded, format!("{} done", o.done.len())))
        }
        None => None,
    };
    (
        recorded.outcomes.iter().map(|o| (o.request.first, of(o))).collect(),
        executor.invoked().unwrap(),
    )
}

#[test]
fn throttled_invocations_are_repeated() {
    let fake = Fake::start(|n, _| if n % 3 != 2 { Fate::Throttled } else { Fate::Done });
    let folder = folder();
    let (found, invoked) = outcomes(folder.path(), &fake.executor(8), 1);
    assert!(found.len() == 60 && found.values().all(Option::is_none), "{found:?}");
    assert!(invoked.throttled >= 8 && invoked.throttled == fake.count("Throttled"), "{invoked:?}");
    assert!(fake.in_flight().most <= 8);
    assert!(fake.shared.tasks.lock().unwrap().values().all(|n| *n == 1));
}

/// If storage asks tasks for fewer requests, or a worker cannot fetch the plan for that reason, the
/// window shrinks. The clock stands still, so that the window does not grow again.
#[test]
fn throttling_by_storage_shrinks_the_window() {
    for (fate, most) in
        [(Fate::StorageThrottled, 5), (Fate::Refused(RefusalKind::Storage), 5), (Fate::Done, 8)]
    {
        let fake = Fake::start(move |n, _| match n {
            0..8 => fate,
            8..EARLY => Fate::Done,
            _ => Fate::Gather(most),
        });
        let folder = folder();
        let system = System { clock: Arc::new(ManualClock::default()), ..System::default() };
        let context = RunContext {
            stores: Stores::with_system(system),
            ..conformance::context(folder.path())
        };
        let executor = fake.executor(8).batches(1, Duration::from_secs(1));
        let (found, _) = outcomes_in(&context, &executor, 1);
        let failed = found
            .values()
            .flatten()
            .filter(|(kind, _)| matches!(kind, FailureKind::Throttled | FailureKind::Transient))
            .count();
        assert_eq!(failed, if most == 5 { 8 } else { 0 }, "{found:?}");
        assert_eq!(fake.in_flight().most_late, most, "{fate:?}");
    }
}

#[test]
fn lost_answers_are_found_in_records() {
    let fake = Fake::start(|n, _| match n % 4 {
        0 => Fate::Lost,
        1 => Fate::Late(300),
        2 => Fate::Recorded,
        _ => Fate::Done,
    });
    let folder = folder();
    let mut executor = fake.executor(4).function_timeout(Duration::from_secs(60));
    // The records of late invocations are polled for as long as necessary.
    executor.record_wait = Duration::from_secs(60);
    let (found, invoked) = outcomes(folder.path(), &executor, 1);
    assert!(found.values().all(Option::is_none), "{found:?}");
    assert!(
        invoked.recovered > 0 && invoked.lost_answers >= fake.count("Lost") + fake.count("Late"),
        "{invoked:?}"
    );
    assert!(fake.count("Lost") > 0 && fake.count("Late") > 0 && fake.count("Recorded") > 0);
    assert!(fake.shared.tasks.lock().unwrap().values().all(|n| *n == 1), "no task runs twice");
}

/// More answers are lost at once than records are read at once.
#[test]
fn many_lost_answers_are_found_in_records() {
    const { assert!(60 > invocation::MAX_RECORD_READS) };
    let all = std::sync::Barrier::new(60);
    let fake = Fake::start(move |_, _| {
        all.wait();
        Fate::Lost
    });
    let folder = folder();
    let (found, invoked) =
        outcomes(folder.path(), &fake.executor(60).batches(1, Duration::from_secs(1)), 1);
    assert!(found.len() == 60 && found.values().all(Option::is_none), "{found:?}");
    assert_eq!(
        (invoked.recovered, invoked.lost_answers, invoked.most_at_once),
        (60, 60, 60),
        "{invoked:?}"
    );
}

/// The time limit from the probe replaces the configured one.
#[test]
fn the_time_limit_of_answers_follows_from_the_probe() {
    let folder = folder();
    let lost = |probed, configured, slow| {
        let is_first = AtomicBool::new(true);
        let fake = Fake::start(move |_, invocation| match () {
            () if is_probe(invocation) => Fate::Brief(probed),
            () if is_first.swap(false, Ordering::Relaxed) => Fate::Slow(slow),
            () => Fate::Done,
        });
        let mut executor = fake.executor(4).function_timeout(configured);
        executor.grace = Duration::from_secs(1);
        executor.check(&conformance::context(folder.path())).unwrap();
        let (found, invoked) = outcomes(folder.path(), &executor, 1);
        assert_eq!(found.len(), 60);
        invoked.lost_answers
    };
    assert!(lost(100, Duration::from_secs(900), 600_000) > 0);
    assert_eq!(lost(60_000, Duration::ZERO, 3000), 0);
}

#[test]
fn failures_have_their_kinds() {
    for (fate, kind, says) in [
        (Fate::Failed, FailureKind::WorkerLost, "ServiceException"),
        (Fate::TimedOut, FailureKind::TimedOut, "Task timed out"),
        (Fate::Crashed, FailureKind::Crashed, "exit status 3"),
        (Fate::Killed, FailureKind::OutOfMemory, "out of memory"),
        (Fate::Refused(RefusalKind::Storage), FailureKind::Transient, "refuses it"),
    ] {
        let fake = Fake::start(move |n, _| if n == 0 { fate } else { Fate::Done });
        let folder = folder();
        let (found, invoked) =
            outcomes(folder.path(), &fake.executor(1).batches(1, Duration::from_secs(1)), 1);
        let failed: Vec<_> = found.values().flatten().collect();
        assert!(
            matches!(&failed[..], [(k, message)] if *k == kind && message.contains(says)),
            "{fate:?}: {failed:?}"
        );
        assert_eq!(invoked.invocations, 60, "{fate:?}");
    }
}

/// If an invocation with several requests crashes, each request runs alone before it counts as
/// failed.
#[test]
fn requests_of_a_crashed_invocation_run_alone() {
    let fake = Fake::start(|n, _| if n == 2 { Fate::Killed } else { Fate::Done });
    let folder = folder();
    let (found, invoked) = outcomes(folder.path(), &fake.executor(1), 1);
    let returned: Vec<_> = found.values().flatten().collect();
    assert!(
        returned.iter().all(|(kind, done)| *kind == FailureKind::Superseded && done == "0 done"),
        "{returned:?}"
    );
    // Two of the four requests had records.
    assert_eq!((returned.len(), invoked.crashes, invoked.recovered), (2, 1, 2), "{returned:?}");
}

#[test]
fn unstarted_requests_are_returned() {
    let fake = Fake::start(|n, _| match n {
        2 => Fate::Short,
        4 => Fate::Part,
        _ => Fate::Done,
    });
    let folder = folder();
    let (found, _) = outcomes(folder.path(), &fake.executor(1), 3);
    let mut returned: Vec<&str> = found.values().flatten().map(|(_, done)| done.as_str()).collect();
    returned.sort_unstable();
    let parts = returned.iter().filter(|d| **d == "1 done").count();
    assert!(parts == 1 && (1..=4).contains(&returned.len()), "{returned:?}");
}

#[test]
fn refusals_end_a_run() {
    let folder = folder();
    for (i, (fate, says)) in [
        (Fate::Denied, "permit `lambda:InvokeFunction`"),
        (Fate::Refused(RefusalKind::ExceedsMemory), "refuses it"),
        (Fate::Crashed, "see the function's log"),
        (Fate::Failed, "ServiceException"),
    ]
    .into_iter()
    .enumerate()
    {
        let context = conformance::context(&folder.path().join(format!("check-{i}")));
        let fake = Fake::start(move |_, _| fate);
        let error = fake.executor(2).check(&context).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(
            matches!(error, ExecutorError::Refused { .. }),
            matches!(fate, Fate::Refused(_)),
            "{error:?}"
        );
    }
    // A failed probe is retried. A successful one returns the slots.
    let context = conformance::context(&folder.path().join("check"));
    let fake = Fake::start(|n, _| {
        [Fate::Throttled, Fate::Failed, Fate::Refused(RefusalKind::Storage), Fate::Done]
            [(n as usize).min(3)]
    });
    let executor = fake.executor(2);
    executor.check(&context).unwrap();
    assert_eq!(executor.probed.lock().unwrap().as_ref().unwrap().slots, [1]);
    // A refusal during a run ends it.
    let fake = Fake::start(|n, _| if n < 3 { Fate::Done } else { Fate::Denied });
    let executor = fake.executor(2);
    let recorded = Recording::new(&executor, (0..60).map(|i| conformance::request(i, 1)));
    let error = executor.run(&context, &recorded).unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    let state = recorded.state.lock().unwrap();
    conformance::assert_all_returned(&state);
    assert!(
        state.outcomes.iter().filter(|o| o.failure.is_some()).all(|o| o
            .failure
            .as_ref()
            .unwrap()
            .kind
            == FailureKind::Denied)
    );
    // No server listens.
    let gone = LambdaExecutor::new("f", "r")
        .endpoint("http://127.0.0.1:1")
        .credentials("key", "secret", None);
    assert!(matches!(gone.check(&context), Err(ExecutorError::Unavailable { .. })));
}

/// A cancelled run does not wait for its invocations, which are still in flight when it
/// returns.
#[test]
fn a_cancelled_run_does_not_wait_for_answers() {
    let fake = Fake::start(|_, i| if is_probe(i) { Fate::Done } else { Fate::Slow(600_000) });
    let folder = folder();
    let context = conformance::context(folder.path());
    let executor = fake.executor(4).linger(Duration::from_millis(100));
    let recorded = Recording::new(&executor, (0..60).map(|i| conformance::request(i, 1)));
    thread::scope(|scope| {
        scope.spawn(|| {
            fake.wait_for_in_flight(4);
            context.cancel.cancel();
            recorded.state.lock().unwrap().todo.clear();
        });
        executor.run(&context, &recorded).unwrap();
    });
    assert_eq!(fake.in_flight().now, 4);
    let state = recorded.state.lock().unwrap();
    conformance::assert_all_returned(&state);
    let is_cancelled = |o: &TaskOutcome| o.failure.as_ref().unwrap().kind == FailureKind::Cancelled;
    assert!(state.outcomes.iter().all(is_cancelled));
}

#[test]
fn function_names_and_arns_are_parsed() {
    let check = |function: &str, expect: (&str, Option<&str>, &str)| {
        let executor = LambdaExecutor::new(function, "r");
        assert_eq!(
            (executor.function.as_str(), executor.qualifier.as_deref(), executor.region.as_str()),
            expect
        );
    };
    check("f", ("f", None, "r"));
    check("f:live", ("f", Some("live"), "r"));
    check("arn:aws:lambda:eu-west-1:123456789012:function:f", ("f", None, "eu-west-1"));
    check("arn:aws:lambda:eu-west-1:123456789012:function:f:7", ("f", Some("7"), "eu-west-1"));
    let env = |name: &str| match name {
        "AWS_DEFAULT_REGION" => Some("r2".to_owned()),
        "AWS_ENDPOINT_URL_LAMBDA" => Some("http://127.0.0.1:9".to_owned()),
        _ => None,
    };
    let executor = LambdaExecutor::from_env(Some("f"), env).unwrap();
    assert_eq!(executor.worker(), "`f` at http://127.0.0.1:9");
    assert!(
        LambdaExecutor::from_env(None, env)
            .unwrap_err()
            .to_string()
            .contains("FREESTONE_LAMBDA_FUNCTION")
    );
    assert!(
        LambdaExecutor::from_env(Some("f"), |_| None)
            .unwrap_err()
            .to_string()
            .contains("AWS_REGION")
    );
}
