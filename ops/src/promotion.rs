//! Type promotion: the dtype of an elementwise function, and of numbers combined with arrays.

use freestone_kernels::dtype::{Complex128, Kind};
use freestone_kernels::expr::ExprError;
use freestone_kernels::{BinaryOp, DType, Domain, Expr, Node as ExprNode, Scalar, UnaryOp};

use crate::elementwise::{Operand, cast_to};
use crate::error::Error;

/// Returns the value of an integral number.
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

/// Converts a number to another dtype, if the dtype holds it: integers must be exact, and only
/// complex dtypes hold an imaginary part.
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

/// Returns a number as a literal of the dtype that it takes in combination with `dtype`.
///
/// Source: the Array API standard, "mixing arrays with Python scalars". Cases that it leaves open
/// follow NumPy: a number that is neither bool nor integer has its own dtype.
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

/// Returns the dtype in which a function of a domain computes on `dtype`: integers become floats if
/// the function requires it.
pub(crate) fn working(domain: Domain, dtype: DType) -> DType {
    if dtype.is_integer() && matches!(domain, Domain::Inexact | Domain::Float) {
        DType::Float64
    } else {
        dtype
    }
}

/// Returns the operation that replaces a binary operation on bools, and the dtype of its operands.
/// As in NumPy, a sum is `or`, a product is `and`, and other arithmetic converts bools to numbers.
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

/// Compares a signed integer with a `uint64` exactly. Both are promoted to `float64`, which has too
/// few digits.
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

/// Promotes the operands of one expression to one dtype.
pub(crate) fn common(
    expr: &mut Expr,
    operands: &[Operand],
    slots: &[u32],
) -> Result<(Vec<u32>, DType), Error> {
    let dtype = slots.iter().map(|slot| expr.dtype(*slot)).reduce(DType::promote);
    // Without arrays, numbers have their own dtypes.
    let numbers = || {
        operands
            .iter()
            .filter_map(|o| if let Operand::Number(n) = o { Some(n.dtype()) } else { None })
            .max()
    };
    let arrays = dtype
        .or_else(numbers)
        .ok_or_else(|| Error::Argument("expected at least one operand".into()))?;
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
