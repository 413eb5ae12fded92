//! Folding blocks into accumulators.
//!
//! A task that reduces walks its input chunk by chunk and folds each block, evaluated in strips, into one accumulator per
//! kept element. Accumulators are wider than the values (`float32` is summed in `float64`), and are what partial results
//! hold. Sums along a contiguous axis use a fixed number of lanes, added in a fixed order: the same blocks in the same
//! order give the same bits wherever they run.

use serde::{Deserialize, Serialize};

use crate::buffer::View;
use crate::copy;
use crate::dispatch;
use crate::dtype::{Complex64, Complex128, DType, Element, Kind};
use crate::eval::{Machine, Numeric, Real, STRIP, Strip, cast};
use crate::loops::{Nest, for_each_index};
use crate::scalar::Scalar;

/// What is folded. A mean is a sum that is divided at the end ([`Finish`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ReduceOp {
    Sum,
    Min,
    Max,
}

/// What becomes of the accumulators when everything is folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// They are the result: a partial one, to be folded again, or the value itself.
    Keep,
    /// Cast to a dtype.
    Cast(DType),
    /// Divided by the number of elements, then cast.
    Mean {
        /// Elements that were folded into each accumulator.
        count: u64,
        /// The result's dtype.
        dtype: DType,
    },
}

impl ReduceOp {
    /// Dtype of the accumulators for values of `dtype`, or `None` where it is not defined.
    pub fn accumulator(self, dtype: DType) -> Option<DType> {
        match (self, dtype.kind()) {
            (_, Kind::Bool) => None,
            (ReduceOp::Sum, Kind::Signed) => Some(DType::Int64),
            (ReduceOp::Sum, Kind::Unsigned) => Some(DType::UInt64),
            (ReduceOp::Sum, Kind::Float) => Some(DType::Float64),
            (ReduceOp::Sum, Kind::Complex) => Some(DType::Complex128),
            (ReduceOp::Min | ReduceOp::Max, Kind::Complex) => None,
            (ReduceOp::Min | ReduceOp::Max, _) => Some(dtype),
        }
    }

    /// What an accumulator of `dtype` holds before anything is folded.
    pub fn identity(self, dtype: DType) -> Scalar {
        match self {
            ReduceOp::Sum => Scalar::zero(dtype),
            ReduceOp::Min => Scalar::from_f64(dtype, f64::INFINITY),
            ReduceOp::Max if dtype.kind() == Kind::Unsigned => Scalar::zero(dtype),
            ReduceOp::Max => Scalar::from_f64(dtype, f64::NEG_INFINITY),
        }
    }
}

impl Finish {
    /// Dtype of the result for accumulators of `accumulator`.
    pub fn dtype(self, accumulator: DType) -> DType {
        match self {
            Finish::Keep => accumulator,
            Finish::Cast(dtype) | Finish::Mean { dtype, .. } => dtype,
        }
    }

    /// Turns accumulators into results, element by element.
    pub fn apply(self, accumulator: DType, values: &[u8], out: &mut [u8]) {
        match self {
            Finish::Keep => out.copy_from_slice(values),
            Finish::Cast(dtype) => cast(accumulator, values, dtype, out),
            Finish::Mean { count, dtype } => {
                let scale = count as f64;
                let (from, to) = (accumulator.size() * STRIP, dtype.size() * STRIP);
                let mut mean = [Complex128::default(); STRIP];
                for (a, o) in values.chunks(from).zip(out.chunks_mut(to)) {
                    let n = a.len() / accumulator.size();
                    if accumulator.kind() == Kind::Complex {
                        cast(accumulator, a, DType::Complex128, bytemuck::cast_slice_mut(&mut mean[..n]));
                        mean[..n].iter_mut().for_each(|m| *m /= scale);
                        cast(DType::Complex128, bytemuck::cast_slice(&mean[..n]), dtype, o);
                    } else {
                        let real = &mut bytemuck::cast_slice_mut::<_, f64>(&mut mean)[..n];
                        cast(accumulator, a, DType::Float64, bytemuck::cast_slice_mut(real));
                        real.iter_mut().for_each(|m| *m /= scale);
                        cast(DType::Float64, bytemuck::cast_slice(real), dtype, o);
                    }
                }
            }
        }
    }
}

/// Where the accumulators of a block are: element strides (0 along reduced axes) and the first one's index.
#[derive(Clone, Debug)]
pub struct Fold<'a> {
    /// One per result of the expression.
    pub ops: &'a [ReduceOp],
    /// Index of the accumulator of the block's first element.
    pub offset: usize,
    /// Distance of neighbours' accumulators along each axis of the block.
    pub strides: &'a [isize],
}

/// Evaluates the expression over blocks of one shape and folds its results into `accumulators`.
///
/// Cost: one pass over the inputs. Where the innermost axis is kept, strips of accumulators stay in the cache while the
/// reduced axes are walked.
pub fn fold(machine: &mut Machine, shape: &[usize], inputs: &[View<'_>], fold: &Fold<'_>, accumulators: &mut [&mut [u8]]) {
    let k = inputs.len();
    let mut operands: Vec<&[isize]> = inputs.iter().map(|v| v.strides.as_slice()).collect();
    operands.push(fold.strides);
    let nest = Nest::new(shape, &operands);
    if nest.is_empty() {
        return;
    }
    let inner = nest.shape.len() - 1;
    let (n_inner, acc_stride) = (nest.shape[inner], nest.strides[k][inner]);
    // Kept axes outermost, then strips of the innermost axis, then the reduced axes.
    let (kept, reduced): (Vec<usize>, Vec<usize>) = (0..inner).partition(|d| nest.strides[k][*d] != 0);
    let mut offsets: Vec<isize> = inputs.iter().map(|v| v.offset as isize).chain([fold.offset as isize]).collect();
    let mut strips: Vec<Strip<'_>> = inputs.iter().map(|v| Strip { bytes: v.bytes, offset: 0, stride: 0 }).collect();
    for (strip, strides) in strips.iter_mut().zip(&nest.strides) {
        strip.stride = strides[inner];
    }
    let results: Vec<(u32, DType)> = machine.expr().results().iter().map(|r| (*r, machine.expr().dtype(*r))).collect();
    for_each_index(&nest, &kept, &mut offsets, &mut |outer| {
        for start in (0..n_inner).step_by(STRIP) {
            let n = STRIP.min(n_inner - start);
            let mut at = outer.to_vec();
            at.iter_mut().zip(&nest.strides).for_each(|(o, s)| *o += start as isize * s[inner]);
            for_each_index(&nest, &reduced, &mut at, &mut |at| {
                strips.iter_mut().zip(at).for_each(|(s, o)| s.offset = *o);
                machine.run(&strips, n);
                for ((op, acc), (result, dtype)) in fold.ops.iter().zip(accumulators.iter_mut()).zip(&results) {
                    let values = machine.value(*result, &strips, n);
                    fold_strip(*op, *dtype, values, acc, at[k] as usize, acc_stride);
                }
            });
        }
    });
}

/// Folds one strip: into `n` accumulators (`stride` > 0) or into one (`stride` 0).
fn fold_strip(op: ReduceOp, dtype: DType, values: &[u8], acc: &mut [u8], at: usize, stride: isize) {
    match (op, dtype) {
        (ReduceOp::Sum, DType::Complex64) => sum::<Complex64, Complex128>(values, acc, at, stride, |x| Complex128::new(x.re.into(), x.im.into())),
        (ReduceOp::Sum, DType::Complex128) => sum::<Complex128, Complex128>(values, acc, at, stride, |x| x),
        (ReduceOp::Sum, DType::Float32) => sum::<f32, f64>(values, acc, at, stride, f64::from),
        (ReduceOp::Sum, DType::Float64) => sum::<f64, f64>(values, acc, at, stride, |x| x),
        (ReduceOp::Sum, DType::Int8) => sum::<i8, i64>(values, acc, at, stride, i64::from),
        (ReduceOp::Sum, DType::Int16) => sum::<i16, i64>(values, acc, at, stride, i64::from),
        (ReduceOp::Sum, DType::Int32) => sum::<i32, i64>(values, acc, at, stride, i64::from),
        (ReduceOp::Sum, DType::Int64) => sum::<i64, i64>(values, acc, at, stride, |x| x),
        (ReduceOp::Sum, DType::UInt8) => sum::<u8, u64>(values, acc, at, stride, u64::from),
        (ReduceOp::Sum, DType::UInt16) => sum::<u16, u64>(values, acc, at, stride, u64::from),
        (ReduceOp::Sum, DType::UInt32) => sum::<u32, u64>(values, acc, at, stride, u64::from),
        (ReduceOp::Sum, DType::UInt64) => sum::<u64, u64>(values, acc, at, stride, |x| x),
        (ReduceOp::Sum, DType::Bool) => {}
        (ReduceOp::Min, _) => dispatch!(real, dtype, T => extreme::<T>(values, acc, at, stride, T::least), else => {}),
        (ReduceOp::Max, _) => dispatch!(real, dtype, T => extreme::<T>(values, acc, at, stride, T::greatest), else => {}),
    }
}

wide_fn! {
    fn each<T, A, F>(acc: &mut [A], values: &[T], f: F) where {T: Copy, A: Copy, F: Fn(A, T) -> A} {
        for (a, x) in acc.iter_mut().zip(values) { *a = f(*a, *x); }
    }
}

/// Independent lanes of a horizontal sum; fixed, since it decides the bits of the result.
const LANES: usize = 32;

wide_fn! {
    fn lanes<T, A, F>(values: &[T], widen: F) -> A where {T: Copy, A: Numeric, F: Fn(T) -> A} {
        let mut lanes = [A::default(); LANES];
        let chunks = values.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for i in 0..LANES { lanes[i] = lanes[i].plus(widen(chunk[i])); }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) { *lane = lane.plus(widen(*x)); }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width { lanes[i] = lanes[i].plus(lanes[i + width]); }
            width /= 2;
        }
        lanes[0]
    }
}

fn sum<T: Element, A: Numeric>(values: &[u8], acc: &mut [u8], at: usize, stride: isize, widen: impl Fn(T) -> A + Copy) {
    let (values, acc): (&[T], &mut [A]) = (bytemuck::cast_slice(values), bytemuck::cast_slice_mut(acc));
    match stride {
        0 => acc[at] = acc[at].plus(lanes(values, widen)),
        1 => each(&mut acc[at..at + values.len()], values, |a: A, x| a.plus(widen(x))),
        _ => values.iter().enumerate().for_each(|(i, x)| {
            let a = &mut acc[at + i * stride as usize];
            *a = a.plus(widen(*x));
        }),
    }
}

wide_fn! {
    fn extreme_of<T, F>(values: &[T], start: T, f: F) -> T where {T: Copy, F: Fn(T, T) -> T} {
        let mut lanes = [start; LANES];
        let chunks = values.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for i in 0..LANES { lanes[i] = f(lanes[i], chunk[i]); }
        }
        rest.iter().chain(&lanes).fold(start, |a, x| f(a, *x))
    }
}

fn extreme<T: Real>(values: &[u8], acc: &mut [u8], at: usize, stride: isize, f: impl Fn(T, T) -> T + Copy) {
    let (values, acc): (&[T], &mut [T]) = (bytemuck::cast_slice(values), bytemuck::cast_slice_mut(acc));
    match stride {
        0 => acc[at] = extreme_of(values, acc[at], f),
        1 => each(&mut acc[at..at + values.len()], values, f),
        _ => values.iter().enumerate().for_each(|(i, x)| {
            let a = &mut acc[at + i * stride as usize];
            *a = f(*a, *x);
        }),
    }
}

/// Fills accumulators of `dtype` with the operation's identity.
pub fn start(op: ReduceOp, dtype: DType, accumulators: &mut [u8]) {
    copy::fill(&op.identity(dtype), accumulators);
}
