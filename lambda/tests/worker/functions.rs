//! Functions in the emulator, requests to their workers, and a minimal executor.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use freestone_engine::executor::{Executor, ExecutorError, Next, TaskSource};
use freestone_engine::plan::{FinalizedPlan, StageId};
use freestone_engine::remote::{RefusalKind, read_record};
use freestone_engine::spec::{Settings, Spec};
use freestone_engine::storage::Stores;
use freestone_engine::task::{FailureKind, RunAddress, TaskFailure, TaskOutcome, TaskRequest};
use freestone_engine::worker::RunContext;
use freestone_lambda_emulator::{Config, Emulator};
use freestone_worker::{Answer, Call, Environment, Invocation};
use tempfile::TempDir;

use crate::runs::spec_in;

/// The stock worker.
pub(crate) const BOOTSTRAP: &str = env!("CARGO_BIN_EXE_bootstrap");

/// The worker with the kernel `scripted`.
const SCRIPTED_WORKER: &str = env!("CARGO_BIN_EXE_freestone-test-lambda-worker");

/// A time limit that only a deadlock exceeds, even on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// Returns the command of the test client, which is the example `test_client` of this build.
pub(crate) fn test_client() -> Command {
    let this = std::env::current_exe().unwrap();
    let path: PathBuf = this.ancestors().nth(2).unwrap().join("examples/test_client");
    let hint = "run `cargo build -p freestone-lambda --example test_client` in this profile";
    assert!(path.exists(), "no test client at {} (hint: {hint})", path.display());
    Command::new(path)
}

/// Waits for a condition that stays true.
#[track_caller]
pub(crate) fn eventually(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "the condition is still false after {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A temporary folder of one test.
pub(crate) struct Place(pub(crate) TempDir);

impl Place {
    pub(crate) fn new() -> Place {
        Place(TempDir::new().unwrap())
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    pub(crate) fn spec(&self) -> Spec {
        self.spec_with(|_| ())
    }

    pub(crate) fn spec_with(&self, change: impl FnOnce(&mut Settings)) -> Spec {
        spec_in(self.0.path(), change)
    }
}

/// Writes a plan where a driver would.
pub(crate) fn written(plan: &FinalizedPlan, spec: &Spec) -> RunAddress {
    let address = RunAddress {
        work_dir: spec.work_dir.clone(),
        folder: format!("{}-1234567890abcdef-1", plan.run_id()),
    };
    let work = Stores::default().open(&address.work_dir).unwrap();
    work.write(&format!("{}/plan.json", address.folder), &plan.to_bytes().unwrap()).unwrap();
    address
}

/// Starts a function with the stock worker.
pub(crate) fn stock_function(change: impl FnOnce(&mut Config)) -> Emulator {
    let mut config = Config::new("freestone", BOOTSTRAP);
    change(&mut config);
    Emulator::start(config).unwrap()
}

/// Starts a function with the worker that has the kernel `scripted`.
pub(crate) fn scripted_function(change: impl FnOnce(&mut Config)) -> Emulator {
    stock_function(|config| {
        config.command = SCRIPTED_WORKER.into();
        change(config);
    })
}

/// The client's name in records.
pub(crate) const CLIENT: &str = "test-1";

/// Invokes a function and returns its answer.
pub(crate) fn ask(emulator: &Emulator, address: &RunAddress, call: Call) -> Answer {
    let body = serde_json::to_vec(&Invocation::new(address.clone(), CLIENT, call)).unwrap();
    // Repeated if an injected fault loses the answer.
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

/// A minimal executor, with one invocation per request.
#[derive(Debug)]
pub(crate) struct EmulatorExecutor<'a> {
    pub(crate) emulator: &'a Emulator,
    pub(crate) slots: usize,
}

impl EmulatorExecutor<'_> {
    fn outcome(&self, context: &RunContext, request: TaskRequest) -> TaskOutcome {
        let call =
            Invocation::new(context.address.clone(), CLIENT, Call::Run(vec![request.clone()]));
        let message = loop {
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
            message,
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

impl Executor for EmulatorExecutor<'_> {
    fn name(&self) -> &str {
        "emulator"
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

/// Returns the rest of an answer to [`Call::Run`].
#[track_caller]
pub(crate) fn done(answer: Answer) -> (Environment, Vec<TaskOutcome>, Vec<u64>, Vec<u64>) {
    match answer {
        Answer::Done { environment, outcomes, recorded, not_started, .. } => {
            (environment, outcomes, recorded, not_started)
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub(crate) fn ready(answer: Answer) -> (Environment, Vec<u32>) {
    match answer {
        Answer::Ready { environment, slots, .. } => (environment, slots),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub(crate) fn refused(answer: Answer) -> (RefusalKind, String) {
    match answer {
        Answer::Refused { refusal, .. } => (refusal.kind, refusal.message),
        other => panic!("{other:?}"),
    }
}

/// Asserts that all of a request's tasks are done.
pub(crate) fn assert_complete(outcome: &TaskOutcome) {
    assert_eq!(outcome.failure, None);
    let tasks: Vec<u64> = outcome.done.iter().map(|d| d.task).collect();
    let request = &outcome.request;
    let expected: Vec<u64> = (request.first..request.first + request.count).collect();
    assert_eq!(tasks, expected);
}

/// Returns a number of bytes in MiB, rounded up.
pub(crate) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Returns true if a function has no running invocations.
pub(crate) fn is_idle(emulator: &Emulator) -> bool {
    let stats = emulator.stats();
    stats.requested == stats.invocations + stats.throttled
}

/// Returns the requests of the recorded invocations from a number on.
pub(crate) fn recorded_requests(emulator: &Emulator, from: usize) -> Vec<TaskRequest> {
    let recorded = emulator.recorded_invocations().split_off(from);
    let calls = recorded.iter().map(|i| serde_json::from_slice::<Invocation>(&i.request).unwrap());
    calls
        .flat_map(|invocation| match invocation.call {
            Call::Run(requests) => requests,
            Call::Probe => Vec::new(),
        })
        .collect()
}

/// Returns the AWS variables of this process.
pub(crate) fn aws_variables() -> Vec<(String, String)> {
    std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect()
}
