//! The oracle: `f64` values, rounded to a dtype.

use freestone::DType;
use ndarray::{ArrayD, IxDyn};

/// Rounds a value to a dtype.
pub fn rounded(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::Float32 => f64::from(x as f32),
        DType::Float64 => x,
        DType::Bool => f64::from(u8::from(x != 0.0)),
        _ => wrapped(x as i128, dtype),
    }
}

pub(super) fn wrapped(x: i128, dtype: DType) -> f64 {
    match dtype {
        DType::UInt8 => f64::from(x as u8),
        DType::Int16 => f64::from(x as i16),
        DType::Int32 => f64::from(x as i32),
        DType::UInt64 => x as u64 as f64,
        _ => x as i64 as f64,
    }
}

/// Casts as Rust's `as` does: towards zero and saturating from floats, wrapping between integers.
pub(super) fn cast(x: f64, from: DType, to: DType) -> f64 {
    if !from.is_real() || !to.is_integer() || from.is_integer() {
        return rounded(x, to);
    }
    match to {
        DType::UInt8 => f64::from(x as u8),
        DType::Int16 => f64::from(x as i16),
        DType::Int32 => f64::from(x as i32),
        _ => x as i64 as f64,
    }
}

/// Returns true if sums of the values are exact in any order, and integers are exact in `f64`.
pub(super) fn is_tame(values: &ArrayD<f64>) -> bool {
    let exact = |x: &f64| x.is_nan() || (x.abs() < 1_048_576.0 && (x * 65_536.0).fract() == 0.0);
    values.iter().all(exact)
}

pub(super) fn broadcast(a: &ArrayD<f64>, shape: &[usize]) -> ArrayD<f64> {
    a.broadcast(IxDyn(shape)).unwrap().to_owned()
}

pub(super) fn common_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], d: usize| if d + s.len() >= rank { s[d + s.len() - rank] } else { 1 };
    (0..rank)
        .map(|d| match (at(a, d), at(b, d)) {
            (x, y) if x == y || y == 1 => Some(x),
            (1, y) => Some(y),
            _ => None,
        })
        .collect()
}

/// Applies a binary function with broadcasting.
pub(super) fn zip(a: &ArrayD<f64>, b: &ArrayD<f64>, f: impl Fn(f64, f64) -> f64) -> ArrayD<f64> {
    let shape = common_shape(a.shape(), b.shape()).unwrap();
    let mut out = broadcast(a, &shape);
    out.zip_mut_with(&broadcast(b, &shape), |x, y| *x = f(*x, *y));
    out
}

pub(super) fn least(x: f64, y: f64) -> f64 {
    if x.is_nan() || x < y { x } else { y }
}

/// Returns the quotient rounded towards -infinity and the remainder; both are 0 for a zero divisor.
pub(super) fn floored(x: i128, y: i128) -> (i128, i128) {
    let q = if y == 0 { 0 } else { x.div_euclid(y) - i128::from(y < 0 && x.rem_euclid(y) != 0) };
    (q, if y == 0 { 0 } else { x - q * y })
}

/// Returns the dtype that two operands are promoted to, or `None` for `uint64` with signed
/// integers, which the oracle would have to round first.
pub fn promoted(left: DType, right: DType) -> Option<DType> {
    let dtype = left.promote(right);
    (dtype != DType::Float64 || !(left.is_integer() && right.is_integer())).then_some(dtype)
}

pub fn python_slice(start: Option<i64>, stop: Option<i64>, step: i64, n: i64) -> Vec<usize> {
    // As `PySlice_AdjustIndices` of CPython.
    let adjust = |x: i64| {
        let x = if x < 0 { x + n } else { x };
        if x < 0 {
            if step < 0 { -1 } else { 0 }
        } else if x >= n {
            if step < 0 { n - 1 } else { n }
        } else {
            x
        }
    };
    let mut at = start.map_or(if step < 0 { n - 1 } else { 0 }, adjust);
    let stop = stop.map_or(if step < 0 { -1 } else { n }, adjust);
    let mut indices = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        indices.push(at as usize);
        at += step;
    }
    indices
}
