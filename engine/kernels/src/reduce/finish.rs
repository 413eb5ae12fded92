//! Conversion of accumulators to results.

use super::{Finish, ReduceOp, is_inexact};
use crate::cast::cast;
use crate::dtype::{Complex128, DType, Kind, no_loop};
use crate::eval::STRIP;

impl Finish {
    /// Converts accumulators to results, element by element.
    pub fn apply(self, op: ReduceOp, values: DType, accumulators: &[u8], out: &mut [u8]) {
        let (Some(held), Some(value)) = (op.accumulator(values), op.value(values)) else {
            return no_loop(&op, values);
        };
        match self {
            Finish::Partial => out.copy_from_slice(accumulators),
            Finish::Value(dtype) => by_strips(held, accumulators, dtype, out, |a, o| {
                with_values(op, values, a, |v| cast(value, v, dtype, o))
            }),
            Finish::Carry(dtype) => by_strips(held, accumulators, dtype, out, |a, o| {
                with_carries(op, values, a, |v| cast(value, v, dtype, o))
            }),
            Finish::Mean { count, dtype } => by_strips(held, accumulators, dtype, out, |a, o| {
                with_values(op, values, a, |v| divide(v, value, count, dtype, o))
            }),
            Finish::Var { count, correction, root, dtype } => {
                let left = count as f64 - correction.get::<f64>().unwrap_or_default();
                by_strips(held, accumulators, dtype, out, |a, o| {
                    variances(bytemuck::cast_slice(a), left, root, dtype, o)
                })
            }
        }
    }
}

/// Calls `f` with each strip of accumulators of dtype `from` and of results of dtype `to`.
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

/// Divides a strip of sums of dtype `from` by `count`, and casts the quotients to `to`.
fn divide(sums: &[u8], from: DType, count: u64, to: DType, out: &mut [u8]) {
    let scale = count as f64;
    if from.kind() == Kind::Complex {
        let mut mean = [Complex128::default(); STRIP];
        let mean = &mut mean[..sums.len() / from.size()];
        cast(from, sums, DType::Complex128, bytemuck::cast_slice_mut(mean));
        mean.iter_mut().for_each(|m| *m /= scale);
        cast(DType::Complex128, bytemuck::cast_slice(mean), to, out);
    } else {
        let mut mean = [0f64; STRIP];
        let mean = &mut mean[..sums.len() / from.size()];
        cast(from, sums, DType::Float64, bytemuck::cast_slice_mut(mean));
        mean.iter_mut().for_each(|m| *m /= scale);
        cast(DType::Float64, bytemuck::cast_slice(mean), to, out);
    }
}

/// Converts a strip of `(mean, squared deviations)` to variances, or to standard deviations.
fn variances(pairs: &[[f64; 2]], left: f64, root: bool, to: DType, out: &mut [u8]) {
    let mut var = [0f64; STRIP];
    for (v, [_, squares]) in var.iter_mut().zip(pairs) {
        *v = if left > 0.0 { squares / left } else { f64::NAN };
        if root {
            *v = v.sqrt();
        }
    }
    cast(DType::Float64, bytemuck::cast_slice(&var[..pairs.len()]), to, out);
}

/// Calls `f` with the values of a strip of accumulators; zeros keep their signs.
fn with_carries(op: ReduceOp, values: DType, accumulators: &[u8], f: impl FnOnce(&[u8])) {
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
fn with_values(op: ReduceOp, values: DType, accumulators: &[u8], f: impl FnOnce(&[u8])) {
    match op {
        ReduceOp::Sum if values == DType::Float64 => {
            let pairs: &[[f64; 2]] = bytemuck::cast_slice(accumulators);
            let mut sums = [0f64; STRIP];
            // The error of an infinite sum is NaN; that of -0.0 is 0.0.
            sums.iter_mut().zip(pairs).for_each(|(s, [sum, error])| {
                *s = if sum.is_finite() { sum + error } else { *sum }
            });
            f(bytemuck::cast_slice(&sums[..pairs.len()]));
        }
        // Accumulators of the other inexact dtypes are one or two `float64` words.
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
