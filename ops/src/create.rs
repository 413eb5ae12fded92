//! Creation of arrays.

use std::sync::Arc;

use freestone_engine::graph::{Node, Op};
use freestone_engine::grid::{AxisGrid, ChunkGrid};
use freestone_engine::storage::metadata::array_document;
use freestone_engine::storage::{ArrayInfo, CodecName, Encoding, Keys, MemoryStore, Store};
use freestone_kernels::dtype::{Element, Kind};
use freestone_kernels::{Buffer, DType, Generate, Scalar};
use ndarray::{ArrayBase, Data, Dimension};
use serde_json::Map;

use crate::array::{Array, or_failed};
use crate::elementwise::{Operand, try_where};
use crate::error::Error;
use crate::join::cloned;
use crate::promotion::{held, whole};
use crate::range::length;

/// Creates an array filled with `value`, cast to `dtype`.
///
/// # Errors
/// Fails if the dtype cannot hold the value, or if the chunks do not match the shape.
#[track_caller]
pub fn full(
    shape: impl AsRef<[u64]>,
    value: impl Into<Scalar>,
    dtype: DType,
    chunks: impl AsRef<[u64]>,
) -> Array {
    or_failed(try_full(shape.as_ref(), value, dtype, chunks.as_ref()))
}

pub(crate) fn try_full(
    shape: &[u64],
    value: impl Into<Scalar>,
    dtype: DType,
    chunks: &[u64],
) -> Result<Array, Error> {
    generated(shape, dtype, chunks, Generate::Full(held(value.into(), dtype)?))
}

/// Creates an array of zeros.
///
/// # Errors
/// Fails if the chunks do not match the shape.
#[track_caller]
pub fn zeros(shape: impl AsRef<[u64]>, dtype: DType, chunks: impl AsRef<[u64]>) -> Array {
    or_failed(try_zeros(shape.as_ref(), dtype, chunks.as_ref()))
}

pub(crate) fn try_zeros(shape: &[u64], dtype: DType, chunks: &[u64]) -> Result<Array, Error> {
    try_full(shape, 0, dtype, chunks)
}

/// Creates an array of ones.
///
/// # Errors
/// Fails if the chunks do not match the shape.
#[track_caller]
pub fn ones(shape: impl AsRef<[u64]>, dtype: DType, chunks: impl AsRef<[u64]>) -> Array {
    or_failed(try_ones(shape.as_ref(), dtype, chunks.as_ref()))
}

pub(crate) fn try_ones(shape: &[u64], dtype: DType, chunks: &[u64]) -> Result<Array, Error> {
    try_full(shape, 1, dtype, chunks)
}

/// Creates an array of unspecified values. They are zeros, because other values would not be
/// cheaper.
///
/// # Errors
/// Fails if the chunks do not match the shape.
#[track_caller]
pub fn empty(shape: impl AsRef<[u64]>, dtype: DType, chunks: impl AsRef<[u64]>) -> Array {
    or_failed(try_empty(shape.as_ref(), dtype, chunks.as_ref()))
}

pub(crate) fn try_empty(shape: &[u64], dtype: DType, chunks: &[u64]) -> Result<Array, Error> {
    try_zeros(shape, dtype, chunks)
}

/// Creates an array filled with `value`, with the shape and chunks of another array. The default
/// dtype is that of the other array.
///
/// # Errors
/// Fails if the dtype cannot hold the value, and with the first error of the array's expression.
#[track_caller]
pub fn full_like(array: &Array, value: impl Into<Scalar>, dtype: Option<DType>) -> Array {
    or_failed(try_full_like(array, value, dtype))
}

pub(crate) fn try_full_like(
    array: &Array,
    value: impl Into<Scalar>,
    dtype: Option<DType>,
) -> Result<Array, Error> {
    let inner = array.get()?;
    let dtype = dtype.unwrap_or(inner.node.dtype);
    let node = Node {
        op: Op::Generate(Generate::Full(held(value.into(), dtype)?)),
        dtype,
        grid: inner.node.grid.clone(),
    };
    Ok(Array::from_parts(Arc::new(node), inner.dims.clone(), Map::new()))
}

/// Creates an array of zeros. See [`full_like`].
///
/// # Errors
/// Fails with the first error of the array's expression.
#[track_caller]
pub fn zeros_like(array: &Array, dtype: Option<DType>) -> Array {
    or_failed(try_zeros_like(array, dtype))
}

pub(crate) fn try_zeros_like(array: &Array, dtype: Option<DType>) -> Result<Array, Error> {
    try_full_like(array, 0, dtype)
}

/// Creates an array of ones. See [`full_like`].
///
/// # Errors
/// Fails with the first error of the array's expression.
#[track_caller]
pub fn ones_like(array: &Array, dtype: Option<DType>) -> Array {
    or_failed(try_ones_like(array, dtype))
}

pub(crate) fn try_ones_like(array: &Array, dtype: Option<DType>) -> Result<Array, Error> {
    try_full_like(array, 1, dtype)
}

/// Creates an array of unspecified values. See [`full_like`].
///
/// # Errors
/// Fails with the first error of the array's expression.
#[track_caller]
pub fn empty_like(array: &Array, dtype: Option<DType>) -> Array {
    or_failed(try_empty_like(array, dtype))
}

pub(crate) fn try_empty_like(array: &Array, dtype: Option<DType>) -> Result<Array, Error> {
    try_zeros_like(array, dtype)
}

/// Creates the values `start, start + step, …` up to but not including `stop`.
///
/// Shape: `(⌈(stop − start) / step⌉,)` by exact arithmetic, or `(0,)` if the quotient is negative.
/// Integers are exact.
///
/// # Errors
/// Fails if the step is 0, or if a number is not finite or not real. Also fails if `dtype` is bool
/// or complex, or if an integer dtype cannot hold the elements.
#[track_caller]
pub fn arange(
    start: impl Into<Scalar>,
    stop: impl Into<Scalar>,
    step: impl Into<Scalar>,
    dtype: DType,
    chunk: u64,
) -> Array {
    or_failed(try_arange(start, stop, step, dtype, chunk))
}

pub(crate) fn try_arange(
    start: impl Into<Scalar>,
    stop: impl Into<Scalar>,
    step: impl Into<Scalar>,
    dtype: DType,
    chunk: u64,
) -> Result<Array, Error> {
    let (start, stop, step) = (start.into(), stop.into(), step.into());
    if matches!(dtype.kind(), Kind::Bool | Kind::Complex) {
        return Err(Error::Domain { op: "arange", dtype });
    }
    let bad = || {
        Error::Argument(format!(
            "invalid range from {start} to {stop} by {step}: its length is undefined or too large"
        ))
    };
    let n = length(start, stop, step).ok_or_else(bad)?;
    if !dtype.is_integer() {
        return generated(&[n], dtype, &[chunk], Generate::Arange { start, step });
    }
    // As in NumPy, integers start at an integer and advance by an integer.
    let truncated = |s: Scalar| whole(s).or_else(|| whole(s.cast(DType::Int64))).ok_or_else(bad);
    let held = |value: i128| {
        let number = i64::try_from(value)
            .map(Scalar::new)
            .or_else(|_| u64::try_from(value).map(Scalar::new))
            .map_err(|_| bad())?;
        held(number, dtype).map(|_| number)
    };
    let (first, pace) = (truncated(start)?, truncated(step)?);
    let (start, step) = if n == 0 {
        (Scalar::new(0i64), Scalar::new(0i64))
    } else {
        (held(first)?, Scalar::new(pace as i64))
    };
    if n > 0 {
        held(first + pace * i128::from(n - 1))?;
    }
    generated(&[n], dtype, &[chunk], Generate::Arange { start, step })
}

/// Creates `n` evenly spaced values from `start` to `stop`. `stop` is the last value if `endpoint`
/// is true, and otherwise the value that would follow the last one.
///
/// # Errors
/// Fails if `dtype` is bool or complex.
#[track_caller]
pub fn linspace(start: f64, stop: f64, n: u64, endpoint: bool, dtype: DType, chunk: u64) -> Array {
    or_failed(try_linspace(start, stop, n, endpoint, dtype, chunk))
}

pub(crate) fn try_linspace(
    start: f64,
    stop: f64,
    n: u64,
    endpoint: bool,
    dtype: DType,
    chunk: u64,
) -> Result<Array, Error> {
    if matches!(dtype.kind(), Kind::Bool | Kind::Complex) {
        return Err(Error::Domain { op: "linspace", dtype });
    }
    let intervals = if endpoint { n.saturating_sub(1).max(1) } else { n.max(1) };
    generated(
        &[n],
        dtype,
        &[chunk],
        Generate::Linspace { start: Scalar::new(start), stop: Scalar::new(stop), intervals },
    )
}

/// Creates a matrix with ones on one diagonal, `k` above the main diagonal, and zeros elsewhere.
///
/// # Errors
/// Fails if the chunks do not match the shape.
#[track_caller]
pub fn eye(rows: u64, columns: u64, k: i64, dtype: DType, chunks: impl AsRef<[u64]>) -> Array {
    or_failed(try_eye(rows, columns, k, dtype, chunks.as_ref()))
}

pub(crate) fn try_eye(
    rows: u64,
    columns: u64,
    k: i64,
    dtype: DType,
    chunks: &[u64],
) -> Result<Array, Error> {
    generated(&[rows, columns], dtype, chunks, Generate::Eye { k })
}

/// Keeps the lower triangle of the last two axes, up to and including the `k`-th diagonal above the
/// main one. Other elements are 0.
///
/// Cost: no stage.
///
/// # Errors
/// Fails if the array has fewer than two axes.
#[track_caller]
pub fn tril(array: &Array, k: i64) -> Array {
    or_failed(try_tril(array, k))
}

pub(crate) fn try_tril(array: &Array, k: i64) -> Result<Array, Error> {
    let zero = literal_zero(array)?;
    try_where(&triangle(array, k)?, array, zero)
}

/// Keeps the upper triangle of the last two axes, from the `k`-th diagonal above the main one.
/// Other elements are 0.
///
/// Cost: no stage.
///
/// # Errors
/// Fails if the array has fewer than two axes.
#[track_caller]
pub fn triu(array: &Array, k: i64) -> Array {
    or_failed(try_triu(array, k))
}

pub(crate) fn try_triu(array: &Array, k: i64) -> Result<Array, Error> {
    let zero = literal_zero(array)?;
    try_where(&triangle(array, k.saturating_sub(1))?, zero, array)
}

impl Array {
    /// Sets elements above the `k`-th diagonal of the last two axes to 0. See
    /// [`tril`](crate::tril()).
    #[track_caller]
    pub fn tril(&self, k: i64) -> Array {
        tril(self, k)
    }

    /// Sets elements below the `k`-th diagonal of the last two axes to 0. See
    /// [`triu`](crate::triu()).
    #[track_caller]
    pub fn triu(&self, k: i64) -> Array {
        triu(self, k)
    }
}

fn literal_zero(array: &Array) -> Result<Operand, Error> {
    Ok(if array.dtype()? == DType::Bool { false.into() } else { 0.into() })
}

/// Returns the mask of the lower triangle of the last two axes.
fn triangle(array: &Array, k: i64) -> Result<Array, Error> {
    let grid = array.grid()?;
    let Some(axes) = grid.axes().len().checked_sub(2).map(|n| grid.axes()[n..].to_vec()) else {
        return Err(Error::Argument(format!(
            "expected an array of at least 2 axes, found {}",
            grid.axes().len()
        )));
    };
    Ok(Array::unnamed(Arc::new(Node {
        op: Op::Generate(Generate::Triangle { k }),
        dtype: DType::Bool,
        grid: ChunkGrid::new(axes),
    })))
}

/// The order of the first two axes of [`meshgrid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indexing {
    /// The first array varies along the second axis, and the second along the first.
    Xy,
    /// Array `i` varies along axis `i`.
    Ij,
}

/// Broadcasts one-dimensional arrays to the grid that they span.
///
/// Cost: no stage.
///
/// # Errors
/// Fails if an array is not one-dimensional, or if dtypes differ.
pub fn meshgrid(
    arrays: impl IntoIterator<Item = impl AsRef<Array>>,
    indexing: Indexing,
) -> Result<Vec<Array>, Error> {
    let arrays = cloned(arrays);
    let mut shape = Vec::with_capacity(arrays.len());
    for array in &arrays {
        match array.shape()?.as_slice() {
            [n] => shape.push(*n),
            other => {
                return Err(Error::Argument(format!(
                    "meshgrid requires one-dimensional arrays, found shape {other:?}"
                )));
            }
        }
        let (left, right) = (arrays[0].dtype()?, array.dtype()?);
        if left != right {
            return Err(Error::Promotion { left, right });
        }
    }
    let place =
        |i: usize| if indexing == Indexing::Xy && i < 2 && arrays.len() > 1 { 1 - i } else { i };
    let to: Vec<u64> = (0..shape.len()).map(|d| shape[place(d)]).collect();
    let spread = |(i, array): (usize, &Array)| {
        let thick =
            (place(i) + 1..shape.len()).try_fold(array.clone(), |a, _| a.try_expand_dims(-1))?;
        thick.try_broadcast_to(&to)
    };
    arrays.iter().enumerate().map(spread).collect()
}

/// Creates independent uniform values in `[low, high)`.
///
/// Each value depends only on the seed and its index (Philox4x32-10), not on the chunks.
///
/// # Errors
/// Fails if `dtype` is not a real float, or if the chunks do not match the shape.
#[track_caller]
pub fn random_uniform(
    shape: impl AsRef<[u64]>,
    low: f64,
    high: f64,
    seed: u64,
    dtype: DType,
    chunks: impl AsRef<[u64]>,
) -> Array {
    or_failed(try_random_uniform(shape.as_ref(), low, high, seed, dtype, chunks.as_ref()))
}

pub(crate) fn try_random_uniform(
    shape: &[u64],
    low: f64,
    high: f64,
    seed: u64,
    dtype: DType,
    chunks: &[u64],
) -> Result<Array, Error> {
    if dtype.kind() != Kind::Float {
        return Err(Error::Domain { op: "random_uniform", dtype });
    }
    generated(
        shape,
        dtype,
        chunks,
        Generate::Uniform { seed, low: Scalar::new(low), high: Scalar::new(high) },
    )
}

/// Creates independent normal values by the Box–Muller method. As for [`random_uniform`], values do
/// not depend on the chunks.
///
/// # Errors
/// Fails if `dtype` is not a real float, or if the chunks do not match the shape.
#[track_caller]
pub fn random_normal(
    shape: impl AsRef<[u64]>,
    mean: f64,
    deviation: f64,
    seed: u64,
    dtype: DType,
    chunks: impl AsRef<[u64]>,
) -> Array {
    or_failed(try_random_normal(shape.as_ref(), mean, deviation, seed, dtype, chunks.as_ref()))
}

pub(crate) fn try_random_normal(
    shape: &[u64],
    mean: f64,
    deviation: f64,
    seed: u64,
    dtype: DType,
    chunks: &[u64],
) -> Result<Array, Error> {
    if dtype.kind() != Kind::Float {
        return Err(Error::Domain { op: "random_normal", dtype });
    }
    generated(
        shape,
        dtype,
        chunks,
        Generate::Normal { seed, mean: Scalar::new(mean), deviation: Scalar::new(deviation) },
    )
}

/// Creates independent, uniformly distributed integers in `low..high`. As for [`random_uniform`],
/// values do not depend on the chunks.
///
/// # Errors
/// Fails if `dtype` is not an integer or cannot hold the bounds. Also fails if the range is empty,
/// or if the chunks do not match the shape.
#[track_caller]
pub fn random_integers(
    shape: impl AsRef<[u64]>,
    low: i64,
    high: i64,
    seed: u64,
    dtype: DType,
    chunks: impl AsRef<[u64]>,
) -> Array {
    or_failed(try_random_integers(shape.as_ref(), low, high, seed, dtype, chunks.as_ref()))
}

pub(crate) fn try_random_integers(
    shape: &[u64],
    low: i64,
    high: i64,
    seed: u64,
    dtype: DType,
    chunks: &[u64],
) -> Result<Array, Error> {
    if !dtype.is_integer() {
        return Err(Error::Domain { op: "random_integers", dtype });
    }
    let holds = |x: i64| {
        Scalar::new(x).cast(dtype).cast(DType::Int64).get() == Some(x)
            && (x >= 0 || dtype != DType::UInt64)
    };
    if low >= high || !holds(low) || !holds(high - 1) {
        return Err(Error::Argument(format!("invalid range {low}..{high} for {dtype}")));
    }
    generated(
        shape,
        dtype,
        chunks,
        Generate::Integers { seed, low, range: high.wrapping_sub(low) as u64 },
    )
}

fn generated(shape: &[u64], dtype: DType, chunks: &[u64], what: Generate) -> Result<Array, Error> {
    let grid = ChunkGrid::regular(shape, chunks)?;
    Ok(Array::unnamed(Arc::new(Node { op: Op::Generate(what), dtype, grid })))
}

/// The maximum size of a constant in a plan, in bytes. Larger arrays are kept in an in-memory store
/// of this process.
const MAX_CONSTANT_BYTES: usize = 1_000_000;

/// The approximate size of a chunk of an in-memory array, in bytes.
const MEMORY_CHUNK_BYTES: usize = 8_000_000;

/// Creates an array from an `ndarray` array.
///
/// An array of up to 1 MB becomes part of the plan. A larger array stays in this process, where
/// workers in other processes cannot access it; store it first for these.
#[track_caller]
pub fn asarray<T: Element, S: Data<Elem = T>, D: Dimension>(values: &ArrayBase<S, D>) -> Array {
    or_failed(in_memory(values))
}

fn in_memory<T: Element, S: Data<Elem = T>, D: Dimension>(
    values: &ArrayBase<S, D>,
) -> Result<Array, Error> {
    let shape: Vec<u64> = values.shape().iter().map(|n| *n as u64).collect();
    let flat: Vec<T> = values.iter().copied().collect();
    if size_of_val(flat.as_slice()) <= MAX_CONSTANT_BYTES {
        return Ok(constant(&shape, T::DTYPE, Buffer::from_slice(&flat)));
    }
    // Chunks are whole rows; the last one is padded.
    let row: usize = values.shape()[1..].iter().product();
    let rows = (MEMORY_CHUNK_BYTES / (row * size_of::<T>()).max(1)).clamp(1, values.shape()[0]);
    let chunk: Vec<u64> = std::iter::once(rows as u64).chain(shape[1..].iter().copied()).collect();
    let info = ArrayInfo {
        dtype: T::DTYPE,
        fill: Scalar::zero(T::DTYPE),
        grid: ChunkGrid::regular(&shape, &chunk)?,
        stored_shape: Some(chunk),
        codecs: Encoding::from(CodecName::None).codecs(T::DTYPE),
        keys: Keys::Default { separator: '/' },
        shard: None,
        window: None,
    };
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let document = serde_json::to_vec(&array_document(&info, &[], &Map::new()))
        .map_err(|e| Error::Argument(format!("cannot write an array's metadata: {e}")))?;
    store.write("values/zarr.json", &document)?;
    for (i, values) in flat.chunks(rows * row).enumerate() {
        let mut bytes = Buffer::from_slice(values).bytes().to_vec();
        bytes.resize(rows * row * size_of::<T>(), 0);
        let mut coords = vec![0; shape.len()];
        coords[0] = i as u64;
        store.write(&format!("values/{}", info.keys.key(&coords)), &bytes)?;
    }
    crate::io::open_in(&store, "values")
}

/// Creates an array from numbers in C order, each cast to `dtype`.
///
/// # Errors
/// Fails if the number of values does not match the shape, or if the array exceeds 1 MB.
#[track_caller]
pub fn from_scalars(
    shape: impl AsRef<[usize]>,
    values: impl AsRef<[Scalar]>,
    dtype: DType,
) -> Array {
    or_failed(try_from_scalars(shape.as_ref(), values.as_ref(), dtype))
}

pub(crate) fn try_from_scalars(
    shape: &[usize],
    values: &[Scalar],
    dtype: DType,
) -> Result<Array, Error> {
    let shape: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
    let n = values.len() * dtype.size();
    if shape.iter().product::<u64>() != values.len() as u64 || n > MAX_CONSTANT_BYTES {
        return Err(Error::Argument(format!(
            "cannot create an array of shape {shape:?} from {} numbers: expected one per element, \
                at most {MAX_CONSTANT_BYTES} bytes",
            values.len()
        )));
    }
    let mut buffer = Buffer::zeroed(n);
    for (out, value) in buffer.bytes_mut().chunks_exact_mut(dtype.size().max(1)).zip(values) {
        out.copy_from_slice(held(*value, dtype)?.bytes());
    }
    Ok(constant(&shape, dtype, buffer))
}

/// Creates an array without axes.
pub fn scalar<T: Element>(value: T) -> Array {
    constant(&[], T::DTYPE, Buffer::from_slice(&[value]))
}

fn constant(shape: &[u64], dtype: DType, values: Buffer) -> Array {
    let grid = ChunkGrid::new(shape.iter().map(|n| AxisGrid::regular(*n, *n)).collect());
    Array::unnamed(Arc::new(Node { op: Op::Constant(Arc::new(values)), dtype, grid }))
}
