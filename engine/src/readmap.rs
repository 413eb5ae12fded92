//! Which input elements a task reads.
//!
//! A [`ReadMap`] is data, not a closure, because tasks run in other processes. It answers one
//! question: *where does each element of this array come from?* It has one normal form, a list of
//! boxes each of which is an image of a box of a source, affine or by a list of indices along each
//! axis, or one fill value. The form is closed under composition: slices, flips, permutations,
//! broadcasts, concatenations, pads and takes are one map each, and so is any chain of them. A
//! chain of views costs no stage.
//!
//! Besides there is one map for arrays of another shape with the same elements in C order
//! ([`ReadMap::flat`]), which composes with elementwise functions only.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::grid::{AxisGrid, Region, try_for_each_coord};
use freestone_kernels::Scalar;

/// More pieces than this are not walked for every task: the planner must materialise instead.
pub const MAX_PIECES: usize = 4096;

/// Why maps do not compose.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum ReadMapError {
    #[error(
        "a chain of views has {0} pieces, over the limit of {MAX_PIECES}: store or rechunk one of \
            its arrays first"
    )]
    TooManyPieces(usize),
    #[error("a view of a reshaped array must be stored before it is looked at again")]
    Flat,
    #[error("the read map is malformed: {0}")]
    Malformed(&'static str),
}

/// Where the elements of an array come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadMap {
    shape: Vec<u64>,
    pieces: Vec<Piece>,
}

/// A box of the array, and where it comes from. Pieces are disjoint and cover the array.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Piece {
    /// The box.
    pub to: Region,
    /// Its origin.
    pub from: Origin,
}

/// Where a box comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// One value everywhere.
    Fill(Scalar),
    /// A source array; one entry for each of its axes.
    Source {
        /// Which of the map's sources.
        source: usize,
        /// The index along each of the source's axes.
        axes: Vec<AxisMap>,
    },
    /// The elements of source 0, which has another shape, in C order. The only piece of its map.
    Flat,
}

/// The index along one axis of a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AxisMap {
    /// The same everywhere.
    Fixed(u64),
    /// `start + step · (i − first)`, where `i` is the index along `axis` of the array and `first`
    /// the box's first. `step` is not 0.
    Along {
        /// Axis of the array.
        axis: usize,
        /// Index for the box's first element.
        start: u64,
        /// Pace; negative runs backwards.
        step: i64,
    },
    /// `indices[start + step · (i − first)]`, where `i` is the index along `axis` of the array and
    /// `first` the box's first.
    Gather {
        /// Axis of the array.
        axis: usize,
        /// Place in the list for the box's first element.
        start: u64,
        /// Pace in the list; negative runs backwards.
        step: i64,
        /// The list.
        indices: Arc<[u64]>,
    },
}

/// Elements of a box, along one axis, whose indices are evenly spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first element.
    pub first: u64,
    /// Number of elements.
    pub count: u64,
    /// Index of the first.
    pub start: u64,
    /// Distance of the indices.
    pub step: i64,
}

impl AxisMap {
    /// All indices along an axis.
    pub fn whole(axis: usize) -> AxisMap {
        AxisMap::Along { axis, start: 0, step: 1 }
    }

    /// The axis of the array along which the index varies.
    pub fn axis(&self) -> Option<usize> {
        match self {
            AxisMap::Fixed(_) => None,
            AxisMap::Along { axis, .. } | AxisMap::Gather { axis, .. } => Some(*axis),
        }
    }

    /// The index for the `j`-th element of the box along the axis.
    pub fn at(&self, j: u64) -> u64 {
        let along = |start: u64, step: i64| (start as i128 + step as i128 * j as i128) as u64;
        match self {
            AxisMap::Fixed(x) => *x,
            AxisMap::Along { start, step, .. } => along(*start, *step),
            AxisMap::Gather { start, step, indices, .. } => indices[along(*start, *step) as usize],
        }
    }

    /// The elements of `0..len` whose index lies in `lo..hi`, in runs of evenly spaced indices.
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

    /// The chunks along an axis that hold indices of `0..len`, each with its runs.
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

    /// The same index for a box that starts `offset` elements later along each axis.
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

    /// What this, an index into an array along whose axes `outer` are the indices over a box of
    /// `to` elements, becomes.
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

/// Adds an element to the last run, or begins another.
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
    /// From pieces that are disjoint and cover `shape`.
    pub fn new(shape: Vec<u64>, pieces: Vec<Piece>) -> ReadMap {
        ReadMap { shape, pieces }
    }

    /// The array is source 0.
    pub fn identity(shape: &[u64]) -> ReadMap {
        ReadMap::image(shape.to_vec(), (0..shape.len()).map(AxisMap::whole).collect())
    }

    /// The elements of source 0, which has another shape, in C order.
    pub fn flat(shape: Vec<u64>) -> ReadMap {
        let to = Region::whole(&shape);
        ReadMap { shape, pieces: vec![Piece { to, from: Origin::Flat }] }
    }

    /// One piece: the array is an image of source 0, by indices along its axes.
    pub fn image(shape: Vec<u64>, axes: Vec<AxisMap>) -> ReadMap {
        let to = Region::whole(&shape);
        ReadMap { shape, pieces: vec![Piece { to, from: Origin::Source { source: 0, axes } }] }
    }

    /// The array's shape.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Its pieces.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// True if it is of the same elements in C order, in another shape.
    pub fn is_flat(&self) -> bool {
        matches!(self.pieces.as_slice(), [Piece { from: Origin::Flat, .. }])
    }

    /// Numbers in the lists of indices that it holds.
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

    /// The index maps, if the array is an image of source 0 as a whole.
    pub fn as_image(&self) -> Option<&[AxisMap]> {
        match self.pieces.as_slice() {
            [Piece { to, from: Origin::Source { source: 0, axes } }] if to.shape == self.shape => {
                Some(axes)
            }
            _ => None,
        }
    }

    /// Number of sources: one more than the highest named.
    pub fn n_sources(&self) -> usize {
        let of = |from: &Origin| match from {
            Origin::Fill(_) => 0,
            Origin::Source { source, .. } => source + 1,
            Origin::Flat => 1,
        };
        self.pieces.iter().map(|p| of(&p.from)).max().unwrap_or(0)
    }

    /// The map from this array to the sources of its sources: source `k` is replaced by `inner[k]`,
    /// whose own sources are numbered after those of the inner maps before it.
    ///
    /// Cost: pairs of pieces.
    ///
    /// # Errors
    /// Where the result has more than [`MAX_PIECES`] pieces, or it is a view of a reshaped array or
    /// the other way round.
    pub fn compose(&self, inner: &[ReadMap]) -> Result<ReadMap, ReadMapError> {
        if let [one] = inner
            && (self.is_flat() || one.is_flat())
        {
            // What looks like the identity may be the start of a longer array: an outer map is one
            // only over this very shape.
            let nothing = self.shape == one.shape && *self == ReadMap::identity(&self.shape);
            return if one.is_flat() && (self.is_flat() || nothing) {
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
                .ok_or(ReadMapError::Malformed("a piece names a source that is not there"))?;
            for below in &map.pieces {
                for (to, moved) in within(piece, axes, &below.to)? {
                    let from = match &below.from {
                        Origin::Source { source: s, axes: inner_axes } => Origin::Source {
                            source: base[*source] + s,
                            axes: inner_axes
                                .iter()
                                .map(|a| a.after(&moved, &below.to.start, &to.shape))
                                .collect(),
                        },
                        other => other.clone(),
                    };
                    pieces.push(Piece { to, from });
                }
                if pieces.len() > MAX_PIECES {
                    return Err(ReadMapError::TooManyPieces(pieces.len()));
                }
            }
        }
        Ok(ReadMap { shape: self.shape.clone(), pieces })
    }

    /// The pieces inside a region, in coordinates of the region.
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

    /// The map with each piece's origin replaced.
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

    /// For each axis, whether the values differ along it; the others are broadcast.
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

    /// Checks that pieces lie inside the shape and read inside their sources; for maps that come
    /// from outside.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn check(&self, sources: &[Vec<u64>]) -> Result<(), ReadMapError> {
        let mut covered = 0u128;
        if self.pieces.len() > MAX_PIECES {
            return Err(ReadMapError::TooManyPieces(self.pieces.len()));
        }
        for (i, piece) in self.pieces.iter().enumerate() {
            let to = &piece.to;
            if to.start.len() != self.shape.len() || to.shape.len() != self.shape.len() {
                return Err(ReadMapError::Malformed(
                    "a piece has another number of axes than the array",
                ));
            }
            if (0..self.shape.len())
                .any(|d| to.start[d].checked_add(to.shape[d]).is_none_or(|e| e > self.shape[d]))
            {
                return Err(ReadMapError::Malformed("a piece reaches beyond the array"));
            }
            covered += to.shape.iter().map(|n| u128::from(*n)).product::<u128>();
            if self.pieces[..i].iter().any(|other| other.to.intersect(to).is_some()) {
                return Err(ReadMapError::Malformed("two pieces overlap"));
            }
            if piece.from == Origin::Flat {
                let n = |shape: &[u64]| shape.iter().map(|n| u128::from(*n)).product::<u128>();
                if self.pieces.len() != 1
                    || to.shape != self.shape
                    || sources.first().map(|s| n(s)) != Some(n(&self.shape))
                {
                    return Err(ReadMapError::Malformed(
                        "a reshaped array has another number of elements",
                    ));
                }
            }
            if let Origin::Source { source, axes } = &piece.from {
                let shape = sources
                    .get(*source)
                    .ok_or(ReadMapError::Malformed("a piece names a source that is not there"))?;
                if shape.len() != axes.len() {
                    return Err(ReadMapError::Malformed(
                        "a piece has another number of index maps than the source has axes",
                    ));
                }
                if axes.iter().filter_map(AxisMap::axis).any(|a| a >= self.shape.len()) {
                    return Err(ReadMapError::Malformed("an index map runs along no axis"));
                }
                if to.shape.contains(&0) {
                    continue;
                }
                for (axis, n) in axes.iter().zip(shape) {
                    let inside = match axis {
                        AxisMap::Fixed(x) => x < n,
                        AxisMap::Gather { axis, start, step, indices } => {
                            let Some(len) = to.shape.get(*axis) else {
                                return Err(ReadMapError::Malformed(
                                    "an index map runs along no axis",
                                ));
                            };
                            let end = *start as i128 + *step as i128 * (*len as i128 - 1);
                            let listed = 0..indices.len() as i128;
                            *step != 0
                                && listed.contains(&i128::from(*start))
                                && listed.contains(&end)
                                && indices.iter().all(|i| i < n)
                        }
                        AxisMap::Along { axis, start, step } => {
                            let Some(len) = to.shape.get(*axis) else {
                                return Err(ReadMapError::Malformed(
                                    "an index map runs along no axis",
                                ));
                            };
                            let end = *start as i128 + *step as i128 * (*len as i128 - 1);
                            *step != 0 && start < n && (0..*n as i128).contains(&end)
                        }
                    };
                    if !inside {
                        return Err(ReadMapError::Malformed("a piece reads beyond its source"));
                    }
                }
            }
        }
        if covered != self.shape.iter().map(|n| u128::from(*n)).product::<u128>() {
            return Err(ReadMapError::Malformed("the pieces do not cover the array"));
        }
        Ok(())
    }
}

/// The parts of a piece whose indices lie in a box of the source, and the index maps moved there.
fn within(
    piece: &Piece,
    axes: &[AxisMap],
    source: &Region,
) -> Result<Vec<(Region, Vec<AxisMap>)>, ReadMapError> {
    let rank = piece.to.start.len();
    // For each axis of the box, the ranges of elements that are inside.
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
                inside[axis] = both(&inside[axis], &ranges);
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

/// What two lists of rising ranges have in common.
fn both(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where one element comes from, by looking through the pieces.
    fn trace(map: &ReadMap, index: &[u64]) -> Result<(usize, Vec<u64>), Scalar> {
        let piece = map
            .pieces
            .iter()
            .find(|p| {
                (0..index.len())
                    .all(|d| p.to.start[d] <= index[d] && index[d] < p.to.start[d] + p.to.shape[d])
            })
            .expect("pieces cover the array");
        match &piece.from {
            Origin::Fill(v) => Err(*v),
            Origin::Source { source, axes } => Ok((
                *source,
                axes.iter()
                    .map(|a| a.at(a.axis().map_or(0, |axis| index[axis] - piece.to.start[axis])))
                    .collect(),
            )),
            Origin::Flat => unreachable!(),
        }
    }

    fn indices(shape: &[u64]) -> Vec<Vec<u64>> {
        let mut all = Vec::new();
        let _: Result<(), ()> = crate::grid::try_for_each_coord(&Region::whole(shape), |i| {
            all.push(i.to_vec());
            Ok(())
        });
        all
    }

    /// One random view of an array of `shape`: a slice with steps, a permutation, a broadcast, a
    /// pad, or two halves swapped.
    fn view(shape: Vec<u64>, seed: u64) -> ReadMap {
        let pick = |k: u64, n: u64| {
            (seed.rotate_left(k as u32 * 7 + 3) ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15 + k))
                % n.max(1)
        };
        let along = |axis: usize| AxisMap::Along { axis, start: 0, step: 1 };
        let rank = shape.len();
        match pick(0, 6) {
            5 => {
                // Some elements along one axis, in any order and repeated.
                let axis = pick(1, rank as u64) as usize;
                let indices: Arc<[u64]> =
                    (0..1 + pick(2, 7)).map(|i| pick(i + 3, shape[axis])).collect();
                let mut out = shape.clone();
                out[axis] = indices.len() as u64;
                let gather = |d| {
                    if d == axis {
                        AxisMap::Gather { axis, start: 0, step: 1, indices: Arc::clone(&indices) }
                    } else {
                        along(d)
                    }
                };
                ReadMap::image(out, (0..rank).map(gather).collect())
            }
            0 => {
                let mut out = Vec::new();
                let axes = shape
                    .iter()
                    .enumerate()
                    .map(|(d, n)| {
                        let pace = 1 + pick(d as u64 + 1, 3) as i64;
                        let len = pick(d as u64 + 5, n.div_ceil(pace as u64)) + 1;
                        let span = (len - 1) * pace as u64;
                        let first = pick(d as u64 + 9, n - span);
                        out.push(len);
                        if pick(d as u64 + 13, 2) == 0 {
                            AxisMap::Along { axis: d, start: first, step: pace }
                        } else {
                            AxisMap::Along { axis: d, start: first + span, step: -pace }
                        }
                    })
                    .collect();
                ReadMap::image(out, axes)
            }
            1 => ReadMap::image(
                shape.iter().rev().copied().collect(),
                (0..rank).rev().map(along).collect(),
            ),
            2 => ReadMap::image([vec![3], shape.clone()].concat(), (1..=rank).map(along).collect()),
            3 => {
                let mut out = shape.clone();
                out[0] += 3;
                let body =
                    Region { start: [vec![1], vec![0; rank - 1]].concat(), shape: shape.clone() };
                let strip = |start: u64, n: u64| Region {
                    start: [vec![start], vec![0; rank - 1]].concat(),
                    shape: [vec![n], shape[1..].to_vec()].concat(),
                };
                let fill = Origin::Fill(Scalar::new(7i32));
                ReadMap::new(
                    out,
                    vec![
                        Piece { to: strip(0, 1), from: fill.clone() },
                        Piece {
                            to: body,
                            from: Origin::Source {
                                source: 0,
                                axes: (0..rank).map(along).collect(),
                            },
                        },
                        Piece { to: strip(shape[0] + 1, 2), from: fill },
                    ],
                )
            }
            _ => {
                // Dropped to a fixed index along the first axis, where there are two; else rolled.
                if rank > 1 {
                    let axes = std::iter::once(AxisMap::Fixed(pick(3, shape[0])))
                        .chain((0..rank - 1).map(along))
                        .collect();
                    return ReadMap::image(shape[1..].to_vec(), axes);
                }
                let by = pick(4, shape[0]);
                let part = |to: u64, n: u64, from: u64| Piece {
                    to: Region { start: vec![to], shape: vec![n] },
                    from: Origin::Source {
                        source: 0,
                        axes: vec![AxisMap::Along { axis: 0, start: from, step: 1 }],
                    },
                };
                let pieces = [part(0, by, shape[0] - by), part(by, shape[0] - by, 0)]
                    .into_iter()
                    .filter(|p| p.to.shape[0] > 0)
                    .collect();
                ReadMap::new(shape, pieces)
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn composition_is_composition(shape in prop::collection::vec(1u64..6, 1..4), seeds in prop::collection::vec(any::<u64>(), 1..5)) {
            let mut whole = ReadMap::identity(&shape);
            let mut chain: Vec<ReadMap> = Vec::new();
            for seed in seeds {
                let next = view(whole.shape().to_vec(), seed);
                next.check(&[whole.shape().to_vec()]).unwrap();
                whole = next.compose(std::slice::from_ref(&whole)).unwrap();
                chain.push(next);
            }
            whole.check(&[shape]).unwrap();
            for index in indices(whole.shape()) {
                let mut at = Ok((0, index.clone()));
                for map in chain.iter().rev() {
                    at = at.and_then(|(_, i)| trace(map, &i));
                }
                prop_assert_eq!(trace(&whole, &index), at);
            }
        }

        #[test]
        fn a_restriction_agrees_with_the_whole(shape in prop::collection::vec(1u64..6, 1..4), seed: u64, cut: u64) {
            let map = view(shape, seed);
            let start: Vec<u64> = map.shape().iter().enumerate().map(|(d, n)| cut.rotate_left(d as u32 * 9) % n).collect();
            let size: Vec<u64> = map.shape().iter().zip(&start).enumerate().map(|(d, (n, s))| 1 + cut.rotate_right(d as u32 * 5) % (n - s)).collect();
            let region = Region { start: start.clone(), shape: size.clone() };
            let part = ReadMap::new(size.clone(), map.restrict(&region));
            for index in indices(&size) {
                let global: Vec<u64> = index.iter().zip(&start).map(|(a, b)| a + b).collect();
                prop_assert_eq!(trace(&part, &index), trace(&map, &global));
            }
        }
    }

    #[test]
    fn concatenation_numbers_its_sources() {
        let along = AxisMap::Along { axis: 0, start: 0, step: 1 };
        let half = |at: u64, source: usize| Piece {
            to: Region { start: vec![at], shape: vec![2] },
            from: Origin::Source { source, axes: vec![along.clone()] },
        };
        let concat = ReadMap::new(vec![4], vec![half(0, 0), half(2, 1)]);
        let flip = ReadMap::image(vec![2], vec![AxisMap::Along { axis: 0, start: 1, step: -1 }]);
        let both = concat.compose(&[concat_of_one(), flip]).unwrap();
        assert_eq!(trace(&both, &[1]), Ok((0, vec![1])));
        assert_eq!(trace(&both, &[3]), Ok((1, vec![0])));
    }

    fn concat_of_one() -> ReadMap {
        ReadMap::identity(&[2])
    }
}
