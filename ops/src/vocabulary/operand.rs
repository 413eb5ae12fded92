//! The elementwise functions as lists: what [`functions`](super::functions) takes from `elementwise`.

// To be swapped for `elementwise::{Operand, UNARY, BINARY}` when they are there: this file then goes.

use std::sync::Arc;

use freestone_engine::graph::{Node, Op};
use freestone_engine::grid::ChunkGrid;
use freestone_kernels::dtype::Kind;
use freestone_kernels::{DType, Generate, Scalar};

use crate::array::Array;
use crate::elementwise as e;
use crate::error::Error;

/// An operand: an array, or a number that takes the array's dtype as Python's numbers do.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Operand {
    Array(Array),
    Number(Scalar),
}

/// A function of one array.
pub(super) type Unary = fn(&Array) -> Result<Array, Error>;
/// A function of two arrays, or of an array and a number.
pub(super) type Binary = fn(Operand, Operand) -> Result<Array, Error>;

/// Functions of one array: name, function, summary.
pub(super) static UNARY: &[(&str, Unary, &str)] = &[
    ("abs", e::abs, "The magnitude; real for complex numbers."),
    ("bitwise_invert", e::logical_not, "All bits inverted; True where a bool is False."),
    ("logical_not", e::logical_not, "True where a bool is False."),
    ("negative", e::negative, "The negative; integers wrap."),
    ("round", e::round, "The nearest integer, ties to even."),
    ("sqrt", e::sqrt, "The square root of a float; NaN below 0."),
];

/// Functions of two arrays, or of an array and a number: name, function, summary.
pub(super) static BINARY: &[(&str, Binary, &str)] = &[
    ("add", |a, b| both(e::add, a, b), "The sum; integers wrap."),
    ("bitwise_and", |a, b| both(e::logical_and, a, b), "The bits that both have; True where both bools are."),
    ("bitwise_or", |a, b| both(e::logical_or, a, b), "The bits that one of two has; True where one of two bools is."),
    ("divide", |a, b| both(e::divide, a, b), "The true quotient; integers give `float64`."),
    ("equal", |a, b| both(e::equal, a, b), "True where equal."),
    ("greater", |a, b| both(e::greater, a, b), "True where the first is greater."),
    ("greater_equal", |a, b| both(e::greater_equal, a, b), "True where the first is not less."),
    ("less", |a, b| both(e::less, a, b), "True where the first is less."),
    ("less_equal", |a, b| both(e::less_equal, a, b), "True where the first is not greater."),
    ("logical_and", |a, b| both(e::logical_and, a, b), "True where both bools are."),
    ("logical_or", |a, b| both(e::logical_or, a, b), "True where one of two bools is."),
    ("maximum", |a, b| both(e::maximum, a, b), "The greater of two real numbers; NaN if one is NaN."),
    ("minimum", |a, b| both(e::minimum, a, b), "The lesser of two real numbers; NaN if one is NaN."),
    ("multiply", |a, b| both(e::multiply, a, b), "The product; integers wrap."),
    ("not_equal", |a, b| both(e::not_equal, a, b), "True where not equal."),
    ("subtract", |a, b| both(e::subtract, a, b), "The difference; integers wrap."),
];

fn both(function: fn(&Array, &Array) -> Result<Array, Error>, a: Operand, b: Operand) -> Result<Array, Error> {
    let (a, b) = as_arrays(a, b)?;
    function(&a, &b)
}

/// Both as arrays; a number has no axes and the dtype that it takes beside the other.
pub(super) fn as_arrays(a: Operand, b: Operand) -> Result<(Array, Array), Error> {
    Ok(match (a, b) {
        (Operand::Array(a), Operand::Array(b)) => (a, b),
        (Operand::Array(a), Operand::Number(n)) => {
            let n = beside(n, a.dtype()?)?;
            (a, n)
        }
        (Operand::Number(n), Operand::Array(b)) => (beside(n, b.dtype()?)?, b),
        (Operand::Number(a), Operand::Number(b)) => (full(a)?, full(b)?),
    })
}

fn beside(number: Scalar, dtype: DType) -> Result<Array, Error> {
    let (n, d) = (number.dtype().kind(), dtype.kind());
    let integers = matches!(n, Kind::Signed | Kind::Unsigned) && matches!(d, Kind::Signed | Kind::Unsigned);
    let to = match (n, d) {
        (Kind::Bool, Kind::Bool) => DType::Bool,
        (Kind::Bool, _) => return Err(Error::Argument(format!("a {dtype} array and a bool: cast the array first"))),
        (_, Kind::Bool) => return Err(Error::Argument("a bool array and a number: cast the array first".into())),
        _ if integers || matches!(d, Kind::Complex) => dtype,
        (Kind::Complex, _) => {
            if dtype == DType::Float32 {
                DType::Complex64
            } else {
                DType::Complex128
            }
        }
        (_, Kind::Float) => dtype,
        _ => number.dtype(),
    };
    let cast = number.cast(to);
    if integers && cast.to_string() != number.to_string() {
        return Err(Error::Argument(format!("{number} is out of range for {dtype}")));
    }
    full(cast)
}

/// An array of no axes.
pub(super) fn full(number: Scalar) -> Result<Array, Error> {
    Ok(Array::unnamed(Arc::new(Node { op: Op::Generate(Generate::Full(number)), dtype: number.dtype(), grid: ChunkGrid::regular(&[], &[])? })))
}
