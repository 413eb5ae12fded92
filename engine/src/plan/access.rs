//! Access patterns: the repeated chunk reads of a stage's tasks, and the number of chunks to cache
//! so that each is read once.
//!
//! An [`AccessPattern`] describes the axes of an array that an input reads, and the offset from the
//! task's position. Inputs with the same pattern read the same chunks. The number of chunks that a
//! block overlaps follows from the pattern, the block extents and the chunk grid, without visiting
//! tasks.

use crate::grid::AxisGrid;
use crate::plan::lower::Lowering;
use crate::plan::{ArrayId, ChunkCache, MAX_CACHED_CHUNKS, Stage, traffic};
use crate::readmap::{AxisMap, Origin, Piece};

/// The maximum number of distinct access patterns that are analyzed.
pub(crate) const MAX_PATTERNS: usize = 64;

/// An access pattern of inputs on an array.
#[derive(Clone, Debug)]
pub(crate) struct AccessPattern {
    array: ArrayId,
    axes: Vec<AxisPattern>,
    /// The number of inputs with this pattern.
    inputs: u64,
}

/// An access pattern along one axis of an array.
#[derive(Clone, Copy, Debug)]
struct AxisPattern {
    /// The axis of the iteration space that runs along the array's axis.
    axis: Option<usize>,
    /// The minimum offset of the read elements from the task's position.
    least: i64,
    /// The maximum offset of the read elements from the task's position.
    most: i64,
    step: u64,
    /// The total number of elements read along the axis.
    len: u64,
    /// The number of elements in a chunk.
    chunk: u64,
    /// The number of chunks.
    chunks: u64,
}

impl Lowering<'_> {
    /// Returns the access patterns of a stage's inputs. Inputs that read along the same axes at a
    /// small distance from each other share one pattern.
    pub(crate) fn access_patterns(&self, stage: &Stage) -> Vec<AccessPattern> {
        let mut patterns: Vec<AccessPattern> = Vec::new();
        for input in &stage.inputs {
            for piece in input.map.pieces() {
                let Origin::Source { source, axes } = &piece.from else { continue };
                let array = input.sources[*source];
                if traffic::in_parts(self.scope(), stage, array, axes) {
                    continue;
                }
                let grid = &self.arrays[array.0].info.grid;
                let along = axes.iter().zip(grid.axes());
                let along = along.map(|(map, axis)| AxisPattern::of(piece, map, axis)).collect();
                add_pattern(&mut patterns, array, along);
            }
            // Without a chunk cache, each distinct input decodes chunks for itself.
            let mut seen: Vec<ArrayId> = Vec::new();
            for id in &input.sources {
                if !seen.contains(id) {
                    seen.push(*id);
                    patterns.iter_mut().filter(|p| p.array == *id).for_each(|p| p.inputs += 1);
                }
            }
        }
        patterns
    }
}

/// Adds a pattern, or extends one on the same axes at a distance of at most one chunk.
fn add_pattern(patterns: &mut Vec<AccessPattern>, array: ArrayId, axes: Vec<AxisPattern>) {
    let is_near = |pattern: &&mut AccessPattern| {
        pattern.array == array && pattern.axes.iter().zip(&axes).all(|(a, b)| a.is_near(b))
    };
    if let Some(pattern) = patterns.iter_mut().find(is_near) {
        pattern.axes.iter_mut().zip(&axes).for_each(|(a, b)| a.extend(b));
    } else if patterns.len() < MAX_PATTERNS {
        patterns.push(AccessPattern { array, axes, inputs: 0 });
    }
}

impl AxisPattern {
    /// Returns the pattern of a piece along a source axis with these chunks.
    fn of(piece: &Piece, map: &AxisMap, chunks: &AxisGrid) -> AxisPattern {
        // The positions that an index list selects are not analyzed.
        let AxisMap::Along { axis, start, step } = map else {
            return AxisPattern {
                axis: None,
                least: 0,
                most: 0,
                step: 1,
                len: 1,
                chunk: 1,
                chunks: 1,
            };
        };
        let (first, len) = (piece.to.start[*axis], piece.to.shape[*axis]);
        let offset = if *step == 1 && len > 0 { *start as i64 - first as i64 } else { 0 };
        AxisPattern {
            axis: Some(*axis),
            least: offset,
            most: offset,
            step: step.unsigned_abs(),
            len,
            chunk: chunks.max_extent(),
            chunks: chunks.n_chunks(),
        }
    }

    /// Returns true if another pattern reads along the same axis at a distance of at most one
    /// chunk.
    fn is_near(&self, other: &AxisPattern) -> bool {
        let distance = self.most.max(other.most) - self.least.min(other.least);
        self.axis == other.axis && self.step == other.step && distance.unsigned_abs() <= self.chunk
    }

    /// Extends the pattern by the reads of another.
    fn extend(&mut self, other: &AxisPattern) {
        self.least = self.least.min(other.least);
        self.most = self.most.max(other.most);
        self.len = self.len.max(other.len);
    }

    /// Returns the number of chunks that one block of `n` elements overlaps.
    fn touched(&self, n: u64) -> u64 {
        let (reach, chunk) = (
            n.saturating_mul(self.step).saturating_add((self.most - self.least).unsigned_abs()),
            self.chunk.max(1),
        );
        let first = self.least.rem_euclid(chunk as i64) as u64;
        // If the block length is a multiple or a divisor of the chunk length, the block's offset
        // within a chunk is known.
        let most = if self.step == 1 && n.is_multiple_of(chunk) {
            first.saturating_add(reach - 1) / chunk + 1
        } else if self.step == 1
            && first == 0
            && self.least == self.most
            && chunk.is_multiple_of(n.max(1))
        {
            1
        } else {
            reach.saturating_add(chunk - 1).saturating_sub(1) / chunk + 1
        };
        most.clamp(1, self.chunks.max(1))
    }
}

/// Returns the reads per chunk for the worst access pattern, if chunks are cached between blocks
/// along `cached_axis`.
pub(crate) fn reads_per_chunk(
    stage: &Stage,
    patterns: &[AccessPattern],
    cached_axis: Option<usize>,
) -> f64 {
    let reads = patterns.iter().map(|pattern| pattern.reads_per_chunk(stage, cached_axis));
    reads.fold(1.0, f64::max)
}

impl AccessPattern {
    fn reads_per_chunk(&self, stage: &Stage, cached_axis: Option<usize>) -> f64 {
        let (mut reads, mut chunks) = (1.0, 1.0);
        let mut is_along = vec![false; stage.tasks.axes().len()];
        for axis in &self.axes {
            let Some(d) = axis.axis else { continue };
            is_along[d] = true;
            let block = stage.block_extent(d);
            let blocks = axis.len.div_ceil(block).max(1) as f64;
            let whole = (axis.len as f64 * axis.step as f64 / axis.chunk.max(1) as f64)
                .ceil()
                .min(axis.chunks as f64)
                .max(1.0);
            reads *= if cached_axis == Some(d) {
                whole
            } else {
                (blocks * axis.touched(block) as f64).max(whole)
            };
            chunks *= whole;
        }
        let others = (0..is_along.len()).filter(|d| !is_along[*d] && cached_axis != Some(*d));
        let repeats = others.map(|d| stage.tasks.axes()[d].n_chunks().max(1) as f64);
        let repeats: f64 = repeats.product();
        let is_shared = cached_axis.is_some() || reads <= chunks;
        let inputs = if is_shared { 1.0 } else { self.inputs.max(1) as f64 };
        reads * repeats * inputs / chunks
    }
}

/// Returns the number of chunks to cache of each array that is read repeatedly.
pub(crate) fn cached_chunks(stage: &Stage, patterns: &[AccessPattern]) -> Vec<ChunkCache> {
    let mut caches: Vec<ChunkCache> = Vec::new();
    for pattern in patterns {
        let axes = pattern.axes.iter();
        let touched = axes.filter_map(|a| a.axis.map(|d| a.touched(stage.block_extent(d))));
        let touched: u64 = touched.product();
        match caches.iter_mut().find(|cache| cache.array == pattern.array) {
            Some(cache) => cache.chunks = (cache.chunks + touched).min(MAX_CACHED_CHUNKS),
            None => caches.push(ChunkCache {
                array: pattern.array,
                chunks: touched.clamp(1, MAX_CACHED_CHUNKS),
            }),
        }
    }
    caches
}
