//! What keeps a repository from growing for ever: expiry of old snapshots, and removal of what
//! nothing refers to.
//!
//! Icechunk's own collection knows nothing of sessions: it removes chunks that are not committed
//! yet, and lets the later commit succeed. Ours spares what is younger than the oldest live
//! session, and notes what it has spared, so that sessions can tell a harmless collection from
//! another.

use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use icechunk::ops::gc::{ExpiredRefAction, GCConfig, expire, garbage_collect};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::receipt::VERSION;
use crate::repository::{Repository, failed, snapshot_id};
use crate::runtime::wait;
use crate::shared::LONGEST_LIFE;

/// Clocks of who writes and who collects may differ by so much.
const MARGIN: Duration = Duration::from_secs(600);

/// A collection of ours that was killed has ended by then. One that took longer is taken for
/// somebody else's, which is the safe mistake.
const LONGEST_COLLECTION_MS: i64 = 3_600_000;

/// Manifests that a collection has in memory at a time, encoded and decoded.
const MANIFEST_MEM: NonZeroUsize = NonZeroUsize::MIN.saturating_add((64 << 20) - 1);

/// What a collection has removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Snapshots.
    pub n_snapshots: u64,
    /// Manifests.
    pub n_manifests: u64,
    /// Chunk objects.
    pub n_chunks: u64,
    /// Bytes of all of them.
    pub n_bytes: u64,
}

/// What an expiry has taken out of histories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Ids of snapshots that no branch or tag leads to any more; a collection removes them.
    pub snapshots: Vec<String>,
}

/// A collection of ours.
#[derive(Debug, Serialize, Deserialize)]
struct Collection {
    version: u32,
    /// When it began, in milliseconds since 1970, by the clock that its entries in the operations
    /// log have.
    began: i64,
    /// Nothing younger was removed.
    cutoff: i64,
}

/// And its end.
#[derive(Debug, Serialize, Deserialize)]
struct CollectionEnd {
    ended: i64,
}

impl Repository {
    /// Removes objects that no snapshot refers to and that are older than some time: 7 days unless
    /// said, which no session lives longer than.
    ///
    /// What belongs to a live shared session is spared, whatever is asked for. Other sessions that
    /// are younger than `older_than` are not known, and refused when they commit.
    ///
    /// # Errors
    /// Where storage fails; then some objects are removed, none that a snapshot refers to.
    pub fn gc(&self, older_than: Option<Duration>) -> Result<Collected, Error> {
        let _lock = self.lock()?;
        let now = Utc::now();
        let (oldest, bases) = self.live_sessions()?;
        let cutoff = cutoff(now, older_than.unwrap_or(LONGEST_LIFE + MARGIN), oldest);
        let id = format!("gc/{}-{}", now.timestamp_millis(), crate::new_id());
        let collection = Collection {
            version: VERSION,
            began: now.timestamp_millis(),
            cutoff: cutoff.timestamp_millis(),
        };
        self.records().create(&format!("{id}.json"), &collection)?;
        let roots = bases.iter().map(|b| snapshot_id(b)).collect::<Result<_, _>>()?;
        let few = NonZeroU16::MIN.saturating_add(15);
        let config = GCConfig::clean_all(
            cutoff,
            cutoff,
            Some(roots),
            few,
            MANIFEST_MEM,
            MANIFEST_MEM,
            few,
            few,
            few,
            Some(few),
            false,
        );
        let (repository, place) = (Arc::clone(self.icechunk()), self.url().to_owned());
        let summary = wait(async move {
            let assets = Arc::clone(repository.asset_manager());
            let settings = repository.config();
            let done = garbage_collect(
                assets,
                &config,
                Some(settings.repo_update_retries()),
                settings.num_updates_per_repo_info_file(),
            )
            .await;
            done.map_err(|e| failed(&place, "collect garbage in", e))
        })?;
        self.remove_parts(cutoff)?;
        self.records().create(
            &format!("{id}.end.json"),
            &CollectionEnd { ended: Utc::now().timestamp_millis() },
        )?;
        Ok(Collected {
            n_snapshots: summary.snapshots_deleted,
            n_manifests: summary.manifests_deleted,
            n_chunks: summary.chunks_deleted,
            n_bytes: summary.bytes_deleted,
        })
    }

    /// Removes what writers that were killed have left half-written in a directory.
    fn remove_parts(&self, cutoff: DateTime<Utc>) -> Result<(), Error> {
        let Some(directory) = self.directory() else { return Ok(()) };
        let Ok(files) = std::fs::read_dir(directory.join("chunks")) else { return Ok(()) };
        for file in files.flatten() {
            let name = file.file_name();
            let is_part = name.to_str().is_some_and(|n| n.starts_with('.') && n.ends_with(".part"));
            let is_old = || {
                file.metadata()
                    .and_then(|m| m.modified())
                    .is_ok_and(|at| DateTime::<Utc>::from(at) < cutoff)
            };
            if is_part && is_old() {
                std::fs::remove_file(file.path())
                    .map_err(|e| failed(&file.path().display().to_string(), "remove", e))?;
            }
        }
        Ok(())
    }

    /// True if all collections that ran at these times, in milliseconds, were ours and removed
    /// nothing that is as young as a session.
    pub(crate) fn spared(&self, times: &[i64], began: i64) -> Result<bool, Error> {
        let names = self.records().list("gc")?;
        let ids: Vec<&str> = names
            .iter()
            .filter_map(|n| n.strip_suffix(".json").filter(|n| !n.ends_with(".end")))
            .collect();
        let begins = match self.records().get_all::<Collection>(
            &ids.iter().map(|id| format!("gc/{id}.json")).collect::<Vec<_>>(),
        ) {
            // What it has spared is not known any more.
            Err(Error::Damaged { .. }) => return Ok(false),
            other => other?,
        };
        let ends = self.records().get_all::<CollectionEnd>(
            &ids.iter().map(|id| format!("gc/{id}.end.json")).collect::<Vec<_>>(),
        )?;
        let ours: Vec<(i64, i64, i64)> = begins
            .into_iter()
            .zip(ends)
            .filter_map(|(b, e)| {
                b.map(|b| {
                    (b.began, e.map_or(b.began + LONGEST_COLLECTION_MS, |e| e.ended), b.cutoff)
                })
            })
            .collect();
        let spared = |at: &i64| {
            ours.iter().any(|(from, to, cutoff)| from <= at && at <= to && *cutoff <= began)
        };
        Ok(times.iter().all(spared))
    }

    /// Takes snapshots older than some time out of the histories of all branches and tags; their
    /// tips stay, and the bases of live shared sessions.
    ///
    /// # Errors
    /// Where storage fails.
    pub fn expire(&self, older_than: Duration) -> Result<Expired, Error> {
        let _lock = self.lock()?;
        let (_, bases) = self.live_sessions()?;
        let mut cutoff = cutoff(Utc::now(), older_than, None);
        for base in bases {
            let id = snapshot_id(&base)?;
            let info = self.ask("read", move |r| async move {
                r.lookup_snapshot(&id).await.map_err(|e| e.kind)
            })?;
            cutoff = cutoff.min(info.flushed_at);
        }
        let (repository, place) = (Arc::clone(self.icechunk()), self.url().to_owned());
        let done = wait(async move {
            let assets = Arc::clone(repository.asset_manager());
            let settings = repository.config();
            let keep = ExpiredRefAction::Ignore;
            let done = expire(
                assets,
                cutoff,
                keep,
                keep,
                Some(settings.repo_update_retries()),
                settings.num_updates_per_repo_info_file(),
            )
            .await;
            done.map_err(|e| failed(&place, "expire snapshots of", e))
        })?;
        let mut snapshots: Vec<String> =
            done.released_snapshots.iter().map(ToString::to_string).collect();
        snapshots.sort_unstable();
        Ok(Expired { snapshots })
    }
}

/// Nothing younger goes: what was asked for, but nothing of the oldest live session.
fn cutoff(now: DateTime<Utc>, older_than: Duration, oldest: Option<u64>) -> DateTime<Utc> {
    let asked = chrono::TimeDelta::from_std(older_than)
        .ok()
        .and_then(|d| now.checked_sub_signed(d))
        .unwrap_or(DateTime::<Utc>::MIN_UTC);
    let live = oldest
        .and_then(|ms| DateTime::from_timestamp_millis(i64::try_from(ms).ok()?))
        .map(|at| at - MARGIN);
    live.map_or(asked, |live| live.min(asked))
}
