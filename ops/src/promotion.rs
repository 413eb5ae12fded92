//! The dtype in which an elementwise function computes, and numbers beside arrays.

use freestone_kernels::dtype::{Complex128, Kind};
use freestone_kernels::expr::ExprError;
use freestone_kernels::{BinaryOp, DType, Domain, Expr, Node as ExprNode, Scalar, UnaryOp};

use crate::elementwise::{Operand, cast_to};
use crate::error::Error;

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
pub(crate) fn working(domain: Domain, dtype: DType) -> DType {
    if dtype.is_integer() && matches!(domain, Domain::Inexact | Domain::Float) {
        DType::Float64
    } else {
        dtype
    }
}

/// What stands for a function of two bools, and the dtype that it works on: as NumPy, the sum is
/// `or`, the product is `and`, and of the others the operands are numbers.
pub(crate) fn of_bools(op: BinaryOp) -> Result<(BinaryOp, DType), Error> {
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
pub(crate) fn compared(expr: &mut Expr, op: BinaryOp, a: u32, b: u32) -> Result<u32, ExprError> {
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

pub(crate) fn is_comparison(op: BinaryOp) -> bool {
    use BinaryOp as B;
    matches!(op, B::Equal | B::NotEqual | B::Less | B::LessEqual | B::Greater | B::GreaterEqual)
}

/// Operands in one expression with one dtype.
pub(crate) fn common(
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
