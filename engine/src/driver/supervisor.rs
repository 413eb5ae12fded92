//! The supervisor thread of a run: journal, deadline and loss of the lock.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::RunError;
use super::queue::Queue;
use super::retry::retry_storage;
use crate::journal::Journal;
use crate::storage::StorageError;
use crate::system::System;

/// The minimum age of the oldest pending journal line before a flush.
const FLUSH_INTERVAL: Duration = Duration::from_millis(900);
/// The longest interval between two checks.
const MAX_TICK: Duration = Duration::from_millis(100);
const MIN_TICK: Duration = Duration::from_millis(1);

/// Supervises a run while its executor runs tasks.
pub(super) struct Supervisor<'a> {
    pub(super) queue: &'a Queue<'a>,
    pub(super) journal: Option<&'a Journal>,
    pub(super) deadline: Option<Duration>,
    /// Returns an error once the process has lost the run's lock.
    pub(super) check_lock: &'a (dyn Fn() -> Result<(), RunError> + Sync),
    /// Flushes the journal.
    pub(super) flush: &'a (dyn Fn() -> Result<(), StorageError> + Sync),
}

/// The end of supervision, signalled on drop, so that the thread also ends if an observer panics.
#[derive(Default)]
struct Ended {
    is_ended: Mutex<bool>,
    changed: Condvar,
}

struct EndOnDrop<'a>(&'a Ended);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        *self.0.is_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

impl Ended {
    /// Waits for at most `time`. Returns true if supervision has ended.
    fn wait(&self, time: Duration) -> bool {
        let is_ended = self.is_ended.lock().unwrap_or_else(PoisonError::into_inner);
        *is_ended
            || *self.changed.wait_timeout(is_ended, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Supervisor<'_> {
    /// Calls `run`, supervised by another thread.
    pub(super) fn supervise<T>(&self, run: impl FnOnce() -> T) -> T {
        let (ended, start) = (Ended::default(), self.system().now());
        std::thread::scope(|scope| {
            let _end = EndOnDrop(&ended);
            scope.spawn(|| self.watch(start, &ended));
            run()
        })
    }

    fn system(&self) -> &System {
        self.queue.system()
    }

    /// Runs checks until supervision ends or the lock is lost.
    fn watch(&self, start: Instant, ended: &Ended) {
        loop {
            let elapsed = self.system().elapsed(start);
            let left = self.deadline.map_or(MAX_TICK, |d| d.saturating_sub(elapsed));
            if ended.wait(self.system().clock.wait_bound(left.clamp(MIN_TICK, MAX_TICK))) {
                return;
            }
            if let Err(error) = (self.check_lock)() {
                self.queue.fail(error);
                return;
            }
            if let Some(limit) = self.deadline.filter(|d| self.system().elapsed(start) > *d) {
                self.queue.fail(RunError::Deadline(limit));
            }
            if self.is_flush_due()
                && let Err(error) = retry_storage(self.system(), self.flush)
            {
                self.queue.fail(RunError::Work(error));
            }
        }
    }

    fn is_flush_due(&self) -> bool {
        self.journal.is_some_and(|j| j.is_due(FLUSH_INTERVAL) || self.queue.has_removals())
    }
}
