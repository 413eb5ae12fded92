//! Means and squared deviations.

use super::fold::{PairLayout, Target};
use super::lanes::{fold_lanes, fold_strided};
use crate::dtype::Element;

/// Merges `(mean, squared deviations)` of `n` elements with those of `m` others.
#[inline(always)]
fn merge([mean, squares]: [f64; 2], n: f64, other: [f64; 2], m: f64) -> [f64; 2] {
    let (delta, share) = (other[0] - mean, m / (n + m));
    [mean + delta * share, squares + other[1] + delta * delta * n * share]
}

/// Adds one element to `(mean, squared deviations)`. `share` is 1 / the number of elements with it.
#[inline(always)]
fn add([mean, squares]: [f64; 2], x: f64, share: f64) -> [f64; 2] {
    let delta = x - mean;
    let next = mean + delta * share;
    [next, squares + delta * (x - next)]
}

wide_fn! {
    /// Adds each value to its own mean and squared deviations.
    fn add_each<T, W>(
        means: &mut [f64], squares: &mut [f64], values: &[T], share: f64, widen: W,
    ) where {
        T: Copy, W: Fn(T) -> f64
    } {
        for ((mean, squares), x) in means.iter_mut().zip(squares).zip(values) {
            [*mean, *squares] = add([*mean, *squares], widen(*x), share);
        }
    }
}

/// Folds values, widened to `float64`, into accumulators of `(mean, squared deviations)`.
pub(super) fn fold_variance<T: Element>(
    values: &[u8],
    acc: &mut [u8],
    to: Target,
    widen: impl Fn(T) -> f64 + Copy,
) {
    let seen = to.seen as f64;
    if let PairLayout::Split { .. } = to.layout {
        let values: &[T] = bytemuck::cast_slice(values);
        let (means, squares) = to.split(acc, values.len());
        return add_each(
            bytemuck::cast_slice_mut(means),
            bytemuck::cast_slice_mut(squares),
            values,
            1.0 / (seen + 1.0),
            widen,
        );
    }
    let acc: &mut [[f64; 2]] = bytemuck::cast_slice_mut(acc);
    if let Some(each) = to.merge {
        let m = each as f64;
        let partial: &[[f64; 2]] = bytemuck::cast_slice(values);
        match to.stride {
            0 => partial.iter().enumerate().for_each(|(i, p)| {
                acc[to.first] = merge(acc[to.first], seen + i as f64 * m, *p, m)
            }),
            _ => fold_strided(partial, acc, to, |a, p| merge(a, seen, p, m)),
        }
        return;
    }
    let values: &[T] = bytemuck::cast_slice(values);
    if to.stride == 0 {
        let n = values.len() as f64;
        let mean = fold_lanes(values, 0.0, widen, |a, b| a + b) / n;
        let square = |x: T| (widen(x) - mean) * (widen(x) - mean);
        let squares = fold_lanes(values, 0.0, square, |a, b| a + b);
        acc[to.first] = merge(acc[to.first], seen, [mean, squares], n);
        return;
    }
    let share = 1.0 / (seen + 1.0);
    fold_strided(values, acc, to, |a, x| add(a, widen(x), share));
}
