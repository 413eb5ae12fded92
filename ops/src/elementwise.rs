//! Elementwise functions and the operators.
//!
//! Operands broadcast and are promoted as the Array API standard says; casts are put into the
//! expression here, so that the kernels never meet mixed dtypes. None of these costs a stage.

use std::sync::Arc;

use freestone_engine::graph::{Node, NodeRef};
use freestone_engine::readmap::{AxisMap, ReadMap};
use freestone_kernels::dtype::{Complex128, Kind};
use freestone_kernels::expr::ExprError;
use freestone_kernels::{BinaryOp, DType, Domain, Expr, Node as ExprNode, Scalar, UnaryOp};

use crate::array::{Array, Dim, computed_attributes, or_failed};
use crate::error::Error;

/// An operand: an array, or a number that takes the array's dtype where it can, as Python's numbers
/// do.
#[derive(Clone, Debug)]
pub enum Operand {
    /// An array.
    Array(Array),
    /// A bool, `int64`, `float64` or `complex128`: what Python's four kinds of numbers are.
    Number(Scalar),
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

macro_rules! numbers {
    ($($from:ty),*) => { $(
        impl From<$from> for Operand {
            fn from(number: $from) -> Operand {
                Operand::Number(number.into())
            }
        }
    )* };
}
numbers!(bool, i32, i64, f64, Complex128);

/// The shape that all broadcast to.
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

/// The node seen in a shape that its own broadcasts to.
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

/// Names of the axes of a broadcast result: the first operand that names an axis and has its full
/// length decides.
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
                // Names or coordinates that disagree: neither can be right for the result.
                target.origin = None;
            }
        }
    }
    Ok(dims)
}

/// Applies a function to arrays that broadcast.
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

fn cast_to(expr: &mut Expr, node: u32, dtype: DType) -> Result<u32, Error> {
    Ok(if expr.dtype(node) == dtype { node } else { expr.push(ExprNode::Cast(dtype, node))? })
}

/// The value of a number that is whole.
pub(crate) fn whole(number: Scalar) -> Option<i128> {
    match number.get::<u64>() {
        Some(large) => Some(large.into()),
        None if number.dtype().kind() == Kind::Signed
            || number.dtype().kind() == Kind::Unsigned =>
        {
            number.cast(DType::Int64).get::<i64>().map(i128::from)
        }
        None => number
            .cast(DType::Float64)
            .get::<f64>()
            .filter(|x| x.fract() == 0.0 && x.abs() < 1e30)
            .map(|x| x as i128),
    }
}

/// A number in another dtype, if that holds it: integers are exact, and only complex numbers have
/// an imaginary part.
pub(crate) fn held(number: Scalar, dtype: DType) -> Result<Scalar, Error> {
    let cast = number.cast(dtype);
    let imaginary =
        number.get::<Complex128>().is_some_and(|c| c.im != 0.0) && dtype.kind() != Kind::Complex;
    if imaginary
        || (dtype.is_integer() && (whole(number).is_none() || whole(number) != whole(cast)))
    {
        return Err(Error::Argument(format!(
            "{number} is out of range for {dtype}: choose a dtype that holds it, or cast the array \
                first"
        )));
    }
    Ok(cast)
}

/// A number as a literal of the dtype that it takes beside an array of `dtype`.
///
/// Source: the Array API standard, "mixing arrays with Python scalars". Where it leaves a pair
/// open, as NumPy: a number of another kind than bools or integers has its own dtype.
fn weak(dtype: DType, number: Scalar) -> Result<Scalar, Error> {
    let to = match (number.dtype().kind(), dtype.kind()) {
        (Kind::Signed, Kind::Bool) => DType::Int64,
        (Kind::Unsigned, Kind::Bool) => DType::UInt64,
        (Kind::Float, Kind::Bool | Kind::Signed | Kind::Unsigned) => DType::Float64,
        (Kind::Complex, Kind::Float) if dtype == DType::Float32 => DType::Complex64,
        (Kind::Complex, Kind::Bool | Kind::Signed | Kind::Unsigned | Kind::Float) => {
            DType::Complex128
        }
        _ => dtype,
    };
    held(number, to)
}

/// The dtype in which a function of a domain works on `dtype`: floats for integers where it needs
/// them.
fn working(domain: Domain, dtype: DType) -> DType {
    if dtype.is_integer() && matches!(domain, Domain::Inexact | Domain::Float) {
        DType::Float64
    } else {
        dtype
    }
}

/// What stands for a function of two bools, and the dtype that it works on: as NumPy, the sum is
/// `or`, the product is `and`, and of the others the operands are numbers.
fn of_bools(op: BinaryOp) -> Result<(BinaryOp, DType), Error> {
    use BinaryOp as B;
    Ok(match op {
        B::Add | B::Maximum => (B::LogicalOr, DType::Bool),
        B::Multiply | B::Minimum => (B::LogicalAnd, DType::Bool),
        B::Subtract => {
            return Err(Error::Argument(
                "cannot subtract bools (hint: use `logical_xor`, or cast one of them)".into(),
            ));
        }
        B::Less | B::LessEqual | B::Greater | B::GreaterEqual => (op, DType::UInt8),
        _ if matches!(op.domain(), Domain::Float | Domain::Inexact) => (op, DType::Float64),
        _ if op.domain().contains(DType::Bool) => (op, DType::Bool),
        _ => (op, DType::Int8),
    })
}

/// Compares a signed integer with a `uint64`, exactly: `float64`, which both are promoted to, has
/// too few digits.
fn compared(expr: &mut Expr, op: BinaryOp, a: u32, b: u32) -> Result<u32, ExprError> {
    use BinaryOp as B;
    let (signed, turned) = if expr.dtype(b) == DType::UInt64 { (a, false) } else { (b, true) };
    let zero = expr.push(ExprNode::Literal(Scalar::zero(expr.dtype(signed))))?;
    let negative = expr.push(ExprNode::Binary(B::Less, signed, zero))?;
    let unsigned = expr.push(ExprNode::Cast(DType::UInt64, signed))?;
    let (a, b) = if turned { (a, unsigned) } else { (unsigned, b) };
    let same_sign = expr.push(ExprNode::Binary(op, a, b))?;
    let holds_below_zero = match op {
        B::NotEqual => true,
        B::Less | B::LessEqual => !turned,
        B::Greater | B::GreaterEqual => turned,
        _ => false,
    };
    if holds_below_zero {
        return expr.push(ExprNode::Binary(B::LogicalOr, same_sign, negative));
    }
    let positive = expr.push(ExprNode::Unary(UnaryOp::LogicalNot, negative))?;
    expr.push(ExprNode::Binary(B::LogicalAnd, same_sign, positive))
}

fn is_comparison(op: BinaryOp) -> bool {
    use BinaryOp as B;
    matches!(op, B::Equal | B::NotEqual | B::Less | B::LessEqual | B::Greater | B::GreaterEqual)
}

/// Operands in one expression with one dtype.
fn common(
    expr: &mut Expr,
    operands: &[Operand],
    slots: &[u32],
) -> Result<(Vec<u32>, DType), Error> {
    let dtype = slots.iter().map(|slot| expr.dtype(*slot)).reduce(DType::promote);
    // Numbers alone have their own dtypes.
    let numbers = || {
        operands
            .iter()
            .filter_map(|o| if let Operand::Number(n) = o { Some(n.dtype()) } else { None })
            .max()
    };
    let arrays =
        dtype.or_else(numbers).ok_or_else(|| Error::Argument("there is no operand".into()))?;
    let mut dtype = arrays;
    let mut literals = Vec::new();
    for operand in operands {
        if let Operand::Number(number) = operand {
            let literal = weak(arrays, *number)?;
            dtype = dtype.promote(literal.dtype());
            literals.push(literal);
        }
    }
    let (mut arrays, mut literals) = (slots.iter(), literals.into_iter());
    let nodes = operands.iter().filter_map(|operand| match operand {
        Operand::Array(_) => arrays.next().copied().map(Ok),
        Operand::Number(_) => literals.next().map(|l| expr.push(ExprNode::Literal(l.cast(dtype)))),
    });
    let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
    let nodes =
        nodes.into_iter().map(|n| cast_to(expr, n, dtype)).collect::<Result<Vec<_>, _>>()?;
    Ok((nodes, dtype))
}

fn arrays_of(operands: &[Operand]) -> Vec<&Array> {
    operands.iter().filter_map(|o| if let Operand::Array(a) = o { Some(a) } else { None }).collect()
}

/// A function of two operands by its number, as the named functions below.
///
/// # Errors
/// Where shapes do not broadcast, or it is not defined for the dtype that both are promoted to.
#[track_caller]
pub fn binary(op: BinaryOp, left: Operand, right: Operand) -> Array {
    or_failed(try_binary(op, left, right))
}

pub(crate) fn try_binary(op: BinaryOp, left: Operand, right: Operand) -> Result<Array, Error> {
    let operands = [left, right];
    if arrays_of(&operands).is_empty() {
        return Err(Error::Argument(format!(
            "{} of two numbers is no array: make one of them an array",
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

/// A function of one array by its number, as the named functions below.
///
/// # Errors
/// Where it is not defined for the dtype.
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
            /// Shapes broadcast, dtypes are promoted as the Array API standard says, and where it
            /// is silent as NumPy does. Cost: no stage.
            ///
            /// # Errors
            /// Where shapes do not broadcast, or it is not defined for the dtype that both are
            /// promoted to.
            #[track_caller]
            pub fn $name(x1: impl Into<Operand>, x2: impl Into<Operand>) -> Array {
                binary(BinaryOp::$op, x1.into(), x2.into())
            }
        )*

        /// The functions of two operands: name in the standard, number, what it gives.
        pub const BINARY: &[(&str, BinaryOp, &str)] = &[$((stringify!($name), BinaryOp::$op, $doc)),*];
    };
}

binary_functions! {
    add Add "The sum; integers wrap. Of two bools whether one is true.";
    atan2 Atan2 "The angle of the point (x2, x1), in radians.";
    bitwise_and BitwiseAnd "Bits that both integers, or bools, have.";
    bitwise_left_shift BitwiseLeftShift "The bits of an integer moved up by another; beyond its \
        width nothing is left.";
    bitwise_or BitwiseOr "Bits that one of two integers, or bools, has.";
    bitwise_right_shift BitwiseRightShift "The bits of an integer moved down by another, keeping \
        its sign.";
    bitwise_xor BitwiseXor "Bits that just one of two integers, or bools, has.";
    copysign Copysign "The magnitude of the first with the sign of the second.";
    divide Divide "The true quotient; integers give `float64`.";
    equal Equal "True where equal.";
    floor_divide FloorDivide "The quotient rounded to -infinity; integers by 0 give 0.";
    greater Greater "True where the first is greater.";
    greater_equal GreaterEqual "True where the first is not less.";
    hypot Hypot "The square root of the sum of squares, without overflow between.";
    less Less "True where the first is less.";
    less_equal LessEqual "True where the first is not greater.";
    logaddexp Logaddexp "The logarithm of the sum of exponentials, without overflow between.";
    logical_and LogicalAnd "True where both bools are.";
    logical_or LogicalOr "True where one of two bools is.";
    logical_xor LogicalXor "True where just one of two bools is.";
    maximum Maximum "The greater of two real numbers; NaN if one is NaN.";
    minimum Minimum "The lesser of two real numbers; NaN if one is NaN.";
    multiply Multiply "The product; integers wrap. Of two bools whether both are true.";
    nextafter Nextafter "The next float after the first towards the second.";
    not_equal NotEqual "True where not equal.";
    pow Pow "The first to the power of the second; integers wrap, and negative exponents truncate.";
    remainder Remainder "What `floor_divide` leaves, with the sign of the divisor; integers by 0 \
        give 0.";
    subtract Subtract "The difference; integers wrap. Not defined for two bools.";
}

macro_rules! unary_functions {
    ($($name:ident $op:ident $doc:literal;)*) => {
        $(
            #[doc = $doc]
            ///
            /// Cost: no stage.
            ///
            /// # Errors
            /// Where it is not defined for the dtype.
            #[track_caller]
            pub fn $name(x: &Array) -> Array {
                unary(UnaryOp::$op, x)
            }
        )*

        /// The functions of one array: name in the standard, number, what it gives.
        pub const UNARY: &[(&str, UnaryOp, &str)] = &[$((stringify!($name), UnaryOp::$op, $doc)),*];
    };
}

unary_functions! {
    abs Abs "The magnitude; real for complex numbers.";
    acos Acos "The arc cosine, in radians; integers give `float64`, here as below.";
    acosh Acosh "The inverse hyperbolic cosine.";
    asin Asin "The arc sine, in radians.";
    asinh Asinh "The inverse hyperbolic sine.";
    atan Atan "The arc tangent, in radians.";
    atanh Atanh "The inverse hyperbolic tangent.";
    bitwise_invert BitwiseInvert "The bits of an integer, or a bool, turned round.";
    ceil Ceil "The least integer that is not less.";
    conj Conj "The complex conjugate.";
    cos Cos "The cosine of radians.";
    cosh Cosh "The hyperbolic cosine.";
    exp Exp "e to the power of it.";
    expm1 Expm1 "e to the power of it, less 1, precise near 0.";
    floor Floor "The greatest integer that is not greater.";
    imag Imag "The imaginary part; 0 for real numbers.";
    isfinite Isfinite "True where neither infinite nor NaN.";
    isinf Isinf "True where infinite.";
    isnan Isnan "True where NaN.";
    log Log "The natural logarithm; NaN below 0.";
    log10 Log10 "The logarithm to base 10.";
    log1p Log1p "The natural logarithm of 1 more, precise near 0.";
    log2 Log2 "The logarithm to base 2.";
    logical_not LogicalNot "True where a bool is false.";
    negative Negative "The negative; integers wrap.";
    positive Positive "The number itself.";
    real Real "The real part.";
    reciprocal Reciprocal "1 divided by it.";
    round Round "The nearest integer, ties to even.";
    sign Sign "-1, 0 or 1; of complex numbers the direction.";
    signbit Signbit "True where a float's sign bit is set, as in -0.0.";
    sin Sin "The sine of radians.";
    sinh Sinh "The hyperbolic sine.";
    sqrt Sqrt "The square root; NaN below 0.";
    square Square "It times itself; integers wrap.";
    tan Tan "The tangent of radians.";
    tanh Tanh "The hyperbolic tangent.";
    trunc Trunc "The integer next to it towards 0.";
}

/// The elements, but not below `min` and not above `max`; NaN where one is NaN.
///
/// Bounds take the array's dtype, and broadcast to it. Cost: no stage.
///
/// # Errors
/// Where a bound does not fit the dtype or the shape.
#[track_caller]
pub fn clip(x: &Array, min: Option<Operand>, max: Option<Operand>) -> Array {
    or_failed(try_clip(x, min, max))
}

pub(crate) fn try_clip(
    x: &Array,
    min: Option<Operand>,
    max: Option<Operand>,
) -> Result<Array, Error> {
    let (dtype, shape) = (x.dtype()?, x.shape()?);
    if !dtype.is_real() {
        return Err(Error::Domain { op: "clip", dtype });
    }
    let bound = |bound: Option<Operand>| match bound {
        Some(Operand::Array(a))
            if a.dtype()?.promote(dtype) == dtype
                && broadcast_shapes(&shape, &a.shape()?)? == shape =>
        {
            Ok(Some(Operand::Array(a.try_astype(dtype)?)))
        }
        Some(Operand::Array(a)) => Err(Error::Argument(format!(
            "a bound of {} {:?} does not fit an array of {dtype} {shape:?}",
            a.dtype()?,
            a.shape()?
        ))),
        other => Ok(other),
    };
    let mut clipped = x.clone();
    if let Some(min) = bound(min)? {
        clipped = try_binary(BinaryOp::Maximum, clipped.into(), min)?;
    }
    if let Some(max) = bound(max)? {
        clipped = try_binary(BinaryOp::Minimum, clipped.into(), max)?;
    }
    if clipped.dtype()? != dtype {
        return Err(Error::Argument(format!(
            "a float does not bound an array of {dtype}: cast the array first"
        )));
    }
    Ok(clipped)
}

/// Applies an elementwise expression of one result to arrays that broadcast.
///
/// Cost: no stage.
///
/// # Errors
/// Where shapes do not broadcast, or the expression's inputs are of other dtypes.
#[track_caller]
pub fn apply(expr: &Expr, arrays: &[&Array]) -> Array {
    or_failed(try_apply(expr, arrays))
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

/// Elements of `a` where `condition` is true, of `b` elsewhere.
///
/// # Errors
/// Where shapes do not broadcast, or the condition is not bool.
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
    /// The array in another dtype; to integers towards zero.
    ///
    /// Cost: no stage.
    ///
    /// # Errors
    /// Where a complex array would become real.
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

macro_rules! operators {
    (@one $trait:ident $method:ident $op:ident, $left:ty, $right:ty) => {
        impl std::ops::$trait<$right> for $left {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: $right) -> Array {
                binary(BinaryOp::$op, self.into(), other.into())
            }
        }
    };
    ($($trait:ident $method:ident $op:ident;)*) => { $(
        operators!(@one $trait $method $op, &Array, &Array);
        operators!(@one $trait $method $op, Array, Array);
        operators!(@one $trait $method $op, Array, &Array);
        operators!(@one $trait $method $op, &Array, Array);
        operators!(@one $trait $method $op, &Array, f64);
        operators!(@one $trait $method $op, Array, f64);
        operators!(@one $trait $method $op, f64, &Array);
        operators!(@one $trait $method $op, f64, Array);
        operators!(@one $trait $method $op, &Array, i32);
        operators!(@one $trait $method $op, Array, i32);
        operators!(@one $trait $method $op, i32, &Array);
        operators!(@one $trait $method $op, i32, Array);
    )* };
}

operators! {
    Add add Add;
    Sub sub Subtract;
    Mul mul Multiply;
    Div div Divide;
    Rem rem Remainder;
    BitAnd bitand BitwiseAnd;
    BitOr bitor BitwiseOr;
    BitXor bitxor BitwiseXor;
    Shl shl BitwiseLeftShift;
    Shr shr BitwiseRightShift;
}

macro_rules! prefixes {
    ($($trait:ident $method:ident $op:ident $type:ty;)*) => { $(
        impl std::ops::$trait for $type {
            type Output = Array;
            #[track_caller]
            fn $method(self) -> Array {
                unary(UnaryOp::$op, &self)
            }
        }
    )* };
}

prefixes! {
    Neg neg Negative Array;
    Neg neg Negative &Array;
    Not not BitwiseInvert Array;
    Not not BitwiseInvert &Array;
}
