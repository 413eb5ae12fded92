//! Events of a run, observers, and the report of a finished run.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::executor::Invocations;
use crate::failure::RunError;
use crate::plan::{FinalizedPlan, StageId};
use crate::storage::reader::Traffic;
use crate::task::{TaskFailure, TaskOutcome, TaskRequest};

/// An event of a run.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Event<'a> {
    /// The run starts or resumes.
    RunStarted(&'a RunStart<'a>),
    /// A stage has started its first task.
    StageStarted { stage: StageId },
    /// A worker receives a request. A backup names the request that it repeats.
    Started { request: &'a TaskRequest },
    /// A request was returned with some or all of its tasks finished. `counted` of them were not
    /// finished before.
    Outcome { outcome: &'a TaskOutcome, counted: u64 },
    /// A task failed and will be retried after `delay`.
    Retried { failure: &'a TaskFailure, attempt: u32, delay: Duration },
    /// Finished tasks of a stage are repeated, because their chunks are damaged or lost.
    Recomputed { stage: StageId, tasks: u64, why: &'a str },
    /// The memory of a process that runs tasks exceeded its projection. Reported once per run.
    MemoryExceeded(&'a MemoryExcess),
    /// A stage has finished its last task.
    StageEnded { stage: StageId },
    /// The run has ended: all outputs are published, or it failed.
    RunEnded(Result<&'a RunReport, &'a RunError>),
}

/// Properties of a run at its start.
#[derive(Debug)]
pub struct RunStart<'a> {
    /// The name of the run, which is its folder in the work directory.
    pub run: &'a str,
    /// The plan.
    pub plan: &'a FinalizedPlan,
    /// The executor's name.
    pub executor: &'a str,
    /// The maximum number of requests in flight.
    pub slots: usize,
    /// The projected memory of the process that runs tasks, in bytes.
    pub projected_bytes: u64,
    /// The memory limit of this machine's processes, in bytes.
    pub local_mem: u64,
    /// The number of tasks of each stage that were finished before the run was resumed.
    pub finished: &'a [u64],
}

/// A run observer. It is called on the threads of workers and must return quickly.
pub trait Observer: Send + Sync {
    /// Receives an event.
    fn on_event(&self, event: &Event<'_>);
}

/// The excess of a process's memory over its projection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryExcess {
    /// The name of the stage that was running when the excess was detected.
    pub stage: String,
    /// The name of that stage's kernel, if it is a user kernel.
    pub kernel: Option<String>,
    /// The worker: the name of a thread or process.
    pub worker: String,
    /// The measured peak resident memory of the process.
    pub measured_bytes: u64,
    /// The projected memory of the process.
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
                " (hint: raise `reserved_mem`; if the program itself does not use as much, please \
                    report this)"
            ),
        }
    }
}

/// The report of a finished run.
#[derive(Clone, Debug, Default)]
pub struct RunReport {
    /// The name of the run.
    pub run: String,
    /// The snapshot with the outputs, if they were committed to a repository.
    pub snapshot: Option<String>,
    /// The reports of all stages, in the plan's order.
    pub stages: Vec<StageReport>,
    /// The duration.
    pub wall: Duration,
    /// The CPU time of this process during the run.
    pub process_cpu: Duration,
    /// The number of threads or processes that ran tasks.
    pub slots: usize,
    /// The peak resident memory of this process since its start.
    pub peak_rss_bytes: u64,
    /// The peak resident memory of a worker process, if there were any.
    pub worker_peak_bytes: Option<u64>,
    /// The projected memory of the process that ran tasks: of this process with its concurrent
    /// tasks and cached intermediates, or of one worker process.
    pub projected_bytes: u64,
    /// The excess over the projection, if there was one.
    pub memory_excess: Option<MemoryExcess>,
    /// The peak size of intermediates in this process's memory, in bytes.
    pub cached_bytes: u64,
    /// The number of retries of tasks.
    pub retries: u64,
    /// The number of failures that were retried, by kind
    /// ([`FailureKind::name`](crate::task::FailureKind::name)).
    pub failures: BTreeMap<&'static str, u64>,
    /// The number of backups of slow requests, and of backups that finished before their request.
    pub backups: [u64; 2],
    /// The number of finished tasks that were repeated because their chunks were damaged or lost.
    pub recomputed: u64,
    /// The number of tasks that were finished before the run was resumed.
    pub finished_before: u64,
    /// The invocations on machines that are billed by use.
    pub invoked: Option<Invocations>,
}

/// The report of a stage.
#[derive(Clone, Debug, Default)]
pub struct StageReport {
    /// The name of the stage.
    pub name: String,
    /// The number of tasks.
    pub tasks: u64,
    /// The bytes and requests.
    pub traffic: Traffic,
    /// The CPU time of the tasks.
    pub cpu: Duration,
    /// The projected memory of one task, including reserved memory.
    pub projected_bytes: u64,
    /// The peak size of a task's buffers in bytes.
    pub peak_bytes: u64,
}

impl RunReport {
    /// Returns the bytes and requests of all stages.
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
        self.write_stages(f)?;
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
            "{:.2} s, {:.2} s of CPU, {} slots, {} retries",
            self.wall.as_secs_f64(),
            self.process_cpu.as_secs_f64(),
            self.slots,
            self.retries
        )?;
        if !self.failures.is_empty() {
            let kinds: Vec<String> =
                self.failures.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
            writeln!(f, "retried failures: {}", kinds.join(", "))?;
        }
        if let Some(invocations) = &self.invoked {
            write_invocations(invocations, f)?;
        }
        self.write_repetitions(f)?;
        if let Some(snapshot) = &self.snapshot {
            writeln!(f, "committed as snapshot {snapshot}")?;
        }
        let (measured, projected) = (
            size(self.worker_peak_bytes.unwrap_or(self.peak_rss_bytes)),
            size(self.projected_bytes),
        );
        match self.invoked {
            // An environment runs as many concurrent tasks as fit its memory.
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

impl RunReport {
    /// Writes the table of stages.
    fn write_stages(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::memory::size;
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
        Ok(())
    }

    /// Writes the numbers of backups, of repeated and earlier tasks, and of cached bytes.
    fn write_repetitions(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::memory::size;
        if self.backups[0] > 0 {
            writeln!(
                f,
                "{} backups of slow requests, {} of which finished first",
                self.backups[0], self.backups[1]
            )?;
        }
        if self.recomputed > 0 {
            writeln!(
                f,
                "{} tasks repeated because their chunks were damaged or lost",
                self.recomputed
            )?;
        }
        if self.finished_before > 0 {
            writeln!(f, "{} tasks were finished before this run resumed", self.finished_before)?;
        }
        if self.cached_bytes > 0 {
            writeln!(f, "up to {} of intermediates in memory", size(self.cached_bytes))?;
        }
        Ok(())
    }
}

fn write_invocations(i: &Invocations, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let cold = i.cold_starts;
    writeln!(
        f,
        "{} invocations, {cold} cold starts, up to {} concurrent, {:.1} GB-seconds",
        i.invocations,
        i.most_at_once,
        i.gb_seconds()
    )?;
    if i.throttled + i.lost_answers + i.crashes > 0 {
        let [throttled, lost, recovered, crashes] =
            [i.throttled, i.lost_answers, i.recovered, i.crashes];
        writeln!(
            f,
            "{throttled} throttled invocations, {lost} lost answers, {recovered} outcomes \
                recovered from records, {crashes} crashes"
        )?;
    }
    Ok(())
}
