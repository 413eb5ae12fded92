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
/// Clones are cheap. A chain of operations never fails halfway: a function or operator that fails
/// returns an array with the error and its location in the caller's code. Later operations pass the
/// first error on. [`check`](Array::check), the properties such as [`shape`](Array::shape), and all
/// functions that plan, store or compute return it.
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
    /// The store of the array that the axis comes from, and the path of its group.
    pub(crate) store: Arc<dyn Store>,
    pub(crate) group: String,
    /// The length of the stored axis.
    pub(crate) len: u64,
    /// The first element and the step.
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

    /// Returns an array that holds an error.
    pub(crate) fn failed(error: Error, at: &'static Location<'static>) -> Array {
        let error = match error {
            Error::Deferred { .. } => Arc::new(error),
            source => Arc::new(Error::Deferred { source: Arc::new(source), at }),
        };
        Array { inner: Err(error) }
    }

    /// Checks the expression that built this array.
    ///
    /// # Errors
    /// Returns the first error of the expression, with the caller's location.
    pub fn check(&self) -> Result<(), Error> {
        self.get().map(drop)
    }

    pub(crate) fn get(&self) -> Result<&Inner, Error> {
        self.inner.as_ref().map_err(|e| (**e).clone())
    }

    /// Returns the node of the engine's graph.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn node(&self) -> Result<&NodeRef, Error> {
        Ok(&self.get()?.node)
    }

    /// Returns the number of elements along each axis.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
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

    /// Returns the size of one element in bytes.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn itemsize(&self) -> Result<usize, Error> {
        Ok(self.dtype()?.size())
    }

    /// Returns the size of all elements in bytes.
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

    /// Returns the chunk lengths along each axis.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn grid(&self) -> Result<&ChunkGrid, Error> {
        Ok(&self.node()?.grid)
    }

    /// Returns the position of an axis, for example of a named one.
    ///
    /// # Errors
    /// Fails if the axis does not exist.
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

    /// Returns the user attributes that are valid for this array.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn attributes(&self) -> Result<&Map<String, Value>, Error> {
        Ok(&self.get()?.attributes)
    }

    /// Names the axes: `x.with_dims(["time", "lat"])`. `None` leaves an axis without a name.
    ///
    /// # Errors
    /// Fails if the number of names differs from the number of axes.
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

    /// Returns the array with an attribute added.
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

    /// Returns the stored numbers of a packed array, without the attributes that describe the
    /// packing and those that apply to unpacked values. An array that is not packed is returned
    /// unchanged.
    ///
    /// Values are packed if the array has an attribute `scale_factor`, `add_offset`, `_Unsigned`,
    /// `_FillValue` or `missing_value`. Reading does not unpack them. Packed arrays can be copied,
    /// but computations on them return [`Error::Packed`] unless this method is called first.
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

    /// Returns the packing of the values; `None` if they are not packed.
    ///
    /// # Errors
    /// Fails with the first error of the array's expression.
    pub fn packing(&self) -> Result<Option<Packing>, Error> {
        Ok(self.get()?.packing())
    }

    /// Rejects an array with packed values. Called for all operations except copies.
    ///
    /// # Errors
    /// Returns [`Error::Packed`], or the error that this array holds.
    pub fn check_unpacked(&self) -> Result<(), Error> {
        self.get()?.check_unpacked()
    }

    /// Returns the same values in chunks of another shape.
    ///
    /// Cost: one copy, or several copies with intermediates if a single copy would read chunks
    /// repeatedly. The explanation of a plan states the choice and its reason.
    ///
    /// # Errors
    /// Fails if the number of chunk lengths differs from the number of axes, or if a length is 0.
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

/// Returns the array, or an array that holds the error with the location of the public function's
/// caller.
#[track_caller]
pub(crate) fn or_failed(result: Result<Array, Error>) -> Array {
    // A closure would have a location of its own.
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

/// Returns the location of the array whose values are copied.
fn source(node: &NodeRef) -> Option<String> {
    match &node.op {
        Op::Stored(stored) => Some(stored.location()),
        Op::Rechunk(input) => source(input),
        Op::View { sources, .. } => sources.first().and_then(source),
        _ => None,
    }
}

/// The attributes that become invalid when values or dtype change.
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

/// Returns the attributes of a computed array: those on which all inputs agree and that do not
/// describe values.
///
/// All computations call this function, which therefore rejects packed values.
///
/// # Errors
/// Returns [`Error::Packed`], or the error that an input holds.
pub(crate) fn computed_attributes(inputs: &[&Array]) -> Result<Map<String, Value>, Error> {
    inputs.iter().try_for_each(|array| array.check_unpacked())?;
    kept_attributes(inputs)
}

/// Returns the attributes of an array that joins the elements of others: those of a computed array,
/// and the attributes of the packing.
///
/// # Errors
/// Returns [`Error::Packed`] if the packings differ, or the error that an input holds.
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
