//! The groups that contain targets: checks, creation and consolidated metadata.

use std::sync::Arc;

use serde_json::Value;

use super::{MAX_DOCUMENT_BYTES, PlainZarr, Target};
use crate::publish::PublishError;
use crate::storage::concurrent::concurrently;
use crate::storage::consolidated::{self, document, pretty};
use crate::storage::{StorageError, Store, join, read_small, split_location};

/// A store with a path in it.
pub(super) type Folder = (Arc<dyn Store>, String);

/// The folders that contain targets, which are or may be groups.
enum Around<'a> {
    /// A folder in a target's store, and whether its consolidation is requested.
    Inside(&'a (Arc<dyn Store>, &'a str, bool)),
    /// The folders around a store.
    Outside(&'a Arc<dyn Store>),
}

/// A group that contains targets and is created if it is missing.
pub(super) struct NewGroup<'a> {
    pub(super) store: Arc<dyn Store>,
    pub(super) key: String,
    document: &'a Value,
}

impl NewGroup<'_> {
    pub(super) fn write(&self) -> Result<(), StorageError> {
        self.store.write(&self.key, &pretty(self.document))
    }
}

/// Returns the groups that contain targets.
pub(super) fn groups_of<'a>(targets: &[Target<'a>]) -> Vec<NewGroup<'a>> {
    let mut groups: Vec<NewGroup<'a>> = Vec::new();
    for target in targets {
        let Some(document) = &target.publication.group else { continue };
        for key in target.group_keys() {
            let is_same = |g: &NewGroup<'_>| g.store.url() == target.store.url() && g.key == key;
            if !groups.iter().any(is_same) {
                groups.push(NewGroup { store: Arc::clone(&target.store), key, document });
            }
        }
    }
    groups
}

/// Checks that a store whose root becomes a group has no other contents there.
pub(super) fn check_group(store: &dyn Store) -> Result<(), PublishError> {
    let what = match document(store, "zarr.json")? {
        Some(d) if d["node_type"] != "group" => Some("an array"),
        Some(_) => None,
        None => {
            let found = concurrently(&[".zarray", ".zgroup"], |name| {
                read_small(store, name, MAX_DOCUMENT_BYTES)
            });
            match found.into_iter().collect::<Result<Vec<_>, _>>()?[..] {
                [Some(_), _] => Some("an array"),
                [None, Some(_)] => Some("a group of Zarr format 2"),
                _ => None,
            }
        }
    };
    match what {
        Some(what) => Err(PublishError::NotAGroup { place: store.url().to_owned(), what }),
        None => Ok(()),
    }
}

impl PlainZarr {
    /// Updates the consolidated metadata of all groups that contain a target and that have
    /// consolidated metadata, or are requested to. Includes groups outside the target's store.
    pub(super) fn consolidate(&self, targets: &[&Target<'_>]) -> Result<Vec<Folder>, StorageError> {
        // Each enclosing folder in a target's store, and whether consolidation is requested there.
        let mut folders: Vec<(Arc<dyn Store>, &str, bool)> = Vec::new();
        let mut stores: Vec<Arc<dyn Store>> = Vec::new();
        for target in targets {
            for (at, path) in target.folders().into_iter().enumerate() {
                let asked = at == 0 && target.publication.consolidated;
                let is_same = |(s, p, _): &&mut (Arc<dyn Store>, &str, bool)| {
                    s.url() == target.store.url() && *p == path
                };
                match folders.iter_mut().find(is_same) {
                    Some((.., is_asked)) => *is_asked |= asked,
                    None => folders.push((Arc::clone(&target.store), path, asked)),
                }
            }
            if !stores.iter().any(|s| s.url() == target.store.url()) {
                stores.push(Arc::clone(&target.store));
            }
        }
        let inside = folders.iter().map(|folder| Around::Inside(folder));
        let outside = stores.iter().map(|store| Around::Outside(store));
        let found = concurrently(&inside.chain(outside).collect::<Vec<_>>(), |around| {
            self.consolidated_groups(around)
        });
        let groups = found.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
        for (store, path) in &groups {
            consolidated::refresh(&**store, path)?;
        }
        Ok(groups)
    }

    /// Returns the groups whose consolidated metadata are updated, innermost first.
    fn consolidated_groups(&self, around: &Around<'_>) -> Result<Vec<Folder>, StorageError> {
        let store = match around {
            Around::Inside((store, path, asked)) => {
                let group = match document(&**store, &join(path, "zarr.json")) {
                    // Permission to write an array may not include permission to read its parent
                    // groups.
                    Err(StorageError::Denied { .. }) if !asked => None,
                    other => other?,
                };
                let is_wanted = group.is_some_and(|d| *asked || consolidated::has_consolidated(&d));
                return Ok(is_wanted
                    .then(|| (Arc::clone(store), (*path).to_owned()))
                    .into_iter()
                    .collect());
            }
            Around::Outside(store) => store,
        };
        let (mut groups, mut url) = (Vec::new(), store.url().to_owned());
        loop {
            let (parent, name) = split_location(&url);
            if name.is_empty() || parent == url || url.starts_with("memory://") {
                return Ok(groups);
            }
            let Ok(store) = self.stores.open(&parent) else { return Ok(groups) };
            // A missing or unreadable document means that the folder is not a group.
            match document(&*store, "zarr.json") {
                Ok(Some(group)) if group["node_type"] == "group" => {
                    if consolidated::has_consolidated(&group) {
                        groups.push((store, String::new()));
                    }
                }
                _ => return Ok(groups),
            }
            url = parent;
        }
    }
}
