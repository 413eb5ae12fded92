//! One plan, one commit: a plan's outputs in a session.
//!
//! A target of a plan is in a session if its store is the session's ([`WritableSession::store`]). Workers write it by the URL alone; the receipts of
//! their tasks, which know nothing of Icechunk, are enough to commit it.

use std::collections::HashMap;

use freestone_engine::plan::{ArrayId, FinalizedPlan, Mode, Place, Publication};
use freestone_engine::storage::ArrayInfo;
use freestone_engine::storage::metadata::open_array;
use freestone_engine::storage::reader::Written;
use freestone_engine::task;

use crate::commit::CommitOptions;
use crate::draft::NodeChange;
use crate::error::Error;
use crate::receipt::Receipt;
use crate::session::WritableSession;
use crate::store::Key;

/// An output in this session.
struct Output<'a> {
    path: &'a str,
    info: &'a ArrayInfo,
    publication: &'a Publication,
}

impl WritableSession {
    /// A plan's outputs that are in this session.
    fn outputs<'a>(&self, plan: &'a FinalizedPlan) -> HashMap<ArrayId, Output<'a>> {
        let url = self.store().url().to_owned();
        let output = |publication: &'a Publication| {
            let array = plan.plan().array(publication.array);
            match &array.place {
                Place::Output { url: there, path } if *there == url => Some((publication.array, Output { path, info: &array.info, publication })),
                _ => None,
            }
        };
        plan.plan().publications.iter().filter_map(output).collect()
    }

    /// Finds out whether a plan's outputs may be written here, and changes nothing.
    ///
    /// # Errors
    /// [`Error::NodeExists`] where something is that may not be replaced; [`Error::BadNode`] where a region's array is another than was planned for.
    pub fn check_plan(&self, plan: &FinalizedPlan) -> Result<(), Error> {
        for output in self.outputs(plan).values() {
            match &output.publication.mode {
                Mode::Region { tag } => {
                    let there = open_array(&self.store(), output.path)?;
                    if there.tag != *tag {
                        let why = "it is not the array any more that was planned for: plan again".to_owned();
                        return Err(Error::BadNode { path: output.path.to_owned(), why });
                    }
                }
                Mode::Whole | Mode::Metadata if output.publication.overwrite => {}
                Mode::Whole | Mode::Metadata => {
                    // What a commit that failed has made here before is its own.
                    let made = self.draft(|d| d.nodes.get(output.path).and_then(NodeChange::document).map(|d| *d == output.publication.document));
                    if made.map_or_else(|| self.document(output.path).map(|d| d.is_some()), |own| Ok(!own))? {
                        return Err(Error::NodeExists { place: self.repository().url().to_owned(), path: output.path.to_owned() });
                    }
                }
            }
        }
        Ok(())
    }

    /// Commits a plan's outputs from the receipts of its tasks: arrays are made, references set, and all of it becomes visible at once.
    ///
    /// A task that was run twice has given the same receipts twice. Where it fails, it can be called again, with all receipts.
    ///
    /// # Errors
    /// [`Error::Incomplete`] where a chunk has no receipt, and as [`check_plan`](WritableSession::check_plan) and
    /// [`commit_with`](WritableSession::commit_with). Nothing is visible then.
    pub fn commit_plan(
        &self,
        plan: &FinalizedPlan,
        receipts: impl IntoIterator<Item = task::Receipt>,
        message: &str,
        options: &CommitOptions,
    ) -> Result<String, Error> {
        self.check_plan(plan)?;
        let outputs = self.outputs(plan);
        for output in outputs.values() {
            match output.publication.mode {
                Mode::Region { .. } => {}
                Mode::Whole | Mode::Metadata => {
                    if let Some(group) = &output.publication.group
                        && self.document("")?.is_none()
                    {
                        self.create_node("", group.clone())?;
                    }
                    let document = output.publication.document.clone();
                    if self.document(output.path)?.is_some() {
                        self.replace_node(output.path, document)?;
                    } else {
                        self.create_node(output.path, document)?;
                    }
                }
            }
        }
        for receipt in receipts {
            let Some(output) = outputs.get(&receipt.array) else { continue };
            self.merge_receipts([self.receipt(output, &receipt)?])?;
        }
        for output in outputs.values().filter(|o| o.publication.mode != Mode::Metadata) {
            self.check_written(output)?;
        }
        self.commit_with(message, options)
    }

    /// A task's receipt as one of ours.
    fn receipt(&self, output: &Output<'_>, receipt: &task::Receipt) -> Result<Receipt, Error> {
        let chunk = chunk_of(output, receipt.chunk)?;
        Ok(match receipt.written {
            Written::Fill => Receipt::fill(output.path, &chunk),
            Written::Object { len, hash } => Receipt::object(self.id(), output.path, &chunk, len, hash),
        })
    }

    /// Every chunk that the plan writes of an output has a receipt.
    fn check_written(&self, output: &Output<'_>) -> Result<(), Error> {
        let wanted = output.info.objects().n_chunks();
        if self.draft(|d| d.receipts.n_chunks(output.path)) as u64 >= wanted {
            return Ok(());
        }
        let mut missing = Vec::new();
        for i in 0..wanted {
            let chunk = chunk_of(output, i)?;
            if self.draft(|d| d.receipts.get(output.path, &chunk).is_none()) {
                missing.push(chunk);
            }
        }
        match missing.first() {
            None => Ok(()),
            Some(first) => {
                let first = first.iter().map(|c| u64::from(*c)).collect();
                Err(Error::Incomplete { array: output.path.to_owned(), n_missing: missing.len() as u64, first })
            }
        }
    }
}

/// The coordinates in the stored array of the chunk or shard of that number: a region's first one is not the array's.
fn chunk_of(output: &Output<'_>, number: u64) -> Result<Vec<u32>, Error> {
    let objects = output.info.objects();
    match Key::parse(&output.info.object_key(&objects.coords(number))) {
        Key::Chunk("", chunk) if number < objects.n_chunks() => Ok(chunk),
        _ => Err(Error::NoChunk { array: output.path.to_owned(), chunk: vec![number] }),
    }
}
