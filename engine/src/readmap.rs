//! Which input elements a task reads.
//!
//! A [`ReadMap`] is data, not a closure, because tasks run in other processes. It answers one question: *where does each
//! element of this array come from?* It has one normal form, a list of boxes each of which is an affine image of a box of
//! a source or one fill value, and the form is closed under composition: slices, flips, permutations, broadcasts,
//! concatenations and pads are one map each, and so is any chain of them. A chain of views costs no stage.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::grid::Region;
use freestone_kernels::Scalar;

/// More pieces than this are not walked for every task: the planner must materialise instead.
pub const MAX_PIECES: usize = 4096;

/// Why maps do not compose.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum ReadMapError {
    #[error("a chain of views has {0} pieces, over the limit of {MAX_PIECES}: store or rechunk one of its arrays first")]
    TooManyPieces(usize),
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
}

/// The index along one axis of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AxisMap {
    /// The same everywhere.
    Fixed(u64),
    /// `start + step · (i − first)`, where `i` is the index along `axis` of the array and `first` the box's first. `step` is not 0.
    Along {
        /// Axis of the array.
        axis: usize,
        /// Index for the box's first element.
        start: u64,
        /// Pace; negative runs backwards.
        step: i64,
    },
}

impl AxisMap {
    /// The index for the `j`-th element of the box along the axis.
    fn at(self, j: u64) -> u64 {
        match self {
            AxisMap::Fixed(x) => x,
            AxisMap::Along { start, step, .. } => (start as i128 + step as i128 * j as i128) as u64,
        }
    }

    /// The elements `j` of `0..len` whose index lies in `lo..hi`: first and number.
    pub fn preimage(self, lo: u64, hi: u64, len: u64) -> (u64, u64) {
        let (first, end) = match self {
            AxisMap::Fixed(x) => (0, if lo <= x && x < hi { len as i128 } else { 0 }),
            AxisMap::Along { start, step, .. } => {
                let (s, t, lo, hi) = (start as i128, step as i128, lo as i128, hi as i128);
                let ceil = |a: i128, b: i128| -((-a).div_euclid(b));
                if t > 0 { (ceil(lo - s, t), ceil(hi - s, t)) } else { ((s - hi).div_euclid(-t) + 1, (s - lo).div_euclid(-t) + 1) }
            }
        };
        let (first, end) = (first.clamp(0, len as i128), end.clamp(0, len as i128));
        (first as u64, (end - first).max(0) as u64)
    }

    /// Lowest and highest index over a box of `to`.
    pub fn span(self, to: &Region) -> (u64, u64) {
        match self {
            AxisMap::Fixed(x) => (x, x),
            AxisMap::Along { axis, .. } => {
                let (a, b) = (self.at(0), self.at(to.shape[axis].saturating_sub(1)));
                (a.min(b), a.max(b))
            }
        }
    }

    /// The same index for a box that starts `offset` elements later along each axis.
    fn moved(self, offset: &[u64]) -> AxisMap {
        match self {
            AxisMap::Along { axis, step, .. } => AxisMap::Along { axis, start: self.at(offset[axis]), step },
            fixed => fixed,
        }
    }

    /// What `inner`, an index into an array along whose axes these are the indices, becomes.
    fn then(inner: AxisMap, outer: &[AxisMap], inner_first: &[u64]) -> AxisMap {
        match inner {
            AxisMap::Fixed(x) => AxisMap::Fixed(x),
            AxisMap::Along { axis: middle, step: t, .. } => match outer[middle] {
                AxisMap::Fixed(x) => AxisMap::Fixed(inner.at(x - inner_first[middle])),
                AxisMap::Along { axis, start, step } => AxisMap::Along { axis, start: inner.at(start - inner_first[middle]), step: t * step },
            },
        }
    }
}

impl ReadMap {
    /// From pieces that are disjoint and cover `shape`.
    pub fn new(shape: Vec<u64>, pieces: Vec<Piece>) -> ReadMap {
        ReadMap { shape, pieces }
    }

    /// The array is source 0.
    pub fn identity(shape: &[u64]) -> ReadMap {
        let axes = (0..shape.len()).map(|axis| AxisMap::Along { axis, start: 0, step: 1 }).collect();
        ReadMap::affine(shape.to_vec(), axes)
    }

    /// One piece: the array is an affine image of source 0.
    pub fn affine(shape: Vec<u64>, axes: Vec<AxisMap>) -> ReadMap {
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

    /// The index maps, if the array is an affine image of source 0 as a whole.
    pub fn as_affine(&self) -> Option<&[AxisMap]> {
        match self.pieces.as_slice() {
            [Piece { to, from: Origin::Source { source: 0, axes } }] if to.shape == self.shape => Some(axes),
            _ => None,
        }
    }

    /// Number of sources: one more than the highest named.
    pub fn n_sources(&self) -> usize {
        self.pieces.iter().map(|p| if let Origin::Source { source, .. } = &p.from { source + 1 } else { 0 }).max().unwrap_or(0)
    }

    /// The map from this array to the sources of its sources: source `k` is replaced by `inner[k]`, whose own sources are
    /// numbered after those of the inner maps before it.
    ///
    /// Cost: pairs of pieces.
    ///
    /// # Errors
    /// Where the result has more than [`MAX_PIECES`] pieces.
    pub fn compose(&self, inner: &[ReadMap]) -> Result<ReadMap, ReadMapError> {
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
            let map = inner.get(*source).ok_or(ReadMapError::Malformed("a piece names a source that is not there"))?;
            for below in &map.pieces {
                let Some((to, moved)) = within(piece, axes, &below.to) else { continue };
                let from = match &below.from {
                    Origin::Fill(value) => Origin::Fill(*value),
                    Origin::Source { source: s, axes: inner_axes } => {
                        Origin::Source { source: base[*source] + s, axes: inner_axes.iter().map(|a| AxisMap::then(*a, &moved, &below.to.start)).collect() }
                    }
                };
                pieces.push(Piece { to, from });
                if pieces.len() > MAX_PIECES {
                    return Err(ReadMapError::TooManyPieces(self.pieces.len() * map.pieces.len()));
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
            let offset: Vec<u64> = to.start.iter().zip(&piece.to.start).map(|(a, b)| a - b).collect();
            let from = match &piece.from {
                Origin::Fill(value) => Origin::Fill(*value),
                Origin::Source { source, axes } => Origin::Source { source: *source, axes: axes.iter().map(|a| a.moved(&offset)).collect() },
            };
            to.start.iter_mut().zip(&region.start).for_each(|(a, b)| *a -= b);
            inside.push(Piece { to, from });
        }
        inside
    }

    /// For each axis, whether the values differ along it; the others are broadcast.
    pub fn varies(&self) -> Vec<bool> {
        let mut varies: Vec<bool> = vec![false; self.shape.len()];
        for piece in &self.pieces {
            for (d, v) in varies.iter_mut().enumerate() {
                *v |= piece.to.shape[d] != self.shape[d];
            }
            if let Origin::Source { axes, .. } = &piece.from {
                for axis in axes {
                    if let AxisMap::Along { axis, .. } = axis {
                        varies[*axis] = true;
                    }
                }
            }
        }
        varies
    }

    /// Checks that pieces lie inside the shape and read inside their sources; for maps that come from outside.
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
                return Err(ReadMapError::Malformed("a piece has another number of axes than the array"));
            }
            if (0..self.shape.len()).any(|d| to.start[d].checked_add(to.shape[d]).is_none_or(|e| e > self.shape[d])) {
                return Err(ReadMapError::Malformed("a piece reaches beyond the array"));
            }
            covered += to.shape.iter().map(|n| u128::from(*n)).product::<u128>();
            if self.pieces[..i].iter().any(|other| other.to.intersect(to).is_some()) {
                return Err(ReadMapError::Malformed("two pieces overlap"));
            }
            if let Origin::Source { source, axes } = &piece.from {
                let shape = sources.get(*source).ok_or(ReadMapError::Malformed("a piece names a source that is not there"))?;
                if shape.len() != axes.len() {
                    return Err(ReadMapError::Malformed("a piece has another number of index maps than the source has axes"));
                }
                if to.shape.contains(&0) {
                    continue;
                }
                for (axis, n) in axes.iter().zip(shape) {
                    let inside = match axis {
                        AxisMap::Fixed(x) => x < n,
                        AxisMap::Along { axis, start, step } => {
                            let Some(len) = to.shape.get(*axis) else { return Err(ReadMapError::Malformed("an index map runs along no axis")) };
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

/// The part of a piece whose indices lie in a box of the source, and its index maps moved there.
fn within(piece: &Piece, axes: &[AxisMap], source: &Region) -> Option<(Region, Vec<AxisMap>)> {
    let mut to = piece.to.clone();
    let mut offset = vec![0; to.start.len()];
    for (map, (lo, n)) in axes.iter().zip(source.start.iter().zip(&source.shape)) {
        match *map {
            AxisMap::Fixed(x) => {
                if x < *lo || x >= lo + n {
                    return None;
                }
            }
            AxisMap::Along { axis, .. } => {
                let (first, count) = map.preimage(*lo, lo + n, piece.to.shape[axis]);
                let start = offset[axis].max(first);
                let stop = (offset[axis] + to.shape[axis]).min(first + count);
                if start >= stop {
                    return None;
                }
                offset[axis] = start;
                to.shape[axis] = stop - start;
            }
        }
    }
    if to.shape.contains(&0) {
        return None;
    }
    to.start.iter_mut().zip(&offset).for_each(|(s, o)| *s += o);
    Some((to, axes.iter().map(|a| a.moved(&offset)).collect()))
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
            .find(|p| (0..index.len()).all(|d| p.to.start[d] <= index[d] && index[d] < p.to.start[d] + p.to.shape[d]))
            .expect("pieces cover the array");
        match &piece.from {
            Origin::Fill(v) => Err(*v),
            Origin::Source { source, axes } => Ok((
                *source,
                axes.iter()
                    .map(|a| match a {
                        AxisMap::Fixed(x) => *x,
                        AxisMap::Along { axis, .. } => a.at(index[*axis] - piece.to.start[*axis]),
                    })
                    .collect(),
            )),
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

    /// One random view of an array of `shape`: a slice with steps, a permutation, a broadcast, a pad, or two halves swapped.
    fn view(shape: Vec<u64>, seed: u64) -> ReadMap {
        let pick = |k: u64, n: u64| (seed.rotate_left(k as u32 * 7 + 3) ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15 + k)) % n.max(1);
        let along = |axis: usize| AxisMap::Along { axis, start: 0, step: 1 };
        let rank = shape.len();
        match pick(0, 5) {
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
                ReadMap::affine(out, axes)
            }
            1 => ReadMap::affine(shape.iter().rev().copied().collect(), (0..rank).rev().map(along).collect()),
            2 => ReadMap::affine([vec![3], shape.clone()].concat(), (1..=rank).map(along).collect()),
            3 => {
                let mut out = shape.clone();
                out[0] += 3;
                let body = Region { start: [vec![1], vec![0; rank - 1]].concat(), shape: shape.clone() };
                let strip = |start: u64, n: u64| Region { start: [vec![start], vec![0; rank - 1]].concat(), shape: [vec![n], shape[1..].to_vec()].concat() };
                let fill = Origin::Fill(Scalar::new(7i32));
                ReadMap::new(
                    out,
                    vec![
                        Piece { to: strip(0, 1), from: fill.clone() },
                        Piece { to: body, from: Origin::Source { source: 0, axes: (0..rank).map(along).collect() } },
                        Piece { to: strip(shape[0] + 1, 2), from: fill },
                    ],
                )
            }
            _ => {
                // Dropped to a fixed index along the first axis, where there are two; else rolled.
                if rank > 1 {
                    let axes = std::iter::once(AxisMap::Fixed(pick(3, shape[0]))).chain((0..rank - 1).map(along)).collect();
                    return ReadMap::affine(shape[1..].to_vec(), axes);
                }
                let by = pick(4, shape[0]);
                let part = |to: u64, n: u64, from: u64| Piece {
                    to: Region { start: vec![to], shape: vec![n] },
                    from: Origin::Source { source: 0, axes: vec![AxisMap::Along { axis: 0, start: from, step: 1 }] },
                };
                let pieces = [part(0, by, shape[0] - by), part(by, shape[0] - by, 0)].into_iter().filter(|p| p.to.shape[0] > 0).collect();
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
        let half = |at: u64, source: usize| Piece { to: Region { start: vec![at], shape: vec![2] }, from: Origin::Source { source, axes: vec![along] } };
        let concat = ReadMap::new(vec![4], vec![half(0, 0), half(2, 1)]);
        let flip = ReadMap::affine(vec![2], vec![AxisMap::Along { axis: 0, start: 1, step: -1 }]);
        let both = concat.compose(&[concat_of_one(), flip]).unwrap();
        assert_eq!(trace(&both, &[1]), Ok((0, vec![1])));
        assert_eq!(trace(&both, &[3]), Ok((1, vec![0])));
    }

    fn concat_of_one() -> ReadMap {
        ReadMap::identity(&[2])
    }
}
