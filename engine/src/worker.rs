//! Execution of one task.
//!
//! A task runs in the same way in a thread, in a process and on AWS Lambda. A [`Worker`] needs only
//! the plan and storage, and uses one thread. It opens a stage (`open_stage`) and runs each task
//! through the stage's program (`steps`). The steps take and release buffers, load blocks (`load`),
//! run the stage's kernel, and store results. Chunks that are read over a network are prefetched
//! (`prefetch`), as far as the worker's window (`memory/window.rs`) has room.

mod load;
mod open_stage;
mod prefetch;
mod steps;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::grid::ChunkGrid;
use crate::machine;
use crate::memory::Arena;
use crate::plan::{FinalizedPlan, StageId};
use crate::state::{TaskState, overrun};
use crate::storage::codec::Contexts;
use crate::storage::reader::WorkerResources;
use crate::storage::{PendingWrite, Stores};
use crate::system::System;
use crate::task::{
    Cause, FailureKind, RunAddress, TaskFailure, TaskOutcome, TaskReport, TaskRequest, internal,
    kind_of_storage,
};
use crate::user::KernelRegistry;

use open_stage::OpenStage;
use prefetch::Prefetch;
use steps::Execution;

/// The context that all tasks of a run share.
#[derive(Clone, Debug)]
pub struct RunContext {
    /// The plan.
    pub plan: Arc<FinalizedPlan>,
    /// The location of the plan and the intermediates.
    pub address: RunAddress,
    /// The open stores.
    pub stores: Stores,
    /// The users' kernels of this program.
    pub kernels: Arc<KernelRegistry>,
    /// The flag that stops tasks between blocks.
    pub cancel: Cancel,
}

/// A cancellation flag, shared by all of its clones.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    own: Arc<AtomicBool>,
    parent: Option<Arc<AtomicBool>>,
}

impl Cancel {
    /// Requests cancellation.
    pub fn cancel(&self) {
        self.own.store(true, Ordering::Relaxed);
    }

    /// Returns true once cancellation is requested.
    pub fn is_cancelled(&self) -> bool {
        self.own.load(Ordering::Relaxed)
            || self.parent.as_ref().is_some_and(|p| p.load(Ordering::Relaxed))
    }

    /// Returns a flag that can be cancelled on its own, and that is cancelled together with this
    /// one.
    pub(crate) fn child(&self) -> Cancel {
        Cancel { own: Arc::default(), parent: Some(Arc::clone(&self.own)) }
    }
}

/// The conditions that end a task early. Tasks check them between chunks, blocks and slices; a
/// running kernel is not interrupted.
#[derive(Clone, Copy, Debug)]
struct Limits<'a> {
    cancel: &'a Cancel,
    system: &'a System,
    timeout: Option<(Instant, Duration)>,
}

impl Limits<'_> {
    fn check(&self) -> Result<(), Cause> {
        if self.cancel.is_cancelled() {
            return Err((FailureKind::Cancelled, "the run was cancelled".to_owned()));
        }
        match self.timeout {
            Some((start, limit)) if self.system.elapsed(start) > limit => Err((
                FailureKind::TimedOut,
                format!("exceeded the `task_timeout` of {}", humantime::format_duration(limit)),
            )),
            _ => Ok(()),
        }
    }
}

/// The maximum size of a stored plan in bytes.
pub const MAX_PLAN_BYTES: u64 = 256_000_000;

impl RunContext {
    /// Checks that this program has the kernels that the plan names.
    ///
    /// # Errors
    /// Returns an error that names the missing kernel, with a hint.
    pub fn check_kernels(&self) -> Result<(), String> {
        self.plan.plan().stages.iter().try_for_each(|s| s.kernel.kind().resolve(&self.kernels))
    }
}

/// A worker: a thread's buffers and its open stage.
#[derive(Debug)]
pub struct Worker {
    context: RunContext,
    name: String,
    resources: WorkerResources,
    open: Option<OpenStage>,
}

/// A request whose tasks are computed. Their results are not necessarily durable yet.
#[derive(Debug)]
pub struct ComputedRequest {
    outcome: TaskOutcome,
    /// The writes in flight, with their tasks.
    writes: Vec<(u64, PendingWrite)>,
    /// The name of the stage.
    stage: String,
}

impl ComputedRequest {
    /// Returns true if all results are durable.
    pub fn is_durable(&self) -> bool {
        self.writes.is_empty()
    }

    /// Waits until the results are durable. A failed write is the failure of its task; that task
    /// and later ones count as not done.
    pub fn wait(mut self) -> TaskOutcome {
        for (task, write) in std::mem::take(&mut self.writes) {
            if let Err(error) = write.wait() {
                self.outcome.done.retain(|report| report.task < task);
                self.fail(task, (kind_of_storage(&error), error.to_string()));
                break;
            }
        }
        self.outcome
    }

    fn fail(&mut self, task: u64, (kind, message): Cause) {
        let stage = self.stage.clone();
        self.outcome.failure = Some(TaskFailure { kind, message, stage, task });
    }
}

impl Worker {
    /// Creates a worker without an open stage.
    pub fn new(context: RunContext, name: String) -> Worker {
        Worker { context, name, resources: WorkerResources::new(0), open: None }
    }

    /// Returns the worker's name in outcomes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs the tasks of a request in sequence, until one fails.
    pub fn run(&mut self, request: &TaskRequest) -> TaskOutcome {
        self.compute(request).wait()
    }

    /// Computes the tasks of a request in sequence, until one fails. Writes of their results may
    /// be in flight when this returns.
    pub fn compute(&mut self, request: &TaskRequest) -> ComputedRequest {
        let stages = &self.context.plan.plan().stages;
        let stage = stages.get(request.stage.0).map(|s| s.name.clone()).unwrap_or_default();
        let mut computed = ComputedRequest {
            outcome: TaskOutcome {
                request: request.clone(),
                worker: self.name.clone(),
                done: Vec::new(),
                failure: None,
                worker_peak_bytes: None,
            },
            writes: Vec::new(),
            stage,
        };
        let mut prefetch = Prefetch::of(request);
        for task in request.first..request.first.saturating_add(request.count) {
            match self.run_task(request, task, &mut prefetch) {
                Ok(report) => {
                    let writes = std::mem::take(&mut self.resources.writes);
                    computed.writes.extend(writes.into_iter().map(|write| (task, write)));
                    computed.outcome.done.push(report);
                }
                Err(cause) => {
                    computed.fail(task, cause);
                    // The buffers of the failed task are lost, so the worker starts with empty
                    // resources.
                    self.release();
                    break;
                }
            }
        }
        computed
    }

    /// Releases all memory and the open stage, for a worker that has to wait.
    pub fn release(&mut self) {
        self.open = None;
        self.resources.arena = Arena::new(0);
        self.resources.contexts = Contexts::default();
        self.resources.writes.clear();
    }

    /// Opens a stage, unless it is open.
    fn open_stage(&mut self, stage: StageId) -> Result<(), Cause> {
        if self.open.as_ref().is_some_and(|open| open.stage == stage) {
            return Ok(());
        }
        if let Some(previous) = &mut self.open {
            previous.sources.iter_mut().for_each(|s| s.clear(&mut self.resources));
        }
        let layout = self.context.plan.layout(stage);
        self.resources.arena.set_limit(layout.estimate.per_task());
        self.resources.arena.lend(layout.window_bytes);
        self.resources.window.set_capacity(layout.window_bytes, layout.writes_ahead);
        // The codec contexts of another stage are not part of this stage's projection.
        self.resources.contexts = Contexts::default();
        self.open = Some(self.context.open_stage(stage)?);
        Ok(())
    }

    fn run_task(
        &mut self,
        request: &TaskRequest,
        number: u64,
        prefetch: &mut Prefetch,
    ) -> Result<TaskReport, Cause> {
        let stage_id = request.stage;
        let system = self.context.stores.system().clone();
        let (start, cpu) = (system.now(), machine::thread_cpu_ns());
        let plan = Arc::clone(&self.context.plan);
        let stage = plan.plan().stages.get(stage_id.0).filter(|s| number < s.n_tasks());
        let Some(stage) = stage else {
            let message = format!("the plan has no task {number} of stage {}", stage_id.0);
            return Err((FailureKind::Plan, message));
        };
        let layout = plan.layout(stage_id);
        self.open_stage(stage_id)?;
        let Some(open) = self.open.as_mut() else {
            return Err(internal("a worker opens a stage before it runs a task of it"));
        };
        self.resources.traffic = Default::default();
        let coords = stage.task_coords(number);
        let region = stage.tasks.region(&coords);
        let grids: Vec<&ChunkGrid> =
            layout.sources.iter().map(|s| &plan.plan().array(s.array).info.grid).collect();
        let mut task = TaskState {
            stage,
            layout,
            sources: &mut open.sources,
            grids: &grids,
            outputs: &open.outputs,
            objects: &open.objects,
            resources: &mut self.resources,
            coords,
            region,
            loaded: stage.inputs.iter().map(|_| None).collect(),
            accumulators: stage.outputs.iter().map(|_| None).collect(),
            blocks: stage.outputs.iter().map(|_| None).collect(),
            receipts: Vec::new(),
        };
        let limits = Limits {
            cancel: &self.context.cancel,
            system: &system,
            timeout: request.timeout_ms.map(|ms| (start, Duration::from_millis(ms))),
        };
        Execution { task: &mut task, compiled: open.compiled.as_mut(), prefetch, limits }.run()?;
        let receipts = task.receipts;
        Ok(TaskReport {
            task: number,
            receipts,
            traffic: self.resources.traffic,
            cpu_ns: machine::thread_cpu_ns().saturating_sub(cpu),
            wall_ns: system.elapsed(start).as_nanos() as u64,
            peak_bytes: self.resources.arena.peak(),
        })
    }
}
