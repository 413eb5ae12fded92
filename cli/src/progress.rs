//! Progress bars.
//!
//! Each running stage has a bar, and the whole run has a line below the bars. Events only update
//! counters, which are drawn eight times a second. Retries and warnings are printed in lines above
//! the bars, at a limited rate.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use freestone_engine::events::{Event, Observer, RunStart};
use freestone_engine::machine;
use freestone_engine::memory::size;
use freestone_engine::plan::StageId;
use freestone_engine::system::System;
use freestone_engine::task::{TaskFailure, TaskOutcome, TaskRequest};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// An observer that draws progress bars to standard error, if that is a terminal.
#[derive(Debug)]
pub struct Progress {
    bars: MultiProgress,
    silent: bool,
    /// The interval between drawings.
    interval: Duration,
    system: System,
    state: Mutex<Option<State>>,
}

/// The number of drawings per second.
const HERTZ: u8 = 8;
/// The maximum number of bars. Further running stages are only counted.
const MAX_BARS: usize = 6;
/// The time constant of the mean rates, in seconds.
const RATE_SECONDS: f64 = 5.0;

const STAGE: &str = "{prefix:16!} [{wide_bar}] {pos}/{len} {msg} {eta} left";
const WHOLE: &str = "{elapsed} {wide_msg}";

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}

impl Progress {
    /// Creates an observer whose bars appear when a run starts.
    pub fn new() -> Progress {
        Progress::drawing_to(ProgressDrawTarget::stderr_with_hz(2 * HERTZ))
    }

    /// Creates an observer that draws to another target.
    pub fn drawing_to(target: ProgressDrawTarget) -> Progress {
        let bars = MultiProgress::with_draw_target(target);
        let silent = bars.is_hidden();
        Progress {
            bars,
            silent,
            interval: Duration::from_millis(1000 / u64::from(HERTZ)),
            system: System::default(),
            state: Mutex::default(),
        }
    }
}

impl Observer for Progress {
    fn on_event(&self, event: &Event<'_>) {
        if !self.silent {
            self.on_at(event, self.system.now());
        }
    }
}

impl Progress {
    fn on_at(&self, event: &Event<'_>, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Event::RunStarted(start) = event {
            *state = Some(State::new(start, &self.bars, now));
        }
        if let Some(state) = state.as_mut() {
            state.count(event, now);
            if now >= state.due {
                state.due = now + self.interval;
                state.draw(now);
            }
        }
        if let Event::RunEnded(_) = event
            && let Some(ended) = state.take()
        {
            ended.clear();
        }
    }
}

/// The counters and bars of a run.
#[derive(Debug)]
struct State {
    bars: MultiProgress,
    /// The line of the whole run.
    whole: ProgressBar,
    local_mem: u64,
    projected_bytes: u64,
    /// The memory of a task apart from its buffers.
    reserved_mem: u64,
    stages: Vec<Stage>,
    /// The peak memory of a worker process, if there are any.
    worker_peak: Option<u64>,
    retries: u64,
    lines: LineLimit,
    /// The time of the next drawing.
    due: Instant,
}

#[derive(Debug)]
struct Stage {
    name: String,
    tasks: u64,
    done: u64,
    read: u64,
    written: u64,
    peak: u64,
    /// The projected memory of a task's buffers.
    buffers: u64,
    running: bool,
    bar: Option<ProgressBar>,
    /// Tasks and bytes per second.
    rates: [Rate; 2],
}

/// An exponentially weighted moving average.
#[derive(Debug, Default)]
struct Rate {
    last: Option<(Instant, u64)>,
    mean: Option<f64>,
}

impl Rate {
    fn at(&mut self, now: Instant, count: u64) -> Option<f64> {
        let Some((then, before)) = self.last else {
            self.last = Some((now, count));
            return None;
        };
        let seconds = now.duration_since(then).as_secs_f64();
        if seconds > 0.0 {
            let rate = count.saturating_sub(before) as f64 / seconds;
            let weight = (-seconds / RATE_SECONDS).exp();
            self.mean = Some(self.mean.map_or(rate, |mean| mean * weight + rate * (1.0 - weight)));
            self.last = Some((now, count));
        }
        self.mean
    }
}

impl State {
    fn new(start: &RunStart<'_>, bars: &MultiProgress, now: Instant) -> State {
        let whole = bars.add(ProgressBar::no_length());
        if let Ok(style) = ProgressStyle::with_template(WHOLE) {
            whole.set_style(style);
        }
        // The elapsed time advances without events too.
        whole.enable_steady_tick(Duration::from_secs(1));
        let reserved_mem = start.plan.plan().reserved_mem;
        let stages = start.plan.stages().map(|(id, stage, layout)| Stage {
            name: stage.name.clone(),
            tasks: stage.n_tasks(),
            done: start.finished.get(id.0).copied().unwrap_or(0),
            read: 0,
            written: 0,
            peak: 0,
            buffers: layout.estimate.total().saturating_sub(reserved_mem),
            running: false,
            bar: None,
            rates: Default::default(),
        });
        State {
            bars: bars.clone(),
            whole,
            local_mem: start.local_mem,
            projected_bytes: start.projected_bytes,
            reserved_mem,
            stages: stages.collect(),
            worker_peak: None,
            retries: 0,
            lines: LineLimit::new(now),
            due: now,
        }
    }

    fn count(&mut self, event: &Event<'_>, now: Instant) {
        match event {
            Event::StageStarted { stage } => {
                if let Some(stage) = self.stages.get_mut(stage.0) {
                    stage.running = true;
                }
                self.add_bars();
            }
            Event::Started { request } if request.backup_of.is_some() => self.backup(request, now),
            Event::Outcome { outcome, counted } => self.outcome(outcome, *counted),
            Event::Retried { failure, attempt, delay } => {
                self.retried(failure, *attempt, *delay, now);
            }
            Event::Recomputed { stage, tasks, why } => self.recomputed(*stage, *tasks, why, now),
            Event::MemoryExceeded(excess) => {
                self.print("memory", now, || format!("warning: {excess}"))
            }
            Event::StageEnded { stage } => {
                let Some(stage) = self.stages.get_mut(stage.0) else { return };
                stage.running = false;
                if let Some(bar) = stage.bar.take() {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
                self.add_bars();
                self.due = now;
            }
            Event::RunEnded(_) => {
                if let Some(line) = self.lines.suppressed() {
                    let _ = self.bars.println(line);
                }
            }
            Event::RunStarted(_) | Event::Started { .. } => {}
        }
    }

    fn backup(&mut self, request: &TaskRequest, now: Instant) {
        let stage = self.stages.get(request.stage.0).map_or("", |s| s.name.as_str());
        let tasks = if request.count == 1 { "" } else { " and those after it" };
        let line =
            format!("task {}{tasks} of stage `{stage}` is slow: started a backup", request.first);
        self.print("backup", now, || line);
    }

    fn retried(&mut self, failure: &TaskFailure, attempt: u32, delay: Duration, now: Instant) {
        self.retries += 1;
        let wait = if delay.is_zero() {
            String::new()
        } else {
            format!(" in {:.1} s", delay.as_secs_f64())
        };
        self.print(failure.kind.name(), now, || {
            format!("{failure}; retrying{wait} (retry {attempt})")
        });
    }

    fn recomputed(&mut self, stage: StageId, tasks: u64, why: &str, now: Instant) {
        let Some(stage) = self.stages.get_mut(stage.0) else { return };
        stage.done = stage.done.saturating_sub(tasks);
        stage.running = true;
        let line = format!("repeating {tasks} finished tasks of stage `{}`: {why}", stage.name);
        self.print("recomputed", now, || line);
        self.add_bars();
    }

    fn outcome(&mut self, outcome: &TaskOutcome, counted: u64) {
        self.worker_peak = self.worker_peak.max(outcome.worker_peak_bytes);
        let Some(stage) = self.stages.get_mut(outcome.request.stage.0) else { return };
        stage.done += counted;
        for task in &outcome.done {
            stage.read += task.traffic.bytes_read;
            stage.written += task.traffic.bytes_written;
            stage.peak = stage.peak.max(task.peak_bytes);
        }
    }

    fn print(&mut self, kind: &'static str, now: Instant, line: impl FnOnce() -> String) {
        let (suppressed, allowed) = self.lines.admit(kind, now);
        let lines = suppressed.into_iter().chain(allowed.then(line));
        lines.for_each(|line| drop(self.bars.println(line)));
    }

    /// Adds bars for running stages that have none, up to the maximum.
    fn add_bars(&mut self) {
        let free = MAX_BARS - self.stages.iter().filter(|s| s.bar.is_some()).count();
        for stage in self.stages.iter_mut().filter(|s| s.running && s.bar.is_none()).take(free) {
            // Tasks finished before a resume do not count for the remaining time.
            let bar = self.bars.insert_before(
                &self.whole,
                ProgressBar::new(stage.tasks).with_position(stage.done),
            );
            bar.reset_eta();
            if let Ok(style) = ProgressStyle::with_template(STAGE) {
                bar.set_style(style.progress_chars("=> ").with_key("eta", eta));
            }
            bar.set_prefix(stage.name.clone());
            stage.bar = Some(bar);
        }
    }

    fn draw(&mut self, now: Instant) {
        for stage in &mut self.stages {
            let [tasks, read] = &mut stage.rates;
            if let Some(bar) = &stage.bar {
                let rate = if stage.read > 0 {
                    read.at(now, stage.read).map(|r| format!("{}/s", size(r as u64)))
                } else {
                    tasks.at(now, stage.done).map(|r| format!("{r:.1}/s"))
                };
                bar.set_position(stage.done);
                bar.set_message(format!(
                    "{:>10}, {} of {},",
                    rate.unwrap_or_default(),
                    size(stage.peak),
                    size(stage.buffers)
                ));
            }
        }
        self.whole.set_message(self.to_string());
    }

    /// Removes the bars. Printed lines stay.
    fn clear(self) {
        self.stages.iter().filter_map(|s| s.bar.as_ref()).for_each(ProgressBar::finish_and_clear);
        self.whole.finish_and_clear();
        let _ = self.bars.clear();
    }
}

impl fmt::Display for State {
    /// Formats the line of the whole run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = self.stages.iter().filter(|s| s.done >= s.tasks).count();
        let hidden = self.stages.iter().filter(|s| s.running && s.bar.is_none()).count();
        write!(f, "{ended}/{} stages done", self.stages.len())?;
        if hidden > 0 {
            write!(f, ", {hidden} more running")?;
        }
        let sum = |of: fn(&Stage) -> u64| size(self.stages.iter().map(of).sum());
        write!(
            f,
            ", {} read, {} written, memory {} of {}",
            sum(|s| s.read),
            sum(|s| s.written),
            size(machine::rss_bytes()),
            size(self.local_mem)
        )?;
        if let Some(peak) = self.worker_peak {
            write!(
                f,
                ", {} of {} in a worker",
                size(peak),
                size(self.projected_bytes.max(self.reserved_mem))
            )?;
        }
        if self.retries > 0 {
            write!(f, ", {} retries", self.retries)?;
        }
        Ok(())
    }
}

/// Writes the remaining time, or a dash if it is unknown.
fn eta(state: &ProgressState, out: &mut dyn fmt::Write) {
    let left = state.eta().as_secs();
    let _ = match left {
        0 if state.per_sec() <= 0.0 => write!(out, "–"),
        0..60 => write!(out, "{left} s"),
        60..3600 => write!(out, "{} m {:02} s", left / 60, left % 60),
        _ => write!(out, "{} h {:02} m", left / 3600, left / 60 % 60),
    };
}

/// A rate limit for lines: a burst, then one per second. Suppressed lines are counted by kind.
#[derive(Debug)]
struct LineLimit {
    allowance: f64,
    last: Instant,
    suppressed: BTreeMap<&'static str, u64>,
}

/// The maximum number of lines at once.
const BURST: f64 = 5.0;

impl LineLimit {
    fn new(now: Instant) -> LineLimit {
        LineLimit { allowance: BURST, last: now, suppressed: BTreeMap::new() }
    }

    /// Returns true if a line may be printed, and a line about suppressed ones to print before it.
    fn admit(&mut self, kind: &'static str, now: Instant) -> (Option<String>, bool) {
        self.allowance = (self.allowance + now.duration_since(self.last).as_secs_f64()).min(BURST);
        self.last = now;
        if self.allowance < 1.0 {
            *self.suppressed.entry(kind).or_insert(0) += 1;
            return (None, false);
        }
        self.allowance -= 1.0;
        (self.suppressed(), true)
    }

    /// Returns a line that counts the suppressed lines, if there are any, and resets the counts.
    fn suppressed(&mut self) -> Option<String> {
        let counts = std::mem::take(&mut self.suppressed);
        let kinds: Vec<String> = counts.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        (!counts.is_empty()).then(|| {
            format!("… and {} similar lines ({})", counts.values().sum::<u64>(), kinds.join(", "))
        })
    }
}

#[cfg(test)]
mod tests;
