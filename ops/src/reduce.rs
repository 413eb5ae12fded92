//! Reductions.

use std::sync::Arc;

use freestone_engine::graph::{Node, Op};
use freestone_engine::grid::{AxisGrid, ChunkGrid};
use freestone_kernels::dtype::Kind;
use freestone_kernels::{DType, Generate, ReduceOp, Scalar};

use crate::array::{Array, Dim, kept_attributes};
use crate::error::Error;

/// Along which axes, and whether they stay with length 1. From a number, a list (empty: along none), or [`All`](Axes::All).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axes {
    /// Every axis.
    All,
    /// These; negative ones count from the end.
    These(Vec<i64>),
}

impl From<i64> for Axes {
    fn from(axis: i64) -> Self {
        Axes::These(vec![axis])
    }
}

impl<const N: usize> From<[i64; N]> for Axes {
    fn from(axes: [i64; N]) -> Self {
        Axes::These(axes.to_vec())
    }
}

impl From<()> for Axes {
    fn from((): ()) -> Self {
        Axes::All
    }
}

macro_rules! reductions {
    ($($name:ident $keep:ident $fold:ident $mean:literal $doc:literal;)*) => { impl Array { $(
        #[doc = $doc]
        ///
        /// Shape: the reduced axes are dropped. `()` reduces all of them.
        /// Cost: one stage where one task can stream the reduced axes, else two. Memory: one chunk of each input and the accumulators.
        ///
        /// # Errors
        /// Where an axis is out of range, or it is not defined for the dtype.
        pub fn $name(&self, axes: impl Into<Axes>) -> Result<Array, Error> {
            self.reduce(stringify!($name), ReduceOp::$fold, $mean, axes.into(), false)
        }

        #[doc = concat!("As [`Array::", stringify!($name), "`]; the reduced axes stay with length 1.")]
        ///
        /// # Errors
        /// The same.
        pub fn $keep(&self, axes: impl Into<Axes>) -> Result<Array, Error> {
            self.reduce(stringify!($name), ReduceOp::$fold, $mean, axes.into(), true)
        }
    )* } };
}

reductions! {
    sum sum_keepdims Sum false "The sum. Floats are summed in `float64` and keep their dtype; integers give `int64` or `uint64` and wrap.";
    mean mean_keepdims Sum true "The mean, ignoring nothing: a NaN makes its result NaN. Floats keep their dtype and are summed in `float64`; integers give `float64`.";
    min min_keepdims Min false "The least element; NaN if there is one.";
    max max_keepdims Max false "The greatest element; NaN if there is one.";
}

impl Array {
    fn reduce(&self, name: &'static str, fold: ReduceOp, mean: bool, axes: Axes, keepdims: bool) -> Result<Array, Error> {
        let inner = self.get()?;
        let shape = inner.node.shape();
        let mut numbers: Vec<usize> = match axes {
            Axes::All => (0..shape.len()).collect(),
            Axes::These(these) => these.into_iter().map(|a| self.axis(a)).collect::<Result<_, _>>()?,
        };
        numbers.sort_unstable();
        if let Some(w) = numbers.windows(2).find(|w| w[0] == w[1]) {
            return Err(Error::AxisTwice(w[0] as i64));
        }
        let from = inner.node.dtype;
        let accumulator = fold.accumulator(from).ok_or(Error::Domain { op: name, dtype: from })?;
        let dtype = match (mean, from.kind()) {
            (true, Kind::Signed | Kind::Unsigned) => DType::Float64,
            (true, _) | (_, Kind::Float | Kind::Complex) => from,
            _ => accumulator,
        };
        let kept = |d: &usize| !numbers.contains(d);
        let axis = |d: usize| if kept(&d) { inner.node.grid.axes()[d].clone() } else { AxisGrid::regular(1, 1) };
        let out: Vec<usize> = (0..shape.len()).filter(|d| keepdims || kept(d)).collect();
        let grid = ChunkGrid::new(out.iter().map(|d| axis(*d)).collect());
        let dims = out.iter().map(|d| if kept(d) { inner.dims[*d].clone() } else { Dim { name: inner.dims[*d].name.clone(), origin: None } }).collect();
        let attributes = kept_attributes(std::iter::once(&inner.attributes));
        let op = match numbers.iter().find(|a| shape[**a] == 0) {
            // Nothing to fold: the sum of nothing is 0, its mean NaN.
            Some(_) if fold == ReduceOp::Sum && mean => Op::Generate(Generate::Full(Scalar::from_f64(dtype, f64::NAN))),
            Some(_) if fold == ReduceOp::Sum => Op::Generate(Generate::Full(Scalar::zero(dtype))),
            Some(axis) => return Err(Error::Empty { op: name, axis: *axis }),
            None => Op::Reduce { input: Arc::clone(&inner.node), fold, mean, axes: numbers, keepdims },
        };
        Ok(Array::from_parts(Arc::new(Node { op, dtype, grid }), dims, attributes))
    }
}
