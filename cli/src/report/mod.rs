//! A run as one page of HTML that needs nothing else: no network, no script.
//!
//! [`Report`] looks on and keeps what the page will say: sums for each stage, the slowest tasks,
//! the first message of each kind of failure (`record.rs`), and the timeline in bins that grow
//! wider as the run goes on (`timeline.rs`). That is a few hundred bytes a stage and at most 2 MB
//! besides, whatever the number of tasks. When the run ends, well or not, `page.rs` writes the
//! page, with charts by `charts.rs`.

mod charts;
mod page;
mod record;
mod timeline;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use freestone_engine::events::{Event, Observer};
use freestone_engine::spec::Spec;

use record::Record;

/// An observer that writes a page of HTML when its run ends: done, failed or cancelled.
///
/// Failing to write is no failure of the run: [`Report::trouble`] tells it.
#[derive(Debug)]
pub struct Report {
    file: PathBuf,
    spec: Spec,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    record: Option<Record>,
    trouble: Option<io::Error>,
}

impl Report {
    /// A report of runs with these settings. The file is made now, so that it is known before the
    /// run that it can be.
    ///
    /// # Errors
    /// Where the file cannot be opened for writing.
    pub fn create(file: &Path, spec: &Spec) -> io::Result<Report> {
        File::options().append(true).create(true).open(file)?;
        Ok(Report { file: file.to_owned(), spec: spec.clone(), state: Mutex::default() })
    }

    /// Why there is no page, if there is none. Told once.
    pub fn trouble(&self) -> Option<io::Error> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).trouble.take()
    }
}

impl Observer for Report {
    fn on_event(&self, event: &Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::RunStarted(start) => state.record = Some(Record::new(start)),
            Event::RunEnded(result) => {
                if let Some(mut record) = state.record.take() {
                    let ended = record.ended(*result);
                    state.trouble =
                        fs::write(&self.file, page::page(&record, &ended, &self.spec)).err();
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
