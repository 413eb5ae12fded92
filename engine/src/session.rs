//! How results become visible: all at once, or not at all.

use std::sync::{Arc, Mutex, PoisonError};

use freestone_kernels::Buffer;
use serde_json::{Value, json};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::plan::{FinalizedPlan, Mode, Place, Publication};
use crate::storage::consolidated::{self, document, pretty};
use crate::storage::metadata::{MetadataError, exists, open_array};
use crate::storage::reader::Written;
use crate::storage::{ArrayInfo, Lock, StorageError, Store, Stores, join, read_small, split_location};
use crate::task::Receipt;

/// Why results cannot be written or published.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum SessionError {
    #[error("{place} exists already (hint: choose another place, or replace it by `--overwrite`, in Rust `Target::overwrite`)")]
    Exists { place: String },
    #[error("{place} holds files that are not Zarr's ({}): choose another place", names.join(", "))]
    Foreign { place: String, names: Vec<String> },
    #[error("{place} is {what}, so no array can be stored in it: choose another place")]
    NotAGroup { place: String, what: &'static str },
    #[error("{place} is not the array any more whose region this plan writes: it is gone, or its metadata have changed; plan again")]
    Changed { place: String },
    #[error(
        "{place} is not this run's any more: another run has begun to write there since, or it was removed. This run's result is not published; start it anew"
    )]
    Taken { place: String },
    #[error("another run writes {place} at the moment: wait for its end, or choose another place")]
    Busy { place: String },
    #[error("{message}")]
    Refused { why: Refusal, message: String },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What a refusal of a transactional store means for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Something else is in the way: what was computed stays, and may be published otherwise.
    Conflict,
    /// Another commit came first that changed nothing of the same: what was computed can be published on top of it, by a rebase.
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

impl SessionError {
    /// True if the run can never be published.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, SessionError::Taken { .. } | SessionError::Changed { .. } | SessionError::Refused { why: Refusal::Over, .. })
    }
}

/// Where a run's outputs go, and the commit that publishes them.
pub trait Session: Send + Sync {
    /// The store that tasks in this process write, where the session has one of its own.
    fn store(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// True if the commit is made of receipts, so that the driver has to keep them.
    fn takes_receipts(&self) -> bool {
        false
    }

    /// Finds out whether the outputs may be written, and changes nothing.
    ///
    /// # Errors
    /// Where something is in the way.
    fn check(&self, plan: &FinalizedPlan) -> Result<(), SessionError>;

    /// Makes room: what will be overwritten stops being visible.
    ///
    /// # Errors
    /// Where storage fails.
    fn begin(&self, plan: &FinalizedPlan) -> Result<(), SessionError>;

    /// What another process needs to go on with this session, as plain data without credentials.
    fn ticket(&self) -> Value;

    /// Finds out whether the outputs' places are still this session's, in another process than the one that has begun it. If all tasks are
    /// `finished`, a part of them may be published already.
    ///
    /// # Errors
    /// Where somebody else has taken one of them since.
    fn resume(&self, plan: &FinalizedPlan, finished: bool) -> Result<(), SessionError>;

    /// Finds out whether an output's chunk is stored as its receipt says, whatever happened to the machine since: reads it.
    ///
    /// # Errors
    /// Where storage fails.
    fn holds(&self, plan: &FinalizedPlan, receipt: &Receipt) -> Result<bool, StorageError>;

    /// Makes all chunks durable and publishes the outputs, after every task's receipts were checked. Called again, it finishes what a call before
    /// has left undone. `receipts` are those of the outputs' chunks, some perhaps twice, where [`takes_receipts`](Session::takes_receipts). Gives
    /// the id of the snapshot that has the outputs, where the store has snapshots. While it waits for others, it asks whether it `is_cancelled`.
    ///
    /// # Errors
    /// Where storage fails or refuses; then nothing or, in plain stores, a part of the outputs is visible, each of them whole.
    /// [`Refusal::Cancelled`]; then nothing is.
    fn commit(&self, plan: &FinalizedPlan, receipts: &[Receipt], is_cancelled: &dyn Fn() -> bool) -> Result<Option<String>, SessionError>;

    /// Gives up: nothing will be published, and the outputs' places are free. Failing to tidy up is no further failure.
    fn abandon(&self, plan: &FinalizedPlan);
}

/// Plain Zarr stores: each array's `zarr.json` is written last, so that a killed run leaves no array, and an overwrite
/// removes it first.
///
/// A run leaves a claim where it writes, and does not publish what another run has claimed since. That keeps two runs from
/// publishing a mixture by accident; it is no lock: who must be safe from late writers needs a transactional store.
///
/// A region of an array that is there is written in place, chunk by chunk. That is no transaction: readers see new chunks beside old
/// ones while the run goes on, and after one that failed. Runs that write different regions do not disturb each other.
///
/// While it lives, a session that has begun keeps a lock on its claims in directories: another run is refused.
#[derive(Debug)]
pub struct PlainZarr {
    stores: Stores,
    claim: String,
    locks: Mutex<Vec<Lock>>,
}

/// The object that says which run writes an array.
const CLAIM: &str = ".freestone-claim";

/// Metadata documents that we look for are not larger.
const MAX_DOCUMENT_BYTES: u64 = 64_000_000;

impl PlainZarr {
    /// With the stores that are open already.
    pub fn new(stores: Stores) -> PlainZarr {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        PlainZarr { stores, claim: format!("{}-{now}", std::process::id()), locks: Mutex::default() }
    }

    /// The session that a ticket is from; `None` if it is not from one of this kind.
    pub fn of_ticket(stores: Stores, ticket: &Value) -> Option<PlainZarr> {
        Some(PlainZarr { stores, claim: ticket["plain_zarr"]["claim"].as_str()?.to_owned(), locks: Mutex::default() })
    }

    /// Keeps the claim on a target locked as long as this lives. In an object store a lock would be an object in the claim's place.
    fn lock(&self, target: &Target<'_>) -> Result<(), SessionError> {
        if target.store.is_remote() {
            return Ok(());
        }
        let lock = target.store.lock(&join(target.path, CLAIM))?.ok_or_else(|| SessionError::Busy { place: target.store.place(target.path) })?;
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
        Ok(())
    }

    /// Gives back what a try before this one has locked: it would be in its own way.
    fn unlock(&self) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// True if the target's metadata are what this run publishes, and nobody has claimed the place.
    fn is_published(&self, target: &Target<'_>) -> Result<bool, StorageError> {
        let there = document(&*target.store, &join(target.path, "zarr.json"))?.as_ref() == Some(&target.publication.document);
        Ok(there && read_small(&*target.store, &join(target.path, CLAIM), MAX_DOCUMENT_BYTES)?.is_none())
    }

    fn targets<'a>(&self, plan: &'a FinalizedPlan) -> Result<Vec<Target<'a>>, SessionError> {
        let mut targets = Vec::new();
        for publication in &plan.plan().publications {
            let array = plan.plan().array(publication.array);
            if let Place::Output { url, path } = &array.place {
                targets.push(Target { store: self.stores.open(url)?, path, info: &array.info, publication });
            }
        }
        Ok(targets)
    }

    /// Those that were not there before: all but regions.
    fn made<'a>(&self, plan: &'a FinalizedPlan) -> Result<Vec<Target<'a>>, SessionError> {
        Ok(self.targets(plan)?.into_iter().filter(|t| !t.is_region()).collect())
    }

    /// Brings the consolidated metadata up to date of all groups, inside of their stores and around them, that hold a target and have
    /// some, or should.
    fn consolidate(&self, targets: &[Target<'_>]) -> Result<Vec<Folder>, StorageError> {
        let mut groups: Vec<Folder> = Vec::new();
        for target in targets {
            for (at, (store, path)) in self.groups_around(target).into_iter().enumerate() {
                let asked = at == 0 && target.publication.consolidated;
                let group = match document(&*store, &join(&path, "zarr.json")) {
                    // Who may write an array need not be allowed to look around it.
                    Err(StorageError::Denied { .. }) if !asked => None,
                    other => other?,
                };
                let wanted = group.is_some_and(|d| asked || consolidated::has_consolidated(&d));
                if wanted && !groups.iter().any(|(s, p)| s.url() == store.url() && *p == path) {
                    groups.push((store, path));
                }
            }
        }
        for (store, path) in &groups {
            consolidated::refresh(&**store, path)?;
        }
        Ok(groups)
    }

    /// The folders around a target that are or may be groups, from inside out.
    fn groups_around(&self, target: &Target<'_>) -> Vec<Folder> {
        let mut around = Vec::new();
        let mut path = target.path;
        while !path.is_empty() {
            path = path.rsplit_once('/').map_or("", |(group, _)| group);
            around.push((Arc::clone(&target.store), path.to_owned()));
        }
        let mut url = target.store.url().to_owned();
        loop {
            let (parent, name) = split_location(&url);
            if name.is_empty() || parent == url || url.starts_with("memory://") {
                return around;
            }
            let Ok(store) = self.stores.open(&parent) else { return around };
            // What is not there or not to be read is no group of ours.
            if !matches!(document(&*store, "zarr.json"), Ok(Some(d)) if d["node_type"] == "group") {
                return around;
            }
            around.push((store, String::new()));
            url = parent;
        }
    }

    /// True while no other run has claimed the place.
    fn owns(&self, target: &Target<'_>) -> Result<bool, StorageError> {
        let claim = read_small(&*target.store, &join(target.path, CLAIM), MAX_DOCUMENT_BYTES)?;
        Ok(claim.as_deref() == Some(self.claim.as_bytes()))
    }
}

/// A store, and a path in it.
type Folder = (Arc<dyn Store>, String);

struct Target<'a> {
    store: Arc<dyn Store>,
    path: &'a str,
    info: &'a ArrayInfo,
    publication: &'a Publication,
}

impl Target<'_> {
    fn is_region(&self) -> bool {
        matches!(self.publication.mode, Mode::Region { .. })
    }

    /// Keys of the documents of the groups around it in its store, from inside out.
    fn groups(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let mut path = self.path;
        while !path.is_empty() {
            path = path.rsplit_once('/').map_or("", |(group, _)| group);
            keys.push(join(path, "zarr.json"));
        }
        keys
    }

    /// The array whose region is written is still the one that was planned for.
    fn check_unchanged(&self) -> Result<(), SessionError> {
        let Mode::Region { tag: expect } = &self.publication.mode else { return Ok(()) };
        match open_array(&self.store, self.path) {
            Ok(there) if there.tag == *expect => Ok(()),
            Err(MetadataError::Storage(e)) => Err(e.into()),
            _ => Err(SessionError::Changed { place: self.store.place(self.path) }),
        }
    }
}

impl Session for PlainZarr {
    fn check(&self, plan: &FinalizedPlan) -> Result<(), SessionError> {
        for target in self.targets(plan)? {
            let place = target.store.place(target.path);
            let store = &*target.store;
            if target.is_region() {
                target.check_unchanged()?;
                continue;
            }
            if let Some(place) = store.obstacle(target.path) {
                return Err(SessionError::NotAGroup { place, what: "a file" });
            }
            if target.publication.group.is_some() {
                let what = match document(store, "zarr.json")? {
                    Some(d) if d["node_type"] != "group" => Some("an array"),
                    Some(_) => None,
                    None if read_small(store, ".zarray", MAX_DOCUMENT_BYTES)?.is_some() => Some("an array"),
                    None if read_small(store, ".zgroup", MAX_DOCUMENT_BYTES)?.is_some() => Some("a group of Zarr format 2"),
                    None => None,
                };
                if let Some(what) = what {
                    return Err(SessionError::NotAGroup { place: store.url().to_owned(), what });
                }
            }
            let claim = join(target.path, CLAIM);
            if !store.is_remote() && read_small(store, &claim, MAX_DOCUMENT_BYTES)?.is_some() && store.lock(&claim)?.is_none() {
                return Err(SessionError::Busy { place });
            }
            let there = exists(store, target.path)?;
            if there && !target.publication.overwrite {
                return Err(SessionError::Exists { place });
            }
            if !there && !store.url().starts_with("http") {
                // Chunks that a killed run left are ours to remove; anything else is not.
                let prefix = if target.path.is_empty() { String::new() } else { format!("{}/", target.path) };
                let strange = |n: &String| !n.bytes().all(|b| b.is_ascii_digit());
                let beside = store.list(&prefix)?.into_iter().filter(|n| n != "c" && n != CLAIM);
                let inside = store.list(&format!("{prefix}c/"))?.into_iter().filter(strange).map(|n| format!("c/{n}"));
                let names: Vec<String> = beside.chain(inside).take(5).collect();
                if !names.is_empty() {
                    return Err(SessionError::Foreign { place, names });
                }
            }
        }
        Ok(())
    }

    fn begin(&self, plan: &FinalizedPlan) -> Result<(), SessionError> {
        self.unlock();
        for target in self.made(plan)? {
            for name in ["zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"] {
                target.store.remove(&join(target.path, name))?;
            }
            if target.path.is_empty() {
                for name in target.store.list("")? {
                    target.store.remove(&format!("{name}/"))?;
                    target.store.remove(&name)?;
                }
            } else {
                target.store.remove(&format!("{}/", target.path))?;
            }
            target.store.write(&join(target.path, CLAIM), self.claim.as_bytes())?;
            self.lock(&target)?;
            if target.publication.overwrite {
                // Nor must it be seen in its groups' copies.
                self.consolidate(&[target])?;
            }
        }
        Ok(())
    }

    fn ticket(&self) -> Value {
        json!({"plain_zarr": {"claim": self.claim}})
    }

    fn resume(&self, plan: &FinalizedPlan, finished: bool) -> Result<(), SessionError> {
        self.unlock();
        for target in self.targets(plan)? {
            target.check_unchanged()?;
            let is_ours = target.is_region() || self.owns(&target)? || (finished && self.is_published(&target)?);
            if !is_ours {
                return Err(SessionError::Taken { place: target.store.place(target.path) });
            }
            if !target.is_region() && self.owns(&target)? {
                self.lock(&target)?;
            }
        }
        Ok(())
    }

    fn abandon(&self, plan: &FinalizedPlan) {
        for target in self.made(plan).into_iter().flatten() {
            if self.owns(&target).unwrap_or(false) {
                for name in ["c/", "c", CLAIM] {
                    let _ = target.store.remove(&join(target.path, name));
                }
                // The folder, if nothing else is in it.
                let folder = format!("{}/", target.path);
                if folder.len() > 1 && target.store.list(&folder).is_ok_and(|names| names.is_empty()) {
                    let _ = target.store.remove(&folder);
                }
            }
        }
    }

    fn holds(&self, plan: &FinalizedPlan, receipt: &Receipt) -> Result<bool, StorageError> {
        let (Some(array), Written::Object { len, hash }) = (plan.plan().arrays.get(receipt.array.0), receipt.written) else { return Ok(true) };
        let Place::Output { url, path } = &array.place else { return Ok(true) };
        let store = self.stores.open(url)?;
        let objects = array.info.objects();
        if store.is_remote() || receipt.chunk >= objects.n_chunks() {
            return Ok(store.is_remote());
        }
        let mut buffer = Buffer::zeroed(len as usize);
        let found = store.read(&join(path, &array.info.object_key(&objects.coords(receipt.chunk))), None, len, &mut buffer)?;
        Ok(found && buffer.len() as u64 == len && xxh3_64(buffer.bytes()) == hash)
    }

    fn commit(&self, plan: &FinalizedPlan, _receipts: &[Receipt], _is_cancelled: &dyn Fn() -> bool) -> Result<Option<String>, SessionError> {
        for target in self.targets(plan)? {
            if target.publication.mode == Mode::Metadata {
                continue;
            }
            let objects = target.info.objects();
            let mut keys = (0..objects.n_chunks()).map(|i| join(target.path, &target.info.object_key(&objects.coords(i))));
            target.store.sync(&mut keys)?;
            target.check_unchanged()?;
        }
        let targets = self.made(plan)?;
        let mut left = Vec::new();
        for target in &targets {
            match (self.owns(target)?, self.is_published(target)?) {
                (true, _) => left.push(target),
                // By a call before this one, which did not come to its end.
                (false, true) => {}
                (false, false) => return Err(SessionError::Taken { place: target.store.place(target.path) }),
            }
        }
        for target in left {
            let text = pretty(&target.publication.document);
            target.store.write(&join(target.path, "zarr.json"), &text)?;
            target.store.remove(&join(target.path, CLAIM))?;
        }
        for target in &targets {
            for key in target.groups() {
                if let Some(group) = &target.publication.group
                    && document(&*target.store, &key)?.is_none()
                {
                    target.store.write(&key, &pretty(group))?;
                }
            }
        }
        let changed = self.consolidate(&targets)?;
        for target in &targets {
            let key = join(target.path, "zarr.json");
            let groups = if target.publication.group.is_some() { target.groups() } else { Vec::new() };
            target.store.sync(&mut std::iter::once(key).chain(groups))?;
        }
        for (store, path) in changed {
            store.sync(&mut std::iter::once(join(&path, "zarr.json")))?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::plan::lower::lower;
    use crate::plan::tests::{output, random, spec};
    use crate::storage::MemoryStore;

    /// The driver tries again where storage failed for a while: its own locks must not keep it out, but another session.
    #[test]
    fn a_session_is_not_in_its_own_way() {
        let folder = tempfile::tempdir().unwrap();
        let mut target = output(&random(&[4, 4], &[2, 2], 1), "x", None);
        target.url = folder.path().display().to_string();
        let plan = lower(&[target], &spec(100_000_000, 1)).unwrap();
        let first = PlainZarr::new(Stores::default());
        first.begin(&plan).unwrap();
        first.begin(&plan).unwrap();
        let other = PlainZarr::new(Stores::default());
        assert!(matches!(other.check(&plan), Err(SessionError::Busy { .. })));
        let later = PlainZarr::of_ticket(Stores::default(), &first.ticket()).unwrap();
        assert!(matches!(later.resume(&plan, false), Err(SessionError::Busy { .. })));
        drop(first);
        later.resume(&plan, false).unwrap();
        later.resume(&plan, false).unwrap();
        assert!(matches!(other.check(&plan), Err(SessionError::Busy { .. })));
        drop(later);
        other.check(&plan).unwrap();
    }

    #[test]
    fn what_another_run_has_begun_is_not_published() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let stores = Stores::default();
        stores.insert(Arc::clone(&store));
        let mut target = output(&random(&[4, 4], &[2, 2], 1), "x", None);
        target.url = store.url().to_owned();
        let plan = lower(&[target], &spec(100_000_000, 1)).unwrap();
        let (first, second) = (PlainZarr::new(stores.clone()), PlainZarr::new(stores));
        first.begin(&plan).unwrap();
        second.begin(&plan).unwrap();
        assert!(matches!(first.commit(&plan, &[], &|| false), Err(SessionError::Taken { .. })));
        assert!(!exists(&*store, "x").unwrap());
        second.commit(&plan, &[], &|| false).unwrap();
        assert!(exists(&*store, "x").unwrap());
        assert!(matches!(first.check(&plan), Err(SessionError::Exists { .. })));
        assert!(read_small(&*store, "x/.freestone-claim", 100).unwrap().is_none());
    }
}
