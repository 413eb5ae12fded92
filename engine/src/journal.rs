//! What is finished, where a crash cannot take it away.
//!
//! Lines are collected and written as one object now and then (the driver's keeper does it every
//! second). Whole objects, never appends: object stores know nothing else. Each ends with a
//! checksum; one that is damaged counts as not written, and what it told is done again.

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
    /// How often the run was taken up: sets this process's objects apart from those before it.
    epoch: u32,
    pending: Mutex<Pending>,
    /// Number of objects written; held while one is.
    written: Mutex<u64>,
    system: System,
}

#[derive(Debug, Default)]
struct Pending {
    lines: Vec<u8>,
    since: Option<Instant>,
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// A process takes the run up, and the outputs' places are the run's: which boot of which
    /// machine it is.
    Begun(String),
    /// A task is finished: stage, task, what it wrote.
    Done(StageId, u64, Vec<Receipt>),
    /// An intermediate was removed, because nobody reads it any more.
    Removed(ArrayId),
    /// CRC-32C of all bytes before this line, which is the last.
    Crc32c(u32),
}

/// What a journal tells of a run.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Boots of machines under which processes took the run up; none if the outputs' places never
    /// were the run's.
    pub(crate) begun: Vec<String>,
    /// For each stage, its finished tasks.
    pub(crate) finished: Vec<Finished>,
    /// Removed intermediates, and the tasks that wrote theirs again afterwards.
    pub(crate) removed: BTreeMap<ArrayId, Finished>,
    /// One more than the highest epoch so far.
    pub(crate) epoch: u32,
    /// Objects that were damaged and are ignored.
    pub(crate) damaged: Vec<String>,
}

/// So many bytes wait at most, then they are due whatever the time.
const MAX_PENDING_BYTES: usize = 1_000_000;
/// Objects of a journal are not larger: what is pending, and one outcome.
const MAX_OBJECT_BYTES: u64 = 1 << 28;

impl Journal {
    /// A journal below `prefix`.
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

    /// Records that a process under this boot of a machine has taken the run up, and that the
    /// outputs' places are the run's.
    ///
    /// # Errors
    /// [`RunError::Internal`], as those below.
    pub fn begun(&self, boot: &str) -> Result<(), RunError> {
        self.add(&line(&Line::Begun(boot.to_owned()))?);
        Ok(())
    }

    /// Records the finished tasks of an outcome.
    ///
    /// # Errors
    /// [`RunError::Internal`].
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
    /// [`RunError::Internal`].
    pub fn removed(&self, array: ArrayId) -> Result<(), RunError> {
        self.add(&line(&Line::Removed(array))?);
        Ok(())
    }

    /// True if something has waited so long, or much of it waits.
    pub fn is_due(&self, delay: Duration) -> bool {
        let pending = self.pending();
        pending.since.is_some_and(|s| self.system.elapsed(s) >= delay)
            || pending.lines.len() >= MAX_PENDING_BYTES
    }

    /// Writes what is pending, after `first`, which makes durable what it tells of.
    ///
    /// # Errors
    /// Where storage fails; then what was pending still is.
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
                StorageError::internal(self.store.place(&key), "a checksum has a JSON")
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

    /// Reads the journal below a prefix. A finished task counts if `holds` says so of what it
    /// wrote.
    ///
    /// # Errors
    /// Where storage fails.
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
            // One that is listed and gone is damaged, too.
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
                                "it tells of task {task} of stage {}, which is not one of the plan \
                                    beside it",
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

/// The lines of an object, if it is whole.
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
