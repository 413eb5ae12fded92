//! Log lines on standard error, from [`tracing`] events.
//!
//! [`LogObserver`] turns the events of a run into [`tracing`] events. Dependencies emit events of
//! their own, such as those of Icechunk, and the filter selects among all of them.

use std::io;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use freestone_engine::events::{Event, Observer, RunStart};
use freestone_engine::plan::StageId;
use freestone_engine::task::TaskOutcome;
use tracing::{debug, error, info, warn};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A filter of log events: a level, or levels by module, such as `warn,freestone=debug`.
#[derive(Clone, Debug)]
pub struct Filter(Targets);

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        // `Targets` accepts a word without a level as the name of a module, and no text as `error`.
        let is_level = |part: &str| {
            !part.is_empty() && (part.contains('=') || part.parse::<LevelFilter>().is_ok())
        };
        let filter = if text.split(',').all(is_level) { text.parse().ok() } else { None };
        filter.map(Filter).ok_or_else(|| {
            "expected error, warn, info, debug, trace or off, or levels by module as in \
                `warn,freestone=debug`"
                .to_owned()
        })
    }
}

/// Starts logging to standard error. Later calls have no effect.
pub fn init(filter: Filter, colors: bool) {
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colors);
    // Fails only if logging has started already.
    let _ = tracing_subscriber::registry().with(filter.0).with(lines).try_init();
}

/// An observer that logs the events of a run.
///
/// Stages and runs are at level `info`, requests at `debug`, retries and repeated tasks at `warn`.
#[derive(Debug, Default)]
pub struct LogObserver {
    stages: Mutex<Vec<String>>,
}

impl LogObserver {
    /// Creates an observer.
    pub fn new() -> LogObserver {
        LogObserver::default()
    }

    fn started(&self, start: &RunStart<'_>) {
        let names: Vec<String> = start.plan.stages().map(|(_, s, _)| s.name.clone()).collect();
        let tasks: u64 = start.plan.stages().map(|(_, s, _)| s.n_tasks()).sum();
        let finished: u64 = start.finished.iter().sum();
        info!(
            target: "freestone",
            run = start.run,
            executor = start.executor,
            slots = start.slots,
            stages = names.len(),
            tasks,
            finished,
            "run started"
        );
        *self.stages.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    fn stage(&self, id: StageId) -> String {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages.get(id.0).cloned().unwrap_or_default()
    }

    fn outcome(&self, outcome: &TaskOutcome, counted: u64) {
        let request = &outcome.request;
        let (mut read, mut written) = (0, 0);
        for task in &outcome.done {
            read += task.traffic.bytes_read;
            written += task.traffic.bytes_written;
        }
        debug!(
            target: "freestone",
            stage = self.stage(request.stage),
            request = request.id,
            worker = outcome.worker,
            finished = counted,
            read_bytes = read,
            written_bytes = written,
            failure = outcome.failure.as_ref().map(tracing::field::display),
            "request returned"
        );
    }
}

impl Observer for LogObserver {
    fn on_event(&self, event: &Event<'_>) {
        match event {
            Event::RunStarted(start) => self.started(start),
            Event::StageStarted { stage } => {
                info!(target: "freestone", stage = self.stage(*stage), "stage started");
            }
            Event::Started { request } => debug!(
                target: "freestone",
                stage = self.stage(request.stage),
                request = request.id,
                first_task = request.first,
                tasks = request.count,
                attempt = request.attempt,
                backup_of = request.backup_of,
                "request started"
            ),
            Event::Outcome { outcome, counted } => self.outcome(outcome, *counted),
            Event::Retried { failure, attempt, delay } => {
                warn!(target: "freestone", attempt, ?delay, "retrying: {failure}");
            }
            Event::Recomputed { stage, tasks, why } => warn!(
                target: "freestone",
                stage = self.stage(*stage),
                tasks,
                "repeating finished tasks: {why}"
            ),
            Event::MemoryExceeded(excess) => warn!(target: "freestone", "{excess}"),
            Event::StageEnded { stage } => {
                info!(target: "freestone", stage = self.stage(*stage), "stage ended");
            }
            Event::RunEnded(Ok(report)) => info!(
                target: "freestone",
                run = report.run,
                seconds = report.wall.as_secs_f64(),
                retries = report.retries,
                "run ended"
            ),
            Event::RunEnded(Err(error)) => error!(target: "freestone", "run failed: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_levels_by_module() {
        for text in ["info", "off", "warn,freestone=debug", "icechunk=trace"] {
            assert!(text.parse::<Filter>().is_ok(), "{text}");
        }
        for text in ["", "loud", "freestone", "freestone=loud"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }
}
