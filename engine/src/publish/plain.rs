//! Outputs in plain Zarr stores: metadata documents written last, claims, and locks where the store
//! supports them.

use std::sync::{Arc, Mutex, PoisonError};

use freestone_kernels::Buffer;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::{PublishError, Publisher};
use crate::plan::{FinalizedPlan, Mode, Place, Publication};
use crate::storage::consolidated::{self, document, pretty};
use crate::storage::metadata::{MetadataError, exists, open_array};
use crate::storage::reader::Written;
use crate::storage::{
    ArrayInfo, Lock, StorageError, Store, Stores, join, read_small, split_location,
};
use crate::task::Receipt;

/// The publisher for plain Zarr stores. Each array's `zarr.json` is written last, so that a killed
/// run leaves no array, and an overwrite removes it first.
///
/// A run writes a claim at each output, and does not publish an output that another run has claimed
/// since. Claims prevent two runs from publishing a mixture by accident. They are not locks:
/// protection from late writers requires a transactional store.
///
/// A region of an existing array is written in place, chunk by chunk, without a transaction. During
/// the run, and after a failed run, readers see a mixture of new and old chunks. Runs that write
/// different regions do not interfere.
///
/// In local directories, an active publisher holds a lock on its claims. Other runs are refused.
#[derive(Debug)]
pub struct PlainZarr {
    stores: Stores,
    claim: String,
    locks: Mutex<Vec<Lock>>,
}

/// The object that names the run that writes an array.
const CLAIM: &str = ".freestone-claim";

/// The maximum size in bytes of a metadata document that this module reads.
const MAX_DOCUMENT_BYTES: u64 = 64_000_000;

impl PlainZarr {
    /// Creates a publisher that uses these open stores.
    pub fn new(stores: Stores) -> PlainZarr {
        let now = stores.system().since_epoch().as_nanos();
        PlainZarr {
            stores,
            claim: format!("{}-{now}", std::process::id()),
            locks: Mutex::default(),
        }
    }

    /// Restores the publisher of a ticket. Returns `None` if the ticket is of another type.
    pub fn of_ticket(stores: Stores, ticket: &Value) -> Option<PlainZarr> {
        Some(PlainZarr {
            stores,
            claim: ticket["plain_zarr"]["claim"].as_str()?.to_owned(),
            locks: Mutex::default(),
        })
    }

    /// Locks the claim on a target for the lifetime of this publisher. Remote stores are not
    /// locked; their lock would be an object at the claim's key.
    fn lock(&self, target: &Target<'_>) -> Result<(), PublishError> {
        if target.store.is_remote() {
            return Ok(());
        }
        let lock = target
            .store
            .lock(&join(target.path, CLAIM))?
            .ok_or_else(|| PublishError::Busy { place: target.store.place(target.path) })?;
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
        Ok(())
    }

    /// Releases the locks of a previous try, which would block the next one.
    fn unlock(&self) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Returns true if the target's metadata are those that this run publishes and the location has
    /// no claim.
    fn is_published(&self, target: &Target<'_>) -> Result<bool, StorageError> {
        let there = document(&*target.store, &join(target.path, "zarr.json"))?.as_ref()
            == Some(&target.publication.document);
        Ok(there
            && read_small(&*target.store, &join(target.path, CLAIM), MAX_DOCUMENT_BYTES)?.is_none())
    }

    fn targets<'a>(&self, plan: &'a FinalizedPlan) -> Result<Vec<Target<'a>>, PublishError> {
        let mut targets = Vec::new();
        for publication in &plan.plan().publications {
            let array = plan.plan().array(publication.array);
            let Place::Output { url, path } = &array.place else {
                return Err(StorageError::internal(
                    format!("array `{}`", array.name),
                    "what is published is an output",
                )
                .into());
            };
            targets.push(Target {
                store: self.stores.open(url)?,
                path,
                info: &array.info,
                publication,
            });
        }
        Ok(targets)
    }

    /// Returns the targets that the run creates: all except regions.
    fn made<'a>(&self, plan: &'a FinalizedPlan) -> Result<Vec<Target<'a>>, PublishError> {
        Ok(self.targets(plan)?.into_iter().filter(|t| !t.is_region()).collect())
    }

    /// Updates the consolidated metadata of all groups that contain a target and that have
    /// consolidated metadata, or are requested to. Includes groups outside the target's store.
    fn consolidate(&self, targets: &[Target<'_>]) -> Result<Vec<Folder>, StorageError> {
        let mut groups: Vec<Folder> = Vec::new();
        for target in targets {
            for (at, (store, path)) in self.groups_around(target).into_iter().enumerate() {
                let asked = at == 0 && target.publication.consolidated;
                let group = match document(&*store, &join(&path, "zarr.json")) {
                    // Permission to write an array may not include permission to read its parent
                    // groups.
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

    /// Returns the folders that contain a target and are or may be groups, innermost first.
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
            // A missing or unreadable document means that the folder is not a group.
            if !matches!(document(&*store, "zarr.json"), Ok(Some(d)) if d["node_type"] == "group") {
                return around;
            }
            around.push((store, String::new()));
            url = parent;
        }
    }

    /// Returns true while no other run has claimed the location.
    fn owns(&self, target: &Target<'_>) -> Result<bool, StorageError> {
        let claim = read_small(&*target.store, &join(target.path, CLAIM), MAX_DOCUMENT_BYTES)?;
        Ok(claim.as_deref() == Some(self.claim.as_bytes()))
    }
}

/// A store with a path in it.
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

    /// Returns the keys of the documents of all enclosing groups in the target's store, innermost
    /// first.
    fn groups(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let mut path = self.path;
        while !path.is_empty() {
            path = path.rsplit_once('/').map_or("", |(group, _)| group);
            keys.push(join(path, "zarr.json"));
        }
        keys
    }

    /// Checks that the array whose region is written is still the one in the plan.
    fn check_unchanged(&self) -> Result<(), PublishError> {
        let Mode::Region { tag: expect } = &self.publication.mode else { return Ok(()) };
        match open_array(&self.store, self.path) {
            Ok(there) if there.tag == *expect => Ok(()),
            Err(MetadataError::Storage(e)) => Err(e.into()),
            _ => Err(PublishError::Changed { place: self.store.place(self.path) }),
        }
    }
}

impl Publisher for PlainZarr {
    fn check(&self, plan: &FinalizedPlan) -> Result<(), PublishError> {
        for target in self.targets(plan)? {
            let place = target.store.place(target.path);
            let store = &*target.store;
            if target.is_region() {
                target.check_unchanged()?;
                continue;
            }
            if let Some(place) = store.blocking_file(target.path) {
                return Err(PublishError::NotAGroup { place, what: "a file" });
            }
            if target.publication.group.is_some() {
                let what = match document(store, "zarr.json")? {
                    Some(d) if d["node_type"] != "group" => Some("an array"),
                    Some(_) => None,
                    None if read_small(store, ".zarray", MAX_DOCUMENT_BYTES)?.is_some() => {
                        Some("an array")
                    }
                    None if read_small(store, ".zgroup", MAX_DOCUMENT_BYTES)?.is_some() => {
                        Some("a group of Zarr format 2")
                    }
                    None => None,
                };
                if let Some(what) = what {
                    return Err(PublishError::NotAGroup { place: store.url().to_owned(), what });
                }
            }
            let claim = join(target.path, CLAIM);
            if !store.is_remote()
                && read_small(store, &claim, MAX_DOCUMENT_BYTES)?.is_some()
                && store.lock(&claim)?.is_none()
            {
                return Err(PublishError::Busy { place });
            }
            let there = exists(store, target.path)?;
            if there && !target.publication.overwrite {
                return Err(PublishError::Exists { place });
            }
            if !there && !store.url().starts_with("http") {
                // Only chunks left by a killed run may be removed. Any other object is an error.
                let prefix = if target.path.is_empty() {
                    String::new()
                } else {
                    format!("{}/", target.path)
                };
                let strange = |n: &String| !n.bytes().all(|b| b.is_ascii_digit());
                let beside = store.list(&prefix)?.into_iter().filter(|n| n != "c" && n != CLAIM);
                let inside = store
                    .list(&format!("{prefix}c/"))?
                    .into_iter()
                    .filter(strange)
                    .map(|n| format!("c/{n}"));
                let names: Vec<String> = beside.chain(inside).take(5).collect();
                if !names.is_empty() {
                    return Err(PublishError::Foreign { place, names });
                }
            }
        }
        Ok(())
    }

    fn begin(&self, plan: &FinalizedPlan) -> Result<(), PublishError> {
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
                // The enclosing groups' consolidated metadata must not list the removed array.
                self.consolidate(&[target])?;
            }
        }
        Ok(())
    }

    fn ticket(&self) -> Value {
        json!({"plain_zarr": {"claim": self.claim}})
    }

    fn resume(&self, plan: &FinalizedPlan, finished: bool) -> Result<(), PublishError> {
        self.unlock();
        for target in self.targets(plan)? {
            target.check_unchanged()?;
            let is_ours = target.is_region()
                || self.owns(&target)?
                || (finished && self.is_published(&target)?);
            if !is_ours {
                return Err(PublishError::Taken { place: target.store.place(target.path) });
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
                // Remove the folder if it is empty.
                let folder = format!("{}/", target.path);
                if folder.len() > 1
                    && target.store.list(&folder).is_ok_and(|names| names.is_empty())
                {
                    let _ = target.store.remove(&folder);
                }
            }
        }
    }

    fn is_intact(&self, plan: &FinalizedPlan, receipt: &Receipt) -> Result<bool, StorageError> {
        // A receipt for an array or a chunk that does not exist is not from this plan.
        let Some(array) = plan.plan().arrays.get(receipt.array.0) else { return Ok(false) };
        let objects = array.info.objects();
        if receipt.chunk >= objects.n_chunks() {
            return Ok(false);
        }
        let (Place::Output { url, path }, Written::Object { len, hash }) =
            (&array.place, receipt.written)
        else {
            return Ok(true);
        };
        let store = self.stores.open(url)?;
        if store.is_remote() {
            return Ok(true);
        }
        let mut buffer = Buffer::zeroed(len as usize);
        let found = store.read(
            &join(path, &array.info.object_key(&objects.coords(receipt.chunk))),
            None,
            len,
            &mut buffer,
        )?;
        Ok(found && buffer.len() as u64 == len && xxh3_64(buffer.bytes()) == hash)
    }

    fn commit(
        &self,
        plan: &FinalizedPlan,
        _receipts: &[Receipt],
        _is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<String>, PublishError> {
        for target in self.targets(plan)? {
            if target.publication.mode == Mode::Metadata {
                continue;
            }
            let objects = target.info.objects();
            let mut keys = (0..objects.n_chunks())
                .map(|i| join(target.path, &target.info.object_key(&objects.coords(i))));
            target.store.sync(&mut keys)?;
            target.check_unchanged()?;
        }
        let targets = self.made(plan)?;
        let mut left = Vec::new();
        for target in &targets {
            match (self.owns(target)?, self.is_published(target)?) {
                (true, _) => left.push(target),
                // An earlier, interrupted call has published this target.
                (false, true) => {}
                (false, false) => {
                    return Err(PublishError::Taken { place: target.store.place(target.path) });
                }
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
            let groups =
                if target.publication.group.is_some() { target.groups() } else { Vec::new() };
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

    /// The driver retries transient storage failures. A publisher's own locks must not block its
    /// retries, but must block other publishers.
    #[test]
    fn own_locks_do_not_block_retries() {
        let folder = tempfile::tempdir().unwrap();
        let mut target = output(&random(&[4, 4], &[2, 2], 1), "x", None);
        target.url = folder.path().display().to_string();
        let plan = lower(&[target], &spec(100_000_000, 1)).unwrap();
        let first = PlainZarr::new(Stores::default());
        first.begin(&plan).unwrap();
        first.begin(&plan).unwrap();
        let other = PlainZarr::new(Stores::default());
        assert!(matches!(other.check(&plan), Err(PublishError::Busy { .. })));
        let later = PlainZarr::of_ticket(Stores::default(), &first.ticket()).unwrap();
        assert!(matches!(later.resume(&plan, false), Err(PublishError::Busy { .. })));
        drop(first);
        later.resume(&plan, false).unwrap();
        later.resume(&plan, false).unwrap();
        assert!(matches!(other.check(&plan), Err(PublishError::Busy { .. })));
        drop(later);
        other.check(&plan).unwrap();
    }

    #[test]
    fn outputs_claimed_by_another_run_are_not_published() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let stores = Stores::default();
        stores.insert(Arc::clone(&store));
        let mut target = output(&random(&[4, 4], &[2, 2], 1), "x", None);
        target.url = store.url().to_owned();
        let plan = lower(&[target], &spec(100_000_000, 1)).unwrap();
        let (first, second) = (PlainZarr::new(stores.clone()), PlainZarr::new(stores));
        first.begin(&plan).unwrap();
        assert!(matches!(second.check(&plan), Err(PublishError::Busy { .. })));
        // Simulates a store without locks.
        first.unlock();
        second.begin(&plan).unwrap();
        assert!(matches!(first.commit(&plan, &[], &|| false), Err(PublishError::Taken { .. })));
        assert!(!exists(&*store, "x").unwrap());
        second.commit(&plan, &[], &|| false).unwrap();
        assert!(exists(&*store, "x").unwrap());
        assert!(matches!(first.check(&plan), Err(PublishError::Exists { .. })));
        assert!(read_small(&*store, "x/.freestone-claim", 100).unwrap().is_none());
    }
}
