//! Folding blocks into accumulators.
//!
//! A task that reduces walks its input chunk by chunk and folds each block, evaluated in strips,
//! into one accumulator per kept element. Accumulators are wider than the values and are what
//! partial results hold, so that these merge by the same fold. Everything is added in a fixed
//! order: the same blocks in the same order give the same bits wherever they run.
//!
//! An accumulator of two words travels as `complex128`, which is only a carrier: `(sum, error)` for
//! sums of `float64`, `(mean, sum of squared deviations)` for variances, `(value, index)` for
//! positions.

use serde::{Deserialize, Serialize};

use crate::apply::{Numeric, Real};
use crate::buffer::View;
use crate::cast::cast;
use crate::copy;
use crate::dispatch;
use crate::dtype::{Complex64, Complex128, DType, Element, Kind, no_loop};
use crate::eval::{Evaluator, STRIP, Strip};
use crate::loops::{Nest, for_each_index};
use crate::scalar::Scalar;

/// What is folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReduceOp {
    /// The sum. `float32` is added in `float64`; `float64` keeps the rounding errors of its
    /// additions as a second word (TwoSum; Knuth, TAOCP 2, 4.2.2), so that the result is as if
    /// added in twice the precision.
    Sum,
    /// The product.
    Prod,
    /// The least; NaN if there is one.
    Min,
    /// The greatest; NaN if there is one.
    Max,
    /// The index of the first least, or of the first NaN.
    Argmin,
    /// The index of the first greatest, or of the first NaN.
    Argmax,
    /// Mean and sum of squared deviations, by Welford (1962), merged by Chan, Golub & LeVeque
    /// (1979).
    Var,
}

/// What becomes of the accumulators when everything is folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// They are a partial result, to be folded again.
    #[serde(rename = "keep")]
    Partial,
    /// The value, cast to a dtype. A sum that is zero is +0.
    Value(DType),
    /// The value, cast to a dtype, with the sign of a zero: what running sums carry from part to
    /// part.
    Carry(DType),
    /// A sum divided by the number of elements, then cast.
    Mean {
        /// Elements that were folded into each accumulator.
        count: u64,
        /// The result's dtype.
        dtype: DType,
    },
    /// Squared deviations divided by the number of elements less a correction; NaN where nothing is
    /// left of that.
    Var {
        /// Elements that were folded into each accumulator.
        count: u64,
        /// What is subtracted from their number, as `float64`.
        correction: Scalar,
        /// The square root of it.
        root: bool,
        /// The result's dtype.
        dtype: DType,
    },
}

impl ReduceOp {
    /// Dtype of the accumulators for values of `dtype`, or `None` where it is not defined.
    pub fn accumulator(self, values: DType) -> Option<DType> {
        use ReduceOp as R;
        match (self, values.kind()) {
            (_, Kind::Bool) => None,
            (R::Sum | R::Prod, Kind::Signed) => Some(DType::Int64),
            (R::Sum | R::Prod, Kind::Unsigned) => Some(DType::UInt64),
            (R::Sum, Kind::Float) if values == DType::Float64 => Some(DType::Complex128),
            (R::Sum | R::Prod, Kind::Float) => Some(DType::Float64),
            (R::Sum | R::Prod, Kind::Complex) => Some(DType::Complex128),
            (R::Min | R::Max, Kind::Complex) | (R::Argmin | R::Argmax, Kind::Complex) => None,
            (R::Min | R::Max, _) => Some(values),
            (R::Argmin | R::Argmax, _) => Some(DType::Complex128),
            (R::Var, Kind::Float) => Some(DType::Complex128),
            (R::Var, _) => None,
        }
    }

    /// Dtype of what [`Finish::Value`] casts from.
    fn value(self, values: DType) -> Option<DType> {
        Some(match (self, self.accumulator(values)?) {
            (ReduceOp::Sum, _) if values == DType::Float64 => DType::Float64,
            (ReduceOp::Argmin | ReduceOp::Argmax, _) => DType::Int64,
            (ReduceOp::Var, _) => DType::Float64,
            (_, accumulator) => accumulator,
        })
    }

    /// Fills accumulators for values of `dtype` with what they hold before anything is folded.
    pub fn start(self, values: DType, accumulators: &mut [u8]) {
        match self {
            ReduceOp::Sum if values == DType::Float64 => {
                bytemuck::cast_slice_mut(accumulators).fill([-0.0f64, 0.0])
            }
            ReduceOp::Sum => {
                copy::fill(&sum_identity(self.accumulator(values).unwrap_or(values)), accumulators)
            }
            ReduceOp::Var => accumulators.fill(0),
            ReduceOp::Prod => copy::fill(
                &Scalar::new(1i64).cast(self.accumulator(values).unwrap_or(values)),
                accumulators,
            ),
            ReduceOp::Min => copy::fill(&Scalar::from_f64(values, f64::INFINITY), accumulators),
            ReduceOp::Max if values.kind() == Kind::Unsigned => accumulators.fill(0),
            ReduceOp::Max => copy::fill(&Scalar::from_f64(values, f64::NEG_INFINITY), accumulators),
            ReduceOp::Argmin | ReduceOp::Argmax => {
                bytemuck::cast_slice_mut(accumulators).fill([0, NOWHERE])
            }
        }
    }
}

impl Finish {
    /// Dtype of the result of folding values of a dtype, or `None` where that is not defined.
    pub fn dtype(self, op: ReduceOp, values: DType) -> Option<DType> {
        let accumulator = op.accumulator(values)?;
        Some(match self {
            Finish::Partial => accumulator,
            Finish::Value(dtype)
            | Finish::Carry(dtype)
            | Finish::Mean { dtype, .. }
            | Finish::Var { dtype, .. } => dtype,
        })
    }

    /// True if the accumulators are the results already, byte for byte.
    pub fn is_identity(self, op: ReduceOp, values: DType) -> bool {
        match self {
            Finish::Partial => true,
            Finish::Value(dtype) => {
                op.value(values) == Some(dtype)
                    && op.accumulator(values) == Some(dtype)
                    && !(op == ReduceOp::Sum && is_inexact(values))
            }
            Finish::Carry(dtype) => {
                op.value(values) == Some(dtype) && op.accumulator(values) == Some(dtype)
            }
            _ => false,
        }
    }

    /// Turns accumulators into results, element by element.
    pub fn apply(self, op: ReduceOp, values: DType, accumulators: &[u8], out: &mut [u8]) {
        let (Some(held), Some(value)) = (op.accumulator(values), op.value(values)) else {
            return no_loop(&op, values);
        };
        match self {
            Finish::Partial => out.copy_from_slice(accumulators),
            Finish::Value(dtype) => by_strips(held, accumulators, dtype, out, |a, o| {
                value_of(op, values, a, |v| cast(value, v, dtype, o))
            }),
            Finish::Carry(dtype) => by_strips(held, accumulators, dtype, out, |a, o| {
                carried_of(op, values, a, |v| cast(value, v, dtype, o))
            }),
            Finish::Mean { count, dtype } => by_strips(held, accumulators, dtype, out, |a, o| {
                value_of(op, values, a, |v| {
                    let scale = count as f64;
                    if value.kind() == Kind::Complex {
                        let mut mean = [Complex128::default(); STRIP];
                        let mean = &mut mean[..v.len() / value.size()];
                        cast(value, v, DType::Complex128, bytemuck::cast_slice_mut(mean));
                        mean.iter_mut().for_each(|m| *m /= scale);
                        cast(DType::Complex128, bytemuck::cast_slice(mean), dtype, o);
                    } else {
                        let mut mean = [0f64; STRIP];
                        let mean = &mut mean[..v.len() / value.size()];
                        cast(value, v, DType::Float64, bytemuck::cast_slice_mut(mean));
                        mean.iter_mut().for_each(|m| *m /= scale);
                        cast(DType::Float64, bytemuck::cast_slice(mean), dtype, o);
                    }
                });
            }),
            Finish::Var { count, correction, root, dtype } => {
                by_strips(held, accumulators, dtype, out, |a, o| {
                    let left = count as f64 - correction.get::<f64>().unwrap_or_default();
                    let mut var = [0f64; STRIP];
                    let pairs: &[[f64; 2]] = bytemuck::cast_slice(a);
                    for (v, [_, squares]) in var.iter_mut().zip(pairs) {
                        *v = if left > 0.0 { squares / left } else { f64::NAN };
                        if root {
                            *v = v.sqrt();
                        }
                    }
                    cast(DType::Float64, bytemuck::cast_slice(&var[..pairs.len()]), dtype, o);
                })
            }
        }
    }
}

/// An index that no element has.
const NOWHERE: u64 = u64::MAX;

fn by_strips(
    from: DType,
    a: &[u8],
    to: DType,
    out: &mut [u8],
    mut f: impl FnMut(&[u8], &mut [u8]),
) {
    for (a, o) in a.chunks(from.size() * STRIP).zip(out.chunks_mut(to.size() * STRIP)) {
        f(a, o);
    }
}

fn is_inexact(dtype: DType) -> bool {
    matches!(dtype.kind(), Kind::Float | Kind::Complex)
}

/// What leaves every value as it is when added to it: -0.0 for floats, since 0.0 would change the
/// sign of -0.0.
pub(crate) fn sum_identity(dtype: DType) -> Scalar {
    if is_inexact(dtype) {
        Scalar::new(Complex128::new(-0.0, -0.0)).cast(dtype)
    } else {
        Scalar::zero(dtype)
    }
}

/// Calls `f` with the values of a strip of accumulators, zeros with their signs.
fn carried_of(op: ReduceOp, values: DType, accumulators: &[u8], f: impl FnOnce(&[u8])) {
    if (op, values) != (ReduceOp::Sum, DType::Float64) {
        return f(accumulators);
    }
    let pairs: &[[f64; 2]] = bytemuck::cast_slice(accumulators);
    let mut sums = [0f64; STRIP];
    sums.iter_mut().zip(pairs).for_each(|(s, [sum, error])| {
        *s = if sum.is_finite() && *error != 0.0 { sum + error } else { *sum }
    });
    f(bytemuck::cast_slice(&sums[..pairs.len()]));
}

/// Calls `f` with the values of a strip of accumulators; sums that are zero are +0.
fn value_of(op: ReduceOp, values: DType, accumulators: &[u8], f: impl FnOnce(&[u8])) {
    match op {
        ReduceOp::Sum if values == DType::Float64 => {
            let pairs: &[[f64; 2]] = bytemuck::cast_slice(accumulators);
            let mut sums = [0f64; STRIP];
            // Beside an infinite sum its error is NaN; that of -0.0 is 0.0.
            sums.iter_mut().zip(pairs).for_each(|(s, [sum, error])| {
                *s = if sum.is_finite() { sum + error } else { *sum }
            });
            f(bytemuck::cast_slice(&sums[..pairs.len()]));
        }
        // Accumulators of other floats are `float64` or two of them.
        ReduceOp::Sum if is_inexact(values) => {
            let words: &[f64] = bytemuck::cast_slice(accumulators);
            let mut sums = [0f64; 2 * STRIP];
            sums.iter_mut().zip(words).for_each(|(s, word)| *s = word + 0.0);
            f(bytemuck::cast_slice(&sums[..words.len()]));
        }
        ReduceOp::Argmin | ReduceOp::Argmax => {
            let pairs: &[[u64; 2]] = bytemuck::cast_slice(accumulators);
            let mut indices = [0u64; STRIP];
            indices.iter_mut().zip(pairs).for_each(|(i, [_, index])| *i = *index);
            f(bytemuck::cast_slice(&indices[..pairs.len()]));
        }
        _ => f(accumulators),
    }
}

/// One result of an expression, and how it is folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldSpec {
    /// The fold.
    pub op: ReduceOp,
    /// Dtype of the values that are folded; where partial results are merged, of those that they
    /// were made of.
    pub values: DType,
}

/// Where the accumulators of a block are, and what the block is part of.
#[derive(Clone, Debug)]
pub struct FoldBlock<'a> {
    /// One per result of the expression.
    pub folds: &'a [FoldSpec],
    /// Index of the accumulator of the block's first element.
    pub offset: usize,
    /// Distance of neighbours' accumulators along each axis of the block; 0 along reduced axes.
    pub strides: &'a [isize],
    /// Elements that each accumulator of the block holds already.
    pub seen: u64,
    /// For merging partial results: the number of elements that each of them stands for.
    pub merge: Option<u64>,
    /// Index of the block's first element in the result of `argmin` and `argmax`, and its distances
    /// along each axis.
    pub index: (u64, &'a [isize]),
}

/// Accumulators that are kept together in the cache while the reduced axes are walked. Several
/// strips, so that a row is read in pieces which are longer than a page.
const BAND: usize = 4096;

/// Rows from which on accumulators of two words are taken apart.
const MANY_ROWS: usize = 4;

/// Evaluates the expression over blocks of one shape and folds its results into `accumulators`.
///
/// Cost: one pass over the inputs. Where the innermost axis is kept, bands of accumulators stay in
/// the cache while the reduced axes are walked.
pub fn fold(
    evaluator: &mut Evaluator,
    shape: &[usize],
    inputs: &[View<'_>],
    fold: &FoldBlock<'_>,
    accumulators: &mut [&mut [u8]],
) {
    let k = inputs.len();
    let mut operands: Vec<&[isize]> = inputs.iter().map(|v| v.strides.as_slice()).collect();
    operands.push(fold.strides);
    let indexed = fold.folds.iter().any(FoldSpec::is_position);
    if indexed {
        operands.push(fold.index.1);
    }
    let nest = Nest::new(shape, &operands);
    if nest.is_empty() {
        return;
    }
    let inner = nest.shape.len() - 1;
    let (n_inner, acc_stride) = (nest.shape[inner], nest.strides[k][inner]);
    // Kept axes outermost, then strips or bands of the innermost axis, then the reduced axes.
    let (kept, reduced): (Vec<usize>, Vec<usize>) =
        (0..inner).partition(|d| nest.strides[k][*d] != 0);
    let mut offsets: Vec<isize> =
        inputs.iter().map(|v| v.offset as isize).chain([fold.offset as isize]).collect();
    if indexed {
        offsets.push(fold.index.0 as isize);
    }
    let steps: Vec<isize> = nest.strides.iter().map(|s| s[inner]).collect();
    let strips = inputs
        .iter()
        .zip(&steps)
        .map(|(v, step)| Strip { bytes: v.bytes, offset: 0, stride: *step })
        .collect();
    let mut row = Row {
        results: evaluator.expr().results().to_vec(),
        evaluator,
        strips,
        steps: &steps,
        fold,
        indexed,
    };
    let per_element = fold.merge.unwrap_or(1);
    if acc_stride == 0 {
        for_each_index(&nest, &kept, &mut offsets, &mut |outer| {
            let mut seen = fold.seen;
            for start in (0..n_inner).step_by(STRIP) {
                let n = STRIP.min(n_inner - start);
                for_each_index(&nest, &reduced, &mut moved(outer, start, &steps), &mut |at| {
                    row.fold(at, 0, n, seen, Words::Paired, accumulators);
                    seen += n as u64 * per_element;
                });
            }
        });
        return;
    }
    let rows: usize = reduced.iter().map(|d| nest.shape[*d]).product();
    let fixed = !indexed || steps[k + 1] == 0;
    let apart = rows >= MANY_ROWS && acc_stride == 1 && fold.merge.is_none() && fixed;
    for_each_index(&nest, &kept, &mut offsets, &mut |outer| {
        for start in (0..n_inner).step_by(BAND) {
            let band = BAND.min(n_inner - start);
            let mut at = moved(outer, start, &steps);
            let first = at[k] as usize;
            let mut held = Held::default();
            if apart {
                for (folded, acc) in
                    fold.folds.iter().zip(accumulators.iter_mut()).filter(|(f, _)| f.is_pair())
                {
                    strips_of(acc, first, band)
                        .for_each(|strip| folded.take_apart(strip, &mut held));
                }
            }
            let mut seen = fold.seen;
            for_each_index(&nest, &reduced, &mut at, &mut |at| {
                let index = if indexed { at[k + 1] as u64 } else { 0 };
                let words = if apart {
                    Words::Apart { later: held.is_before(index) }
                } else {
                    Words::Paired
                };
                for start in (0..band).step_by(STRIP) {
                    row.fold(at, start, STRIP.min(band - start), seen, words, accumulators);
                }
                held.add(index);
                seen += per_element;
            });
            if apart {
                for (folded, acc) in
                    fold.folds.iter().zip(accumulators.iter_mut()).filter(|(f, _)| f.is_pair())
                {
                    strips_of(acc, first, band).for_each(|strip| folded.put_together(strip));
                }
            }
        }
    });
}

/// Offsets `start` elements further along the innermost axis.
fn moved(offsets: &[isize], start: usize, steps: &[isize]) -> Vec<isize> {
    offsets.iter().zip(steps).map(|(o, step)| o + start as isize * step).collect()
}

/// Accumulators of two words, by strips.
fn strips_of(acc: &mut [u8], first: usize, n: usize) -> std::slice::ChunksMut<'_, [u64; 2]> {
    let pairs: &mut [[u64; 2]] = bytemuck::cast_slice_mut(acc);
    pairs[first..first + n].chunks_mut(STRIP)
}

/// What is the same for each strip of a block.
struct Row<'m, 'a> {
    evaluator: &'m mut Evaluator,
    results: Vec<u32>,
    strips: Vec<Strip<'a>>,
    steps: &'m [isize],
    fold: &'m FoldBlock<'m>,
    indexed: bool,
}

impl Row<'_, '_> {
    /// Evaluates and folds a strip of `n` elements, which is `start` elements after the offsets.
    fn fold(
        &mut self,
        at: &[isize],
        start: usize,
        n: usize,
        seen: u64,
        words: Words,
        accumulators: &mut [&mut [u8]],
    ) {
        let (k, offset) = (self.strips.len(), |i: usize| at[i] + start as isize * self.steps[i]);
        self.strips.iter_mut().enumerate().for_each(|(i, s)| s.offset = offset(i));
        self.evaluator.run(&self.strips, n);
        let index =
            if self.indexed { (offset(k + 1) as u64, self.steps[k + 1] as u64) } else { (0, 0) };
        let spot = Spot {
            at: offset(k) as usize,
            stride: self.steps[k] as usize,
            seen,
            merge: self.fold.merge,
            index,
            words,
        };
        for ((folded, acc), result) in
            self.fold.folds.iter().zip(accumulators.iter_mut()).zip(&self.results)
        {
            fold_strip(*folded, self.evaluator.value(*result, &self.strips, n), acc, spot);
        }
    }
}

/// How the accumulators of a strip lie that have two words.
#[derive(Clone, Copy)]
enum Words {
    /// Beside each other.
    Paired,
    /// All first words, then all second ones, so that each is a slice: what folding many rows is
    /// faster with.
    Apart {
        /// For positions: the elements come after all that the accumulators stand for.
        later: bool,
    },
}

/// Which indices the accumulators of a band hold.
#[derive(Default)]
struct Held {
    /// Some of them hold none.
    nowhere: bool,
    /// The greatest.
    last: Option<u64>,
}

impl Held {
    fn add(&mut self, index: u64) {
        self.nowhere = false;
        self.last = self.last.max(Some(index));
    }

    fn is_before(&self, index: u64) -> bool {
        !self.nowhere && self.last < Some(index)
    }
}

impl FoldSpec {
    fn is_position(&self) -> bool {
        matches!(self.op, ReduceOp::Argmin | ReduceOp::Argmax)
    }

    /// True if an accumulator has two words that are not one complex number.
    fn is_pair(&self) -> bool {
        self.is_position()
            || self.op == ReduceOp::Var
            || (self.op, self.values) == (ReduceOp::Sum, DType::Float64)
    }

    /// Makes [`Words::Apart`] of a strip of accumulators. The values of positions become a slice of
    /// their dtype.
    fn take_apart(&self, strip: &mut [[u64; 2]], held: &mut Held) {
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
        seconds.iter().for_each(|index| {
            if *index == NOWHERE {
                held.nowhere = true
            } else {
                held.last = held.last.max(Some(*index))
            }
        });
        dispatch!(real, self.values, T => {
            bytemuck::cast_slice_mut::<_, T>(a).iter_mut().zip(firsts).for_each(|(value, word)| *value = unpacked([*word, 0]).0);
        }, else => no_loop(&self.op, self.values));
    }

    /// The reverse of [`FoldSpec::take_apart`].
    fn put_together(&self, strip: &mut [[u64; 2]]) {
        let (mut firsts, mut seconds) = ([0; STRIP], [0; STRIP]);
        let n = strip.len();
        let (firsts, seconds) = (&mut firsts[..n], &mut seconds[..n]);
        let (a, b) = bytemuck::cast_slice::<_, u64>(strip).split_at(n);
        seconds.copy_from_slice(b);
        if self.is_position() {
            dispatch!(real, self.values, T => {
                firsts.iter_mut().zip(bytemuck::cast_slice::<_, T>(a)).for_each(|(word, value)| *word = packed((*value, 0))[0]);
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

/// Where a strip goes: into `n` accumulators (`stride` > 0) or into one (`stride` 0).
#[derive(Clone, Copy)]
struct Spot {
    at: usize,
    stride: usize,
    seen: u64,
    merge: Option<u64>,
    index: (u64, u64),
    words: Words,
}

impl Spot {
    /// First and second words of accumulators that are apart.
    fn apart<'a>(&self, acc: &'a mut [u8], n: usize) -> (&'a mut [u64], &'a mut [u64]) {
        bytemuck::cast_slice_mut::<_, u64>(acc)[2 * self.at..2 * (self.at + n)].split_at_mut(n)
    }
}

fn fold_strip(FoldSpec { op, values: dtype }: FoldSpec, values: &[u8], acc: &mut [u8], spot: Spot) {
    use DType as D;
    use ReduceOp as R;
    macro_rules! widened {
        ($monoid:expr) => {
            match dtype {
                _ if spot.merge.is_some() => match op.accumulator(dtype) {
                    Some(D::Int64) => total(values, acc, spot, |x: i64| x, $monoid),
                    Some(D::UInt64) => total(values, acc, spot, |x: u64| x, $monoid),
                    Some(D::Float64) => total(values, acc, spot, |x: f64| x, $monoid),
                    _ => total(values, acc, spot, |x: Complex128| x, $monoid),
                },
                D::Complex64 => total(
                    values,
                    acc,
                    spot,
                    |x: Complex64| Complex128::new(x.re.into(), x.im.into()),
                    $monoid,
                ),
                D::Complex128 => total(values, acc, spot, |x: Complex128| x, $monoid),
                D::Float32 => total(values, acc, spot, |x: f32| f64::from(x), $monoid),
                D::Float64 => total(values, acc, spot, |x: f64| x, $monoid),
                D::Int8 => total(values, acc, spot, |x: i8| i64::from(x), $monoid),
                D::Int16 => total(values, acc, spot, |x: i16| i64::from(x), $monoid),
                D::Int32 => total(values, acc, spot, |x: i32| i64::from(x), $monoid),
                D::Int64 => total(values, acc, spot, |x: i64| x, $monoid),
                D::UInt8 => total(values, acc, spot, |x: u8| u64::from(x), $monoid),
                D::UInt16 => total(values, acc, spot, |x: u16| u64::from(x), $monoid),
                D::UInt32 => total(values, acc, spot, |x: u32| u64::from(x), $monoid),
                D::UInt64 => total(values, acc, spot, |x: u64| x, $monoid),
                D::Bool => no_loop(&op, dtype),
            }
        };
    }
    match op {
        R::Sum if dtype == D::Float64 => sum_twice(values, acc, spot),
        R::Sum => widened!((sum_identity, Numeric::plus)),
        R::Prod => widened!((|dtype| Scalar::new(1u8).cast(dtype), Numeric::product)),
        R::Min => {
            dispatch!(real, dtype, T => extreme::<T>(values, acc, spot, T::least), else => no_loop(&op, dtype))
        }
        R::Max => {
            dispatch!(real, dtype, T => extreme::<T>(values, acc, spot, T::greatest), else => no_loop(&op, dtype))
        }
        R::Argmin => {
            dispatch!(real, dtype, T => position::<T>(values, acc, spot, (T::least, |x, y| x < y)), else => no_loop(&op, dtype))
        }
        R::Argmax => {
            dispatch!(real, dtype, T => position::<T>(values, acc, spot, (T::greatest, |x, y| x > y)), else => no_loop(&op, dtype))
        }
        R::Var if dtype == D::Float32 => variance(values, acc, spot, |x: f32| f64::from(x)),
        R::Var => variance(values, acc, spot, |x: f64| x),
    }
}

wide_fn! {
    fn each<T, A, F>(acc: &mut [A], values: &[T], f: F) where {T: Copy, A: Copy, F: Fn(A, T) -> A} {
        for (a, x) in acc.iter_mut().zip(values) { *a = f(*a, *x); }
    }
}

/// Folds each value into its own accumulator.
fn spread<T: Copy, A: Copy>(values: &[T], acc: &mut [A], spot: Spot, f: impl Fn(A, T) -> A) {
    if spot.stride == 1 {
        return each(&mut acc[spot.at..spot.at + values.len()], values, f);
    }
    for (i, x) in values.iter().enumerate() {
        let a = &mut acc[spot.at + i * spot.stride];
        *a = f(*a, *x);
    }
}

/// Independent lanes of a horizontal fold; fixed, since it decides the bits of the result.
const LANES: usize = 32;

wide_fn! {
    fn lanes<T, A, W, F>(values: &[T], start: A, widen: W, f: F) -> A where {T: Copy, A: Copy, W: Fn(T) -> A, F: Fn(A, A) -> A} {
        let mut lanes = [start; LANES];
        let chunks = values.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for i in 0..LANES { lanes[i] = f(lanes[i], widen(chunk[i])); }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) { *lane = f(*lane, widen(*x)); }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width { lanes[i] = f(lanes[i], lanes[i + width]); }
            width /= 2;
        }
        lanes[0]
    }
}

fn total<T: Element, A: Numeric>(
    values: &[u8],
    acc: &mut [u8],
    spot: Spot,
    widen: impl Fn(T) -> A + Copy,
    (start, f): (fn(DType) -> Scalar, impl Fn(A, A) -> A + Copy),
) {
    let (values, acc): (&[T], &mut [A]) =
        (bytemuck::cast_slice(values), bytemuck::cast_slice_mut(acc));
    let start: A = bytemuck::pod_read_unaligned(start(A::DTYPE).bytes());
    match spot.stride {
        0 => acc[spot.at] = f(acc[spot.at], lanes(values, start, widen, f)),
        _ => spread(values, acc, spot, |a, x| f(a, widen(x))),
    }
}

/// `(sum, error)` with `x` added: the rounding error of the addition is kept exactly.
#[inline(always)]
fn two_sum([sum, error]: [f64; 2], x: f64) -> [f64; 2] {
    let next = sum + x;
    let back = next - sum;
    [next, error + ((sum - (next - back)) + (x - back))]
}

wide_fn! {
    fn each_twice<>(sums: &mut [f64], errors: &mut [f64], values: &[f64]) where {} {
        for ((sum, error), x) in sums.iter_mut().zip(errors).zip(values) { [*sum, *error] = two_sum([*sum, *error], *x); }
    }
}

fn sum_twice(values: &[u8], acc: &mut [u8], spot: Spot) {
    if let Words::Apart { .. } = spot.words {
        let values: &[f64] = bytemuck::cast_slice(values);
        let (sums, errors) = spot.apart(acc, values.len());
        return each_twice(
            bytemuck::cast_slice_mut(sums),
            bytemuck::cast_slice_mut(errors),
            values,
        );
    }
    let acc: &mut [[f64; 2]] = bytemuck::cast_slice_mut(acc);
    if spot.merge.is_some() {
        let merge = |a: [f64; 2], [sum, error]: [f64; 2]| {
            let [sum, carried] = two_sum(a, sum);
            [sum, carried + error]
        };
        let partial: &[[f64; 2]] = bytemuck::cast_slice(values);
        match spot.stride {
            0 => partial.iter().for_each(|p| acc[spot.at] = merge(acc[spot.at], *p)),
            _ => spread(partial, acc, spot, merge),
        }
        return;
    }
    let values: &[f64] = bytemuck::cast_slice(values);
    match spot.stride {
        0 => {
            let [sum, error] = lanes_twice(values);
            let [sum, carried] = two_sum(acc[spot.at], sum);
            acc[spot.at] = [sum, carried + error];
        }
        _ => spread(values, acc, spot, two_sum),
    }
}

wide_fn! {
    /// `(sum, error)` of values, in as many lanes as [`lanes`] has; sums and errors are apart,
    /// which is what vectorises.
    fn lanes_twice<>(values: &[f64]) -> [f64; 2] where {} {
        let (mut sums, mut errors) = ([-0f64; LANES], [0f64; LANES]);
        let chunks = values.chunks_exact(LANES);
        let rest = chunks.remainder();
        // Half of the lanes at a time: all of them do not fit in registers.
        for half in [0, LANES / 2] {
            let (mut s, mut e) = ([-0f64; LANES / 2], [0f64; LANES / 2]);
            for chunk in chunks.clone() {
                for i in 0..LANES / 2 { [s[i], e[i]] = two_sum([s[i], e[i]], chunk[half + i]); }
            }
            sums[half..half + LANES / 2].copy_from_slice(&s);
            errors[half..half + LANES / 2].copy_from_slice(&e);
        }
        for ((sum, error), x) in sums.iter_mut().zip(&mut errors).zip(rest) { [*sum, *error] = two_sum([*sum, *error], *x); }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                [sums[i], errors[i]] = two_sum([sums[i], errors[i] + errors[i + width]], sums[i + width]);
            }
            width /= 2;
        }
        [sums[0], errors[0]]
    }
}

/// Choices that are made before they are stored: a choice in place becomes a masked store, which
/// some processors are slow with.
const CHOICES: usize = 128;

wide_fn! {
    fn choose<T: Element, F>(acc: &mut [T], values: &[T], f: F) where {F: Fn(T, T) -> T} {
        let mut chosen = [T::zeroed(); CHOICES];
        for (acc, values) in acc.chunks_mut(CHOICES).zip(values.chunks(CHOICES)) {
            for ((c, a), x) in chosen.iter_mut().zip(acc.iter()).zip(values) { *c = f(*a, *x); }
            acc.copy_from_slice(&chosen[..values.len()]);
        }
    }
}

fn extreme<T: Real>(values: &[u8], acc: &mut [u8], spot: Spot, f: impl Fn(T, T) -> T + Copy) {
    let (values, acc): (&[T], &mut [T]) =
        (bytemuck::cast_slice(values), bytemuck::cast_slice_mut(acc));
    match spot.stride {
        0 => acc[spot.at] = f(acc[spot.at], lanes(values, acc[spot.at], |x| x, f)),
        1 => choose(&mut acc[spot.at..spot.at + values.len()], values, f),
        _ => spread(values, acc, spot, f),
    }
}

/// The better of two values with their indices: the extreme one, of equal ones the one that comes
/// first.
#[inline(always)]
fn better<T: Real>(a: (T, u64), b: (T, u64), f: impl Fn(T, T) -> T) -> (T, u64) {
    let same = a.0 == b.0 || (a.0.nan() && b.0.nan());
    let chosen = f(a.0, b.0);
    let first = if same { a.1 <= b.1 } else { chosen == a.0 || (a.0.nan() && !b.0.nan()) };
    if b.1 == NOWHERE || (a.1 != NOWHERE && first) { a } else { b }
}

#[inline(always)]
fn packed<T: Real>((value, index): (T, u64)) -> [u64; 2] {
    let mut word = [0; 8];
    word[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
    [u64::from_ne_bytes(word), index]
}

#[inline(always)]
fn unpacked<T: Real>([word, index]: [u64; 2]) -> (T, u64) {
    (bytemuck::pod_read_unaligned(&word.to_ne_bytes()[..size_of::<T>()]), index)
}

wide_fn! {
    /// Index of the first value for which `f` holds.
    fn first_where<T, F>(values: &[T], f: F) -> Option<usize> where {T: Copy, F: Fn(T) -> bool} {
        // Without a way out of the loop it is vectorised.
        let found = values.chunks(LANES).position(|chunk| chunk.iter().fold(false, |any, x| any | f(*x)))?;
        values[found * LANES..].iter().position(|x| f(*x)).map(|i| found * LANES + i)
    }
}

wide_fn! {
    /// Values that win take the place of those that stand for other elements, each with its index.
    fn place<T: Element, W>(best: &mut [T], places: &mut [u64], values: &[T], index: u64, wins: W) where {W: Fn(T, T, u64) -> bool} {
        let (mut chosen, mut at) = ([T::zeroed(); CHOICES], [0; CHOICES]);
        for ((best, places), values) in best.chunks_mut(CHOICES).zip(places.chunks_mut(CHOICES)).zip(values.chunks(CHOICES)) {
            let n = values.len();
            for ((((c, a), b), p), x) in chosen.iter_mut().zip(&mut at).zip(best.iter()).zip(places.iter()).zip(values) {
                let won = wins(*x, *b, *p);
                *c = if won { *x } else { *b };
                *a = if won { index } else { *p };
            }
            best.copy_from_slice(&chosen[..n]);
            places.copy_from_slice(&at[..n]);
        }
    }
}

fn position<T: Real>(
    values: &[u8],
    acc: &mut [u8],
    spot: Spot,
    (f, beyond): (impl Fn(T, T) -> T + Copy, impl Fn(T, T) -> bool + Copy),
) {
    if let Words::Apart { later } = spot.words {
        let values: &[T] = bytemuck::cast_slice(values);
        let (best, places) = spot.apart(acc, values.len());
        let best = &mut bytemuck::cast_slice_mut(best)[..values.len()];
        let wins = |x: T, b: T| (beyond(x, b) | x.nan()) & !b.nan();
        let index = spot.index.0;
        return match later {
            // Earlier elements win ties.
            true => place(best, places, values, index, |x, b, _| wins(x, b)),
            false => place(best, places, values, index, |x, b, p| {
                wins(x, b) | (((x == b) | (x.nan() & b.nan())) & (index < p)) | (p == NOWHERE)
            }),
        };
    }
    let acc: &mut [[u64; 2]] = bytemuck::cast_slice_mut(acc);
    if spot.merge.is_some() {
        let merge =
            |a: [u64; 2], p: [u64; 2]| packed(better(unpacked::<T>(a), unpacked::<T>(p), f));
        let partial: &[[u64; 2]] = bytemuck::cast_slice(values);
        match spot.stride {
            0 => partial.iter().for_each(|p| acc[spot.at] = merge(acc[spot.at], *p)),
            _ => spread(partial, acc, spot, merge),
        }
        return;
    }
    let values: &[T] = bytemuck::cast_slice(values);
    let (first, step) = spot.index;
    if spot.stride == 0 {
        let (Some(start), now) = (values.first(), unpacked::<T>(acc[spot.at])) else { return };
        let best = lanes(values, *start, |x| x, f);
        // Where it is matters only if it is better than what was found so far.
        if now.1 == NOWHERE || better((best, first), now, f).1 == first {
            let found = first_where(values, |x| (x == best) | x.nan());
            debug_assert!(found.is_some(), "invariant `the best is one of them`");
            let at = found.unwrap_or(0) as u64;
            acc[spot.at] = packed(better(now, (values[at as usize], first + at * step), f));
        }
        return;
    }
    for (i, x) in values.iter().enumerate() {
        let a = &mut acc[spot.at + i * spot.stride];
        *a = packed(better(unpacked::<T>(*a), (*x, first + i as u64 * step), f));
    }
}

/// `(mean, squared deviations)` of `n` elements joined with those of `m` others.
#[inline(always)]
fn joined([mean, squares]: [f64; 2], n: f64, other: [f64; 2], m: f64) -> [f64; 2] {
    let (delta, share) = (other[0] - mean, m / (n + m));
    [mean + delta * share, squares + other[1] + delta * delta * n * share]
}

/// `(mean, squared deviations)` with one more element, which is the part `share` of them all.
#[inline(always)]
fn one_more([mean, squares]: [f64; 2], x: f64, share: f64) -> [f64; 2] {
    let delta = x - mean;
    let next = mean + delta * share;
    [next, squares + delta * (x - next)]
}

wide_fn! {
    fn each_variance<T, W>(means: &mut [f64], squares: &mut [f64], values: &[T], share: f64, widen: W) where {T: Copy, W: Fn(T) -> f64} {
        for ((mean, squares), x) in means.iter_mut().zip(squares).zip(values) { [*mean, *squares] = one_more([*mean, *squares], widen(*x), share); }
    }
}

fn variance<T: Element>(
    values: &[u8],
    acc: &mut [u8],
    spot: Spot,
    widen: impl Fn(T) -> f64 + Copy,
) {
    if let Words::Apart { .. } = spot.words {
        let values: &[T] = bytemuck::cast_slice(values);
        let (means, squares) = spot.apart(acc, values.len());
        let share = 1.0 / (spot.seen as f64 + 1.0);
        return each_variance(
            bytemuck::cast_slice_mut(means),
            bytemuck::cast_slice_mut(squares),
            values,
            share,
            widen,
        );
    }
    let acc: &mut [[f64; 2]] = bytemuck::cast_slice_mut(acc);
    let seen = spot.seen as f64;
    if let Some(each) = spot.merge {
        let m = each as f64;
        let partial: &[[f64; 2]] = bytemuck::cast_slice(values);
        match spot.stride {
            0 => partial
                .iter()
                .enumerate()
                .for_each(|(i, p)| acc[spot.at] = joined(acc[spot.at], seen + i as f64 * m, *p, m)),
            _ => spread(partial, acc, spot, |a, p| joined(a, seen, p, m)),
        }
        return;
    }
    let values: &[T] = bytemuck::cast_slice(values);
    if spot.stride == 0 {
        let n = values.len() as f64;
        let mean = lanes(values, 0.0, widen, |a, b| a + b) / n;
        let square = |x: T| (widen(x) - mean) * (widen(x) - mean);
        acc[spot.at] =
            joined(acc[spot.at], seen, [mean, lanes(values, 0.0, square, |a, b| a + b)], n);
        return;
    }
    let share = 1.0 / (seen + 1.0);
    spread(values, acc, spot, |a, x| one_more(a, widen(x), share));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::buffer::Buffer;
    use crate::expr::Expr;

    /// Accumulators of `float32` values, of which each block has `shape`; they come in the order
    /// that is given by their first indices.
    fn folded(
        op: ReduceOp,
        shape: [usize; 2],
        axis: usize,
        blocks: &[(u64, Vec<f32>)],
    ) -> Vec<[u64; 2]> {
        let along = |d: usize| [isize::from(d == 0), isize::from(d == 1)];
        let mut acc = Buffer::zeroed(shape[1 - axis] * 16);
        op.start(DType::Float32, acc.bytes_mut());
        let mut evaluator = Evaluator::new(&Expr::identity(DType::Float32));
        for (first, values) in blocks {
            let view = View::contiguous(DType::Float32, bytemuck::cast_slice(values), &shape);
            let folds = [FoldSpec { op, values: DType::Float32 }];
            let block = FoldBlock {
                folds: &folds,
                offset: 0,
                strides: &along(1 - axis),
                seen: 0,
                merge: None,
                index: (*first, &along(axis)),
            };
            fold(&mut evaluator, &shape, &[view], &block, &mut [acc.bytes_mut()]);
        }
        bytemuck::cast_slice(acc.bytes()).to_vec()
    }

    proptest! {
        /// Whatever is folded first: NaN before the extreme, the least index among equals.
        #[test]
        fn positions_are_those_of_a_plain_loop(
            rows in 1usize..12, columns in prop::sample::select(vec![1, 31, 127, 128, 1025, 4100]), axis in 0usize..2, seed in 0usize..1000, nans in any::<bool>(),
        ) {
            let shape = [rows, columns];
            let value = |block: usize, i: usize| match (i * 7919 + block * 104_729 + seed) % 37 {
                0 if nans => f32::NAN,
                x => (x % 11) as f32 - 5.0,
            };
            let block = |b: usize| (0..rows * columns).map(|i| value(b, i)).collect::<Vec<f32>>();
            // The block that is folded second comes first.
            let blocks = [(shape[axis] as u64, block(1)), (0, block(0))];
            let all = |cell: usize| (0..2 * shape[axis]).map(move |i| {
                let (b, i) = (i / shape[axis], i % shape[axis]);
                value(b, if axis == 0 { i * columns + cell } else { cell * columns + i })
            });
            for (op, sign) in [(ReduceOp::Argmax, 1.0), (ReduceOp::Argmin, -1.0)] {
                for (cell, [_, index]) in folded(op, shape, axis, &blocks).into_iter().enumerate() {
                    let nan = all(cell).position(f32::is_nan);
                    let greatest = all(cell).map(|x| x * sign).fold(f32::NEG_INFINITY, f32::max);
                    prop_assert_eq!(Some(index as usize), nan.or_else(|| all(cell).position(|x| x * sign == greatest)));
                }
            }
        }
    }
}
