//! A report of a run: one HTML page without scripts or external resources.
//!
//! [`Report`] observes the run and records sums of each stage, the slowest tasks and the first
//! message of each kind of failure (`record`), and a timeline in bins that widen as the run
//! proceeds (`timeline`). The record has a few hundred bytes per stage and at most 2 MB otherwise,
//! independent of the number of tasks. When the run ends, successfully or not, `page` renders it,
//! with `tables` and `charts`.

mod charts;
mod format;
mod page;
mod record;
mod tables;
mod timeline;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use freestone_engine::events::{Event, Observer};
use freestone_engine::spec::Spec;

use record::Record;

/// An observer that writes an HTML page when its run succeeds, fails or is cancelled.
///
/// An error of writing does not fail the run. [`Report::take_error`] returns it.
#[derive(Debug)]
pub struct Report {
    file: PathBuf,
    spec: Spec,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    record: Option<Record>,
    error: Option<io::Error>,
}

impl Report {
    /// Creates a report of runs with the settings `spec`. Creates the file now, so that errors
    /// precede the run.
    ///
    /// # Errors
    /// Returns an error if the file cannot be opened for writing.
    pub fn create(file: &Path, spec: &Spec) -> io::Result<Report> {
        File::options().append(true).create(true).open(file)?;
        Ok(Report { file: file.to_owned(), spec: spec.clone(), state: Mutex::default() })
    }

    /// Takes the error because of which there is no page.
    pub fn take_error(&self) -> Option<io::Error> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).error.take()
    }
}

impl Observer for Report {
    fn on_event(&self, event: &Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::RunStarted(start) => state.record = Some(Record::new(start)),
            Event::RunEnded(result) => {
                if let Some(mut record) = state.record.take() {
                    let end = record.ended(*result);
                    state.error =
                        fs::write(&self.file, page::page(&record, &end, &self.spec)).err();
                }
            }
            _ => {
                if let Some(record) = &mut state.record {
                    record.on_event(event);
                }
            }
        }
    }
}

impl Drop for Report {
    /// Leaves no empty file where no run began.
    fn drop(&mut self) {
        if fs::metadata(&self.file).is_ok_and(|m| m.is_file() && m.len() == 0) {
            let _ = fs::remove_file(&self.file);
        }
    }
}

#[cfg(test)]
mod tests;
