//! The handle of a lazy array.

use std::panic::Location;
use std::sync::Arc;

use freestone_engine::graph::{Node, NodeRef, Op};
use freestone_engine::grid::ChunkGrid;
use freestone_engine::readmap::ReadMap;
use freestone_engine::storage::Store;
use freestone_engine::storage::packing::{PACKING_ATTRIBUTES, Packing};
use freestone_kernels::DType;
use serde_json::{Map, Value};

use crate::axes::Axis;
use crate::error::{Error, Packed};

/// A lazy, chunked, immutable array.
///
/// Cheap to clone. Building never fails in the middle of a chain: a function or an operator that
/// fails returns an array that holds the error and its location in the caller's code. Later
/// operations pass the first error on. [`check`](Array::check), the properties such as
/// [`shape`](Array::shape), and everything that plans, stores or computes return it.
#[derive(Clone)]
#[must_use = "arrays are lazy: store or compute them"]
pub struct Array {
    pub(crate) inner: Result<Inner, Arc<Error>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Inner {
    pub(crate) node: NodeRef,
    pub(crate) dims: Vec<Dim>,
    pub(crate) attributes: Map<String, Value>,
}

/// The properties of an axis besides its length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dim {
    /// The name.
    pub name: Option<String>,
    /// The location of the coordinate array, if the axis comes from a stored array in a group.
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
    pub(crate) fn from_parts(
        node: NodeRef,
        dims: Vec<Dim>,
        attributes: Map<String, Value>,
    ) -> Array {
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

    /// Returns the first error of the expression that built this array, if it has one.
    ///
    /// # Errors
    /// The first error, with the caller's location.
    pub fn check(&self) -> Result<(), Error> {
        self.get().map(drop)
    }

    pub(crate) fn get(&self) -> Result<&Inner, Error> {
        self.inner.as_ref().map_err(|e| (**e).clone())
    }

    /// The node of the engine's graph.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn node(&self) -> Result<&NodeRef, Error> {
        Ok(&self.get()?.node)
    }

    /// Returns the number of elements along each axis.
    ///
    /// # Errors
    /// The first error of the array's expression, as for all properties.
    pub fn shape(&self) -> Result<Vec<u64>, Error> {
        Ok(self.node()?.shape())
    }

    /// Returns the number of axes.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn ndim(&self) -> Result<usize, Error> {
        Ok(self.get()?.dims.len())
    }

    /// Returns the number of elements.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn size(&self) -> Result<u64, Error> {
        Ok(self.shape()?.iter().product())
    }

    /// Returns the element type.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn dtype(&self) -> Result<DType, Error> {
        Ok(self.node()?.dtype)
    }

    /// Returns the bytes of one element.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn itemsize(&self) -> Result<usize, Error> {
        Ok(self.dtype()?.size())
    }

    /// Returns the bytes of all elements.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn nbytes(&self) -> Result<u64, Error> {
        Ok(self.size()?.saturating_mul(self.itemsize()? as u64))
    }

    /// Returns the length of the largest chunk along each axis.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn chunks(&self) -> Result<Vec<u64>, Error> {
        Ok(self.grid()?.max_chunk())
    }

    /// Returns the chunks along each axis.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn grid(&self) -> Result<&ChunkGrid, Error> {
        Ok(&self.node()?.grid)
    }

    /// Returns the position of an axis, for instance of a name.
    ///
    /// # Errors
    /// The axis does not exist.
    pub fn axis(&self, axis: impl Into<Axis>) -> Result<usize, Error> {
        axis.into().resolve(&self.get()?.dims)
    }

    /// Returns the name of each axis.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn dims(&self) -> Result<&[Dim], Error> {
        Ok(&self.get()?.dims)
    }

    /// Returns the user attributes that are still valid.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn attributes(&self) -> Result<&Map<String, Value>, Error> {
        Ok(&self.get()?.attributes)
    }

    /// Names the axes: `x.with_dims(["time", "lat"])`. `None` leaves an axis without a name.
    ///
    /// # Errors
    /// The number of names is not the number of axes.
    #[track_caller]
    pub fn with_dims<'a, N: Into<Option<&'a str>>>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Array {
        let names: Vec<Option<&str>> = names.into_iter().map(Into::into).collect();
        or_failed(self.try_with_dims(&names))
    }

    fn try_with_dims(&self, names: &[Option<&str>]) -> Result<Array, Error> {
        let mut inner = self.get()?.clone();
        if names.len() != inner.dims.len() {
            return Err(Error::Argument(format!(
                "{} names were given for {} axes",
                names.len(),
                inner.dims.len()
            )));
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
    /// Fails with the first error of the array's expression.
    #[track_caller]
    pub fn with_attribute(&self, name: &str, value: impl Into<Value>) -> Array {
        or_failed(self.try_with_attribute(name, value))
    }

    pub(crate) fn try_with_attribute(
        &self,
        name: &str,
        value: impl Into<Value>,
    ) -> Result<Array, Error> {
        let mut inner = self.get()?.clone();
        inner.attributes.insert(name.to_owned(), value.into());
        Ok(Array { inner: Ok(inner) })
    }

    /// The stored numbers of a packed array as they are: without the attributes that say how they
    /// are packed, and those that hold for unpacked values. An array that is not packed stays as it
    /// is.
    ///
    /// Values that were packed by the attributes `scale_factor`, `add_offset`, `_Unsigned`,
    /// `_FillValue` or `missing_value` are not unpacked when they are read. They can be copied;
    /// what computes on them is refused with [`Error::Packed`], unless they are asked for by this
    /// method.
    ///
    /// ```
    /// # use freestone_kernels::DType;
    /// let stored = freestone_ops::arange(0, 4, 1, DType::Int16, 4)
    ///     .with_attribute("scale_factor", 0.1)
    ///     .with_attribute("_FillValue", 3);
    /// let error = stored.mean(0).check().unwrap_err().to_string();
    /// assert!(error.contains("scale_factor=0.1"), "{error}");
    /// assert!(error.contains("where(x == 3, nan, x * 0.1)"), "{error}");
    ///
    /// let x = stored.raw();
    /// let unpacked = x.equal(3).where_(f64::NAN, &x * 0.1);
    /// assert_eq!(unpacked.dtype()?, DType::Float64);
    /// # Ok::<(), freestone_ops::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    #[track_caller]
    pub fn raw(&self) -> Array {
        or_failed(self.try_raw())
    }

    pub(crate) fn try_raw(&self) -> Result<Array, Error> {
        let mut inner = self.get()?.clone();
        if inner.packing().is_some() {
            inner.attributes.retain(|name, _| !BOUND_TO_VALUES.contains(&name.as_str()));
        }
        Ok(Array { inner: Ok(inner) })
    }

    /// Returns how the values are packed, if they are.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn packing(&self) -> Result<Option<Packing>, Error> {
        Ok(self.get()?.packing())
    }

    /// Refuses an array whose values are packed, before something else than a copy is made of it.
    ///
    /// # Errors
    /// [`Error::Packed`]; the error that an operator left here.
    pub fn check_unpacked(&self) -> Result<(), Error> {
        self.get()?.check_unpacked()
    }

    /// The same values in chunks of another shape.
    ///
    /// Cost: one copy, or several with intermediates between them where reading chunks again and
    /// again would cost more; a plan says which and why.
    ///
    /// # Errors
    /// Fails if their number is not that of the axes, or one is 0.
    #[track_caller]
    pub fn rechunk(&self, chunks: impl AsRef<[u64]>) -> Array {
        or_failed(self.try_rechunk(chunks.as_ref()))
    }

    pub(crate) fn try_rechunk(&self, chunks: &[u64]) -> Result<Array, Error> {
        let inner = self.get()?;
        let grid = ChunkGrid::regular(&inner.node.shape(), chunks)?;
        if grid == inner.node.grid {
            return Ok(self.clone());
        }
        let node = Arc::new(Node {
            op: Op::Rechunk(Arc::clone(&inner.node)),
            dtype: inner.node.dtype,
            grid,
        });
        Ok(Array::from_parts(node, inner.dims.clone(), inner.attributes.clone()))
    }

    pub(crate) fn view(&self, map: ReadMap, dims: Vec<Dim>) -> Result<Array, Error> {
        let inner = self.get()?;
        Ok(Array::from_parts(
            Node::view(vec![Arc::clone(&inner.node)], map),
            dims,
            inner.attributes.clone(),
        ))
    }
}

impl AsRef<Array> for Array {
    fn as_ref(&self) -> &Array {
        self
    }
}

/// Returns the array, or one that carries the error and the location of the public function's
/// caller.
#[track_caller]
pub(crate) fn or_failed(result: Result<Array, Error>) -> Array {
    // Not in a closure, which has a location of its own.
    match result {
        Ok(array) => array,
        Err(error) => Array::failed(error, Location::caller()),
    }
}

impl Inner {
    fn packing(&self) -> Option<Packing> {
        Packing::of(&self.attributes, self.node.dtype)
    }

    fn check_unpacked(&self) -> Result<(), Error> {
        self.packing()
            .map_or(Ok(()), |packing| Err(Packed::new(source(&self.node), packing).into()))
    }
}

/// Returns the location that the values of a copy come from.
fn source(node: &NodeRef) -> Option<String> {
    match &node.op {
        Op::Stored(stored) => Some(stored.location()),
        Op::Rechunk(input) => source(input),
        Op::View { sources, .. } => sources.first().and_then(source),
        _ => None,
    }
}

/// Attributes that lose their meaning when values or dtype change.
const BOUND_TO_VALUES: [&str; 13] = [
    "_FillValue",
    "missing_value",
    "scale_factor",
    "add_offset",
    "_Unsigned",
    "valid_min",
    "valid_max",
    "valid_range",
    "units",
    "standard_name",
    "long_name",
    "cell_methods",
    "actual_range",
];

/// The attributes of an array that is computed: those that all its inputs agree on and that do not
/// describe their values.
///
/// All that computes asks for them here, so this is where packed values are refused.
///
/// # Errors
/// [`Error::Packed`]; the error that an operator left in an input.
pub(crate) fn computed_attributes(inputs: &[&Array]) -> Result<Map<String, Value>, Error> {
    inputs.iter().try_for_each(|array| array.check_unpacked())?;
    kept_attributes(inputs)
}

/// The attributes of an array whose elements are those of others, one beside the other: as of a
/// computed one, and how the values are packed.
///
/// # Errors
/// [`Error::Packed`] where they are not all packed alike; the error that an operator left in an
/// input.
pub(crate) fn joined_attributes(inputs: &[&Array]) -> Result<Map<String, Value>, Error> {
    let Some(first) = inputs.first() else { return Ok(Map::new()) };
    let packing = first.packing()?;
    for other in inputs {
        if !Packing::same(packing.as_ref(), other.packing()?.as_ref()) {
            first.check_unpacked()?;
            other.check_unpacked()?;
        }
    }
    let mut kept = kept_attributes(inputs)?;
    if packing.is_some() {
        let own = first.attributes()?;
        kept.extend(
            PACKING_ATTRIBUTES
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), own.get(*name)?.clone()))),
        );
    }
    Ok(kept)
}

fn kept_attributes(inputs: &[&Array]) -> Result<Map<String, Value>, Error> {
    let Some((first, others)) = inputs.split_first() else { return Ok(Map::new()) };
    let mut kept = first.attributes()?.clone();
    kept.retain(|name, _| !BOUND_TO_VALUES.contains(&name.as_str()));
    for other in others {
        let other = other.attributes()?;
        kept.retain(|name, value| other.get(name) == Some(value));
    }
    Ok(kept)
}
