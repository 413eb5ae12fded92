//! Arrays of different shapes with the same elements in C order: the elements that a chunk of one
//! array and a region of the other share.

use crate::grid::{Region, try_for_each_coord};

/// Returns a box that contains the elements `first..=last` in C order.
pub(crate) fn flat_bounds(shape: &[u64], first: u64, last: u64) -> Region {
    let mut bounds = Region::whole(shape);
    let mut below: u64 = shape.iter().product();
    let (mut first, mut last) = (first, last);
    for (d, n) in shape.iter().enumerate() {
        below /= n;
        let (a, b) = (first / below, last / below);
        (bounds.start[d], bounds.shape[d]) = (a, b - a + 1);
        if a != b {
            break;
        }
        (first, last) = (first - a * below, last - b * below);
    }
    bounds
}

/// Visits the runs of elements, in C order, that a chunk of an array of shape `chunked` and a
/// region of an array of `shape` share.
///
/// Calls `f` with the position in the chunk, the index in the region, and the number of elements.
/// Stops and returns true once `f` returns true.
pub(crate) fn shared_rows(
    chunk: &Region,
    chunked: &[u64],
    region: &Region,
    shape: &[u64],
    mut f: impl FnMut(&[u64], u64, u64) -> bool,
) -> bool {
    let rows = match chunk.shape.split_last() {
        Some((_, outer)) => Region { start: vec![0; outer.len()], shape: outer.to_vec() },
        None => Region { start: vec![], shape: vec![] },
    };
    let width = chunk.shape.last().copied().unwrap_or(1);
    let found = try_for_each_coord(&rows, |row| {
        let global: Vec<u64> = row
            .iter()
            .zip(&chunk.start)
            .map(|(i, s)| i + s)
            .chain(chunk.start.last().copied())
            .collect();
        let begin = global.iter().zip(chunked).fold(0, |at, (i, n)| at * n + i);
        let mut within: Vec<u64> =
            row.iter().copied().chain(chunk.start.last().map(|_| 0)).collect();
        let mut at = begin;
        while at < begin + width {
            let Some((next, element, run)) = first_in(region, shape, at) else { break };
            if next >= begin + width {
                break;
            }
            let n = run.min(begin + width - next);
            if let Some(w) = within.last_mut() {
                *w = next - begin;
            }
            if f(&within, element, n) {
                return Err(());
            }
            at = next + n;
        }
        Ok(())
    });
    found.is_err()
}

/// Returns the first element of a region at or after `at` in the C order of an array: its position
/// in the array, its index in the region, and the number of contiguous elements from there.
fn first_in(region: &Region, shape: &[u64], at: u64) -> Option<(u64, u64, u64)> {
    let rank = shape.len();
    let mut index = vec![0; rank];
    let mut rest = at;
    for d in (0..rank).rev() {
        (index[d], rest) = (rest % shape[d], rest / shape[d]);
    }
    if rest > 0 {
        return None;
    }
    // Find the next index inside the region, in lexicographic order.
    let mut d = 0;
    while d < rank {
        let (lo, hi) = (region.start[d], region.start[d] + region.shape[d]);
        if index[d] < lo {
            index[d..].copy_from_slice(&region.start[d..]);
            break;
        }
        if index[d] >= hi {
            // The index is beyond the region along this axis: advance along an earlier axis.
            loop {
                if d == 0 {
                    return None;
                }
                d -= 1;
                index[d] += 1;
                if index[d] < region.start[d] + region.shape[d] {
                    break;
                }
            }
            index[d + 1..].copy_from_slice(&region.start[d + 1..]);
            break;
        }
        d += 1;
    }
    let fold = |f: &dyn Fn(usize) -> (u64, u64)| (0..rank).fold(0, |sum, d| sum * f(d).1 + f(d).0);
    let place = fold(&|d| (index[d], shape[d]));
    let element = fold(&|d| (index[d] - region.start[d], region.shape[d]));
    let run = (0..rank).next_back().map_or(1, |d| region.start[d] + region.shape[d] - index[d]);
    Some((place, element, run))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(shape: &[u64], cut: u64) -> Region {
        let start: Vec<u64> =
            shape.iter().enumerate().map(|(d, n)| cut.rotate_left(d as u32 * 11) % n).collect();
        let size = shape
            .iter()
            .zip(&start)
            .enumerate()
            .map(|(d, (n, s))| 1 + cut.rotate_right(d as u32 * 7 + 3) % (n - s))
            .collect();
        Region { start, shape: size }
    }

    /// Returns the positions of a region's elements in C order.
    fn places(region: &Region, shape: &[u64]) -> Vec<u64> {
        let mut all = Vec::new();
        let _: Result<(), ()> = try_for_each_coord(
            &Region { start: region.start.clone(), shape: region.shape.clone() },
            |i| {
                all.push(i.iter().zip(shape).fold(0, |at, (i, n)| at * n + i));
                Ok(())
            },
        );
        all
    }

    proptest! {
        #[test]
        fn shared_rows_are_the_common_elements(
            which in 0usize..6, chunk_cut: u64, region_cut: u64,
        ) {
            let shapes: [&[u64]; 6] =
                [&[24], &[4, 6], &[6, 4], &[2, 3, 4], &[3, 8, 1], &[1, 2, 12]];
            for to in shapes {
                let from = shapes[which];
                let (chunk, region) = (part(from, chunk_cut), part(to, region_cut));
                let mut found = Vec::new();
                shared_rows(&chunk, from, &region, to, |within, element, n| {
                    let at = within.iter().zip(&chunk.shape).fold(0, |at, (i, n)| at * n + i);
                    found.extend((0..n).map(|i| (at + i, element + i)));
                    false
                });
                let (held, wanted) = (places(&chunk, from), places(&region, to));
                let position = |p: &u64| wanted.iter().position(|w| w == p);
                let expected: Vec<(u64, u64)> = held
                    .iter()
                    .enumerate()
                    .filter_map(|(i, p)| Some((i as u64, position(p)? as u64)))
                    .collect();
                prop_assert_eq!(&found, &expected);
                let any = shared_rows(&chunk, from, &region, to, |_, _, _| true);
                prop_assert_eq!(any, !expected.is_empty());
                let bounds = flat_bounds(from, wanted[0], wanted[wanted.len() - 1]);
                prop_assert!(wanted.iter().all(|w| places(&bounds, from).contains(w)));
            }
        }
    }
}
