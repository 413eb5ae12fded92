//! Tests of worker processes: conformance, output of workers and kernels, failures, and programs
//! that do not serve.

// A test that panics has failed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use freestone_engine::driver::record::StoredRun;
use freestone_engine::driver::{self, Run, RunError};
use freestone_engine::events::{Event, MemoryExcess, Observer, RunReport};
use freestone_engine::executor::{Executor, ExecutorError};
use freestone_engine::plan::lower::{kernels_of, lower, stores_of};
use freestone_engine::plan::{ENGINE, FinalizedPlan, PlanError};
use freestone_engine::publish::PlainZarr;
use freestone_engine::remote::RefusalKind;
use freestone_engine::storage::Stores;
use freestone_engine::task::{FailureKind, RunAddress, TaskFailure};
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::{Cancel, RunContext};
use freestone_executors::{Processes, Serial, Threads, WORKER_VARIABLE, conformance};
use freestone_ops::io::outputs;
use support::{HELPER, Odd, spec, store, targets, written};

fn processes(n: usize) -> Processes {
    Processes::new(n, HELPER, ["worker"])
}

/// Plans and runs with the driver.
fn run(
    folder: &Path,
    kernel: &Odd,
    n: u32,
    executor: &dyn Executor,
) -> Result<RunReport, RunError> {
    watched(folder, kernel, n, executor, &[])
}

fn watched(
    folder: &Path,
    kernel: &Odd,
    n: u32,
    executor: &dyn Executor,
    observers: &[&dyn Observer],
) -> Result<RunReport, RunError> {
    let spec = spec(folder);
    let lowered = outputs(&targets(folder, kernel, n), &Stores::default()).unwrap();
    let plan = Arc::new(lower(&lowered, &spec).unwrap());
    let (stores, kernels) = (stores_of(&lowered).unwrap(), kernels_of(&lowered).unwrap());
    let session = PlainZarr::new(stores.clone());
    driver::run(
        &plan,
        &Run {
            spec: &spec,
            stores: &stores,
            kernels: &kernels,
            executor,
            publisher: &session,
            observers,
            cancel: Cancel::default(),
        },
    )
}

fn failure(error: &RunError) -> (&TaskFailure, u32) {
    let RunError::Task { failure, attempts, .. } = error.cause() else { panic!("{error}") };
    (failure, *attempts)
}

#[test]
fn processes_pass_the_conformance_suite() {
    let folder = tempfile::tempdir().unwrap();
    conformance::check(folder.path(), |slots| Box::new(processes(slots)));
}

/// Output of kernels, of their child processes, and of `main` before it serves is not part of the
/// protocol.
#[test]
fn output_of_workers_does_not_break_the_protocol() {
    for program in [processes(2), Processes::new(2, HELPER, ["noisy"])] {
        let folder = tempfile::tempdir().unwrap();
        let report = run(folder.path(), &Odd::Prints, 20, &program).unwrap();
        assert_eq!((report.retries, report.stages[0].tasks), (0, 20));
        assert_eq!(fs::read_dir(folder.path().join("out/c")).unwrap().count(), 20);
    }
}

/// The panic of a kernel ends the run with its message and location, with every executor.
#[test]
fn a_panic_keeps_its_message() {
    let executors: [&dyn Executor; 3] = [&Serial, &Threads::new(2), &processes(2)];
    for executor in executors {
        let folder = tempfile::tempdir().unwrap();
        let error = run(folder.path(), &Odd::Panics { at: 30 }, 6, executor).unwrap_err();
        let (failure, attempts) = failure(&error);
        assert_eq!((failure.kind, failure.task, attempts), (FailureKind::Kernel, 3, 1), "{error}");
        assert!(
            failure.message.contains("kernel `odd` panicked: block 30 was requested to panic ("),
            "{error}"
        );
        assert!(failure.message.contains("helper/kernel.rs:"), "{error}");
    }
}

#[test]
fn a_worker_that_always_exits_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let error = run(folder.path(), &Odd::Exits, 3, &processes(1)).unwrap_err();
    let (failure, attempts) = failure(&error);
    assert_eq!((failure.kind, attempts), (FailureKind::Crashed, 2), "{error}");
    assert!(failure.message.contains("exit status: 3"), "{error}");
}

/// A program whose `main` never serves gets an error, and does not start itself recursively.
#[test]
fn a_program_that_does_not_serve_starts_itself_once() {
    let folder = tempfile::tempdir().unwrap();
    let context = written(folder.path());
    let log = folder.path().join("log").display().to_string();
    let arguments = ["forgetful", &log, &context.address.work_dir, &context.address.folder];
    assert!(
        Command::new(HELPER)
            .args(arguments)
            .env_remove(WORKER_VARIABLE)
            .status()
            .unwrap()
            .success()
    );
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let [first, second, inner, outer] = lines[..] else { panic!("{text}") };
    assert_eq!([first, second], ["started"; 2]);
    assert!(
        inner.contains("this process is itself a worker")
            && inner.contains("call `freestone::serve`"),
        "{inner}"
    );
    assert!(
        outer.contains(
            "exited before answering the probe (hint: `main` must call `freestone::serve`"
        ),
        "{outer}"
    );
}

#[test]
fn serving_without_a_driver_is_refused() {
    let output = Command::new(HELPER).stdin(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("standard input is not a driver's socket"),
        "{text}"
    );
}

/// A worker refuses a plan that it cannot run before the first task, with the kind of the reason.
#[test]
fn unsupported_plans_are_refused_before_the_first_task() {
    let folder = tempfile::tempdir().unwrap();
    let context = written(folder.path());
    let text = String::from_utf8(context.plan.to_bytes().unwrap()).unwrap();
    let refused = |plan: &str| {
        store(&context, plan.as_bytes());
        match processes(1).check(&context).unwrap_err() {
            ExecutorError::Refused { refusal, .. } => (refusal.kind, refusal.message),
            other => panic!("{other}"),
        }
    };
    processes(1).check(&context).unwrap();
    let other = text.replacen(&format!("\"engine\":\"{ENGINE}\""), "\"engine\":\"0.0.9\"", 1);
    let (kind, message) = refused(&other);
    assert_eq!(kind, RefusalKind::Engine);
    assert!(
        message.contains("Freestone 0.0.9")
            && message.contains(&format!("Freestone {ENGINE}"))
            && message.contains("hint:"),
        "{message}"
    );
    // Also if the other version has other fields.
    assert_eq!(refused(&other.replacen("\"arrays\":", "\"tensors\":", 1)).0, RefusalKind::Engine);
    let error = FinalizedPlan::from_bytes(other.as_bytes()).unwrap_err();
    assert!(matches!(&error, PlanError::Engine { found } if found == "0.0.9"), "{error}");
    assert_eq!(refused(&text.replacen("\"format\":3", "\"format\":2", 1)).0, RefusalKind::Format);
    assert_eq!(refused("{}").0, RefusalKind::Plan);
    let unknown = refused_kernel_version(&context);
    assert_eq!(unknown.0, RefusalKind::UnknownKernel);
    assert!(
        unknown.1.contains("`odd`") && unknown.1.contains("version 1") && unknown.1.contains('2'),
        "{}",
        unknown.1
    );
}

/// Returns the refusal of a plan that needs another version of the kernel.
fn refused_kernel_version(context: &RunContext) -> (RefusalKind, String) {
    let text = String::from_utf8(context.plan.to_bytes().unwrap()).unwrap();
    let plan = FinalizedPlan::from_bytes(
        text.replacen("\"name\":\"odd\",\"version\":1", "\"name\":\"odd\",\"version\":2", 1)
            .as_bytes(),
    )
    .unwrap();
    let address = RunAddress {
        folder: format!("{}-1234567890abcdef-1", plan.run_id()),
        ..context.address.clone()
    };
    let other = RunContext {
        plan: Arc::new(plan),
        address,
        kernels: Arc::new(KernelRegistry::new()),
        ..context.clone()
    };
    store(&other, &other.plan.to_bytes().unwrap());
    match processes(1).check(&other).unwrap_err() {
        ExecutorError::Refused { refusal, .. } => (refusal.kind, refusal.message),
        error => panic!("{error}"),
    }
}

struct Exceeded(Mutex<Vec<MemoryExcess>>);

impl Observer for Exceeded {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::MemoryExceeded(excess) = event {
            self.0.lock().unwrap().push((*excess).clone());
        }
    }
}

/// Memory that a kernel allocates itself is not projected. The run reports the excess and names the
/// kernel, for tasks in this process and in others.
#[test]
fn a_kernel_that_exceeds_the_projection_is_named() {
    const HOG: usize = 200_000_000;
    let executors: [&dyn Executor; 3] = [&processes(1), &Serial, &processes(2)];
    for executor in executors {
        let (folder, observer) = (tempfile::tempdir().unwrap(), Exceeded(Mutex::default()));
        let report =
            watched(folder.path(), &Odd::Hogs { bytes: HOG }, 6, executor, &[&observer]).unwrap();
        let excess = report.memory_excess.clone().unwrap();
        assert_eq!(
            (excess.kernel.as_deref(), excess.stage.as_str()),
            (Some("odd"), report.stages[0].name.as_str()),
            "{report}"
        );
        assert!(
            excess.measured_bytes > HOG as u64 && excess.projected_bytes == report.projected_bytes,
            "{report}"
        );
        let last = report.to_string().lines().last().unwrap().to_owned();
        assert!(
            last.starts_with("warning: memory exceeded its projection: ")
                && last.contains("kernel `odd` (hint:"),
            "{last}"
        );
        let reported = observer.0.into_inner().unwrap();
        assert!(reported.len() == 1 && reported[0].stage == excess.stage, "{reported:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let report = run(folder.path(), &Odd::Prints, 6, &processes(2)).unwrap();
    assert!(report.memory_excess.is_none() && !report.to_string().contains("warning"), "{report}");
}

/// The error of a failed run with a user's kernel names the kernel in its hint. Programs without
/// the kernel are refused before they change anything.
#[test]
fn a_run_with_a_kernel_is_resumed_by_a_program_with_the_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let error = run(folder.path(), &Odd::Panics { at: 30 }, 6, &Serial).unwrap_err();
    let RunError::Stopped { run: place, .. } = &error else { panic!("{error}") };
    let advice = error.to_string().lines().last().unwrap().to_owned();
    assert!(
        advice.contains(&format!("call `freestone::resume` for {place}"))
            && advice.contains("the kernel `odd`"),
        "{advice}"
    );
    let (work_dir, name) = place.rsplit_once('/').unwrap();
    let (stores, spec) = (Stores::default(), spec(folder.path()));
    let stored =
        || StoredRun::open(&stores, RunAddress { work_dir: work_dir.into(), folder: name.into() });
    let resume = |executor: &dyn Executor, kernels: &KernelRegistry| {
        let session =
            PlainZarr::of_ticket(stores.clone(), &stored().unwrap().record.session).unwrap();
        let run = Run {
            spec: &spec,
            stores: &stores,
            kernels,
            executor,
            publisher: &session,
            observers: &[],
            cancel: Cancel::default(),
        };
        driver::resume(&stored().unwrap(), &run, false).unwrap_err()
    };
    for executor in [&Serial as &dyn Executor, &Threads::new(2)] {
        let error = resume(executor, &KernelRegistry::new());
        let RunError::Executor(ExecutorError::Refused { refusal, .. }) = &error else {
            panic!("{error}")
        };
        assert_eq!(refusal.kind, RefusalKind::UnknownKernel, "{error}");
        assert!(
            error
                .to_string()
                .contains("unknown kernel `odd` (hint: use the program that contains it"),
            "{error}"
        );
        let error = resume(executor, &KernelRegistry::new().with::<Odd>());
        assert_eq!(failure(&error).0.kind, FailureKind::Kernel, "{error}");
    }
    // Another engine version is refused, too.
    let plan = format!("{place}/plan.json");
    let text = fs::read_to_string(&plan).unwrap();
    fs::write(&plan, text.replacen(&format!("\"engine\":\"{ENGINE}\""), "\"engine\":\"0.0.9\"", 1))
        .unwrap();
    let error = stored().unwrap_err();
    assert!(matches!(&error, RunError::OtherEngine { found, .. } if found == "0.0.9"), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("begun by Freestone 0.0.9")
            && text.contains(&format!("this program is Freestone {ENGINE} (hint: resume it with")),
        "{text}"
    );
}
