//! How results become visible: all at once, or not at all.

mod plain;

use std::sync::Arc;

use serde_json::Value;
use thiserror::Error;

use crate::plan::FinalizedPlan;
use crate::storage::{StorageError, Store};
use crate::task::Receipt;

pub use plain::PlainZarr;

/// Why results cannot be written or published.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum PublishError {
    #[error(
        "{place} exists already (hint: choose another place, or replace it by `--overwrite`, in \
            Rust `Target::overwrite`)"
    )]
    Exists { place: String },
    #[error("{place} holds files that are not Zarr's ({}): choose another place", names.join(", "))]
    Foreign { place: String, names: Vec<String> },
    #[error("{place} is {what}, so no array can be stored in it: choose another place")]
    NotAGroup { place: String, what: &'static str },
    #[error(
        "{place} is not the array any more whose region this plan writes: it is gone, or its \
            metadata have changed; plan again"
    )]
    Changed { place: String },
    #[error(
        "{place} is not this run's any more: another run has begun to write there since, or it was \
            removed. This run's result is not published; start it anew"
    )]
    Taken { place: String },
    #[error("another run writes {place} at the moment: wait for its end, or choose another place")]
    Busy { place: String },
    #[error("{message}")]
    Rejected { why: Rejection, message: String },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What a refusal of a transactional store means for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Something else is in the way: what was computed stays, and may be published otherwise.
    Conflict,
    /// Another commit came first that changed nothing of the same: what was computed can be
    /// published on top of it, by a rebase.
    Moved,
    /// The session takes nothing any more.
    Over,
    /// It was asked to stop.
    Cancelled,
    /// Trying again may help.
    Transient,
    /// The store failed.
    Failed,
}

impl PublishError {
    /// True if the run can never be published.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self,
            PublishError::Taken { .. }
                | PublishError::Changed { .. }
                | PublishError::Rejected { why: Rejection::Over, .. }
        )
    }
}

/// Where a run's outputs go, and the commit that publishes them.
pub trait Publisher: Send + Sync {
    /// The store that tasks in this process write, where the session has one of its own.
    fn store(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// True if the commit is made of receipts, so that the driver has to keep them.
    fn needs_receipts(&self) -> bool {
        false
    }

    /// Finds out whether the outputs may be written, and changes nothing.
    ///
    /// # Errors
    /// Where something is in the way.
    fn check(&self, plan: &FinalizedPlan) -> Result<(), PublishError>;

    /// Makes room: what will be overwritten stops being visible.
    ///
    /// # Errors
    /// Where storage fails.
    fn begin(&self, plan: &FinalizedPlan) -> Result<(), PublishError>;

    /// What another process needs to go on with this session, as plain data without credentials.
    fn ticket(&self) -> Value;

    /// Finds out whether the outputs' places are still this session's, in another process than the
    /// one that has begun it. If all tasks are `finished`, a part of them may be published already.
    ///
    /// # Errors
    /// Where somebody else has taken one of them since.
    fn resume(&self, plan: &FinalizedPlan, finished: bool) -> Result<(), PublishError>;

    /// Finds out whether an output's chunk is stored as its receipt says, whatever happened to the
    /// machine since: reads it.
    ///
    /// # Errors
    /// Where storage fails.
    fn is_intact(&self, plan: &FinalizedPlan, receipt: &Receipt) -> Result<bool, StorageError>;

    /// Makes all chunks durable and publishes the outputs, after every task's receipts were
    /// checked. Called again, it finishes what a call before has left undone. `receipts` are those
    /// of the outputs' chunks, some perhaps twice, where
    /// [`needs_receipts`](Publisher::needs_receipts). Gives the id of the snapshot that has the
    /// outputs, where the store has snapshots. While it waits for others, it asks whether it
    /// `is_cancelled`.
    ///
    /// # Errors
    /// Where storage fails or refuses; then nothing or, in plain stores, a part of the outputs is
    /// visible, each of them whole. [`Rejection::Cancelled`]; then nothing is.
    fn commit(
        &self,
        plan: &FinalizedPlan,
        receipts: &[Receipt],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<String>, PublishError>;

    /// Gives up: nothing will be published, and the outputs' places are free. Failing to tidy up is
    /// no further failure.
    fn abandon(&self, plan: &FinalizedPlan);
}
