//! Who looks on at a run: bars, and files where they are asked for.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use freestone::Spec;
use freestone_cli::history::History;
use freestone_cli::progress::Progress;
use freestone_cli::report::Report;
use freestone_engine::events::Observer;

use super::Failure;

/// What is written of a run besides its results.
#[derive(Args, Default)]
pub(crate) struct Watching {
    /// Appends what happens to a file, as a line of JSON for each event.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Writes a page about the run when it ends, however it does: what ran when, memory, bytes, the
    /// slowest tasks, failures.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

impl Watching {
    /// There is something to be written.
    pub(crate) fn is_asked(&self) -> bool {
        self.history.is_some() || self.report.is_some()
    }

    /// Runs with all observers. That they cannot write is told, and changes nothing.
    pub(crate) fn watch<T>(
        &self,
        spec: &Spec,
        run: impl FnOnce(&[&dyn Observer]) -> T,
    ) -> Result<T, Failure> {
        let cannot = |file: &Path, error: io::Error| {
            Failure::Usage(format!("cannot write to {}: {error}", file.display()))
        };
        if self.history.is_some() && self.history == self.report {
            return Err(Failure::Usage("--history and --report cannot go to the same file".into()));
        }
        let history = self
            .history
            .as_deref()
            .map(|file| History::append(file).map_err(|e| cannot(file, e)))
            .transpose()?;
        let report = self
            .report
            .as_deref()
            .map(|file| Report::create(file, spec).map_err(|e| cannot(file, e)))
            .transpose()?;
        let progress = Progress::new();
        let mut observers: Vec<&dyn Observer> = vec![&progress];
        observers.extend(history.as_ref().map(|h| h as &dyn Observer));
        observers.extend(report.as_ref().map(|r| r as &dyn Observer));
        let ran = run(&observers);
        let troubles = [
            (&self.history, history.and_then(|h| h.trouble())),
            (&self.report, report.and_then(|r| r.trouble())),
        ];
        for (file, error) in troubles {
            if let (Some(file), Some(error)) = (file, error) {
                let _ =
                    writeln!(io::stderr(), "warning: {} is not complete: {error}", file.display());
            }
        }
        Ok(ran)
    }
}
