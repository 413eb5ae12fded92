//! Elementwise functions.
//!
//! Operands are broadcast and promoted as in the Array API standard. Casts are inserted into the
//! expression here, so that kernels never receive mixed dtypes. No function costs a stage.

use std::sync::Arc;

use freestone_engine::graph::{Node, NodeRef};
use freestone_engine::readmap::{AxisMap, ReadMap};
use freestone_kernels::dtype::{Bool, Complex64, Complex128, Kind};
use freestone_kernels::{BinaryOp, DType, Expr, Node as ExprNode, Scalar, UnaryOp};

use crate::array::{Array, Dim, computed_attributes, or_failed};
use crate::error::Error;
use crate::join::cloned;
use crate::promotion::{common, compared, is_comparison, of_bools, working};

/// An operand: an array or a number.
///
/// A number takes the dtype of the other operand if that dtype can hold the number, like a Python
/// scalar in the Array API standard. Otherwise, only the kind of the number's dtype matters.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Operand {
    /// An array.
    Array(Array),
    /// A number of kind bool, integer, float or complex.
    Number(Scalar),
}

impl From<Scalar> for Operand {
    fn from(number: Scalar) -> Operand {
        Operand::Number(number)
    }
}

impl From<Array> for Operand {
    fn from(array: Array) -> Operand {
        Operand::Array(array)
    }
}

impl From<&Array> for Operand {
    fn from(array: &Array) -> Operand {
        Operand::Array(array.clone())
    }
}

/// A bound of [`clip`]: an operand, or `None` for no bound.
#[derive(Clone, Debug, Default)]
pub struct Bound(Option<Operand>);

impl From<Option<Operand>> for Bound {
    fn from(operand: Option<Operand>) -> Bound {
        Bound(operand)
    }
}

/// Numbers become scalars of the widest dtype of their kind, like Python's numbers.
macro_rules! numbers {
    ($($from:ty => $wide:ty),* $(,)?) => { $(
        impl From<$from> for Operand {
            fn from(number: $from) -> Operand {
                Operand::Number(Scalar::new(<$wide>::from(number)))
            }
        }
    )* };
}
numbers!(
    bool => Bool,
    i8 => i64, i16 => i64, i32 => i64, i64 => i64,
    u8 => i64, u16 => i64, u32 => i64, u64 => u64,
    f32 => f64, f64 => f64,
    Complex128 => Complex128,
);

impl From<Complex64> for Operand {
    fn from(number: Complex64) -> Operand {
        Complex128::new(number.re.into(), number.im.into()).into()
    }
}

macro_rules! bounds {
    ($($from:ty),*) => { $(
        impl From<$from> for Bound {
            fn from(operand: $from) -> Bound {
                Bound(Some(operand.into()))
            }
        }
    )* };
}
bounds!(Operand, Array, &Array, Scalar, i8, i16, i32, i64, u8, u16, u32, u64, f32, f64);

/// Returns the shape to which all operands broadcast.
pub(crate) fn broadcast_shapes(left: &[u64], right: &[u64]) -> Result<Vec<u64>, Error> {
    let rank = left.len().max(right.len());
    let at = |shape: &[u64], from_end: usize| {
        if from_end <= shape.len() { shape[shape.len() - from_end] } else { 1 }
    };
    (1..=rank)
        .rev()
        .map(|axis| match (at(left, axis), at(right, axis)) {
            (a, b) if a == b || b == 1 => Ok(a),
            (1, b) => Ok(b),
            (a, b) => {
                Err(Error::Broadcast { left: left.to_vec(), right: right.to_vec(), axis, a, b })
            }
        })
        .collect()
}

/// Returns a node broadcast to a shape.
pub(crate) fn broadcast_node(node: &NodeRef, shape: &[u64]) -> NodeRef {
    let own = node.shape();
    if own == shape {
        return Arc::clone(node);
    }
    let shift = shape.len() - own.len();
    let axes = own.iter().enumerate().map(|(d, n)| {
        if *n == 1 && shape[d + shift] != 1 {
            AxisMap::Fixed(0)
        } else {
            AxisMap::Along { axis: d + shift, start: 0, step: 1 }
        }
    });
    Node::view(vec![Arc::clone(node)], ReadMap::image(shape.to_vec(), axes.collect()))
}

/// Returns the dimensions of a broadcast result. Of the operands that have an axis in its full
/// length, the first one with a name determines it.
fn broadcast_dims(operands: &[&Array], shape: &[u64]) -> Result<Vec<Dim>, Error> {
    let mut dims = vec![Dim::default(); shape.len()];
    for array in operands {
        let (own, names) = (array.shape()?, array.dims()?);
        let shift = shape.len() - own.len();
        for (d, name) in names.iter().enumerate() {
            let target = &mut dims[d + shift];
            if own[d] != shape[d + shift] || name.name.is_none() {
                continue;
            }
            if target.name.is_none() {
                *target = name.clone();
            } else if target.name != name.name
                || (target.origin.is_some()
                    && name.origin.is_some()
                    && target.origin != name.origin)
            {
                // The coordinates differ, so neither is that of the result.
                target.origin = None;
            }
        }
    }
    Ok(dims)
}

/// Applies a function to arrays after broadcasting them.
fn map(
    operands: &[&Array],
    build: impl FnOnce(&mut Expr, &[u32]) -> Result<u32, Error>,
) -> Result<Array, Error> {
    let mut shape = Vec::new();
    for array in operands {
        shape = broadcast_shapes(&shape, &array.shape()?)?;
    }
    let nodes = operands
        .iter()
        .map(|a| Ok(broadcast_node(a.node()?, &shape)))
        .collect::<Result<Vec<_>, Error>>()?;
    let mut expr = Expr::new(nodes.iter().map(|n| n.dtype).collect());
    let slots = (0..nodes.len() as u32)
        .map(|i| expr.push(ExprNode::Input(i)))
        .collect::<Result<Vec<_>, _>>()?;
    let result = build(&mut expr, &slots)?;
    expr.add_results(&[result]);
    let dims = broadcast_dims(operands, &shape)?;
    Ok(Array::from_parts(Node::map(expr, nodes), dims, computed_attributes(operands)?))
}

pub(crate) fn cast_to(expr: &mut Expr, node: u32, dtype: DType) -> Result<u32, Error> {
    Ok(if expr.dtype(node) == dtype { node } else { expr.push(ExprNode::Cast(dtype, node))? })
}

fn arrays_of(operands: &[Operand]) -> Vec<&Array> {
    operands.iter().filter_map(|o| if let Operand::Array(a) = o { Some(a) } else { None }).collect()
}

/// Applies a binary operation to two operands, like the function named after the operation.
///
/// # Errors
/// Fails if the shapes do not broadcast, or if the operation is not defined for the promoted dtype.
#[track_caller]
pub fn binary(op: BinaryOp, left: Operand, right: Operand) -> Array {
    or_failed(try_binary(op, left, right))
}

pub(crate) fn try_binary(op: BinaryOp, left: Operand, right: Operand) -> Result<Array, Error> {
    let operands = [left, right];
    if arrays_of(&operands).is_empty() {
        return Err(Error::Argument(format!(
            "{} of two numbers is not an array (hint: create an array from one of them)",
            op.name()
        )));
    }
    map(&arrays_of(&operands), |expr, slots| {
        if let [a, b] = *slots
            && is_comparison(op)
            && matches!(
                [expr.dtype(a), expr.dtype(b)].map(DType::kind),
                [Kind::Signed, Kind::Unsigned] | [Kind::Unsigned, Kind::Signed]
            )
            && expr.dtype(a).promote(expr.dtype(b)) == DType::Float64
        {
            return Ok(compared(expr, op, a, b)?);
        }
        let (nodes, dtype) = common(expr, &operands, slots)?;
        let (op, dtype) =
            if dtype == DType::Bool { of_bools(op)? } else { (op, working(op.domain(), dtype)) };
        let (a, b) = (cast_to(expr, nodes[0], dtype)?, cast_to(expr, nodes[1], dtype)?);
        Ok(expr.push(ExprNode::Binary(op, a, b))?)
    })
}

/// Applies a unary operation to an array, like the function named after the operation.
///
/// # Errors
/// Fails if the operation is not defined for the dtype.
#[track_caller]
pub fn unary(op: UnaryOp, a: &Array) -> Array {
    or_failed(try_unary(op, a))
}

pub(crate) fn try_unary(op: UnaryOp, a: &Array) -> Result<Array, Error> {
    map(&[a], |expr, slots| {
        let dtype = working(op.domain(), expr.dtype(slots[0]));
        let a = cast_to(expr, slots[0], dtype)?;
        Ok(expr.push(ExprNode::Unary(op, a))?)
    })
}

macro_rules! binary_functions {
    ($($name:ident $op:ident $doc:literal;)*) => {
        $(
            #[doc = $doc]
            ///
            /// Shapes broadcast. Dtypes are promoted as specified by the Array API standard; cases
            /// that it leaves open follow NumPy. Cost: no stage.
            ///
            /// # Errors
            /// Fails if the shapes do not broadcast, or if the function is not defined for the
            /// promoted dtype.
            #[track_caller]
            pub fn $name(x1: impl Into<Operand>, x2: impl Into<Operand>) -> Array {
                binary(BinaryOp::$op, x1.into(), x2.into())
            }
        )*

        impl Array { $(
            #[doc = $doc]
            ///
            #[doc = concat!("See [`", stringify!($name), "`](crate::", stringify!($name), "()).")]
            #[track_caller]
            pub fn $name(&self, other: impl Into<Operand>) -> Array {
                binary(BinaryOp::$op, self.into(), other.into())
            }
        )* }

        /// The binary functions: name in the standard, operation, description.
        pub const BINARY: &[(&str, BinaryOp, &str)] =
            &[$((stringify!($name), BinaryOp::$op, $doc)),*];
    };
}

binary_functions! {
    add Add "The sum; integers wrap on overflow. For two bools, the logical OR.";
    atan2 Atan2 "The angle of the point (x2, x1), in radians.";
    bitwise_and BitwiseAnd "The bitwise AND of integers, or the logical AND of bools.";
    bitwise_left_shift BitwiseLeftShift "The first operand shifted left by the second; 0 for \
        shifts of its width or more.";
    bitwise_or BitwiseOr "The bitwise OR of integers, or the logical OR of bools.";
    bitwise_right_shift BitwiseRightShift "The first operand shifted right by the second; \
        signed integers keep their sign.";
    bitwise_xor BitwiseXor "The bitwise XOR of integers, or the logical XOR of bools.";
    copysign Copysign "The magnitude of the first operand with the sign of the second.";
    divide Divide "The quotient; integers give `float64`.";
    equal Equal "True where the operands are equal.";
    floor_divide FloorDivide "The quotient rounded towards negative infinity; integer division \
        by 0 gives 0.";
    greater Greater "True where the first operand is greater than the second.";
    greater_equal GreaterEqual "True where the first operand is greater than or equal to the \
        second.";
    hypot Hypot "The square root of the sum of squares, without intermediate overflow.";
    less Less "True where the first operand is less than the second.";
    less_equal LessEqual "True where the first operand is less than or equal to the second.";
    logaddexp Logaddexp "The logarithm of the sum of exponentials, without intermediate \
        overflow.";
    logical_and LogicalAnd "True where both operands are true.";
    logical_or LogicalOr "True where at least one operand is true.";
    logical_xor LogicalXor "True where exactly one operand is true.";
    maximum Maximum "The greater operand; NaN if either is NaN.";
    minimum Minimum "The lesser operand; NaN if either is NaN.";
    multiply Multiply "The product; integers wrap on overflow. For two bools, the logical AND.";
    nextafter Nextafter "The next float after the first operand in the direction of the second.";
    not_equal NotEqual "True where the operands are not equal.";
    pow Pow "The first operand raised to the power of the second. Integers wrap on overflow; \
        negative exponents truncate.";
    remainder Remainder "The remainder of `floor_divide`, with the sign of the divisor; \
        integers modulo 0 give 0.";
    subtract Subtract "The difference; integers wrap on overflow. Not defined for two bools.";
}

macro_rules! unary_functions {
    ($($name:ident $op:ident $doc:literal;)*) => {
        $(
            #[doc = $doc]
            ///
            /// Integers are cast to `float64` unless the function is defined for integers. Cost: no
            /// stage.
            ///
            /// # Errors
            /// Fails if the function is not defined for the dtype.
            #[track_caller]
            pub fn $name(x: &Array) -> Array {
                unary(UnaryOp::$op, x)
            }
        )*

        impl Array { $(
            #[doc = $doc]
            ///
            #[doc = concat!("See [`", stringify!($name), "`](crate::", stringify!($name), "()).")]
            #[track_caller]
            pub fn $name(&self) -> Array {
                unary(UnaryOp::$op, self)
            }
        )* }

        /// The unary functions: name in the standard, operation, description.
        pub const UNARY: &[(&str, UnaryOp, &str)] = &[$((stringify!($name), UnaryOp::$op, $doc)),*];
    };
}

unary_functions! {
    abs Abs "The absolute value; real for complex numbers.";
    acos Acos "The arc cosine, in radians.";
    acosh Acosh "The inverse hyperbolic cosine.";
    asin Asin "The arc sine, in radians.";
    asinh Asinh "The inverse hyperbolic sine.";
    atan Atan "The arc tangent, in radians.";
    atanh Atanh "The inverse hyperbolic tangent.";
    bitwise_invert BitwiseInvert "The bitwise NOT of integers, or the logical NOT of bools.";
    ceil Ceil "The smallest integer greater than or equal to the element.";
    conj Conj "The complex conjugate.";
    cos Cos "The cosine of an angle in radians.";
    cosh Cosh "The hyperbolic cosine.";
    exp Exp "e raised to the power of the element.";
    expm1 Expm1 "The exponential minus 1, accurate near 0.";
    floor Floor "The largest integer less than or equal to the element.";
    imag Imag "The imaginary part; 0 for real numbers.";
    isfinite Isfinite "True where the element is neither infinite nor NaN.";
    isinf Isinf "True where the element is infinite.";
    isnan Isnan "True where the element is NaN.";
    log Log "The natural logarithm; NaN for negative real numbers.";
    log10 Log10 "The base-10 logarithm.";
    log1p Log1p "The natural logarithm of 1 plus the element, accurate near 0.";
    log2 Log2 "The base-2 logarithm.";
    logical_not LogicalNot "True where the element is false.";
    negative Negative "The negation; integers wrap on overflow.";
    positive Positive "The element, unchanged.";
    real Real "The real part.";
    reciprocal Reciprocal "The reciprocal, 1 divided by the element.";
    round Round "The nearest integer, ties to even.";
    sign Sign "The sign: -1, 0 or 1; for complex numbers, the element divided by its absolute \
        value.";
    signbit Signbit "True where the sign bit is set, as in -0.0.";
    sin Sin "The sine of an angle in radians.";
    sinh Sinh "The hyperbolic sine.";
    sqrt Sqrt "The square root; NaN for negative real numbers.";
    square Square "The square; integers wrap on overflow.";
    tan Tan "The tangent of an angle in radians.";
    tanh Tanh "The hyperbolic tangent.";
    trunc Trunc "The element rounded towards 0 to an integer.";
}

/// Limits elements to the range from `min` to `max`. `None` disables a bound.
///
/// The result is NaN where an element or a bound is NaN. Bounds are cast to the array's dtype and
/// broadcast to its shape. Cost: no stage.
///
/// # Errors
/// Fails if a bound cannot be cast to the dtype or broadcast to the shape.
#[track_caller]
pub fn clip(x: &Array, min: impl Into<Bound>, max: impl Into<Bound>) -> Array {
    or_failed(try_clip(x, min.into(), max.into()))
}

fn try_clip(x: &Array, min: Bound, max: Bound) -> Result<Array, Error> {
    let (dtype, shape) = (x.dtype()?, x.shape()?);
    if !dtype.is_real() {
        return Err(Error::Domain { op: "clip", dtype });
    }
    let mut clipped = x.clone();
    for (op, bound) in [(BinaryOp::Maximum, min), (BinaryOp::Minimum, max)] {
        if let Some(bound) = bound.0 {
            clipped = try_binary(op, clipped.into(), fitting(bound, dtype, &shape)?)?;
        }
    }
    if clipped.dtype()? != dtype {
        return Err(Error::Argument(format!(
            "a float cannot bound an array of {dtype} (hint: cast the array first)"
        )));
    }
    Ok(clipped)
}

/// Casts a bound to the dtype, if dtype and shape permit.
fn fitting(bound: Operand, dtype: DType, shape: &[u64]) -> Result<Operand, Error> {
    let Operand::Array(array) = bound else { return Ok(bound) };
    let (own, own_shape) = (array.dtype()?, array.shape()?);
    if own.promote(dtype) == dtype && broadcast_shapes(shape, &own_shape)? == shape {
        return Ok(Operand::Array(array.try_astype(dtype)?));
    }
    Err(Error::Argument(format!(
        "cannot bound an array of {dtype} {shape:?} by one of {own} {own_shape:?}"
    )))
}

/// Applies an elementwise expression with one result to arrays after broadcasting them.
///
/// Cost: no stage.
///
/// # Errors
/// Fails if the shapes do not broadcast, or if the dtypes are not those of the expression's inputs.
#[track_caller]
pub fn apply(expr: &Expr, arrays: impl IntoIterator<Item = impl AsRef<Array>>) -> Array {
    let arrays = cloned(arrays);
    or_failed(try_apply(expr, &arrays.iter().collect::<Vec<_>>()))
}

pub(crate) fn try_apply(expr: &Expr, arrays: &[&Array]) -> Result<Array, Error> {
    if arrays.is_empty() || expr.results().len() != 1 {
        return Err(Error::Argument(format!(
            "an expression of {} results cannot be applied to {} arrays",
            expr.results().len(),
            arrays.len()
        )));
    }
    map(arrays, |whole, slots| Ok(whole.append(expr, slots)?[0]))
}

/// Selects elements of `a` where `condition` is true, and of `b` elsewhere.
///
/// # Errors
/// Fails if the shapes do not broadcast, or if the condition is not bool.
#[track_caller]
pub fn where_(condition: &Array, x1: impl Into<Operand>, x2: impl Into<Operand>) -> Array {
    or_failed(try_where(condition, x1, x2))
}

pub(crate) fn try_where(
    condition: &Array,
    x1: impl Into<Operand>,
    x2: impl Into<Operand>,
) -> Result<Array, Error> {
    let operands = [x1.into(), x2.into()];
    let arrays: Vec<&Array> = std::iter::once(condition).chain(arrays_of(&operands)).collect();
    map(&arrays, |expr, slots| {
        let (nodes, _) = common(expr, &operands, &slots[1..])?;
        Ok(expr.push(ExprNode::Where(slots[0], nodes[0], nodes[1]))?)
    })
}

impl Array {
    /// Limits elements to the range from `min` to `max`. See [`clip`](crate::clip()).
    #[track_caller]
    pub fn clip(&self, min: impl Into<Bound>, max: impl Into<Bound>) -> Array {
        clip(self, min, max)
    }

    /// Selects elements of `x1` where this array is true, and of `x2` elsewhere. See
    /// [`where_`](crate::where_()).
    #[track_caller]
    pub fn where_(&self, x1: impl Into<Operand>, x2: impl Into<Operand>) -> Array {
        where_(self, x1, x2)
    }

    /// Casts the array to another dtype. Casts to integers round towards zero.
    ///
    /// Cost: no stage.
    ///
    /// # Errors
    /// Fails for a cast from a complex to a real dtype.
    #[track_caller]
    pub fn astype(&self, dtype: DType) -> Array {
        or_failed(self.try_astype(dtype))
    }

    pub(crate) fn try_astype(&self, dtype: DType) -> Result<Array, Error> {
        let from = self.dtype()?;
        if from.kind() == Kind::Complex
            && dtype.kind() != Kind::Complex
            && dtype.kind() != Kind::Bool
        {
            return Err(Error::Promotion { left: from, right: dtype });
        }
        if from == dtype {
            return Ok(self.clone());
        }
        map(&[self], |expr, slots| cast_to(expr, slots[0], dtype))
    }
}
