//! Conflicts: the changes that a draft and other commits have both made.

use std::collections::{BTreeMap, BTreeSet};

use icechunk::diff::Diff;
use icechunk::format::{ChunkIndices, Path};
use icechunk::repository::{RepositoryErrorKind, VersionInfo};
use icechunk::session::SessionErrorKind;
use serde_json::Value;

use crate::draft::{Draft, NodeChange, ancestors, our_path};
use crate::error::{Clash, Error};
use crate::repository::{Repository, snapshot_id};
use crate::version::Version;

impl Repository {
    /// Returns the changes that a draft and the commits since its base have both made.
    pub(crate) fn clashes(
        &self,
        base: &str,
        tip: &str,
        draft: &Draft,
    ) -> Result<Vec<Clash>, Error> {
        let (from, to) = (snapshot_id(base)?, snapshot_id(tip)?);
        let diff = self.ask("compare snapshots of", move |r| async move {
            match r.diff(&VersionInfo::SnapshotId(from), &VersionInfo::SnapshotId(to)).await {
                Ok(diff) => Ok(Some(diff)),
                Err(e) if matches!(e.kind, SessionErrorKind::BadSnapshotChainForDiff) => Ok(None),
                Err(e) => Err(RepositoryErrorKind::Other(e.kind.to_string())),
            }
        })?;
        let Some(diff) = diff else { return Ok(vec![Clash::Reset]) };
        let resized = self.reshaped(
            base,
            tip,
            diff.updated_arrays.iter().map(our_path).filter(|p| draft.receipts.n_chunks(p) > 0),
        )?;
        Ok(clashes_of(&diff, &resized, draft))
    }

    /// Of arrays, those whose documents differ in more than attributes.
    fn reshaped(
        &self,
        base: &str,
        tip: &str,
        arrays: impl Iterator<Item = String>,
    ) -> Result<BTreeSet<String>, Error> {
        let document = |session: &crate::ReadonlySession, path: &str| -> Result<Value, Error> {
            let mut document = session
                .session_store()
                .parsed(path)?
                .ok_or(Error::Internal { invariant: "an array that was changed is there" })?;
            if let Some(document) = document.as_object_mut() {
                document.remove("attributes");
            }
            Ok(document)
        };
        let mut differ = BTreeSet::new();
        let mut sessions = None;
        for path in arrays {
            let (before, after) = match &mut sessions {
                Some(sessions) => sessions,
                none => none.insert((
                    self.readonly_session(&Version::Snapshot(base.to_owned()))?,
                    self.readonly_session(&Version::Snapshot(tip.to_owned()))?,
                )),
            };
            if document(before, &path)? != document(after, &path)? {
                differ.insert(path);
            }
        }
        Ok(differ)
    }
}

/// Returns the changes that a diff and a draft have both made.
fn clashes_of(diff: &Diff, reshaped: &BTreeSet<String>, draft: &Draft) -> Vec<Clash> {
    let paths = |set: &BTreeSet<Path>| set.iter().map(our_path).collect::<BTreeSet<String>>();
    let (made, gone): (BTreeSet<_>, BTreeSet<_>) = (
        &paths(&diff.new_groups) | &paths(&diff.new_arrays),
        &paths(&diff.deleted_groups) | &paths(&diff.deleted_arrays),
    );
    let updated = &paths(&diff.updated_groups) | &paths(&diff.updated_arrays);
    let arrays_made = paths(&diff.new_arrays);
    let mut moved = BTreeSet::new();
    for m in &diff.moved_nodes {
        moved.extend([our_path(&m.from), our_path(&m.to)]);
    }
    let chunks: BTreeMap<String, &BTreeSet<ChunkIndices>> =
        diff.updated_chunks.iter().map(|(path, c)| (our_path(path), c)).collect();
    let within = |path: &str, set: &BTreeSet<String>| {
        set.contains(path) || ancestors(path).any(|a| set.contains(a))
    };
    let below = |path: &str, other: &str| {
        path.is_empty()
            || other == path
            || other.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
    };
    let mut nodes = BTreeSet::new();
    for (path, change) in &draft.nodes {
        let touched = made.contains(path)
            || updated.contains(path)
            || within(path, &gone)
            || within(path, &moved);
        // A group that both have created, possibly implicitly, is not a conflict.
        let same_group = matches!(change, NodeChange::New(d) if d["node_type"] == "group")
            && diff.new_groups.iter().any(|g| our_path(g) == *path)
            && !gone.contains(path);
        // A removed node must not have been changed at or below its path.
        let inside = matches!(change, NodeChange::Removed | NodeChange::Replaced(_))
            && (made
                .iter()
                .chain(&updated)
                .chain(&moved)
                .chain(chunks.keys())
                .any(|other| below(path, other)));
        let in_array =
            change.document().is_some() && ancestors(path).any(|a| arrays_made.contains(a));
        let over_chunks = change.hides() && chunks.contains_key(path);
        if (touched && !same_group) || inside || in_array || over_chunks {
            nodes.insert(path.clone());
        }
    }
    let mut clashes = Vec::new();
    for (array, ours) in draft.receipts.arrays().filter(|(_, ours)| !ours.is_empty()) {
        if within(array, &gone) || within(array, &moved) || reshaped.contains(array) {
            nodes.insert(array.clone());
        }
        let both: Vec<Vec<u32>> = chunks
            .get(array)
            .into_iter()
            .flat_map(|c| c.iter())
            .filter(|c| ours.get(&c.0).is_some())
            .map(|c| c.0.clone())
            .collect();
        if !both.is_empty() {
            clashes.push(Clash::Chunks { array: array.clone(), chunks: both });
        }
    }
    clashes.extend(nodes.into_iter().map(|path| Clash::Node { path }));
    clashes
}
