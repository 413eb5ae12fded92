//! When tasks ran.
//!
//! A worker runs the tasks of a request one after the other, and says how long each of them took.
//! When the first began follows from when the request was taken or came back, so events need not
//! say it.

use freestone_engine::task::TaskOutcome;

/// The requests that are under way, and when each was taken, in microseconds.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Vec<(u64, u64)>);

impl InFlight {
    /// A request was taken.
    pub(crate) fn taken(&mut self, request: u64, at: u64) {
        self.0.push((request, at));
    }

    /// A request came back: when its first task began.
    ///
    /// If all went well, the last task ended now. If one failed, nothing says how long it ran; then
    /// the first began when the request was taken.
    pub(crate) fn came_back(&mut self, outcome: &TaskOutcome, at: u64) -> u64 {
        let taken = self
            .0
            .iter()
            .position(|(id, _)| *id == outcome.request.id)
            .map(|i| self.0.swap_remove(i).1);
        let ran = outcome.done.iter().map(|t| t.wall_ns).sum::<u64>() / 1000;
        let latest = at.saturating_sub(ran);
        match taken {
            Some(taken) if outcome.failure.is_some() => taken.min(latest),
            Some(taken) => latest.max(taken),
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

    /// A plan of so many stages, each over so many elements in chunks of 10. It is not to be run.
    pub(crate) fn planned(n_stages: usize, n_elements: u64) -> Plan {
        // Arrays of one shape would be one stage.
        let array =
            |i: usize| freestone::full(&[n_elements + 10 * i as u64], 1.0, DType::Float64, &[10]);
        let arrays: Vec<Array> = (0..n_stages).map(array).collect();
        let targets: Vec<Target> = arrays
            .iter()
            .enumerate()
            .map(|(i, a)| Target::array(a, &format!("/nowhere/out{i}")))
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

    /// All of a request's tasks, each of which took so long and read so much.
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
    fn tasks_end_when_their_request_comes_back() {
        let mut flight = InFlight::default();
        flight.taken(1, 100);
        flight.taken(2, 150);
        assert_eq!(flight.came_back(&outcome(request(1, 0, 0, 4), "w", 50, 0), 400), 200);
        // Clocks of workers may be wrong.
        assert_eq!(flight.came_back(&outcome(request(2, 0, 0, 4), "w", 500, 0), 400), 150);
        assert_eq!(flight.came_back(&outcome(request(2, 0, 0, 4), "w", 50, 0), 400), 200);
        assert!(flight.0.is_empty());
    }

    #[test]
    fn where_a_task_failed_the_others_began_when_the_request_was_taken() {
        let mut flight = InFlight::default();
        flight.taken(1, 100);
        let failed = TaskOutcome {
            failure: Some(failure(FailureKind::Transient, "lost", 4)),
            ..outcome(request(1, 0, 0, 4), "w", 50, 0)
        };
        assert_eq!(flight.came_back(&failed, 1000), 100);
    }
}
