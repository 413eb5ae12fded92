//! The handle.

use std::panic::Location;
use std::sync::Arc;

use freestone_engine::graph::{Node, NodeRef, Op};
use freestone_engine::grid::ChunkGrid;
use freestone_engine::readmap::ReadMap;
use freestone_engine::storage::Store;
use freestone_kernels::DType;
use serde_json::{Map, Value};

use crate::error::Error;

/// A lazy, chunked, immutable array.
///
/// Cheap to clone. An operator that fails gives an array that carries its error with the place in the caller's code; the next method
/// that returns a `Result`, and whatever stores or computes, raises it.
#[derive(Clone, Debug)]
pub struct Array {
    pub(crate) inner: Result<Inner, Arc<Error>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Inner {
    pub(crate) node: NodeRef,
    pub(crate) dims: Vec<Dim>,
    pub(crate) attributes: Map<String, Value>,
}

/// What is known of an axis besides its length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dim {
    /// Its name.
    pub name: Option<String>,
    /// Where its coordinate array is, if it comes from a stored array in a group.
    pub(crate) origin: Option<Origin>,
}

/// An axis of a stored array, or a slice of it.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The store, and the group's path in it, of the array that the axis comes from.
    pub(crate) store: Arc<dyn Store>,
    pub(crate) group: String,
    /// Length of the stored axis.
    pub(crate) len: u64,
    /// First element and pace.
    pub(crate) start: u64,
    pub(crate) step: i64,
}

impl PartialEq for Origin {
    fn eq(&self, other: &Origin) -> bool {
        let key = |o: &Origin| (o.store.url().to_owned(), o.group.clone(), o.len, o.start, o.step);
        key(self) == key(other)
    }
}

impl Eq for Origin {}

impl Array {
    pub(crate) fn from_parts(node: NodeRef, dims: Vec<Dim>, attributes: Map<String, Value>) -> Array {
        Array { inner: Ok(Inner { node, dims, attributes }) }
    }

    pub(crate) fn unnamed(node: NodeRef) -> Array {
        let dims = vec![Dim::default(); node.grid.axes().len()];
        Array::from_parts(node, dims, Map::new())
    }

    /// An array that is an error.
    pub(crate) fn failed(error: Error, at: &'static Location<'static>) -> Array {
        let error = match error {
            Error::Deferred { .. } => Arc::new(error),
            source => Arc::new(Error::Deferred { source: Arc::new(source), at }),
        };
        Array { inner: Err(error) }
    }

    pub(crate) fn get(&self) -> Result<&Inner, Error> {
        self.inner.as_ref().map_err(|e| (**e).clone())
    }

    /// The node of the engine's graph.
    ///
    /// # Errors
    /// The error that an operator left here.
    pub fn node(&self) -> Result<&NodeRef, Error> {
        Ok(&self.get()?.node)
    }

    /// Elements along each axis.
    ///
    /// # Errors
    /// The error that an operator left here.
    pub fn shape(&self) -> Result<Vec<u64>, Error> {
        Ok(self.node()?.shape())
    }

    /// Element type.
    ///
    /// # Errors
    /// The error that an operator left here.
    pub fn dtype(&self) -> Result<DType, Error> {
        Ok(self.node()?.dtype)
    }

    /// Chunks along each axis.
    ///
    /// # Errors
    /// The error that an operator left here.
    pub fn grid(&self) -> Result<&ChunkGrid, Error> {
        Ok(&self.node()?.grid)
    }

    /// Names of the axes.
    ///
    /// # Errors
    /// The error that an operator left here.
    pub fn dims(&self) -> Result<&[Dim], Error> {
        Ok(&self.get()?.dims)
    }

    /// User attributes that still hold.
    ///
    /// # Errors
    /// The error that an operator left here.
    pub fn attributes(&self) -> Result<&Map<String, Value>, Error> {
        Ok(&self.get()?.attributes)
    }

    /// The same array with other names for its axes; `None` leaves an axis without one.
    ///
    /// # Errors
    /// Where their number is not that of the axes.
    pub fn with_dims(&self, names: &[Option<&str>]) -> Result<Array, Error> {
        let mut inner = self.get()?.clone();
        if names.len() != inner.dims.len() {
            return Err(Error::Argument(format!("{} names were given for {} axes", names.len(), inner.dims.len())));
        }
        for (dim, name) in inner.dims.iter_mut().zip(names) {
            if dim.name.as_deref() != *name {
                *dim = Dim { name: name.map(str::to_owned), origin: None };
            }
        }
        Ok(Array { inner: Ok(inner) })
    }

    /// The same array with an attribute.
    ///
    /// # Errors
    /// The error that an operator left here.
    pub fn with_attribute(&self, name: &str, value: impl Into<Value>) -> Result<Array, Error> {
        let mut inner = self.get()?.clone();
        inner.attributes.insert(name.to_owned(), value.into());
        Ok(Array { inner: Ok(inner) })
    }

    /// The same values in chunks of another shape.
    ///
    /// Cost: one copy, or several with intermediates between them where reading chunks again and again would cost more; a plan says which and why.
    ///
    /// # Errors
    /// Where their number is not that of the axes, or one is 0.
    pub fn rechunk(&self, chunks: &[u64]) -> Result<Array, Error> {
        let inner = self.get()?;
        let grid = ChunkGrid::regular(&inner.node.shape(), chunks)?;
        if grid == inner.node.grid {
            return Ok(self.clone());
        }
        let node = Arc::new(Node { op: Op::Rechunk(Arc::clone(&inner.node)), dtype: inner.node.dtype, grid });
        Ok(Array::from_parts(node, inner.dims.clone(), inner.attributes.clone()))
    }

    pub(crate) fn view(&self, map: ReadMap, dims: Vec<Dim>) -> Result<Array, Error> {
        let inner = self.get()?;
        Ok(Array::from_parts(Node::view(vec![Arc::clone(&inner.node)], map), dims, inner.attributes.clone()))
    }

    /// The number of an axis; negative ones count from the end.
    pub(crate) fn axis(&self, axis: i64) -> Result<usize, Error> {
        let rank = self.get()?.dims.len();
        let at = if axis < 0 { axis + rank as i64 } else { axis };
        if (0..rank as i64).contains(&at) { Ok(at as usize) } else { Err(Error::Axis { axis, rank }) }
    }
}

/// Attributes that lose their meaning when values or dtype change.
const BOUND_TO_VALUES: [&str; 12] = [
    "_FillValue",
    "missing_value",
    "scale_factor",
    "add_offset",
    "valid_min",
    "valid_max",
    "valid_range",
    "units",
    "standard_name",
    "long_name",
    "cell_methods",
    "actual_range",
];

/// The attributes that a computed array keeps: those that all its inputs agree on and that do not describe their values.
pub(crate) fn kept_attributes<'a>(mut inputs: impl Iterator<Item = &'a Map<String, Value>>) -> Map<String, Value> {
    let Some(first) = inputs.next() else { return Map::new() };
    let mut kept = first.clone();
    kept.retain(|name, _| !BOUND_TO_VALUES.contains(&name.as_str()));
    for other in inputs {
        kept.retain(|name, value| other.get(name) == Some(value));
    }
    kept
}
