//! Reshaping, and the chunks of a reshaped array.

use std::sync::Arc;

use freestone_engine::graph::{Node, Op};
use freestone_engine::grid::{AxisGrid, ChunkGrid};
use freestone_engine::readmap::{AxisMap, ReadMap};
use freestone_kernels::{Generate, Scalar};

use crate::array::{Array, Dim, or_failed};
use crate::error::Error;

impl Array {
    /// Returns the elements in C order in another shape. One length may be -1 and is then derived
    /// from the others.
    ///
    /// Cost: no stage if only axes of length 1 are added or dropped, or if the result is stored
    /// unchanged. Otherwise, one stage. Chunks are derived from those of this array.
    ///
    /// # Errors
    /// Fails if the shape has another number of elements.
    #[track_caller]
    pub fn reshape(&self, shape: impl AsRef<[i64]>) -> Array {
        or_failed(self.try_reshape(shape.as_ref()))
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
}

/// The maximum size of a chunk that is enlarged so that each source chunk is read once, in bytes.
const MAX_RESHAPED_CHUNK_BYTES: u64 = 128_000_000;

/// Returns the chunks of an array of shape `to` with the same elements in C order. Groups of axes
/// with equal numbers of elements correspond: a group's chunks are as large as the source's and
/// follow the C order.
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
        // The remaining axes have length 1.
        while a == b && i == own.len() && j < to.len() && to[j] == 1 {
            j += 1;
        }
        if i - i0 == 1 && j - j0 == 1 {
            axes.push(from.axes()[i0].clone());
            continue;
        }
        let chunk: Vec<u64> = from.axes()[i0..i].iter().map(AxisGrid::max_extent).collect();
        let linear: u64 = chunk.iter().product();
        // Rows of chunks are contiguous in C order from the first axis that is divided into chunks.
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
