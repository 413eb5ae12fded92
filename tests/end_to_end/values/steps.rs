//! The steps of a random program, on the lazy array and on the oracle.

use freestone::{Array, DType};
use ndarray::{ArrayD, Axis, IxDyn, Slice};

use super::oracle::{
    broadcast, cast, common_shape, floored, is_tame, least, promoted, python_slice, rounded,
    wrapped, zip,
};
use super::reductions::reduce;
use super::{DTYPES, Pair, Step};
use crate::rearranged::rearrange;

/// The result of a step: its name, the lazy array, the oracle, and the dtype.
type Made = (&'static str, Array, ArrayD<f64>, DType);

/// Returns an operand that broadcasts with `a`: an element of the pool, or `a` with fixed axes.
fn partner(a: &Pair, pool: &[Pair], step: &Step) -> Pair {
    let found = &pool[step.operand as usize % pool.len()];
    if common_shape(a.whole.shape(), found.whole.shape()).is_some() && found.whole.len() < 20_000 {
        return found.clone();
    }
    let mut other = a.clone();
    if !a.whole.shape().is_empty() && step.b % 2 == 0 {
        let axis = step.b.unsigned_abs() as usize % a.whole.ndim();
        let n = a.whole.shape()[axis];
        if n > 0 {
            let at = step.c.unsigned_abs() as usize % n;
            other.lazy = a.lazy.at(at as i64, axis as i64).expand_dims(axis as i64);
            other.whole = a.whole.clone();
            other.whole.slice_axis_inplace(Axis(axis), Slice::from(at..at + 1));
        }
    }
    other
}

/// Applies a step. Returns `None` if it is undefined for its operands, or its oracle inexact.
pub(super) fn apply(
    a: &Pair,
    pool: &[Pair],
    step: &Step,
    names: &mut Vec<&'static str>,
) -> Option<Pair> {
    let (name, lazy, whole, dtype) = match step.op % 56 {
        op @ (0..=4 | 8) => arithmetic(op, a, &partner(a, pool, step), step)?,
        5 | 25 => comparison(a, &partner(a, pool, step), step)?,
        6 | 26 => choice(a, pool, step)?,
        7 | 24 => {
            let to = DTYPES[step.a.unsigned_abs() as usize % DTYPES.len()];
            ("astype", a.lazy.astype(to), a.whole.mapv(|x| cast(x, a.dtype, to)), to)
        }
        9 | 14..=16 => unary(a, step),
        10 | 11 if a.dtype != DType::Bool => with_number(a),
        12 | 13 | 17 => part(a, step)?,
        18..=20 => moved(a, step)?,
        21 if a.whole.ndim() < 4 => moved(a, step)?,
        22 | 23 => {
            let numbers = [step.a, step.b, step.c, step.a];
            let chunks: Vec<u64> = numbers[..a.whole.ndim()]
                .iter()
                .map(|n| u64::from(n.unsigned_abs()) % 9 + 1)
                .collect();
            ("rechunk", a.lazy.rechunk(&chunks), a.whole.clone(), a.dtype)
        }
        36..=47 => return rearrange(a, pool, step, names),
        48..=55 => {
            let made = further(a, pool, step)?;
            made.1.check().unwrap_or_else(|e| panic!("{}: {e}", made.0));
            made
        }
        _ => return reduce(a, step, names),
    };
    names.push(name);
    Some(Pair { lazy, whole, dtype })
}

fn is_float(a: &Pair) -> bool {
    matches!(a.dtype, DType::Float32 | DType::Float64)
}

/// Returns the axis of a step, or `None` for arrays without axes.
fn axis(a: &Pair, step: &Step) -> Option<usize> {
    (a.whole.ndim() > 0).then(|| step.a.unsigned_abs() as usize % a.whole.ndim())
}

fn arithmetic(op: u8, a: &Pair, b: &Pair, step: &Step) -> Option<Made> {
    let dtype = promoted(a.dtype, b.dtype).filter(|d| *d != DType::Bool)?;
    let (x, y) = (&a.lazy, &b.lazy);
    let of = |integer: fn(i128, i128) -> i128, real: fn(f64, f64) -> f64| {
        zip(&a.whole, &b.whole, |x, y| {
            if dtype.is_integer() {
                wrapped(integer(x as i128, y as i128), dtype)
            } else {
                rounded(real(x, y), dtype)
            }
        })
    };
    Some(match op {
        0 => ("add", x + y, of(|x, y| x + y, |x, y| x + y), dtype),
        1 => ("subtract", x - y, of(|x, y| x - y, |x, y| x - y), dtype),
        2 => ("multiply", x * y, of(|x, y| x * y, |x, y| x * y), dtype),
        3 => {
            let dtype = if dtype.is_integer() { DType::Float64 } else { dtype };
            ("divide", x / y, zip(&a.whole, &b.whole, |x, y| rounded(x / y, dtype)), dtype)
        }
        _ if step.c % 2 == 0 => {
            ("minimum", freestone::minimum(x, y), zip(&a.whole, &b.whole, least), dtype)
        }
        _ => {
            let greatest = |x: f64, y: f64| -least(-x, -y);
            ("maximum", freestone::maximum(x, y), zip(&a.whole, &b.whole, greatest), dtype)
        }
    })
}

fn comparison(a: &Pair, b: &Pair, step: &Step) -> Option<Made> {
    promoted(a.dtype, b.dtype).filter(|d| *d != DType::Bool)?;
    let of =
        |f: fn(&f64, &f64) -> bool| zip(&a.whole, &b.whole, |x, y| f64::from(u8::from(f(&x, &y))));
    let (x, y) = (&a.lazy, &b.lazy);
    let (lazy, whole) = match step.c.rem_euclid(6) {
        0 => (freestone::less(x, y), of(f64::lt)),
        1 => (freestone::less_equal(x, y), of(f64::le)),
        2 => (freestone::greater(x, y), of(f64::gt)),
        3 => (freestone::greater_equal(x, y), of(f64::ge)),
        4 => (freestone::equal(x, y), of(f64::eq)),
        _ => (freestone::not_equal(x, y), of(f64::ne)),
    };
    Some(("compare", lazy, whole, DType::Bool))
}

fn choice(a: &Pair, pool: &[Pair], step: &Step) -> Option<Made> {
    let b = partner(a, pool, step);
    let dtype = promoted(a.dtype, b.dtype)?;
    let fits = |p: &&Pair| {
        p.dtype == DType::Bool
            && common_shape(p.whole.shape(), a.whole.shape())
                .is_some_and(|s| common_shape(&s, b.whole.shape()).is_some())
    };
    let condition = pool.iter().find(fits)?;
    let shape = common_shape(condition.whole.shape(), a.whole.shape())?;
    let shape = common_shape(&shape, b.whole.shape())?;
    let (c, y) = (broadcast(&condition.whole, &shape), broadcast(&b.whole, &shape));
    let mut whole = broadcast(&a.whole, &shape);
    ndarray::Zip::from(&mut whole)
        .and(&c)
        .and(&y)
        .for_each(|x, c, y| *x = rounded(if *c != 0.0 { *x } else { *y }, dtype));
    Some(("where", freestone::where_(&condition.lazy, &a.lazy, &b.lazy), whole, dtype))
}

fn unary(a: &Pair, step: &Step) -> Made {
    let (float, x, dtype) = (is_float(a), &a.lazy, a.dtype);
    if dtype == DType::Bool {
        return ("not", freestone::logical_not(x), a.whole.mapv(|x| 1.0 - x), dtype);
    }
    let integers = |f: fn(i128) -> i128| a.whole.mapv(|x| wrapped(f(x as i128), a.dtype));
    match step.a.rem_euclid(4) {
        0 if float => ("negative", -x, a.whole.mapv(|x| -x), dtype),
        0 => ("negative", -x, integers(|x| -x), dtype),
        1 if float => {
            ("sqrt", freestone::sqrt(x), a.whole.mapv(|x| rounded(x.sqrt(), dtype)), dtype)
        }
        2 if float => ("round", freestone::round(x), a.whole.mapv(f64::round_ties_even), dtype),
        _ if float => ("abs", freestone::abs(x), a.whole.mapv(f64::abs), dtype),
        _ => ("abs", freestone::abs(x), integers(i128::abs), dtype),
    }
}

fn with_number(a: &Pair) -> Made {
    if is_float(a) {
        let whole = a.whole.mapv(|x| rounded(2.5 - rounded(x * 3.0, a.dtype), a.dtype));
        ("number", 2.5 - &(&a.lazy * 3.0), whole, a.dtype)
    } else {
        ("number", &a.lazy * 3, a.whole.mapv(|x| wrapped(x as i128 * 3, a.dtype)), a.dtype)
    }
}

/// Slices and single indices.
fn part(a: &Pair, step: &Step) -> Option<Made> {
    let axis = axis(a, step)?;
    let n = a.whole.shape()[axis];
    if step.op % 56 == 17 {
        let at = (n > 0).then(|| step.b.unsigned_abs() as usize % n)?;
        let from_end = if step.c < 0 { at as i64 - n as i64 } else { at as i64 };
        let whole = a.whole.index_axis(Axis(axis), at).to_owned();
        let lazy = a.lazy.at(from_end, axis as i64 - a.whole.ndim() as i64);
        return Some(("at", lazy, whole, a.dtype));
    }
    // Bounds are rare, so that few results are empty.
    let bound = |x: i8| (x % 3 == 0).then_some(i64::from(x) % (n as i64 + 3));
    let (start, stop) = (bound(step.b), bound(step.c));
    let pace = [1, 2, -1, 3, -2, -3, 7, -7][step.operand as usize % 8];
    let indices = python_slice(start, stop, pace, n as i64);
    let lazy = a.lazy.slice(freestone::Slice::new(start, stop, pace), axis as i64);
    Some(("slice", lazy, a.whole.select(Axis(axis), &indices), a.dtype))
}

/// Flipped, permuted and inserted axes.
fn moved(a: &Pair, step: &Step) -> Option<Made> {
    let rank = a.whole.ndim();
    Some(match step.op % 56 {
        18 => {
            let axis = axis(a, step)?;
            let mut whole = a.whole.clone();
            whole.invert_axis(Axis(axis));
            ("flip", a.lazy.flip(axis as i64), whole, a.dtype)
        }
        19 | 20 => {
            let mut order: Vec<usize> = (0..rank).collect();
            order.rotate_left(axis(a, step)?);
            if step.b % 2 == 0 {
                order.reverse();
            }
            let axes: Vec<i64> = order.iter().map(|d| *d as i64).collect();
            let whole = a.whole.clone().permuted_axes(IxDyn(&order));
            let whole = whole.as_standard_layout().into_owned();
            ("permute_dims", a.lazy.permute_dims(&axes), whole, a.dtype)
        }
        _ => {
            let at = step.b.unsigned_abs() as usize % (rank + 1);
            let whole = a.whole.clone().insert_axis(Axis(at));
            ("expand_dims", a.lazy.expand_dims(at as i64), whole, a.dtype)
        }
    })
}

/// Functions with operation numbers above those of the others.
fn further(a: &Pair, pool: &[Pair], step: &Step) -> Option<Made> {
    match step.op % 56 {
        48 | 49 if a.dtype != DType::Bool => Some(rounding(a, step)),
        50 => quotient(a, &partner(a, pool, step), step),
        51 => bitwise(a, &partner(a, pool, step), step),
        52 if a.dtype != DType::Bool => {
            let unsigned = matches!(a.dtype, DType::UInt8 | DType::UInt64);
            let low = i64::from(step.b % 5) + if unsigned { 5 } else { 0 };
            let high = low + i64::from(step.c % 7).abs();
            let bounded = |x: f64| if x.is_nan() { x } else { x.clamp(low as f64, high as f64) };
            let lazy = freestone::clip(&a.lazy, Some(low.into()), Some(high.into()));
            Some(("clip", lazy, a.whole.mapv(bounded), a.dtype))
        }
        53 if a.dtype.is_integer() => {
            // Factors are 1 or 2, so that `f64` holds the product.
            let axis = axis(a, step)?;
            let unsigned = matches!(a.dtype, DType::UInt8 | DType::UInt64);
            let dtype = if unsigned { DType::UInt64 } else { DType::Int64 };
            let odd = freestone::add(freestone::bitwise_and(&a.lazy, 1), 1);
            let factors = a.whole.mapv(|x| (x as i128 & 1) as f64 + 1.0);
            let whole = factors.fold_axis(Axis(axis), 1.0, |x, y| x * y);
            Some(("prod", odd.prod(axis as i64), whole, dtype))
        }
        54 | 55 => difference(a, step),
        _ => None,
    }
}

fn rounding(a: &Pair, step: &Step) -> Made {
    let (x, dtype) = (&a.lazy, a.dtype);
    let of = |f: fn(f64) -> f64| a.whole.mapv(|x| rounded(f(x), a.dtype));
    match step.a.rem_euclid(5) {
        0 => ("floor", freestone::floor(x), of(f64::floor), dtype),
        1 => ("ceil", freestone::ceil(x), of(f64::ceil), dtype),
        2 => ("trunc", freestone::trunc(x), of(f64::trunc), dtype),
        3 => {
            let sign = |x: f64| if x == 0.0 { x } else { x.signum() };
            ("sign", freestone::sign(x), of(sign), dtype)
        }
        _ if is_float(a) => ("square", freestone::square(x), of(|x| x * x), dtype),
        _ => {
            let whole = a.whole.mapv(|x| wrapped(x as i128 * x as i128, dtype));
            ("square", freestone::square(x), whole, dtype)
        }
    }
}

/// Quotients and remainders. Floats must be multiples of 2^-16, for which they are exact.
fn quotient(a: &Pair, b: &Pair, step: &Step) -> Option<Made> {
    let dtype = promoted(a.dtype, b.dtype).filter(|d| *d != DType::Bool)?;
    let integer = dtype.is_integer();
    if !(integer || is_tame(&a.whole) && is_tame(&b.whole)) {
        return None;
    }
    let scale = if integer { 1.0 } else { 65_536.0 };
    let exact = |x: f64, y: f64| floored((x * scale) as i128, (y * scale) as i128);
    let undefined = |x: f64, y: f64| !integer && (x.is_nan() || y.is_nan() || y == 0.0);
    let held = |x: f64| if integer { wrapped(x as i128, dtype) } else { rounded(x, dtype) };
    if step.c % 2 == 0 {
        let whole = zip(&a.whole, &b.whole, |x, y| {
            if undefined(x, y) { x / y } else { held(exact(x, y).0 as f64) }
        });
        // Larger quotients have more digits than float32.
        if whole.iter().any(|q| q.is_finite() && q.abs() > 1e6) && dtype == DType::Float32 {
            return None;
        }
        Some(("floor_divide", freestone::floor_divide(&a.lazy, &b.lazy), whole, dtype))
    } else {
        let whole = zip(&a.whole, &b.whole, |x, y| {
            if undefined(x, y) { f64::NAN } else { held(exact(x, y).1 as f64 / scale) }
        });
        Some(("remainder", freestone::remainder(&a.lazy, &b.lazy), whole, dtype))
    }
}

fn bitwise(a: &Pair, b: &Pair, step: &Step) -> Option<Made> {
    let dtype = promoted(a.dtype, b.dtype).filter(|d| *d == DType::Bool || d.is_integer())?;
    let of = |f: fn(i128, i128) -> i128| {
        zip(&a.whole, &b.whole, |x, y| rounded(f(x as i128, y as i128) as f64, dtype))
    };
    let (x, y) = (&a.lazy, &b.lazy);
    Some(match step.c.rem_euclid(3) {
        0 => ("bitwise_and", freestone::bitwise_and(x, y), of(|x, y| x & y), dtype),
        1 => ("bitwise_or", freestone::bitwise_or(x, y), of(|x, y| x | y), dtype),
        _ => ("bitwise_xor", freestone::bitwise_xor(x, y), of(|x, y| x ^ y), dtype),
    })
}

fn difference(a: &Pair, step: &Step) -> Option<Made> {
    let (axis, n) = (axis(a, step)?, step.b.unsigned_abs() % 3);
    let mut whole = a.whole.clone();
    for _ in 0..n {
        let len = whole.shape()[axis];
        let (mut high, mut low) = (whole.clone(), whole);
        high.slice_axis_inplace(Axis(axis), Slice::from(1.min(len)..));
        low.slice_axis_inplace(Axis(axis), Slice::from(..len.saturating_sub(1)));
        whole = match a.dtype {
            DType::Bool => zip(&high, &low, |x, y| f64::from(u8::from(x != y))),
            d if d.is_integer() => zip(&high, &low, |x, y| wrapped(x as i128 - y as i128, d)),
            d => zip(&high, &low, |x, y| rounded(x - y, d)),
        };
    }
    Some(("diff", a.lazy.diff(n.into(), axis as i64), whole, a.dtype))
}
