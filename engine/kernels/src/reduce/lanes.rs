//! The two loop shapes of reductions: one accumulator per element, and many elements into one.

use super::fold::Target;

wide_fn! {
    fn fold_each<T, A, F>(acc: &mut [A], values: &[T], f: F) where {
        T: Copy, A: Copy, F: Fn(A, T) -> A
    } {
        for (a, x) in acc.iter_mut().zip(values) { *a = f(*a, *x); }
    }
}

/// Folds each value into its own accumulator.
pub(super) fn fold_strided<T: Copy, A: Copy>(
    values: &[T],
    acc: &mut [A],
    to: Target,
    f: impl Fn(A, T) -> A,
) {
    if to.stride == 1 {
        return fold_each(&mut acc[to.first..to.first + values.len()], values, f);
    }
    for (i, x) in values.iter().enumerate() {
        let a = &mut acc[to.first + i * to.stride];
        *a = f(*a, *x);
    }
}

/// Independent lanes of a horizontal fold. The number is fixed, because it determines the bits of
/// the result.
pub(super) const LANES: usize = 32;

wide_fn! {
    /// Folds values into one, in [`LANES`] lanes that are merged pairwise at the end.
    pub(super) fn fold_lanes<T, A, W, F>(values: &[T], start: A, widen: W, f: F) -> A where {
        T: Copy, A: Copy, W: Fn(T) -> A, F: Fn(A, A) -> A
    } {
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
