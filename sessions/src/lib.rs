//! Transactional sessions: all outputs become visible at once, or none do, for any number of
//! workers.
//!
//! A [`Repository`] is an Icechunk repository in a directory, in a bucket or in memory. It
//! consists of snapshots of arrays, to which branches and tags refer. A [`ReadonlySession`] reads
//! one snapshot. A [`WritableSession`] starts at the newest snapshot of a branch, collects changes
//! of arrays, groups and chunks, and commits them once. Chunks are written by:
//!
//! - the session itself, with [`WritableSession::array`];
//! - forks: a process opens a [`Ticket`] as a [`Fork`], writes, and returns [`Receipt`]s, which are
//!   [merged](WritableSession::merge);
//! - joiners of a [`SharedSession`], in processes that share only the repository.
//!
//! Tickets and receipts contain no credentials; each process takes its own from the environment.
//! Receipts are records of this crate, not of Icechunk.
//!
//! If two sessions commit to one branch, the second gets a [`Conflict`] that names the common
//! changes. If the changes are disjoint, a [`Rebase`] can commit them on top.
//!
//! The modules in import order: `error`, `location`, `runtime`, `lock`, `objects` (chunk bytes),
//! `record` (JSON records), `version`, `backend`, `repository`, `receipt`, `draft` (uncommitted
//! changes), `key`, `store` (the engine's view of a session), `node`, `clashes`, `commit`,
//! `session`, `plan`, `publisher` (for the engine's driver), `array`, `shared`, `maintenance`.

mod array;
mod backend;
mod clashes;
mod commit;
mod draft;
mod error;
mod key;
mod location;
mod lock;
mod maintenance;
mod manifests;
mod node;
mod objects;
mod plan;
mod publisher;
mod receipt;
mod record;
mod repository;
mod runtime;
mod session;
mod shared;
mod store;
mod version;

pub use array::SessionArray;
pub use commit::{CommitOptions, Rebase};
pub use error::{Clash, Closed, Conflict, Error};
pub use location::SCHEME;
pub use maintenance::{Collected, Expired};
pub use publisher::RepositoryPublisher;
pub use receipt::{Batch, Receipt, Receipts, Written};
pub use repository::{MAIN, Repository};
pub use session::{Fork, ReadonlySession, Ticket, WritableSession};
pub use shared::{
    Committed, Joiner, JoinerStatus, SessionState, SharedCommit, SharedSession, SharedStatus,
};
pub use store::{SessionStore, open_store};
pub use version::{Format, Snapshot, Version};

/// The folder of this crate's records in a repository.
const FOLDER: &str = "_freestone";

/// Returns a unique name of 96 random bits.
fn new_id() -> String {
    icechunk::format::SnapshotId::random().to_string().to_lowercase()
}
