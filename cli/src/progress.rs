//! Bars for people who watch.
//!
//! A bar for each stage that runs, and below them a line for the whole run. Events only count; what
//! is counted is drawn eight times a second. What goes wrong on the way is told in lines above the
//! bars, a few of them at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use freestone_engine::events::{Event, Observer, RunStart};
use freestone_engine::machine;
use freestone_engine::memory::size;
use freestone_engine::task::TaskOutcome;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Progress bars on standard error; silent where that is no terminal.
#[derive(Debug)]
pub struct Progress {
    bars: MultiProgress,
    silent: bool,
    /// Time between two drawings.
    every: Duration,
    state: Mutex<Option<State>>,
}

/// Redraws a second: more is only flicker.
const HERTZ: u8 = 8;
/// Stages that have a bar at once; others that run are counted.
const MAX_BARS: usize = 6;
/// Rates are means over about so many seconds.
const RATE_SECONDS: f64 = 5.0;

const STAGE: &str = "{prefix:16!} [{wide_bar}] {pos}/{len} {msg} {eta} left";
const WHOLE: &str = "{elapsed} {wide_msg}";

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}

impl Progress {
    /// Bars that appear when a run starts.
    pub fn new() -> Progress {
        Progress::drawing_to(ProgressDrawTarget::stderr_with_hz(2 * HERTZ))
    }

    /// Bars somewhere else.
    pub fn drawing_to(target: ProgressDrawTarget) -> Progress {
        let bars = MultiProgress::with_draw_target(target);
        let silent = bars.is_hidden();
        Progress {
            bars,
            silent,
            every: Duration::from_millis(1000 / u64::from(HERTZ)),
            state: Mutex::default(),
        }
    }
}

impl Observer for Progress {
    fn on_event(&self, event: &Event<'_>) {
        if !self.silent {
            self.on_at(event, Instant::now());
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
                state.due = now + self.every;
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

/// What a run has come to.
#[derive(Debug)]
struct State {
    bars: MultiProgress,
    /// The line for the whole run.
    whole: ProgressBar,
    local_mem: u64,
    projected_bytes: u64,
    /// Memory of tasks that is no buffers.
    reserved_mem: u64,
    stages: Vec<Stage>,
    /// The highest memory of a worker process, where there are some.
    worker_peak: Option<u64>,
    again: u64,
    lines: Lines,
    /// When to draw next.
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
    /// What its tasks' buffers may take.
    buffers: u64,
    running: bool,
    bar: Option<ProgressBar>,
    /// Tasks and bytes a second.
    rates: [Rate; 2],
}

/// A mean that forgets.
#[derive(Debug, Default)]
struct Rate {
    looked: Option<(Instant, u64)>,
    mean: Option<f64>,
}

impl Rate {
    fn at(&mut self, now: Instant, count: u64) -> Option<f64> {
        let Some((then, before)) = self.looked else {
            self.looked = Some((now, count));
            return None;
        };
        let seconds = now.duration_since(then).as_secs_f64();
        if seconds > 0.0 {
            let rate = count.saturating_sub(before) as f64 / seconds;
            let kept = (-seconds / RATE_SECONDS).exp();
            self.mean = Some(self.mean.map_or(rate, |mean| mean * kept + rate * (1.0 - kept)));
            self.looked = Some((now, count));
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
        // Time goes on where events do not.
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
            again: 0,
            lines: Lines::new(now),
            due: now,
        }
    }

    fn count(&mut self, event: &Event<'_>, now: Instant) {
        match event {
            Event::StageStarted { stage } => {
                if let Some(stage) = self.stages.get_mut(stage.0) {
                    stage.running = true;
                }
                self.give_bars();
            }
            Event::Started { request } if request.backup_of.is_some() => {
                let stage = self.stages.get(request.stage.0).map_or("", |s| s.name.as_str());
                let tasks = if request.count == 1 { "" } else { " and those after it" };
                let line = format!(
                    "task {}{tasks} of stage `{stage}` takes long: begun once more elsewhere",
                    request.first
                );
                self.tell("backup", now, || line);
            }
            Event::Outcome { outcome, counted } => self.outcome(outcome, *counted),
            Event::Retried { failure, attempt, delay } => {
                self.again += 1;
                let wait = if delay.is_zero() {
                    String::new()
                } else {
                    format!(" in {:.1} s", delay.as_secs_f64())
                };
                self.tell(failure.kind.name(), now, || {
                    format!("{failure}; trying again{wait} ({attempt})")
                });
            }
            Event::Recomputed { stage, tasks, why } => {
                let Some(stage) = self.stages.get_mut(stage.0) else { return };
                stage.done = stage.done.saturating_sub(*tasks);
                stage.running = true;
                let line = format!(
                    "{tasks} finished tasks of stage `{}` are run once more: {why}",
                    stage.name
                );
                self.tell("recomputed", now, || line);
                self.give_bars();
            }
            Event::MemoryExceeded(excess) => {
                self.tell("memory", now, || format!("warning: {excess}"))
            }
            Event::StageEnded { stage } => {
                let Some(stage) = self.stages.get_mut(stage.0) else { return };
                stage.running = false;
                if let Some(bar) = stage.bar.take() {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
                self.give_bars();
                self.due = now;
            }
            Event::RunEnded(_) => {
                if let Some(line) = self.lines.rest() {
                    let _ = self.bars.println(line);
                }
            }
            Event::RunStarted(_) | Event::Started { .. } => {}
        }
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

    fn tell(&mut self, kind: &'static str, now: Instant, line: impl FnOnce() -> String) {
        let (rest, told) = self.lines.may_tell(kind, now);
        let lines = rest.into_iter().chain(told.then(line));
        lines.for_each(|line| drop(self.bars.println(line)));
    }

    /// Bars for the first stages that run and have none.
    fn give_bars(&mut self) {
        let free = MAX_BARS - self.stages.iter().filter(|s| s.bar.is_some()).count();
        for stage in self.stages.iter_mut().filter(|s| s.running && s.bar.is_none()).take(free) {
            // Time that is left is estimated from what is done here and now, not by an earlier run.
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

    /// Leaves the lines, and takes the bars away.
    fn clear(self) {
        self.stages.iter().filter_map(|s| s.bar.as_ref()).for_each(ProgressBar::finish_and_clear);
        self.whole.finish_and_clear();
        let _ = self.bars.clear();
    }
}

impl fmt::Display for State {
    /// The whole run in a line.
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
        if self.again > 0 {
            write!(f, ", {} tried again", self.again)?;
        }
        Ok(())
    }
}

/// How long it takes still, or a dash where nothing is known.
fn eta(state: &ProgressState, out: &mut dyn fmt::Write) {
    let left = state.eta().as_secs();
    let _ = match left {
        0 if state.per_sec() <= 0.0 => write!(out, "–"),
        0..60 => write!(out, "{left} s"),
        60..3600 => write!(out, "{} m {:02} s", left / 60, left % 60),
        _ => write!(out, "{} h {:02} m", left / 3600, left / 60 % 60),
    };
}

/// Which lines are told: a few at once, then one a second, so that a storm of failures stays
/// readable. What is left out is counted.
#[derive(Debug)]
struct Lines {
    allowance: f64,
    looked: Instant,
    held: BTreeMap<&'static str, u64>,
}

/// Lines that may come at once.
const BURST: f64 = 5.0;

impl Lines {
    fn new(now: Instant) -> Lines {
        Lines { allowance: BURST, looked: now, held: BTreeMap::new() }
    }

    /// True if this line may be told, and before it what is to be said of those that were not.
    fn may_tell(&mut self, kind: &'static str, now: Instant) -> (Option<String>, bool) {
        self.allowance =
            (self.allowance + now.duration_since(self.looked).as_secs_f64()).min(BURST);
        self.looked = now;
        if self.allowance < 1.0 {
            *self.held.entry(kind).or_insert(0) += 1;
            return (None, false);
        }
        self.allowance -= 1.0;
        (self.rest(), true)
    }

    /// What was not told.
    fn rest(&mut self) -> Option<String> {
        let held = std::mem::take(&mut self.held);
        let kinds: Vec<String> = held.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        (!held.is_empty()).then(|| {
            format!("… and {} more like that ({})", held.values().sum::<u64>(), kinds.join(", "))
        })
    }
}

#[cfg(test)]
mod tests;
