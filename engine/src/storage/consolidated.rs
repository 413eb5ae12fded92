//! Consolidated metadata: a copy of all documents below a group in the group's document, which
//! readers get with one request.
//!
//! The document of an array itself has precedence. In Zarr v3, consolidated metadata is part of the
//! group's `zarr.json`, as defined by zarr-python only. In v2 it is `.zmetadata`.

use serde_json::{Map, Value, json};

use super::{StorageError, Store, join, read_small};

/// The maximum size of a metadata document in bytes.
const MAX_DOCUMENT_BYTES: u64 = 64_000_000;

/// The maximum number of rounds of a refresh. If another process writes in each round, its document
/// is equally valid.
const MAX_ROUNDS: usize = 16;

/// Reads a document. Returns `Null` if it is not valid JSON.
pub(crate) fn document(store: &dyn Store, key: &str) -> Result<Option<Value>, StorageError> {
    Ok(read_small(store, key, MAX_DOCUMENT_BYTES)?
        .map(|bytes| serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
}

/// Serializes a document.
pub(crate) fn pretty(document: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(document).unwrap_or_default()
}

/// Returns true for the document of a v3 group with consolidated metadata.
pub(crate) fn has_consolidated(group: &Value) -> bool {
    group["consolidated_metadata"]["metadata"].is_object()
}

/// Returns the names directly below a group, if the group has consolidated metadata.
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

/// Updates a group's consolidated metadata from the documents below it, until they agree.
///
/// Runs that publish in the same group concurrently may overwrite each other's update. The last
/// writer has read the documents after the other run published, or reads them again.
///
/// # Errors
/// Returns an error if the store fails or does not support listing.
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

/// Collects the documents of all arrays and groups below a group.
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
