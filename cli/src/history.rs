//! The history of a run as lines of JSON, for other programs.
//!
#![doc = include_str!("../../docs/history.md")]

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use freestone_engine::driver::RunError;
use freestone_engine::events::{Event, Observer, RunReport, RunStart};
use freestone_engine::task::{TaskOutcome, TaskReport};
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use crate::spans::InFlight;

/// The version of the format.
pub const VERSION: u32 = 1;

/// An observer that appends a line to a file for each event.
///
/// Lines are buffered, and written every second, at the end of a run, and on drop. An error of
/// writing does not fail the run. [`History::take_error`] returns it.
#[derive(Debug)]
pub struct History {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Notified when the history is dropped.
    dropped: Condvar,
}

#[derive(Debug)]
struct State {
    file: File,
    lines: Vec<u8>,
    start: Instant,
    in_flight: InFlight,
    error: Option<io::Error>,
    ended: bool,
}

/// The maximum time for which lines are buffered.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// The maximum number of buffered bytes.
const MAX_PENDING_BYTES: usize = 256 * 1024;

impl History {
    /// Creates a history that appends to a file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened for writing.
    pub fn append(file: &Path) -> io::Result<History> {
        let file = File::options().append(true).create(true).open(file)?;
        let state = State {
            file,
            lines: Vec::new(),
            start: Instant::now(),
            in_flight: InFlight::default(),
            error: None,
            ended: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), dropped: Condvar::new() });
        let of_writer = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("history".into())
            .spawn(move || of_writer.write_every(MAX_DELAY))?;
        Ok(History { shared, writer: Some(writer) })
    }

    /// Takes the error because of which lines are missing.
    pub fn take_error(&self) -> Option<io::Error> {
        self.shared.lock().error.take()
    }
}

impl Observer for History {
    fn on_event(&self, event: &Event<'_>) {
        let mut state = self.shared.lock();
        if let Event::RunStarted(_) = event {
            state.start = Instant::now();
            state.in_flight = InFlight::default();
        }
        let t = state.start.elapsed().as_micros() as u64;
        if let Event::Started { request } = event {
            state.in_flight.started(request.id, t);
        }
        let begun = if let Event::Outcome { outcome, .. } = event {
            state.in_flight.returned(outcome, t)
        } else {
            t
        };
        // Serializing plain data into memory cannot fail.
        let _ =
            serde_json::to_writer(&mut state.lines, &Line { t, entry: Entry::of(event, begun) });
        state.lines.push(b'\n');
        if state.lines.len() >= MAX_PENDING_BYTES || matches!(event, Event::RunEnded(_)) {
            state.write();
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.dropped.notify_all();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_every(&self, delay: Duration) {
        let mut state = self.lock();
        while !state.ended {
            state =
                self.dropped.wait_timeout(state, delay).unwrap_or_else(PoisonError::into_inner).0;
            state.write();
        }
    }
}

impl State {
    /// Writes the buffered lines, and stores the first error.
    fn write(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines.is_empty() || self.error.is_some() {
            return;
        }
        self.error = self.file.write_all(&lines).err();
        // The buffer is reused.
        self.lines = lines;
        self.lines.clear();
    }
}

#[derive(Serialize)]
struct Line<'a> {
    t: u64,
    #[serde(flatten)]
    entry: Entry<'a>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Entry<'a> {
    Run(Box<Run<'a>>),
    Stage {
        stage: usize,
    },
    Taken {
        request: u64,
        stage: usize,
        first: u64,
        count: u64,
        attempt: u32,
        backup_of: Option<u64>,
    },
    Outcome {
        request: u64,
        stage: usize,
        worker: &'a str,
        counted: u64,
        tasks: Tasks<'a>,
        failure: Option<Failure<'a>>,
        worker_peak_mem: Option<u64>,
    },
    Retry {
        stage: &'a str,
        #[serde(flatten)]
        failure: Failure<'a>,
        attempt: u32,
        delay_us: u64,
    },
    Recompute {
        stage: usize,
        tasks: u64,
        why: &'a str,
    },
    Memory {
        stage: &'a str,
        kernel: Option<&'a str>,
        worker: &'a str,
        measured_mem: u64,
        projected_mem: u64,
    },
    StageEnd {
        stage: usize,
    },
    End {
        result: &'static str,
        error: Option<String>,
        #[serde(flatten)]
        totals: Option<Totals>,
    },
}

#[derive(Serialize)]
struct Run<'a> {
    version: u32,
    run: &'a str,
    executor: &'a str,
    slots: usize,
    unix_us: u64,
    allowed_mem: u64,
    reserved_mem: u64,
    local_mem: u64,
    projected_mem: u64,
    stages: Vec<Stage<'a>>,
}

#[derive(Serialize)]
struct Stage<'a> {
    name: &'a str,
    tasks: u64,
    finished: u64,
    projected_mem: u64,
}

#[derive(Serialize)]
struct Failure<'a> {
    kind: &'static str,
    task: u64,
    message: &'a str,
}

/// Tasks that ran in sequence, the first of which started at `begun`.
struct Tasks<'a> {
    begun: u64,
    done: &'a [TaskReport],
}

#[derive(Serialize)]
struct Totals {
    cpu_us: u64,
    retries: u64,
    peak_mem: u64,
    kept_mem: u64,
    bytes_read: u64,
    reads: u64,
    bytes_written: u64,
    writes: u64,
}

impl<'a> Entry<'a> {
    fn of(event: &'a Event<'a>, begun: u64) -> Entry<'a> {
        match event {
            Event::RunStarted(start) => Entry::Run(Box::new(Run::of(start))),
            Event::StageStarted { stage } => Entry::Stage { stage: stage.0 },
            Event::Started { request } => Entry::Taken {
                request: request.id,
                stage: request.stage.0,
                first: request.first,
                count: request.count,
                attempt: request.attempt,
                backup_of: request.backup_of,
            },
            Event::Outcome { outcome, counted } => {
                let TaskOutcome { request, worker, done, failure, worker_peak_bytes } = outcome;
                let failure = failure.as_ref().map(|f| Failure {
                    kind: f.kind.name(),
                    task: f.task,
                    message: &f.message,
                });
                let tasks = Tasks { begun, done };
                let (request, stage) = (request.id, request.stage.0);
                Entry::Outcome {
                    request,
                    stage,
                    worker,
                    counted: *counted,
                    tasks,
                    failure,
                    worker_peak_mem: *worker_peak_bytes,
                }
            }
            Event::Retried { failure, attempt, delay } => Entry::Retry {
                stage: &failure.stage,
                failure: Failure {
                    kind: failure.kind.name(),
                    task: failure.task,
                    message: &failure.message,
                },
                attempt: *attempt,
                delay_us: delay.as_micros() as u64,
            },
            Event::Recomputed { stage, tasks, why } => {
                Entry::Recompute { stage: stage.0, tasks: *tasks, why }
            }
            Event::MemoryExceeded(excess) => Entry::Memory {
                stage: &excess.stage,
                kernel: excess.kernel.as_deref(),
                worker: &excess.worker,
                measured_mem: excess.measured_bytes,
                projected_mem: excess.projected_bytes,
            },
            Event::StageEnded { stage } => Entry::StageEnd { stage: stage.0 },
            Event::RunEnded(Ok(report)) => {
                Entry::End { result: "done", error: None, totals: Some(Totals::of(report)) }
            }
            Event::RunEnded(Err(error)) => {
                let result = if matches!(error.cause(), RunError::Cancelled) {
                    "cancelled"
                } else {
                    "failed"
                };
                Entry::End { result, error: Some(error.to_string()), totals: None }
            }
        }
    }
}

impl<'a> Run<'a> {
    fn of(start: &RunStart<'a>) -> Run<'a> {
        let plan = start.plan.plan();
        let stages = start.plan.stages().map(|(id, stage, layout)| Stage {
            name: &stage.name,
            tasks: stage.n_tasks(),
            finished: start.finished.get(id.0).copied().unwrap_or(0),
            projected_mem: layout.estimate.total(),
        });
        Run {
            version: VERSION,
            run: start.run,
            executor: start.executor,
            slots: start.slots,
            unix_us: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_micros() as u64),
            allowed_mem: plan.allowed_mem,
            reserved_mem: plan.reserved_mem,
            local_mem: start.local_mem,
            projected_mem: start.projected_bytes,
            stages: stages.collect(),
        }
    }
}

impl Totals {
    fn of(report: &RunReport) -> Totals {
        let traffic = report.traffic();
        Totals {
            cpu_us: report.process_cpu.as_micros() as u64,
            retries: report.retries,
            peak_mem: report.worker_peak_bytes.unwrap_or(report.peak_rss_bytes),
            kept_mem: report.cached_bytes,
            bytes_read: traffic.bytes_read,
            reads: traffic.reads,
            bytes_written: traffic.bytes_written,
            writes: traffic.writes,
        }
    }
}

impl Serialize for Tasks<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tasks = serializer.serialize_seq(Some(self.done.len()))?;
        let mut ran_ns = 0;
        for task in self.done {
            let start = self.begun + ran_ns / 1000;
            ran_ns += task.wall_ns;
            let moved = &task.traffic;
            let end = self.begun + ran_ns / 1000;
            let cpu_us = task.cpu_ns / 1000;
            tasks.serialize_element(&[
                task.task,
                start,
                end,
                cpu_us,
                task.peak_bytes,
                moved.bytes_read,
                moved.reads,
                moved.bytes_written,
                moved.writes,
            ])?;
        }
        tasks.end()
    }
}

#[cfg(test)]
mod tests;
