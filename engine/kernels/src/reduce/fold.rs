//! The walk over a block and its accumulators.
//!
//! [`fold`] visits kept axes outermost, then strips or bands of the innermost axis, then the
//! reduced axes, so that a band of accumulators stays in the cache.

use std::ops::Range;

use super::extremes::{fold_extremes, fold_positions, pack, unpack};
use super::sums::{fold_monoid, sum_compensated};
use super::variance::fold_variance;
use super::{NO_INDEX, ReduceOp, sum_identity};
use crate::apply::{Numeric, Real};
use crate::buffer::View;
use crate::dispatch;
use crate::dtype::{Complex64, Complex128, DType, no_loop};
use crate::eval::{Evaluator, STRIP, Strip};
use crate::loops::{Nest, for_each_index};
use crate::scalar::Scalar;

/// The reduction of one result of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldSpec {
    /// The reduction.
    pub op: ReduceOp,
    /// Dtype of the folded values. For a merge of partial results, the dtype of the original
    /// values.
    pub values: DType,
}

/// A block's place among the accumulators.
#[derive(Clone, Debug)]
pub struct FoldBlock<'a> {
    /// The reductions, one per result of the expression.
    pub folds: &'a [FoldSpec],
    /// Index of the accumulator of the block's first element.
    pub offset: usize,
    /// Distance between neighbours' accumulators along each axis of the block; 0 for reduced axes.
    pub strides: &'a [isize],
    /// The number of elements already folded into each accumulator of the block.
    pub seen: u64,
    /// For a merge of partial results: the number of elements in each of them.
    pub merge: Option<u64>,
    /// For `argmin` and `argmax`: the index of the block's first element, and the distance between
    /// neighbours' indices along each axis.
    pub index: (u64, &'a [isize]),
}

/// Accumulators that stay in the cache while the reduced axes are walked. A band has several
/// strips, so that the pieces of a row are longer than a page.
const BAND: usize = 4096;

/// The number of rows from which splitting two-word accumulators pays.
const MIN_SPLIT_ROWS: usize = 4;

/// Evaluates the expression over blocks of one shape and folds its results into `accumulators`.
///
/// Cost: one pass over the inputs. Where the innermost axis is kept, bands of accumulators stay in
/// the cache while the reduced axes are walked.
pub fn fold(
    evaluator: &mut Evaluator,
    shape: &[usize],
    inputs: &[View<'_>],
    block: &FoldBlock<'_>,
    accumulators: &mut [&mut [u8]],
) {
    let k = inputs.len();
    let indexed = block.folds.iter().any(FoldSpec::is_position);
    let mut operands: Vec<&[isize]> = inputs.iter().map(|v| v.strides.as_slice()).collect();
    operands.push(block.strides);
    let mut offsets: Vec<isize> =
        inputs.iter().map(|v| v.offset as isize).chain([block.offset as isize]).collect();
    if indexed {
        operands.push(block.index.1);
        offsets.push(block.index.0 as isize);
    }
    let nest = Nest::new(shape, &operands);
    if nest.is_empty() {
        return;
    }
    let inner = nest.shape.len() - 1;
    let (kept, reduced) = (0..inner).partition(|d| nest.strides[k][*d] != 0);
    let steps: Vec<isize> = nest.strides.iter().map(|s| s[inner]).collect();
    let strips = inputs
        .iter()
        .zip(&steps)
        .map(|(v, step)| Strip { bytes: v.bytes, offset: 0, stride: *step })
        .collect();
    let walk = Walk { n_inner: nest.shape[inner], nest, kept, reduced, steps };
    let mut row = Row {
        results: evaluator.expr().results().to_vec(),
        evaluator,
        strips,
        steps: &walk.steps,
        block,
        indexed,
    };
    if walk.steps[k] == 0 {
        fold_inner_axis(&walk, &mut offsets, &mut row, accumulators);
    } else {
        fold_bands(&walk, &mut offsets, &mut row, accumulators);
    }
}

/// The loop nest of a block, by role of the axes.
struct Walk {
    nest: Nest,
    /// Kept axes, except the innermost axis.
    kept: Vec<usize>,
    /// Reduced axes, except the innermost axis.
    reduced: Vec<usize>,
    /// Length of the innermost axis.
    n_inner: usize,
    /// Each operand's stride along the innermost axis.
    steps: Vec<isize>,
}

impl Walk {
    /// Returns `offsets` moved by `start` elements along the innermost axis.
    fn moved(&self, offsets: &[isize], start: usize) -> Vec<isize> {
        offsets.iter().zip(&self.steps).map(|(o, step)| o + start as isize * step).collect()
    }
}

/// Folds blocks whose innermost axis is reduced: each strip goes into one accumulator.
fn fold_inner_axis(
    walk: &Walk,
    offsets: &mut [isize],
    row: &mut Row<'_, '_>,
    accumulators: &mut [&mut [u8]],
) {
    let per_element = row.block.merge.unwrap_or(1);
    for_each_index(&walk.nest, &walk.kept, offsets, &mut |outer| {
        let mut seen = row.block.seen;
        for start in (0..walk.n_inner).step_by(STRIP) {
            let n = STRIP.min(walk.n_inner - start);
            let mut at = walk.moved(outer, start);
            for_each_index(&walk.nest, &walk.reduced, &mut at, &mut |at| {
                row.fold(at, 0..n, seen, PairLayout::Interleaved, accumulators);
                seen += n as u64 * per_element;
            });
        }
    });
}

/// Folds blocks whose innermost axis is kept, one band of accumulators at a time.
fn fold_bands(
    walk: &Walk,
    offsets: &mut [isize],
    row: &mut Row<'_, '_>,
    accumulators: &mut [&mut [u8]],
) {
    let k = row.strips.len();
    let rows: usize = walk.reduced.iter().map(|d| walk.nest.shape[*d]).product();
    let one_index_per_row = !row.indexed || walk.steps[k + 1] == 0;
    let contiguous = walk.steps[k] == 1;
    let split =
        rows >= MIN_SPLIT_ROWS && contiguous && row.block.merge.is_none() && one_index_per_row;
    for_each_index(&walk.nest, &walk.kept, offsets, &mut |outer| {
        for start in (0..walk.n_inner).step_by(BAND) {
            let n = BAND.min(walk.n_inner - start);
            let mut at = walk.moved(outer, start);
            if split {
                fold_split_band(walk, &mut at, n, row, accumulators);
            } else {
                fold_band(walk, &mut at, n, row, |_| PairLayout::Interleaved, accumulators);
            }
        }
    });
}

/// Folds a band of `n` accumulators whose two-word pairs are split into slices meanwhile.
fn fold_split_band(
    walk: &Walk,
    at: &mut [isize],
    n: usize,
    row: &mut Row<'_, '_>,
    accumulators: &mut [&mut [u8]],
) {
    let folds = row.block.folds;
    let first = at[row.strips.len()] as usize;
    let mut indices = BandIndices::default();
    for (spec, acc) in folds.iter().zip(accumulators.iter_mut()).filter(|(f, _)| f.is_pair()) {
        pair_strips(acc, first, n).for_each(|strip| spec.split_pairs(strip, &mut indices));
    }
    let layout = |index: u64| {
        let later = indices.are_before(index);
        indices.add(index);
        PairLayout::Split { later }
    };
    fold_band(walk, at, n, row, layout, accumulators);
    for (spec, acc) in folds.iter().zip(accumulators.iter_mut()).filter(|(f, _)| f.is_pair()) {
        pair_strips(acc, first, n).for_each(|strip| spec.join_pairs(strip));
    }
}

/// Folds all rows of a band of `n` accumulators. `layout` is called with the index of each row.
fn fold_band(
    walk: &Walk,
    at: &mut [isize],
    n: usize,
    row: &mut Row<'_, '_>,
    mut layout: impl FnMut(u64) -> PairLayout,
    accumulators: &mut [&mut [u8]],
) {
    let (k, per_element) = (row.strips.len(), row.block.merge.unwrap_or(1));
    let mut seen = row.block.seen;
    for_each_index(&walk.nest, &walk.reduced, at, &mut |at| {
        let layout = layout(if row.indexed { at[k + 1] as u64 } else { 0 });
        for start in (0..n).step_by(STRIP) {
            row.fold(at, start..(start + STRIP).min(n), seen, layout, accumulators);
        }
        seen += per_element;
    });
}

/// Returns two-word accumulators, in strips.
fn pair_strips(acc: &mut [u8], first: usize, n: usize) -> std::slice::ChunksMut<'_, [u64; 2]> {
    let pairs: &mut [[u64; 2]] = bytemuck::cast_slice_mut(acc);
    pairs[first..first + n].chunks_mut(STRIP)
}

/// The state shared by all strips of a block.
struct Row<'m, 'a> {
    evaluator: &'m mut Evaluator,
    results: Vec<u32>,
    strips: Vec<Strip<'a>>,
    steps: &'m [isize],
    block: &'m FoldBlock<'m>,
    indexed: bool,
}

impl Row<'_, '_> {
    /// Evaluates and folds the elements in `range` after the offsets `at`, at most a strip.
    fn fold(
        &mut self,
        at: &[isize],
        range: Range<usize>,
        seen: u64,
        layout: PairLayout,
        accumulators: &mut [&mut [u8]],
    ) {
        let (k, n) = (self.strips.len(), range.len());
        let offset = |i: usize| at[i] + range.start as isize * self.steps[i];
        self.strips.iter_mut().enumerate().for_each(|(i, s)| s.offset = offset(i));
        self.evaluator.run(&self.strips, n);
        let index =
            if self.indexed { (offset(k + 1) as u64, self.steps[k + 1] as u64) } else { (0, 0) };
        let target = Target {
            first: offset(k) as usize,
            stride: self.steps[k] as usize,
            seen,
            merge: self.block.merge,
            index,
            layout,
        };
        for ((spec, acc), result) in
            self.block.folds.iter().zip(accumulators.iter_mut()).zip(&self.results)
        {
            fold_strip(*spec, self.evaluator.value(*result, &self.strips, n), acc, target);
        }
    }
}

/// The layout of a strip of two-word accumulators.
#[derive(Clone, Copy)]
pub(super) enum PairLayout {
    /// The words of each accumulator are neighbours.
    Interleaved,
    /// All first words, then all second words: two slices, which folds many rows faster.
    Split {
        /// For positions: the elements come after all elements folded so far.
        later: bool,
    },
}

/// The indices held by the accumulators of a band.
#[derive(Default)]
struct BandIndices {
    /// True if some accumulators hold no index.
    unset: bool,
    /// The largest index.
    last: Option<u64>,
}

impl BandIndices {
    fn add(&mut self, index: u64) {
        self.unset = false;
        self.last = self.last.max(Some(index));
    }

    fn are_before(&self, index: u64) -> bool {
        !self.unset && self.last < Some(index)
    }
}

impl FoldSpec {
    fn is_position(&self) -> bool {
        matches!(self.op, ReduceOp::Argmin | ReduceOp::Argmax)
    }

    /// Returns true if an accumulator has two words that do not form one complex number.
    fn is_pair(&self) -> bool {
        self.is_position()
            || self.op == ReduceOp::Var
            || (self.op, self.values) == (ReduceOp::Sum, DType::Float64)
    }

    /// Converts a strip of accumulators to [`PairLayout::Split`]. The values of positions become a
    /// slice of their dtype.
    fn split_pairs(&self, strip: &mut [[u64; 2]], indices: &mut BandIndices) {
        let (mut firsts, mut seconds) = ([0; STRIP], [0; STRIP]);
        let n = strip.len();
        let (firsts, seconds) = (&mut firsts[..n], &mut seconds[..n]);
        strip
            .iter()
            .zip(firsts.iter_mut().zip(seconds.iter_mut()))
            .for_each(|(pair, (first, second))| [*first, *second] = *pair);
        let (a, b) = bytemuck::cast_slice_mut::<_, u64>(strip).split_at_mut(n);
        b.copy_from_slice(seconds);
        if !self.is_position() {
            return a.copy_from_slice(firsts);
        }
        for index in seconds.iter() {
            if *index == NO_INDEX {
                indices.unset = true;
            } else {
                indices.last = indices.last.max(Some(*index));
            }
        }
        dispatch!(real, self.values, T => {
            let values: &mut [T] = bytemuck::cast_slice_mut(a);
            for (value, word) in values.iter_mut().zip(firsts) {
                *value = unpack([*word, 0]).0;
            }
        }, else => no_loop(&self.op, self.values));
    }

    /// Converts a strip back from [`PairLayout::Split`]: the inverse of [`FoldSpec::split_pairs`].
    fn join_pairs(&self, strip: &mut [[u64; 2]]) {
        let (mut firsts, mut seconds) = ([0; STRIP], [0; STRIP]);
        let n = strip.len();
        let (firsts, seconds) = (&mut firsts[..n], &mut seconds[..n]);
        let (a, b) = bytemuck::cast_slice::<_, u64>(strip).split_at(n);
        seconds.copy_from_slice(b);
        if self.is_position() {
            dispatch!(real, self.values, T => {
                let values: &[T] = bytemuck::cast_slice(a);
                for (word, value) in firsts.iter_mut().zip(values) {
                    *word = pack((*value, 0))[0];
                }
            }, else => no_loop(&self.op, self.values));
        } else {
            firsts.copy_from_slice(a);
        }
        strip
            .iter_mut()
            .zip(firsts.iter().zip(seconds.iter()))
            .for_each(|(pair, (first, second))| *pair = [*first, *second]);
    }
}

/// The accumulators of a strip: one for each element (`stride` > 0) or one for all (`stride` 0).
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// Index of the first accumulator.
    pub(super) first: usize,
    pub(super) stride: usize,
    /// The number of elements already folded into each accumulator.
    pub(super) seen: u64,
    /// For a merge of partial results: the number of elements in each of them.
    pub(super) merge: Option<u64>,
    /// For positions: the index of the first element, and the distance between neighbours' indices.
    pub(super) index: (u64, u64),
    pub(super) layout: PairLayout,
}

impl Target {
    /// Returns the first and the second words of `n` accumulators in [`PairLayout::Split`].
    pub(super) fn split<'a>(&self, acc: &'a mut [u8], n: usize) -> (&'a mut [u64], &'a mut [u64]) {
        let words: &mut [u64] = bytemuck::cast_slice_mut(acc);
        words[2 * self.first..2 * (self.first + n)].split_at_mut(n)
    }
}

/// Folds a strip of values into its accumulators.
fn fold_strip(FoldSpec { op, values: dtype }: FoldSpec, values: &[u8], acc: &mut [u8], to: Target) {
    use DType as D;
    use ReduceOp as R;
    macro_rules! real {
        ($f:ident, $($argument:expr),*) => {
            dispatch!(real, dtype, T => $f::<T>(values, acc, to, $($argument),*),
                else => no_loop(&op, dtype))
        };
    }
    macro_rules! widened {
        ($monoid:expr) => {
            match dtype {
                _ if to.merge.is_some() => match op.accumulator(dtype) {
                    Some(D::Int64) => fold_monoid(values, acc, to, |x: i64| x, $monoid),
                    Some(D::UInt64) => fold_monoid(values, acc, to, |x: u64| x, $monoid),
                    Some(D::Float64) => fold_monoid(values, acc, to, |x: f64| x, $monoid),
                    _ => fold_monoid(values, acc, to, |x: Complex128| x, $monoid),
                },
                D::Complex64 => fold_monoid(
                    values,
                    acc,
                    to,
                    |x: Complex64| Complex128::new(x.re.into(), x.im.into()),
                    $monoid,
                ),
                D::Complex128 => fold_monoid(values, acc, to, |x: Complex128| x, $monoid),
                D::Float32 => fold_monoid(values, acc, to, |x: f32| f64::from(x), $monoid),
                D::Float64 => fold_monoid(values, acc, to, |x: f64| x, $monoid),
                D::Int8 => fold_monoid(values, acc, to, |x: i8| i64::from(x), $monoid),
                D::Int16 => fold_monoid(values, acc, to, |x: i16| i64::from(x), $monoid),
                D::Int32 => fold_monoid(values, acc, to, |x: i32| i64::from(x), $monoid),
                D::Int64 => fold_monoid(values, acc, to, |x: i64| x, $monoid),
                D::UInt8 => fold_monoid(values, acc, to, |x: u8| u64::from(x), $monoid),
                D::UInt16 => fold_monoid(values, acc, to, |x: u16| u64::from(x), $monoid),
                D::UInt32 => fold_monoid(values, acc, to, |x: u32| u64::from(x), $monoid),
                D::UInt64 => fold_monoid(values, acc, to, |x: u64| x, $monoid),
                D::Bool => no_loop(&op, dtype),
            }
        };
    }
    match op {
        R::Sum if dtype == D::Float64 => sum_compensated(values, acc, to),
        R::Sum => widened!((sum_identity, Numeric::plus)),
        R::Prod => widened!((|dtype| Scalar::new(1u8).cast(dtype), Numeric::product)),
        R::Min => real!(fold_extremes, T::least),
        R::Max => real!(fold_extremes, T::greatest),
        R::Argmin => real!(fold_positions, (T::least, |x, y| x < y)),
        R::Argmax => real!(fold_positions, (T::greatest, |x, y| x > y)),
        R::Var if dtype == D::Float32 => fold_variance(values, acc, to, |x: f32| f64::from(x)),
        R::Var => fold_variance(values, acc, to, |x: f64| x),
    }
}
