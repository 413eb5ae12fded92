//! Reductions.

use std::sync::Arc;

use freestone_engine::graph::{Node, NodeRef, Op};
use freestone_engine::grid::{AxisGrid, ChunkGrid};
use freestone_engine::stages::ReduceNode;
use freestone_kernels::dtype::{Complex128, Kind};
use freestone_kernels::reduce::Finish;
use freestone_kernels::{BinaryOp, DType, Generate, ReduceOp, Scalar};

use crate::array::{Array, Dim, computed_attributes, or_failed};
use crate::axes::Axes;
use crate::elementwise::try_binary;
use crate::error::Error;

/// The options of a reduction: its axes, as a number, a name, a list (empty for no axis) or `()`
/// for all axes. [`Reduce`]'s methods set more: `Reduce::axes([0, 1]).keepdims().correction(1.0)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reduce {
    axes: Axes,
    keepdims: bool,
    dtype: Option<DType>,
    correction: Option<f64>,
}

impl Reduce {
    /// Reduces all axes.
    pub fn all() -> Reduce {
        Reduce::default()
    }

    /// Reduces these axes.
    pub fn axes(axes: impl Into<Axes>) -> Reduce {
        Reduce { axes: axes.into(), ..Reduce::default() }
    }

    /// Keeps the reduced axes, with length 1.
    #[must_use]
    pub fn keepdims(self) -> Reduce {
        Reduce { keepdims: true, ..self }
    }

    /// Sets the result's dtype, for `sum` and `prod`. Values are cast to it first.
    #[must_use]
    pub fn dtype(self, dtype: DType) -> Reduce {
        Reduce { dtype: Some(dtype), ..self }
    }

    /// Sets the correction of `var` and `std`, which is subtracted from the number of elements: 1
    /// makes the estimate from a sample unbiased.
    #[must_use]
    pub fn correction(self, correction: f64) -> Reduce {
        Reduce { correction: Some(correction), ..self }
    }
}

impl<T: Into<Axes>> From<T> for Reduce {
    fn from(axes: T) -> Self {
        Reduce::axes(axes)
    }
}

macro_rules! reductions {
    ($($name:ident $doc:literal;)*) => { impl Array { $(
        #[doc = $doc]
        ///
        /// Shape: the reduced axes are dropped, or kept with length 1 ([`Reduce::keepdims`]). `()`
        /// reduces all axes. Cost: one stage if one task can stream the reduced axes, else two.
        /// Memory: one chunk of each input and the accumulators.
        ///
        /// # Errors
        /// Fails if an axis is out of range or named twice. Also fails if the function is not
        /// defined for the dtype or does not support an option.
        #[track_caller]
        pub fn $name(&self, options: impl Into<Reduce>) -> Array {
            or_failed(self.reduction(stringify!($name), &options.into()))
        }
    )* } };
}

reductions! {
    all "True if all elements are not 0; NaN counts as true. True for no elements.";
    any "True if at least one element is not 0. False for no elements.";
    argmax "The index of the first maximum, or of the first NaN, as `int64`: along one axis, or in \
        C order over all axes.";
    argmin "The index of the first minimum, or of the first NaN, as `int64`: along one axis, or in \
        C order over all axes.";
    count_nonzero "The number of elements that are not 0, as `int64`.";
    max "The maximum; NaN if an element is NaN.";
    mean "The mean; NaN if an element is NaN. Floats keep their dtype and are accumulated as in \
        `sum`; integers give `float64`.";
    min "The minimum; NaN if an element is NaN.";
    prod "The product. Floats are multiplied in `float64` and keep their dtype; integers give \
        `int64` or `uint64` and wrap.";
    std "The standard deviation: the square root of `var`.";
    sum "The sum. `float32` is accumulated in `float64`, `float64` in twice its precision, and \
        both keep their dtype; integers give `int64` or `uint64` and wrap.";
    var "The variance, by Welford's algorithm with the merge of Chan, Golub & LeVeque (1979), \
        which is accurate for a large mean. NaN if the correction is at least the number of \
        elements.";
}

/// Returns the dtype of sums and products of values of a dtype: `asked`, if given. By default,
/// integers and bools have 64 bits, and other dtypes are kept.
///
/// # Errors
/// Fails if the requested dtype cannot hold the values.
pub(crate) fn summed(from: DType, asked: Option<DType>) -> Result<DType, Error> {
    let natural = match from.kind() {
        Kind::Bool | Kind::Signed => DType::Int64,
        Kind::Unsigned => DType::UInt64,
        _ => from,
    };
    let dtype = asked.unwrap_or(natural);
    if dtype == DType::Bool || (from.kind() == Kind::Complex && dtype.kind() != Kind::Complex) {
        return Err(Error::Promotion { left: from, right: dtype });
    }
    Ok(dtype)
}

/// The parts of a reduction: its input, the fold and the conversion of accumulators.
struct Parts {
    input: Array,
    fold: ReduceOp,
    finish: Finish,
    /// The result of reducing no elements.
    empty: Option<Scalar>,
}

impl Array {
    pub(crate) fn reduction(&self, name: &'static str, options: &Reduce) -> Result<Array, Error> {
        let shape = self.shape()?;
        let axes = options.axes.resolve(self.dims()?)?;
        if name.starts_with("arg") && options.axes.len().is_some_and(|n| n != 1) {
            return Err(Error::Argument(format!("{name} requires one axis or all axes")));
        }
        if options.dtype.is_some() && !matches!(name, "sum" | "prod") {
            return Err(Error::Argument(format!(
                "{name} has no option `dtype` (hint: cast its result)"
            )));
        }
        if options.correction.is_some() && !matches!(name, "var" | "std") {
            return Err(Error::Argument(format!(
                "{name} has no option `correction`: only var and std do"
            )));
        }
        let count = axes.iter().map(|a| shape[*a]).product();
        let parts = self.parts(name, options, count)?;
        let dtype = parts
            .finish
            .dtype(parts.fold, parts.input.dtype()?)
            .ok_or(Error::Domain { op: name, dtype: self.dtype()? })?;
        let empty = axes.iter().find(|a| shape[**a] == 0);
        let op = |input: &NodeRef| match (empty, parts.empty) {
            (None, _) => Ok(Op::Staged(
                ReduceNode {
                    input: Arc::clone(input),
                    fold: parts.fold,
                    finish: parts.finish,
                    axes: axes.clone(),
                    keepdims: options.keepdims,
                }
                .into(),
            )),
            (Some(_), Some(value)) => Ok(Op::Generate(Generate::Full(value.cast(dtype)))),
            (Some(axis), None) => Err(Error::Empty { op: name, axis: *axis }),
        };
        let inner = parts.input.get()?;
        let kept = |d: &usize| !axes.contains(d);
        let axis = |d: usize| {
            if kept(&d) { inner.node.grid.axes()[d].clone() } else { AxisGrid::regular(1, 1) }
        };
        let out: Vec<usize> = (0..shape.len()).filter(|d| options.keepdims || kept(d)).collect();
        let grid = ChunkGrid::new(out.iter().map(|d| axis(*d)).collect());
        let dims = out
            .iter()
            .map(|d| {
                if kept(d) {
                    inner.dims[*d].clone()
                } else {
                    Dim { name: inner.dims[*d].name.clone(), origin: None }
                }
            })
            .collect();
        let attributes = computed_attributes(&[&parts.input])?;
        Ok(Array::from_parts(
            Arc::new(Node { op: op(&inner.node)?, dtype, grid }),
            dims,
            attributes,
        ))
    }

    fn parts(&self, name: &'static str, options: &Reduce, count: u64) -> Result<Parts, Error> {
        let from = self.dtype()?;
        let parts = |input: Array, fold, finish, empty: Option<Scalar>| {
            Ok(Parts { input, fold, finish, empty })
        };
        match name {
            "sum" | "prod" => {
                let dtype = summed(from, options.dtype)?;
                let fold = if name == "sum" { ReduceOp::Sum } else { ReduceOp::Prod };
                let empty = Scalar::new(u8::from(name == "prod"));
                parts(self.summand(from, dtype)?, fold, Finish::Value(dtype), Some(empty))
            }
            "mean" => {
                let (input, dtype) = self.as_inexact(from)?;
                let empty = Scalar::new(Complex128::new(f64::NAN, f64::NAN));
                parts(input, ReduceOp::Sum, Finish::Mean { count, dtype }, Some(empty))
            }
            "var" | "std" => {
                let (input, dtype) = self.as_inexact(from)?;
                let correction = Scalar::new(options.correction.unwrap_or(0.0));
                let finish = Finish::Var { count, correction, root: name == "std", dtype };
                parts(input, ReduceOp::Var, finish, Some(Scalar::new(f64::NAN)))
            }
            "any" => {
                let empty = Scalar::new(0u8);
                parts(self.truth(from)?, ReduceOp::Max, Finish::Value(DType::Bool), Some(empty))
            }
            "all" => {
                let empty = Scalar::new(1u8);
                parts(self.truth(from)?, ReduceOp::Min, Finish::Value(DType::Bool), Some(empty))
            }
            "count_nonzero" => {
                let empty = Scalar::new(0u8);
                parts(self.truth(from)?, ReduceOp::Sum, Finish::Value(DType::Int64), Some(empty))
            }
            _ => {
                let (fold, dtype) = match name {
                    "min" => (ReduceOp::Min, from),
                    "max" => (ReduceOp::Max, from),
                    "argmin" => (ReduceOp::Argmin, DType::Int64),
                    _ => (ReduceOp::Argmax, DType::Int64),
                };
                let is_bool = from == DType::Bool;
                let input = if is_bool { self.truth(from)? } else { self.clone() };
                parts(input, fold, Finish::Value(dtype), None)
            }
        }
    }

    /// Returns as bytes whether elements are not 0.
    fn truth(&self, from: DType) -> Result<Array, Error> {
        if from == DType::Bool {
            return self.try_astype(DType::UInt8);
        }
        try_binary(BinaryOp::NotEqual, self.into(), 0.into())?.try_astype(DType::UInt8)
    }

    /// Casts the array to a float or complex dtype, and returns it with that dtype.
    fn as_inexact(&self, from: DType) -> Result<(Array, DType), Error> {
        if from.is_integer() || from == DType::Bool {
            return Ok((self.try_astype(DType::Float64)?, DType::Float64));
        }
        Ok((self.clone(), from))
    }

    /// Casts the array to the input dtype of the accumulators of a sum or product in `dtype`.
    /// Values that the accumulators hold exactly are not cast.
    fn summand(&self, from: DType, dtype: DType) -> Result<Array, Error> {
        match (from.kind(), dtype.kind()) {
            _ if from == dtype => Ok(self.clone()),
            (Kind::Bool, Kind::Signed | Kind::Unsigned) => self.try_astype(DType::UInt8),
            (Kind::Signed, Kind::Signed) | (Kind::Unsigned, Kind::Unsigned) => Ok(self.clone()),
            (_, Kind::Float) => self.try_astype(DType::Float64),
            _ => self.try_astype(dtype),
        }
    }
}
