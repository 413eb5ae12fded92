//! Maps from the elements of an array to their sources.
//!
//! A [`ReadMap`] is data, not a closure, because tasks run in other processes. Its normal form is a
//! list of boxes. Each box holds one fill value, or is the image of a box of a source: along each
//! axis, the index is an affine function or an entry of an index list. The form is closed under
//! composition. Slices, flips, permutations, broadcasts, concatenations, pads and takes are one map
//! each, and so is any chain of them. A chain of views therefore needs no stage.
//!
//! A separate map represents an array of another shape with the same elements in C order
//! ([`ReadMap::flat`]). It composes only with elementwise functions.

mod check;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::grid::{AxisGrid, Region, try_for_each_coord};
use freestone_kernels::Scalar;

/// The maximum number of pieces of a map, because each task visits all of them. Beyond it, the
/// planner materializes an array.
pub const MAX_PIECES: usize = 4096;

/// The error for maps that do not compose, or for a malformed map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum ReadMapError {
    #[error(
        "a chain of views has {0} pieces, above the limit of {MAX_PIECES} (hint: store or rechunk \
         one of its arrays first)"
    )]
    TooManyPieces(usize),
    #[error(
        "cannot compose a view with a reshape (hint: store or rechunk the reshaped array first)"
    )]
    Flat,
    #[error("malformed read map: {0}")]
    Malformed(&'static str),
}

/// The sources of the elements of an array.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadMap {
    shape: Vec<u64>,
    pieces: Vec<Piece>,
}

/// A box of the array with its source. Pieces are disjoint and cover the array.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Piece {
    /// The box.
    pub to: Region,
    /// The source of the elements.
    pub from: Origin,
}

/// The source of the elements of a box.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// One value for all elements.
    Fill(Scalar),
    /// A source array.
    Source {
        /// The index of the source in the map's sources.
        source: usize,
        /// The index map of each axis of the source.
        axes: Vec<AxisMap>,
    },
    /// The elements of source 0, which has another shape, in C order. Such a map has one piece.
    Flat,
}

/// The index along one axis of a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AxisMap {
    /// One index for all elements.
    Fixed(u64),
    /// `start + step · (i − first)`, where `i` is the index along `axis` of the array and `first`
    /// the box's first. `step` is not 0.
    Along {
        /// The axis of the array.
        axis: usize,
        /// The index for the box's first element.
        start: u64,
        /// The distance between indices of adjacent elements; negative for descending indices.
        step: i64,
    },
    /// `indices[start + step · (i − first)]`, where `i` is the index along `axis` of the array and
    /// `first` the box's first.
    Gather {
        /// The axis of the array.
        axis: usize,
        /// The position in the list for the box's first element.
        start: u64,
        /// The distance between list positions of adjacent elements.
        step: i64,
        /// The index list.
        indices: Arc<[u64]>,
    },
}

/// Elements of a box along one axis with evenly spaced indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first element.
    pub first: u64,
    /// The number of elements.
    pub count: u64,
    /// The index of the first element.
    pub start: u64,
    /// The distance between the indices of adjacent elements.
    pub step: i64,
}

impl AxisMap {
    /// Returns the identity along an axis.
    pub fn whole(axis: usize) -> AxisMap {
        AxisMap::Along { axis, start: 0, step: 1 }
    }

    /// Returns the axis of the array along which the index varies.
    pub fn axis(&self) -> Option<usize> {
        match self {
            AxisMap::Fixed(_) => None,
            AxisMap::Along { axis, .. } | AxisMap::Gather { axis, .. } => Some(*axis),
        }
    }

    /// Returns the index for element `j` of the box along the axis.
    pub fn at(&self, j: u64) -> u64 {
        let along = |start: u64, step: i64| (start as i128 + step as i128 * j as i128) as u64;
        match self {
            AxisMap::Fixed(x) => *x,
            AxisMap::Along { start, step, .. } => along(*start, *step),
            AxisMap::Gather { start, step, indices, .. } => indices[along(*start, *step) as usize],
        }
    }

    /// Returns the elements of `0..len` whose index lies in `lo..hi`, as runs of evenly spaced
    /// indices.
    pub fn runs(&self, lo: u64, hi: u64, len: u64) -> Vec<Run> {
        match self {
            AxisMap::Fixed(x) if lo <= *x && *x < hi => {
                vec![Run { first: 0, count: len, start: *x, step: 0 }]
            }
            AxisMap::Fixed(_) => vec![],
            AxisMap::Along { start, step, .. } => {
                let (s, t, lo, hi) = (*start as i128, *step as i128, lo as i128, hi as i128);
                let ceil = |a: i128, b: i128| -((-a).div_euclid(b));
                let (first, end) = if t > 0 {
                    (ceil(lo - s, t), ceil(hi - s, t))
                } else {
                    ((s - hi).div_euclid(-t) + 1, (s - lo).div_euclid(-t) + 1)
                };
                let (first, end) =
                    (first.clamp(0, len as i128) as u64, end.clamp(0, len as i128) as u64);
                if first < end {
                    vec![Run { first, count: end - first, start: self.at(first), step: *step }]
                } else {
                    vec![]
                }
            }
            AxisMap::Gather { .. } => {
                let mut runs = Vec::new();
                (0..len).for_each(|j| {
                    let index = self.at(j);
                    if lo <= index && index < hi {
                        extend(&mut runs, j, index);
                    }
                });
                runs
            }
        }
    }

    /// Returns the chunks along an axis that contain the indices of `0..len`, each with its runs.
    pub fn hits(&self, grid: &AxisGrid, len: u64) -> Vec<(u64, Vec<Run>)> {
        match self {
            _ if len == 0 => vec![],
            AxisMap::Gather { .. } => {
                let mut hits: BTreeMap<u64, Vec<Run>> = BTreeMap::new();
                (0..len).for_each(|j| {
                    let index = self.at(j);
                    extend(hits.entry(grid.find(index)).or_default(), j, index);
                });
                hits.into_iter().collect()
            }
            _ => {
                let (a, b) = (grid.find(self.at(0)), grid.find(self.at(len - 1)));
                let all = a.min(b)..=a.max(b);
                all.map(|c| (c, self.runs(grid.start(c), grid.start(c + 1), len)))
                    .filter(|(_, runs)| !runs.is_empty())
                    .collect()
            }
        }
    }

    /// Returns the map for a box that starts `offset` elements later along each axis.
    fn moved(&self, offset: &[u64]) -> AxisMap {
        match self {
            AxisMap::Along { axis, step, .. } => {
                AxisMap::Along { axis: *axis, start: self.at(offset[*axis]), step: *step }
            }
            AxisMap::Gather { axis, start, step, indices } => AxisMap::Gather {
                axis: *axis,
                start: (*start as i64 + step * offset[*axis] as i64) as u64,
                step: *step,
                indices: Arc::clone(indices),
            },
            AxisMap::Fixed(x) => AxisMap::Fixed(*x),
        }
    }

    /// Composes this map with the index maps `outer` from a box of shape `to` into an intermediate
    /// array. This map covers the box of the intermediate array that starts at `first`.
    fn after(&self, outer: &[AxisMap], first: &[u64], to: &[u64]) -> AxisMap {
        let Some(middle) = self.axis() else { return self.clone() };
        match (self, &outer[middle]) {
            (_, AxisMap::Fixed(x)) => AxisMap::Fixed(self.at(x - first[middle])),
            (AxisMap::Along { step: t, .. }, AxisMap::Along { axis, start, step }) => {
                AxisMap::Along {
                    axis: *axis,
                    start: self.at(start - first[middle]),
                    step: t * step,
                }
            }
            (
                AxisMap::Gather { start: s, step: t, indices, .. },
                AxisMap::Along { axis, start, step },
            ) => {
                let start = (*s as i64 + t * (start - first[middle]) as i64) as u64;
                AxisMap::Gather { axis: *axis, start, step: t * step, indices: Arc::clone(indices) }
            }
            (_, outer) => {
                let axis = outer.axis().unwrap_or(0);
                let indices = (0..to[axis]).map(|j| self.at(outer.at(j) - first[middle])).collect();
                AxisMap::Gather { axis, start: 0, step: 1, indices }
            }
        }
    }
}

/// Appends an element to the last run, or starts a new run.
fn extend(runs: &mut Vec<Run>, j: u64, index: u64) {
    if let Some(run) = runs.last_mut()
        && run.first + run.count == j
    {
        let next = index as i64 - (run.start as i64 + run.step * (run.count as i64 - 1));
        if run.count == 1 || next == run.step {
            run.step = next;
            run.count += 1;
            return;
        }
    }
    runs.push(Run { first: j, count: 1, start: index, step: 0 });
}

impl ReadMap {
    /// Creates a map from pieces that are disjoint and cover `shape`.
    pub fn new(shape: Vec<u64>, pieces: Vec<Piece>) -> ReadMap {
        ReadMap { shape, pieces }
    }

    /// Returns the map of an array that equals source 0.
    pub fn identity(shape: &[u64]) -> ReadMap {
        ReadMap::image(shape.to_vec(), (0..shape.len()).map(AxisMap::whole).collect())
    }

    /// Returns the map of an array with the elements of source 0 in C order, in another shape.
    pub fn flat(shape: Vec<u64>) -> ReadMap {
        let to = Region::whole(&shape);
        ReadMap { shape, pieces: vec![Piece { to, from: Origin::Flat }] }
    }

    /// Returns the map of an array that is an image of source 0, with an index map for each axis of
    /// the source.
    pub fn image(shape: Vec<u64>, axes: Vec<AxisMap>) -> ReadMap {
        let to = Region::whole(&shape);
        ReadMap { shape, pieces: vec![Piece { to, from: Origin::Source { source: 0, axes } }] }
    }

    /// Returns the shape of the array.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Returns the pieces.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Returns true if the map represents the same elements in C order, in another shape.
    pub fn is_flat(&self) -> bool {
        matches!(self.pieces.as_slice(), [Piece { from: Origin::Flat, .. }])
    }

    /// Returns the total length of the index lists.
    pub fn n_indices(&self) -> usize {
        let of = |axis: &AxisMap| {
            if let AxisMap::Gather { indices, .. } = axis { indices.len() } else { 0 }
        };
        self.pieces
            .iter()
            .map(|p| {
                if let Origin::Source { axes, .. } = &p.from {
                    axes.iter().map(of).sum()
                } else {
                    0
                }
            })
            .sum()
    }

    /// Returns the index maps if the whole array is an image of source 0.
    pub fn as_image(&self) -> Option<&[AxisMap]> {
        match self.pieces.as_slice() {
            [Piece { to, from: Origin::Source { source: 0, axes } }] if to.shape == self.shape => {
                Some(axes)
            }
            _ => None,
        }
    }

    /// Returns the number of sources: one more than the highest index of a source.
    pub fn n_sources(&self) -> usize {
        let of = |from: &Origin| match from {
            Origin::Fill(_) => 0,
            Origin::Source { source, .. } => source + 1,
            Origin::Flat => 1,
        };
        self.pieces.iter().map(|p| of(&p.from)).max().unwrap_or(0)
    }

    /// Composes the map with the maps of its sources.
    ///
    /// `inner[k]` is the map of source `k`. The sources of the result are those of all inner maps,
    /// in order. Cost: proportional to the number of pairs of pieces.
    ///
    /// # Errors
    /// Returns an error if the result has more than [`MAX_PIECES`] pieces, or if exactly one of the
    /// maps is a reshape and the other is not the identity.
    pub fn compose(&self, inner: &[ReadMap]) -> Result<ReadMap, ReadMapError> {
        if let [one] = inner
            && (self.is_flat() || one.is_flat())
        {
            // An image with the indices of the identity may be the start of a longer array. The
            // outer map is the identity only if the shapes are equal.
            let is_identity = self.shape == one.shape && *self == ReadMap::identity(&self.shape);
            return if one.is_flat() && (self.is_flat() || is_identity) {
                Ok(ReadMap::flat(self.shape.clone()))
            } else {
                Err(ReadMapError::Flat)
            };
        }
        if inner.iter().any(ReadMap::is_flat) {
            return Err(ReadMapError::Flat);
        }
        let mut base = Vec::with_capacity(inner.len());
        let mut n = 0;
        for map in inner {
            base.push(n);
            n += map.n_sources();
        }
        let mut pieces = Vec::new();
        for piece in &self.pieces {
            let Origin::Source { source, axes } = &piece.from else {
                pieces.push(piece.clone());
                continue;
            };
            let map = inner
                .get(*source)
                .ok_or(ReadMapError::Malformed("a piece refers to an unknown source"))?;
            pieces.extend(compose_piece(piece, axes, map, base[*source])?);
            if pieces.len() > MAX_PIECES {
                return Err(ReadMapError::TooManyPieces(pieces.len()));
            }
        }
        Ok(ReadMap { shape: self.shape.clone(), pieces })
    }

    /// Returns the pieces inside a region, in coordinates of the region.
    pub fn restrict(&self, region: &Region) -> Vec<Piece> {
        let mut inside = Vec::with_capacity(1);
        for piece in &self.pieces {
            let Some(mut to) = piece.to.intersect(region) else { continue };
            let offset: Vec<u64> =
                to.start.iter().zip(&piece.to.start).map(|(a, b)| a - b).collect();
            let from = match &piece.from {
                Origin::Source { source, axes } => Origin::Source {
                    source: *source,
                    axes: axes.iter().map(|a| a.moved(&offset)).collect(),
                },
                other => other.clone(),
            };
            to.start.iter_mut().zip(&region.start).for_each(|(a, b)| *a -= b);
            inside.push(Piece { to, from });
        }
        inside
    }

    /// Returns the map with the source of each piece replaced.
    pub fn with_origins(&self, f: impl Fn(&Origin) -> Origin) -> ReadMap {
        ReadMap {
            shape: self.shape.clone(),
            pieces: self
                .pieces
                .iter()
                .map(|p| Piece { to: p.to.clone(), from: f(&p.from) })
                .collect(),
        }
    }

    /// Returns, for each axis, whether values may differ along it. Other axes are broadcast.
    pub fn varies(&self) -> Vec<bool> {
        let mut varies: Vec<bool> = vec![false; self.shape.len()];
        for piece in &self.pieces {
            for (d, v) in varies.iter_mut().enumerate() {
                *v |= piece.to.shape[d] != self.shape[d];
            }
            if let Origin::Source { axes, .. } = &piece.from {
                axes.iter().filter_map(AxisMap::axis).for_each(|a| varies[a] = true);
            }
            if piece.from == Origin::Flat {
                varies.fill(true);
            }
        }
        varies
    }
}

/// Composes one piece with the map of its source. The sources of that map are renumbered from
/// `base`.
fn compose_piece(
    piece: &Piece,
    axes: &[AxisMap],
    inner: &ReadMap,
    base: usize,
) -> Result<Vec<Piece>, ReadMapError> {
    let mut composed = Vec::new();
    for below in &inner.pieces {
        for (to, moved) in restrict_to_source(piece, axes, &below.to)? {
            let from = match &below.from {
                Origin::Source { source, axes } => Origin::Source {
                    source: base + source,
                    axes: axes
                        .iter()
                        .map(|a| a.after(&moved, &below.to.start, &to.shape))
                        .collect(),
                },
                other => other.clone(),
            };
            composed.push(Piece { to, from });
        }
        if composed.len() > MAX_PIECES {
            return Err(ReadMapError::TooManyPieces(composed.len()));
        }
    }
    Ok(composed)
}

/// Returns the parts of a piece whose indices lie in a box of the source, with the index maps of
/// each part.
fn restrict_to_source(
    piece: &Piece,
    axes: &[AxisMap],
    source: &Region,
) -> Result<Vec<(Region, Vec<AxisMap>)>, ReadMapError> {
    let rank = piece.to.start.len();
    // For each axis of the piece, the ranges of elements inside the box, as (start, length).
    let mut inside: Vec<Vec<(u64, u64)>> = piece.to.shape.iter().map(|n| vec![(0, *n)]).collect();
    for (map, (lo, n)) in axes.iter().zip(source.start.iter().zip(&source.shape)) {
        match map.axis() {
            None if map.runs(*lo, lo + n, 1).is_empty() => return Ok(vec![]),
            None => {}
            Some(axis) => {
                let mut ranges: Vec<(u64, u64)> = Vec::new();
                for run in map.runs(*lo, lo + n, piece.to.shape[axis]) {
                    match ranges.last_mut() {
                        Some(last) if last.0 + last.1 == run.first => last.1 += run.count,
                        _ => ranges.push((run.first, run.count)),
                    }
                }
                inside[axis] = intersect_ranges(&inside[axis], &ranges);
            }
        }
    }
    let n = inside.iter().map(Vec::len).product::<usize>();
    if n > MAX_PIECES {
        return Err(ReadMapError::TooManyPieces(n));
    }
    let counts: Vec<u64> = inside.iter().map(|r| r.len() as u64).collect();
    let mut parts = Vec::with_capacity(n);
    let add = |at: &[u64]| {
        let chosen: Vec<(u64, u64)> =
            inside.iter().zip(at).map(|(ranges, i)| ranges[*i as usize]).collect();
        let offset: Vec<u64> = chosen.iter().map(|c| c.0).collect();
        let to = Region {
            start: (0..rank).map(|d| piece.to.start[d] + offset[d]).collect(),
            shape: chosen.iter().map(|c| c.1).collect(),
        };
        if !to.shape.contains(&0) {
            parts.push((to, axes.iter().map(|a| a.moved(&offset)).collect()));
        }
        Ok::<(), ReadMapError>(())
    };
    try_for_each_coord(&Region::whole(&counts), add)?;
    Ok(parts)
}

/// Returns the intersection of two ascending lists of ranges.
fn intersect_ranges(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        let (start, stop) = (a[i].0.max(b[j].0), (a[i].0 + a[i].1).min(b[j].0 + b[j].1));
        if start < stop {
            out.push((start, stop - start));
        }
        if a[i].0 + a[i].1 < b[j].0 + b[j].1 { i += 1 } else { j += 1 }
    }
    out
}
