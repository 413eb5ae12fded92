//! All index arithmetic: how an axis is cut into chunks, and which elements a chunk holds.
//!
//! Grids are irregular inside: a slice, a concatenation or an intermediate of a rechunk cuts an
//! axis where it must. Only stored outputs are regular. Nothing here works per chunk: a grid of 10⁹
//! chunks is four numbers an axis.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a grid is not one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum GridError {
    #[error("chunks must have at least one element along every axis, not {0:?}")]
    EmptyChunk(Vec<u64>),
    #[error("{chunks} chunk sizes were given for {axes} axes: give one for each axis")]
    Rank { chunks: usize, axes: usize },
    #[error("an array of shape {0:?} has more elements than 2^63 bytes can hold")]
    TooLarge(Vec<u64>),
    #[error("the boundaries of an axis must rise from 0, not {0:?}")]
    Boundaries(Vec<u64>),
}

/// How one axis is cut into chunks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AxisGrid {
    /// `n` chunks: the first of `first` elements, the last of `last`, those between of `size`. One
    /// chunk is both first and last; an axis of length 0 has none.
    Regular {
        /// Elements in the first chunk.
        first: u64,
        /// Elements in each chunk between.
        size: u64,
        /// Number of chunks.
        n: u64,
        /// Elements in the last chunk.
        last: u64,
    },
    /// Rising positions from 0 to the length.
    Bounds(Vec<u64>),
}

impl AxisGrid {
    /// An axis of `len` elements in chunks of `size`, the last one shorter where it must be.
    pub fn regular(len: u64, size: u64) -> AxisGrid {
        let size = size.max(1);
        let n = len.div_ceil(size);
        if n <= 1 {
            return AxisGrid::Regular { first: len, size: len.max(1), n, last: len };
        }
        AxisGrid::Regular { first: size, size, n, last: len - (n - 1) * size }
    }

    /// The first chunk of `first` elements, then chunks of `size`.
    pub fn offset(len: u64, first: u64, size: u64) -> AxisGrid {
        if first >= len {
            return AxisGrid::regular(len, len);
        }
        let rest = len - first;
        let n = 1 + rest.div_ceil(size);
        AxisGrid::Regular { first, size, n, last: rest - (n - 2) * size }
    }

    /// Chunks between explicit boundaries.
    ///
    /// # Errors
    /// Where they do not start at 0 and rise.
    pub fn bounds(bounds: Vec<u64>) -> Result<AxisGrid, GridError> {
        if bounds.first() != Some(&0) || bounds.windows(2).any(|w| w[0] >= w[1]) {
            return Err(GridError::Boundaries(bounds));
        }
        Ok(AxisGrid::Bounds(bounds))
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        match self {
            AxisGrid::Regular { n: 0, .. } => 0,
            AxisGrid::Regular { first, n: 1, .. } => *first,
            AxisGrid::Regular { first, size, n, last } => first + (n - 2) * size + last,
            AxisGrid::Bounds(b) => b.last().copied().unwrap_or(0),
        }
    }

    /// True if the numbers describe a cut: no chunk is empty, boundaries rise from 0, and the
    /// length does not overflow. An axis that was read back from a plan may be none.
    pub fn holds(&self) -> bool {
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

    /// True for an axis without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of chunks.
    pub fn n_chunks(&self) -> u64 {
        match self {
            AxisGrid::Regular { n, .. } => *n,
            AxisGrid::Bounds(b) => b.len() as u64 - 1,
        }
    }

    /// First element of chunk `i`; the length for `i` = the number of chunks.
    pub fn start(&self, i: u64) -> u64 {
        match self {
            _ if i == 0 => 0,
            AxisGrid::Regular { n, .. } if i >= *n => self.len(),
            AxisGrid::Regular { first, size, .. } => first + (i - 1) * size,
            AxisGrid::Bounds(b) => b[i as usize],
        }
    }

    /// Elements in chunk `i`.
    pub fn extent(&self, i: u64) -> u64 {
        self.start(i + 1) - self.start(i)
    }

    /// The chunk that holds element `x`, which must be inside.
    pub fn find(&self, x: u64) -> u64 {
        match self {
            AxisGrid::Regular { first, .. } if x < *first => 0,
            AxisGrid::Regular { first, size, n, .. } => (1 + (x - first) / size).min(n - 1),
            AxisGrid::Bounds(b) => b.partition_point(|s| *s <= x) as u64 - 1,
        }
    }

    /// Elements in the largest chunk.
    pub fn max_extent(&self) -> u64 {
        match self {
            AxisGrid::Regular { n: 0, .. } => 0,
            AxisGrid::Regular { first, n: 1, .. } => *first,
            AxisGrid::Regular { first, n: 2, last, .. } => *first.max(last),
            AxisGrid::Regular { first, size, last, .. } => *first.max(size).max(last),
            AxisGrid::Bounds(b) => b.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0),
        }
    }

    /// Every `k` neighbouring chunks as one.
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

    /// The grid of elements `start, start + step, …` (`len` of them), cut where the chunks are cut
    /// if that stays simple.
    ///
    /// `step` may be negative, never 0.
    pub fn slice(&self, start: u64, step: i64, len: u64) -> AxisGrid {
        let pace = step.unsigned_abs().max(1);
        if len == 0 || self.n_chunks() <= 1 {
            return AxisGrid::regular(len, len);
        }
        let size = match self {
            AxisGrid::Regular { size, n, .. } if *n > 2 => *size,
            _ => self.max_extent(),
        };
        // Elements until the first cut, going up from the chunk of `start` or down from it.
        let chunk = self.find(start);
        let room =
            if step > 0 { self.start(chunk + 1) - start } else { start - self.start(chunk) + 1 };
        AxisGrid::offset(len, room.div_ceil(pace).min(len), size.div_ceil(pace))
    }

    /// True if each chunk of `self`, read as elements `start + step·i` of `other`, lies inside one
    /// chunk of `other`.
    ///
    /// Decided in constant time for regular grids; `false` where it is not easily shown.
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
            let reversed = |g: &AxisGrid| match g {
                AxisGrid::Regular { first, size, n, last } => {
                    AxisGrid::Regular { first: *last, size: *size, n: *n, last: *first }
                }
                AxisGrid::Bounds(b) => {
                    AxisGrid::Bounds(b.iter().rev().map(|x| g.len() - x).collect())
                }
            };
            return self.nests_in(&reversed(other), other.len() - 1 - start, 1);
        }
        if step != 1 {
            return false;
        }
        // Every cut of `other` inside the window must be a cut of `self`.
        let (c0, c1) = (other.find(start) + 1, other.find(last));
        let is_cut = |x: u64| self.start(self.find(x)) == x;
        match (self, other) {
            (AxisGrid::Regular { first, size, n, .. }, AxisGrid::Regular { size: theirs, .. }) => {
                let (a, b) = (other.start(c0) - start, other.start(c1) - start);
                (c0 == c1 && is_cut(a))
                    || (is_cut(a)
                        && is_cut(b)
                        && (c1 - c0 < 2 || (theirs % size == 0 && a >= *first && *n > 1)))
            }
            _ if c1 - c0 < 1 << 17 => (c0..=c1).all(|c| is_cut(other.start(c) - start)),
            _ => false,
        }
    }
}

/// A box of elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Region {
    /// First element along each axis.
    pub start: Vec<u64>,
    /// Elements along each axis.
    pub shape: Vec<u64>,
}

impl Region {
    /// All of an array.
    pub fn whole(shape: &[u64]) -> Region {
        Region { start: vec![0; shape.len()], shape: shape.to_vec() }
    }

    /// Number of elements.
    pub fn n_elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// What both hold, or `None` if that is nothing.
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

/// How an array is cut into chunks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkGrid {
    axes: Vec<AxisGrid>,
}

impl ChunkGrid {
    /// From one grid for each axis.
    pub fn new(axes: Vec<AxisGrid>) -> ChunkGrid {
        ChunkGrid { axes }
    }

    /// Chunks of one shape, shorter at the upper edges.
    ///
    /// # Errors
    /// Where the ranks differ, a chunk would be empty, or the array is beyond 2⁶³ bytes of 16-byte
    /// elements.
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

    /// Each axis.
    pub fn axes(&self) -> &[AxisGrid] {
        &self.axes
    }

    /// Elements along each axis.
    pub fn shape(&self) -> Vec<u64> {
        self.axes.iter().map(AxisGrid::len).collect()
    }

    /// Number of chunks along each axis.
    pub fn chunk_counts(&self) -> Vec<u64> {
        self.axes.iter().map(AxisGrid::n_chunks).collect()
    }

    /// Number of chunks.
    pub fn n_chunks(&self) -> u64 {
        self.axes.iter().map(AxisGrid::n_chunks).product()
    }

    /// Elements along each axis of the largest chunk.
    pub fn max_chunk(&self) -> Vec<u64> {
        self.axes.iter().map(AxisGrid::max_extent).collect()
    }

    /// The coordinates of chunk `index` in C order.
    pub fn coords(&self, index: u64) -> Vec<u64> {
        let mut rest = index;
        let mut coords = vec![0; self.axes.len()];
        for (c, axis) in coords.iter_mut().zip(&self.axes).rev() {
            *c = rest % axis.n_chunks().max(1);
            rest /= axis.n_chunks().max(1);
        }
        coords
    }

    /// The place of a chunk in C order.
    pub fn index(&self, coords: &[u64]) -> u64 {
        self.axes.iter().zip(coords).fold(0, |i, (axis, c)| i * axis.n_chunks() + c)
    }

    /// The elements of a chunk.
    pub fn region(&self, coords: &[u64]) -> Region {
        Region {
            start: self.axes.iter().zip(coords).map(|(a, c)| a.start(*c)).collect(),
            shape: self.axes.iter().zip(coords).map(|(a, c)| a.extent(*c)).collect(),
        }
    }

    /// The chunks that a region touches: first coordinates, and how many along each axis.
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

/// Bytes of a block; `None` where they cannot be counted, or lie beyond what any memory has (2⁶⁰).
pub fn block_bytes(shape: &[u64], size: usize) -> Option<u64> {
    shape.iter().try_fold(size as u64, |p, n| p.checked_mul(*n)).filter(|bytes| *bytes < 1 << 60)
}

/// Calls `f` with every coordinate of a box, in C order, until it fails.
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

    fn cuts(g: &AxisGrid) -> Vec<u64> {
        (0..=g.n_chunks()).map(|i| g.start(i)).collect()
    }

    proptest! {
        #[test]
        fn chunks_tile_the_axis(g in axis()) {
            let sum: u64 = (0..g.n_chunks()).map(|i| g.extent(i)).sum();
            prop_assert_eq!(sum, g.len());
            prop_assert_eq!((0..g.n_chunks()).map(|i| g.extent(i)).max().unwrap_or(0), g.max_extent());
            for x in 0..g.len() {
                let c = g.find(x);
                prop_assert!(g.start(c) <= x && x < g.start(c) + g.extent(c));
            }
        }

        #[test]
        fn grouping_keeps_every_kth_cut(g in axis(), k in 1u64..6) {
            let grouped = g.group(k);
            prop_assert_eq!(grouped.len(), g.len());
            let mut expect: Vec<u64> = cuts(&g).into_iter().step_by(k as usize).collect();
            if expect.last() != Some(&g.len()) { expect.push(g.len()); }
            prop_assert_eq!(cuts(&grouped), expect);
        }

        #[test]
        fn a_slice_has_its_length(g in axis(), start in 0u64..40, step in prop_oneof![-3i64..0, 1i64..4], len in 0u64..40) {
            prop_assume!(!g.is_empty());
            let start = start % g.len();
            let room = if step > 0 { (g.len() - 1 - start) / step as u64 } else { start / step.unsigned_abs() } + 1;
            let len = len.min(room);
            let s = g.slice(start, step, len);
            prop_assert_eq!(s.len(), len);
            prop_assert_eq!((0..s.n_chunks()).map(|i| s.extent(i)).sum::<u64>(), len);
            if let (AxisGrid::Regular { .. }, 1 | -1, true) = (&g, step, len > 0) {
                prop_assert!(s.nests_in(&g, start, step), "{:?} of {:?}", s, g);
            }
        }

        #[test]
        fn nesting_is_never_claimed_wrongly(a in axis(), b in axis(), start in 0u64..40, step in prop_oneof![-3i64..0, 1i64..4]) {
            prop_assume!(!a.is_empty() && !b.is_empty());
            // Cut the window to what lies inside `b`.
            let start = start % b.len();
            let room = if step > 0 { (b.len() - 1 - start) / step as u64 } else { start / step.unsigned_abs() } + 1;
            let a = a.slice(0, 1, a.len().min(room));
            let truly = (0..a.n_chunks()).all(|c| {
                let at = |x: u64| b.find((start as i64 + step * x as i64) as u64);
                at(a.start(c)) == at(a.start(c) + a.extent(c) - 1)
            });
            if a.nests_in(&b, start, step) { prop_assert!(truly); }
        }
    }
}
