//! Arithmetic on numbers, as in Python.
//!
//! Integers are exact, up to 128 bits; `/` gives a float, `//` and `%` round towards minus
//! infinity.

use super::vocabulary::Value;
use freestone_kernels::dtype::Complex128;

use super::ast::{Binary, Unary};

/// A number, from the narrowest kind to the widest.
#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
    Complex(Complex128),
}

use Number::{Complex, Float, Int};

impl Number {
    fn of(value: &Value) -> Option<Number> {
        Some(match value {
            Value::Bool(b) => Int(i128::from(*b)),
            Value::Int(i) => Int(*i),
            Value::Float(x) => Float(*x),
            Value::Complex(re, im) => Complex(Complex128::new(*re, *im)),
            _ => return None,
        })
    }

    fn float(self) -> f64 {
        match self {
            Int(i) => i as f64,
            Float(x) => x,
            Complex(c) => c.re,
        }
    }

    fn complex(self) -> Complex128 {
        match self {
            Complex(c) => c,
            other => Complex128::new(other.float(), 0.0),
        }
    }
}

impl From<Number> for Value {
    fn from(number: Number) -> Self {
        match number {
            Int(i) => Value::Int(i),
            Float(x) => Value::Float(x),
            Complex(c) => Value::Complex(c.re, c.im),
        }
    }
}

const TOO_LARGE: &str = "result exceeds 128 bits";
const BY_ZERO: &str = "division by zero";

/// Applies a binary operator. Returns `None` if an operand is not a number.
pub(super) fn binary(op: Binary, a: &Value, b: &Value) -> Option<Result<Value, String>> {
    if let (Value::Bool(a), Value::Bool(b)) = (a, b) {
        match op {
            Binary::And => return Some(Ok(Value::Bool(a & b))),
            Binary::Or => return Some(Ok(Value::Bool(a | b))),
            Binary::Xor => return Some(Ok(Value::Bool(a ^ b))),
            _ => {}
        }
    }
    let (a, b) = (Number::of(a)?, Number::of(b)?);
    if op.is_comparison() {
        return Some(compare(op, a, b).map(Value::Bool));
    }
    let result = match (a, b) {
        (Int(a), Int(b)) => integers(op, a, b),
        (Complex(_), _) | (_, Complex(_)) => complexes(op, a.complex(), b.complex()).map(Complex),
        _ => floats(op, a.float(), b.float()),
    };
    Some(result.map(Value::from))
}

/// Applies a unary operator. Returns `None` if the operand is not a number.
pub(super) fn unary(op: Unary, a: &Value) -> Option<Result<Value, String>> {
    let result = match (op, Number::of(a)?) {
        (Unary::Positive, a) => Ok(a),
        (Unary::Negative, Int(i)) => i.checked_neg().map(Int).ok_or_else(|| TOO_LARGE.to_owned()),
        (Unary::Negative, Float(x)) => Ok(Float(-x)),
        (Unary::Negative, Complex(c)) => Ok(Complex(-c)),
        (Unary::Invert, Int(i)) => Ok(Int(!i)),
        (Unary::Invert, _) => Err("`~` is not defined for floats".into()),
    };
    Some(result.map(Value::from))
}

fn compare(op: Binary, a: Number, b: Number) -> Result<bool, String> {
    let order = match (a, b) {
        (Int(a), Int(b)) => Some(a.cmp(&b)),
        (Complex(_), _) | (_, Complex(_)) => match op {
            Binary::Equal => return Ok(a.complex() == b.complex()),
            Binary::NotEqual => return Ok(a.complex() != b.complex()),
            _ => return Err("complex numbers are not ordered".into()),
        },
        _ => a.float().partial_cmp(&b.float()),
    };
    Ok(match op {
        Binary::Less => order.is_some_and(|o| o.is_lt()),
        Binary::LessEqual => order.is_some_and(|o| o.is_le()),
        Binary::Greater => order.is_some_and(|o| o.is_gt()),
        Binary::GreaterEqual => order.is_some_and(|o| o.is_ge()),
        Binary::NotEqual => order.is_none_or(|o| o.is_ne()),
        _ => order.is_some_and(|o| o.is_eq()),
    })
}

fn undefined(op: Binary, what: &str) -> String {
    format!("`{}` is not defined for {what}", op.symbol())
}

fn integers(op: Binary, a: i128, b: i128) -> Result<Number, String> {
    let shift = || {
        u32::try_from(b).map_err(|_| {
            if b < 0 { "shift by a negative number".to_owned() } else { TOO_LARGE.to_owned() }
        })
    };
    let exact = match op {
        Binary::Add => a.checked_add(b),
        Binary::Subtract => a.checked_sub(b),
        Binary::Multiply => a.checked_mul(b),
        Binary::Divide | Binary::FloorDivide | Binary::Remainder if b == 0 => {
            return Err(BY_ZERO.into());
        }
        Binary::Divide => return Ok(Float(a as f64 / b as f64)),
        Binary::FloorDivide => {
            a.checked_div(b).map(|q| if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q })
        }
        Binary::Remainder => {
            a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r })
        }
        Binary::Pow if b < 0 => return floats(op, a as f64, b as f64),
        // All powers of -1, 0 and 1 are in range. For other bases, exponents end at 127.
        Binary::Pow if matches!(a, -1..=1) => {
            Some(if b == 0 || a == 1 || (a == -1 && b % 2 == 0) { 1 } else { a })
        }
        Binary::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        Binary::And => Some(a & b),
        Binary::Or => Some(a | b),
        Binary::Xor => Some(a ^ b),
        Binary::Left if a == 0 && b >= 0 => Some(0),
        Binary::Left => {
            1i128.checked_shl(shift()?).filter(|p| *p > 0).and_then(|p| a.checked_mul(p))
        }
        Binary::Right if b > 127 => Some(if a < 0 { -1 } else { 0 }),
        Binary::Right => Some(a >> shift()?),
        _ => return Err(undefined(op, "numbers")),
    };
    exact.map(Int).ok_or_else(|| TOO_LARGE.into())
}

fn floats(op: Binary, a: f64, b: f64) -> Result<Number, String> {
    let x = match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide | Binary::FloorDivide | Binary::Remainder if b == 0.0 => {
            return Err(BY_ZERO.into());
        }
        Binary::Divide => a / b,
        Binary::FloorDivide => floor_divide(a, b),
        Binary::Remainder => remainder(a, b),
        Binary::Pow if a == 0.0 && b < 0.0 => return Err(BY_ZERO.into()),
        Binary::Pow if a < 0.0 && a.is_finite() && b.is_finite() && b.fract() != 0.0 => {
            return complexes(op, Complex128::new(a, 0.0), Complex128::new(b, 0.0)).map(Complex);
        }
        Binary::Pow => {
            let x = a.powf(b);
            if x.is_infinite() && a.is_finite() && b.is_finite() {
                return Err("result exceeds float64".into());
            }
            x
        }
        _ => return Err(undefined(op, "floats")),
    };
    Ok(Float(x))
}

fn remainder(a: f64, b: f64) -> f64 {
    let r = a % b;
    if r == 0.0 {
        0f64.copysign(b)
    } else if (r < 0.0) != (b < 0.0) {
        r + b
    } else {
        r
    }
}

/// Divides as CPython does: from the remainder, so that `a == (a // b) * b + a % b` up to rounding.
fn floor_divide(a: f64, b: f64) -> f64 {
    let q = (a - a % b) / b;
    let q = if a % b != 0.0 && ((a % b < 0.0) != (b < 0.0)) { q - 1.0 } else { q };
    if q == 0.0 {
        0f64.copysign(a / b)
    } else if q - q.floor() > 0.5 {
        q.floor() + 1.0
    } else {
        q.floor()
    }
}

fn complexes(op: Binary, a: Complex128, b: Complex128) -> Result<Complex128, String> {
    let zero = Complex128::new(0.0, 0.0);
    Ok(match op {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide if b == zero => return Err(BY_ZERO.into()),
        Binary::Divide => a / b,
        Binary::Pow if b == zero => Complex128::new(1.0, 0.0),
        Binary::Pow if a == zero && (b.re < 0.0 || b.im != 0.0) => return Err(BY_ZERO.into()),
        Binary::Pow if a == zero => zero,
        Binary::Pow => a.powc(b),
        _ => return Err(undefined(op, "complex numbers")),
    })
}
