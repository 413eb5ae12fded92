//! Minima and maxima, and their positions.

use super::NO_INDEX;
use super::fold::{PairLayout, Target};
use super::lanes::{LANES, fold_lanes, fold_strided};
use crate::apply::Real;
use crate::dtype::Element;

/// Elements selected into a local array before they are stored. A selection in place compiles to a
/// masked store, which is slow on some processors.
const SELECT_BLOCK: usize = 128;

wide_fn! {
    fn select_each<T: Element, F>(acc: &mut [T], values: &[T], f: F) where {F: Fn(T, T) -> T} {
        let mut chosen = [T::zeroed(); SELECT_BLOCK];
        for (acc, values) in acc.chunks_mut(SELECT_BLOCK).zip(values.chunks(SELECT_BLOCK)) {
            for ((c, a), x) in chosen.iter_mut().zip(acc.iter()).zip(values) { *c = f(*a, *x); }
            acc.copy_from_slice(&chosen[..values.len()]);
        }
    }
}

/// Folds values by `f`, which selects the minimum or the maximum.
pub(super) fn fold_extremes<T: Real>(
    values: &[u8],
    acc: &mut [u8],
    to: Target,
    f: impl Fn(T, T) -> T + Copy,
) {
    let (values, acc): (&[T], &mut [T]) =
        (bytemuck::cast_slice(values), bytemuck::cast_slice_mut(acc));
    match to.stride {
        0 => acc[to.first] = f(acc[to.first], fold_lanes(values, acc[to.first], |x| x, f)),
        1 => select_each(&mut acc[to.first..to.first + values.len()], values, f),
        _ => fold_strided(values, acc, to, f),
    }
}

/// Selects the extreme of two `(value, index)`; of equal values, the one with the lower index.
#[inline(always)]
fn select_position<T: Real>(a: (T, u64), b: (T, u64), f: impl Fn(T, T) -> T) -> (T, u64) {
    let same = a.0 == b.0 || (a.0.nan() && b.0.nan());
    let chosen = f(a.0, b.0);
    let first = if same { a.1 <= b.1 } else { chosen == a.0 || (a.0.nan() && !b.0.nan()) };
    if b.1 == NO_INDEX || (a.1 != NO_INDEX && first) { a } else { b }
}

/// Stores `(value, index)` in the words of an accumulator.
#[inline(always)]
pub(super) fn pack<T: Real>((value, index): (T, u64)) -> [u64; 2] {
    let mut word = [0; 8];
    word[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
    [u64::from_ne_bytes(word), index]
}

/// Loads `(value, index)` from the words of an accumulator.
#[inline(always)]
pub(super) fn unpack<T: Real>([word, index]: [u64; 2]) -> (T, u64) {
    (bytemuck::pod_read_unaligned(&word.to_ne_bytes()[..size_of::<T>()]), index)
}

wide_fn! {
    /// Returns the index of the first value for which `f` holds.
    fn first_where<T, F>(values: &[T], f: F) -> Option<usize> where {T: Copy, F: Fn(T) -> bool} {
        // A loop without an early exit is vectorised.
        let any = |chunk: &[T]| chunk.iter().fold(false, |any, x| any | f(*x));
        let found = values.chunks(LANES).position(any)?;
        values[found * LANES..].iter().position(|x| f(*x)).map(|i| found * LANES + i)
    }
}

wide_fn! {
    /// Replaces each value that `wins` rejects, together with its index.
    fn select_positions<T: Element, W>(
        best: &mut [T], indices: &mut [u64], values: &[T], index: u64, wins: W,
    ) where {
        W: Fn(T, T, u64) -> bool
    } {
        let (mut chosen, mut at) = ([T::zeroed(); SELECT_BLOCK], [0; SELECT_BLOCK]);
        let blocks = best.chunks_mut(SELECT_BLOCK).zip(indices.chunks_mut(SELECT_BLOCK));
        for ((best, indices), values) in blocks.zip(values.chunks(SELECT_BLOCK)) {
            let n = values.len();
            let old = best.iter().zip(indices.iter()).zip(values);
            for ((c, a), ((b, i), x)) in chosen.iter_mut().zip(&mut at).zip(old) {
                let won = wins(*x, *b, *i);
                *c = if won { *x } else { *b };
                *a = if won { index } else { *i };
            }
            best.copy_from_slice(&chosen[..n]);
            indices.copy_from_slice(&at[..n]);
        }
    }
}

/// Folds values into positions. `f` selects the extreme of two values; `beyond` tells whether the
/// first is strictly more extreme than the second.
pub(super) fn fold_positions<T: Real>(
    values: &[u8],
    acc: &mut [u8],
    to: Target,
    (f, beyond): (impl Fn(T, T) -> T + Copy, impl Fn(T, T) -> bool + Copy),
) {
    if let PairLayout::Split { later } = to.layout {
        return fold_split_positions(bytemuck::cast_slice(values), acc, to, later, beyond);
    }
    let acc: &mut [[u64; 2]] = bytemuck::cast_slice_mut(acc);
    if to.merge.is_some() {
        let merge =
            |a: [u64; 2], p: [u64; 2]| pack(select_position(unpack::<T>(a), unpack::<T>(p), f));
        let partial: &[[u64; 2]] = bytemuck::cast_slice(values);
        match to.stride {
            0 => partial.iter().for_each(|p| acc[to.first] = merge(acc[to.first], *p)),
            _ => fold_strided(partial, acc, to, merge),
        }
        return;
    }
    let values: &[T] = bytemuck::cast_slice(values);
    let (first, step) = to.index;
    if to.stride == 0 {
        let (Some(start), now) = (values.first(), unpack::<T>(acc[to.first])) else { return };
        let best = fold_lanes(values, *start, |x| x, f);
        // The search for its index is needed only if it replaces the value found so far.
        if now.1 == NO_INDEX || select_position((best, first), now, f).1 == first {
            let found = first_where(values, |x| (x == best) | x.nan());
            debug_assert!(found.is_some(), "invariant `the extreme is one of the values`");
            let at = found.unwrap_or(0) as u64;
            acc[to.first] = pack(select_position(now, (values[at as usize], first + at * step), f));
        }
        return;
    }
    for (i, x) in values.iter().enumerate() {
        let a = &mut acc[to.first + i * to.stride];
        *a = pack(select_position(unpack::<T>(*a), (*x, first + i as u64 * step), f));
    }
}

/// Folds a row of values, all of one index, into positions in [`PairLayout::Split`].
fn fold_split_positions<T: Real>(
    values: &[T],
    acc: &mut [u8],
    to: Target,
    later: bool,
    beyond: impl Fn(T, T) -> bool + Copy,
) {
    let (best, indices) = to.split(acc, values.len());
    let best = &mut bytemuck::cast_slice_mut(best)[..values.len()];
    let wins = |x: T, b: T| (beyond(x, b) | x.nan()) & !b.nan();
    let index = to.index.0;
    if later {
        // Earlier elements win ties.
        select_positions(best, indices, values, index, |x, b, _| wins(x, b));
    } else {
        select_positions(best, indices, values, index, |x, b, p| {
            wins(x, b) | (((x == b) | (x.nan() & b.nan())) & (index < p)) | (p == NO_INDEX)
        });
    }
}
