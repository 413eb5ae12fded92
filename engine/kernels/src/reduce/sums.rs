//! Sums and products, and compensated sums of `float64`.

use super::fold::{PairLayout, Target};
use super::lanes::{LANES, fold_lanes, fold_strided};
use crate::apply::Numeric;
use crate::dtype::{DType, Element};
use crate::scalar::Scalar;

/// Folds values, widened to the accumulators' dtype, by an operation given with its identity.
pub(super) fn fold_monoid<T: Element, A: Numeric>(
    values: &[u8],
    acc: &mut [u8],
    to: Target,
    widen: impl Fn(T) -> A + Copy,
    (identity, f): (fn(DType) -> Scalar, impl Fn(A, A) -> A + Copy),
) {
    let (values, acc): (&[T], &mut [A]) =
        (bytemuck::cast_slice(values), bytemuck::cast_slice_mut(acc));
    let identity: A = bytemuck::pod_read_unaligned(identity(A::DTYPE).bytes());
    match to.stride {
        0 => acc[to.first] = f(acc[to.first], fold_lanes(values, identity, widen, f)),
        _ => fold_strided(values, acc, to, |a, x| f(a, widen(x))),
    }
}

/// Adds `x` to `(sum, error)`; the rounding error of the addition is kept exactly.
#[inline(always)]
fn two_sum([sum, error]: [f64; 2], x: f64) -> [f64; 2] {
    let next = sum + x;
    let back = next - sum;
    [next, error + ((sum - (next - back)) + (x - back))]
}

/// Merges `(sum, error)` of a partial result into an accumulator.
#[inline(always)]
fn merge(acc: [f64; 2], [sum, error]: [f64; 2]) -> [f64; 2] {
    let [sum, carried] = two_sum(acc, sum);
    [sum, carried + error]
}

wide_fn! {
    /// Adds each value to its own sum and error.
    fn add_compensated<>(sums: &mut [f64], errors: &mut [f64], values: &[f64]) where {} {
        for ((sum, error), x) in sums.iter_mut().zip(errors).zip(values) {
            [*sum, *error] = two_sum([*sum, *error], *x);
        }
    }
}

/// Adds `float64` values to accumulators of `(sum, error)`.
pub(super) fn sum_compensated(values: &[u8], acc: &mut [u8], to: Target) {
    if let PairLayout::Split { .. } = to.layout {
        let values: &[f64] = bytemuck::cast_slice(values);
        let (sums, errors) = to.split(acc, values.len());
        return add_compensated(
            bytemuck::cast_slice_mut(sums),
            bytemuck::cast_slice_mut(errors),
            values,
        );
    }
    let acc: &mut [[f64; 2]] = bytemuck::cast_slice_mut(acc);
    if to.merge.is_some() {
        let partial: &[[f64; 2]] = bytemuck::cast_slice(values);
        match to.stride {
            0 => partial.iter().for_each(|p| acc[to.first] = merge(acc[to.first], *p)),
            _ => fold_strided(partial, acc, to, merge),
        }
        return;
    }
    let values: &[f64] = bytemuck::cast_slice(values);
    match to.stride {
        0 => acc[to.first] = merge(acc[to.first], sum_lanes(values)),
        _ => fold_strided(values, acc, to, two_sum),
    }
}

wide_fn! {
    /// Returns the `(sum, error)` of values, in [`LANES`] lanes. Sums and errors are separate
    /// arrays, which the compiler vectorises.
    fn sum_lanes<>(values: &[f64]) -> [f64; 2] where {} {
        let (mut sums, mut errors) = ([-0f64; LANES], [0f64; LANES]);
        let chunks = values.chunks_exact(LANES);
        let rest = chunks.remainder();
        // Half of the lanes at a time, because all of them do not fit in registers.
        for half in [0, LANES / 2] {
            let (mut s, mut e) = ([-0f64; LANES / 2], [0f64; LANES / 2]);
            for chunk in chunks.clone() {
                for i in 0..LANES / 2 { [s[i], e[i]] = two_sum([s[i], e[i]], chunk[half + i]); }
            }
            sums[half..half + LANES / 2].copy_from_slice(&s);
            errors[half..half + LANES / 2].copy_from_slice(&e);
        }
        for ((sum, error), x) in sums.iter_mut().zip(&mut errors).zip(rest) {
            [*sum, *error] = two_sum([*sum, *error], *x);
        }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                let error = errors[i] + errors[i + width];
                [sums[i], errors[i]] = two_sum([sums[i], error], sums[i + width]);
            }
            width /= 2;
        }
        [sums[0], errors[0]]
    }
}
