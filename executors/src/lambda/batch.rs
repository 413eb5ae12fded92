//! The number of requests in one invocation.
//!
//! An invocation should be so long that its overhead is negligible, so short that little is lost
//! with it, and its answer should be small. Tasks are measured by their reports. Before the first
//! report of a stage, an invocation has as many requests as one environment runs at once.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use freestone_engine::plan::StageId;
use freestone_engine::task::{TaskOutcome, TaskRequest};

/// The approximate maximum size of an answer. A thousand answers may arrive at the same time.
const MAX_ANSWER_BYTES: f64 = 500_000.0;
/// The size in an answer of a report without receipts, and of a receipt.
const REPORT_BYTES: f64 = 160.0;
const RECEIPT_BYTES: f64 = 110.0;

/// Measurements of a run's tasks.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// The target duration of an invocation.
    target: Duration,
    /// The maximum of requests in one invocation.
    most: usize,
    stages: Vec<StagePace>,
    /// The approximate number of tasks that were not dispatched yet.
    left: u64,
    /// The maximum of concurrent environments.
    environments: u64,
    /// The first tasks of requests whose invocation crashed. These requests run alone.
    suspects: BTreeSet<(StageId, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct StagePace {
    /// The number of concurrent tasks in one environment.
    slots: u32,
    /// The mean duration of a task in seconds, and the mean size of its report.
    seconds: f64,
    bytes: f64,
    tasks: f64,
}

impl Pace {
    /// Creates a pace without measurements. `slots` is the number of concurrent tasks of each stage
    /// in one environment.
    pub(super) fn new(
        target: Duration,
        most: usize,
        slots: &[u32],
        tasks: u64,
        environments: usize,
    ) -> Pace {
        let stages = slots
            .iter()
            .map(|slots| StagePace { slots: (*slots).max(1), seconds: 0.0, bytes: 0.0, tasks: 0.0 })
            .collect();
        Pace {
            target,
            most: most.max(1),
            stages,
            left: tasks,
            environments: environments.max(1) as u64,
            suspects: BTreeSet::new(),
        }
    }

    /// Adds an outcome to the measurements, which weight recent tasks more.
    pub(super) fn learn(&mut self, outcome: &TaskOutcome) {
        let Some(stage) = self.stages.get_mut(outcome.request.stage.0) else { return };
        for report in &outcome.done {
            stage.tasks = (stage.tasks + 1.0).min(1000.0);
            stage.seconds += (report.wall_ns as f64 * 1e-9 - stage.seconds) / stage.tasks;
            stage.bytes += (REPORT_BYTES + RECEIPT_BYTES * report.receipts.len() as f64
                - stage.bytes)
                / stage.tasks;
        }
    }

    /// Returns the maximum of requests like this one in one invocation.
    pub(super) fn most(&self, request: &TaskRequest) -> usize {
        let Some(stage) = self.stages.get(request.stage.0) else { return 1 };
        let (slots, count) = (stage.slots as usize, request.count.max(1) as f64);
        if stage.tasks == 0.0 {
            return slots.min(self.most);
        }
        let rounds = self.target.as_secs_f64() / (stage.seconds * count).max(1e-6);
        // Towards the end of a run, all environments get requests.
        let fair = self.left as f64 / (2.0 * self.environments as f64 * count);
        let by_time = (rounds.min(1e6) * slots as f64).min(fair.max(slots as f64));
        let by_bytes = MAX_ANSWER_BYTES / (stage.bytes * count).max(1.0);
        (by_time.min(by_bytes) as usize).clamp(1, self.most)
    }

    /// Returns the expected duration of an invocation with these requests; zero if it is unknown.
    pub(super) fn expected(&self, requests: &[TaskRequest]) -> Duration {
        let of = |r: &TaskRequest| {
            self.stages
                .get(r.stage.0)
                .map_or(0.0, |s| s.seconds * r.count as f64 / f64::from(s.slots))
        };
        // Fewer requests than slots take as long as the longest of them.
        let longest = requests
            .iter()
            .map(|r| self.stages.get(r.stage.0).map_or(0.0, |s| s.seconds * r.count as f64))
            .fold(0.0, f64::max);
        Duration::from_secs_f64(requests.iter().map(of).sum::<f64>().max(longest).min(900.0))
    }

    /// Marks requests whose invocation crashed, because any of them may have caused it.
    pub(super) fn suspect(&mut self, requests: &[TaskRequest]) {
        self.suspects.extend(requests.iter().map(|r| (r.stage, r.first)));
    }

    /// Takes the requests of the next invocation from `waiting`, if `invocations` can start now.
    pub(super) fn next(
        &mut self,
        waiting: &mut VecDeque<TaskRequest>,
        invocations: usize,
    ) -> Vec<TaskRequest> {
        let Some(first) = waiting.pop_front() else { return Vec::new() };
        let is_suspect = |r: &TaskRequest| self.suspects.contains(&(r.stage, r.first));
        let mut batch = vec![first];
        if !is_suspect(&batch[0]) {
            let slots = self.stages.get(batch[0].stage.0).map_or(1, |s| s.slots as usize);
            let even = (waiting.len() + 1).div_ceil(invocations.max(1)).max(slots);
            let most = self.most(&batch[0]).min(even);
            // A partial last round would leave a part of the environment idle.
            let most = if most > slots { most - most % slots } else { most };
            while batch.len() < most
                && let Some(next) = waiting.front()
                && !is_suspect(next)
                && self.most(next) > batch.len()
            {
                batch.extend(waiting.pop_front());
            }
        }
        self.suspects.retain(|s| !batch.iter().any(|r| *s == (r.stage, r.first)));
        self.left = self.left.saturating_sub(batch.iter().map(|r| r.count).sum());
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use freestone_engine::storage::reader::Traffic;
    use freestone_engine::task::TaskReport;

    fn requests(n: u64, count: u64) -> VecDeque<TaskRequest> {
        (0..n)
            .map(|i| TaskRequest {
                id: i,
                stage: StageId(0),
                first: i * count,
                count,
                attempt: 0,
                backup_of: None,
                timeout_ms: None,
            })
            .collect()
    }

    /// Returns the pace of a million tasks on 100 environments with 2 slots each, after a task with
    /// a duration and a number of receipts.
    fn pace(seconds: f64, receipts: usize) -> Pace {
        let mut pace = Pace::new(Duration::from_secs(10), 64, &[2], 1_000_000, 100);
        let receipt = freestone_engine::task::Receipt {
            array: freestone_engine::plan::ArrayId(0),
            chunk: 0,
            written: freestone_engine::storage::reader::Written::Fill,
        };
        let wall_ns = (seconds * 1e9) as u64;
        let report = TaskReport {
            task: 0,
            receipts: vec![receipt; receipts],
            traffic: Traffic::default(),
            cpu_ns: 0,
            wall_ns,
            peak_bytes: 0,
        };
        let request = requests(1, 1)[0].clone();
        pace.learn(&TaskOutcome {
            request,
            worker: "w".into(),
            done: vec![report],
            failure: None,
            worker_peak_bytes: None,
        });
        pace
    }

    /// Checks the number of requests in the first invocation.
    #[track_caller]
    fn check(mut pace: Pace, waiting: u64, count: u64, invocations: usize, expect: usize) {
        let mut waiting = requests(waiting, count);
        assert_eq!(pace.next(&mut waiting, invocations).len(), expect);
    }

    #[test]
    fn invocations_have_the_target_duration() {
        check(Pace::new(Duration::from_secs(10), 64, &[2], 1_000_000, 100), 1000, 1, 10, 2);
        check(pace(1.0, 1), 1000, 1, 10, 20);
        check(pace(1.0, 1), 1000, 5, 10, 4);
        check(pace(30.0, 1), 1000, 1, 10, 1);
        check(pace(0.001, 1), 1000, 1, 10, 64);
        // At most an equal share, at least the number of slots.
        check(pace(0.001, 1), 100, 1, 10, 10);
        check(pace(0.001, 1), 3, 1, 10, 2);
        // At most what fits into an answer.
        check(pace(0.001, 1000), 1000, 1, 10, 4);
        let mut late = pace(0.001, 1);
        late.left = 1000;
        check(late.clone(), 1000, 1, 10, 4);
        late.stages[0].slots = 3;
        check(late, 1000, 1, 10, 3);
        assert_eq!(
            pace(2.0, 1).expected(requests(10, 3).make_contiguous()),
            Duration::from_secs(30)
        );
        assert_eq!(pace(2.0, 1).expected(requests(1, 3).make_contiguous()), Duration::from_secs(6));
    }

    #[test]
    fn suspects_run_alone_once() {
        let mut pace = pace(0.001, 1);
        let mut waiting = requests(40, 1);
        pace.suspect(&[waiting[0].clone(), waiting[3].clone()]);
        let sizes: Vec<usize> = (0..4).map(|_| pace.next(&mut waiting, 1).len()).collect();
        assert_eq!(sizes, [1, 2, 1, 36]);
        let mut repeated = requests(40, 1);
        assert_eq!(pace.next(&mut repeated, 1).len(), 40);
    }
}
