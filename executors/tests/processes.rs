//! Worker processes: the suite of executors, what workers and kernels print, how they fail, and
//! programs that do not serve.

// A test that panics has failed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "../helper/kernel.rs"]
mod kernel;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use freestone_engine::driver::record::StoredRun;
use freestone_engine::driver::{self, Run, RunError};
use freestone_engine::events::{Event, MemoryExcess, Observer, RunReport};
use freestone_engine::executor::{Executor, ExecutorError};
use freestone_engine::kernels::DType;
use freestone_engine::plan::lower::{kernels_of, lower, stores_of};
use freestone_engine::plan::{ENGINE, FinalizedPlan, PlanError};
use freestone_engine::publish::PlainZarr;
use freestone_engine::remote::RefusalKind;
use freestone_engine::spec::{Settings, Spec};
use freestone_engine::storage::Stores;
use freestone_engine::task::{FailureKind, RunAddress, TaskFailure};
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::{Cancel, RunContext};
use freestone_executors::{Processes, Serial, Threads, WORKER_VARIABLE, conformance};
use freestone_ops::io::{Target, outputs};
use freestone_ops::{OutputBlocks, arange, map_blocks};
use kernel::Odd;

const WORKER: &str = env!("CARGO_BIN_EXE_freestone-test-worker");

fn processes(n: usize) -> Processes {
    Processes::new(n, WORKER, ["worker"])
}

fn spec(folder: &Path) -> Spec {
    let work_dir = Some(folder.join("work").display().to_string());
    Settings { work_dir, threads: Some(2), allowed_mem: Some(50_000_000), ..Settings::default() }
        .resolve()
        .unwrap()
}

/// `0, 1, …` through the kernel, in `n` chunks of 10.
fn targets(folder: &Path, kernel: &Odd, n: u32) -> [Target; 1] {
    let numbers = arange(0.0, 10.0 * f64::from(n), 1.0, DType::Float64, 10);
    let odd = map_blocks(kernel, &[&numbers], &OutputBlocks::new(DType::Float64));
    [Target::array(&odd, &folder.join("out").display().to_string())]
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

/// A plan where a driver would put it.
fn written(folder: &Path) -> RunContext {
    let spec = spec(folder);
    let lowered = outputs(&targets(folder, &Odd::Prints, 3), &Stores::default()).unwrap();
    let plan = lower(&lowered, &spec).unwrap();
    let address = RunAddress {
        work_dir: spec.work_dir,
        folder: format!("{}-1234567890abcdef-1", plan.run_id()),
    };
    let kernels = Arc::new(kernels_of(&lowered).unwrap());
    let context = RunContext {
        plan: Arc::new(plan),
        address,
        stores: Stores::default(),
        kernels,
        cancel: Cancel::default(),
    };
    store(&context, &context.plan.to_bytes().unwrap());
    context
}

fn store(context: &RunContext, plan: &[u8]) {
    fs::create_dir_all(context.address.path()).unwrap();
    fs::write(format!("{}/plan.json", context.address.path()), plan).unwrap();
}

#[test]
fn processes_pass_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    conformance::check(folder.path(), |slots| Box::new(processes(slots)));
}

/// Standard output is no part of the protocol, whoever prints: kernels, their child processes,
/// `main` before it serves.
#[test]
fn what_workers_print_breaks_nothing() {
    for program in [processes(2), Processes::new(2, WORKER, ["noisy"])] {
        let folder = tempfile::tempdir().unwrap();
        let report = run(folder.path(), &Odd::Prints, 20, &program).unwrap();
        assert_eq!((report.retries, report.stages[0].tasks), (0, 20));
        assert_eq!(fs::read_dir(folder.path().join("out/c")).unwrap().count(), 20);
    }
}

/// A kernel's panic ends the run with its text and place, wherever it runs.
#[test]
fn a_panic_keeps_its_text() {
    let executors: [&dyn Executor; 3] = [&Serial, &Threads::new(2), &processes(2)];
    for executor in executors {
        let folder = tempfile::tempdir().unwrap();
        let error = run(folder.path(), &Odd::Panics { at: 30 }, 6, executor).unwrap_err();
        let (failure, attempts) = failure(&error);
        assert_eq!((failure.kind, failure.task, attempts), (FailureKind::Kernel, 3, 1), "{error}");
        assert!(
            failure.message.contains("kernel `odd` panicked: block 30 is told to panic ("),
            "{error}"
        );
        assert!(failure.message.contains("helper/kernel.rs:"), "{error}");
    }
}

#[test]
fn a_worker_that_always_dies_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let error = run(folder.path(), &Odd::Exits, 3, &processes(1)).unwrap_err();
    let (failure, attempts) = failure(&error);
    assert_eq!((failure.kind, attempts), (FailureKind::Crashed, 2), "{error}");
    assert!(failure.message.contains("exit status: 3"), "{error}");
}

/// A program whose `main` never serves is told so, and does not start itself over and over.
#[test]
fn a_program_that_does_not_serve_starts_itself_once() {
    let folder = tempfile::tempdir().unwrap();
    let context = written(folder.path());
    let log = folder.path().join("log").display().to_string();
    let arguments = ["forgetful", &log, &context.address.work_dir, &context.address.folder];
    assert!(
        Command::new(WORKER)
            .args(arguments)
            .env_remove(WORKER_VARIABLE)
            .status()
            .unwrap()
            .success()
    );
    let said = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let [first, second, inner, outer] = lines[..] else { panic!("{said}") };
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

/// Without a driver there is nothing to serve.
#[test]
fn serving_without_a_driver_is_refused() {
    let output = Command::new(WORKER).stdin(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("standard input is not a driver's socket"),
        "{said}"
    );
}

/// The probe finds out before the first task what a worker cannot run, and says why by kind.
#[test]
fn what_a_worker_cannot_run_is_refused_before_the_first_task() {
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
    // Also where the other version has other fields.
    assert_eq!(refused(&other.replacen("\"arrays\":", "\"tensors\":", 1)).0, RefusalKind::Engine);
    assert!(
        matches!(FinalizedPlan::from_bytes(other.as_bytes()), Err(PlanError::Engine { found }) if found == "0.0.9")
    );
    assert_eq!(refused(&text.replacen("\"format\":3", "\"format\":2", 1)).0, RefusalKind::Format);
    assert_eq!(refused("{}").0, RefusalKind::Plan);
    let unknown = written_by_other(&context);
    assert_eq!(unknown.0, RefusalKind::UnknownKernel);
    assert!(
        unknown.1.contains("`odd`") && unknown.1.contains("version 1") && unknown.1.contains('2'),
        "{}",
        unknown.1
    );
}

/// The refusal of a plan that needs another version of the kernel.
fn written_by_other(context: &RunContext) -> (RefusalKind, String) {
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

/// What a kernel takes by itself is in no projection. The run says so, in this process and in
/// others, and names the kernel.
#[test]
fn a_kernel_that_takes_more_than_projected_is_named() {
    const HOG: usize = 200_000_000;
    let executors: [&dyn Executor; 3] = [&processes(1), &Serial, &processes(2)];
    for executor in executors {
        let (folder, told) = (tempfile::tempdir().unwrap(), Exceeded(Mutex::default()));
        let report =
            watched(folder.path(), &Odd::Hogs { bytes: HOG }, 6, executor, &[&told]).unwrap();
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
        let told = told.0.into_inner().unwrap();
        assert!(told.len() == 1 && told[0].stage == excess.stage, "{told:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let report = run(folder.path(), &Odd::Prints, 6, &processes(2)).unwrap();
    assert!(report.memory_excess.is_none() && !report.to_string().contains("warning"), "{report}");
}

/// A run that has a kernel of one's own, and has failed: the advice names what can resume it, and
/// what cannot is refused before it changes anything.
#[test]
fn a_run_with_a_kernel_is_resumed_by_the_program_that_has_it() {
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
        assert!(
            matches!(&error, RunError::Executor(ExecutorError::Refused { refusal, .. }) if refusal.kind == RefusalKind::UnknownKernel),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("unknown kernel `odd` (hint: use the program that contains it"),
            "{error}"
        );
        let error = resume(executor, &KernelRegistry::new().with::<Odd>());
        assert_eq!(failure(&error).0.kind, FailureKind::Kernel, "{error}");
    }
    // Nor by another version of the engine.
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
