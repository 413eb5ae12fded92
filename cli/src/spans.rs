//! Start times of tasks.
//!
//! A worker runs the tasks of a request in order and reports the duration of each. The start of the
//! first task follows from the times at which the request started and returned.

use freestone_engine::task::TaskOutcome;

/// The requests in flight, each with its start time in microseconds.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Vec<(u64, u64)>);

impl InFlight {
    /// Adds a request that started at `at`.
    pub(crate) fn started(&mut self, request: u64, at: u64) {
        self.0.push((request, at));
    }

    /// Removes a request that returned at `at`, and returns the start time of its first task.
    ///
    /// If all tasks succeeded, the last one ended at `at`. The duration of a failed task is
    /// unknown, so the first task then counts as started with the request.
    pub(crate) fn returned(&mut self, outcome: &TaskOutcome, at: u64) -> u64 {
        let started = self
            .0
            .iter()
            .position(|(id, _)| *id == outcome.request.id)
            .map(|i| self.0.swap_remove(i).1);
        let ran = outcome.done.iter().map(|t| t.wall_ns).sum::<u64>() / 1000;
        let latest = at.saturating_sub(ran);
        match started {
            Some(started) if outcome.failure.is_some() => started.min(latest),
            Some(started) => latest.max(started),
            None => latest,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use freestone_engine::events::RunStart;
    use freestone_engine::plan::StageId;
    use freestone_engine::storage::reader::Traffic;
    use freestone_engine::task::{FailureKind, TaskFailure, TaskReport, TaskRequest};

    use super::*;
    use freestone::{Array, DType, Plan, Settings, Spec, Target};

    pub(crate) fn spec() -> Spec {
        let settings = Settings {
            work_dir: Some("/nowhere/work".into()),
            allowed_mem: Some(40_000_000),
            threads: Some(2),
            ..Settings::default()
        };
        settings.resolve().unwrap()
    }

    /// Returns a plan of `n_stages` stages, each over `n_elements` elements in chunks of 10. Its
    /// inputs do not exist.
    pub(crate) fn planned(n_stages: usize, n_elements: u64) -> Plan {
        // Arrays of one shape would be planned as one stage.
        let array =
            |i: usize| freestone::full([n_elements + 10 * i as u64], 1.0, DType::Float64, [10]);
        let arrays: Vec<Array> = (0..n_stages).map(array).collect();
        let targets: Vec<Target> = arrays
            .iter()
            .enumerate()
            .map(|(i, a)| Target::array(a, format!("/nowhere/out{i}")))
            .collect();
        freestone::plan(&targets, &spec()).unwrap()
    }

    pub(crate) fn started<'a>(planned: &'a Plan, finished: &'a [u64]) -> RunStart<'a> {
        let (plan, projected_bytes, local_mem) = (planned.finalized(), 80_000_000, 1_000_000_000);
        RunStart {
            run: "run-1",
            plan,
            executor: "threads",
            slots: 2,
            projected_bytes,
            local_mem,
            finished,
        }
    }

    pub(crate) fn request(id: u64, stage: usize, first: u64, count: u64) -> TaskRequest {
        TaskRequest {
            id,
            stage: StageId(stage),
            first,
            count,
            attempt: 0,
            backup_of: None,
            timeout_ms: None,
        }
    }

    /// Returns the outcome of a request whose tasks each took `wall_us` and read `bytes_read`.
    pub(crate) fn outcome(
        request: TaskRequest,
        worker: &str,
        wall_us: u64,
        bytes_read: u64,
    ) -> TaskOutcome {
        let traffic = Traffic { bytes_read, bytes_written: bytes_read / 2, reads: 1, writes: 1 };
        let report = |task| TaskReport {
            task,
            receipts: Vec::new(),
            traffic,
            cpu_ns: wall_us * 900,
            wall_ns: wall_us * 1000,
            peak_bytes: 1000 + task % 1000,
        };
        let done = (request.first..request.first + request.count).map(report).collect();
        TaskOutcome { request, worker: worker.into(), done, failure: None, worker_peak_bytes: None }
    }

    pub(crate) fn failure(kind: FailureKind, message: &str, task: u64) -> TaskFailure {
        TaskFailure { kind, message: message.into(), stage: "copy-000".into(), task }
    }

    #[test]
    fn tasks_end_when_their_request_returns() {
        let mut flight = InFlight::default();
        flight.started(1, 100);
        flight.started(2, 150);
        assert_eq!(flight.returned(&outcome(request(1, 0, 0, 4), "w", 50, 0), 400), 200);
        // The clocks of workers may differ.
        assert_eq!(flight.returned(&outcome(request(2, 0, 0, 4), "w", 500, 0), 400), 150);
        assert_eq!(flight.returned(&outcome(request(2, 0, 0, 4), "w", 50, 0), 400), 200);
        assert!(flight.0.is_empty());
    }

    #[test]
    fn tasks_of_a_failed_request_start_with_the_request() {
        let mut flight = InFlight::default();
        flight.started(1, 100);
        let failed = TaskOutcome {
            failure: Some(failure(FailureKind::Transient, "lost", 4)),
            ..outcome(request(1, 0, 0, 4), "w", 50, 0)
        };
        assert_eq!(flight.returned(&failed, 1000), 100);
    }
}
