//! The data that the page needs, collected during a run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::cost::{Cost, Place, Prices};
use freestone_engine::driver::RunError;
use freestone_engine::events::{Event, RunReport, RunStart};
use freestone_engine::machine;
use freestone_engine::plan::PlanExplanation;
use freestone_engine::storage::reader::Traffic;
use freestone_engine::task::{TaskOutcome, TaskReport};

use super::timeline::{Span, Timeline};
use crate::spans::InFlight;

/// The number of slowest tasks to keep.
const N_SLOWEST: usize = 12;
/// The maximum length of a message in characters.
const MAX_MESSAGE: usize = 400;

/// The record of a run. Times are in microseconds since its start.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) run: String,
    pub(super) executor: String,
    pub(super) slots: usize,
    pub(super) projected_bytes: u64,
    pub(super) local_mem: u64,
    pub(super) reserved_mem: u64,
    pub(super) explanation: PlanExplanation,
    /// The parallelism of the plan.
    parallelism: u64,
    /// The start since the Unix epoch.
    pub(super) started: Duration,
    pub(super) stages: Vec<Stage>,
    pub(super) timeline: Timeline,
    pub(super) incidents: BTreeMap<(IncidentKind, String), Incidents>,
    /// The number of backups of slow requests, and of those that finished first.
    pub(super) backups: [u64; 2],
    pub(super) recomputed: u64,
    pub(super) worker_peak: Option<u64>,
    slowest: BinaryHeap<Reverse<SlowTask>>,
    in_flight: InFlight,
    start: Instant,
    cpu_ns: u64,
    /// The time of the next measurement of this process's memory.
    next_measurement: u64,
}

/// The figures of a stage.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) name: String,
    pub(super) tasks: u64,
    /// The number of tasks that were finished before this run.
    pub(super) finished: u64,
    pub(super) done: u64,
    pub(super) traffic: Traffic,
    pub(super) cpu: Duration,
    /// The start of the first task, and the end of the last one.
    pub(super) first: Option<u64>,
    pub(super) last: u64,
    pub(super) peak_bytes: u64,
    pub(super) projected_bytes: u64,
    pub(super) walls: Durations,
}

/// A histogram of durations, with bins by powers of √2 from a microsecond.
#[derive(Debug)]
pub(super) struct Durations([u32; 64]);

impl Durations {
    fn add(&mut self, ns: u64) {
        let ns = ns.max(1024);
        let octave = ns.ilog2();
        // The bit after the first: below or above 1.5 times the power of two.
        let half = (ns >> (octave - 1)) & 1;
        let at = (2 * (octave as usize - 10) + half as usize).min(self.0.len() - 1);
        self.0[at] = self.0[at].saturating_add(1);
    }

    /// Returns the approximate median in microseconds.
    pub(super) fn median_us(&self) -> Option<u64> {
        let n: u64 = self.0.iter().map(|c| u64::from(*c)).sum();
        let mut before = 0;
        let at = self.0.iter().position(|c| {
            before += u64::from(*c);
            2 * before >= n && n > 0
        })?;
        let (octave, half) = (at / 2, at % 2);
        let ns = (1u64 << (10 + octave)) as f64 * if half == 0 { 1.22 } else { 1.73 };
        Some((ns / 1000.0).round() as u64)
    }
}

/// One of the slowest tasks.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SlowTask {
    pub(super) wall_ns: u64,
    pub(super) stage: usize,
    pub(super) task: u64,
    pub(super) cpu_ns: u64,
    pub(super) start: u64,
    pub(super) peak_bytes: u64,
    pub(super) bytes_read: u64,
    pub(super) worker: String,
}

/// The kind of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum IncidentKind {
    Failure,
    Recompute,
    Memory,
}

/// The incidents of one kind and name.
#[derive(Debug, Default)]
pub(super) struct Incidents {
    pub(super) count: u64,
    pub(super) retried: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    /// The place and message of the first incident.
    pub(super) place: String,
    pub(super) message: String,
}

/// The end of a run.
#[derive(Debug)]
pub(super) struct RunEnd {
    pub(super) outcome: Outcome,
    /// The error, if the run did not succeed.
    pub(super) error: Option<String>,
    pub(super) wall: u64,
    pub(super) process_cpu: Duration,
    pub(super) peak_rss_bytes: u64,
    pub(super) cached_bytes: u64,
    /// The measured and the projected cost, if the executor is billed by use.
    pub(super) cost: Option<[Cost; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Cancelled,
    Failed,
}

impl Record {
    pub(super) fn new(start: &RunStart<'_>) -> Record {
        let plan = start.plan.plan();
        let stages = start.plan.stages().map(|(id, stage, layout)| Stage {
            name: stage.name.clone(),
            tasks: stage.n_tasks(),
            finished: start.finished.get(id.0).copied().unwrap_or(0),
            done: 0,
            traffic: Traffic::default(),
            cpu: Duration::ZERO,
            first: None,
            last: 0,
            peak_bytes: 0,
            projected_bytes: layout.estimate.total(),
            walls: Durations([0; 64]),
        });
        Record {
            run: start.run.to_owned(),
            executor: start.executor.to_owned(),
            slots: start.slots,
            projected_bytes: start.projected_bytes,
            local_mem: start.local_mem,
            reserved_mem: plan.reserved_mem,
            explanation: start.plan.explain(),
            parallelism: plan.parallelism,
            started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            stages: stages.collect(),
            timeline: Timeline::default(),
            incidents: BTreeMap::new(),
            backups: [0; 2],
            recomputed: 0,
            worker_peak: None,
            slowest: BinaryHeap::with_capacity(N_SLOWEST + 1),
            in_flight: InFlight::default(),
            start: Instant::now(),
            cpu_ns: machine::process_cpu_ns(),
            next_measurement: 0,
        }
    }

    pub(super) fn on_event(&mut self, event: &Event<'_>) {
        self.at(self.start.elapsed().as_micros() as u64, event);
    }

    pub(super) fn at(&mut self, now: u64, event: &Event<'_>) {
        if now >= self.next_measurement {
            // The interval grows with the run, so that the number of measurements is bounded.
            self.next_measurement = now + (now / 256).max(10_000);
            self.timeline.add_memory(now, machine::rss_bytes());
        }
        match event {
            Event::Started { request } => {
                self.in_flight.started(request.id, now);
                self.backups[0] += u64::from(request.backup_of.is_some());
            }
            Event::Outcome { outcome, counted } => self.outcome(now, outcome, *counted),
            Event::Retried { failure, .. } => {
                if let Some(incidents) =
                    self.incidents.get_mut(&(IncidentKind::Failure, failure.kind.name().to_owned()))
                {
                    incidents.retried += 1;
                }
            }
            Event::Recomputed { stage, tasks, why } => {
                self.recomputed += tasks;
                let name = self.stages.get(stage.0).map_or("", |s| s.name.as_str()).to_owned();
                if let Some(stage) = self.stages.get_mut(stage.0) {
                    stage.done = stage.done.saturating_sub(*tasks);
                }
                let incidents = self.incident(IncidentKind::Recompute, "recomputed", now, || {
                    (format!("stage {name}"), truncated(why))
                });
                incidents.count += tasks;
            }
            Event::MemoryExceeded(excess) => {
                let place = || {
                    (
                        format!("stage {}, on {}", excess.stage, excess.worker),
                        truncated(&excess.to_string()),
                    )
                };
                self.incident(IncidentKind::Memory, "memory exceeded", now, place).count += 1;
            }
            Event::RunStarted(_)
            | Event::StageStarted { .. }
            | Event::StageEnded { .. }
            | Event::RunEnded(_) => {}
        }
    }

    fn outcome(&mut self, now: u64, outcome: &TaskOutcome, counted: u64) {
        let begun = self.in_flight.returned(outcome, now);
        let id = outcome.request.stage.0;
        self.worker_peak = self.worker_peak.max(outcome.worker_peak_bytes);
        self.backups[1] += u64::from(outcome.request.backup_of.is_some() && counted > 0);
        let lane = self.timeline.lane(&outcome.worker);
        let mut ran_ns = 0;
        for task in &outcome.done {
            let start = begun + ran_ns / 1000;
            ran_ns += task.wall_ns;
            let end = begun + ran_ns / 1000;
            self.timeline.add_task(
                lane,
                Span { start, end, stage: id as u32, task: task.task, failed: false },
                task.traffic,
            );
            if let Some(stage) = self.stages.get_mut(id) {
                stage.add(task, start, end);
            }
            self.add_slow(id, task, start, &outcome.worker);
        }
        if let Some(stage) = self.stages.get_mut(id) {
            stage.done += counted;
        }
        if let Some(failure) = &outcome.failure {
            let start = begun + ran_ns / 1000;
            self.timeline.add_task(
                lane,
                Span {
                    start,
                    end: now.max(start),
                    stage: id as u32,
                    task: failure.task,
                    failed: true,
                },
                Traffic::default(),
            );
            let place = || {
                (
                    format!(
                        "task {} of stage {}, on {}",
                        failure.task, failure.stage, outcome.worker
                    ),
                    truncated(&failure.message),
                )
            };
            self.incident(IncidentKind::Failure, failure.kind.name(), now, place).count += 1;
        }
    }

    fn add_slow(&mut self, stage: usize, task: &TaskReport, start: u64, worker: &str) {
        if self.slowest.len() >= N_SLOWEST
            && self.slowest.peek().is_some_and(|least| least.0.wall_ns >= task.wall_ns)
        {
            return;
        }
        let TaskReport { task, traffic, cpu_ns, wall_ns, peak_bytes, .. } = *task;
        self.slowest.push(Reverse(SlowTask {
            wall_ns,
            stage,
            task,
            cpu_ns,
            start,
            peak_bytes,
            bytes_read: traffic.bytes_read,
            worker: worker.to_owned(),
        }));
        if self.slowest.len() > N_SLOWEST {
            self.slowest.pop();
        }
    }

    fn incident(
        &mut self,
        kind: IncidentKind,
        name: &str,
        now: u64,
        first: impl FnOnce() -> (String, String),
    ) -> &mut Incidents {
        let incidents = self.incidents.entry((kind, name.to_owned())).or_insert_with(|| {
            let (place, message) = first();
            Incidents { first: now, place, message, ..Incidents::default() }
        });
        incidents.last = now;
        incidents
    }

    /// Returns the slowest tasks, starting with the slowest.
    pub(super) fn slowest(&self) -> Vec<&SlowTask> {
        let mut all: Vec<&SlowTask> = self.slowest.iter().map(|s| &s.0).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all
    }

    pub(super) fn ended(&mut self, result: Result<&RunReport, &RunError>) -> RunEnd {
        let wall = self.start.elapsed().as_micros() as u64;
        self.timeline.add_memory(wall, machine::rss_bytes());
        let (outcome, error) = match result {
            Ok(_) => (Outcome::Done, None),
            Err(error) if matches!(error.cause(), RunError::Cancelled) => {
                (Outcome::Cancelled, Some(error.to_string()))
            }
            Err(error) => (Outcome::Failed, Some(error.to_string())),
        };
        RunEnd {
            outcome,
            error,
            wall,
            process_cpu: Duration::from_nanos(
                machine::process_cpu_ns().saturating_sub(self.cpu_ns),
            ),
            peak_rss_bytes: machine::peak_rss_bytes(),
            cached_bytes: result.map_or(0, |r| r.cached_bytes),
            cost: result.ok().and_then(|r| self.cost(r)),
        }
    }

    fn cost(&self, report: &RunReport) -> Option<[Cost; 2]> {
        let place = Place::from_env(self.parallelism, |name| std::env::var(name).ok()).ok()?;
        let prices = Prices::load().ok()?;
        Some([prices.measured(report, &place)?, prices.project(&self.explanation, &place)])
    }
}

impl Stage {
    fn add(&mut self, task: &TaskReport, start: u64, end: u64) {
        self.traffic.add(task.traffic);
        self.cpu += Duration::from_nanos(task.cpu_ns);
        self.first = Some(self.first.map_or(start, |first| first.min(start)));
        self.last = self.last.max(end);
        self.peak_bytes = self.peak_bytes.max(task.peak_bytes);
        self.walls.add(task.wall_ns);
    }
}

/// Truncates a message to [`MAX_MESSAGE`] characters.
fn truncated(message: &str) -> String {
    let mut kept: String = message.chars().take(MAX_MESSAGE).collect();
    if kept.len() < message.len() {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_within_a_quarter() {
        for us in [2, 17, 300, 4_000, 65_000, 1_000_000, 3_600_000_000] {
            let mut walls = Durations([0; 64]);
            (0..10).for_each(|_| walls.add(us * 1000));
            (0..9).for_each(|i| walls.add(us * if i % 2 == 0 { 1 } else { 8000 }));
            let median = walls.median_us().unwrap() as f64;
            assert!((0.75..1.3).contains(&(median / us as f64)), "{us} {median}");
        }
        assert_eq!(Durations([0; 64]).median_us(), None);
    }

    #[test]
    fn long_messages_are_truncated_at_a_character() {
        assert_eq!(truncated("short"), "short");
        let long = truncated(&"é".repeat(1000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (MAX_MESSAGE + 1, true));
    }
}
