//! The uncommitted changes of a session: nodes and chunks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::receipt::{Receipt, Receipts};

/// A change of an array or group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NodeChange {
    /// Created where none existed.
    New(Value),
    /// Created in place of an existing one, whose chunks are removed.
    Replaced(Value),
    /// Another document, with the same chunks.
    Updated(Value),
    /// Removed with everything below it.
    Removed,
}

impl NodeChange {
    /// Returns the Zarr document after the change.
    pub(crate) fn document(&self) -> Option<&Value> {
        match self {
            NodeChange::New(document)
            | NodeChange::Replaced(document)
            | NodeChange::Updated(document) => Some(document),
            NodeChange::Removed => None,
        }
    }

    /// Returns true if the previous node is no longer visible.
    pub(crate) fn hides(&self) -> bool {
        !matches!(self, NodeChange::Updated(_))
    }
}

/// The uncommitted changes of a session.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) nodes: BTreeMap<String, NodeChange>,
    pub(crate) receipts: Receipts,
    /// The changes that were not flushed to a shared session. `None` for other sessions.
    pub(crate) pending: Option<Pending>,
}

/// Changes that were not flushed.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) nodes: BTreeMap<String, NodeChange>,
    pub(crate) receipts: Vec<Receipt>,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.receipts.is_empty()
    }
}

/// The state of a node in a draft.
pub(crate) enum Known<'a> {
    /// Changed to this document.
    Document(&'a Value),
    /// Removed.
    Gone,
    /// The same as in the base.
    Unchanged,
}

impl Draft {
    /// Returns the state of a node.
    pub(crate) fn node(&self, path: &str) -> Known<'_> {
        match self.nodes.get(path) {
            Some(change) => change.document().map_or(Known::Gone, Known::Document),
            None if ancestors(path).any(|a| {
                self.nodes
                    .get(a)
                    .is_some_and(|c| matches!(c, NodeChange::Removed | NodeChange::Replaced(_)))
            }) =>
            {
                Known::Gone
            }
            None => Known::Unchanged,
        }
    }

    /// Returns true if the base's chunks of an array are no longer visible.
    pub(crate) fn hides_chunks(&self, path: &str) -> bool {
        match self.nodes.get(path) {
            Some(change) => change.hides(),
            None => matches!(self.node(path), Known::Gone),
        }
    }

    /// Records a chunk of this writer, replacing an earlier one.
    pub(crate) fn write(&mut self, receipt: Receipt) -> Result<(), Error> {
        let told = self.pending.is_some().then(|| receipt.clone());
        self.receipts.replace(receipt)?;
        if let Some(pending) = &mut self.pending {
            pending.receipts.extend(told);
        }
        Ok(())
    }

    /// Records a chunk of a task. A duplicate changes nothing.
    pub(crate) fn add(&mut self, receipt: Receipt) -> Result<(), Error> {
        let known = self.receipts.get(&receipt.array, &receipt.chunk).is_some();
        if let (Some(pending), false) = (&mut self.pending, known) {
            pending.receipts.push(receipt.clone());
        }
        self.receipts.add(receipt)
    }

    /// Records a change of a node, and removes the receipts of nodes that it removes.
    pub(crate) fn change(&mut self, path: &str, change: NodeChange) {
        if change.hides() {
            self.receipts.remove(path);
        }
        let change = match (self.nodes.get(path), change) {
            // A new node remains new if its document changes.
            (
                Some(NodeChange::New(_)),
                NodeChange::Updated(document) | NodeChange::Replaced(document),
            ) => NodeChange::New(document),
            (Some(NodeChange::Replaced(_)), NodeChange::Updated(document)) => {
                NodeChange::Replaced(document)
            }
            (Some(NodeChange::Removed), NodeChange::New(document)) => {
                NodeChange::Replaced(document)
            }
            (_, change) => change,
        };
        if matches!(change, NodeChange::Removed) {
            let below = format!("{path}/");
            let inside: Vec<String> = self
                .nodes
                .keys()
                .filter(|p| path.is_empty() || p.starts_with(&below))
                .cloned()
                .collect();
            for path in inside {
                self.nodes.remove(&path);
                self.receipts.remove(&path);
            }
        }
        if let Some(pending) = &mut self.pending {
            pending.nodes.insert(path.to_owned(), change.clone());
        }
        self.nodes.insert(path.to_owned(), change);
    }

    /// Merges the changes of nodes by another writer.
    pub(crate) fn merge_nodes(&mut self, nodes: BTreeMap<String, NodeChange>) -> Result<(), Error> {
        for (path, change) in nodes {
            match self.nodes.get(&path) {
                None => drop(self.nodes.insert(path, change)),
                Some(known) if known.document() == change.document() => {}
                Some(_) => return Err(Error::CreatedTwice { path }),
            }
        }
        Ok(())
    }

    /// Checks that new arrays do not contain other nodes.
    pub(crate) fn check_hierarchy(&self) -> Result<(), Error> {
        let is_array = |path: &str| {
            self.nodes
                .get(path)
                .and_then(NodeChange::document)
                .is_some_and(|d| d["node_type"] == "array")
        };
        for (path, _) in self.nodes.iter().filter(|(_, change)| change.document().is_some()) {
            if let Some(array) = ancestors(path).find(|a| is_array(a)) {
                let why =
                    format!("`{array}` is created as an array, which cannot contain other nodes");
                return Err(Error::InvalidNode { path: path.clone(), why });
            }
        }
        Ok(())
    }

    /// Returns true if there are no changes.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.receipts.is_empty()
    }
}

/// Returns the paths of the groups that contain a node, innermost first. The root's path is empty.
pub(crate) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = (!path.is_empty()).then_some(path);
    std::iter::from_fn(move || {
        let above = rest?.rsplit_once('/').map_or("", |(above, _)| above);
        rest = (!above.is_empty()).then_some(above);
        Some(above)
    })
}

/// Converts a path to Icechunk's form.
pub(crate) fn icechunk_path(path: &str) -> Result<icechunk::format::Path, Error> {
    let text = format!("/{path}");
    icechunk::format::Path::try_from(text.as_str()).map_err(|e| Error::InvalidNode {
        path: path.to_owned(),
        why: format!("invalid path: {e}"),
    })
}

/// Converts a path from Icechunk's form.
pub(crate) fn our_path(path: &icechunk::format::Path) -> String {
    path.as_str().trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn groups_around_a_node() {
        assert_eq!(ancestors("a/b/c").collect::<Vec<_>>(), ["a/b", "a", ""]);
        assert_eq!(ancestors("a").collect::<Vec<_>>(), [""]);
        assert_eq!(ancestors("").count(), 0);
    }

    #[test]
    fn removed_nodes_are_hidden() {
        let mut draft = Draft::default();
        draft.write(Receipt::fill("g/a", &[0])).unwrap();
        draft.change("g", NodeChange::Removed);
        assert!(matches!(draft.node("g/a"), Known::Gone));
        assert!(draft.hides_chunks("g/a"));
        draft.change("g", NodeChange::New(json!({"node_type": "group"})));
        assert!(
            matches!(draft.nodes["g"], NodeChange::Replaced(_)),
            "the commit must still remove the previous node"
        );
        assert!(matches!(draft.node("other"), Known::Unchanged));
    }
}
