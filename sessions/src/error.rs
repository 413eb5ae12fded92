//! Errors of repositories and sessions.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use freestone_engine::storage::StorageError;
use freestone_engine::storage::codec::CodecError;
use freestone_engine::storage::metadata::MetadataError;
use freestone_engine::storage::reader::ChunkError;
use thiserror::Error;

/// The error of an operation on a repository or session.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Error {
    #[error("invalid repository location `{url}`: {why}")]
    InvalidUrl { url: String, why: String },
    #[error("invalid repository format `{format}`: expected 1 or 2")]
    InvalidFormat { format: String },
    #[error("invalid version `{version}`: expected branch=NAME, tag=NAME or snapshot=ID")]
    InvalidVersion { version: String },
    #[error("no repository at `{place}` (hint: create it, or use another location)")]
    NoRepository { place: String },
    #[error("`{place}` is not empty (hint: open the repository there, or create one elsewhere)")]
    Exists { place: String },
    #[error(
        "`{place}` is a file or contains other files than those of a repository (hint: use another \
            location)"
    )]
    Occupied { place: String },
    #[error("`{place}` already has {what} (hint: choose another name)")]
    RefExists { place: String, what: String },
    #[error(
        "invalid name `{name}` of a branch or tag: expected a name that is not empty and not the \
            main branch"
    )]
    InvalidRef { name: String },
    #[error(
        "repository `{place}` does not exist in the memory of this process (hint: use a directory \
            or an object store)"
    )]
    NotInProcess { place: String },
    #[error("`{place}` has no {what}")]
    NoVersion { place: String, what: String },
    #[error("no array or group `{path}` in `{place}`")]
    NoNode { place: String, path: String },
    #[error(
        "array or group `{path}` already exists in `{place}` (hint: choose another name, or \
            replace it with `--overwrite`, in Rust `Target::overwrite`)"
    )]
    NodeExists { place: String, path: String },
    #[error("invalid metadata of `{path}`: {why}")]
    InvalidNode { path: String, why: String },

    #[error("region {}..{} along axis {axis} of `{array}` is not aligned with its chunks of \
        {size} elements: {}..{} is the smallest aligned region around it",
        region.start, region.end, around.start, around.end)]
    Misaligned { array: String, axis: usize, region: Range<u64>, size: u64, around: Range<u64> },
    #[error("region {}..{} along axis {axis} of `{array}` exceeds its length of {len}",
        region.start, region.end)]
    Outside { array: String, axis: usize, region: Range<u64>, len: u64 },
    #[error("invalid length of {what} of `{array}`: {given} bytes, expected {expected}")]
    Length { array: String, what: String, given: u64, expected: u64 },
    #[error("invalid number of axes of `{array}`: {given}, expected {expected}")]
    Rank { array: String, given: usize, expected: usize },
    #[error("`{array}` has no chunk {chunk:?}")]
    NoChunk { array: String, chunk: Vec<u64> },

    #[error(
        "chunk {chunk:?} of `{array}` was written twice with different contents (hint: let only \
            one writer write it)"
    )]
    WrittenTwice { array: String, chunk: Vec<u32> },
    #[error(
        "{n_missing} chunks of `{array}` have no receipt, including chunk {first:?} (hint: run the \
            tasks that write them, then commit)"
    )]
    Incomplete { array: String, n_missing: u64, first: Vec<u64> },
    #[error(
        "`{path}` was created by two writers with different metadata (hint: let one of them create \
            it, or the creator of the session)"
    )]
    CreatedTwice { path: String },
    #[error("`{place}` is not in `{expected}`: all outputs of a run must be in one session")]
    Elsewhere { place: String, expected: String },
    #[error(
        "cannot read from session `{session}` in this process: its changes are known only to the \
            process that writes it (hint: commit it first, or compute on threads)"
    )]
    Unseen { session: String },
    #[error("cannot merge a receipt of {found} into {expected}")]
    Foreign { found: String, expected: String },
    #[error("the commit was cancelled: no change is visible, and it can be retried")]
    Cancelled,
    #[error("no changes to commit")]
    NothingToCommit,
    #[error("{0}")]
    Conflict(Conflict),
    #[error(
        "branch `{branch}` moved during each of {attempts} commit attempts (hint: retry, or allow \
            more attempts)"
    )]
    Contended { branch: String, attempts: u32 },
    #[error(
        "garbage was collected in `{place}` after this session began, and may have removed its \
            chunks (hint: start a new session, and collect garbage with this program, which \
            retains the chunks of live sessions)"
    )]
    Collected { place: String },

    #[error("no session `{session}` in `{place}`")]
    NoSession { place: String, session: String },
    #[error("session `{session}` is {state} (hint: begin another)")]
    Closed { session: String, state: Closed },
    #[error(
        "session `{session}` is being committed (hint: wait, or commit it again if the committing \
            process has ended)"
    )]
    Committing { session: String },
    #[error("session `{session}` was changed concurrently (hint: check its status, then retry)")]
    Stale { session: String },
    #[error("session `{session}` has open writers: {} (hint: wait until they close, or force the \
        commit, which drops their changes)", joiners.join(", "))]
    OpenJoiners { session: String, joiners: Vec<String> },
    #[error(
        "another process has joined session `{session}` as `{joiner}`: this process can no longer \
            write to it"
    )]
    Replaced { session: String, joiner: String },
    #[error("invalid session lifetime {}: expected at most {}", hours(*.asked), hours(*.most))]
    TooLong { asked: Duration, most: Duration },
    #[error("shared sessions are disabled for `{place}` (hint: enable them, or use forks)")]
    SharingOff { place: String },
    #[error("invalid writer name `{name}`: expected at most 64 letters, digits, `-`, `_` and `.`")]
    InvalidName { name: String },

    #[error(
        "{what} has version {found}, but this program supports version {known} (hint: use the \
            same version of the program everywhere)"
    )]
    Version { what: &'static str, found: u32, known: u32 },
    #[error("damaged object `{place}`: {why}")]
    Damaged { place: String, why: String },
    /// The action is a verb in the infinitive, such as `read`.
    #[error("cannot {action} `{place}`: {message}")]
    Repository { place: String, action: &'static str, message: String, transient: bool },
    #[error(
        "internal error: broken invariant: {invariant} (hint: this is a defect of Freestone, \
            please report it)"
    )]
    Internal { invariant: &'static str },
    #[error("cannot start the I/O runtime: {message}")]
    Runtime { message: String },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

fn hours(d: Duration) -> String {
    match d.as_secs() {
        s if s % 3600 == 0 => format!("{} h", s / 3600),
        s => format!("{s} s"),
    }
}

/// The state of a session that accepts no writes and no commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Committed as a snapshot.
    Committed {
        /// The snapshot.
        snapshot: String,
    },
    /// Abandoned.
    Abandoned,
    /// Shared, so that it is written and committed by its id.
    Shared,
    /// Expired.
    Expired,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::Committed { snapshot } => write!(f, "committed as snapshot {snapshot}"),
            Closed::Abandoned => write!(f, "abandoned"),
            Closed::Shared => write!(f, "shared, and accessible only by its id"),
            Closed::Expired => write!(f, "expired"),
        }
    }
}

/// A conflict with an earlier commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The branch.
    pub branch: String,
    /// The snapshot on which the session is based.
    pub base: String,
    /// The current snapshot of the branch.
    pub tip: String,
    /// The changes that both commits have made. Empty if the two are disjoint and a rebase was not
    /// allowed.
    pub clashes: Vec<Clash>,
}

/// A change that two commits have both made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clash {
    /// Chunks of an array.
    Chunks {
        /// The path of the array.
        array: String,
        /// The chunks, in order.
        chunks: Vec<Vec<u32>>,
    },
    /// The metadata of an array or group, which was created, changed, removed or resized.
    Node {
        /// The path of the array or group.
        path: String,
    },
    /// The whole history: the branch was reset to a snapshot without the session's base in its
    /// history.
    Reset,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "conflict with an earlier commit to branch `{}` (at {}, session base {})",
            self.branch, self.tip, self.base
        )?;
        if self.clashes.is_empty() {
            return write!(
                f,
                ": the changes are disjoint (hint: commit with a rebase, by `--rebase` or in Rust \
                    `Rebase::Disjoint`)"
            );
        }
        write!(f, ", which also changed:")?;
        for clash in &self.clashes {
            match clash {
                Clash::Chunks { array, chunks } => {
                    let more = if chunks.len() > 5 { ", …" } else { "" };
                    write!(
                        f,
                        " {} chunks of `{array}` ({}{more});",
                        chunks.len(),
                        chunks
                            .iter()
                            .take(5)
                            .map(|c| format!("{c:?}"))
                            .collect::<Vec<_>>()
                            .join(", ")
                    )?;
                }
                Clash::Node { path } => write!(f, " the metadata of `{path}`;")?,
                Clash::Reset => write!(f, " the history of the branch, by a reset;")?,
            }
        }
        write!(f, " (hint: start again from the new state)")
    }
}

impl Error {
    /// Returns true if a retry may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Storage(e) => e.is_transient(),
            Error::Contended { .. } | Error::Stale { .. } => true,
            Error::Repository { transient, .. } => *transient,
            _ => false,
        }
    }

    /// Converts to the storage error that a store returns.
    pub(crate) fn into_storage(self, place: String, action: &'static str) -> StorageError {
        match self {
            Error::Storage(e) => e,
            Error::InvalidUrl { url, why } => StorageError::InvalidUrl { url, why },
            Error::NotInProcess { place } => StorageError::NotInProcess(place),
            e @ (Error::Closed { .. } | Error::Committing { .. } | Error::Replaced { .. }) => {
                StorageError::Refused { place, message: e.to_string() }
            }
            e @ (Error::NoRepository { .. } | Error::NoVersion { .. } | Error::NoNode { .. }) => {
                StorageError::NotFound { place, action, message: e.to_string() }
            }
            // Icechunk's client has already retried the request.
            e @ Error::Repository { transient: true, .. } => StorageError::RetriesExhausted {
                place,
                action,
                message: e.to_string(),
                is_throttle: false,
            },
            e => StorageError::Io {
                place,
                action,
                transient: e.is_transient(),
                message: e.to_string(),
            },
        }
    }
}
