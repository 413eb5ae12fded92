//! The conformance suite of executors.
//!
//! The suite runs a real plan, with a source that records requests and outcomes. It checks the
//! contract of [`Executor`]: every request is returned exactly once, at most as many requests are
//! in flight as there are slots, failures are outcomes, and nothing runs after `run` has returned.
//! The test of an executor calls [`check`].

// The suite reports violations by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use freestone_engine::executor::{Executor, Next, TaskSource};
use freestone_engine::graph::{Node, Op};
use freestone_engine::grid::ChunkGrid;
use freestone_engine::kernels::{DType, Generate, Scalar};
use freestone_engine::plan::lower::{Output, lower};
use freestone_engine::plan::{FinalizedPlan, Mode, StageId};
use freestone_engine::spec::{Settings, Spec};
use freestone_engine::storage::{ArrayInfo, CodecName, Stores};
use freestone_engine::system::System;
use freestone_engine::task::{FailureKind, RunAddress, TaskOutcome, TaskRequest};
use freestone_engine::worker::{Cancel, RunContext};
use serde_json::Value;

/// The number of tasks of the plan, one for each chunk of 10 numbers.
const N_TASKS: u64 = 60;

/// Runs the suite in an empty folder. `make` creates an executor with a number of slots.
///
/// # Panics
/// Panics if the executor violates the contract, with a description of the violation.
pub fn check(folder: &Path, make: impl Fn(usize) -> Box<dyn Executor>) {
    for slots in [1, 3] {
        let executor = make(slots);
        let executor = &*executor;
        // An executor may always have one slot.
        assert!(
            (1..=slots).contains(&executor.slots()),
            "`{}` has {} slots, not {slots}",
            executor.name(),
            executor.slots()
        );
        let at = |name: &str| context(&folder.join(format!("{name}-{slots}")));
        every_request_is_returned_once(executor, &at("once"));
        run_can_be_repeated(executor, &at("repeated"));
        waits_for_later_requests(executor, &at("later"));
        stops_when_the_source_stops(executor, &at("stop"));
        failures_are_outcomes(executor, &at("failures"));
    }
}

/// Returns the context of a plan that writes `0, 1, …` into a folder, stored as by a driver.
pub(crate) fn context(folder: &Path) -> RunContext {
    let url = folder.join("out").display().to_string();
    let settings = Settings {
        work_dir: Some(folder.join("work").display().to_string()),
        threads: Some(1),
        ..Settings::default()
    };
    let spec: Spec = settings.resolve().expect("the settings are valid");
    let grid = ChunkGrid::regular(&[10 * N_TASKS], &[10]).expect("the grid is valid");
    let op = Op::Generate(Generate::Arange { start: Scalar::new(1.0), step: Scalar::new(1.0) });
    let output = Output {
        node: Arc::new(Node { op, dtype: DType::Float64, grid: grid.clone() }),
        name: "numbers".into(),
        url,
        path: "numbers".into(),
        info: ArrayInfo::intermediate(DType::Float64, grid, CodecName::None),
        document: Value::Null,
        group: None,
        overwrite: false,
        mode: Mode::Whole,
        consolidated: false,
    };
    let plan: FinalizedPlan = lower(&[output], &spec).expect("the plan is made");
    assert_eq!(plan.plan().stages[0].n_tasks(), N_TASKS);
    let address = RunAddress { work_dir: spec.work_dir, folder: plan.run_id().to_string() };
    let stores = Stores::default();
    let work = stores.open(&address.work_dir).expect("the work directory opens");
    work.write(
        &format!("{}/plan.json", address.folder),
        &plan.to_bytes().expect("the plan has bytes"),
    )
    .expect("the plan is written");
    RunContext {
        plan: Arc::new(plan),
        address,
        stores,
        kernels: Arc::default(),
        cancel: Cancel::default(),
    }
}

pub(crate) fn request(first: u64, count: u64) -> TaskRequest {
    TaskRequest {
        id: first,
        stage: StageId(0),
        first,
        count,
        attempt: 0,
        backup_of: None,
        timeout_ms: None,
    }
}

/// A source of a list of requests that records the calls.
pub(crate) struct Recording {
    slots: usize,
    /// The number of first calls that return [`Next::Wait`].
    waits_first: usize,
    /// The number of outcomes after which the source stops.
    stop_after: usize,
    pub(crate) state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) todo: VecDeque<TaskRequest>,
    dispatched: Vec<TaskRequest>,
    pub(crate) outcomes: Vec<TaskOutcome>,
    in_flight: usize,
    calls: usize,
    waited: usize,
    over: bool,
}

impl Recording {
    pub(crate) fn new(
        executor: &dyn Executor,
        todo: impl IntoIterator<Item = TaskRequest>,
    ) -> Recording {
        let state = Mutex::new(State { todo: todo.into_iter().collect(), ..State::default() });
        Recording {
            slots: executor.slots(),
            waits_first: 0,
            stop_after: usize::MAX,
            state,
            changed: Condvar::new(),
        }
    }

    /// Runs all requests and returns the record. Nothing may be called afterwards.
    pub(crate) fn run(&self, executor: &dyn Executor, context: &RunContext) -> State {
        executor.run(context, self).unwrap_or_else(|e| panic!("`{}` failed: {e}", executor.name()));
        let recorded = std::mem::replace(
            &mut *self.state.lock().unwrap(),
            State { over: true, ..State::default() },
        );
        assert_eq!(recorded.in_flight, 0, "`{}` returned with requests in flight", executor.name());
        // Gives threads that still run time to show it.
        System::default().sleep(Duration::from_millis(20));
        let late = self.state.lock().unwrap();
        assert!(
            late.outcomes.is_empty() && late.calls == 0,
            "`{}` still ran after `run` had returned",
            executor.name()
        );
        recorded
    }
}

impl TaskSource for Recording {
    fn try_next(&self) -> Next {
        let mut state = self.state.lock().unwrap();
        state.calls += 1;
        if state.over || state.outcomes.len() >= self.stop_after {
            return Next::Stop;
        }
        if state.calls <= self.waits_first {
            return Next::Wait;
        }
        match state.todo.pop_front() {
            Some(request) => {
                state.in_flight += 1;
                assert!(
                    state.in_flight <= self.slots,
                    "more requests are in flight than there are slots"
                );
                state.dispatched.push(request.clone());
                Next::Run(request)
            }
            None if state.in_flight > 0 => Next::Wait,
            None => Next::Stop,
        }
    }

    fn wait(&self) {
        let mut state = self.state.lock().unwrap();
        state.waited += 1;
        drop(self.changed.wait_timeout(state, Duration::from_millis(2)));
    }

    fn finished(&self, outcome: TaskOutcome) {
        let mut state = self.state.lock().unwrap();
        state.in_flight =
            state.in_flight.checked_sub(1).expect("more requests were returned than dispatched");
        state.outcomes.push(outcome);
        self.changed.notify_all();
    }
}

/// Asserts that each dispatched request was returned once.
pub(crate) fn assert_all_returned(recorded: &State) {
    let key = |r: &TaskRequest| (r.stage, r.first, r.count, r.attempt);
    let mut dispatched: Vec<_> = recorded.dispatched.iter().map(key).collect();
    let mut returned: Vec<_> = recorded.outcomes.iter().map(|o| key(&o.request)).collect();
    dispatched.sort_unstable();
    returned.sort_unstable();
    assert_eq!(dispatched, returned, "each request is returned once");
}

fn assert_done(outcome: &TaskOutcome) {
    assert_eq!(outcome.failure, None);
    let tasks: Vec<u64> = outcome.done.iter().map(|d| d.task).collect();
    let requested: Vec<u64> =
        (outcome.request.first..outcome.request.first + outcome.request.count).collect();
    assert_eq!(tasks, requested, "the tasks of a request run in order, each once");
    assert!(outcome.done.iter().all(|d| d.receipts.len() == 1), "each task writes one chunk");
    assert!(!outcome.worker.is_empty(), "an outcome names its worker");
}

fn every_request_is_returned_once(executor: &dyn Executor, context: &RunContext) {
    // 1 + 2 + 3 + … tasks.
    let mut todo = Vec::new();
    let mut first = 0;
    while first < N_TASKS {
        let count = (todo.len() as u64 % 5 + 1).min(N_TASKS - first);
        todo.push(request(first, count));
        first += count;
    }
    let n = todo.len();
    let recorded = Recording::new(executor, todo).run(executor, context);
    assert_eq!(recorded.outcomes.len(), n);
    assert_all_returned(&recorded);
    recorded.outcomes.iter().for_each(assert_done);
    let place = context.plan.plan().arrays.iter().find(|a| a.name == "numbers").map(|a| &a.place);
    let Some(freestone_engine::plan::Place::Output { url, path }) = place else {
        panic!("the plan has no output")
    };
    let chunks = context.stores.open(url).unwrap().list(&format!("{path}/")).unwrap();
    assert_eq!(chunks.len() as u64, N_TASKS, "each task's chunk exists when `run` returns");
}

fn run_can_be_repeated(executor: &dyn Executor, context: &RunContext) {
    for _ in 0..2 {
        let recorded =
            Recording::new(executor, [request(3, 2), request(7, 1)]).run(executor, context);
        assert_all_returned(&recorded);
        recorded.outcomes.iter().for_each(assert_done);
    }
    let recorded = Recording::new(executor, []).run(executor, context);
    assert!(recorded.outcomes.is_empty(), "an empty source has no outcomes");
}

fn waits_for_later_requests(executor: &dyn Executor, context: &RunContext) {
    let source =
        Recording { waits_first: 10, ..Recording::new(executor, (0..8).map(|i| request(i, 1))) };
    let recorded = source.run(executor, context);
    assert!(recorded.waited > 0, "`Next::Wait` makes an executor wait");
    assert_eq!(recorded.outcomes.len(), 8);
    assert_all_returned(&recorded);
}

fn stops_when_the_source_stops(executor: &dyn Executor, context: &RunContext) {
    let source = Recording { stop_after: 0, ..Recording::new(executor, [request(0, 1)]) };
    let recorded = source.run(executor, context);
    assert!(recorded.dispatched.is_empty() && recorded.waited == 0, "`Stop` ends a run at once");

    let source = Recording {
        stop_after: 2,
        ..Recording::new(executor, (0..N_TASKS).map(|i| request(i, 1)))
    };
    let recorded = source.run(executor, context);
    assert_all_returned(&recorded);
    let most = 2 + executor.slots();
    assert!(
        (2..=most).contains(&recorded.outcomes.len()),
        "{} outcomes, but the source stopped after 2",
        recorded.outcomes.len()
    );
}

fn failures_are_outcomes(executor: &dyn Executor, context: &RunContext) {
    let no_stage = TaskRequest { stage: StageId(99), ..request(0, 1) };
    // The first of its tasks is done, and the second does not exist.
    let over_the_end = request(N_TASKS - 1, 2);
    let recorded =
        Recording::new(executor, [no_stage, over_the_end, request(5, 1)]).run(executor, context);
    assert_all_returned(&recorded);
    for outcome in &recorded.outcomes {
        let failure = outcome.failure.as_ref().map(|f| (f.kind, f.task));
        let expect = match (outcome.request.stage.0, outcome.request.first) {
            (99, _) => (Some((FailureKind::Plan, 0)), 0),
            (_, 5) => (None, 1),
            _ => (Some((FailureKind::Plan, N_TASKS)), 1),
        };
        assert_eq!((failure, outcome.done.len()), expect, "{:?}", outcome.request);
    }
}
