//! Traces of runs in the Chrome trace event format, for <https://ui.perfetto.dev> and
//! `chrome://tracing`.
//!
//! A trace has a track per worker, with a slice per task. Slices carry the number of the task and
//! its traffic, memory and CPU time as arguments. Failed tasks have their own category, and retries
//! and recomputations are instant events.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use freestone_engine::events::{Event, Observer, RunStart};
use freestone_engine::task::{TaskOutcome, TaskReport};
use serde_json::{Value, json};

use crate::spans::InFlight;

/// An observer that writes each finished task to a file.
///
/// The file is a JSON array. An error of writing does not fail the run. [`Trace::take_error`]
/// returns it.
#[derive(Debug)]
pub struct Trace(Mutex<State>);

#[derive(Debug)]
struct State {
    file: BufWriter<File>,
    start: Instant,
    in_flight: InFlight,
    /// The names of the stages of the current run.
    stages: Vec<String>,
    /// The number of runs so far, which is the process id of the current run.
    n_runs: u32,
    /// The track of each worker.
    tracks: HashMap<String, usize>,
    n_events: u64,
    error: Option<io::Error>,
}

impl Trace {
    /// Creates a trace. Replaces the file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be created.
    #[allow(clippy::disallowed_methods, reason = "the caller names the path in its error")]
    pub fn create(file: &Path) -> io::Result<Trace> {
        let mut file = BufWriter::new(File::create(file)?);
        file.write_all(b"[")?;
        Ok(Trace(Mutex::new(State {
            file,
            start: Instant::now(),
            in_flight: InFlight::default(),
            stages: Vec::new(),
            n_runs: 0,
            tracks: HashMap::new(),
            n_events: 0,
            error: None,
        })))
    }

    /// Takes the error because of which events are missing.
    pub fn take_error(&self) -> Option<io::Error> {
        self.lock().error.take()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Trace {
    fn on_event(&self, event: &Event<'_>) {
        let mut state = self.lock();
        if let Event::RunStarted(start) = event {
            return state.start_run(start);
        }
        let now = state.start.elapsed().as_micros() as u64;
        state.add(now, event);
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.lock().end();
    }
}

impl State {
    fn start_run(&mut self, start: &RunStart<'_>) {
        (self.start, self.in_flight) = (Instant::now(), InFlight::default());
        self.stages = start.plan.stages().map(|(_, stage, _)| stage.name.clone()).collect();
        self.tracks.clear();
        self.n_runs += 1;
        let name = format!("{} on {}", start.run, start.executor);
        self.write(json!({
            "ph": "M", "name": "process_name", "pid": self.n_runs, "args": { "name": name },
        }));
    }

    fn add(&mut self, now: u64, event: &Event<'_>) {
        match event {
            Event::Started { request } => self.in_flight.started(request.id, now),
            Event::Outcome { outcome, .. } => self.add_tasks(now, outcome),
            Event::Retried { failure, attempt, .. } => {
                let arguments = json!({ "attempt": attempt, "message": failure.message });
                self.add_instant(now, &format!("retry of {}", failure.stage), arguments);
            }
            Event::Recomputed { stage, tasks, why } => {
                let name = format!("recomputation of {}", self.stage(stage.0));
                self.add_instant(now, &name, json!({ "tasks": tasks, "reason": why }));
            }
            Event::RunEnded(_) => self.flush(),
            _ => {}
        }
    }

    fn add_tasks(&mut self, now: u64, outcome: &TaskOutcome) {
        let begun = self.in_flight.returned(outcome, now);
        let track = self.track(&outcome.worker);
        let stage = self.stage(outcome.request.stage.0);
        let mut ran_ns = 0;
        for task in &outcome.done {
            let start = begun + ran_ns / 1000;
            ran_ns += task.wall_ns;
            let duration = begun + ran_ns / 1000 - start;
            self.write(json!({
                "ph": "X", "cat": "task", "name": stage, "pid": self.n_runs, "tid": track,
                "ts": start, "dur": duration, "args": arguments(task),
            }));
        }
        if let Some(failure) = &outcome.failure {
            let start = begun + ran_ns / 1000;
            self.write(json!({
                "ph": "X", "cat": "failure", "name": format!("{stage} failed"),
                "pid": self.n_runs, "tid": track, "ts": start, "dur": now.saturating_sub(start),
                "args": { "task": failure.task, "message": failure.message },
            }));
        }
    }

    fn add_instant(&mut self, now: u64, name: &str, arguments: Value) {
        self.write(json!({
            "ph": "i", "s": "p", "cat": "run", "name": name, "pid": self.n_runs, "tid": 0,
            "ts": now, "args": arguments,
        }));
    }

    /// Returns the track of a worker, which is named at its first task.
    fn track(&mut self, worker: &str) -> usize {
        if let Some(track) = self.tracks.get(worker) {
            return *track;
        }
        let track = self.tracks.len() + 1;
        self.tracks.insert(worker.to_owned(), track);
        self.write(json!({
            "ph": "M", "name": "thread_name", "pid": self.n_runs, "tid": track,
            "args": { "name": worker },
        }));
        track
    }

    fn stage(&self, stage: usize) -> String {
        self.stages.get(stage).cloned().unwrap_or_default()
    }

    fn write(&mut self, event: Value) {
        if self.error.is_some() {
            return;
        }
        let separator = if self.n_events == 0 { "\n" } else { ",\n" };
        self.n_events += 1;
        self.error = write!(self.file, "{separator}{event}").err();
    }

    fn flush(&mut self) {
        if self.error.is_none() {
            self.error = self.file.flush().err();
        }
    }

    fn end(&mut self) {
        if self.error.is_none() {
            // An array without its end is accepted by viewers.
            let _ = self.file.write_all(b"\n]\n").and_then(|()| self.file.flush());
        }
    }
}

fn arguments(task: &TaskReport) -> Value {
    json!({
        "task": task.task,
        "cpu_us": task.cpu_ns / 1000,
        "peak_bytes": task.peak_bytes,
        "bytes_read": task.traffic.bytes_read,
        "reads": task.traffic.reads,
        "bytes_written": task.traffic.bytes_written,
        "writes": task.traffic.writes,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use freestone_engine::events::RunReport;
    use freestone_engine::task::FailureKind;

    use super::*;
    use crate::spans::tests::{failure, outcome, planned, request, started};

    #[test]
    fn a_trace_has_a_slice_per_task_and_a_track_per_worker() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trace.json");
        let trace = Trace::create(&file).unwrap();
        let plan = planned(2, 400);
        trace.on_event(&Event::RunStarted(&started(&plan, &[0, 0])));
        for (id, worker) in [(1, "worker \"1\""), (2, "w2"), (3, "w2")] {
            let request = request(id, 1, 2 * id, 2);
            trace.on_event(&Event::Started { request: &request });
            let outcome = outcome(request, worker, 30, 4000);
            trace.on_event(&Event::Outcome { outcome: &outcome, counted: 2 });
        }
        let lost = failure(FailureKind::WorkerLost, "<gone>\n", 9);
        let request = request(4, 0, 9, 1);
        trace.on_event(&Event::Started { request: &request });
        let failed = TaskOutcome {
            failure: Some(lost.clone()),
            done: Vec::new(),
            ..outcome(request, "w2", 0, 0)
        };
        trace.on_event(&Event::Outcome { outcome: &failed, counted: 0 });
        let delay = Duration::from_millis(250);
        trace.on_event(&Event::Retried { failure: &lost, attempt: 1, delay });
        trace.on_event(&Event::RunEnded(Ok(&RunReport::default())));
        assert!(trace.take_error().is_none());
        drop(trace);

        let events: Vec<Value> = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let of_phase = |phase: &str| {
            events.iter().filter(|e| e["ph"] == phase).cloned().collect::<Vec<Value>>()
        };
        let names: Vec<Value> = of_phase("M").iter().map(|e| e["args"]["name"].clone()).collect();
        assert_eq!(names, ["run-1 on threads", "worker \"1\"", "w2"]);
        let slices = of_phase("X");
        assert_eq!(slices.len(), 7);
        assert_eq!((&slices[1]["args"]["task"], &slices[1]["dur"]), (&json!(3), &json!(30)));
        let end = |slice: &Value| slice["ts"].as_u64().unwrap() + slice["dur"].as_u64().unwrap();
        assert_eq!(slices[1]["ts"], end(&slices[0]), "tasks of a request run in sequence");
        assert_eq!((&slices[0]["tid"], &slices[2]["tid"]), (&json!(1), &json!(2)));
        assert_eq!(slices[6]["cat"], "failure");
        assert_eq!(slices[6]["args"]["message"], "<gone>\n");
        assert_eq!(of_phase("i").len(), 1);
    }

    #[test]
    fn a_full_disk_is_reported_once() {
        let trace = Trace::create(Path::new("/dev/full")).unwrap();
        let plan = planned(1, 400);
        trace.on_event(&Event::RunStarted(&started(&plan, &[0])));
        trace.on_event(&Event::RunEnded(Ok(&RunReport::default())));
        assert_eq!(trace.take_error().map(|e| e.kind()), Some(io::ErrorKind::StorageFull));
        assert!(trace.take_error().is_none());
    }
}
