//! Reductions: folding blocks into accumulators.
//!
//! A reducing task reads its input chunk by chunk. [`fold`] evaluates each block in strips and
//! folds them into one accumulator per kept element; [`Finish`] turns accumulators into results.
//! Accumulators are wider than the values. Partial results hold accumulators, so the same fold
//! merges them. The order of additions is fixed: the same blocks in the same order give the same
//! bits on every executor.
//!
//! A two-word accumulator is stored as `complex128`, which serves only as a carrier: `(sum, error)`
//! for sums of `float64`, `(mean, sum of squared deviations)` for variances, `(value, index)` for
//! positions.

mod extremes;
mod finish;
mod fold;
mod lanes;
mod sums;
#[cfg(test)]
mod tests;
mod variance;

use serde::{Deserialize, Serialize};

use crate::copy;
use crate::dtype::{Complex128, DType, Kind};
use crate::scalar::Scalar;

pub use fold::{FoldBlock, FoldSpec, fold};

/// A reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReduceOp {
    /// The sum. `float32` is added in `float64`; `float64` keeps the rounding errors of its
    /// additions as a second word (TwoSum; Knuth, TAOCP 2, 4.2.2), so the result is as if added in
    /// twice the precision.
    Sum,
    /// The product.
    Prod,
    /// The minimum; NaN if any value is NaN.
    Min,
    /// The maximum; NaN if any value is NaN.
    Max,
    /// The index of the first minimum, or of the first NaN.
    Argmin,
    /// The index of the first maximum, or of the first NaN.
    Argmax,
    /// Mean and sum of squared deviations, by Welford (1962), merged by Chan, Golub & LeVeque
    /// (1979).
    Var,
}

/// The conversion of accumulators to results after the last fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// No conversion: the accumulators are a partial result, folded again by a later task.
    #[serde(rename = "keep")]
    Partial,
    /// The value, cast to a dtype. A sum that is zero is +0.
    Value(DType),
    /// The value, cast to a dtype, with the sign of a zero: the carry of a running sum from one
    /// part to the next.
    Carry(DType),
    /// A sum divided by the number of elements, then cast.
    Mean {
        /// The number of elements folded into each accumulator.
        count: u64,
        /// The result's dtype.
        dtype: DType,
    },
    /// Squared deviations divided by `count - correction`; NaN if that is not positive.
    Var {
        /// The number of elements folded into each accumulator.
        count: u64,
        /// The correction subtracted from `count`, as `float64`.
        correction: Scalar,
        /// Whether to return the square root: the standard deviation.
        root: bool,
        /// The result's dtype.
        dtype: DType,
    },
}

impl ReduceOp {
    /// Returns the dtype of the accumulators for values of `dtype`, or `None` if undefined.
    pub fn accumulator(self, values: DType) -> Option<DType> {
        use ReduceOp as R;
        match (self, values.kind()) {
            (_, Kind::Bool) => None,
            (R::Sum | R::Prod, Kind::Signed) => Some(DType::Int64),
            (R::Sum | R::Prod, Kind::Unsigned) => Some(DType::UInt64),
            (R::Sum, Kind::Float) if values == DType::Float64 => Some(DType::Complex128),
            (R::Sum | R::Prod, Kind::Float) => Some(DType::Float64),
            (R::Sum | R::Prod, Kind::Complex) => Some(DType::Complex128),
            (R::Min | R::Max, Kind::Complex) | (R::Argmin | R::Argmax, Kind::Complex) => None,
            (R::Min | R::Max, _) => Some(values),
            (R::Argmin | R::Argmax, _) => Some(DType::Complex128),
            (R::Var, Kind::Float) => Some(DType::Complex128),
            (R::Var, _) => None,
        }
    }

    /// Returns the dtype that [`Finish::Value`] casts from.
    fn value(self, values: DType) -> Option<DType> {
        Some(match (self, self.accumulator(values)?) {
            (ReduceOp::Sum, _) if values == DType::Float64 => DType::Float64,
            (ReduceOp::Argmin | ReduceOp::Argmax, _) => DType::Int64,
            (ReduceOp::Var, _) => DType::Float64,
            (_, accumulator) => accumulator,
        })
    }

    /// Fills accumulators for values of `dtype` with their initial value.
    pub fn start(self, values: DType, accumulators: &mut [u8]) {
        match self {
            ReduceOp::Sum if values == DType::Float64 => {
                bytemuck::cast_slice_mut(accumulators).fill([-0.0f64, 0.0])
            }
            ReduceOp::Sum => {
                copy::fill(&sum_identity(self.accumulator(values).unwrap_or(values)), accumulators)
            }
            ReduceOp::Var => accumulators.fill(0),
            ReduceOp::Prod => copy::fill(
                &Scalar::new(1i64).cast(self.accumulator(values).unwrap_or(values)),
                accumulators,
            ),
            ReduceOp::Min => copy::fill(&Scalar::from_f64(values, f64::INFINITY), accumulators),
            ReduceOp::Max if values.kind() == Kind::Unsigned => accumulators.fill(0),
            ReduceOp::Max => copy::fill(&Scalar::from_f64(values, f64::NEG_INFINITY), accumulators),
            ReduceOp::Argmin | ReduceOp::Argmax => {
                bytemuck::cast_slice_mut(accumulators).fill([0, NO_INDEX])
            }
        }
    }
}

impl Finish {
    /// Returns the result's dtype for folded values of a dtype, or `None` if undefined.
    pub fn dtype(self, op: ReduceOp, values: DType) -> Option<DType> {
        let accumulator = op.accumulator(values)?;
        Some(match self {
            Finish::Partial => accumulator,
            Finish::Value(dtype)
            | Finish::Carry(dtype)
            | Finish::Mean { dtype, .. }
            | Finish::Var { dtype, .. } => dtype,
        })
    }

    /// Returns true if the accumulators already are the results, byte for byte.
    pub fn is_identity(self, op: ReduceOp, values: DType) -> bool {
        match self {
            Finish::Partial => true,
            Finish::Value(dtype) => {
                op.value(values) == Some(dtype)
                    && op.accumulator(values) == Some(dtype)
                    && !(op == ReduceOp::Sum && is_inexact(values))
            }
            Finish::Carry(dtype) => {
                op.value(values) == Some(dtype) && op.accumulator(values) == Some(dtype)
            }
            _ => false,
        }
    }
}

/// The index in a position accumulator that holds no element yet.
const NO_INDEX: u64 = u64::MAX;

fn is_inexact(dtype: DType) -> bool {
    matches!(dtype.kind(), Kind::Float | Kind::Complex)
}

/// Returns the additive identity: -0.0 for floats, since adding 0.0 would change the sign of -0.0.
pub(crate) fn sum_identity(dtype: DType) -> Scalar {
    if is_inexact(dtype) {
        Scalar::new(Complex128::new(-0.0, -0.0)).cast(dtype)
    } else {
        Scalar::zero(dtype)
    }
}
