//! What can go wrong, by meaning, and what to do then.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use freestone_engine::storage::StorageError;
use freestone_engine::storage::codec::CodecError;
use freestone_engine::storage::metadata::MetadataError;
use freestone_engine::storage::reader::ChunkError;
use thiserror::Error;

/// Why something with a repository or a session did not work.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Error {
    #[error("`{url}` is no location of a repository: {why}")]
    InvalidUrl { url: String, why: String },
    #[error("invalid format `{format}` of a repository: expected 1 or 2")]
    BadFormat { format: String },
    #[error("there is no repository at {place}: create one, or name another place")]
    NoRepository { place: String },
    #[error("{place} holds something already: open it, or create the repository elsewhere")]
    Exists { place: String },
    #[error("{place} holds something that is no repository, or is a file: name another place")]
    Occupied { place: String },
    #[error("{place} has a {what} already: choose another name")]
    RefExists { place: String, what: String },
    #[error(
        "`{name}` cannot be the name of a branch or tag: it is empty, or is the branch that every \
            repository has"
    )]
    BadRef { name: String },
    #[error(
        "{place} is in the memory of another process or is gone: use a directory or an object store"
    )]
    NotInProcess { place: String },
    #[error("{place} has no {what}")]
    NoVersion { place: String, what: String },
    #[error("there is no array or group `{path}` in {place}")]
    NoNode { place: String, path: String },
    #[error(
        "there is an array or group `{path}` in {place} already (hint: choose another name, or \
            replace it by `--overwrite`, in Rust `Target::overwrite`)"
    )]
    NodeExists { place: String, path: String },
    #[error("the metadata of `{path}` cannot be used: {why}")]
    BadNode { path: String, why: String },

    #[error("along axis {axis} the region {}..{} of `{array}` cuts what is stored in pieces of \
        {size}: {}..{} is the smallest around it that does not",
        region.start, region.end, around.start, around.end)]
    Misaligned { array: String, axis: usize, region: Range<u64>, size: u64, around: Range<u64> },
    #[error("along axis {axis} the region {}..{} does not lie in the {len} elements of \
        `{array}`", region.start, region.end)]
    Outside { array: String, axis: usize, region: Range<u64>, len: u64 },
    #[error("{given} bytes were given for {what} of `{array}`, which takes {expected}")]
    Length { array: String, what: String, given: u64, expected: u64 },
    #[error("{given} numbers were given for the {expected} axes of `{array}`")]
    Rank { array: String, given: usize, expected: usize },
    #[error("`{array}` has no chunk {chunk:?}")]
    NoChunk { array: String, chunk: Vec<u64> },

    #[error(
        "chunk {chunk:?} of `{array}` was written twice, with different content: give it to one \
            writer only"
    )]
    WrittenTwice { array: String, chunk: Vec<u32> },
    #[error(
        "{n_missing} chunks of `{array}` have no receipt, chunk {first:?} among them: run what \
            writes them, then commit"
    )]
    Incomplete { array: String, n_missing: u64, first: Vec<u64> },
    #[error(
        "`{path}` was made by two writers, with different metadata: let one of them make it, or \
            who creates the session"
    )]
    MadeTwice { path: String },
    #[error("`{place}` is not in {expected}: all results of one run go to one session")]
    Elsewhere { place: String, expected: String },
    #[error(
        "another process knows what session `{session}` has changed, so nothing can be read from \
            it here: commit it first, or compute on threads"
    )]
    Unseen { session: String },
    #[error("a receipt of {found} was given to {expected}: merge it there")]
    Foreign { found: String, expected: String },
    #[error("the commit was cancelled: nothing of it is visible, and it can be tried again")]
    Cancelled,
    #[error("nothing has changed, so there is nothing to commit")]
    NothingToCommit,
    #[error("{0}")]
    Conflict(Conflict),
    #[error(
        "branch `{branch}` had moved each of the {attempts} times that a commit was tried: try \
            again, or allow more attempts"
    )]
    Contended { branch: String, attempts: u32 },
    #[error(
        "garbage was collected in {place} since this session began, and may have taken its chunks: \
            run it anew, and collect with this program, which spares live sessions"
    )]
    Collected { place: String },

    #[error("there is no session `{session}` in {place}")]
    NoSession { place: String, session: String },
    #[error("session `{session}` is {state}: begin another")]
    Closed { session: String, state: Closed },
    #[error(
        "session `{session}` is being committed: wait, or commit it again if whoever did has died"
    )]
    Committing { session: String },
    #[error(
        "session `{session}` was changed by somebody else at the same time: look at its status, \
            then try again"
    )]
    Stale { session: String },
    #[error("session `{session}` still has open writers ({}): wait until they close, or force the \
        commit and drop what they wrote", joiners.join(", "))]
    OpenJoiners { session: String, joiners: Vec<String> },
    #[error(
        "another process has joined session `{session}` as `{joiner}`: this one may write no more"
    )]
    Replaced { session: String, joiner: String },
    #[error("a session may live for {}, but {} was asked for", hours(*.most), hours(*.asked))]
    TooLong { asked: Duration, most: Duration },
    #[error("shared sessions are switched off for {place}: switch them on, or use forks")]
    SharingOff { place: String },
    #[error(
        "`{name}` is no name of a writer: use letters, digits, `-`, `_` and `.`, at most 64 of them"
    )]
    BadName { name: String },

    #[error(
        "{what} is of version {found}, but this program knows version {known}: use one version of \
            the program everywhere"
    )]
    Version { what: &'static str, found: u32, known: u32 },
    #[error("{place} cannot be understood: {why}")]
    Damaged { place: String, why: String },
    #[error("{place} could not be {action}: {message}")]
    Repository { place: String, action: &'static str, message: String, transient: bool },
    #[error(
        "internal error: broken invariant: {invariant} (hint: this is a defect of Freestone, \
            please report it)"
    )]
    Internal { invariant: &'static str },
    #[error("requests cannot be run: {message}")]
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

/// Why a session takes no more writes and no commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Its changes are in that snapshot.
    Committed {
        /// The snapshot.
        snapshot: String,
    },
    /// Somebody gave it up.
    Abandoned,
    /// It was shared: it is written and committed by its id.
    Shared,
    /// Its time is over.
    Expired,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Closed::Committed { snapshot } => write!(f, "committed as snapshot {snapshot}"),
            Closed::Abandoned => write!(f, "abandoned"),
            Closed::Shared => write!(f, "shared, and written by who joins it"),
            Closed::Expired => write!(f, "expired"),
        }
    }
}

/// Another commit came first, and what stands against having both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The branch.
    pub branch: String,
    /// The snapshot that the session is based on.
    pub base: String,
    /// The snapshot that the branch is at.
    pub tip: String,
    /// What both have changed; empty if the two are disjoint, and a rebase was not allowed.
    pub clashes: Vec<Clash>,
}

/// What two commits have both changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clash {
    /// These chunks of an array.
    Chunks {
        /// Its path.
        array: String,
        /// The chunks, in order.
        chunks: Vec<Vec<u32>>,
    },
    /// The metadata of an array or group: it was made, changed, removed or resized there.
    Node {
        /// Its path.
        path: String,
    },
    /// The whole history: the branch was reset to where the session's base is not.
    Reset,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "another commit to branch `{}` came first (it is at {}, the session began at {})",
            self.branch, self.tip, self.base
        )?;
        if self.clashes.is_empty() {
            return write!(
                f,
                ", but changed nothing of the same: commit with a rebase (`--rebase`, in Rust \
                    `Rebase::Disjoint`)"
            );
        }
        write!(f, ", and changed the same:")?;
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
                Clash::Reset => write!(f, " the branch's history was rewritten;")?,
            }
        }
        write!(f, " start again from the new state")
    }
}

impl Error {
    /// True if trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Storage(e) => e.is_transient(),
            Error::Contended { .. } | Error::Stale { .. } => true,
            Error::Repository { transient, .. } => *transient,
            _ => false,
        }
    }

    /// The storage error that a store answers with.
    pub(crate) fn into_storage(self, place: String, action: &'static str) -> StorageError {
        match self {
            Error::Storage(e) => e,
            Error::InvalidUrl { url, why } => StorageError::InvalidUrl { url, why },
            Error::NotInProcess { place } => StorageError::NotInProcess(place),
            e @ (Error::Closed { .. } | Error::Committing { .. } | Error::Replaced { .. }) => {
                StorageError::Refused { place, message: e.to_string() }
            }
            // Icechunk's client has retried it.
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
