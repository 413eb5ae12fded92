//! The check of a resumed run's inputs: unfinished stages read what the plan was made for.

use std::time::SystemTime;

use super::RunError;
use super::record::StoredRun;
use super::retry::retry_storage;
use crate::finished::Finished;
use crate::plan::{ArrayId, Place, PlanArray, Stage};
use crate::storage::metadata::{MetadataError, open_array};
use crate::storage::{Store, Stores, join};
use crate::system::System;

/// Checks the inputs that unfinished stages read: their metadata, and with `verify_chunks` the
/// modification time of each chunk.
///
/// # Errors
/// Returns [`RunError::InputChanged`] if an input has changed or was removed.
pub(super) fn check(
    stored: &StoredRun,
    work: &dyn Store,
    stores: &Stores,
    finished: &[Finished],
    verify_chunks: bool,
) -> Result<(), RunError> {
    // The store's own clock, if it has one.
    let began = work
        .modified(&format!("{}/plan.json", stored.address.folder))
        .map_err(RunError::Work)?
        .unwrap_or_else(|| stored.record.began());
    for (id, array) in stored.plan.plan().arrays.iter().enumerate() {
        let Place::Input { url, path, tag } = &array.place else { continue };
        let stages = unfinished_readers(&stored.plan.plan().stages, finished, ArrayId(id));
        if stages.is_empty() {
            continue;
        }
        let store = stores.open(url).map_err(RunError::Work)?;
        let input = Input { array, path, store: &store, stages, system: stores.system() };
        input.check_metadata(tag)?;
        if verify_chunks {
            input.check_chunks(if store.is_remote() { stored.record.began() } else { began })?;
        }
    }
    Ok(())
}

/// Returns the names of the unfinished stages that read an array.
fn unfinished_readers(stages: &[Stage], finished: &[Finished], array: ArrayId) -> Vec<String> {
    let is_unfinished =
        |(i, stage): &(usize, &Stage)| finished.get(*i).is_none_or(|f| f.count() < stage.n_tasks());
    let reads = |stage: &Stage| stage.inputs.iter().any(|i| i.sources.contains(&array));
    let readers = stages.iter().enumerate().filter(is_unfinished).filter(|(_, s)| reads(s));
    readers.map(|(_, s)| format!("`{}`", s.name)).collect()
}

/// An input with its unfinished readers.
struct Input<'a> {
    array: &'a PlanArray,
    path: &'a str,
    store: &'a std::sync::Arc<dyn Store>,
    stages: Vec<String>,
    system: &'a System,
}

impl Input<'_> {
    fn changed(&self, place: String, what: &'static str) -> RunError {
        RunError::InputChanged { place, what, stages: self.stages.clone() }
    }

    /// Checks that the array's metadata has the tag that the plan recorded.
    fn check_metadata(&self, tag: &str) -> Result<(), RunError> {
        let found = retry_storage(self.system, || match open_array(self.store, self.path) {
            Ok(found) => Ok(Some(found.tag)),
            Err(MetadataError::Storage(error)) => Err(error),
            Err(_) => Ok(None),
        });
        if found.map_err(RunError::Work)?.as_deref() == Some(tag) {
            Ok(())
        } else {
            Err(self.changed(self.store.place(self.path), "has changed or was removed"))
        }
    }

    /// Checks that no chunk was written or removed since `began`.
    fn check_chunks(&self, began: SystemTime) -> Result<(), RunError> {
        let objects = self.array.info.objects();
        for n in 0..objects.n_chunks() {
            let key = join(self.path, &self.array.info.object_key(&objects.coords(n)));
            let changed = retry_storage(self.system, || self.store.modified(&key));
            if changed.map_err(RunError::Work)?.is_some_and(|time| time > began) {
                return Err(self.changed(self.store.place(&key), "was written or removed"));
            }
        }
        Ok(())
    }
}
