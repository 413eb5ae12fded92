//! The journal of a run: a durable record of finished tasks.
//!
//! Lines are collected and written as one object at intervals; the driver's supervisor thread does
//! this every second. The journal uses whole objects instead of appends, which object stores do not
//! support. Each object ends with a checksum. A damaged object counts as missing, and the tasks
//! that it lists are repeated.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::failure::RunError;
use crate::finished::Finished;
use crate::plan::{ArrayId, FinalizedPlan, Stage, StageId};
use crate::storage::{StorageError, Store, read_small};
use crate::system::System;
use crate::task::{Receipt, TaskOutcome};

/// The journal of one run, written by one process at a time.
#[derive(Debug)]
pub struct Journal {
    store: Arc<dyn Store>,
    prefix: String,
    /// The number of earlier processes of the run, which distinguishes the objects of processes.
    epoch: u32,
    pending: Mutex<Pending>,
    /// The number of objects written. Locked during a write.
    written: Mutex<u64>,
    system: System,
}

#[derive(Debug, Default)]
struct Pending {
    lines: Vec<u8>,
    since: Option<Instant>,
}

/// A line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// A process has started or resumed the run, and the run owns the output locations. The value
    /// identifies the boot of the machine.
    Begun(String),
    /// A task is finished: stage, task, and receipts.
    Done(StageId, u64, Vec<Receipt>),
    /// An intermediate was removed, because all of its readers are finished.
    Removed(ArrayId),
    /// CRC-32C of all bytes before this line, which is the last.
    Crc32c(u32),
}

/// The contents of a journal.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// The boots of the machines of the run's processes. Empty if the run never owned the output
    /// locations.
    pub(crate) begun: Vec<String>,
    /// The finished tasks of each stage.
    pub(crate) finished: Vec<Finished>,
    /// Removed intermediates, with the tasks that have written their chunks again since.
    pub(crate) removed: BTreeMap<ArrayId, Finished>,
    /// The next epoch.
    pub(crate) epoch: u32,
    /// The damaged objects, which are ignored.
    pub(crate) damaged: Vec<String>,
}

/// The size of pending lines from which they are written without delay, in bytes.
const MAX_PENDING_BYTES: usize = 1_000_000;
/// The maximum size of an object in bytes: pending lines and one outcome.
const MAX_OBJECT_BYTES: u64 = 1 << 28;

impl Journal {
    /// Creates the journal of one process below `prefix`.
    pub fn new(store: Arc<dyn Store>, prefix: String, epoch: u32, system: System) -> Journal {
        Journal {
            store,
            prefix,
            epoch,
            pending: Mutex::default(),
            written: Mutex::default(),
            system,
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, lines: &[u8]) {
        let mut pending = self.pending();
        pending.lines.extend_from_slice(lines);
        pending.since.get_or_insert_with(|| self.system.now());
    }

    /// Records that a process under this boot of a machine has started or resumed the run, and that
    /// the run owns the output locations.
    ///
    /// # Errors
    /// Returns [`RunError::Internal`] if a line cannot be serialized.
    pub fn begun(&self, boot: &str) -> Result<(), RunError> {
        self.add(&line(&Line::Begun(boot.to_owned()))?);
        Ok(())
    }

    /// Records the finished tasks of an outcome.
    ///
    /// # Errors
    /// Returns [`RunError::Internal`] if a line cannot be serialized.
    pub fn done(&self, outcome: &TaskOutcome) -> Result<(), RunError> {
        let mut lines = Vec::with_capacity(128 * outcome.done.len());
        for report in &outcome.done {
            lines.extend(line(&Line::Done(
                outcome.request.stage,
                report.task,
                report.receipts.clone(),
            ))?);
        }
        self.add(&lines);
        Ok(())
    }

    /// Records that an intermediate is about to be removed.
    ///
    /// # Errors
    /// Returns [`RunError::Internal`] if the line cannot be serialized.
    pub fn removed(&self, array: ArrayId) -> Result<(), RunError> {
        self.add(&line(&Line::Removed(array))?);
        Ok(())
    }

    /// Returns true if lines have been pending for `delay`, or if many are pending.
    pub fn is_due(&self, delay: Duration) -> bool {
        let pending = self.pending();
        pending.since.is_some_and(|s| self.system.elapsed(s) >= delay)
            || pending.lines.len() >= MAX_PENDING_BYTES
    }

    /// Calls `first`, which makes the recorded chunks durable, and writes pending lines.
    ///
    /// # Errors
    /// Returns an error if storage fails. The lines are then still pending.
    pub fn flush(
        &self,
        first: impl FnOnce() -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = std::mem::take(&mut *self.pending()).lines;
        if lines.is_empty() {
            return Ok(());
        }
        let recorded = lines.len();
        let key = format!("{}/{:03}-{:06}.jsonl", self.prefix, self.epoch, *written + 1);
        let result = first().and_then(|()| {
            let sum = crc32c::crc32c(&lines);
            lines.extend(line(&Line::Crc32c(sum)).map_err(|_| {
                StorageError::internal(self.store.place(&key), "a checksum is serializable")
            })?);
            self.store.write(&key, &lines)
        });
        if result.is_err() {
            let mut pending = self.pending();
            lines.truncate(recorded);
            lines.append(&mut pending.lines);
            pending.lines = lines;
            pending.since.get_or_insert_with(|| self.system.now());
        } else {
            *written += 1;
        }
        result
    }

    /// Reads the journal below a prefix. A finished task counts if `holds` returns true for its
    /// receipts.
    ///
    /// # Errors
    /// Returns an error if storage fails.
    pub(crate) fn read(
        store: &dyn Store,
        prefix: &str,
        plan: &FinalizedPlan,
        holds: &mut dyn FnMut(&Replay, &[Receipt]) -> bool,
    ) -> Result<Replay, StorageError> {
        let stages = &plan.plan().stages;
        let mut replay = Replay {
            finished: stages.iter().map(|_| Finished::default()).collect(),
            ..Replay::default()
        };
        for name in store.list(&format!("{prefix}/"))? {
            let key = format!("{prefix}/{name}");
            if let Some(epoch) = name.split('-').next().and_then(|e| e.parse::<u32>().ok()) {
                replay.epoch = replay.epoch.max(epoch + 1);
            }
            // A listed but missing object counts as damaged.
            let Some(lines) = read_small(store, &key, MAX_OBJECT_BYTES)?.as_deref().and_then(lines)
            else {
                replay.damaged.push(store.place(&key));
                continue;
            };
            for line in lines {
                match line {
                    Line::Begun(boot) => replay.begun.push(boot),
                    Line::Done(id, task, receipts) => {
                        let is_of_it = |stage: &&Stage| {
                            task < stage.n_tasks()
                                && receipts
                                    .iter()
                                    .all(|r| stage.outputs.iter().any(|o| o.array == r.array))
                        };
                        let Some(stage) = stages.get(id.0).filter(is_of_it) else {
                            let message = format!(
                                "it lists task {task} of stage {}, which is not in the plan",
                                id.0
                            );
                            return Err(StorageError::Io {
                                place: store.place(&key),
                                action: "parse",
                                message,
                                transient: false,
                            });
                        };
                        if holds(&replay, &receipts) {
                            replay.finished[id.0].insert(task);
                            let of_it = |(array, again): (&ArrayId, &mut Finished)| {
                                if stage.outputs.iter().any(|o| o.array == *array) {
                                    again.insert(task);
                                }
                            };
                            replay.removed.iter_mut().for_each(of_it);
                        }
                    }
                    Line::Removed(array) => {
                        replay.removed.insert(array, Finished::default());
                    }
                    Line::Crc32c(_) => {}
                }
            }
        }
        Ok(replay)
    }
}

fn line(line: &Line) -> Result<Vec<u8>, RunError> {
    let mut bytes = serde_json::to_vec(line)
        .map_err(|e| RunError::internal(format!("a line of the journal has a JSON ({e})")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Parses the lines of an object. Returns `None` if it is damaged.
fn lines(bytes: &[u8]) -> Option<Vec<Line>> {
    let text = bytes.strip_suffix(b"\n")?;
    let last = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let Ok(Line::Crc32c(sum)) = serde_json::from_slice(&text[last..]) else { return None };
    if crc32c::crc32c(&bytes[..last]) != sum {
        return None;
    }
    bytes[..last]
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).ok())
        .collect()
}
