//! Maintenance of repositories: expiry of old snapshots, and garbage collection.
//!
//! Icechunk's garbage collection does not know sessions: it removes uncommitted chunks, and a later
//! commit still succeeds. This one retains objects younger than the oldest live session, and
//! records what it retains, so that sessions can recognize a harmless collection.

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

/// The maximum difference of the clocks of writers and collectors.
const MARGIN: Duration = Duration::from_secs(600);

/// The assumed maximum duration of an interrupted collection of this crate. A longer one counts as
/// a collection by another program, which is the safe assumption.
const LONGEST_COLLECTION_MS: i64 = 3_600_000;

/// The memory for encoded and decoded manifests during a collection.
const MANIFEST_MEM: NonZeroUsize = NonZeroUsize::MIN.saturating_add((64 << 20) - 1);

/// The result of a garbage collection: the number of removed objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Snapshots.
    pub n_snapshots: u64,
    /// Manifests.
    pub n_manifests: u64,
    /// Chunk objects.
    pub n_chunks: u64,
    /// The size of all removed objects in bytes.
    pub n_bytes: u64,
}

/// The result of an expiry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// The ids of snapshots to which no branch or tag refers. A garbage collection removes them.
    pub snapshots: Vec<String>,
}

/// The record of a collection of this crate.
#[derive(Debug, Serialize, Deserialize)]
struct Collection {
    version: u32,
    /// The start time in milliseconds since 1970, by the clock of the operations log's entries.
    began: i64,
    /// The time after which nothing was removed.
    cutoff: i64,
}

/// The record of the end of a collection.
#[derive(Debug, Serialize, Deserialize)]
struct CollectionEnd {
    ended: i64,
}

impl Repository {
    /// Removes unreferenced objects older than `older_than`. The default is 7 days, the maximum
    /// lifetime of sessions.
    ///
    /// Objects of live shared sessions are always retained. Other sessions are not known. Commits
    /// of those that are older than `older_than` are refused.
    ///
    /// # Errors
    /// Returns an error if storage fails. Some unreferenced objects may then be removed.
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

    /// Removes the partial files of killed writers from a directory.
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

    /// Returns true if all collections at these times, in milliseconds, were of this crate and
    /// removed no objects as young as a session.
    pub(crate) fn spared(&self, times: &[i64], began: i64) -> Result<bool, Error> {
        let names = self.records().list("gc")?;
        let ids: Vec<&str> = names
            .iter()
            .filter_map(|n| n.strip_suffix(".json").filter(|n| !n.ends_with(".end")))
            .collect();
        let begins = match self.records().get_all::<Collection>(
            &ids.iter().map(|id| format!("gc/{id}.json")).collect::<Vec<_>>(),
        ) {
            // The cutoff of a damaged record is unknown.
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

    /// Removes snapshots older than `older_than` from the histories of all branches and tags. The
    /// newest snapshots and the bases of live shared sessions are retained.
    ///
    /// # Errors
    /// Returns an error if storage fails.
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

/// Returns the time after which objects are retained: as requested, but before the oldest live
/// session.
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
