//! What is finished, where a crash cannot take it away.
//!
//! Receipts are collected and written as one object of JSON lines at most a second after the first of them. Whole objects,
//! never appends: object stores know nothing else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::storage::{StorageError, Store};
use crate::task::TaskOutcome;

/// The journal of one run.
#[derive(Debug)]
pub struct Journal {
    store: Arc<dyn Store>,
    prefix: String,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    lines: Vec<u8>,
    since: Option<Instant>,
    written: u64,
}

/// Receipts wait so long at most.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// And so many bytes of them.
const MAX_PENDING_BYTES: usize = 1_000_000;

impl Journal {
    /// A journal below `prefix`; what an earlier try at the same run left there goes.
    ///
    /// # Errors
    /// Where storage fails.
    pub fn start(store: Arc<dyn Store>, prefix: String) -> Result<Journal, StorageError> {
        store.remove(&format!("{prefix}/"))?;
        Ok(Journal { store, prefix, pending: Mutex::default() })
    }

    /// Records the finished tasks of an outcome.
    ///
    /// # Errors
    /// Where storage fails.
    pub fn record(&self, outcome: &TaskOutcome) -> Result<(), StorageError> {
        if outcome.done.is_empty() {
            return Ok(());
        }
        let mut line = Vec::with_capacity(128 * outcome.done.len());
        for report in &outcome.done {
            let entry = (outcome.request.stage, report.task, &report.receipts);
            // Serialising plain data to memory cannot fail.
            let _ = serde_json::to_writer(&mut line, &entry);
            line.push(b'\n');
        }
        let due = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.lines.extend_from_slice(&line);
            let since = *pending.since.get_or_insert_with(Instant::now);
            since.elapsed() >= MAX_DELAY || pending.lines.len() >= MAX_PENDING_BYTES
        };
        if due { self.flush() } else { Ok(()) }
    }

    /// Writes what is pending.
    ///
    /// # Errors
    /// Where storage fails.
    pub fn flush(&self) -> Result<(), StorageError> {
        let (lines, number) = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            if pending.lines.is_empty() {
                return Ok(());
            }
            pending.since = None;
            pending.written += 1;
            (std::mem::take(&mut pending.lines), pending.written)
        };
        self.store.write(&format!("{}/{number:06}.jsonl", self.prefix), &lines)
    }
}
