//! What a stage reads and writes: how often its tasks ask for chunks, and for how many bytes of them, in closed form.
//!
//! The planner weighs candidates by it: it follows from the sizes of tasks and chunks, with no work per chunk, exactly where these nest and
//! nearly where they don't. What a finished plan says of its reads is counted (`read_counts`). Bytes are those of decoded chunks; codecs make
//! fewer of them.

use super::{ArrayId, Place, PlanArray, Scope, Stage, StageInput};
use crate::flat::flat_bounds;
use crate::grid::{AxisGrid, ChunkGrid};
use crate::readmap::{AxisMap, Origin, Piece};
use crate::storage::PART_BYTES;

/// How often chunks are asked for, and how many bytes that is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Traffic {
    /// Chunks, or parts of chunks, that are read; objects that are written.
    pub(crate) requests: f64,
    /// Decoded bytes of all of them.
    pub(crate) bytes: f64,
    /// The same if no chunk were read in parts.
    pub(crate) whole_bytes: f64,
    /// It is so, not nearly so.
    pub(crate) exact: bool,
    /// Chunks are read in parts.
    pub(crate) parts: bool,
}

/// What a stage reads of each array, in the order in which its inputs name them. Arrays that are made, not read, count as if they were stored.
pub(crate) fn reads(scope: Scope<'_>, stage: &Stage) -> Vec<(ArrayId, Traffic)> {
    let mut all: Vec<(ArrayId, Traffic)> = Vec::new();
    for i in 0..stage.inputs.len() {
        let mut own = of_input(scope, stage, i);
        own.retain(|(id, traffic)| match all.iter_mut().find(|(other, _)| other == id) {
            Some((_, sum)) => {
                // What one input has decoded is there for the others that go along the same axes, where it stays.
                let stays = stage.keep.iter().any(|k| k.array == *id) && alike(stage, i, *id);
                let join = |a: f64, b: f64| if stays { a.max(b) } else { a + b };
                *sum = Traffic {
                    requests: join(sum.requests, traffic.requests),
                    bytes: join(sum.bytes, traffic.bytes),
                    whole_bytes: join(sum.whole_bytes, traffic.whole_bytes),
                    exact: false,
                    parts: sum.parts && traffic.parts,
                };
                false
            }
            None => true,
        });
        all.extend(own);
    }
    all
}

/// True if an input goes along the axes of an array as the first input does that reads it.
fn alike(stage: &Stage, i: usize, array: ArrayId) -> bool {
    let along = |input: &StageInput| {
        let axes = |piece: &Piece| match &piece.from {
            Origin::Source { source, axes } if input.sources[*source] == array => Some(axes.iter().map(AxisMap::axis).collect::<Vec<_>>()),
            _ => None,
        };
        input.map.pieces().iter().find_map(axes)
    };
    stage.inputs.iter().find_map(along) == along(&stage.inputs[i])
}

/// What a stage writes to each of its outputs. Chunks of fill values may be left out.
pub(crate) fn writes(scope: Scope<'_>, stage: &Stage) -> Vec<Traffic> {
    let of = |array: &PlanArray| {
        let requests = array.info.objects().n_chunks() as f64;
        let whole = array.info.object_shape().iter().fold(array.info.dtype.size() as f64, |p, n| p * *n as f64);
        let bytes = if array.info.stored_shape.is_some() { requests * whole } else { array.info.n_bytes() as f64 };
        Traffic { requests, bytes, whole_bytes: bytes, exact: true, parts: false }
    };
    stage.outputs.iter().map(|o| of(&scope.arrays[o.array.0])).collect()
}

/// True if tasks read only what they need of an array's chunks, because these are not encoded and what is needed lies together.
pub(crate) fn in_parts(scope: Scope<'_>, stage: &Stage, array: ArrayId, axes: &[AxisMap]) -> bool {
    let array = &scope.arrays[array.0];
    let encoded = array.info.codecs.len() > 1 || array.info.shard.is_some();
    if encoded || scope.is_remote(array) || !matches!(array.place, Place::Input { .. } | Place::Work) {
        return false;
    }
    // Elements that lie together: whole axes from the last one on, and a part of the next.
    let mut together = array.info.dtype.size() as u64;
    for (map, cut) in axes.iter().zip(array.info.grid.axes()).rev() {
        let AxisMap::Along { axis, step: 1, .. } = map else { return together >= 2 * PART_BYTES };
        let Some(wanted) = stage.tasks.axes().get(*axis).map(AxisGrid::max_extent) else { return false };
        together *= wanted.min(cut.max_extent());
        if wanted < cut.max_extent() {
            break;
        }
    }
    together >= 2 * PART_BYTES
}

/// More parts of one chunk than this are not read one by one.
pub(crate) const MAX_PARTS: u64 = 2048;

/// True if every block of an input can be read straight out of an array's chunks: these are files that are not encoded, the block lies in them as
/// it does in memory, and its rows are long.
pub(crate) fn only_parts(scope: Scope<'_>, stage: &Stage, input: &StageInput) -> bool {
    let (Some(axes), [source]) = (input.map.as_image(), input.sources.as_slice()) else { return false };
    let array = &scope.arrays[source.0];
    if array.info.codecs.len() > 1 || array.info.shard.is_some() || scope.is_remote(array) || !matches!(array.place, Place::Input { .. }) {
        return false;
    }
    if !array.info.codecs.iter().all(|c| c["name"] == "bytes" && c["configuration"]["endian"].as_str().is_none_or(|e| e == "little")) {
        return false;
    }
    if stage.kernel.kind().reads_dense() {
        return false;
    }
    let block = |d: usize| stage.walk.axes()[d].max_extent().min(stage.tasks.axes()[d].max_extent());
    // Rows: whole axes from the last one on, and a part of the next.
    let (mut row, mut rows, mut whole, mut before) = (array.info.dtype.size() as u64, 1u64, true, usize::MAX);
    for (map, cut) in axes.iter().zip(array.info.grid.axes()).rev() {
        match map {
            AxisMap::Along { axis, step: 1, .. } if *axis < before => {
                let wanted = block(*axis);
                if whole {
                    row = row.saturating_mul(wanted.min(cut.max_extent()))
                } else {
                    rows = rows.saturating_mul(wanted)
                }
                whole &= wanted >= cut.max_extent() && cut.n_chunks() == 1;
                before = *axis;
            }
            AxisMap::Fixed(_) => whole &= cut.max_extent() <= 1,
            _ => return false,
        }
    }
    row >= 2 * PART_BYTES && rows <= MAX_PARTS
}

fn of_input(scope: Scope<'_>, stage: &Stage, i: usize) -> Vec<(ArrayId, Traffic)> {
    let input = &stage.inputs[i];
    let (blocks, times) = stage.kernel.kind().input_blocks(stage, i);
    let mut all: Vec<(ArrayId, Traffic)> = Vec::new();
    for piece in input.map.pieces() {
        let (id, axes) = match &piece.from {
            Origin::Fill(_) => continue,
            Origin::Flat => (input.sources[0], None),
            Origin::Source { source, axes } => (input.sources[*source], Some(axes)),
        };
        let info = &scope.arrays[id.0].info;
        let whole = info.chunk_shape().iter().fold(info.dtype.size() as f64, |p, n| p * *n as f64);
        let mean = info.n_bytes() as f64 / info.grid.n_chunks().max(1) as f64;
        let chunk = if info.stored_shape.is_some() { whole } else { mean };
        let (requests, needed, exact) = match axes {
            Some(axes) => of_piece(stage, &blocks, id, piece, axes, &info.grid),
            None => (flat_reads(&blocks, &info.grid), f64::INFINITY, false),
        };
        let (requests, whole_bytes) = (requests * times, requests * times * chunk);
        let needed = needed * times * info.dtype.size() as f64;
        let parts = needed < 0.99 * whole_bytes && axes.is_some_and(|axes| in_parts(scope, stage, id, axes));
        let found = Traffic { requests, bytes: if parts { needed } else { whole_bytes }, whole_bytes, exact, parts };
        match all.iter_mut().find(|(other, _)| *other == id) {
            Some((_, sum)) => {
                *sum = Traffic {
                    requests: sum.requests + found.requests,
                    bytes: sum.bytes + found.bytes,
                    whole_bytes: sum.whole_bytes + found.whole_bytes,
                    exact: false,
                    parts: sum.parts && found.parts,
                };
            }
            None => all.push((id, found)),
        }
    }
    all
}

/// Reads of chunks for one piece of a map, elements that are needed, again by each block, and whether the reads are exact.
fn of_piece(stage: &Stage, blocks: &ChunkGrid, array: ArrayId, piece: &Piece, axes: &[AxisMap], cuts: &ChunkGrid) -> (f64, f64, bool) {
    // Chunks that are kept stay from task to task of a sweep, else from block to block.
    let last = || (0..stage.walk.axes().len()).rev().find(|d| stage.walk.axes()[*d].n_chunks() > 1);
    let kept = if stage.keep.iter().any(|k| k.array == array) { stage.sweep.or_else(last) } else { None };
    let stays = |d: usize| kept == Some(d);
    let (mut reads, mut needed, mut exact, mut along) = (1.0, 1.0, true, vec![false; blocks.axes().len()]);
    for (map, cut) in axes.iter().zip(cuts.axes()) {
        let (AxisMap::Along { axis, .. } | AxisMap::Gather { axis, .. }) = map else { continue };
        let d = *axis;
        let (first, len) = (piece.to.start[d], piece.to.shape[d]);
        along[d] = true;
        needed *= len as f64;
        if len == 0 || cut.is_empty() {
            continue;
        }
        // The blocks as the piece has them.
        let block = if len == blocks.axes()[d].len() { blocks.axes()[d].clone() } else { blocks.axes()[d].slice(first, 1, len) };
        let n = block.n_chunks() as f64;
        let AxisMap::Along { start, step, .. } = map else {
            // Where a list looks is not gone into.
            (reads, exact) = (reads * (cut.n_chunks() as f64).min(len as f64), false);
            continue;
        };
        let touched = (cut.find(map.at(0)).abs_diff(cut.find(map.at(len - 1))) + 1) as f64;
        let (taken, chunk) = (block.max_extent() as f64 * step.unsigned_abs() as f64, cut.max_extent() as f64);
        let known = if stays(d) || n <= 1.0 || (*step == 1 && *start == 0 && cut.nests_in(&block, 0, 1)) {
            Some(touched)
        } else if touched <= 1.0 || block.nests_in(cut, *start, *step) {
            Some(n)
        } else {
            None
        };
        reads *= known.unwrap_or_else(|| (n * ((taken + chunk - 1.0) / chunk).min(touched)).max(touched));
        exact &= known.is_some() && !stays(d);
    }
    let met = |d: usize| {
        let (block, first, len) = (&blocks.axes()[d], piece.to.start[d], piece.to.shape[d]);
        if len == 0 { 1.0 } else { (block.find(first + len - 1) - block.find(first) + 1) as f64 }
    };
    let again: f64 = (0..along.len()).filter(|d| !along[*d] && !stays(*d)).map(met).product();
    (reads * again, needed * again, exact)
}

/// Reads of the chunks of an array by blocks of one of another shape: as many as a block in the middle touches, for each.
pub(crate) fn flat_reads(blocks: &ChunkGrid, cuts: &ChunkGrid) -> f64 {
    let (shape, n, chunks) = (blocks.shape(), blocks.n_chunks(), cuts.n_chunks());
    if shape.contains(&0) || n == 0 || chunks <= 1 {
        return n as f64;
    }
    let block = blocks.region(&blocks.chunk_counts().iter().map(|n| n / 2).collect::<Vec<_>>());
    let at = |last: bool| shape.iter().enumerate().fold(0, |at, (d, n)| at * n + block.start[d] + if last { block.shape[d] - 1 } else { 0 });
    let touched = cuts.overlapping(&flat_bounds(&cuts.shape(), at(false), at(true))).n_elements();
    (n as f64 * touched as f64).max(chunks as f64)
}
