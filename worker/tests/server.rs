//! Tests of a server with concurrent invocations: shared memory, one plan at a time, and records.

// A test that panics has failed.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use freestone_engine::kernels::DType;
use freestone_engine::plan::lower::lower;
use freestone_engine::plan::{FinalizedPlan, StageId};
use freestone_engine::remote::{RefusalKind, read_record};
use freestone_engine::spec::Settings;
use freestone_engine::storage::Stores;
use freestone_engine::task::{RunAddress, TaskOutcome, TaskRequest};
use freestone_engine::user::{Block, BlockMut, KernelError, KernelRegistry, Scratch, UserKernel};
use freestone_ops::io::{Target, outputs};
use freestone_ops::{OutputBlocks, arange, map_blocks};
use freestone_worker::{Answer, Call, Invocation, Place, Server};
use serde::{Deserialize, Serialize};

/// The plans of the running tasks of one test, and the maximum of concurrent tasks.
#[derive(Debug, Default)]
struct Running {
    now: Vec<u32>,
    most: usize,
    mixed: bool,
}

static RUNNING: [(Mutex<Running>, Condvar); 2] =
    [const { (Mutex::new(Running { now: Vec::new(), most: 0, mixed: false }), Condvar::new()) }; 2];

/// A kernel that copies its block. A task waits until `at_once` tasks have run concurrently, up to
/// a limit.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Counted {
    test: usize,
    plan: u32,
    at_once: usize,
}

impl UserKernel for Counted {
    const NAME: &'static str = "counted";
    const VERSION: u32 = 1;

    fn scratch_bytes(&self, _inputs: &[&[usize]], _output: &[usize]) -> u64 {
        1_000_000
    }

    fn apply(
        &self,
        inputs: &[Block<'_>],
        output: &mut BlockMut<'_>,
        _scratch: &mut Scratch<'_>,
    ) -> Result<(), KernelError> {
        let (running, changed) = &RUNNING[self.test];
        let mut state = running.lock().unwrap();
        state.now.push(self.plan);
        state.most = state.most.max(state.now.len());
        state.mixed |= state.now.iter().any(|plan| *plan != self.plan);
        changed.notify_all();
        let (mut state, _) = changed
            .wait_timeout_while(state, Duration::from_secs(20), |s| s.most < self.at_once)
            .unwrap();
        let at = state.now.iter().position(|plan| *plan == self.plan).unwrap();
        state.now.remove(at);
        output.bytes.copy_from_slice(inputs[0].bytes);
        Ok(())
    }
}

/// Returns a plan of 12 tasks, stored as by a driver.
fn written(folder: &Path, kernel: &Counted) -> (FinalizedPlan, RunAddress) {
    let work_dir = folder.join("work").display().to_string();
    let spec =
        Settings { work_dir: Some(work_dir.clone()), threads: Some(1), ..Settings::default() }
            .resolve()
            .unwrap();
    let numbers = arange(0.0, 120.0, 1.0, DType::Float64, 10);
    let counted = map_blocks(kernel, [&numbers], &OutputBlocks::new(DType::Float64));
    let output = folder.join(format!("out-{}", kernel.plan)).display().to_string();
    let target = Target::array(&counted, output);
    let plan = lower(&outputs(&[target], &Stores::default()).unwrap(), &spec).unwrap();
    let address = RunAddress { work_dir, folder: format!("{}-1234567890abcdef-1", plan.run_id()) };
    std::fs::create_dir_all(address.path()).unwrap();
    std::fs::write(format!("{}/plan.json", address.path()), plan.to_bytes().unwrap()).unwrap();
    (plan, address)
}

fn server(memory_bytes: u64, max_tasks: u32) -> Server {
    let place = Place { kind: "test", id: "1".into(), memory_bytes, max_tasks, is_remote: true };
    Server::new(place, KernelRegistry::new().with::<Counted>(), Stores::default())
}

fn request(task: u64) -> TaskRequest {
    TaskRequest {
        id: task,
        stage: StageId(0),
        first: task,
        count: 1,
        attempt: 0,
        backup_of: None,
        timeout_ms: None,
    }
}

fn ask(server: &Server, invocation: &Invocation) -> Answer {
    server.answer(serde_json::to_value(invocation).unwrap(), None)
}

fn outcomes(answer: Answer) -> Vec<TaskOutcome> {
    let Answer::Done { outcomes, recorded, not_started, .. } = answer else { panic!("{answer:?}") };
    assert!(recorded.is_empty() && not_started.is_empty());
    outcomes
}

/// The number of concurrent tasks is limited by memory, and does not depend on the distribution of
/// requests over invocations.
#[test]
fn invocations_share_the_memory_of_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, address) = written(folder.path(), &Counted { test: 0, plan: 0, at_once: 2 });
    let memory = plan.plan().process_mem() + plan.layout(StageId(0)).estimate.per_task() * 5 / 2;
    let server = server(memory, 8);
    let invocation = |call| Invocation::unrecorded(address.clone(), call);
    let answer = ask(&server, &invocation(Call::Probe));
    let Answer::Ready { slots, remaining_ms: None, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(slots, [2]);
    std::thread::scope(|scope| {
        for first in (0..12).step_by(3) {
            let (server, invocation) =
                (&server, invocation(Call::Run((first..first + 3).map(request).collect())));
            scope.spawn(move || {
                let mut tasks: Vec<u64> = outcomes(ask(server, &invocation))
                    .iter()
                    .flat_map(|o| o.done.iter().map(|d| d.task))
                    .collect();
                tasks.sort_unstable();
                assert_eq!(tasks, (first..first + 3).collect::<Vec<u64>>());
            });
        }
    });
    assert_eq!(RUNNING[0].0.lock().unwrap().most, 2);
    let tight = self::server(plan.projected_mem() - 4096, 8);
    let Answer::Refused { refusal, .. } = ask(&tight, &invocation(Call::Probe)) else {
        panic!("the server has too little memory")
    };
    assert_eq!(refusal.kind, RefusalKind::ExceedsMemory);
    // Limits are in whole pages.
    assert!(matches!(
        ask(&self::server(plan.projected_mem() & !4095, 8), &invocation(Call::Probe)),
        Answer::Ready { .. }
    ));
}

/// Invocations of two plans do not run concurrently, because projections include one plan.
#[test]
fn plans_do_not_run_concurrently() {
    let folder = tempfile::tempdir().unwrap();
    let addresses =
        [0, 1].map(|plan| written(folder.path(), &Counted { test: 1, plan, at_once: 0 }).1);
    let server = server(1 << 30, 4);
    std::thread::scope(|scope| {
        for (worker, address) in [0, 1, 2, 3].into_iter().zip(addresses.iter().cycle()) {
            let server = &server;
            scope.spawn(move || {
                for task in 0..12 {
                    let invocation = Invocation::new(
                        address.clone(),
                        format!("client-{worker}"),
                        Call::Run(vec![request(task)]),
                    );
                    let done = outcomes(ask(server, &invocation));
                    assert!(
                        done.len() == 1 && done[0].failure.is_none() && done[0].done.len() == 1,
                        "{done:?}"
                    );
                }
            });
        }
    });
    assert!(!RUNNING[1].0.lock().unwrap().mixed, "tasks of two plans ran at once");
    // Only requests of named clients are recorded.
    let [_, address] = &addresses;
    let work = Stores::default().open(&address.work_dir).unwrap();
    let unrecorded = outcomes(ask(
        &server,
        &Invocation::unrecorded(address.clone(), Call::Run(vec![request(3)])),
    ));
    assert_eq!(unrecorded[0].request, request(3));
    let found = |client: &str| read_record(&*work, &address.folder, client, &request(3)).unwrap();
    assert!(
        found("client-1").is_some() && found("client-3").is_some() && found("client-0").is_none()
    );
    let clients = work.list(&format!("{}/answers/", address.folder)).unwrap();
    assert_eq!(clients.len(), 2, "{clients:?}");
}
