//! Views: the same elements, elsewhere. Only reshaping costs a stage.

use std::sync::Arc;

use freestone_engine::graph::{Node, Op};
use freestone_engine::grid::{AxisGrid, ChunkGrid, Region};
use freestone_engine::readmap::{AxisMap, MAX_PIECES, Origin, Piece, ReadMap};
use freestone_kernels::{BinaryOp, DType, Generate, Scalar};

use crate::array::{Array, Dim, joined_attributes, or_failed};
use crate::elementwise::{broadcast_node, broadcast_shapes, held, try_binary};
use crate::error::Error;
use crate::reduce::Axes;

impl Array {
    /// Elements `start, start + step, …` along one axis, up to but without `stop`; bounds as in
    /// Python: negative ones count from the end, and what is beyond the array is cut off.
    ///
    /// # Errors
    /// Where the axis is out of range or the step is 0.
    #[track_caller]
    pub fn slice(&self, axis: i64, start: Option<i64>, stop: Option<i64>, step: i64) -> Array {
        or_failed(self.try_slice(axis, start, stop, step))
    }

    pub(crate) fn try_slice(
        &self,
        axis: i64,
        start: Option<i64>,
        stop: Option<i64>,
        step: i64,
    ) -> Result<Array, Error> {
        let axis = self.axis(axis)?;
        let inner = self.get()?;
        let shape = inner.node.shape();
        // A step beyond the axis takes one element at most, whatever it is.
        let most = shape[axis].clamp(1, i64::MAX as u64) as i64;
        let step = step.clamp(-most, most);
        let (first, len) = bounds(start, stop, step, shape[axis])?;
        let mut to = shape.clone();
        to[axis] = len;
        let maps = (0..shape.len()).map(|d| {
            if d == axis {
                AxisMap::Along { axis: d, start: first, step }
            } else {
                AxisMap::whole(d)
            }
        });
        let mut dims = inner.dims.clone();
        if let Some(origin) = &mut dims[axis].origin {
            origin.start = (origin.start as i64 + origin.step * first as i64) as u64;
            origin.step *= step;
        }
        self.view(ReadMap::image(to, maps.collect()), dims)
    }

    /// The element at `index` along one axis, which is dropped; negative ones count from the end.
    ///
    /// # Errors
    /// Where axis or index are out of range.
    #[track_caller]
    pub fn at(&self, axis: i64, index: i64) -> Array {
        or_failed(self.try_at(axis, index))
    }

    pub(crate) fn try_at(&self, axis: i64, index: i64) -> Result<Array, Error> {
        let axis = self.axis(axis)?;
        let inner = self.get()?;
        let shape = inner.node.shape();
        let n = shape[axis] as i64;
        let at = if index < 0 { index + n } else { index };
        if !(0..n).contains(&at) {
            return Err(out_of_range(index, axis, n as u64));
        }
        let maps = (0..shape.len()).map(|d| match d {
            d if d == axis => AxisMap::Fixed(at as u64),
            d => AxisMap::whole(d - usize::from(d > axis)),
        });
        let to = (0..shape.len()).filter(|d| *d != axis).map(|d| shape[d]).collect();
        let dims = (0..shape.len()).filter(|d| *d != axis).map(|d| inner.dims[d].clone()).collect();
        self.view(ReadMap::image(to, maps.collect()), dims)
    }

    /// Elements at `indices` along one axis, in that order; negative ones count from the end.
    ///
    /// Shape: the axis gets the length of the list. Cost: no stage; the list travels in the plan.
    /// Only chunks that hold one of the elements are read.
    ///
    /// # Errors
    /// Where axis or an index are out of range.
    #[track_caller]
    pub fn take(&self, indices: &[i64], axis: i64) -> Array {
        or_failed(self.try_take(indices, axis))
    }

    pub(crate) fn try_take(&self, indices: &[i64], axis: i64) -> Result<Array, Error> {
        let axis = self.axis(axis)?;
        let n = self.shape()?[axis];
        let place = |i: &i64| {
            let at = if *i < 0 { *i + n as i64 } else { *i };
            if (0..n as i64).contains(&at) { Ok(at as u64) } else { Err(out_of_range(*i, axis, n)) }
        };
        self.gathered(axis, indices.iter().map(place).collect::<Result<_, _>>()?)
    }

    fn gathered(&self, axis: usize, indices: Arc<[u64]>) -> Result<Array, Error> {
        let inner = self.get()?;
        let mut to = inner.node.shape();
        to[axis] = indices.len() as u64;
        let gather = |d| {
            if d == axis {
                AxisMap::Gather { axis, start: 0, step: 1, indices: Arc::clone(&indices) }
            } else {
                AxisMap::whole(d)
            }
        };
        let maps = (0..to.len()).map(gather).collect();
        let mut dims = inner.dims.clone();
        dims[axis].origin = None;
        self.view(
            if indices.is_empty() { ReadMap::new(to, vec![]) } else { ReadMap::image(to, maps) },
            dims,
        )
    }

    /// Backwards along axes; along all with `()`.
    ///
    /// # Errors
    /// Where an axis is out of range or named twice.
    #[track_caller]
    pub fn flip(&self, axes: impl Into<Axes>) -> Array {
        or_failed(self.try_flip(axes))
    }

    pub(crate) fn try_flip(&self, axes: impl Into<Axes>) -> Result<Array, Error> {
        let axes = axes.into().resolve(self.shape()?.len())?;
        axes.into_iter()
            .try_fold(self.clone(), |array, axis| array.try_slice(axis as i64, None, None, -1))
    }

    /// Axis `i` of the result is axis `axes[i]` of this array.
    ///
    /// # Errors
    /// Where `axes` is not a permutation.
    #[track_caller]
    pub fn permute_dims(&self, axes: &[i64]) -> Array {
        or_failed(self.try_permute_dims(axes))
    }

    pub(crate) fn try_permute_dims(&self, axes: &[i64]) -> Result<Array, Error> {
        let inner = self.get()?;
        let shape = inner.node.shape();
        let order = axes.iter().map(|a| self.axis(*a)).collect::<Result<Vec<_>, _>>()?;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if sorted != (0..shape.len()).collect::<Vec<_>>() {
            return Err(Error::Argument(format!(
                "{axes:?} does not name each of {} axes once",
                shape.len()
            )));
        }
        let maps = (0..shape.len())
            .map(|d| AxisMap::whole(order.iter().position(|o| *o == d).unwrap_or(d)));
        let to = order.iter().map(|d| shape[*d]).collect();
        let dims = order.iter().map(|d| inner.dims[*d].clone()).collect();
        self.view(ReadMap::image(to, maps.collect()), dims)
    }

    /// The last two axes exchanged.
    ///
    /// # Errors
    /// Where there are not as many.
    #[track_caller]
    pub fn matrix_transpose(&self) -> Array {
        or_failed(self.try_matrix_transpose())
    }

    pub(crate) fn try_matrix_transpose(&self) -> Result<Array, Error> {
        let rank = self.shape()?.len() as i64;
        if rank < 2 {
            return Err(Error::Argument(format!(
                "matrix_transpose needs at least 2 axes, not {rank}"
            )));
        }
        self.try_permute_dims(&(0..rank - 2).chain([rank - 1, rank - 2]).collect::<Vec<_>>())
    }

    /// Axes `source` of this array become axes `destination` of the result; the others keep their
    /// order.
    ///
    /// # Errors
    /// Where an axis is out of range or named twice, or the lists differ in length.
    #[track_caller]
    pub fn moveaxis(&self, source: impl Into<Axes>, destination: impl Into<Axes>) -> Array {
        or_failed(self.try_moveaxis(source, destination))
    }

    pub(crate) fn try_moveaxis(
        &self,
        source: impl Into<Axes>,
        destination: impl Into<Axes>,
    ) -> Result<Array, Error> {
        let rank = self.shape()?.len();
        let (from, to) = (source.into().in_order(rank)?, destination.into().in_order(rank)?);
        if from.len() != to.len() {
            return Err(Error::Argument(format!(
                "moveaxis needs as many destinations as sources, not {} and {}",
                to.len(),
                from.len()
            )));
        }
        let mut rest = (0..rank).filter(|d| !from.contains(d));
        let order: Vec<i64> = (0..rank)
            .filter_map(|d| {
                to.iter().position(|t| *t == d).map(|i| from[i]).or_else(|| rest.next())
            })
            .map(|d| d as i64)
            .collect();
        self.try_permute_dims(&order)
    }

    /// A new axis of length 1 before axis `axis` of the result.
    ///
    /// # Errors
    /// Where the axis is out of range for the result.
    #[track_caller]
    pub fn expand_dims(&self, axis: i64) -> Array {
        or_failed(self.try_expand_dims(axis))
    }

    pub(crate) fn try_expand_dims(&self, axis: i64) -> Result<Array, Error> {
        let inner = self.get()?;
        let shape = inner.node.shape();
        let rank = shape.len() + 1;
        let at = if axis < 0 { axis + rank as i64 } else { axis };
        if !(0..rank as i64).contains(&at) {
            return Err(Error::Axis { axis, rank });
        }
        let at = at as usize;
        let maps = (0..shape.len()).map(|d| AxisMap::whole(d + usize::from(d >= at)));
        let mut to = shape.clone();
        to.insert(at, 1);
        let mut dims = inner.dims.clone();
        dims.insert(at, Dim::default());
        self.view(ReadMap::image(to, maps.collect()), dims)
    }

    /// Without axes of length 1.
    ///
    /// # Errors
    /// Where an axis is out of range, named twice, or of another length.
    #[track_caller]
    pub fn squeeze(&self, axes: impl Into<Axes>) -> Array {
        or_failed(self.try_squeeze(axes))
    }

    pub(crate) fn try_squeeze(&self, axes: impl Into<Axes>) -> Result<Array, Error> {
        let shape = self.shape()?;
        let axes = axes.into().resolve(shape.len())?;
        if let Some(axis) = axes.iter().find(|a| shape[**a] != 1) {
            return Err(Error::Argument(format!(
                "axis {axis} has {} elements: only axes of length 1 can be squeezed",
                shape[*axis]
            )));
        }
        axes.iter().rev().try_fold(self.clone(), |array, axis| array.try_at(*axis as i64, 0))
    }

    /// The array in a shape that its own broadcasts to.
    ///
    /// # Errors
    /// Where it does not.
    #[track_caller]
    pub fn broadcast_to(&self, shape: &[u64]) -> Array {
        or_failed(self.try_broadcast_to(shape))
    }

    pub(crate) fn try_broadcast_to(&self, shape: &[u64]) -> Result<Array, Error> {
        let inner = self.get()?;
        let own = inner.node.shape();
        if broadcast_shapes(&own, shape)? != shape {
            return Err(Error::Argument(format!("shape {own:?} does not broadcast to {shape:?}")));
        }
        let shift = shape.len() - own.len();
        let dims = (0..shape.len()).map(|d| {
            if d >= shift && own[d - shift] == shape[d] {
                inner.dims[d - shift].clone()
            } else {
                Dim::default()
            }
        });
        Ok(Array::from_parts(
            broadcast_node(&inner.node, shape),
            dims.collect(),
            inner.attributes.clone(),
        ))
    }

    /// Elements moved up along axes by `shift`, those beyond the end coming in at the start. Along
    /// `()` in C order over all axes, which costs a stage for the reshaping.
    ///
    /// # Errors
    /// Where an axis is out of range or named twice.
    #[track_caller]
    pub fn roll(&self, shift: i64, axes: impl Into<Axes>) -> Array {
        or_failed(self.try_roll(shift, axes))
    }

    pub(crate) fn try_roll(&self, shift: i64, axes: impl Into<Axes>) -> Result<Array, Error> {
        let shape = self.shape()?;
        match axes.into().0 {
            None if shape.len() == 1 => self.try_roll(shift, 0),
            None => self
                .try_reshape(&[-1])?
                .try_roll(shift, 0)?
                .try_reshape(&shape.iter().map(|n| *n as i64).collect::<Vec<_>>()),
            Some(axes) => Axes(Some(axes)).resolve(shape.len())?.into_iter().try_fold(
                self.clone(),
                |array, axis| {
                    let n = shape[axis];
                    let by = if n == 0 { 0 } else { shift.rem_euclid(n as i64) as u64 };
                    array.along_one(
                        axis,
                        n,
                        &[(by, Some((n - by, 1))), (n - by, Some((0, 1)))],
                        None,
                    )
                },
            ),
        }
    }

    /// The array beside itself, `repetitions[i]` times along axis `i`, counted from the last.
    ///
    /// # Errors
    /// Where the result is beyond what an array can be.
    #[track_caller]
    pub fn tile(&self, repetitions: &[u64]) -> Array {
        or_failed(self.try_tile(repetitions))
    }

    pub(crate) fn try_tile(&self, repetitions: &[u64]) -> Result<Array, Error> {
        let mut array = self.clone();
        for _ in self.shape()?.len()..repetitions.len() {
            array = array.try_expand_dims(0)?;
        }
        let rank = array.shape()?.len();
        for (d, times) in repetitions.iter().enumerate() {
            let axis = rank - repetitions.len() + d;
            let n = array.shape()?[axis];
            n.checked_mul(*times).ok_or_else(|| too_large(n, *times))?;
            if *times > 64 {
                array = array.gathered(axis, list(n * times, |i| i % n)?)?;
            } else {
                array = array.along_one(
                    axis,
                    n * times,
                    &vec![(n, Some((0, 1))); *times as usize],
                    None,
                )?;
            }
        }
        Ok(array)
    }

    /// Each element along an axis `times` times.
    ///
    /// # Errors
    /// Where the axis is out of range.
    #[track_caller]
    pub fn repeat(&self, times: u64, axis: i64) -> Array {
        or_failed(self.try_repeat(times, axis))
    }

    pub(crate) fn try_repeat(&self, times: u64, axis: i64) -> Result<Array, Error> {
        let at = self.axis(axis)?;
        let n = self.shape()?[at];
        let len = n.checked_mul(times).ok_or_else(|| too_large(n, times))?;
        if times == 1 { Ok(self.clone()) } else { self.gathered(at, list(len, |i| i / times)?) }
    }

    /// Each element along an axis as often as its entry in `times` says.
    ///
    /// # Errors
    /// Where the axis is out of range, or the list's length is not the axis's.
    #[track_caller]
    pub fn repeat_each(&self, times: &[u64], axis: i64) -> Array {
        or_failed(self.try_repeat_each(times, axis))
    }

    pub(crate) fn try_repeat_each(&self, times: &[u64], axis: i64) -> Result<Array, Error> {
        let at = self.axis(axis)?;
        let n = self.shape()?[at];
        if times.len() as u64 != n {
            return Err(Error::Argument(format!(
                "{} repetitions were given for the {n} elements of axis {at}",
                times.len()
            )));
        }
        let total = times
            .iter()
            .try_fold(0u64, |sum, t| sum.checked_add(*t))
            .filter(|t| *t <= MAX_LIST)
            .ok_or_else(|| too_large(n, u64::MAX))?;
        let mut indices = Vec::with_capacity(total as usize);
        times
            .iter()
            .enumerate()
            .for_each(|(i, t)| indices.extend(std::iter::repeat_n(i as u64, *t as usize)));
        self.gathered(at, indices.into())
    }

    /// The array with `before` and `after` elements added along each axis.
    ///
    /// # Errors
    /// Where the widths are not one pair for each axis, or there are not enough elements to take
    /// them from.
    #[track_caller]
    pub fn pad(&self, widths: &[(u64, u64)], mode: Pad) -> Array {
        or_failed(self.try_pad(widths, mode))
    }

    pub(crate) fn try_pad(&self, widths: &[(u64, u64)], mode: Pad) -> Result<Array, Error> {
        let shape = self.shape()?;
        if widths.len() != shape.len() {
            return Err(Error::Argument(format!(
                "{} pairs of widths were given for {} axes",
                widths.len(),
                shape.len()
            )));
        }
        if matches!(mode, Pad::Constant(_)) {
            // It is no packed number.
            self.check_unpacked()?;
        }
        let mut array = self.clone();
        for (axis, ((before, after), n)) in widths.iter().zip(&shape).enumerate() {
            let total = n
                .checked_add(*before)
                .and_then(|t| t.checked_add(*after))
                .ok_or_else(|| too_large(*n, 2))?;
            let most = match mode {
                Pad::Constant(_) => u64::MAX,
                Pad::Edge => {
                    if *n > 0 {
                        u64::MAX
                    } else {
                        0
                    }
                }
                Pad::Reflect => n.saturating_sub(1),
                Pad::Symmetric | Pad::Wrap => *n,
            };
            if *before.max(after) > most {
                return Err(Error::Argument(format!(
                    "axis {axis} has {n} elements, too few for {} of padding like this",
                    before.max(after)
                )));
            }
            let (low, high) = match mode {
                Pad::Constant(_) => (None, None),
                Pad::Edge => (Some((0, 0)), Some((n.saturating_sub(1), 0))),
                Pad::Reflect => (Some((*before, -1)), Some((n.saturating_sub(2), -1))),
                Pad::Symmetric => {
                    (Some((before.saturating_sub(1), -1)), Some((n.saturating_sub(1), -1)))
                }
                Pad::Wrap => (Some((n.saturating_sub(*before), 1)), Some((0, 1))),
            };
            let fill = if let Pad::Constant(value) = mode { Some(value) } else { None };
            array = array.along_one(
                axis,
                total,
                &[(*before, low), (*n, Some((0, 1))), (*after, high)],
                fill,
            )?;
        }
        Ok(array)
    }

    /// Pieces one after the other along one axis: each of so many elements, from an element of this
    /// array at a pace (0 repeats it), or a fill value.
    fn along_one(
        &self,
        axis: usize,
        len: u64,
        pieces: &[(u64, Option<(u64, i64)>)],
        fill: Option<Scalar>,
    ) -> Result<Array, Error> {
        let inner = self.get()?;
        let mut shape = inner.node.shape();
        shape[axis] = len;
        let fill = held(fill.unwrap_or(Scalar::zero(inner.node.dtype)), inner.node.dtype)?;
        let (mut at, mut all) = (0, Vec::new());
        for (n, from) in pieces {
            let mut to = Region::whole(&shape);
            (to.start[axis], to.shape[axis]) = (at, *n);
            at += n;
            let image = |(start, step): (u64, i64)| {
                let map = |d| match d {
                    d if d != axis => AxisMap::whole(d),
                    _ if step == 0 => AxisMap::Fixed(start),
                    d => AxisMap::Along { axis: d, start, step },
                };
                Origin::Source { source: 0, axes: (0..shape.len()).map(map).collect() }
            };
            if !to.shape.contains(&0) {
                all.push(Piece { to, from: from.map_or(Origin::Fill(fill), image) });
            }
        }
        let mut dims = inner.dims.clone();
        if let [Piece { to, from: Origin::Source { .. } }] = all.as_slice()
            && to.shape == inner.node.shape()
        {
            return Ok(self.clone());
        }
        dims[axis].origin = None;
        self.view(ReadMap::new(shape, all), dims)
    }

    /// The elements in C order in another shape; one of its numbers may be -1, which stands for
    /// what is left.
    ///
    /// Cost: none where only axes of length 1 come or go; else a stage, unless the result is stored
    /// as it is. Chunks follow those of this array.
    ///
    /// # Errors
    /// Where the number of elements is another.
    #[track_caller]
    pub fn reshape(&self, shape: &[i64]) -> Array {
        or_failed(self.try_reshape(shape))
    }

    pub(crate) fn try_reshape(&self, shape: &[i64]) -> Result<Array, Error> {
        let inner = self.get()?;
        let own = inner.node.shape();
        let n: u64 = own.iter().product();
        let bad = || {
            Error::Argument(format!(
                "{n} elements of shape {own:?} cannot take the shape {shape:?}"
            ))
        };
        let unknown = shape.iter().filter(|s| **s == -1).count();
        let known = shape
            .iter()
            .filter(|s| **s != -1)
            .try_fold(1u64, |p, s| u64::try_from(*s).ok().and_then(|s| p.checked_mul(s)))
            .ok_or_else(bad)?;
        let rest = if unknown == 1 && known > 0 && n.is_multiple_of(known) { n / known } else { 1 };
        let to: Vec<u64> = shape.iter().map(|s| if *s == -1 { rest } else { *s as u64 }).collect();
        if unknown > 1 || to.iter().product::<u64>() != n || (unknown == 1 && known == 0) {
            return Err(bad());
        }
        if to == own {
            return Ok(self.clone());
        }
        if n == 0 {
            let grid =
                ChunkGrid::regular(&to, &to.iter().map(|n| (*n).max(1)).collect::<Vec<_>>())?;
            let node = Node {
                op: Op::Generate(Generate::Full(Scalar::zero(inner.node.dtype))),
                dtype: inner.node.dtype,
                grid,
            };
            return Ok(Array::unnamed(Arc::new(node)));
        }
        let long =
            |shape: &[u64]| -> Vec<usize> { (0..shape.len()).filter(|d| shape[*d] != 1).collect() };
        let (old, new) = (long(&own), long(&to));
        if old.iter().map(|d| own[*d]).eq(new.iter().map(|d| to[*d])) {
            let pair = |d: usize| old.iter().position(|o| *o == d).map(|i| new[i]);
            let maps =
                (0..own.len()).map(|d| pair(d).map_or(AxisMap::Fixed(0), AxisMap::whole)).collect();
            let from =
                |d: usize| new.iter().position(|o| *o == d).map(|i| inner.dims[old[i]].clone());
            return self.view(
                ReadMap::image(to.clone(), maps),
                (0..to.len()).map(|d| from(d).unwrap_or_default()).collect(),
            );
        }
        let grid = reshaped_grid(&inner.node.grid, &to, inner.node.dtype.size() as u64);
        let op =
            Op::View { sources: vec![Arc::clone(&inner.node)], map: ReadMap::flat(to.clone()) };
        let node = Arc::new(Node { op, dtype: inner.node.dtype, grid });
        Ok(Array::from_parts(node, vec![Dim::default(); to.len()], inner.attributes.clone()))
    }

    /// The `n`-th difference of neighbours along an axis, which gets `n` shorter; for bools whether
    /// they differ.
    ///
    /// Cost: no stage.
    ///
    /// # Errors
    /// Where the axis is out of range, or `n` is over 32 and the axis as long.
    #[track_caller]
    pub fn diff(&self, axis: i64, n: u64) -> Array {
        or_failed(self.try_diff(axis, n))
    }

    pub(crate) fn try_diff(&self, axis: i64, n: u64) -> Result<Array, Error> {
        let at = self.axis(axis)?;
        // Each difference doubles what there is to read: what is this often differenced should be
        // stored in between.
        let n = n.min(self.shape()?[at]);
        if n > MAX_DIFFERENCES {
            return Err(Error::Argument(format!(
                "{n} differences at once are too many: store the result of at most \
                    {MAX_DIFFERENCES} and go on from there"
            )));
        }
        (0..n).try_fold(self.clone(), |array, _| {
            let (high, low) = (
                array.try_slice(axis, Some(1), None, 1)?,
                array.try_slice(axis, None, Some(-1), 1)?,
            );
            if array.dtype()? == DType::Bool {
                try_binary(BinaryOp::NotEqual, high.into(), low.into())
            } else {
                try_binary(BinaryOp::Subtract, high.into(), low.into())
            }
        })
    }

    /// The arrays along an axis, without that axis.
    ///
    /// # Errors
    /// Where the axis is out of range, or there are more than 4096.
    pub fn unstack(&self, axis: i64) -> Result<Vec<Array>, Error> {
        let n = self.shape()?[self.axis(axis)?];
        if n > MAX_PIECES as u64 {
            return Err(Error::Argument(format!(
                "unstack would make {n} arrays: at most {MAX_PIECES} are sensible"
            )));
        }
        (0..n as i64).map(|i| self.try_at(axis, i)).collect()
    }
}

/// What is added by [`Array::pad`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pad {
    /// One value, cast to the array's dtype.
    Constant(Scalar),
    /// The element at the edge.
    Edge,
    /// The elements mirrored at the edge, without the edge itself.
    Reflect,
    /// The elements mirrored at the edge, with it.
    Symmetric,
    /// The elements of the other end.
    Wrap,
}

/// Arrays one after the other along an axis; with `None` each is flattened first, which costs a
/// stage.
///
/// Dtypes are promoted. Cost: no stage.
///
/// # Errors
/// Where there are none, or they differ in number or length of the other axes.
#[track_caller]
pub fn concat(arrays: &[Array], axis: Option<i64>) -> Array {
    or_failed(try_concat(arrays, axis))
}

pub(crate) fn try_concat(arrays: &[Array], axis: Option<i64>) -> Result<Array, Error> {
    let Some(first) = arrays.first() else {
        return Err(Error::Argument("there is nothing to join: give at least one array".into()));
    };
    let Some(axis) = axis else {
        let flat = arrays.iter().map(|a| a.try_reshape(&[-1])).collect::<Result<Vec<_>, _>>()?;
        return try_concat(&flat, Some(0));
    };
    let axis = first.axis(axis)?;
    let mut shape = first.shape()?;
    let dtype = arrays
        .iter()
        .skip(1)
        .try_fold(first.dtype()?, |left, a| Ok::<_, Error>(left.promote(a.dtype()?)))?;
    let cast = arrays.iter().map(|a| a.try_astype(dtype)).collect::<Result<Vec<_>, _>>()?;
    let mut all = Vec::new();
    let mut at = 0u64;
    for (source, array) in cast.iter().enumerate() {
        let own = array.shape()?;
        if let Some(d) = (0..shape.len().max(own.len()))
            .find(|d| *d != axis && shape.get(*d) != own.get(*d))
            .or((own.len() <= axis).then_some(axis))
        {
            return Err(Error::Argument(format!(
                "arrays of shape {shape:?} and {own:?} cannot be joined along axis {axis}: they \
                    differ along axis {d}"
            )));
        }
        let mut to = Region::whole(&own);
        to.start[axis] = at;
        at = at.checked_add(own[axis]).ok_or_else(|| too_large(at, 2))?;
        if !own.contains(&0) {
            all.push(Piece {
                to,
                from: Origin::Source { source, axes: (0..own.len()).map(AxisMap::whole).collect() },
            });
        }
    }
    if all.len() > MAX_PIECES {
        return Err(Error::Argument(format!(
            "{} arrays cannot be joined at once: join and store at most {MAX_PIECES}",
            all.len()
        )));
    }
    shape[axis] = at;
    let (mut dims, attributes) =
        (first.dims()?.to_vec(), joined_attributes(&arrays.iter().collect::<Vec<_>>())?);
    dims[axis].origin = None;
    let nodes = cast.iter().map(|a| a.node().cloned()).collect::<Result<Vec<_>, _>>()?;
    Ok(Array::from_parts(Node::view(nodes, ReadMap::new(shape, all)), dims, attributes))
}

/// Arrays of one shape along a new axis.
///
/// Dtypes are promoted. Cost: no stage.
///
/// # Errors
/// Where there are none, or they differ in shape.
#[track_caller]
pub fn stack(arrays: &[Array], axis: i64) -> Array {
    or_failed(try_stack(arrays, axis))
}

pub(crate) fn try_stack(arrays: &[Array], axis: i64) -> Result<Array, Error> {
    let thick = arrays.iter().map(|a| a.try_expand_dims(axis)).collect::<Result<Vec<_>, _>>()?;
    try_concat(&thick, Some(axis))
}

/// The arrays in the shape that all broadcast to.
///
/// # Errors
/// Where there is none.
pub fn broadcast_arrays(arrays: &[Array]) -> Result<Vec<Array>, Error> {
    let shape =
        arrays.iter().try_fold(Vec::new(), |shape, a| broadcast_shapes(&shape, &a.shape()?))?;
    arrays.iter().map(|a| a.try_broadcast_to(&shape)).collect()
}

/// Differences of differences in one expression.
const MAX_DIFFERENCES: u64 = 32;

/// A list of indices is held in memory by whoever reads it.
const MAX_LIST: u64 = 1 << 24;

fn list(len: u64, index: impl Fn(u64) -> u64) -> Result<Arc<[u64]>, Error> {
    if len > MAX_LIST {
        return Err(Error::Argument(format!(
            "{len} repeated elements along one axis are more than {MAX_LIST}: repeat a part at a \
                time"
        )));
    }
    Ok((0..len).map(index).collect())
}

fn too_large(n: u64, times: u64) -> Error {
    Error::Argument(if times == u64::MAX {
        format!("the {n} repetitions are together beyond {MAX_LIST}")
    } else {
        format!("{n} elements {times} times are beyond what an array can hold")
    })
}

fn out_of_range(index: i64, axis: usize, n: u64) -> Error {
    Error::Argument(format!(
        "index {index} is out of range for axis {axis}, which has {n} elements"
    ))
}

/// Largest chunk of a reshaped array that is made so that each source chunk is read once.
const MAX_RESHAPED_CHUNK_BYTES: u64 = 128_000_000;

/// Chunks of an array of `to` with the elements of another in C order: where groups of axes with
/// the same number of elements correspond, a group's chunks are as large as the source's and follow
/// the C order.
fn reshaped_grid(from: &ChunkGrid, to: &[u64], size: u64) -> ChunkGrid {
    let own = from.shape();
    let mut axes: Vec<AxisGrid> = Vec::with_capacity(to.len());
    let others: u64 = from.max_chunk().iter().product();
    let (mut i, mut j) = (0, 0);
    while i < own.len() || j < to.len() {
        let (i0, j0) = (i, j);
        let (mut a, mut b) = (1u64, 1u64);
        loop {
            if i < own.len() && (a < b || i == i0) {
                a *= own[i];
                i += 1;
            } else if j < to.len() && (b < a || j == j0) {
                b *= to[j];
                j += 1;
            } else {
                break;
            }
        }
        // What is left at the end has length 1.
        while a == b && i == own.len() && j < to.len() && to[j] == 1 {
            j += 1;
        }
        if i - i0 == 1 && j - j0 == 1 {
            axes.push(from.axes()[i0].clone());
            continue;
        }
        let chunk: Vec<u64> = from.axes()[i0..i].iter().map(AxisGrid::max_extent).collect();
        let linear: u64 = chunk.iter().product();
        // Rows of chunks as wide as the axes inside the outermost that is cut.
        let cut = chunk.iter().zip(&own[i0..i]).position(|(c, n)| *c > 1 && c <= n).unwrap_or(0);
        let wide =
            chunk.get(cut).copied().unwrap_or(1) * own[i0..i].iter().skip(cut + 1).product::<u64>();
        let mut room = if wide.saturating_mul(others / linear.max(1)).saturating_mul(size)
            <= MAX_RESHAPED_CHUNK_BYTES
        {
            wide
        } else {
            linear
        }
        .max(1);
        let mut group = Vec::new();
        for n in to[j0..j].iter().rev() {
            let c = room.clamp(1, (*n).max(1));
            room /= c;
            group.push(AxisGrid::regular(*n, c));
        }
        axes.extend(group.into_iter().rev());
    }
    ChunkGrid::new(axes)
}

/// First element and number of elements of a Python slice.
fn bounds(start: Option<i64>, stop: Option<i64>, step: i64, n: u64) -> Result<(u64, u64), Error> {
    if step == 0 {
        return Err(Error::Argument("the step of a slice cannot be 0".into()));
    }
    let n = n as i64;
    let wrap = |x: i64| if x < 0 { x.saturating_add(n) } else { x };
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let first = start.map_or(if step > 0 { 0 } else { n - 1 }, |s| wrap(s).clamp(low, high));
    let end = stop.map_or(if step > 0 { n } else { -1 }, |s| wrap(s).clamp(low, high));
    let len = if step > 0 {
        (end - first).max(0).div_ceil_(step)
    } else {
        (first - end).max(0).div_ceil_(step.saturating_neg())
    };
    Ok((if len == 0 { 0 } else { first as u64 }, len as u64))
}

/// Division rounded up, for positive numbers.
trait DivCeil {
    fn div_ceil_(self, by: i64) -> i64;
}

impl DivCeil for i64 {
    fn div_ceil_(self, by: i64) -> i64 {
        self / by + i64::from(self % by != 0)
    }
}
