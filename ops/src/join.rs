//! Joining of arrays: concatenation, stacking and broadcasting to a common shape.

use freestone_engine::grid::Region;
use freestone_engine::readmap::{AxisMap, MAX_PIECES, Origin, Piece, ReadMap};

use freestone_engine::graph::Node;

use crate::array::{Array, joined_attributes, or_failed};
use crate::axes::{Axes, Axis};
use crate::elementwise::broadcast_shapes;
use crate::error::Error;

/// Concatenates arrays along an axis: `concat([&a, &b], 0)`. With `()`, each array is flattened
/// first, which costs a stage.
///
/// Dtypes are promoted. Cost: no stage.
///
/// # Errors
/// Fails if there are no arrays, or if they differ in rank or in the length of another axis.
#[track_caller]
pub fn concat(arrays: impl IntoIterator<Item = impl AsRef<Array>>, axis: impl Into<Axes>) -> Array {
    or_failed(try_concat(&cloned(arrays), &axis.into()))
}

/// Clones the handles of the arrays.
pub(crate) fn cloned(arrays: impl IntoIterator<Item = impl AsRef<Array>>) -> Vec<Array> {
    arrays.into_iter().map(|array| array.as_ref().clone()).collect()
}

pub(crate) fn try_concat(arrays: &[Array], axis: &Axes) -> Result<Array, Error> {
    let Some(first) = arrays.first() else {
        return Err(Error::Argument("no arrays to join: expected at least one".into()));
    };
    if axis.len().is_none() {
        let flat = arrays.iter().map(|a| a.try_reshape(&[-1])).collect::<Result<Vec<_>, _>>()?;
        return try_concat(&flat, &0.into());
    }
    let &[axis] = axis.in_order(&first.get()?.dims)?.as_slice() else {
        return Err(Error::Argument("invalid axes for concat: expected one axis or `()`".into()));
    };
    let mut dtype = first.dtype()?;
    for array in &arrays[1..] {
        dtype = dtype.promote(array.dtype()?);
    }
    let cast = arrays.iter().map(|a| a.try_astype(dtype)).collect::<Result<Vec<_>, _>>()?;
    let mut shape = first.shape()?;
    let mut pieces = Vec::new();
    let mut at = 0u64;
    for (source, array) in cast.iter().enumerate() {
        let own = array.shape()?;
        check_joinable(&shape, &own, axis)?;
        let mut to = Region::whole(&own);
        to.start[axis] = at;
        at = at.checked_add(own[axis]).ok_or_else(|| {
            Error::Argument("the joined array exceeds the maximum size of an array".to_owned())
        })?;
        if !own.contains(&0) {
            let axes = (0..own.len()).map(AxisMap::whole).collect();
            pieces.push(Piece { to, from: Origin::Source { source, axes } });
        }
    }
    if pieces.len() > MAX_PIECES {
        return Err(Error::Argument(format!(
            "cannot join {} arrays at once: expected at most {MAX_PIECES} (hint: store parts)",
            pieces.len()
        )));
    }
    shape[axis] = at;
    let attributes = joined_attributes(&arrays.iter().collect::<Vec<_>>())?;
    let mut dims = first.dims()?.to_vec();
    dims[axis].origin = None;
    let nodes = cast.iter().map(|a| a.node().cloned()).collect::<Result<Vec<_>, _>>()?;
    Ok(Array::from_parts(Node::view(nodes, ReadMap::new(shape, pieces)), dims, attributes))
}

fn check_joinable(shape: &[u64], own: &[u64], axis: usize) -> Result<(), Error> {
    let differs = |d: &usize| *d != axis && shape.get(*d) != own.get(*d);
    let first = (0..shape.len().max(own.len())).find(differs);
    let Some(d) = first.or((own.len() <= axis).then_some(axis)) else { return Ok(()) };
    Err(Error::Argument(format!(
        "cannot join arrays of shapes {shape:?} and {own:?} along axis {axis}: they differ along \
            axis {d}"
    )))
}

/// Joins arrays of the same shape along a new axis at position `axis` of the result.
///
/// Dtypes are promoted. Cost: no stage.
///
/// # Errors
/// Fails if there are no arrays, or if their shapes differ.
#[track_caller]
pub fn stack(arrays: impl IntoIterator<Item = impl AsRef<Array>>, axis: i64) -> Array {
    or_failed(try_stack(&cloned(arrays), axis))
}

fn try_stack(arrays: &[Array], axis: i64) -> Result<Array, Error> {
    let expanded = arrays.iter().map(|a| a.try_expand_dims(axis)).collect::<Result<Vec<_>, _>>()?;
    try_concat(&expanded, &Axis::Number(axis).into())
}

/// Broadcasts arrays to their common shape.
///
/// # Errors
/// Fails if the shapes do not broadcast.
pub fn broadcast_arrays(
    arrays: impl IntoIterator<Item = impl AsRef<Array>>,
) -> Result<Vec<Array>, Error> {
    let arrays = cloned(arrays);
    let mut shape = Vec::new();
    for array in &arrays {
        shape = broadcast_shapes(&shape, &array.shape()?)?;
    }
    arrays.iter().map(|a| a.try_broadcast_to(&shape)).collect()
}
