//! Observers of a run: progress bars, log lines, a history, a report and a trace.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use freestone::Spec;
use freestone_cli::history::History;
use freestone_cli::logging::LogObserver;
use freestone_cli::progress::Progress;
use freestone_cli::report::Report;
use freestone_cli::trace::Trace;
use freestone_engine::events::Observer;

use super::Failure;
use super::console::Console;

/// Files about a run.
#[derive(Args, Default)]
#[command(next_help_heading = "Report options")]
pub(crate) struct ObserverArgs {
    /// Append each event of the run to FILE, as JSON lines
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Write an HTML report when the run ends, also after a failure
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write all tasks to FILE in the Chrome trace format, which Perfetto displays
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

impl ObserverArgs {
    /// Returns true if a file is requested.
    pub(crate) fn is_any(&self) -> bool {
        self.files().next().is_some()
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.history, &self.report, &self.trace].into_iter().flatten()
    }

    /// Checks that the files differ.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.files().enumerate().any(|(i, file)| self.files().skip(i + 1).any(|f| f == file)) {
            return Err(Failure::usage("--history, --report and --trace require different files"));
        }
        Ok(())
    }

    /// Runs with all observers. A file that cannot be completed is a warning.
    pub(crate) fn observe<T>(
        &self,
        spec: &Spec,
        console: &Console,
        run: impl FnOnce(&[&dyn Observer]) -> T,
    ) -> Result<T, Failure> {
        let cannot = |file: &Path, error: io::Error| {
            Failure::usage(format!("cannot write to `{}`: {error}", file.display()))
        };
        let history = match &self.history {
            Some(file) => Some(History::append(file).map_err(|e| cannot(file, e))?),
            None => None,
        };
        let report = match &self.report {
            Some(file) => Some(Report::create(file, spec).map_err(|e| cannot(file, e))?),
            None => None,
        };
        let trace = match &self.trace {
            Some(file) => Some(Trace::create(file).map_err(|e| cannot(file, e))?),
            None => None,
        };
        let (progress, log) = (Progress::new(), LogObserver::new());
        let mut observers: Vec<&dyn Observer> = Vec::new();
        if console.has_progress() {
            observers.push(&progress);
        }
        if console.logs {
            observers.push(&log);
        }
        observers.extend(history.as_ref().map(|h| h as &dyn Observer));
        observers.extend(report.as_ref().map(|r| r as &dyn Observer));
        observers.extend(trace.as_ref().map(|t| t as &dyn Observer));
        let result = run(&observers);
        let errors = [
            (&self.history, history.and_then(|h| h.take_error())),
            (&self.report, report.and_then(|r| r.take_error())),
            (&self.trace, trace.and_then(|t| t.take_error())),
        ];
        for (file, error) in errors {
            if let (Some(file), Some(error)) = (file, error) {
                console.warn(&format!("`{}` is incomplete: {error}", file.display()));
            }
        }
        Ok(result)
    }
}
