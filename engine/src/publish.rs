//! Publication of a run's outputs: atomically in transactional stores, and metadata last in plain
//! stores.

mod plain;

use std::sync::Arc;

use serde_json::Value;
use thiserror::Error;

use crate::plan::FinalizedPlan;
use crate::storage::{StorageError, Store};
use crate::task::Receipt;

pub use plain::PlainZarr;

/// The error of checking, starting or committing a publication.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum PublishError {
    #[error(
        "`{place}` already exists (hint: choose another location, or replace it with \
            `--overwrite`, in Rust `Target::overwrite`)"
    )]
    Exists { place: String },
    #[error("`{place}` contains files that are not part of a Zarr array: {} (hint: choose another \
        location)", names.join(", "))]
    Foreign { place: String, names: Vec<String> },
    #[error("cannot store an array in `{place}`: it is {what} (hint: choose another location)")]
    NotAGroup { place: String, what: &'static str },
    #[error(
        "array `{place}` was removed or its metadata changed since this plan was made (hint: plan \
            again)"
    )]
    Changed { place: String },
    #[error(
        "`{place}` was removed or claimed by another run; the result of this run is not published \
            (hint: start a new run)"
    )]
    Taken { place: String },
    #[error(
        "another run is writing to `{place}` (hint: wait until it ends, or choose another location)"
    )]
    Busy { place: String },
    /// A transactional store rejected the publication.
    #[error("{message}")]
    Rejected { why: Rejection, message: String },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The reason for which a transactional store rejects a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Another writer conflicts. Finished tasks are kept, and another attempt to publish them may
    /// succeed.
    Conflict,
    /// An earlier commit made disjoint changes. A rebase can publish the results on top of it.
    NeedsRebase,
    /// The session has ended, so the run can never be published.
    SessionEnded,
    /// The caller cancelled the commit.
    Cancelled,
    /// A retry may succeed.
    Transient,
    /// The store failed permanently.
    Failed,
}

impl PublishError {
    /// Returns true if the run can never be published.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self,
            PublishError::Taken { .. }
                | PublishError::Changed { .. }
                | PublishError::Rejected { why: Rejection::SessionEnded, .. }
        )
    }
}

/// The publication of a run's outputs: claims their locations and commits them.
pub trait Publisher: Send + Sync {
    /// Returns the store to which tasks in this process write, if the publisher has its own.
    fn store(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// Returns true if [`commit`](Publisher::commit) needs receipts, which the driver then retains.
    fn needs_receipts(&self) -> bool {
        false
    }

    /// Checks that the outputs may be written. Changes nothing.
    ///
    /// # Errors
    /// Returns an error if an output cannot be written.
    fn check(&self, plan: &FinalizedPlan) -> Result<(), PublishError>;

    /// Claims the output locations and hides arrays that will be overwritten.
    ///
    /// # Errors
    /// Returns an error if storage fails.
    fn begin(&self, plan: &FinalizedPlan) -> Result<(), PublishError>;

    /// Returns the data with which another process can continue the publication. It contains no
    /// credentials.
    fn ticket(&self) -> Value;

    /// Checks, in a process that resumes the run, that the run still owns the output locations. If
    /// all tasks are `finished`, some outputs may already be published.
    ///
    /// # Errors
    /// Returns an error if another run has claimed a location.
    fn resume(&self, plan: &FinalizedPlan, finished: bool) -> Result<(), PublishError>;

    /// Reads an output's chunk and returns whether it matches its receipt. A machine may have lost
    /// chunks that were not flushed.
    ///
    /// # Errors
    /// Returns an error if storage fails.
    fn is_intact(&self, plan: &FinalizedPlan, receipt: &Receipt) -> Result<bool, StorageError>;

    /// Flushes all chunks and publishes the outputs. The driver calls this after it has checked the
    /// receipts of all tasks. A repeated call completes an interrupted one.
    ///
    /// If [`needs_receipts`](Publisher::needs_receipts), `receipts` are those of the outputs'
    /// chunks, possibly with duplicates. Returns the id of the snapshot with the outputs, if the
    /// store has snapshots. Polls `is_cancelled` while it waits for other writers.
    ///
    /// # Errors
    /// Returns an error if storage fails or rejects the commit. Then no outputs are visible or, in
    /// plain stores, some outputs, each of them complete. After [`Rejection::Cancelled`] none are.
    fn commit(
        &self,
        plan: &FinalizedPlan,
        receipts: &[Receipt],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<String>, PublishError>;

    /// Abandons the publication and releases the output locations. Errors of the cleanup are
    /// ignored.
    fn abandon(&self, plan: &FinalizedPlan);
}
