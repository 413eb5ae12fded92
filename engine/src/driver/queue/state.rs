//! The state of a run's tasks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::driver::RunError;
use crate::driver::attempts::Attempts;
use crate::driver::durations::Durations;
use crate::driver::recovery::Recovered;
use crate::events::{MemoryExcess, StageReport};
use crate::finished::Finished;
use crate::plan::reads::TaskRange;
use crate::plan::{ArrayId, FinalizedPlan, StageId};
use crate::task::{Receipt, TaskRequest};

/// The state behind the queue's lock.
pub(in crate::driver) struct State {
    pub(in crate::driver) stages: Vec<StageProgress>,
    /// The tasks to retry, in the order in which they were rescheduled.
    pub(super) retries: VecDeque<RetryEntry>,
    /// The requests in flight, by id.
    pub(super) in_flight: HashMap<u64, InFlight>,
    pub(super) in_flight_bytes: u64,
    pub(super) last_id: u64,
    pub(in crate::driver) attempts: Attempts,
    /// The number of backups started, and of those that finished first.
    pub(in crate::driver) backups: [u64; 2],
    pub(in crate::driver) recomputed: u64,
    /// The removed intermediates, with the tasks that have rewritten their part since.
    pub(super) removed: BTreeMap<ArrayId, Finished>,
    /// The receipts for the commit. A task that ran twice has its receipts twice.
    pub(in crate::driver) receipts: Vec<Receipt>,
    /// The intermediates to remove once the journal says that they are removed.
    pub(super) removals: Vec<ArrayId>,
    pub(in crate::driver) worker_peak_bytes: Option<u64>,
    pub(in crate::driver) memory_excess: Option<MemoryExcess>,
    pub(in crate::driver) error: Option<RunError>,
}

impl State {
    /// Creates the state of a run with recovered tasks.
    pub(super) fn new(plan: &FinalizedPlan, attempts: Attempts, recovered: Recovered) -> State {
        let Recovered { mut finished, removed, receipts, .. } = recovered;
        finished.resize_with(plan.plan().stages.len(), Finished::default);
        let stages = plan.stages().zip(finished).map(|((_, stage, layout), finished)| {
            let report = StageReport {
                name: stage.name.clone(),
                tasks: stage.n_tasks(),
                projected_bytes: layout.estimate.total(),
                ..StageReport::default()
            };
            StageProgress::new(report, finished)
        });
        State {
            stages: stages.collect(),
            retries: VecDeque::new(),
            in_flight: HashMap::new(),
            in_flight_bytes: 0,
            last_id: 0,
            attempts,
            backups: [0; 2],
            recomputed: 0,
            removed,
            receipts,
            removals: Vec::new(),
            worker_peak_bytes: None,
            memory_excess: None,
            error: None,
        }
    }
}

/// The progress of a stage.
pub(in crate::driver) struct StageProgress {
    /// The first task that was never in the window.
    pub(super) next: u64,
    /// The next requests.
    pub(super) window: VecDeque<WindowEntry>,
    /// True once a request was dispatched.
    pub(super) is_started: bool,
    /// True while ready requests of the stage are dispatched as they come.
    pub(super) is_open: bool,
    /// True once observers were notified of the stage's end.
    pub(super) is_ended: bool,
    /// True if the journal may list tasks of the stage as finished.
    pub(super) is_journaled: bool,
    pub(in crate::driver) finished: Finished,
    /// The durations of tasks from dispatch to outcome.
    pub(super) durations: Durations,
    /// The durations of tasks as measured by workers.
    pub(super) walls: Durations,
    pub(in crate::driver) report: StageReport,
}

impl StageProgress {
    fn new(report: StageReport, finished: Finished) -> StageProgress {
        StageProgress {
            next: 0,
            window: VecDeque::new(),
            is_started: false,
            is_open: false,
            is_ended: finished.count() == report.tasks,
            is_journaled: finished.count() > 0,
            finished,
            durations: Durations::default(),
            walls: Durations::default(),
            report,
        }
    }
}

/// A dispatched request.
pub(super) struct InFlight {
    pub(super) request: TaskRequest,
    pub(super) since: Instant,
    /// The backup of this request, or the request that this one backs up.
    pub(super) twin: Option<u64>,
    /// False once the tasks are finished by the twin.
    pub(super) is_wanted: bool,
}

/// Tasks to retry or to recompute.
pub(super) struct RetryEntry {
    pub(super) not_before: Instant,
    pub(super) stage: StageId,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) attempt: u32,
    /// The tasks that must be finished first.
    pub(super) needs: Vec<TaskRange>,
}

/// A request in a stage's window.
pub(super) struct WindowEntry {
    pub(super) first: u64,
    pub(super) count: u64,
    /// The tasks that must be finished first and were not at the last check.
    pub(super) needs: Vec<TaskRange>,
}

/// Tasks selected for dispatch.
#[derive(Clone, Copy)]
pub(super) struct Selected {
    pub(super) stage: StageId,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) attempt: u32,
    pub(super) backup_of: Option<u64>,
}

/// The events of an outcome. Observers are notified after the state is unlocked.
#[derive(Default)]
pub(super) struct PendingEvents {
    /// The number of newly finished tasks.
    pub(super) counted: u64,
    /// The attempt and delay of a retry.
    pub(super) retried: Option<(u32, Duration)>,
    /// The number of invalidated tasks by stage.
    pub(super) recomputed: BTreeMap<StageId, u64>,
    pub(super) is_stage_ended: bool,
    pub(super) memory_excess: Option<MemoryExcess>,
}
