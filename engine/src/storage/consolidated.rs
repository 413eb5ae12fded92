//! Consolidated metadata: a group's document with the documents of everything below it, so that one
//! request tells all.
//!
//! It is a copy: an array's own document is what counts. Zarr v3 keeps it in the group's
//! `zarr.json` (as zarr-python does, which is its only definition), v2 in `.zmetadata`.

use serde_json::{Map, Value, json};

use super::{StorageError, Store, join, read_small};

/// Metadata documents are not larger.
const MAX_DOCUMENT_BYTES: u64 = 64_000_000;

/// A refresh that meets another writer each time gives up after so many rounds: then the other's is
/// as good.
const MAX_ROUNDS: usize = 16;

/// A document; `Null` if it is no JSON.
pub(crate) fn document(store: &dyn Store, key: &str) -> Result<Option<Value>, StorageError> {
    Ok(read_small(store, key, MAX_DOCUMENT_BYTES)?
        .map(|bytes| serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
}

/// A document as it is written.
pub(crate) fn pretty(document: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(document).unwrap_or_default()
}

/// True for the document of a v3 group that has consolidated metadata.
pub(crate) fn has_consolidated(group: &Value) -> bool {
    group["consolidated_metadata"]["metadata"].is_object()
}

/// The names directly below a group, if consolidated metadata tell them.
pub(super) fn names(store: &dyn Store, path: &str) -> Result<Option<Vec<String>>, StorageError> {
    let metadata = match document(store, &join(path, "zarr.json"))? {
        Some(group) => group["consolidated_metadata"]["metadata"].clone(),
        None => document(store, &join(path, ".zmetadata"))?
            .map_or(Value::Null, |d| d["metadata"].clone()),
    };
    let Some(metadata) = metadata.as_object() else { return Ok(None) };
    let first = |key: &String| {
        key.split('/')
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('.'))
            .map(str::to_owned)
    };
    let names: std::collections::BTreeSet<String> = metadata.keys().filter_map(first).collect();
    Ok(Some(names.into_iter().collect()))
}

/// Writes a group's consolidated metadata anew from the documents that are there, until they agree.
///
/// Runs that publish in one group at the same time may each undo what the other has written, but
/// not both of them last: who writes last has looked after the other had published, or looks again.
///
/// # Errors
/// Where the store fails or cannot list.
pub(crate) fn refresh(store: &dyn Store, group: &str) -> Result<(), StorageError> {
    let key = join(group, "zarr.json");
    for _ in 0..MAX_ROUNDS {
        let Some(mut document) = document(store, &key)?.filter(|d| d["node_type"] == "group")
        else {
            return Ok(());
        };
        let mut all = Map::new();
        collect(store, group, "", &mut all)?;
        if document["consolidated_metadata"]["metadata"].as_object() == Some(&all) {
            return Ok(());
        }
        document["consolidated_metadata"] =
            json!({"kind": "inline", "must_understand": false, "metadata": all});
        store.write(&key, &pretty(&document))?;
    }
    Ok(())
}

/// The documents of all arrays and groups below a group.
fn collect(
    store: &dyn Store,
    group: &str,
    prefix: &str,
    all: &mut Map<String, Value>,
) -> Result<(), StorageError> {
    let below = if group.is_empty() { String::new() } else { format!("{group}/") };
    for name in store.list(&below)?.iter().filter(|n| *n != "zarr.json" && !n.starts_with('.')) {
        let path = join(group, name);
        let Some(Value::Object(mut found)) = document(store, &join(&path, "zarr.json"))? else {
            continue;
        };
        found.remove("consolidated_metadata");
        let is_group = found.get("node_type").is_some_and(|t| t == "group");
        let name = join(prefix, name);
        all.insert(name.clone(), Value::Object(found));
        if is_group {
            collect(store, &path, &name, all)?;
        }
    }
    Ok(())
}
