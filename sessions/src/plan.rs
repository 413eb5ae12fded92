//! A plan's outputs in a session: one commit for each plan.
//!
//! An output of a plan is in a session if its store is that of the session
//! ([`WritableSession::store`]). Workers write it given only the store's URL. The engine's
//! receipts, which do not depend on Icechunk, are sufficient to commit it.

use std::collections::HashMap;
use std::sync::Arc;

use freestone_engine::plan::{ArrayId, FinalizedPlan, Mode, Place, Publication};
use freestone_engine::storage::metadata::open_array;
use freestone_engine::storage::reader::Written;
use freestone_engine::storage::{ArrayInfo, Store};
use freestone_engine::task;

use crate::commit::CommitOptions;
use crate::draft::{Draft, NodeChange};
use crate::error::Error;
use crate::key::Key;
use crate::receipt::Receipt;
use crate::session::{WritableSession, check_node};
use crate::store::SessionStore;

/// An output in this session.
pub(crate) struct Output<'a> {
    path: &'a str,
    info: &'a ArrayInfo,
    publication: &'a Publication,
}

impl WritableSession {
    /// Checks that a plan's outputs may be written to this session. Changes nothing.
    ///
    /// # Errors
    /// Returns [`Error::NodeExists`] if an output exists and may not be replaced. Returns
    /// [`Error::InvalidNode`] if the array of a region has changed since the plan was made. Returns
    /// [`Error::Elsewhere`] if an output is not in this session.
    pub fn check_plan(&self, plan: &FinalizedPlan) -> Result<(), Error> {
        check_plan(self.session_store(), plan)
    }

    /// Commits a plan's outputs from the receipts of its tasks, which become visible at once.
    ///
    /// Duplicate receipts of repeated tasks are allowed. A failed commit can be retried with all
    /// receipts.
    ///
    /// # Errors
    /// Returns [`Error::Incomplete`] if a chunk has no receipt, and the errors of
    /// [`check_plan`](WritableSession::check_plan) and
    /// [`commit_with`](WritableSession::commit_with). No change is visible then.
    pub fn commit_plan(
        &self,
        plan: &FinalizedPlan,
        receipts: impl IntoIterator<Item = task::Receipt>,
        message: &str,
        options: &CommitOptions,
    ) -> Result<String, Error> {
        take_plan(self.session_store(), plan, receipts)?;
        self.commit_with(message, options)
    }
}

/// Returns a plan's outputs, all of which must be in the session.
fn outputs<'a>(
    store: &SessionStore,
    plan: &'a FinalizedPlan,
) -> Result<HashMap<ArrayId, Output<'a>>, Error> {
    plan.plan().publications.iter().map(|p| Ok((p.array, output(store, plan, p)?))).collect()
}

pub(crate) fn output<'a>(
    store: &SessionStore,
    plan: &'a FinalizedPlan,
    publication: &'a Publication,
) -> Result<Output<'a>, Error> {
    let array = plan.plan().array(publication.array);
    match &array.place {
        Place::Output { url, path } if url == store.url() => {
            Ok(Output { path, info: &array.info, publication })
        }
        Place::Output { url, path } => Err(Error::Elsewhere {
            place: format!("{url}/{path}"),
            expected: store.url().to_owned(),
        }),
        _ => Err(Error::Elsewhere { place: array.name.clone(), expected: store.url().to_owned() }),
    }
}

pub(crate) fn check_plan(store: &Arc<SessionStore>, plan: &FinalizedPlan) -> Result<(), Error> {
    for output in outputs(store, plan)?.values() {
        match &output.publication.mode {
            Mode::Region { tag } => {
                let there = open_array(&(Arc::clone(store) as Arc<dyn Store>), output.path)?;
                if there.tag != *tag {
                    let why = "the array has changed since the plan was made (hint: plan again)"
                        .to_owned();
                    return Err(Error::InvalidNode { path: output.path.to_owned(), why });
                }
            }
            Mode::Whole | Mode::Metadata => {
                check_node(output.path, &output.publication.document)?;
                if !output.publication.overwrite
                    && !is_made(store, output)
                    && store.document(output.path)?.is_some()
                {
                    return Err(Error::NodeExists {
                        place: store.repository().url().to_owned(),
                        path: output.path.to_owned(),
                    });
                }
                for group in crate::draft::ancestors(output.path) {
                    if store.parsed(group)?.is_some_and(|d| d["node_type"] != "group") {
                        let why =
                            format!("`{group}` is an array, which cannot contain other nodes");
                        return Err(Error::InvalidNode { path: output.path.to_owned(), why });
                    }
                }
            }
        }
    }
    Ok(())
}

/// Returns true if the session has already created this array, by its user or a failed commit.
fn is_made(store: &SessionStore, output: &Output<'_>) -> bool {
    let made = |change: &NodeChange| {
        change.hides() && change.document() == Some(&output.publication.document)
    };
    store.draft().is_some_and(|d| d.nodes.get(output.path).is_some_and(made))
}

/// Adds a plan's outputs to a session's draft.
pub(crate) fn take_plan(
    store: &Arc<SessionStore>,
    plan: &FinalizedPlan,
    receipts: impl IntoIterator<Item = task::Receipt>,
) -> Result<(), Error> {
    check_plan(store, plan)?;
    let outputs = outputs(store, plan)?;
    for output in outputs.values().filter(|o| !matches!(o.publication.mode, Mode::Region { .. })) {
        if is_made(store, output) {
            // An earlier attempt may have added some of the receipts.
            if output.publication.mode == Mode::Whole {
                store.own_draft()?.receipts.remove(output.path);
            }
        }
        for (path, made) in nodes_of(store, output)? {
            change(store, path, made)?;
        }
    }
    let session = store.session_id()?.to_owned();
    for receipt in receipts {
        let Some(output) = outputs.get(&receipt.array) else {
            if matches!(plan.plan().array(receipt.array).place, Place::Output { .. }) {
                return Err(Error::Internal { invariant: "every output of a plan is published" });
            }
            // The receipt of an intermediate array.
            continue;
        };
        let receipt = ours(&session, output, &receipt)?;
        store.own_draft()?.add(receipt)?;
    }
    outputs
        .values()
        .filter(|o| o.publication.mode != Mode::Metadata)
        .try_for_each(|o| check_written(store, o))
}

/// Returns the changes of nodes by an output: the new array, and the root group if missing. Returns
/// none for a region, or if the session has created the array already.
fn nodes_of<'a>(
    store: &SessionStore,
    output: &Output<'a>,
) -> Result<Vec<(&'a str, NodeChange)>, Error> {
    let mut nodes = Vec::new();
    if matches!(output.publication.mode, Mode::Region { .. }) {
        return Ok(nodes);
    }
    if let Some(group) = &output.publication.group
        && store.document("")?.is_none()
    {
        nodes.push(("", NodeChange::New(group.clone())));
    }
    if !is_made(store, output) {
        let document = output.publication.document.clone();
        let made = if store.document(output.path)?.is_some() {
            NodeChange::Replaced(document)
        } else {
            NodeChange::New(document)
        };
        nodes.push((output.path, made));
    }
    Ok(nodes)
}

/// Returns the draft of a session including a plan's outputs.
pub(crate) fn draft_of(session: &WritableSession, plan: &FinalizedPlan) -> Result<Draft, Error> {
    let store = session.session_store();
    let mut draft = session.draft(|d| Draft { nodes: d.nodes.clone(), ..Draft::default() });
    for output in outputs(store, plan)?.values() {
        for (path, made) in nodes_of(store, output)? {
            draft.change(path, made);
        }
        // A new array conflicts as a whole.
        if matches!(output.publication.mode, Mode::Region { .. }) {
            for i in 0..output.info.objects().n_chunks() {
                draft.add(Receipt::fill(output.path, &chunk_of(output, i)?))?;
            }
        }
    }
    Ok(draft)
}

fn change(store: &SessionStore, path: &str, change: NodeChange) -> Result<(), Error> {
    store.check_open()?;
    store.own_draft()?.change(path, change);
    Ok(())
}

/// Converts an engine's receipt.
pub(crate) fn ours(
    session: &str,
    output: &Output<'_>,
    receipt: &task::Receipt,
) -> Result<Receipt, Error> {
    let chunk = chunk_of(output, receipt.chunk)?;
    Ok(match receipt.written {
        Written::Fill => Receipt::fill(output.path, &chunk),
        Written::Object { len, hash } => Receipt::object(session, output.path, &chunk, len, hash),
    })
}

/// Checks that every chunk of an output has a receipt.
fn check_written(store: &SessionStore, output: &Output<'_>) -> Result<(), Error> {
    let wanted = output.info.objects().n_chunks();
    let draft = store.own_draft()?;
    if draft.receipts.n_chunks(output.path) as u64 >= wanted {
        return Ok(());
    }
    let mut missing = Vec::new();
    for i in 0..wanted {
        let chunk = chunk_of(output, i)?;
        if draft.receipts.get(output.path, &chunk).is_none() {
            missing.push(chunk);
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(first) => {
            let first = first.iter().map(|c| u64::from(*c)).collect();
            Err(Error::Incomplete {
                array: output.path.to_owned(),
                n_missing: missing.len() as u64,
                first,
            })
        }
    }
}

/// Returns the coordinates in the stored array of a chunk or shard of an output. The first chunk of
/// a region is not that of the array.
fn chunk_of(output: &Output<'_>, number: u64) -> Result<Vec<u32>, Error> {
    let objects = output.info.objects();
    match Key::parse(&output.info.object_key(&objects.coords(number))) {
        Key::Chunk("", chunk) if number < objects.n_chunks() => Ok(chunk),
        _ => Err(Error::NoChunk { array: output.path.to_owned(), chunk: vec![number] }),
    }
}
