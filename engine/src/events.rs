//! What a run tells while it goes on.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::executor::Invocations;
use crate::failure::RunError;
use crate::plan::{FinalizedPlan, StageId};
use crate::storage::reader::Traffic;
use crate::task::{TaskFailure, TaskOutcome, TaskRequest};

/// Something happened.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Event<'a> {
    /// The run begins, or goes on.
    RunStarted(&'a RunStart<'a>),
    /// A stage has its first task under way.
    StageStarted { stage: StageId },
    /// A worker takes a request; a backup says which one it repeats.
    Started { request: &'a TaskRequest },
    /// A request came back; some or all of its tasks are finished. `counted` of them were not
    /// before.
    Outcome { outcome: &'a TaskOutcome, counted: u64 },
    /// A task failed and is tried again, not before `delay`.
    Retried { failure: &'a TaskFailure, attempt: u32, delay: Duration },
    /// Finished tasks of a stage are run once more, because what they wrote is damaged or gone.
    Recomputed { stage: StageId, tasks: u64, why: &'a str },
    /// A process that runs tasks was measured to hold more than was projected. Told once in a run.
    MemoryExceeded(&'a MemoryExcess),
    /// A stage has finished its last task.
    StageEnded { stage: StageId },
    /// Everything is written and published, or why not.
    RunEnded(Result<&'a RunReport, &'a RunError>),
}

/// What is known when a run begins.
#[derive(Debug)]
pub struct RunStart<'a> {
    /// The run's name: of its folder in the work directory.
    pub run: &'a str,
    /// The plan.
    pub plan: &'a FinalizedPlan,
    /// The executor's name.
    pub executor: &'a str,
    /// Requests that it can have at work at once.
    pub slots: usize,
    /// Projected memory of the process that runs tasks, in bytes.
    pub projected_bytes: u64,
    /// What all of this machine may hold, in bytes.
    pub local_mem: u64,
    /// For each stage, tasks that were finished before, where a run is resumed.
    pub finished: &'a [u64],
}

/// Somebody who looks on. Called from workers' threads: be quick.
pub trait Observer: Send + Sync {
    /// Is told of an event.
    fn on_event(&self, event: &Event<'_>);
}

/// A process that ran tasks held more memory than was projected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryExcess {
    /// Name of the stage that ran when it was noticed.
    pub stage: String,
    /// Name of that stage's kernel, if it is a user's.
    pub kernel: Option<String>,
    /// The worker whose process it was: a thread's or process's name.
    pub worker: String,
    /// Highest resident memory that was measured of the process.
    pub measured_bytes: u64,
    /// Projected memory of the process.
    pub projected_bytes: u64,
}

impl fmt::Display for MemoryExcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::memory::size;
        let (measured, projected) = (size(self.measured_bytes), size(self.projected_bytes));
        write!(
            f,
            "memory exceeded its projection: {measured} measured, {projected} projected, first \
                seen in stage `{}`",
            self.stage
        )?;
        match &self.kernel {
            Some(kernel) => write!(
                f,
                ", kernel `{kernel}` (hint: include what the kernel allocates in its \
                    `scratch_bytes`)"
            ),
            None => write!(
                f,
                " (hint: raise `reserved_mem`; if the program itself does not take as much, please \
                    report this)"
            ),
        }
    }
}

/// What a run took.
#[derive(Clone, Debug, Default)]
pub struct RunReport {
    /// The run's name.
    pub run: String,
    /// The snapshot that has the results, where they were committed to a repository.
    pub snapshot: Option<String>,
    /// Bytes and requests of each stage, in the plan's order.
    pub stages: Vec<StageReport>,
    /// Time from start to end.
    pub wall: Duration,
    /// CPU time of this process during the run.
    pub process_cpu: Duration,
    /// Threads or processes that ran tasks.
    pub slots: usize,
    /// Highest resident memory of this process so far.
    pub peak_rss_bytes: u64,
    /// Highest resident memory of a worker process, where there were some.
    pub worker_peak_bytes: Option<u64>,
    /// Projected memory of the process that ran tasks: of this one with all its tasks and the
    /// intermediates that it keeps, or of one worker process.
    pub projected_bytes: u64,
    /// Where more was measured than projected.
    pub memory_excess: Option<MemoryExcess>,
    /// The most bytes of intermediates that this process kept in memory at once.
    pub cached_bytes: u64,
    /// Tasks that were tried again.
    pub retries: u64,
    /// Failures that the run survived, by kind
    /// ([`FailureKind::name`](crate::task::FailureKind::name)).
    pub failures: BTreeMap<&'static str, u64>,
    /// Requests that were repeated because they took long, and of those the ones that came back
    /// first.
    pub backups: [u64; 2],
    /// Finished tasks that were run once more, because what they had written was damaged or gone.
    pub recomputed: u64,
    /// Tasks that were finished before the run was resumed.
    pub finished_before: u64,
    /// What was taken of machines that are paid for by use.
    pub invoked: Option<Invocations>,
}

/// What a stage took.
#[derive(Clone, Debug, Default)]
pub struct StageReport {
    /// Its name.
    pub name: String,
    /// Tasks.
    pub tasks: u64,
    /// Bytes and requests.
    pub traffic: Traffic,
    /// CPU time of its tasks.
    pub cpu: Duration,
    /// Projected memory of one task, reserved memory included.
    pub projected_bytes: u64,
    /// The most bytes that a task's buffers took.
    pub peak_bytes: u64,
}

impl RunReport {
    /// Bytes and requests of all stages.
    pub fn traffic(&self) -> Traffic {
        let mut all = Traffic::default();
        self.stages.iter().for_each(|s| all.add(s.traffic));
        all
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::memory::size;
        let all = self.traffic();
        writeln!(
            f,
            "{:<24} {:>9} {:>10} {:>10} {:>9} {:>11} {:>11}",
            "stage", "tasks", "read", "written", "CPU s", "projected", "buffers"
        )?;
        for s in &self.stages {
            writeln!(
                f,
                "{:<24} {:>9} {:>10} {:>10} {:>9.2} {:>11} {:>11}",
                s.name,
                s.tasks,
                size(s.traffic.bytes_read).to_string(),
                size(s.traffic.bytes_written).to_string(),
                s.cpu.as_secs_f64(),
                size(s.projected_bytes).to_string(),
                size(s.peak_bytes).to_string()
            )?;
        }
        writeln!(
            f,
            "read {} in {} requests, wrote {} in {}",
            size(all.bytes_read),
            all.reads,
            size(all.bytes_written),
            all.writes
        )?;
        writeln!(
            f,
            "{:.2} s, {:.2} s of CPU, {} at once, {} tried again",
            self.wall.as_secs_f64(),
            self.process_cpu.as_secs_f64(),
            self.slots,
            self.retries
        )?;
        if !self.failures.is_empty() {
            let kinds: Vec<String> =
                self.failures.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
            writeln!(f, "survived: {}", kinds.join(", "))?;
        }
        if let Some(i) = &self.invoked {
            let cold = i.cold_starts;
            writeln!(
                f,
                "{} invocations, {cold} of them cold starts, up to {} at once, {:.1} GB-seconds",
                i.invocations,
                i.most_at_once,
                i.gb_seconds()
            )?;
            if i.throttled + i.lost_answers + i.crashes > 0 {
                let [throttled, lost, recovered, crashes] =
                    [i.throttled, i.lost_answers, i.recovered, i.crashes];
                writeln!(
                    f,
                    "invoked again {throttled} times when throttled; {lost} answers lost, \
                        {recovered} requests found by their records; {crashes} crashes"
                )?;
            }
        }
        if self.backups[0] > 0 {
            writeln!(
                f,
                "repeated {} slow requests, {} of which came back first",
                self.backups[0], self.backups[1]
            )?;
        }
        if self.recomputed > 0 {
            writeln!(
                f,
                "computed {} tasks again whose results were damaged or gone",
                self.recomputed
            )?;
        }
        if self.finished_before > 0 {
            writeln!(f, "{} tasks were finished before", self.finished_before)?;
        }
        if self.cached_bytes > 0 {
            writeln!(f, "kept up to {} of intermediates in memory", size(self.cached_bytes))?;
        }
        if let Some(snapshot) = &self.snapshot {
            writeln!(f, "committed as snapshot {snapshot}")?;
        }
        let (measured, projected) = (
            size(self.worker_peak_bytes.unwrap_or(self.peak_rss_bytes)),
            size(self.projected_bytes),
        );
        match self.invoked {
            // Where as many tasks run at once as have room.
            Some(_) => write!(
                f,
                "peak memory of an environment {measured} measured, {projected} projected for one \
                    task in it"
            ),
            None => write!(f, "peak memory {measured} measured, {projected} projected"),
        }?;
        self.memory_excess.as_ref().map_or(Ok(()), |excess| write!(f, "\nwarning: {excess}"))
    }
}
