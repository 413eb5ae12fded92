//! Views: selections and rearrangements of axes, which cost no stage.

use std::sync::Arc;

use freestone_engine::readmap::{AxisMap, MAX_PIECES, ReadMap};

use crate::array::{Array, Dim, or_failed};
use crate::axes::{Axes, Axis, position};
use crate::elementwise::{broadcast_node, broadcast_shapes};
use crate::error::Error;
use crate::index::Slice;

impl Array {
    /// Selects a range of elements along one axis: `x.slice(1..5, 0)`, `x.slice(..-1, "time")`,
    /// `x.slice(Slice::from(..).step(2), 0)`.
    ///
    /// Bounds are as in Python: negative bounds count from the end, and bounds beyond the array are
    /// clamped. Cost: no stage.
    ///
    /// # Errors
    /// Fails if the axis does not exist, or if the step is 0.
    #[track_caller]
    pub fn slice(&self, range: impl Into<Slice>, axis: impl Into<Axis>) -> Array {
        or_failed(self.try_slice(range.into(), &axis.into()))
    }

    pub(crate) fn try_slice(&self, range: Slice, axis: &Axis) -> Result<Array, Error> {
        let inner = self.get()?;
        let axis = axis.resolve(&inner.dims)?;
        let shape = inner.node.shape();
        // A step longer than the axis selects at most one element, so it can be clamped.
        let most = shape[axis].clamp(1, i64::MAX as u64) as i64;
        let range = range.step(range.step.clamp(-most, most));
        let (first, len) = bounds(range, shape[axis])?;
        let step = range.step;
        let mut to = shape.clone();
        to[axis] = len;
        let map = |d: usize| match d {
            d if d == axis => AxisMap::Along { axis: d, start: first, step },
            d => AxisMap::whole(d),
        };
        let maps = (0..shape.len()).map(map).collect();
        let mut dims = inner.dims.clone();
        if let Some(origin) = &mut dims[axis].origin {
            origin.start = (origin.start as i64 + origin.step * first as i64) as u64;
            origin.step *= step;
        }
        self.view(ReadMap::image(to, maps), dims)
    }

    /// Selects the element at `index` along one axis, which is dropped. Negative indices count from
    /// the end.
    ///
    /// # Errors
    /// Fails if the axis or the index is out of range.
    #[track_caller]
    pub fn at(&self, index: i64, axis: impl Into<Axis>) -> Array {
        or_failed(self.try_at(index, &axis.into()))
    }

    pub(crate) fn try_at(&self, index: i64, axis: &Axis) -> Result<Array, Error> {
        let inner = self.get()?;
        let axis = axis.resolve(&inner.dims)?;
        let shape = inner.node.shape();
        let at = element(index, axis, shape[axis])?;
        let map = |d: usize| match d {
            d if d == axis => AxisMap::Fixed(at),
            d => AxisMap::whole(d - usize::from(d > axis)),
        };
        let maps = (0..shape.len()).map(map).collect();
        let others = || (0..shape.len()).filter(|d| *d != axis);
        let to = others().map(|d| shape[d]).collect();
        let dims = others().map(|d| inner.dims[d].clone()).collect();
        self.view(ReadMap::image(to, maps), dims)
    }

    /// Selects the elements at `indices` along one axis, in that order. Negative indices count from
    /// the end.
    ///
    /// Shape: the axis has the length of the list. Cost: no stage; the list becomes part of the
    /// plan. Only chunks that contain selected elements are read.
    ///
    /// # Errors
    /// Fails if the axis or an index is out of range.
    #[track_caller]
    pub fn take(&self, indices: impl AsRef<[i64]>, axis: impl Into<Axis>) -> Array {
        or_failed(self.try_take(indices.as_ref(), &axis.into()))
    }

    pub(crate) fn try_take(&self, indices: &[i64], axis: &Axis) -> Result<Array, Error> {
        let inner = self.get()?;
        let axis = axis.resolve(&inner.dims)?;
        let n = inner.node.shape()[axis];
        let elements = indices.iter().map(|i| element(*i, axis, n)).collect::<Result<_, _>>()?;
        self.gathered(axis, elements)
    }

    pub(crate) fn gathered(&self, axis: usize, indices: Arc<[u64]>) -> Result<Array, Error> {
        let inner = self.get()?;
        let mut to = inner.node.shape();
        to[axis] = indices.len() as u64;
        let map = |d: usize| match d {
            d if d == axis => {
                AxisMap::Gather { axis, start: 0, step: 1, indices: Arc::clone(&indices) }
            }
            d => AxisMap::whole(d),
        };
        let maps = (0..to.len()).map(map).collect();
        let mut dims = inner.dims.clone();
        dims[axis].origin = None;
        let read_map =
            if indices.is_empty() { ReadMap::new(to, vec![]) } else { ReadMap::image(to, maps) };
        self.view(read_map, dims)
    }

    /// Reverses the order of elements along axes; `()` reverses all axes.
    ///
    /// # Errors
    /// Fails if an axis does not exist or is named twice.
    #[track_caller]
    pub fn flip(&self, axes: impl Into<Axes>) -> Array {
        or_failed(self.try_flip(&axes.into()))
    }

    fn try_flip(&self, axes: &Axes) -> Result<Array, Error> {
        let reversed = Slice::new(None, None, -1);
        let axes = axes.resolve(&self.get()?.dims)?;
        axes.into_iter()
            .try_fold(self.clone(), |array, axis| array.try_slice(reversed, &Axis::position(axis)))
    }

    /// Rearranges the axes: axis `i` of the result is axis `axes[i]` of this array.
    ///
    /// # Errors
    /// Fails if `axes` is not a permutation of the array's axes.
    #[track_caller]
    pub fn permute_dims(&self, axes: impl Into<Axes>) -> Array {
        or_failed(self.try_permute_dims(&axes.into()))
    }

    pub(crate) fn try_permute_dims(&self, axes: &Axes) -> Result<Array, Error> {
        let inner = self.get()?;
        let shape = inner.node.shape();
        let order = axes.in_order(&inner.dims)?;
        if order.len() != shape.len() {
            return Err(Error::Argument(format!(
                "invalid axes {order:?}: expected each of {} axes once",
                shape.len()
            )));
        }
        let from = |d: usize| AxisMap::whole(order.iter().position(|o| *o == d).unwrap_or(d));
        let maps = (0..shape.len()).map(from).collect();
        let to = order.iter().map(|d| shape[*d]).collect();
        let dims = order.iter().map(|d| inner.dims[*d].clone()).collect();
        self.view(ReadMap::image(to, maps), dims)
    }

    /// Exchanges the last two axes.
    ///
    /// # Errors
    /// Fails if the array has fewer than two axes.
    #[track_caller]
    pub fn matrix_transpose(&self) -> Array {
        or_failed(self.try_matrix_transpose())
    }

    pub(crate) fn try_matrix_transpose(&self) -> Result<Array, Error> {
        let rank = self.get()?.dims.len() as i64;
        if rank < 2 {
            return Err(Error::Argument(format!(
                "matrix_transpose requires at least 2 axes, found {rank}"
            )));
        }
        self.try_permute_dims(&(0..rank - 2).chain([rank - 1, rank - 2]).collect())
    }

    /// Moves axes `source` of this array to positions `destination` of the result. The other axes
    /// keep their order.
    ///
    /// # Errors
    /// Fails if an axis does not exist or is named twice, or if the lists differ in length.
    #[track_caller]
    pub fn moveaxis(&self, source: impl Into<Axes>, destination: impl Into<Axes>) -> Array {
        or_failed(self.try_moveaxis(&source.into(), &destination.into()))
    }

    pub(crate) fn try_moveaxis(&self, source: &Axes, destination: &Axes) -> Result<Array, Error> {
        let dims = &self.get()?.dims;
        let (from, to) = (source.in_order(dims)?, destination.in_order(dims)?);
        if from.len() != to.len() {
            return Err(Error::Argument(format!(
                "moveaxis requires one destination per source, found {} for {} sources",
                to.len(),
                from.len()
            )));
        }
        let mut rest = (0..dims.len()).filter(|d| !from.contains(d));
        let mut source_of =
            |d: usize| to.iter().position(|t| *t == d).map(|i| from[i]).or_else(|| rest.next());
        let order = (0..dims.len()).filter_map(&mut source_of).map(Axis::position).collect();
        self.try_permute_dims(&order)
    }

    /// Inserts an axis of length 1 before position `axis` of the result.
    ///
    /// # Errors
    /// Fails if the position is out of range for the result.
    #[track_caller]
    pub fn expand_dims(&self, axis: i64) -> Array {
        or_failed(self.try_expand_dims(axis))
    }

    pub(crate) fn try_expand_dims(&self, axis: i64) -> Result<Array, Error> {
        let inner = self.get()?;
        let shape = inner.node.shape();
        let at = position(axis, shape.len() + 1)?;
        let maps = (0..shape.len()).map(|d| AxisMap::whole(d + usize::from(d >= at))).collect();
        let mut to = shape.clone();
        to.insert(at, 1);
        let mut dims = inner.dims.clone();
        dims.insert(at, Dim::default());
        self.view(ReadMap::image(to, maps), dims)
    }

    /// Drops axes of length 1.
    ///
    /// # Errors
    /// Fails if an axis does not exist, is named twice, or does not have length 1.
    #[track_caller]
    pub fn squeeze(&self, axes: impl Into<Axes>) -> Array {
        or_failed(self.try_squeeze(&axes.into()))
    }

    fn try_squeeze(&self, axes: &Axes) -> Result<Array, Error> {
        let inner = self.get()?;
        let shape = inner.node.shape();
        let axes = axes.resolve(&inner.dims)?;
        if let Some(axis) = axes.iter().find(|a| shape[**a] != 1) {
            return Err(Error::Argument(format!(
                "axis {axis} has {} elements: only axes of length 1 can be squeezed",
                shape[*axis]
            )));
        }
        axes.iter()
            .rev()
            .try_fold(self.clone(), |array, axis| array.try_at(0, &Axis::position(*axis)))
    }

    /// Broadcasts the array to a shape.
    ///
    /// # Errors
    /// Fails if the array's shape does not broadcast to `shape`.
    #[track_caller]
    pub fn broadcast_to(&self, shape: impl AsRef<[u64]>) -> Array {
        or_failed(self.try_broadcast_to(shape.as_ref()))
    }

    pub(crate) fn try_broadcast_to(&self, shape: &[u64]) -> Result<Array, Error> {
        let inner = self.get()?;
        let own = inner.node.shape();
        if broadcast_shapes(&own, shape)? != shape {
            return Err(Error::Argument(format!("shape {own:?} does not broadcast to {shape:?}")));
        }
        let shift = shape.len() - own.len();
        let dim = |d: usize| {
            if d >= shift && own[d - shift] == shape[d] {
                inner.dims[d - shift].clone()
            } else {
                Dim::default()
            }
        };
        let dims = (0..shape.len()).map(dim).collect();
        let node = broadcast_node(&inner.node, shape);
        Ok(Array::from_parts(node, dims, inner.attributes.clone()))
    }

    /// Splits the array along an axis into arrays without that axis.
    ///
    /// # Errors
    /// Fails if the axis does not exist, or if it is longer than 4096.
    pub fn unstack(&self, axis: impl Into<Axis>) -> Result<Vec<Array>, Error> {
        let axis = axis.into();
        let inner = self.get()?;
        let n = inner.node.shape()[axis.resolve(&inner.dims)?];
        if n > MAX_PIECES as u64 {
            return Err(Error::Argument(format!(
                "unstack would create {n} arrays: expected at most {MAX_PIECES}"
            )));
        }
        (0..n as i64).map(|i| self.try_at(i, &axis)).collect()
    }
}

/// Returns the position of an element along an axis of `n` elements.
fn element(index: i64, axis: usize, n: u64) -> Result<u64, Error> {
    let at = if index < 0 { index.saturating_add(n as i64) } else { index };
    if (0..n as i64).contains(&at) {
        return Ok(at as u64);
    }
    Err(Error::Argument(format!(
        "index {index} is out of range for axis {axis}, which has {n} elements"
    )))
}

/// Returns the first element and the number of elements of a slice of `n` elements.
fn bounds(slice: Slice, n: u64) -> Result<(u64, u64), Error> {
    let Slice { start, stop, step } = slice;
    if step == 0 {
        return Err(Error::Argument("the step of a slice cannot be 0".into()));
    }
    let n = n as i64;
    let wrap = |x: i64| if x < 0 { x.saturating_add(n) } else { x };
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let (begin, end) = if step > 0 { (0, n) } else { (n - 1, -1) };
    let first = start.map_or(begin, |s| wrap(s).clamp(low, high));
    let end = stop.map_or(end, |s| wrap(s).clamp(low, high));
    let span = if step > 0 { end - first } else { first - end };
    let len = (span.max(0) as u64).div_ceil(step.unsigned_abs());
    Ok((if len == 0 { 0 } else { first as u64 }, len))
}
