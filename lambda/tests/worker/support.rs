//! Plans, a function to run them on, and an executor that is as simple as one can be.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use freestone_engine::driver::{self, Run};
use freestone_engine::events::RunReport;
use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::plan::lower::{kernels_of, lower, stores_of};
use freestone_engine::plan::{FinalizedPlan, StageId};
use freestone_engine::publish::PlainZarr;
use freestone_engine::remote::read_record;
use freestone_engine::spec::{Settings, Spec};
use freestone_engine::storage::Stores;
use freestone_engine::task::{FailureKind, RunAddress, TaskFailure, TaskOutcome, TaskRequest};
use freestone_engine::user::KernelRegistry;
use freestone_engine::worker::{Cancel, RunContext};
use freestone_lambda_emulator::{Config, Emulator};
use freestone_ops::io::{Target, outputs};
use freestone_ops::{Array, OutputBlocks, map_blocks};
use freestone_worker::{Answer, Call, Invocation};
use tempfile::TempDir;

pub(crate) use crate::odd::Odd;

/// The stock worker.
pub(crate) const BOOTSTRAP: &str = env!("CARGO_BIN_EXE_bootstrap");

/// A worker that knows [`Odd`].
const OWN: &str = env!("CARGO_BIN_EXE_freestone-test-lambda-worker");

/// What [`own`] functions know.
pub(crate) fn kernels() -> KernelRegistry {
    KernelRegistry::new().with::<Odd>()
}

/// A folder for one test.
pub(crate) struct Place(pub(crate) TempDir);

impl Place {
    pub(crate) fn new() -> Place {
        Place(TempDir::new().unwrap())
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Tasks of at most 100 MB, two at once as far as the plan is concerned.
    pub(crate) fn spec(&self) -> Spec {
        self.spec_with(|_| ())
    }

    pub(crate) fn spec_with(&self, change: impl FnOnce(&mut Settings)) -> Spec {
        let mut settings = Settings {
            work_dir: Some(self.at("work")),
            allowed_mem: Some(100_000_000),
            local_mem: Some(1_000_000_000),
            threads: Some(2),
            parallelism: Some(2),
            ..Settings::default()
        };
        change(&mut settings);
        settings.resolve().unwrap()
    }
}

/// `0, 1, …` in chunks of 10, through [`Odd`].
pub(crate) fn odd(n_chunks: u64, kernel: &Odd) -> Array {
    let numbers = freestone_ops::arange(
        0.0,
        10.0 * n_chunks as f64,
        1.0,
        freestone_lambda::DType::Float64,
        10,
    );
    through(kernel, &numbers)
}

/// An array of float64 through [`Odd`].
pub(crate) fn through(kernel: &Odd, array: &Array) -> Array {
    map_blocks(kernel, &[array], &OutputBlocks::new(freestone_lambda::DType::Float64))
}

pub(crate) fn plan(targets: &[Target], spec: &Spec) -> FinalizedPlan {
    lower(&outputs(targets, &Stores::default()).unwrap(), spec).unwrap()
}

/// Puts a plan where a driver would.
pub(crate) fn written(plan: &FinalizedPlan, spec: &Spec) -> RunAddress {
    let address = RunAddress {
        work_dir: spec.work_dir.clone(),
        folder: format!("{}-1234567890abcdef-1", plan.run_id()),
    };
    let work = Stores::default().open(&address.work_dir).unwrap();
    work.write(&format!("{}/plan.json", address.folder), &plan.to_bytes().unwrap()).unwrap();
    address
}

/// A function that runs the stock worker.
pub(crate) fn stock(change: impl FnOnce(&mut Config)) -> Emulator {
    let mut config = Config::new("freestone", BOOTSTRAP);
    change(&mut config);
    Emulator::start(config).unwrap()
}

/// A function that runs a worker which knows [`Odd`].
pub(crate) fn own(change: impl FnOnce(&mut Config)) -> Emulator {
    stock(|config| {
        config.command = OWN.into();
        change(config);
    })
}

pub(crate) const CLIENT: &str = "test-1";

pub(crate) fn ask(emulator: &Emulator, address: &RunAddress, call: Call) -> Answer {
    let body = serde_json::to_vec(&Invocation::new(address.clone(), CLIENT, call)).unwrap();
    // Where answers get lost on purpose, it asks again.
    let invoked = (0..20).find_map(|_| emulator.invoke(&body).ok()).unwrap();
    assert!(invoked.status == 200 && !invoked.is_function_error(), "{}", invoked.text());
    serde_json::from_slice(&invoked.body).unwrap()
}

pub(crate) fn request(id: u64, stage: usize, tasks: std::ops::Range<u64>) -> TaskRequest {
    TaskRequest {
        id,
        stage: StageId(stage),
        first: tasks.start,
        count: tasks.end - tasks.start,
        attempt: 0,
        backup_of: None,
        timeout_ms: None,
    }
}

/// Invokes a function once for each request.
#[derive(Debug)]
pub(crate) struct Remote<'a> {
    pub(crate) emulator: &'a Emulator,
    pub(crate) slots: usize,
}

impl Remote<'_> {
    fn outcome(&self, context: &RunContext, request: TaskRequest) -> TaskOutcome {
        let call =
            Invocation::new(context.address.clone(), CLIENT, Call::Run(vec![request.clone()]));
        let why = loop {
            match self.emulator.invoke(&serde_json::to_vec(&call).unwrap()) {
                Ok(answer) if answer.status == 429 => std::thread::sleep(Duration::from_millis(5)),
                Ok(answer) if answer.status == 200 && !answer.is_function_error() => {
                    match serde_json::from_slice(&answer.body).unwrap() {
                        Answer::Done { mut outcomes, .. } if outcomes.len() == 1 => {
                            return outcomes.remove(0);
                        }
                        other => panic!("{other:?}"),
                    }
                }
                Ok(answer) => break answer.text(),
                Err(error) => break error.to_string(),
            }
        };
        let work = context.stores.open(&context.address.work_dir).unwrap();
        if let Some(outcome) =
            read_record(&*work, &context.address.folder, CLIENT, &request).unwrap()
        {
            return outcome;
        }
        let failure = TaskFailure {
            kind: FailureKind::WorkerLost,
            message: why,
            stage: String::new(),
            task: request.first,
        };
        TaskOutcome {
            request,
            worker: "lost".into(),
            done: Vec::new(),
            failure: Some(failure),
            worker_peak_bytes: None,
        }
    }
}

impl Executor for Remote<'_> {
    fn name(&self) -> &str {
        "remote"
    }

    fn slots(&self) -> usize {
        self.slots
    }

    fn shares_process(&self) -> bool {
        false
    }

    fn check(&self, context: &RunContext) -> Result<(), ExecutorError> {
        match ask(self.emulator, &context.address, Call::Probe) {
            Answer::Ready { .. } => Ok(()),
            other => Err(ExecutorError::Unreachable(format!("{other:?}"))),
        }
    }

    fn run(&self, context: &RunContext, source: &dyn TaskSource) -> Result<(), ExecutorError> {
        std::thread::scope(|scope| {
            for _ in 0..self.slots {
                scope.spawn(|| {
                    loop {
                        match source.try_next() {
                            Next::Run(request) => source.finished(self.outcome(context, request)),
                            Next::Wait => source.wait(),
                            Next::Stop => return,
                        }
                    }
                });
            }
        });
        Ok(())
    }
}

/// Plans and runs with the driver.
pub(crate) fn run(targets: &[Target], spec: &Spec, executor: &dyn Executor) -> RunReport {
    let lowered = outputs(targets, &Stores::default()).unwrap();
    let plan = Arc::new(lower(&lowered, spec).unwrap());
    let stores = stores_of(&lowered).unwrap();
    let session = PlainZarr::new(stores.clone());
    let kernels = kernels_of(&lowered).unwrap();
    let run = Run {
        spec,
        stores: &stores,
        kernels: &kernels,
        executor,
        publisher: &session,
        observers: &[],
        cancel: Cancel::default(),
    };
    driver::run(&plan, &run).unwrap()
}

/// Every file below a folder, by its path there.
pub(crate) fn tree(folder: impl AsRef<Path>) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.insert(
                    path.strip_prefix(root).unwrap().display().to_string(),
                    fs::read(&path).unwrap(),
                );
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(folder.as_ref(), folder.as_ref(), &mut found);
    found
}
