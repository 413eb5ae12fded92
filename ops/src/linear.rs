//! Matrix products, and cumulative sums and products.

use std::sync::Arc;

use freestone_engine::graph::{Node, Op};
use freestone_engine::grid::ChunkGrid;
use freestone_engine::stages::{ContractNode, ScanNode};
use freestone_kernels::dtype::Kind;
use freestone_kernels::{BinaryOp, DType, Generate, Scalar, ScanOp, UnaryOp};

use crate::array::{Array, Dim, computed_attributes, or_failed};
use crate::axes::{Axes, Axis, position};
use crate::elementwise::{broadcast_shapes, try_binary, try_unary};
use crate::error::Error;
use crate::join::try_concat;
use crate::reduce::{Reduce, summed};

/// The options of a cumulative sum or product: the axis, as a number, a name, or `()` for the only
/// axis. [`Scan`]'s methods set more: `Scan::axis(0).include_initial()`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    axis: Option<Axis>,
    dtype: Option<DType>,
    include_initial: bool,
}

impl Scan {
    /// Scans along this axis.
    pub fn axis(axis: impl Into<Axis>) -> Scan {
        Scan { axis: Some(axis.into()), ..Scan::default() }
    }

    /// Sets the result's dtype. Values are cast to it first.
    #[must_use]
    pub fn dtype(self, dtype: DType) -> Scan {
        Scan { dtype: Some(dtype), ..self }
    }

    /// Inserts the initial value at the start: 0 for sums, 1 for products. The axis becomes longer
    /// by 1.
    #[must_use]
    pub fn include_initial(self) -> Scan {
        Scan { include_initial: true, ..self }
    }
}

macro_rules! scan_from_axis {
    ($($type:ty),*) => { $(
        impl From<$type> for Scan {
            fn from(axis: $type) -> Scan {
                Scan::axis(axis)
            }
        }
    )* };
}
scan_from_axis!(i64, &str, String, Axis);

impl From<()> for Scan {
    fn from((): ()) -> Scan {
        Scan::default()
    }
}

impl Array {
    /// Returns the cumulative sum along an axis. Floats are accumulated in `float64` and keep their
    /// dtype; integers give 64 bits and wrap.
    ///
    /// Shape: that of the array; longer by 1 along the axis with [`Scan::include_initial`]. Cost:
    /// one stage if enough tasks can run along the whole axis. Otherwise, three stages read the
    /// input twice, and write one additional element for each part of the axis. Memory: a chunk of
    /// each input and of the result, and one element along the axis.
    ///
    /// # Errors
    /// Fails if the axis is out of range, or if `()` is given for an array of several axes.
    #[track_caller]
    pub fn cumulative_sum(&self, options: impl Into<Scan>) -> Array {
        or_failed(self.scan("cumulative_sum", ScanOp::Sum, &options.into()))
    }

    /// Returns the cumulative product along an axis. See [`cumulative_sum`](Array::cumulative_sum).
    ///
    /// # Errors
    /// Fails like `cumulative_sum`.
    #[track_caller]
    pub fn cumulative_prod(&self, options: impl Into<Scan>) -> Array {
        or_failed(self.scan("cumulative_prod", ScanOp::Prod, &options.into()))
    }

    fn scan(&self, name: &'static str, op: ScanOp, options: &Scan) -> Result<Array, Error> {
        let rank = self.shape()?.len();
        let axis = match &options.axis {
            Some(axis) => axis.resolve(self.dims()?)?,
            None if rank == 1 => 0,
            None => {
                return Err(Error::Argument(format!(
                    "{name} requires an axis: the array has {rank} axes"
                )));
            }
        };
        let dtype = summed(self.dtype()?, options.dtype)?;
        let input = self.try_astype(dtype)?;
        let inner = input.get()?;
        let grid = inner.node.grid.clone();
        let value = if op == ScanOp::Sum { 0u8 } else { 1 };
        let work = if grid.shape().contains(&0) {
            Op::Generate(Generate::Full(Scalar::new(value).cast(dtype)))
        } else {
            Op::Staged(ScanNode { input: Arc::clone(&inner.node), op, axis }.into())
        };
        let result = Array::from_parts(
            Arc::new(Node { op: work, dtype, grid }),
            inner.dims.clone(),
            computed_attributes(&[&input])?,
        );
        if !options.include_initial {
            return Ok(result);
        }
        let mut shape = self.shape()?;
        shape[axis] = 1;
        let chunks: Vec<u64> = inner
            .node
            .grid
            .max_chunk()
            .iter()
            .zip(&shape)
            .map(|(c, n)| (*c).clamp(1, (*n).max(1)))
            .collect();
        let first = Array::unnamed(Arc::new(Node {
            op: Op::Generate(Generate::Full(Scalar::new(value).cast(dtype))),
            dtype,
            grid: ChunkGrid::regular(&shape, &chunks)?,
        }));
        try_concat(&[first, result], &Axis::position(axis).into())
    }

    /// Returns the product of matrices in the last two axes, or of vectors, as in the Array API
    /// standard. The leading axes broadcast.
    ///
    /// Shape: `(…, m, k)` by `(…, k, n)` gives `(…, m, n)`. A one-dimensional operand is a row or a
    /// column, whose axis is dropped. Floats are accumulated in their own precision; integers wrap.
    ///
    /// Cost: one stage, or two if the result has few chunks and the sums are long. Each operand is
    /// read once for each box of the result that fits in memory. Memory: a box of the result, and a
    /// chunk of each operand as wide as the box.
    ///
    /// # Errors
    /// Fails if an operand has no axes, or if the lengths differ.
    #[track_caller]
    pub fn matmul(&self, other: &Array) -> Array {
        or_failed(self.try_matmul(other))
    }

    pub(crate) fn try_matmul(&self, other: &Array) -> Result<Array, Error> {
        let (a, b) = (self.shape()?, other.shape()?);
        if a.is_empty() || b.is_empty() {
            return Err(Error::Argument(
                "matmul requires at least one axis (hint: multiply by numbers with `*`)".into(),
            ));
        }
        let (column, inner) = (b.len() == 1, if b.len() == 1 { b[0] } else { b[b.len() - 2] });
        if a[a.len() - 1] != inner {
            return Err(Error::Argument(format!(
                "cannot multiply matrices of shapes {a:?} and {b:?}: lengths {} and {inner} differ",
                a[a.len() - 1]
            )));
        }
        let columns = if column { other.clone() } else { other.try_matrix_transpose()? };
        let free = [usize::from(a.len() > 1), usize::from(!column)];
        let stacks = [&a[..a.len() - 1 - free[0]], &b[..b.len() - 1 - free[1]]];
        let batch = broadcast_shapes(stacks[0], stacks[1])?;
        let spread = |x: &Array, free: usize| -> Result<Array, Error> {
            let own = x.shape()?;
            let shape = [&batch[..], &own[own.len() - 1 - free..]].concat();
            if shape == own { Ok(x.clone()) } else { x.try_broadcast_to(&shape) }
        };
        contract(&spread(self, free[0])?, &spread(&columns, free[1])?, batch.len(), free)
    }
}

/// The contracted axes of [`tensordot`]: a number of axes, or a pair of lists of axes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensordotAxes {
    /// The last `n` axes of `x1` and the first `n` of `x2`.
    Count(usize),
    /// The axes of `x1`, and the corresponding axes of `x2`.
    Pairs(Axes, Axes),
}

impl From<usize> for TensordotAxes {
    fn from(n: usize) -> TensordotAxes {
        TensordotAxes::Count(n)
    }
}

impl<L: Into<Axes>, R: Into<Axes>> From<(L, R)> for TensordotAxes {
    fn from((left, right): (L, R)) -> TensordotAxes {
        TensordotAxes::Pairs(left.into(), right.into())
    }
}

/// Returns sums of products over axes of two arrays: `tensordot(&x, &y, 2)` or
/// `tensordot(&x, &y, ([0, 1], [1, 0]))`.
///
/// Shape: the remaining axes of `x1`, then those of `x2`. Cost and memory: as for
/// [`Array::matmul`].
///
/// # Errors
/// Fails if an axis does not exist or is named twice, or if the lengths of corresponding axes
/// differ.
#[track_caller]
pub fn tensordot(x1: &Array, x2: &Array, axes: impl Into<TensordotAxes>) -> Array {
    or_failed(try_tensordot(x1, x2, &axes.into()))
}

fn try_tensordot(x1: &Array, x2: &Array, axes: &TensordotAxes) -> Result<Array, Error> {
    let (a, b) = (x1.shape()?, x2.shape()?);
    let (left, right) = match axes {
        TensordotAxes::Count(n) if *n > a.len().min(b.len()) => {
            return Err(Error::Argument(format!(
                "tensordot cannot sum over {n} axes of shapes {a:?} and {b:?}"
            )));
        }
        TensordotAxes::Count(n) => ((a.len() - n..a.len()).collect(), (0..*n).collect()),
        TensordotAxes::Pairs(left, right) => {
            (left.in_order(x1.dims()?)?, right.in_order(x2.dims()?)?)
        }
    };
    if left.len() != right.len() || left.iter().zip(&right).any(|(l, r)| a[*l] != b[*r]) {
        return Err(Error::Argument(format!(
            "cannot contract axes {left:?} of shape {a:?} with axes {right:?} of shape {b:?}: \
                expected pairs of equal lengths"
        )));
    }
    let turned = |x: &Array, rank: usize, summed: &[usize]| {
        let others = (0..rank).filter(|d| !summed.contains(d));
        let order = others.chain(summed.iter().copied()).map(Axis::position).collect();
        x.try_permute_dims(&order)
    };
    contract(
        &turned(x1, a.len(), &left)?,
        &turned(x2, b.len(), &right)?,
        0,
        [a.len() - left.len(), b.len() - right.len()],
    )
}

/// Returns the sum of products along an axis, with the conjugates of the first operand. The other
/// axes broadcast.
///
/// Shape: that to which the other axes broadcast. Cost and memory: as for `sum`.
///
/// # Errors
/// Fails if the axis is out of range or its lengths differ, or if the shapes do not broadcast.
#[track_caller]
pub fn vecdot(x1: &Array, x2: &Array, axis: i64) -> Array {
    or_failed(try_vecdot(x1, x2, axis))
}

pub(crate) fn try_vecdot(x1: &Array, x2: &Array, axis: i64) -> Result<Array, Error> {
    if axis >= 0 {
        return Err(Error::Argument(format!(
            "invalid axis {axis} for vecdot: expected a negative axis, counted from the end"
        )));
    }
    let (a, b) = (position(axis, x1.ndim()?)?, position(axis, x2.ndim()?)?);
    let (m, n) = (x1.shape()?[a], x2.shape()?[b]);
    if m != n {
        return Err(Error::Argument(format!(
            "vecdot requires axes of equal lengths, found {m} and {n}"
        )));
    }
    let dtype = common(x1, x2)?;
    if dtype == DType::Bool {
        return product(x1, x2)?.reduction("any", &axis.into());
    }
    let left = if x1.dtype()?.kind() == Kind::Complex {
        try_unary(UnaryOp::Conj, x1)?
    } else {
        x1.clone()
    };
    product(&left, x2)?.reduction("sum", &Reduce::axes(axis).dtype(dtype))
}

/// Returns the outer product of two vectors.
///
/// Shape: `(m,)` and `(n,)` give `(m, n)`. Cost: no stage.
///
/// # Errors
/// Fails if an operand is not one-dimensional.
#[track_caller]
pub fn outer(x1: &Array, x2: &Array) -> Array {
    or_failed(try_outer(x1, x2))
}

pub(crate) fn try_outer(x1: &Array, x2: &Array) -> Result<Array, Error> {
    let (a, b) = (x1.shape()?.len(), x2.shape()?.len());
    if (a, b) != (1, 1) {
        return Err(Error::Argument(format!(
            "outer requires one-dimensional arrays, found {a} and {b} axes"
        )));
    }
    product(&x1.try_expand_dims(1)?, &x2.try_expand_dims(0)?)
}

fn product(x1: &Array, x2: &Array) -> Result<Array, Error> {
    try_binary(BinaryOp::Multiply, x1.into(), x2.into())
}

fn common(x1: &Array, x2: &Array) -> Result<DType, Error> {
    Ok(x1.dtype()?.promote(x2.dtype()?))
}

/// Contracts two arrays: `out[b…, i…, j…] = Σ lhs[b…, i…, k…] · rhs[b…, j…, k…]`.
fn contract(lhs: &Array, rhs: &Array, batch: usize, free: [usize; 2]) -> Result<Array, Error> {
    let result = common(lhs, rhs)?;
    // Products of bools are counted in floats, because an integer count can wrap to 0.
    let dtype = if result == DType::Bool { DType::Float32 } else { result };
    let (lhs, rhs) = (lhs.try_astype(dtype)?, rhs.try_astype(dtype)?);
    let (left, right) = (lhs.get()?, rhs.get()?);
    let (a, b) = (left.node.grid.axes(), right.node.grid.axes());
    // A shared axis takes the chunks of the operand that has more of them.
    let shared = (0..batch)
        .map(|d| if a[d].n_chunks() >= b[d].n_chunks() { a[d].clone() } else { b[d].clone() });
    let axes = shared
        .chain(a[batch..batch + free[0]].iter().cloned())
        .chain(b[batch..batch + free[1]].iter().cloned());
    let grid = ChunkGrid::new(axes.collect());
    // An axis name may occur only once.
    let shared = (0..batch).map(|d| {
        if left.dims[d].name.is_some() { left.dims[d].clone() } else { right.dims[d].clone() }
    });
    let mut dims: Vec<Dim> = shared
        .chain(left.dims[batch..batch + free[0]].iter().cloned())
        .chain(right.dims[batch..batch + free[1]].iter().cloned())
        .collect();
    let names: Vec<Option<String>> = dims.iter().map(|d| d.name.clone()).collect();
    for (d, dim) in dims.iter_mut().enumerate() {
        if names[d].is_some() && names.iter().filter(|n| **n == names[d]).count() > 1 {
            *dim = Dim::default();
        }
    }
    let nothing =
        grid.shape().contains(&0) || a[batch + free[0]..].iter().any(|axis| axis.is_empty());
    let work = if nothing {
        Op::Generate(Generate::Full(Scalar::new(0u8).cast(dtype)))
    } else {
        Op::Staged(
            ContractNode {
                operands: [Arc::clone(&left.node), Arc::clone(&right.node)],
                batch,
                free,
            }
            .into(),
        )
    };
    let attributes = computed_attributes(&[&lhs, &rhs])?;
    Array::from_parts(Arc::new(Node { op: work, dtype, grid }), dims, attributes).try_astype(result)
}
