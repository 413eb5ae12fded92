//! Tasks that reduce whole shards.
//!
//! A shard is one object with one index. Tasks whose boundaries follow those of shards read each
//! shard once, with one request if it fits the worker's window.

use super::ReduceDraft;
use crate::grid::{AxisGrid, Region, try_for_each_coord};
use crate::plan::layout::StageLayout;
use crate::plan::lower::{Draft, Lowering};
use crate::plan::{OutAxis, StageOutput};
use crate::readmap::AxisMap;

/// Returns the largest extent of a shard along each axis of the iteration space, in elements; 0
/// along axes without shards.
fn shard_extents(draft: &Draft, lowering: &Lowering<'_>) -> Vec<u64> {
    let mut extents = vec![0; draft.blocks.axes().len()];
    for input in &draft.inputs {
        let (Some(maps), [id]) = (input.map.as_image(), input.sources.as_slice()) else { continue };
        let info = &lowering.arrays[id.0].info;
        if info.shard.is_none() {
            continue;
        }
        for (map, shards) in maps.iter().zip(info.objects().axes()) {
            if let AxisMap::Along { axis, start: 0, step: 1 } = map {
                extents[*axis] = shards.max_extent().max(extents[*axis]);
            }
        }
    }
    extents
}

/// Visits the contiguous rows of accumulators that belong to an object of an output, in C order:
/// the first element and the number of elements. Accumulators are in C order over the kept axes of
/// a task's region.
pub(super) fn rows(
    output: &StageOutput,
    task: &Region,
    object: &Region,
    mut visit: impl FnMut(usize, usize),
) {
    // First element, number of elements and extent of the accumulators along each kept axis.
    let kept = output.axes.iter().zip(object.start.iter().zip(&object.shape));
    let mut kept: Vec<(u64, u64, u64)> = kept
        .filter_map(|(axis, (start, n))| match axis {
            OutAxis::Kept(d) => Some((start - task.start[*d], *n, task.shape[*d])),
            OutAxis::Part(_) | OutAxis::One => None,
        })
        .collect();
    // Whole trailing axes are part of a row.
    let mut row = (0, 1, 1);
    while let Some((start, n, extent)) = kept.pop() {
        row = (start * row.2, n * row.2, extent * row.2);
        if n != extent {
            break;
        }
    }
    let counts: Vec<u64> = kept.iter().map(|(_, n, _)| *n).collect();
    let _: Result<(), ()> = try_for_each_coord(&Region::whole(&counts), |coords| {
        let outer = kept.iter().zip(coords);
        let at = outer.fold(0, |at, ((start, _, extent), i)| at * extent + start + i);
        visit((at * row.2 + row.0) as usize, row.1 as usize);
        Ok(())
    });
}

/// Returns the number of parts of an axis that one shard contains, if shards consist of whole
/// parts.
fn parts_per_shard(axis: &AxisGrid, shard: u64) -> u64 {
    let part = axis.max_extent();
    if part > 0 && shard > part && shard.is_multiple_of(part) { shard / part } else { 1 }
}

impl ReduceDraft {
    /// Returns the reduction with tasks that cover whole shards along the kept axes, if their
    /// accumulators fit the memory.
    pub(super) fn over_shards(&self, draft: &Draft, lowering: &Lowering<'_>) -> ReduceDraft {
        let extents = shard_extents(draft, lowering);
        let kept_axes = (0..extents.len()).filter(|d| !self.axes.contains(d));
        let kept: Vec<AxisGrid> = kept_axes
            .zip(&self.kept)
            .map(|(d, axis)| axis.group(parts_per_shard(axis, extents[d])))
            .collect();
        if kept == self.kept {
            return self.clone();
        }
        let whole = ReduceDraft { kept, ..self.clone() };
        let groups = whole.groups(draft, lowering);
        let fits =
            StageLayout::fits(lowering.scope(), &whole.stage(draft, &groups, None, lowering));
        if fits { whole } else { self.clone() }
    }

    /// Rounds the number of blocks that one task reduces along each reduced axis up to whole
    /// shards.
    pub(super) fn whole_shards(
        &self,
        draft: &Draft,
        lowering: &Lowering<'_>,
        groups: Vec<u64>,
    ) -> Vec<u64> {
        let extents = shard_extents(draft, lowering);
        let blocks = draft.blocks.axes();
        let whole = |(axis, n): (&usize, u64)| {
            n.next_multiple_of(parts_per_shard(&blocks[*axis], extents[*axis]))
        };
        self.axes.iter().zip(groups).map(whole).collect()
    }
}
