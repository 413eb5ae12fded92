//! The traffic of a stage in closed form: the number of chunk requests and their bytes.
//!
//! The planner compares candidates by traffic. It follows from the sizes of tasks and chunks, with
//! no work per chunk. The result is exact where task and chunk boundaries nest, and approximate
//! elsewhere. A finished plan reports counted reads instead (`read_counts`). Bytes are those of
//! decoded chunks; codecs reduce them.

use super::{ArrayId, Place, PlanArray, Scope, Stage, StageInput};
use crate::flat::flat_bounds;
use crate::grid::{AxisGrid, ChunkGrid};
use crate::readmap::{AxisMap, Origin, Piece};
use crate::storage::PART_BYTES;

/// The number of chunk requests and their bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Traffic {
    /// The number of chunks, or parts of chunks, that are read; or of objects that are written.
    pub(crate) requests: f64,
    /// The total decoded bytes of these requests.
    pub(crate) bytes: f64,
    /// The total decoded bytes if every chunk were read whole.
    pub(crate) whole_bytes: f64,
    /// True if the figures are exact, not approximate.
    pub(crate) exact: bool,
    /// True if chunks are read in parts.
    pub(crate) parts: bool,
}

/// Returns the reads of a stage from each array, in the order of its inputs. Generated arrays count
/// as if they were stored.
pub(crate) fn reads(scope: Scope<'_>, stage: &Stage) -> Vec<(ArrayId, Traffic)> {
    let mut all: Vec<(ArrayId, Traffic)> = Vec::new();
    for i in 0..stage.inputs.len() {
        let mut own = of_input(scope, stage, i);
        own.retain(|(id, traffic)| match all.iter_mut().find(|(other, _)| other == id) {
            Some((_, sum)) => {
                // Inputs that run along the same axes share decoded chunks, if chunks are cached.
                let stays = stage.cache.iter().any(|k| k.array == *id) && alike(stage, i, *id);
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

/// Returns true if an input runs along the axes of an array in the same way as the first input that
/// reads the array.
fn alike(stage: &Stage, i: usize, array: ArrayId) -> bool {
    let along = |input: &StageInput| {
        let axes = |piece: &Piece| match &piece.from {
            Origin::Source { source, axes } if input.sources[*source] == array => {
                Some(axes.iter().map(AxisMap::axis).collect::<Vec<_>>())
            }
            _ => None,
        };
        input.map.pieces().iter().find_map(axes)
    };
    stage.inputs.iter().find_map(along) == along(&stage.inputs[i])
}

/// Returns the writes of a stage to each of its outputs. A run may write fewer objects, because it
/// may omit chunks of fill values.
pub(crate) fn writes(scope: Scope<'_>, stage: &Stage) -> Vec<Traffic> {
    let of = |array: &PlanArray| {
        let requests = array.info.objects().n_chunks() as f64;
        let whole = array
            .info
            .object_shape()
            .iter()
            .fold(array.info.dtype.size() as f64, |p, n| p * *n as f64);
        let bytes = if array.info.stored_shape.is_some() {
            requests * whole
        } else {
            array.info.n_bytes() as f64
        };
        Traffic { requests, bytes, whole_bytes: bytes, exact: true, parts: false }
    };
    stage.outputs.iter().map(|o| of(&scope.arrays[o.array.0])).collect()
}

/// Returns true if tasks read only the needed parts of an array's chunks. This requires chunks that
/// are not encoded, and contiguous parts.
pub(crate) fn in_parts(scope: Scope<'_>, stage: &Stage, array: ArrayId, axes: &[AxisMap]) -> bool {
    let array = &scope.arrays[array.0];
    let encoded = array.info.codecs.len() > 1 || array.info.shard.is_some();
    if encoded
        || scope.is_remote(array)
        || !matches!(array.place, Place::Input { .. } | Place::Work)
    {
        return false;
    }
    // Contiguous elements: whole trailing axes, and a part of the next axis.
    let mut together = array.info.dtype.size() as u64;
    for (map, cut) in axes.iter().zip(array.info.grid.axes()).rev() {
        let AxisMap::Along { axis, step: 1, .. } = map else { return together >= 2 * PART_BYTES };
        let Some(wanted) = stage.tasks.axes().get(*axis).map(AxisGrid::max_extent) else {
            return false;
        };
        together *= wanted.min(cut.max_extent());
        if wanted < cut.max_extent() {
            break;
        }
    }
    together >= 2 * PART_BYTES
}

/// The maximum number of parts of one chunk that are read separately.
pub(crate) const MAX_PARTS: u64 = 2048;

/// Returns true if every block of an input can be read directly from an array's chunks.
///
/// This requires that the chunks are files without encoding, that a block has the same layout in
/// its chunks as in memory, and that its rows are long.
pub(crate) fn only_parts(scope: Scope<'_>, stage: &Stage, input: &StageInput) -> bool {
    let (Some(axes), [source]) = (input.map.as_image(), input.sources.as_slice()) else {
        return false;
    };
    let array = &scope.arrays[source.0];
    if array.info.codecs.len() > 1
        || array.info.shard.is_some()
        || scope.is_remote(array)
        || !matches!(array.place, Place::Input { .. })
    {
        return false;
    }
    if !array.info.codecs.iter().all(|c| {
        c["name"] == "bytes" && c["configuration"]["endian"].as_str().is_none_or(|e| e == "little")
    }) {
        return false;
    }
    if stage.kernel.kind().reads_dense() {
        return false;
    }
    let block =
        |d: usize| stage.blocks.axes()[d].max_extent().min(stage.tasks.axes()[d].max_extent());
    // Rows: whole trailing axes, and a part of the next axis.
    let (mut row, mut rows, mut whole, mut before) =
        (array.info.dtype.size() as u64, 1u64, true, usize::MAX);
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
        let parts = needed < 0.99 * whole_bytes
            && axes.is_some_and(|axes| in_parts(scope, stage, id, axes));
        let found = Traffic {
            requests,
            bytes: if parts { needed } else { whole_bytes },
            whole_bytes,
            exact,
            parts,
        };
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

/// Returns the chunk reads for one piece of a map, the needed elements counted for each block that
/// needs them, and whether the reads are exact.
fn of_piece(
    stage: &Stage,
    blocks: &ChunkGrid,
    array: ArrayId,
    piece: &Piece,
    axes: &[AxisMap],
    cuts: &ChunkGrid,
) -> (f64, f64, bool) {
    // Cached chunks remain from task to task along `inner_axis`, else from block to block.
    let last =
        || (0..stage.blocks.axes().len()).rev().find(|d| stage.blocks.axes()[*d].n_chunks() > 1);
    let kept = if stage.cache.iter().any(|k| k.array == array) {
        stage.inner_axis.or_else(last)
    } else {
        None
    };
    let stays = |d: usize| kept == Some(d);
    let (mut reads, mut needed, mut exact, mut along) =
        (1.0, 1.0, true, vec![false; blocks.axes().len()]);
    for (map, cut) in axes.iter().zip(cuts.axes()) {
        let (AxisMap::Along { axis, .. } | AxisMap::Gather { axis, .. }) = map else { continue };
        let d = *axis;
        let (first, len) = (piece.to.start[d], piece.to.shape[d]);
        along[d] = true;
        needed *= len as f64;
        if len == 0 || cut.is_empty() {
            continue;
        }
        // The blocks within the piece.
        let block = if len == blocks.axes()[d].len() {
            blocks.axes()[d].clone()
        } else {
            blocks.axes()[d].slice(first, 1, len)
        };
        let n = block.n_chunks() as f64;
        let AxisMap::Along { start, step, .. } = map else {
            // The positions that a list selects are not analyzed.
            (reads, exact) = (reads * (cut.n_chunks() as f64).min(len as f64), false);
            continue;
        };
        let touched = (cut.find(map.at(0)).abs_diff(cut.find(map.at(len - 1))) + 1) as f64;
        let (taken, chunk) =
            (block.max_extent() as f64 * step.unsigned_abs() as f64, cut.max_extent() as f64);
        let known =
            if stays(d) || n <= 1.0 || (*step == 1 && *start == 0 && cut.nests_in(&block, 0, 1)) {
                Some(touched)
            } else if touched <= 1.0 || block.nests_in(cut, *start, *step) {
                Some(n)
            } else {
                None
            };
        reads *= known
            .unwrap_or_else(|| (n * ((taken + chunk - 1.0) / chunk).min(touched)).max(touched));
        exact &= known.is_some() && !stays(d);
    }
    let met = |d: usize| {
        let (block, first, len) = (&blocks.axes()[d], piece.to.start[d], piece.to.shape[d]);
        if len == 0 { 1.0 } else { (block.find(first + len - 1) - block.find(first) + 1) as f64 }
    };
    let again: f64 = (0..along.len()).filter(|d| !along[*d] && !stays(*d)).map(met).product();
    (reads * again, needed * again, exact)
}

/// Returns the reads of an array's chunks by blocks of an array of another shape. Each block counts
/// as many reads as a block in the middle.
pub(crate) fn flat_reads(blocks: &ChunkGrid, cuts: &ChunkGrid) -> f64 {
    let (shape, n, chunks) = (blocks.shape(), blocks.n_chunks(), cuts.n_chunks());
    if shape.contains(&0) || n == 0 || chunks <= 1 {
        return n as f64;
    }
    let block = blocks.region(&blocks.chunk_counts().iter().map(|n| n / 2).collect::<Vec<_>>());
    let at = |last: bool| {
        shape.iter().enumerate().fold(0, |at, (d, n)| {
            at * n + block.start[d] + if last { block.shape[d] - 1 } else { 0 }
        })
    };
    let touched = cuts.overlapping(&flat_bounds(&cuts.shape(), at(false), at(true))).n_elements();
    (n as f64 * touched as f64).max(chunks as f64)
}
