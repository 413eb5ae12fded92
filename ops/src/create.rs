//! Arrays from nothing, and from the program's memory.

use std::sync::Arc;

use freestone_engine::graph::{Node, Op};
use freestone_engine::grid::{AxisGrid, ChunkGrid};
use freestone_kernels::dtype::{Element, Kind};
use freestone_kernels::{Buffer, DType, Generate, Scalar};
use ndarray::{ArrayBase, Data, Dimension};

use crate::array::Array;
use crate::error::Error;

/// Every element is `value`, cast to `dtype`.
///
/// # Errors
/// Where the chunks do not fit the shape.
pub fn full(shape: &[u64], value: f64, dtype: DType, chunks: &[u64]) -> Result<Array, Error> {
    generated(shape, dtype, chunks, Generate::Full(Scalar::from_f64(dtype, value)))
}

/// `start, start + step, …` up to but without `stop`.
///
/// Shape: `(⌈(stop − start) / step⌉,)`, or no elements.
///
/// # Errors
/// Where the step is 0 or not finite, or `dtype` is bool or complex.
pub fn arange(start: f64, stop: f64, step: f64, dtype: DType, chunk: u64) -> Result<Array, Error> {
    let n = ((stop - start) / step).ceil();
    if step == 0.0 || !n.is_finite() || n > 1e18 {
        return Err(Error::Argument(format!("a range from {start} to {stop} in steps of {step} has no number of elements")));
    }
    if matches!(dtype.kind(), Kind::Bool | Kind::Complex) {
        return Err(Error::Domain { op: "arange", dtype });
    }
    let shape = [n.max(0.0) as u64];
    generated(&shape, dtype, &[chunk], Generate::Arange { start: Scalar::new(start), step: Scalar::new(step) })
}

/// Independent uniform values in `[low, high)`.
///
/// The same seed gives the same values whatever the chunks are: each follows from its index (Philox4x32-10).
///
/// # Errors
/// Where `dtype` is not a real float, or the chunks do not fit the shape.
pub fn random_uniform(shape: &[u64], low: f64, high: f64, seed: u64, dtype: DType, chunks: &[u64]) -> Result<Array, Error> {
    if dtype.kind() != Kind::Float {
        return Err(Error::Domain { op: "random_uniform", dtype });
    }
    generated(shape, dtype, chunks, Generate::Uniform { seed, low: Scalar::new(low), high: Scalar::new(high) })
}

fn generated(shape: &[u64], dtype: DType, chunks: &[u64], what: Generate) -> Result<Array, Error> {
    let grid = ChunkGrid::regular(shape, chunks)?;
    Ok(Array::unnamed(Arc::new(Node { op: Op::Generate(what), dtype, grid })))
}

/// An array of the values of one in memory, at most 1 MB: it becomes part of the plan. Store larger ones first.
pub fn asarray<T: Element, S: Data<Elem = T>, D: Dimension>(values: &ArrayBase<S, D>) -> Array {
    let shape: Vec<u64> = values.shape().iter().map(|n| *n as u64).collect();
    let flat: Vec<T> = values.iter().copied().collect();
    constant(&shape, T::DTYPE, Buffer::from_slice(&flat))
}

/// An array of no axes.
pub fn scalar<T: Element>(value: T) -> Array {
    constant(&[], T::DTYPE, Buffer::from_slice(&[value]))
}

fn constant(shape: &[u64], dtype: DType, values: Buffer) -> Array {
    let grid = ChunkGrid::new(shape.iter().map(|n| AxisGrid::regular(*n, *n)).collect());
    Array::unnamed(Arc::new(Node { op: Op::Constant(Arc::new(values)), dtype, grid }))
}
