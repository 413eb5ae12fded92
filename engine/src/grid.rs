//! Chunk grids: the division of axes into chunks, and the index arithmetic of chunks.
//!
//! Slices, concatenations and intermediates of a rechunk have irregular grids. Only stored outputs
//! are always regular. A grid of 10⁹ chunks takes four numbers per axis, and no operation on a
//! regular axis works per chunk.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The error for an invalid grid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum GridError {
    #[error("invalid chunk shape {0:?}: expected at least one element along every axis")]
    EmptyChunk(Vec<u64>),
    #[error("invalid chunk shape: expected one size for each of {axes} axes, found {chunks}")]
    Rank { chunks: usize, axes: usize },
    #[error("invalid shape {0:?}: expected at most 2^63 bytes, at 16 bytes per element")]
    TooLarge(Vec<u64>),
    #[error("invalid chunk boundaries {0:?}: expected ascending positions from 0")]
    Boundaries(Vec<u64>),
}

/// The division of an axis into chunks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AxisGrid {
    /// `n` chunks: the first of `first` elements, the last of `last`, and the others of `size`. A
    /// single chunk is both first and last. An axis of length 0 has no chunks.
    Regular {
        /// The number of elements in the first chunk.
        first: u64,
        /// The number of elements in each chunk between the first and the last.
        size: u64,
        /// The number of chunks.
        n: u64,
        /// The number of elements in the last chunk.
        last: u64,
    },
    /// The boundaries of the chunks: ascending positions from 0 to the length.
    Bounds(Vec<u64>),
}

impl AxisGrid {
    /// Returns an axis of `len` elements in chunks of `size`. The last chunk may be shorter.
    pub fn regular(len: u64, size: u64) -> AxisGrid {
        let size = size.max(1);
        let n = len.div_ceil(size);
        if n <= 1 {
            return AxisGrid::Regular { first: len, size: len.max(1), n, last: len };
        }
        AxisGrid::Regular { first: size, size, n, last: len - (n - 1) * size }
    }

    /// Returns an axis of `len` elements with a first chunk of `first` elements, and then chunks of
    /// `size`.
    pub fn offset(len: u64, first: u64, size: u64) -> AxisGrid {
        if first >= len {
            return AxisGrid::regular(len, len);
        }
        let rest = len - first;
        let n = 1 + rest.div_ceil(size);
        AxisGrid::Regular { first, size, n, last: rest - (n - 2) * size }
    }

    /// Returns an axis with explicit chunk boundaries.
    ///
    /// # Errors
    /// Returns an error if the boundaries do not start at 0 or are not ascending.
    pub fn bounds(bounds: Vec<u64>) -> Result<AxisGrid, GridError> {
        if bounds.first() != Some(&0) || bounds.windows(2).any(|w| w[0] >= w[1]) {
            return Err(GridError::Boundaries(bounds));
        }
        Ok(AxisGrid::Bounds(bounds))
    }

    /// Returns the number of elements.
    pub fn len(&self) -> u64 {
        match self {
            AxisGrid::Regular { n: 0, .. } => 0,
            AxisGrid::Regular { first, n: 1, .. } => *first,
            AxisGrid::Regular { first, size, n, last } => first + (n - 2) * size + last,
            AxisGrid::Bounds(b) => b.last().copied().unwrap_or(0),
        }
    }

    /// Returns true if the axis is valid: no chunk is empty, boundaries ascend from 0, and the
    /// length does not overflow. A deserialized axis may be invalid.
    pub fn is_valid(&self) -> bool {
        match self {
            AxisGrid::Regular { n: 0 | 1, .. } => true,
            AxisGrid::Regular { first, size, n, last } => {
                let length = (n - 2)
                    .checked_mul(*size)
                    .and_then(|b| b.checked_add(*first))
                    .and_then(|b| b.checked_add(*last));
                *first > 0
                    && *size > 0
                    && *last > 0
                    && length.is_some_and(|length| length < 1 << 63)
            }
            AxisGrid::Bounds(b) => b.first() == Some(&0) && b.windows(2).all(|w| w[0] < w[1]),
        }
    }

    /// Returns true if the axis has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of chunks.
    pub fn n_chunks(&self) -> u64 {
        match self {
            AxisGrid::Regular { n, .. } => *n,
            AxisGrid::Bounds(b) => b.len() as u64 - 1,
        }
    }

    /// Returns the first element of chunk `i`, or the length if `i` is the number of chunks.
    pub fn start(&self, i: u64) -> u64 {
        match self {
            _ if i == 0 => 0,
            AxisGrid::Regular { n, .. } if i >= *n => self.len(),
            AxisGrid::Regular { first, size, .. } => first + (i - 1) * size,
            AxisGrid::Bounds(b) => b[i as usize],
        }
    }

    /// Returns the number of elements in chunk `i`.
    pub fn extent(&self, i: u64) -> u64 {
        self.start(i + 1) - self.start(i)
    }

    /// Returns the chunk that contains element `x`, which must lie inside the axis.
    pub fn find(&self, x: u64) -> u64 {
        match self {
            AxisGrid::Regular { first, .. } if x < *first => 0,
            AxisGrid::Regular { first, size, n, .. } => (1 + (x - first) / size).min(n - 1),
            AxisGrid::Bounds(b) => b.partition_point(|s| *s <= x) as u64 - 1,
        }
    }

    /// Returns the number of elements in the largest chunk.
    pub fn max_extent(&self) -> u64 {
        match self {
            AxisGrid::Regular { n: 0, .. } => 0,
            AxisGrid::Regular { first, n: 1, .. } => *first,
            AxisGrid::Regular { first, n: 2, last, .. } => *first.max(last),
            AxisGrid::Regular { first, size, last, .. } => *first.max(size).max(last),
            AxisGrid::Bounds(b) => b.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0),
        }
    }

    /// Returns the axis with every `k` adjacent chunks merged.
    pub fn group(&self, k: u64) -> AxisGrid {
        let n = self.n_chunks();
        if k <= 1 || n <= 1 {
            return self.clone();
        }
        let groups = n.div_ceil(k);
        match self {
            _ if groups == 1 => AxisGrid::regular(self.len(), self.len()),
            AxisGrid::Regular { size, .. } => AxisGrid::Regular {
                first: self.start(k),
                size: k * size,
                n: groups,
                last: self.len() - self.start((groups - 1) * k),
            },
            AxisGrid::Bounds(_) => {
                AxisGrid::Bounds((0..=groups).map(|g| self.start((g * k).min(n))).collect())
            }
        }
    }

    /// Returns the grid of the `len` elements `start, start + step, …`. Its boundaries follow those
    /// of the chunks where the result is a regular grid.
    ///
    /// `step` may be negative, but not 0.
    pub fn slice(&self, start: u64, step: i64, len: u64) -> AxisGrid {
        let stride = step.unsigned_abs().max(1);
        if len == 0 || self.n_chunks() <= 1 {
            return AxisGrid::regular(len, len);
        }
        let size = match self {
            AxisGrid::Regular { size, n, .. } if *n > 2 => *size,
            _ => self.max_extent(),
        };
        // The number of elements up to the first boundary, ascending or descending from `start`.
        let chunk = self.find(start);
        let room =
            if step > 0 { self.start(chunk + 1) - start } else { start - self.start(chunk) + 1 };
        AxisGrid::offset(len, room.div_ceil(stride).min(len), size.div_ceil(stride))
    }

    /// Returns the axis with its chunks in reverse order.
    fn reversed(&self) -> AxisGrid {
        match self {
            AxisGrid::Regular { first, size, n, last } => {
                AxisGrid::Regular { first: *last, size: *size, n: *n, last: *first }
            }
            AxisGrid::Bounds(b) => {
                AxisGrid::Bounds(b.iter().rev().map(|x| self.len() - x).collect())
            }
        }
    }

    /// Returns true if each chunk of `self`, as the elements `start + step·i` of `other`, lies
    /// inside one chunk of `other`.
    ///
    /// Takes constant time for regular grids. May return false for grids that nest.
    pub fn nests_in(&self, other: &AxisGrid, start: u64, step: i64) -> bool {
        if other.n_chunks() <= 1 || self.n_chunks() == 0 || self.max_extent() <= 1 {
            return true;
        }
        let len = self.len();
        let last = (start as i128 + step as i128 * (len as i128 - 1)) as u64;
        if other.find(start) == other.find(last) {
            return true;
        }
        if step == -1 {
            return self.nests_in(&other.reversed(), other.len() - 1 - start, 1);
        }
        if step != 1 {
            return false;
        }
        // Every boundary of `other` inside the window must be a boundary of `self`.
        let (c0, c1) = (other.find(start) + 1, other.find(last));
        let is_boundary = |x: u64| self.start(self.find(x)) == x;
        match (self, other) {
            (AxisGrid::Regular { first, size, n, .. }, AxisGrid::Regular { size: theirs, .. }) => {
                let (a, b) = (other.start(c0) - start, other.start(c1) - start);
                (c0 == c1 && is_boundary(a))
                    || (is_boundary(a)
                        && is_boundary(b)
                        && (c1 - c0 < 2 || (theirs % size == 0 && a >= *first && *n > 1)))
            }
            _ if c1 - c0 < 1 << 17 => (c0..=c1).all(|c| is_boundary(other.start(c) - start)),
            _ => false,
        }
    }
}

/// A box of elements or chunks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Region {
    /// The first element along each axis.
    pub start: Vec<u64>,
    /// The number of elements along each axis.
    pub shape: Vec<u64>,
}

impl Region {
    /// Returns the region of a whole array.
    pub fn whole(shape: &[u64]) -> Region {
        Region { start: vec![0; shape.len()], shape: shape.to_vec() }
    }

    /// Returns the number of elements.
    pub fn n_elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Returns the intersection, or `None` if it is empty.
    pub fn intersect(&self, other: &Region) -> Option<Region> {
        let mut both = Region {
            start: Vec::with_capacity(self.start.len()),
            shape: Vec::with_capacity(self.start.len()),
        };
        for d in 0..self.start.len() {
            let start = self.start[d].max(other.start[d]);
            let stop = (self.start[d] + self.shape[d]).min(other.start[d] + other.shape[d]);
            if start >= stop {
                return None;
            }
            both.start.push(start);
            both.shape.push(stop - start);
        }
        Some(both)
    }
}

/// The division of an array into chunks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkGrid {
    axes: Vec<AxisGrid>,
}

impl ChunkGrid {
    /// Creates a grid from the grid of each axis.
    pub fn new(axes: Vec<AxisGrid>) -> ChunkGrid {
        ChunkGrid { axes }
    }

    /// Creates a grid of chunks of one shape, which are shorter at the upper edges.
    ///
    /// # Errors
    /// Returns an error if the ranks differ, if a chunk would be empty, or if the array would
    /// exceed 2⁶³ bytes at 16 bytes per element.
    pub fn regular(shape: &[u64], chunk: &[u64]) -> Result<ChunkGrid, GridError> {
        if shape.len() != chunk.len() {
            return Err(GridError::Rank { chunks: chunk.len(), axes: shape.len() });
        }
        if chunk.iter().zip(shape).any(|(c, n)| *c == 0 && *n > 0) {
            return Err(GridError::EmptyChunk(chunk.to_vec()));
        }
        let total = shape.iter().filter(|n| **n > 0).try_fold(16u64, |p, n| p.checked_mul(*n));
        if total.is_none_or(|t| t > i64::MAX as u64) {
            return Err(GridError::TooLarge(shape.to_vec()));
        }
        Ok(ChunkGrid {
            axes: shape.iter().zip(chunk).map(|(n, c)| AxisGrid::regular(*n, *c)).collect(),
        })
    }

    /// Returns the grid of each axis.
    pub fn axes(&self) -> &[AxisGrid] {
        &self.axes
    }

    /// Returns the number of elements along each axis.
    pub fn shape(&self) -> Vec<u64> {
        self.axes.iter().map(AxisGrid::len).collect()
    }

    /// Returns the number of chunks along each axis.
    pub fn chunk_counts(&self) -> Vec<u64> {
        self.axes.iter().map(AxisGrid::n_chunks).collect()
    }

    /// Returns the number of chunks.
    pub fn n_chunks(&self) -> u64 {
        self.axes.iter().map(AxisGrid::n_chunks).product()
    }

    /// Returns the shape of the largest chunk.
    pub fn max_chunk(&self) -> Vec<u64> {
        self.axes.iter().map(AxisGrid::max_extent).collect()
    }

    /// Returns the coordinates of the chunk at `index` in C order.
    pub fn coords(&self, index: u64) -> Vec<u64> {
        let mut rest = index;
        let mut coords = vec![0; self.axes.len()];
        for (c, axis) in coords.iter_mut().zip(&self.axes).rev() {
            *c = rest % axis.n_chunks().max(1);
            rest /= axis.n_chunks().max(1);
        }
        coords
    }

    /// Returns the index of a chunk in C order.
    pub fn index(&self, coords: &[u64]) -> u64 {
        self.axes.iter().zip(coords).fold(0, |i, (axis, c)| i * axis.n_chunks() + c)
    }

    /// Returns the region of a chunk.
    pub fn region(&self, coords: &[u64]) -> Region {
        Region {
            start: self.axes.iter().zip(coords).map(|(a, c)| a.start(*c)).collect(),
            shape: self.axes.iter().zip(coords).map(|(a, c)| a.extent(*c)).collect(),
        }
    }

    /// Returns the chunks that a region overlaps, as a region of chunk coordinates.
    pub fn overlapping(&self, region: &Region) -> Region {
        let start: Vec<u64> = self
            .axes
            .iter()
            .zip(&region.start)
            .map(|(a, s)| if a.is_empty() { 0 } else { a.find(*s) })
            .collect();
        let shape = self
            .axes
            .iter()
            .zip(region.start.iter().zip(&region.shape))
            .zip(&start)
            .map(|((a, (s, n)), first)| if *n == 0 { 0 } else { a.find(s + n - 1) - first + 1 })
            .collect();
        Region { start, shape }
    }
}

/// Returns the size of a block in bytes, or `None` if it is 2⁶⁰ or more.
pub fn block_bytes(shape: &[u64], size: usize) -> Option<u64> {
    shape.iter().try_fold(size as u64, |p, n| p.checked_mul(*n)).filter(|bytes| *bytes < 1 << 60)
}

/// Calls `f` with every coordinate of a box in C order, until `f` returns an error.
pub fn try_for_each_coord<E>(
    coords: &Region,
    mut f: impl FnMut(&[u64]) -> Result<(), E>,
) -> Result<(), E> {
    if coords.shape.contains(&0) {
        return Ok(());
    }
    let mut at = coords.start.clone();
    loop {
        f(&at)?;
        let mut d = at.len();
        loop {
            if d == 0 {
                return Ok(());
            }
            d -= 1;
            at[d] += 1;
            if at[d] < coords.start[d] + coords.shape[d] {
                break;
            }
            at[d] = coords.start[d];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn axis() -> impl Strategy<Value = AxisGrid> {
        prop_oneof![
            (0u64..40, 1u64..12).prop_map(|(n, c)| AxisGrid::regular(n, c)),
            (1u64..40, 1u64..12, 1u64..12).prop_map(|(n, f, c)| AxisGrid::offset(n, f, c)),
            prop::collection::vec(1u64..9, 1..7).prop_map(|sizes| {
                let mut at = 0;
                AxisGrid::Bounds(
                    std::iter::once(0)
                        .chain(sizes.into_iter().map(|s| {
                            at += s;
                            at
                        }))
                        .collect(),
                )
            }),
        ]
    }

    fn step() -> impl Strategy<Value = i64> {
        prop_oneof![-3i64..0, 1i64..4]
    }

    /// Returns the number of elements from `start` by `step` inside an axis.
    fn room(g: &AxisGrid, start: u64, step: i64) -> u64 {
        let steps = if step > 0 {
            (g.len() - 1 - start) / step as u64
        } else {
            start / step.unsigned_abs()
        };
        steps + 1
    }

    fn boundaries(g: &AxisGrid) -> Vec<u64> {
        (0..=g.n_chunks()).map(|i| g.start(i)).collect()
    }

    proptest! {
        #[test]
        fn chunks_tile_the_axis(g in axis()) {
            let sum: u64 = (0..g.n_chunks()).map(|i| g.extent(i)).sum();
            prop_assert_eq!(sum, g.len());
            let largest = (0..g.n_chunks()).map(|i| g.extent(i)).max().unwrap_or(0);
            prop_assert_eq!(largest, g.max_extent());
            for x in 0..g.len() {
                let c = g.find(x);
                prop_assert!(g.start(c) <= x && x < g.start(c) + g.extent(c));
            }
        }

        #[test]
        fn grouping_keeps_every_kth_boundary(g in axis(), k in 1u64..6) {
            let grouped = g.group(k);
            prop_assert_eq!(grouped.len(), g.len());
            let mut expect: Vec<u64> = boundaries(&g).into_iter().step_by(k as usize).collect();
            if expect.last() != Some(&g.len()) { expect.push(g.len()); }
            prop_assert_eq!(boundaries(&grouped), expect);
        }

        #[test]
        fn a_slice_has_its_length(g in axis(), start in 0u64..40, step in step(), len in 0u64..40) {
            prop_assume!(!g.is_empty());
            let start = start % g.len();
            let len = len.min(room(&g, start, step));
            let s = g.slice(start, step, len);
            prop_assert_eq!(s.len(), len);
            prop_assert_eq!((0..s.n_chunks()).map(|i| s.extent(i)).sum::<u64>(), len);
            if let (AxisGrid::Regular { .. }, 1 | -1, true) = (&g, step, len > 0) {
                prop_assert!(s.nests_in(&g, start, step), "{:?} of {:?}", s, g);
            }
        }

        #[test]
        fn nesting_is_never_claimed_wrongly(
            a in axis(), b in axis(), start in 0u64..40, step in step(),
        ) {
            prop_assume!(!a.is_empty() && !b.is_empty());
            // Restrict the window to the inside of `b`.
            let start = start % b.len();
            let a = a.slice(0, 1, a.len().min(room(&b, start, step)));
            let truly = (0..a.n_chunks()).all(|c| {
                let at = |x: u64| b.find((start as i64 + step * x as i64) as u64);
                at(a.start(c)) == at(a.start(c) + a.extent(c) - 1)
            });
            if a.nests_in(&b, start, step) { prop_assert!(truly); }
        }
    }
}
