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
        let mut own = input_reads(scope, stage, i);
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

fn input_reads(scope: Scope<'_>, stage: &Stage, i: usize) -> Vec<(ArrayId, Traffic)> {
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
        let reads = match axes {
            Some(axes) => piece_reads(stage, &blocks, id, piece, axes, &info.grid),
            None => PieceReads {
                chunks: flat_reads(&blocks, &info.grid),
                elements: f64::INFINITY,
                exact: false,
            },
        };
        let (requests, whole_bytes) = (reads.chunks * times, reads.chunks * times * chunk);
        let needed = reads.elements * times * info.dtype.size() as f64;
        let parts = needed < 0.99 * whole_bytes
            && axes.is_some_and(|axes| in_parts(scope, stage, id, axes));
        let found = Traffic {
            requests,
            bytes: if parts { needed } else { whole_bytes },
            whole_bytes,
            exact: reads.exact,
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

/// The reads of one piece of a map.
struct PieceReads {
    /// The number of chunk reads.
    chunks: f64,
    /// The number of needed elements, counted for each block that needs them.
    elements: f64,
    /// True if the figures are exact.
    exact: bool,
}

/// Returns the reads of the chunks of `grid` for one piece, by blocks of these sizes.
fn piece_reads(
    stage: &Stage,
    blocks: &ChunkGrid,
    array: ArrayId,
    piece: &Piece,
    axes: &[AxisMap],
    grid: &ChunkGrid,
) -> PieceReads {
    let cached = cached_axis(stage, array);
    let mut reads = PieceReads { chunks: 1.0, elements: 1.0, exact: true };
    let mut is_along = vec![false; blocks.axes().len()];
    for (map, chunks) in axes.iter().zip(grid.axes()) {
        let Some(d) = map.axis() else { continue };
        is_along[d] = true;
        let len = piece.to.shape[d];
        reads.elements *= len as f64;
        if len > 0 && !chunks.is_empty() {
            let (n, exact) = axis_reads(map, chunks, &blocks.axes()[d], piece, cached == Some(d));
            reads.chunks *= n;
            reads.exact &= exact;
        }
    }
    // Blocks along other axes read the same chunks again.
    let overlapped = |d: usize| {
        let (blocks, first, len) = (&blocks.axes()[d], piece.to.start[d], piece.to.shape[d]);
        if len == 0 { 1.0 } else { (blocks.find(first + len - 1) - blocks.find(first) + 1) as f64 }
    };
    let others = (0..is_along.len()).filter(|d| !is_along[*d] && cached != Some(*d));
    let repeats: f64 = others.map(overlapped).product();
    reads.chunks *= repeats;
    reads.elements *= repeats;
    reads
}

/// Returns the axis along which chunks of an array remain cached: from task to task along
/// `inner_axis`, else from block to block.
fn cached_axis(stage: &Stage, array: ArrayId) -> Option<usize> {
    if !stage.cache.iter().any(|cache| cache.array == array) {
        return None;
    }
    let axes = stage.blocks.axes();
    stage.inner_axis.or_else(|| (0..axes.len()).rev().find(|d| axes[*d].n_chunks() > 1))
}

/// Returns the reads of chunks along one source axis of a piece, and whether the number is exact.
/// `is_cached` is true if chunks remain cached along the axis.
fn axis_reads(
    map: &AxisMap,
    chunks: &AxisGrid,
    blocks: &AxisGrid,
    piece: &Piece,
    is_cached: bool,
) -> (f64, bool) {
    let d = map.axis().unwrap_or(0);
    let (first, len) = (piece.to.start[d], piece.to.shape[d]);
    let AxisMap::Along { start, step, .. } = map else {
        // The positions that a list selects are not analyzed.
        return ((chunks.n_chunks() as f64).min(len as f64), false);
    };
    // The blocks within the piece.
    let blocks = if len == blocks.len() { blocks.clone() } else { blocks.slice(first, 1, len) };
    let n = blocks.n_chunks() as f64;
    let touched = (chunks.find(map.at(0)).abs_diff(chunks.find(map.at(len - 1))) + 1) as f64;
    let is_aligned = *step == 1 && *start == 0 && chunks.nests_in(&blocks, 0, 1);
    if is_cached || n <= 1.0 || is_aligned {
        return (touched, !is_cached);
    }
    if touched <= 1.0 || blocks.nests_in(chunks, *start, *step) {
        return (n, true);
    }
    let extent = blocks.max_extent() as f64 * step.unsigned_abs() as f64;
    let chunk = chunks.max_extent() as f64;
    ((n * ((extent + chunk - 1.0) / chunk).min(touched)).max(touched), false)
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
