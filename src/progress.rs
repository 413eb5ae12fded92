//! Bars for people who watch.

use std::sync::{Mutex, PoisonError};

use freestone_engine::events::{Event, Observer};
use freestone_engine::memory::size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar over all tasks on standard error; silent where that is no terminal.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    read: Mutex<u64>,
    names: Mutex<Vec<String>>,
}

/// Redraws a second: more is only flicker.
const HERTZ: u8 = 8;

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}

impl Progress {
    /// A bar that appears when a run starts.
    pub fn new() -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(HERTZ));
        if let Ok(style) = ProgressStyle::with_template("{prefix:16} [{bar:30}] {pos}/{len} tasks, {msg}, {eta} left") {
            bar.set_style(style.progress_chars("=> "));
        }
        Progress { bar, read: Mutex::default(), names: Mutex::default() }
    }
}

impl Observer for Progress {
    fn on(&self, event: &Event<'_>) {
        match event {
            Event::RunStarted(start) => {
                let stages = &start.plan.plan().stages;
                self.bar.set_length(stages.iter().map(|s| s.n_tasks()).fold(0, u64::saturating_add));
                *self.names.lock().unwrap_or_else(PoisonError::into_inner) = stages.iter().map(|s| s.name.clone()).collect();
            }
            Event::StageStarted { stage } => {
                if let Some(name) = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(stage.0) {
                    self.bar.set_prefix(name.clone());
                }
            }
            Event::Outcome { outcome, .. } => {
                let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
                *read += outcome.done.iter().map(|d| d.traffic.bytes_read).sum::<u64>();
                self.bar.set_message(format!("{} read", size(*read)));
                self.bar.inc(outcome.done.len() as u64);
            }
            Event::Retried { failure, attempt, .. } => self.bar.println(format!("{failure}; trying again ({attempt})")),
            Event::StageEnded { .. } | Event::Started { .. } | Event::Recomputed { .. } => {}
            Event::RunEnded(_) => self.bar.finish_and_clear(),
        }
    }
}
