//! What is kept of a run while it goes on.

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

/// So many of the slowest tasks are kept.
const N_SLOWEST: usize = 12;
/// Longer messages are cut off.
const MAX_MESSAGE: usize = 400;

/// A run, as far as its page tells of it. Times are microseconds since the run began.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) run: String,
    pub(super) executor: String,
    pub(super) slots: usize,
    pub(super) projected_bytes: u64,
    pub(super) local_mem: u64,
    pub(super) reserved_mem: u64,
    pub(super) explanation: PlanExplanation,
    /// Tasks that the plan keeps busy.
    parallelism: u64,
    /// Since 1970.
    pub(super) unix: Duration,
    pub(super) stages: Vec<Stage>,
    pub(super) timeline: Timeline,
    pub(super) troubles: BTreeMap<(Sort, String), Trouble>,
    /// Requests that were repeated, and those of them that brought something.
    pub(super) backups: [u64; 2],
    pub(super) recomputed: u64,
    pub(super) worker_peak: Option<u64>,
    slowest: BinaryHeap<Reverse<Slow>>,
    in_flight: InFlight,
    start: Instant,
    cpu_ns: u64,
    /// When to look at this process's memory next.
    look: u64,
}

/// What a stage has taken so far.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) name: String,
    pub(super) tasks: u64,
    /// Before this run went on.
    pub(super) finished: u64,
    pub(super) done: u64,
    pub(super) traffic: Traffic,
    pub(super) cpu: Duration,
    /// When its first task began and its last ended.
    pub(super) first: Option<u64>,
    pub(super) last: u64,
    pub(super) peak_bytes: u64,
    pub(super) projected_bytes: u64,
    pub(super) walls: Durations,
}

/// How long tasks took: counts by powers of √2 from a microsecond on.
#[derive(Debug)]
pub(super) struct Durations([u32; 64]);

impl Durations {
    fn add(&mut self, ns: u64) {
        let ns = ns.max(1024);
        let octave = ns.ilog2();
        // The bit after the first: below or above 1.5.
        let half = (ns >> (octave - 1)) & 1;
        let at = (2 * (octave as usize - 10) + half as usize).min(self.0.len() - 1);
        self.0[at] = self.0[at].saturating_add(1);
    }

    /// About the median, in microseconds.
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

/// A task that took long.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slow {
    pub(super) wall_ns: u64,
    pub(super) stage: usize,
    pub(super) task: u64,
    pub(super) cpu_ns: u64,
    pub(super) start: u64,
    pub(super) peak_bytes: u64,
    pub(super) bytes_read: u64,
    pub(super) worker: String,
}

/// What kind of thing went another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sort {
    Failure,
    Recompute,
    Memory,
}

/// Things of one kind.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    pub(super) count: u64,
    pub(super) retried: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    /// Where and why, of the first.
    pub(super) place: String,
    pub(super) message: String,
}

/// How a run ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) result: Outcome,
    /// In words, where it did not end well.
    pub(super) error: Option<String>,
    pub(super) wall: u64,
    pub(super) process_cpu: Duration,
    pub(super) peak_rss_bytes: u64,
    pub(super) cached_bytes: u64,
    /// What it has cost, and what was projected, where it ran on machines that are paid for by use.
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
            unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            stages: stages.collect(),
            timeline: Timeline::default(),
            troubles: BTreeMap::new(),
            backups: [0; 2],
            recomputed: 0,
            worker_peak: None,
            slowest: BinaryHeap::with_capacity(N_SLOWEST + 1),
            in_flight: InFlight::default(),
            start: Instant::now(),
            cpu_ns: machine::process_cpu_ns(),
            look: 0,
        }
    }

    pub(super) fn on_event(&mut self, event: &Event<'_>) {
        self.at(self.start.elapsed().as_micros() as u64, event);
    }

    pub(super) fn at(&mut self, now: u64, event: &Event<'_>) {
        if now >= self.look {
            // Often in a short run, not too often in any.
            self.look = now + (now / 256).max(10_000);
            self.timeline.memory(now, machine::rss_bytes());
        }
        match event {
            Event::Started { request } => {
                self.in_flight.started(request.id, now);
                self.backups[0] += u64::from(request.backup_of.is_some());
            }
            Event::Outcome { outcome, counted } => self.outcome(now, outcome, *counted),
            Event::Retried { failure, .. } => {
                if let Some(trouble) =
                    self.troubles.get_mut(&(Sort::Failure, failure.kind.name().to_owned()))
                {
                    trouble.retried += 1;
                }
            }
            Event::Recomputed { stage, tasks, why } => {
                self.recomputed += tasks;
                let name = self.stages.get(stage.0).map_or("", |s| s.name.as_str()).to_owned();
                if let Some(stage) = self.stages.get_mut(stage.0) {
                    stage.done = stage.done.saturating_sub(*tasks);
                }
                let trouble = self.trouble(Sort::Recompute, "computed again", now, || {
                    (format!("stage {name}"), cut(why))
                });
                trouble.count += tasks;
            }
            Event::MemoryExceeded(excess) => {
                let place = || {
                    (
                        format!("stage {}, on {}", excess.stage, excess.worker),
                        cut(&excess.to_string()),
                    )
                };
                self.trouble(Sort::Memory, "memory exceeded", now, place).count += 1;
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
            self.timeline.ran(
                lane,
                Span { start, end, stage: id as u32, task: task.task, failed: false },
                task.traffic,
            );
            if let Some(stage) = self.stages.get_mut(id) {
                stage.add(task, start, end);
            }
            self.slow(id, task, start, &outcome.worker);
        }
        if let Some(stage) = self.stages.get_mut(id) {
            stage.done += counted;
        }
        if let Some(failure) = &outcome.failure {
            let start = begun + ran_ns / 1000;
            self.timeline.ran(
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
                    cut(&failure.message),
                )
            };
            self.trouble(Sort::Failure, failure.kind.name(), now, place).count += 1;
        }
    }

    fn slow(&mut self, stage: usize, task: &TaskReport, start: u64, worker: &str) {
        if self.slowest.len() >= N_SLOWEST
            && self.slowest.peek().is_some_and(|least| least.0.wall_ns >= task.wall_ns)
        {
            return;
        }
        let TaskReport { task, traffic, cpu_ns, wall_ns, peak_bytes, .. } = *task;
        self.slowest.push(Reverse(Slow {
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

    fn trouble(
        &mut self,
        sort: Sort,
        kind: &str,
        now: u64,
        first: impl FnOnce() -> (String, String),
    ) -> &mut Trouble {
        let trouble = self.troubles.entry((sort, kind.to_owned())).or_insert_with(|| {
            let (place, message) = first();
            Trouble { first: now, place, message, ..Trouble::default() }
        });
        trouble.last = now;
        trouble
    }

    /// The slowest tasks, the slowest first.
    pub(super) fn slowest(&self) -> Vec<&Slow> {
        let mut all: Vec<&Slow> = self.slowest.iter().map(|s| &s.0).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all
    }

    pub(super) fn ended(&mut self, result: Result<&RunReport, &RunError>) -> Ended {
        let wall = self.start.elapsed().as_micros() as u64;
        self.timeline.memory(wall, machine::rss_bytes());
        let (outcome, error) = match result {
            Ok(_) => (Outcome::Done, None),
            Err(error) if matches!(error.cause(), RunError::Cancelled) => {
                (Outcome::Cancelled, Some(error.to_string()))
            }
            Err(error) => (Outcome::Failed, Some(error.to_string())),
        };
        Ended {
            result: outcome,
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

/// A message that is not too long.
fn cut(message: &str) -> String {
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
    fn the_median_is_right_within_a_quarter() {
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
    fn long_messages_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = cut(&"é".repeat(1000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (MAX_MESSAGE + 1, true));
    }
}
