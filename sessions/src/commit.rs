//! Commits: all changes of a session become visible at once, or none do.
//!
//! Icechunk's rebase is not used. If the branch has moved, the changes since the base, from its
//! transaction logs, are compared with those of the session. If both are disjoint, the session's
//! changes are applied to the new tip. Conflicts thus name arrays and chunks, and any process with
//! the receipts can retry a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use freestone_allocator::EagerPurge;
use futures_util::TryStreamExt;
use icechunk::config::{ManifestConfig, RepositoryConfig};
use icechunk::format::manifest::{ChunkPayload, ChunkRef};
use icechunk::format::repo_info::UpdateType;
use icechunk::format::{ChunkId, ChunkIndices};
use icechunk::repository::RepositoryErrorKind;
use icechunk::session::SessionErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::draft::{Draft, Known, NodeChange, icechunk_path};
use crate::error::{Clash, Conflict, Error};
use crate::manifests;
use crate::node::{Shape, apply_node};
use crate::receipt::{Placed, Written};
use crate::repository::{Repository, failed, snapshot_id};
use crate::runtime::wait;
use crate::version::{Format, Snapshot, Version};

/// The property of a snapshot with the id of its session.
pub(crate) const SESSION_PROPERTY: &str = "freestone_session";

/// The number of references that are passed to Icechunk at once.
const REFERENCES_AT_ONCE: usize = 4096;

/// The maximum number of retries of a commit, or of the creation of a repository, whose response
/// was lost.
pub(crate) const LOST_ANSWERS: u32 = 5;

/// The handling of a branch that has moved since the session began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rebase {
    /// Refuses the commit with a [`Conflict`].
    #[default]
    Never,
    /// Commits on top of the new tip if the changes are disjoint, and refuses the commit otherwise.
    /// Data that the session has read are not compared: a result that was computed from data that
    /// another commit has changed is not recomputed.
    Disjoint {
        /// The number of attempts before [`Error::Contended`], with exponential backoff.
        attempts: u32,
    },
}

/// The options of a commit.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    /// The handling of a branch that has moved.
    pub rebase: Rebase,
    /// The arrays of which every chunk must have a receipt. Other chunks without a receipt are
    /// unchanged.
    pub complete: Vec<String>,
    /// Further properties of the snapshot.
    pub properties: Map<String, Value>,
}

/// The parameters of a commit.
pub(crate) struct Commit<'a> {
    pub(crate) branch: &'a str,
    pub(crate) base: &'a str,
    pub(crate) session: &'a str,
    pub(crate) mark: Option<Mark>,
    pub(crate) message: &'a str,
    pub(crate) options: &'a CommitOptions,
    /// Polled while the commit waits for other writers.
    pub(crate) is_cancelled: &'a dyn Fn() -> bool,
}

/// The position of the operations log and the time at the start of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// The unique time of the newest entry in microseconds.
    newest: i64,
    /// The start of the session by its own clock, in milliseconds.
    pub(crate) began: i64,
}

impl Repository {
    /// Returns the current mark with one read. Returns `None` in format 1, which has no operations
    /// log.
    pub(crate) fn mark(&self) -> Result<Option<Mark>, Error> {
        if self.format() == Format::V1 {
            return Ok(None);
        }
        self.ask("read", |r| async move {
            let (log, ..) = r.ops_log().await.map_err(|e| e.kind)?;
            let first = Box::pin(log).try_next().await.map_err(|e| e.kind)?;
            Ok(Some(Mark {
                newest: first.map_or(0, |(at, ..)| at.timestamp_micros()),
                began: chrono::Utc::now().timestamp_millis(),
            }))
        })
    }

    /// Returns [`Error::Collected`] if a garbage collection since the mark may have removed chunks
    /// of the session. A collection of this crate that has retained objects of its age is harmless.
    fn check_not_collected(&self, mark: Option<Mark>) -> Result<(), Error> {
        let Some(mark) = mark else { return Ok(()) };
        let times: Vec<i64> = self.ask("read", move |r| async move {
            let (log, ..) = r.ops_log().await.map_err(|e| e.kind)?;
            let (mut log, mut collections) = (Box::pin(log), Vec::new());
            while let Some((at, update, _)) = log.try_next().await.map_err(|e| e.kind)? {
                // Times are from different clocks, so the entry itself is searched.
                if at.timestamp_micros() == mark.newest {
                    break;
                }
                if matches!(update, UpdateType::GCRanUpdate) {
                    collections.push(at.timestamp_millis());
                }
            }
            Ok::<_, RepositoryErrorKind>(collections)
        })?;
        if times.is_empty() || self.spared(&times, mark.began)? {
            return Ok(());
        }
        Err(Error::Collected { place: self.url().to_owned() })
    }

    /// Commits a draft. A lock excludes concurrent commits to a local repository.
    pub(crate) fn commit(&self, commit: &Commit<'_>, draft: &Draft) -> Result<String, Error> {
        if draft.is_empty() {
            return Err(Error::NothingToCommit);
        }
        check_complete(&commit.options.complete, draft)?;
        draft.check_hierarchy()?;
        let _lock = self.lock_unless(commit.is_cancelled)?;
        let _eager_purge = EagerPurge::new();
        let attempts = match commit.options.rebase {
            Rebase::Never => 1,
            Rebase::Disjoint { attempts } => attempts.max(1),
        };
        self.sync_objects(draft)?;
        let (mut moved, mut lost) = (0, 0);
        while moved < attempts {
            if moved + lost > 0 {
                if (commit.is_cancelled)() {
                    return Err(Error::Cancelled);
                }
                std::thread::sleep(pause(moved + lost));
            }
            let tip = self.resolve(&Version::Branch(commit.branch.to_owned()))?;
            if tip != commit.base {
                if let Some(done) = self.committed(commit.session, commit.branch, commit.base)? {
                    return Ok(done.id);
                }
                let clashes = self.clashes(commit.base, &tip, draft)?;
                if commit.options.rebase == Rebase::Never || !clashes.is_empty() {
                    return Err(Error::Conflict(conflict(commit, tip, clashes)));
                }
            }
            self.check_not_collected(commit.mark)?;
            match self.try_commit(commit, &tip, draft) {
                Ok(Some(snapshot)) => {
                    self.sync_snapshot(&snapshot)?;
                    return Ok(snapshot);
                }
                Ok(None) => moved += 1,
                Err(e @ Error::Repository { .. }) => {
                    // The commit may have succeeded although its response was lost.
                    if let Some(done) =
                        self.committed(commit.session, commit.branch, commit.base)?
                    {
                        self.sync_snapshot(&done.id)?;
                        return Ok(done.id);
                    }
                    // Icechunk's client does not retry conditional puts, because it cannot know
                    // whether they succeeded. This code checks for the snapshot instead.
                    if !e.is_transient() || lost == LOST_ANSWERS {
                        return Err(e);
                    }
                    lost += 1;
                }
                Err(e) => return Err(e),
            }
        }
        // A concurrent process may have committed this session.
        if let Some(done) = self.committed(commit.session, commit.branch, commit.base)? {
            return Ok(done.id);
        }
        match commit.options.rebase {
            Rebase::Disjoint { .. } => {
                Err(Error::Contended { branch: commit.branch.to_owned(), attempts })
            }
            Rebase::Never => {
                let tip = self.resolve(&Version::Branch(commit.branch.to_owned()))?;
                let clashes = self.clashes(commit.base, &tip, draft)?;
                Err(Error::Conflict(conflict(commit, tip, clashes)))
            }
        }
    }

    /// Returns the snapshot of a committed session. Searches its branch from the tip to the base.
    pub(crate) fn committed(
        &self,
        session: &str,
        branch: &str,
        base: &str,
    ) -> Result<Option<Snapshot>, Error> {
        for snapshot in self.history(&Version::Branch(branch.to_owned()))? {
            if snapshot.properties.get(SESSION_PROPERTY).and_then(Value::as_str) == Some(session) {
                return Ok(Some(snapshot));
            }
            if snapshot.id == base {
                break;
            }
        }
        Ok(None)
    }

    /// Attempts to commit on top of a tip. Returns `None` if the branch has moved.
    fn try_commit(
        &self,
        commit: &Commit<'_>,
        tip: &str,
        draft: &Draft,
    ) -> Result<Option<String>, Error> {
        let (repository, place) = (Arc::clone(self.icechunk()), self.url().to_owned());
        let splitting = self.splitting(tip, draft)?;
        let (branch, tip, message) =
            (commit.branch.to_owned(), snapshot_id(tip)?, commit.message.to_owned());
        let mut properties: BTreeMap<String, Value> =
            commit.options.properties.clone().into_iter().collect();
        properties.insert(SESSION_PROPERTY.to_owned(), json!(commit.session));
        let nodes: Vec<(String, NodeChange)> =
            draft.nodes.iter().map(|(path, change)| (path.clone(), change.clone())).collect();
        let lost = |place: &str, action| {
            let place = place.to_owned();
            move |e: icechunk::session::SessionError| failed(&place, action, e.kind)
        };
        let session = wait({
            let place = place.clone();
            async move {
                let repository = match splitting {
                    // The reopened repository shares all caches and connections.
                    Some(config) => &repository
                        .reopen(Some(config), None)
                        .await
                        .map_err(|e| failed(&place, "open", e.kind))?,
                    None => &*repository,
                };
                let mut session = repository
                    .writable_session(&branch)
                    .await
                    .map_err(|e| failed(&place, "write", e.kind))?;
                if *session.snapshot_id() != tip {
                    return Ok(None);
                }
                for (path, change) in &nodes {
                    apply_node(&mut session, &place, path, change).await?;
                }
                Ok(Some(session))
            }
        })?;
        let Some(mut session) = session else { return Ok(None) };
        for (array, chunks) in draft.receipts.arrays() {
            let path = icechunk_path(array)?;
            // Missing chunks of a new array need no reference.
            let fresh = draft.hides_chunks(array);
            // Passing all references at once would copy all of them.
            for numbers in chunks.for_tree().chunks(REFERENCES_AT_ONCE) {
                let refs: Vec<_> = numbers
                    .iter()
                    .filter_map(|n| chunks.nth(*n))
                    .filter_map(|(chunk, placed)| reference(chunk, placed, fresh))
                    .collect();
                let (path, lost) = (path.clone(), lost(&place, "set chunk references of"));
                session = wait(async move {
                    for (chunk, payload) in refs {
                        session.set_chunk_ref(path.clone(), chunk, payload).await.map_err(&lost)?;
                    }
                    Ok(session)
                })?;
            }
        }
        wait(async move {
            if !session.has_uncommitted_changes() {
                return Err(Error::NothingToCommit);
            }
            match session.commit(message).properties(properties).execute().await {
                Ok(id) => Ok(Some(id.to_string())),
                Err(e) if matches!(e.kind, SessionErrorKind::Conflict { .. }) => Ok(None),
                Err(e) => Err(lost(&place, "commit to")(e)),
            }
        })
    }

    /// Returns the configuration that divides the manifests of changed arrays. Returns `None` if
    /// the repository has its own, or if no manifest is divided.
    fn splitting(&self, tip: &str, draft: &Draft) -> Result<Option<RepositoryConfig>, Error> {
        if self.icechunk().config().manifest.as_ref().is_some_and(|m| m.splitting.is_some()) {
            return Ok(None);
        }
        let mut base = None;
        let mut arrays = Vec::new();
        for path in draft
            .nodes
            .keys()
            .chain(draft.receipts.arrays().map(|(path, _)| path))
            .collect::<BTreeSet<_>>()
        {
            let document = match draft.node(path) {
                Known::Document(document) => Some(document.clone()),
                Known::Gone => None,
                Known::Unchanged => {
                    let base = match &mut base {
                        Some(base) => base,
                        none => {
                            none.insert(self.readonly_session(&Version::Snapshot(tip.to_owned()))?)
                        }
                    };
                    base.session_store().parsed(path)?
                }
            };
            // Unsupported arrays are refused when they are created.
            if let Some(shape) = document.and_then(|d| Shape::of(path, &d).ok()) {
                arrays.push((path.as_str(), shape.counts().collect()));
            }
        }
        let manifest =
            |splitting| ManifestConfig { splitting: Some(splitting), ..ManifestConfig::default() };
        Ok(manifests::splitting(arrays.into_iter()).map(|s| RepositoryConfig {
            manifest: Some(manifest(s)),
            ..RepositoryConfig::default()
        }))
    }

    /// Flushes chunk objects before references to them are written.
    fn sync_objects(&self, draft: &Draft) -> Result<(), Error> {
        let Some(store) = self.base_store() else { return Ok(()) };
        let objects = draft.receipts.arrays().flat_map(|(_, chunks)| chunks.iter()).filter_map(
            |(_, (written, _))| match written {
                Written::Object { id, .. } => Some(crate::objects::key(&ChunkId::new(*id))),
                Written::Fill | Written::Inline { .. } => None,
            },
        );
        Ok(store.sync(&mut objects.into_iter())?)
    }

    /// Flushes a local snapshot and its branch.
    fn sync_snapshot(&self, id: &str) -> Result<(), Error> {
        let Some(store) = self.base_store().filter(|s| !s.is_remote()) else { return Ok(()) };
        let snapshot = snapshot_id(id)?;
        let manifests = self.ask("read", move |r| async move {
            r.lookup_manifest_files(&snapshot)
                .await
                .map(|m| m.map(|f| f.id.to_string()).collect::<Vec<_>>())
                .map_err(|e| e.kind)
        })?;
        let keys = manifests.into_iter().map(|m| format!("manifests/{m}"));
        let keys = keys.chain([
            format!("snapshots/{id}"),
            format!("transactions/{id}"),
            "repo".to_owned(),
        ]);
        Ok(store.sync(&mut keys.into_iter())?)
    }
}

fn conflict(commit: &Commit<'_>, tip: String, clashes: Vec<Clash>) -> Conflict {
    Conflict { branch: commit.branch.to_owned(), base: commit.base.to_owned(), tip, clashes }
}

/// Returns the pause between attempts: 10 ms, doubled up to 2 s, with a jitter of up to half.
fn pause(attempt: u32) -> Duration {
    let most = 10_000u64.saturating_mul(1 << attempt.min(10)).min(2_000_000);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::from(d.subsec_nanos()));
    Duration::from_micros(
        most / 2
            + (now ^ u64::from(std::process::id()).wrapping_mul(2_654_435_761)) % (most / 2 + 1),
    )
}

/// Checks that arrays that must be complete have receipts for all chunks.
fn check_complete(arrays: &[String], draft: &Draft) -> Result<(), Error> {
    for path in arrays {
        let missing = || Error::InvalidNode {
            path: path.clone(),
            why: "this session has not created this array".into(),
        };
        let shape = Shape::of(
            path,
            draft.nodes.get(path).and_then(NodeChange::document).ok_or_else(missing)?,
        )?;
        let (wanted, there) = (shape.n_chunks(), draft.receipts.n_chunks(path) as u64);
        if there < wanted {
            let grid = freestone_engine::grid::ChunkGrid::regular(&shape.lens, &shape.chunks);
            let first = grid.ok().and_then(|grid| {
                let absent = |c: &Vec<u64>| {
                    draft
                        .receipts
                        .get(path, &c.iter().map(|c| *c as u32).collect::<Vec<_>>())
                        .is_none()
                };
                (0..wanted).map(|i| grid.coords(i)).find(absent)
            });
            return Err(Error::Incomplete {
                array: path.clone(),
                n_missing: wanted - there,
                first: first.unwrap_or_default(),
            });
        }
    }
    Ok(())
}

/// Returns the reference of a chunk, or `None` if it needs none.
fn reference(
    chunk: &[u32],
    (written, _): &Placed,
    fresh: bool,
) -> Option<(ChunkIndices, Option<ChunkPayload>)> {
    let payload = match written {
        Written::Fill if fresh => return None,
        Written::Fill => None,
        Written::Inline { bytes } => Some(ChunkPayload::Inline(Bytes::copy_from_slice(bytes))),
        Written::Object { id, offset, len } => Some(ChunkPayload::Ref(ChunkRef {
            id: ChunkId::new(*id),
            offset: *offset,
            length: *len,
        })),
    };
    Some((ChunkIndices(chunk.to_vec()), payload))
}
