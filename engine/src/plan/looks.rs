//! Repeated chunk reads of a stage's tasks, and the number of chunks to cache so that each is read
//! once.
//!
//! A [`Look`] is an access pattern: the axes of an array that an input reads, and the offset from
//! the task's position. Inputs with the same pattern read the same chunks. The number of chunks
//! that a block overlaps follows from the pattern, the block extents and the chunk grid, without
//! visiting tasks.

use crate::plan::lower::Lowering;
use crate::plan::{ArrayId, Keep, MAX_KEPT, Stage, traffic};
use crate::readmap::{AxisMap, Origin};

/// The maximum number of distinct access patterns that are analyzed.
pub(crate) const MAX_LOOKS: usize = 64;

/// An access pattern of inputs on an array.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    array: ArrayId,
    axes: Vec<Along>,
    /// The number of inputs with this pattern.
    inputs: u64,
}

/// An access pattern along one axis of an array.
#[derive(Clone, Copy, Debug)]
struct Along {
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
    pub(crate) fn looks(&self, stage: &Stage) -> Vec<Look> {
        let mut looks: Vec<Look> = Vec::new();
        for input in &stage.inputs {
            for piece in input.map.pieces() {
                let Origin::Source { source, axes } = &piece.from else { continue };
                let array = input.sources[*source];
                if traffic::in_parts(self.scope(), stage, array, axes) {
                    continue;
                }
                let cuts = self.arrays[array.0].info.grid.axes();
                let along: Vec<Along> = axes
                    .iter()
                    .zip(cuts)
                    .map(|(map, cut)| match map {
                        AxisMap::Along { axis, start, step }
                            if *step == 1 && piece.to.shape[*axis] > 0 =>
                        {
                            let shift = *start as i64 - piece.to.start[*axis] as i64;
                            Along {
                                axis: Some(*axis),
                                least: shift,
                                most: shift,
                                step: 1,
                                len: piece.to.shape[*axis],
                                chunk: cut.max_extent(),
                                chunks: cut.n_chunks(),
                            }
                        }
                        AxisMap::Along { axis, step, .. } => Along {
                            axis: Some(*axis),
                            least: 0,
                            most: 0,
                            step: step.unsigned_abs(),
                            len: piece.to.shape[*axis],
                            chunk: cut.max_extent(),
                            chunks: cut.n_chunks(),
                        },
                        // The positions that a list selects are not analyzed.
                        AxisMap::Gather { .. } | AxisMap::Fixed(_) => Along {
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
                let near = |look: &&mut Look| {
                    look.array == array
                        && look.axes.iter().zip(&along).all(|(a, b)| {
                            let apart = a.most.max(b.most) - a.least.min(b.least);
                            a.axis == b.axis && a.step == b.step && apart.unsigned_abs() <= a.chunk
                        })
                };
                let room = looks.len() < MAX_LOOKS;
                match looks.iter_mut().find(near) {
                    Some(look) => look.axes.iter_mut().zip(&along).for_each(|(a, b)| {
                        (a.least, a.most, a.len) =
                            (a.least.min(b.least), a.most.max(b.most), a.len.max(b.len));
                    }),
                    None if room => looks.push(Look { array, axes: along, inputs: 0 }),
                    None => {}
                }
            }
            // If no chunks are kept, each distinct input decodes chunks for itself.
            let mut seen: Vec<ArrayId> = Vec::new();
            for id in &input.sources {
                if !seen.contains(id) {
                    seen.push(*id);
                    looks.iter_mut().filter(|l| l.array == *id).for_each(|l| l.inputs += 1);
                }
            }
        }
        looks
    }
}

impl Along {
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
pub(crate) fn reads_per_chunk(stage: &Stage, looks: &[Look], sweep: Option<usize>) -> f64 {
    let of = |look: &Look| {
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
    looks.iter().map(of).fold(1.0, f64::max)
}

/// Returns the number of chunks to keep of each array that is read repeatedly.
pub(crate) fn keeps(stage: &Stage, looks: &[Look]) -> Vec<Keep> {
    let mut keeps: Vec<Keep> = Vec::new();
    for look in looks {
        let touched: u64 = look
            .axes
            .iter()
            .filter_map(|a| a.axis.map(|d| a.touched(stage.block_extent(d))))
            .product();
        match keeps.iter_mut().find(|k| k.array == look.array) {
            Some(keep) => keep.chunks = (keep.chunks + touched).min(MAX_KEPT),
            None => keeps.push(Keep { array: look.array, chunks: touched.clamp(1, MAX_KEPT) }),
        }
    }
    keeps
}
