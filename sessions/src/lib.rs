//! Transactional sessions: outputs become visible all at once, or not at all, however many workers
//! wrote them.
//!
//! A [`Repository`] is an Icechunk repository in a directory, in an S3 bucket or in memory:
//! snapshots of arrays, which branches and tags lead to. A [`ReadonlySession`] reads one snapshot.
//! A [`WritableSession`] begins at the newest snapshot of a branch, collects what is changed
//! (arrays made, replaced, resized; chunks written), and commits it once. Chunks are written by
//! whoever has them:
//!
//! - the session itself, [`WritableSession::array`];
//! - forks: a [`Ticket`] travels, a [`Fork`] writes with it anywhere, its [`Receipt`]s travel back
//!   and are [merged](WritableSession::merge);
//! - those who join a [`SharedSession`] by its id, from processes that share nothing but the
//!   repository.
//!
//! What travels holds no credentials; every process takes its own from the environment. Receipts
//! are this crate's record, not Icechunk's.
//!
//! Two sessions may commit to one branch: one comes first, the other gets a [`Conflict`] that names
//! what both have changed, or goes on top if they are disjoint and it [may](Rebase).
//!
//! The modules, from below: `error`, `location`, `runtime`, `lock`, `objects` (bytes of chunks),
//! `record` (our own objects), `repository`, `receipt`, `draft` (what a session has changed),
//! `store` (the engine's view of it), `commit`, `session`, `plan` (what the engine's driver needs),
//! `array`, `shared`, `maintenance`.

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

/// The folder in a repository where our own records are.
const FOLDER: &str = "_freestone";

/// A name that nobody else has: 96 random bits.
fn new_id() -> String {
    icechunk::format::SnapshotId::random().to_string().to_lowercase()
}
