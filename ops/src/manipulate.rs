//! Views: the same elements, elsewhere. None of these costs a stage.

use freestone_engine::readmap::{AxisMap, ReadMap};

use crate::array::{Array, Dim};
use crate::elementwise::{broadcast_node, broadcast_shapes};
use crate::error::Error;

impl Array {
    /// Elements `start, start + step, …` along one axis, up to but without `stop`; bounds as in Python: negative ones count
    /// from the end, and what is beyond the array is cut off.
    ///
    /// # Errors
    /// Where the axis is out of range or the step is 0.
    pub fn slice(&self, axis: i64, start: Option<i64>, stop: Option<i64>, step: i64) -> Result<Array, Error> {
        let axis = self.axis(axis)?;
        let inner = self.get()?;
        let shape = inner.node.shape();
        let (first, len) = bounds(start, stop, step, shape[axis])?;
        let mut to = shape.clone();
        to[axis] = len;
        let maps = (0..shape.len()).map(|d| match d {
            d if d == axis => AxisMap::Along { axis: d, start: first, step },
            d => AxisMap::Along { axis: d, start: 0, step: 1 },
        });
        let mut dims = inner.dims.clone();
        if let Some(origin) = &mut dims[axis].origin {
            origin.start = (origin.start as i64 + origin.step * first as i64) as u64;
            origin.step *= step;
        }
        self.view(ReadMap::affine(to, maps.collect()), dims)
    }

    /// The element at `index` along one axis, which is dropped; negative ones count from the end.
    ///
    /// # Errors
    /// Where axis or index are out of range.
    pub fn at(&self, axis: i64, index: i64) -> Result<Array, Error> {
        let axis = self.axis(axis)?;
        let inner = self.get()?;
        let shape = inner.node.shape();
        let n = shape[axis] as i64;
        let at = if index < 0 { index + n } else { index };
        if !(0..n).contains(&at) {
            return Err(Error::Argument(format!("index {index} is out of range for axis {axis}, which has {n} elements")));
        }
        let maps = (0..shape.len()).map(|d| match d {
            d if d == axis => AxisMap::Fixed(at as u64),
            d => AxisMap::Along { axis: d - usize::from(d > axis), start: 0, step: 1 },
        });
        let to = (0..shape.len()).filter(|d| *d != axis).map(|d| shape[d]).collect();
        let dims = (0..shape.len()).filter(|d| *d != axis).map(|d| inner.dims[d].clone()).collect();
        self.view(ReadMap::affine(to, maps.collect()), dims)
    }

    /// Backwards along one axis.
    ///
    /// # Errors
    /// Where the axis is out of range.
    pub fn flip(&self, axis: i64) -> Result<Array, Error> {
        self.slice(axis, None, None, -1)
    }

    /// Axis `i` of the result is axis `axes[i]` of this array.
    ///
    /// # Errors
    /// Where `axes` is not a permutation.
    pub fn permute_dims(&self, axes: &[i64]) -> Result<Array, Error> {
        let inner = self.get()?;
        let shape = inner.node.shape();
        let order = axes.iter().map(|a| self.axis(*a)).collect::<Result<Vec<_>, _>>()?;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if sorted != (0..shape.len()).collect::<Vec<_>>() {
            return Err(Error::Argument(format!("{axes:?} does not name each of {} axes once", shape.len())));
        }
        let maps = (0..shape.len()).map(|d| AxisMap::Along { axis: order.iter().position(|o| *o == d).unwrap_or(d), start: 0, step: 1 });
        let to = order.iter().map(|d| shape[*d]).collect();
        let dims = order.iter().map(|d| inner.dims[*d].clone()).collect();
        self.view(ReadMap::affine(to, maps.collect()), dims)
    }

    /// A new axis of length 1 before axis `axis` of the result.
    ///
    /// # Errors
    /// Where the axis is out of range for the result.
    pub fn expand_dims(&self, axis: i64) -> Result<Array, Error> {
        let inner = self.get()?;
        let shape = inner.node.shape();
        let rank = shape.len() + 1;
        let at = if axis < 0 { axis + rank as i64 } else { axis };
        if !(0..rank as i64).contains(&at) {
            return Err(Error::Axis { axis, rank });
        }
        let at = at as usize;
        let maps = (0..shape.len()).map(|d| AxisMap::Along { axis: d + usize::from(d >= at), start: 0, step: 1 });
        let mut to = shape.clone();
        to.insert(at, 1);
        let mut dims = inner.dims.clone();
        dims.insert(at, Dim::default());
        self.view(ReadMap::affine(to, maps.collect()), dims)
    }

    /// The array in a shape that its own broadcasts to.
    ///
    /// # Errors
    /// Where it does not.
    pub fn broadcast_to(&self, shape: &[u64]) -> Result<Array, Error> {
        let inner = self.get()?;
        let own = inner.node.shape();
        if broadcast_shapes(&own, shape)? != shape {
            return Err(Error::Argument(format!("shape {own:?} does not broadcast to {shape:?}")));
        }
        let shift = shape.len() - own.len();
        let dims = (0..shape.len()).map(|d| if d >= shift && own[d - shift] == shape[d] { inner.dims[d - shift].clone() } else { Dim::default() });
        Ok(Array::from_parts(broadcast_node(&inner.node, shape), dims.collect(), inner.attributes.clone()))
    }
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
    let len = if step > 0 { (end - first).max(0).div_ceil_(step) } else { (first - end).max(0).div_ceil_(step.saturating_neg()) };
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
