//! Repeated chunk reads of a stage's tasks, and the number of chunks to cache so that each is read
//! once.
//!
//! A [`AccessPattern`] is an access pattern: the axes of an array that an input reads, and the offset from
//! the task's position. Inputs with the same pattern read the same chunks. The number of chunks
//! that a block overlaps follows from the pattern, the block extents and the chunk grid, without
//! visiting tasks.

use crate::plan::lower::Lowering;
use crate::plan::{ArrayId, ChunkCache, MAX_CACHED_CHUNKS, Stage, traffic};
use crate::readmap::{AxisMap, Origin};

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
    /// The minimum and maximum offset of the read elements from the task's position.
    least: i64,
    most: i64,
    step: u64,
    /// The total number of elements read along the axis.
    len: u64,
    /// The number of elements in a chunk, and the number of chunks.
    chunk: u64,
    chunks: u64,
}

impl Lowering<'_> {
    /// Returns the access patterns of a stage's inputs. Inputs that read along the same axes at a
    /// small distance from each other share one pattern.
    pub(crate) fn patterns(&self, stage: &Stage) -> Vec<AccessPattern> {
        let mut patterns: Vec<AccessPattern> = Vec::new();
        for input in &stage.inputs {
            for piece in input.map.pieces() {
                let Origin::Source { source, axes } = &piece.from else { continue };
                let array = input.sources[*source];
                if traffic::in_parts(self.scope(), stage, array, axes) {
                    continue;
                }
                let cuts = self.arrays[array.0].info.grid.axes();
                let along: Vec<AxisPattern> = axes
                    .iter()
                    .zip(cuts)
                    .map(|(map, cut)| match map {
                        AxisMap::Along { axis, start, step }
                            if *step == 1 && piece.to.shape[*axis] > 0 =>
                        {
                            let shift = *start as i64 - piece.to.start[*axis] as i64;
                            AxisPattern {
                                axis: Some(*axis),
                                least: shift,
                                most: shift,
                                step: 1,
                                len: piece.to.shape[*axis],
                                chunk: cut.max_extent(),
                                chunks: cut.n_chunks(),
                            }
                        }
                        AxisMap::Along { axis, step, .. } => AxisPattern {
                            axis: Some(*axis),
                            least: 0,
                            most: 0,
                            step: step.unsigned_abs(),
                            len: piece.to.shape[*axis],
                            chunk: cut.max_extent(),
                            chunks: cut.n_chunks(),
                        },
                        // The positions that a list selects are not analyzed.
                        AxisMap::Gather { .. } | AxisMap::Fixed(_) => AxisPattern {
                            axis: None,
                            least: 0,
                            most: 0,
                            step: 1,
                            len: 1,
                            chunk: 1,
                            chunks: 1,
                        },
                    })
                    .collect();
                let near = |look: &&mut AccessPattern| {
                    look.array == array
                        && look.axes.iter().zip(&along).all(|(a, b)| {
                            let apart = a.most.max(b.most) - a.least.min(b.least);
                            a.axis == b.axis && a.step == b.step && apart.unsigned_abs() <= a.chunk
                        })
                };
                let room = patterns.len() < MAX_PATTERNS;
                match patterns.iter_mut().find(near) {
                    Some(look) => look.axes.iter_mut().zip(&along).for_each(|(a, b)| {
                        (a.least, a.most, a.len) =
                            (a.least.min(b.least), a.most.max(b.most), a.len.max(b.len));
                    }),
                    None if room => patterns.push(AccessPattern { array, axes: along, inputs: 0 }),
                    None => {}
                }
            }
            // If no chunks are kept, each distinct input decodes chunks for itself.
            let mut seen: Vec<ArrayId> = Vec::new();
            for id in &input.sources {
                if !seen.contains(id) {
                    seen.push(*id);
                    patterns.iter_mut().filter(|l| l.array == *id).for_each(|l| l.inputs += 1);
                }
            }
        }
        patterns
    }
}

impl AxisPattern {
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

/// Returns the reads per chunk for the worst access pattern, if chunks are kept between blocks
/// along `sweep`.
pub(crate) fn reads_per_chunk(
    stage: &Stage,
    patterns: &[AccessPattern],
    sweep: Option<usize>,
) -> f64 {
    let of = |look: &AccessPattern| {
        let (mut reads, mut chunks, mut along) = (1.0, 1.0, vec![false; stage.tasks.axes().len()]);
        for axis in &look.axes {
            let Some(d) = axis.axis else { continue };
            along[d] = true;
            let block = stage.block_extent(d);
            let blocks = axis.len.div_ceil(block).max(1) as f64;
            let whole = (axis.len as f64 * axis.step as f64 / axis.chunk.max(1) as f64)
                .ceil()
                .min(axis.chunks as f64)
                .max(1.0);
            reads *= if sweep == Some(d) {
                whole
            } else {
                (blocks * axis.touched(block) as f64).max(whole)
            };
            chunks *= whole;
        }
        let others =
            stage.tasks.axes().iter().enumerate().filter(|(d, _)| !along[*d] && sweep != Some(*d));
        let again: f64 = others.map(|(_, t)| t.n_chunks().max(1) as f64).product();
        let together =
            if sweep.is_none() && reads > chunks { look.inputs.max(1) as f64 } else { 1.0 };
        reads * again * together / chunks
    };
    patterns.iter().map(of).fold(1.0, f64::max)
}

/// Returns the number of chunks to keep of each array that is read repeatedly.
pub(crate) fn cached_chunks(stage: &Stage, patterns: &[AccessPattern]) -> Vec<ChunkCache> {
    let mut cached_chunks: Vec<ChunkCache> = Vec::new();
    for look in patterns {
        let touched: u64 = look
            .axes
            .iter()
            .filter_map(|a| a.axis.map(|d| a.touched(stage.block_extent(d))))
            .product();
        match cached_chunks.iter_mut().find(|k| k.array == look.array) {
            Some(keep) => keep.chunks = (keep.chunks + touched).min(MAX_CACHED_CHUNKS),
            None => cached_chunks.push(ChunkCache {
                array: look.array,
                chunks: touched.clamp(1, MAX_CACHED_CHUNKS),
            }),
        }
    }
    cached_chunks
}
