//! Elementwise functions and the operators.
//!
//! Operands broadcast and are promoted as the Array API standard says; casts are put into the expression here, so that the
//! kernels never meet mixed dtypes. None of these costs a stage.

use std::panic::Location;
use std::sync::Arc;

use freestone_engine::graph::{Node, NodeRef};
use freestone_engine::readmap::{AxisMap, ReadMap};
use freestone_kernels::dtype::Kind;
use freestone_kernels::{BinaryOp, DType, Expr, Node as ExprNode, Scalar, UnaryOp};

use crate::array::{Array, Dim, kept_attributes};
use crate::error::Error;

/// An operand: an array, or a number that takes the array's dtype as Python's numbers do.
pub(crate) enum Operand<'a> {
    Array(&'a Array),
    Number(f64),
}

/// The shape that all broadcast to.
pub(crate) fn broadcast_shapes(left: &[u64], right: &[u64]) -> Result<Vec<u64>, Error> {
    let rank = left.len().max(right.len());
    let at = |shape: &[u64], from_end: usize| if from_end <= shape.len() { shape[shape.len() - from_end] } else { 1 };
    (1..=rank)
        .rev()
        .map(|axis| match (at(left, axis), at(right, axis)) {
            (a, b) if a == b || b == 1 => Ok(a),
            (1, b) => Ok(b),
            (a, b) => Err(Error::Broadcast { left: left.to_vec(), right: right.to_vec(), axis, a, b }),
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
    let axes = own
        .iter()
        .enumerate()
        .map(|(d, n)| if *n == 1 && shape[d + shift] != 1 { AxisMap::Fixed(0) } else { AxisMap::Along { axis: d + shift, start: 0, step: 1 } });
    Node::view(vec![Arc::clone(node)], ReadMap::affine(shape.to_vec(), axes.collect()))
}

/// Names of the axes of a broadcast result: the first operand that names an axis and has its full length decides.
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
            } else if target.name != name.name || (target.origin.is_some() && name.origin.is_some() && target.origin != name.origin) {
                // Names or coordinates that disagree: neither can be right for the result.
                target.origin = None;
            }
        }
    }
    Ok(dims)
}

/// Applies a function to arrays that broadcast.
fn map(operands: &[&Array], build: impl FnOnce(&mut Expr, &[u32]) -> Result<u32, Error>) -> Result<Array, Error> {
    let mut shape = Vec::new();
    for array in operands {
        shape = broadcast_shapes(&shape, &array.shape()?)?;
    }
    let nodes = operands.iter().map(|a| Ok(broadcast_node(a.node()?, &shape))).collect::<Result<Vec<_>, Error>>()?;
    let mut expr = Expr::new(nodes.iter().map(|n| n.dtype).collect());
    let slots = (0..nodes.len() as u32).map(|i| expr.push(ExprNode::Input(i))).collect::<Result<Vec<_>, _>>()?;
    let result = build(&mut expr, &slots)?;
    expr.add_results(&[result]);
    let dims = broadcast_dims(operands, &shape)?;
    let all = operands.iter().map(|a| a.attributes()).collect::<Result<Vec<_>, _>>()?;
    Ok(Array::from_parts(Node::map(expr, nodes), dims, kept_attributes(all.into_iter())))
}

fn cast_to(expr: &mut Expr, node: u32, dtype: DType) -> Result<u32, Error> {
    Ok(if expr.dtype(node) == dtype { node } else { expr.push(ExprNode::Cast(dtype, node))? })
}

/// The dtype that a number takes beside an array.
fn weak(dtype: DType, number: f64, op: BinaryOp) -> Result<DType, Error> {
    match dtype.kind() {
        Kind::Float | Kind::Complex => Ok(dtype),
        Kind::Signed | Kind::Unsigned if number.fract() == 0.0 && Scalar::from_f64(dtype, number).cast(DType::Float64).get() == Some(number) => Ok(dtype),
        Kind::Signed | Kind::Unsigned => Ok(DType::Float64),
        Kind::Bool => Err(Error::Argument(format!("{} of a bool array and a number: cast the array first", op.name()))),
    }
}

fn binary(op: BinaryOp, left: Operand<'_>, right: Operand<'_>) -> Result<Array, Error> {
    let finish = |expr: &mut Expr, a: u32, b: u32, dtype: DType| {
        // True division of integers is done in floats.
        let dtype = if op == BinaryOp::Divide && dtype.is_integer() { DType::Float64 } else { dtype };
        let (a, b) = (cast_to(expr, a, dtype)?, cast_to(expr, b, dtype)?);
        Ok(expr.push(ExprNode::Binary(op, a, b))?)
    };
    let with_number = |array: &Array, number: f64, array_first: bool| {
        map(&[array], |expr, slots| {
            let dtype = weak(expr.dtype(slots[0]), number, op)?;
            let dtype = if op == BinaryOp::Divide && dtype.is_integer() { DType::Float64 } else { dtype };
            let literal = expr.push(ExprNode::Literal(Scalar::from_f64(dtype, number)))?;
            let (a, b) = if array_first { (slots[0], literal) } else { (literal, slots[0]) };
            finish(expr, a, b, dtype)
        })
    };
    match (left, right) {
        (Operand::Array(a), Operand::Array(b)) => map(&[a, b], |expr, slots| {
            let (left, right) = (expr.dtype(slots[0]), expr.dtype(slots[1]));
            let dtype = left.promote(right).ok_or(Error::Promotion { left, right })?;
            finish(expr, slots[0], slots[1], dtype)
        }),
        (Operand::Array(a), Operand::Number(n)) => with_number(a, n, true),
        (Operand::Number(n), Operand::Array(b)) => with_number(b, n, false),
        (Operand::Number(_), Operand::Number(_)) => Err(Error::Argument("at least one operand must be an array".into())),
    }
}

fn unary(op: UnaryOp, a: &Array) -> Result<Array, Error> {
    map(&[a], |expr, slots| Ok(expr.push(ExprNode::Unary(op, slots[0]))?))
}

macro_rules! binary_functions {
    ($($name:ident $op:ident $doc:literal;)*) => { $(
        #[doc = $doc]
        ///
        /// Shapes broadcast, dtypes are promoted as the Array API standard says. Cost: no stage.
        ///
        /// # Errors
        /// Where shapes do not broadcast, dtypes have no common type, or it is not defined for that type.
        pub fn $name(a: &Array, b: &Array) -> Result<Array, Error> {
            binary(BinaryOp::$op, Operand::Array(a), Operand::Array(b))
        }
    )* };
}

binary_functions! {
    add Add "The sum; integers wrap.";
    subtract Subtract "The difference; integers wrap.";
    multiply Multiply "The product; integers wrap.";
    divide Divide "The true quotient; integers give `float64`.";
    minimum Minimum "The lesser of two real numbers; NaN if one is NaN.";
    maximum Maximum "The greater of two real numbers; NaN if one is NaN.";
    equal Equal "True where equal.";
    not_equal NotEqual "True where not equal.";
    less Less "True where the first is less.";
    less_equal LessEqual "True where the first is not greater.";
    greater Greater "True where the first is greater.";
    greater_equal GreaterEqual "True where the first is not less.";
    logical_and LogicalAnd "True where both bools are.";
    logical_or LogicalOr "True where one of two bools is.";
}

macro_rules! unary_functions {
    ($($name:ident $op:ident $doc:literal;)*) => { $(
        #[doc = $doc]
        ///
        /// Cost: no stage.
        ///
        /// # Errors
        /// Where it is not defined for the dtype.
        pub fn $name(a: &Array) -> Result<Array, Error> {
            unary(UnaryOp::$op, a)
        }
    )* };
}

unary_functions! {
    negative Negative "The negative; integers wrap.";
    abs Abs "The magnitude; real for complex numbers.";
    sqrt Sqrt "The square root of a float; NaN below 0.";
    round Round "The nearest integer, ties to even.";
    logical_not LogicalNot "True where a bool is false.";
}

/// Elements of `a` where `condition` is true, of `b` elsewhere.
///
/// # Errors
/// Where shapes do not broadcast, the condition is not bool, or `a` and `b` have no common type.
pub fn where_(condition: &Array, a: &Array, b: &Array) -> Result<Array, Error> {
    map(&[condition, a, b], |expr, slots| {
        let (left, right) = (expr.dtype(slots[1]), expr.dtype(slots[2]));
        let dtype = left.promote(right).ok_or(Error::Promotion { left, right })?;
        let (a, b) = (cast_to(expr, slots[1], dtype)?, cast_to(expr, slots[2], dtype)?);
        Ok(expr.push(ExprNode::Where(slots[0], a, b))?)
    })
}

impl Array {
    /// The array in another dtype; to integers towards zero.
    ///
    /// Cost: no stage.
    ///
    /// # Errors
    /// Where a complex array would become real.
    pub fn astype(&self, dtype: DType) -> Result<Array, Error> {
        let from = self.dtype()?;
        if from.kind() == Kind::Complex && dtype.kind() != Kind::Complex && dtype.kind() != Kind::Bool {
            return Err(Error::Promotion { left: from, right: dtype });
        }
        map(&[self], |expr, slots| cast_to(expr, slots[0], dtype))
    }
}

fn or_failed(result: Result<Array, Error>, at: &'static Location<'static>) -> Array {
    result.unwrap_or_else(|e| Array::failed(e, at))
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:ident;)*) => { $(
        impl std::ops::$trait<&Array> for &Array {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: &Array) -> Array { or_failed(binary(BinaryOp::$op, Operand::Array(self), Operand::Array(other)), Location::caller()) }
        }
        impl std::ops::$trait<Array> for Array {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: Array) -> Array { or_failed(binary(BinaryOp::$op, Operand::Array(&self), Operand::Array(&other)), Location::caller()) }
        }
        impl std::ops::$trait<&Array> for Array {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: &Array) -> Array { or_failed(binary(BinaryOp::$op, Operand::Array(&self), Operand::Array(other)), Location::caller()) }
        }
        impl std::ops::$trait<Array> for &Array {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: Array) -> Array { or_failed(binary(BinaryOp::$op, Operand::Array(self), Operand::Array(&other)), Location::caller()) }
        }
        impl std::ops::$trait<f64> for &Array {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: f64) -> Array { or_failed(binary(BinaryOp::$op, Operand::Array(self), Operand::Number(other)), Location::caller()) }
        }
        impl std::ops::$trait<f64> for Array {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: f64) -> Array { or_failed(binary(BinaryOp::$op, Operand::Array(&self), Operand::Number(other)), Location::caller()) }
        }
        impl std::ops::$trait<&Array> for f64 {
            type Output = Array;
            #[track_caller]
            fn $method(self, other: &Array) -> Array { or_failed(binary(BinaryOp::$op, Operand::Number(self), Operand::Array(other)), Location::caller()) }
        }
    )* };
}

operators! {
    Add add Add;
    Sub sub Subtract;
    Mul mul Multiply;
    Div div Divide;
}

impl std::ops::Neg for &Array {
    type Output = Array;
    #[track_caller]
    fn neg(self) -> Array {
        or_failed(unary(UnaryOp::Negative, self), Location::caller())
    }
}

impl std::ops::Neg for Array {
    type Output = Array;
    #[track_caller]
    fn neg(self) -> Array {
        or_failed(unary(UnaryOp::Negative, &self), Location::caller())
    }
}
