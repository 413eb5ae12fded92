//! Joins of drafts that read the same blocks of common inputs into one stage.

use std::collections::{BTreeSet, HashMap};

use super::{Draft, Lowering};
use crate::grid::ChunkGrid;
use crate::memory::size;
use crate::plan::inline::push_input;
use crate::plan::{ArrayId, PlanError, StageInput, StageLayout, malformed};

/// The maximum number of outputs of a stage to which further drafts are joined.
const MAX_JOINED: usize = 64;

/// The maximum number of joins that are tried for a draft and exceed the memory.
const MAX_TRIED: usize = 64;

/// The drafts after joining, with indices for the search of candidates.
#[derive(Default)]
struct Joined {
    drafts: Vec<Draft>,
    /// The position of the draft that writes each array.
    writers: HashMap<ArrayId, usize>,
    /// The positions of the drafts that read each array by the same blocks, ascending.
    readers: HashMap<(ArrayId, ChunkGrid), Vec<usize>>,
}

/// The outcome of the search for a draft to join.
enum Search {
    /// The joined draft, and its position.
    Found(usize, Box<Draft>),
    /// No candidate fits. Holds the first candidate that exceeds the memory, if any: an output of
    /// it, and the memory of the joined stage.
    NotFound(Option<(ArrayId, u64)>),
}

impl Lowering<'_> {
    /// Joins drafts that process the same blocks of common inputs, if memory permits.
    pub(super) fn join_siblings(&mut self) -> Result<(), PlanError> {
        let mut joined = Joined::default();
        for draft in std::mem::take(&mut self.drafts) {
            let inputs = draft.inputs.iter().chain(draft.kind.kind().more_inputs());
            let reads: BTreeSet<ArrayId> = inputs.flat_map(arrays_of).collect();
            let search = self.find_sibling(&joined, &draft, &reads)?;
            let position = match &search {
                Search::Found(at, _) => *at,
                Search::NotFound(_) => joined.drafts.len(),
            };
            joined.add_indices(&draft, reads, position);
            match search {
                Search::Found(at, both) => joined.drafts[at] = *both,
                Search::NotFound(too_large) => {
                    if let Some((other, needed)) = too_large {
                        self.note_separate(draft.outputs[0], other, needed);
                    }
                    joined.drafts.push(draft);
                }
            }
        }
        self.drafts = joined.drafts;
        Ok(())
    }

    /// Searches an earlier draft that can be joined with `draft`, which reads the arrays `reads`.
    fn find_sibling(
        &self,
        joined: &Joined,
        draft: &Draft,
        reads: &BTreeSet<ArrayId>,
    ) -> Result<Search, PlanError> {
        let (mut too_large, mut tried) = (None, 0);
        for at in joined.candidates(draft, reads) {
            let other = &joined.drafts[at];
            if other.outputs.len() >= MAX_JOINED {
                continue;
            }
            let Some(both) = join(other, draft)? else { continue };
            let Some(stage) = both.kind.kind().joined_stage(&both, self) else { continue };
            let layout = StageLayout::of(self.scope(), &stage);
            let needed = layout.map_or(u64::MAX, |l| l.estimate.total());
            if needed <= self.spec.allowed_mem {
                return Ok(Search::Found(at, Box::new(both)));
            }
            too_large.get_or_insert((other.outputs[0], needed));
            tried += 1;
            if tried == MAX_TRIED {
                break;
            }
        }
        Ok(Search::NotFound(too_large))
    }

    /// Notes that the stage of `array` is separate from that of `other` because of its memory.
    fn note_separate(&mut self, array: ArrayId, other: ArrayId, needed: u64) {
        let name = &self.arrays[other.0].name;
        let note = format!(
            "not joined with the stage of `{name}`, which reads the same blocks: a task would need \
             {}, above allowed_mem",
            size(needed)
        );
        self.add_note(array, note);
    }
}

impl Joined {
    /// Returns the positions of drafts that read an input of `draft` by the same blocks. A draft
    /// may join any earlier one that no dependency of it follows.
    fn candidates(&self, draft: &Draft, reads: &BTreeSet<ArrayId>) -> Vec<usize> {
        let first = reads.iter().filter_map(|id| self.writers.get(id)).max().map_or(0, |i| i + 1);
        let inputs = draft.inputs.iter().flat_map(arrays_of);
        let shared: BTreeSet<usize> = inputs
            .filter_map(|id| self.readers.get(&(id, draft.blocks.clone())))
            .flatten()
            .copied()
            .collect();
        shared.range(first..).copied().collect()
    }

    /// Records the reads and writes of a draft at a position.
    fn add_indices(&mut self, draft: &Draft, reads: BTreeSet<ArrayId>, position: usize) {
        self.writers.extend(draft.outputs.iter().map(|id| (*id, position)));
        for id in reads {
            let positions = self.readers.entry((id, draft.blocks.clone())).or_default();
            if positions.last() != Some(&position) {
                positions.push(position);
            }
        }
    }
}

/// Returns the arrays that an input reads, or an unused id for an input without arrays, so that
/// such inputs are found too.
fn arrays_of(input: &StageInput) -> Vec<ArrayId> {
    if input.sources.is_empty() { vec![ArrayId(usize::MAX)] } else { input.sources.clone() }
}

/// Returns a draft that computes the outputs of both drafts, if they process the same blocks and
/// share an input.
fn join(a: &Draft, b: &Draft) -> Result<Option<Draft>, PlanError> {
    if a.blocks != b.blocks || !b.inputs.iter().any(|i| a.inputs.contains(i)) {
        return Ok(None);
    }
    let Some(kind) = a.kind.join(&b.kind) else { return Ok(None) };
    let mut both =
        Draft { kind, outputs: a.outputs.iter().chain(&b.outputs).copied().collect(), ..a.clone() };
    let bad = |e: freestone_kernels::ExprError| malformed(e.to_string());
    let arguments = b
        .inputs
        .iter()
        .zip(b.expr.inputs())
        .map(|(input, dtype)| push_input(&mut both, input.clone(), *dtype))
        .collect::<Result<Vec<_>, _>>()
        .map_err(bad)?;
    let results = both.expr.append(&b.expr, &arguments).map_err(bad)?;
    both.expr.add_results(&results);
    Ok(Some(both))
}
