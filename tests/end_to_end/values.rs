//! Random programs over random arrays in random chunks give what ndarray gives on the whole, bit
//! for bit.
//!
//! The oracle is one `f64` array and a dtype: every operation is done in `f64` (or in `i128` for
//! integers) and rounded to the dtype, which for one operation on `float32` is exact. Values are
//! small multiples of 1/4, and sums are taken only where they are exact in any order, so that there
//! are no tolerances here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use freestone::{Array, Axes, CodecName, DType, MemoryStore, Reduce, Spec};
use freestone_engine::storage::Store;
use freestone_engine::storage::metadata::open_array;
use ndarray::{ArrayD, Axis, IxDyn, Slice};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

use crate::rearranged::rearrange;
use crate::support::{Place, chunk_files, document};

pub const DTYPES: [DType; 8] = [
    DType::Float32,
    DType::Float64,
    DType::Int32,
    DType::Float32,
    DType::UInt8,
    DType::Int64,
    DType::Bool,
    DType::Int16,
];

/// An array and what it must be.
#[derive(Clone)]
pub struct Pair {
    pub lazy: Array,
    pub whole: ArrayD<f64>,
    pub dtype: DType,
}

#[derive(Clone, Debug)]
pub struct Input {
    /// Length and chunk along each axis.
    pub axes: Vec<(u64, u64)>,
    /// Of [`DTYPES`].
    pub dtype: usize,
    pub seed: u64,
}

/// What to do next; numbers are taken modulo what there is to choose from.
#[derive(Clone, Debug)]
pub struct Step {
    pub op: u8,
    pub operand: u8,
    pub a: i8,
    pub b: i8,
    pub c: i8,
}

#[derive(Clone, Debug)]
struct Program {
    inputs: Vec<Input>,
    steps: Vec<Step>,
    parallelism: u64,
    codec: u8,
}

fn programs() -> impl Strategy<Value = Program> {
    let axis = (
        prop_oneof![12 => 2u64..14, 1 => Just(1u64), 1 => Just(0u64), 1 => 14u64..40],
        prop_oneof![6 => 1u64..6, 1 => 6u64..20],
    );
    let rank = prop_oneof![1 => Just(1usize), 5 => Just(2), 4 => Just(3)];
    let axes = rank.prop_flat_map(move |rank| prop::collection::vec(axis.clone(), rank));
    let input = (axes, 0..DTYPES.len(), any::<u64>()).prop_map(|(axes, dtype, seed)| Input {
        axes,
        dtype,
        seed,
    });
    let step = (any::<u8>(), any::<u8>(), any::<i8>(), any::<i8>(), any::<i8>())
        .prop_map(|(op, operand, a, b, c)| Step { op, operand, a, b, c });
    let parallelism = prop_oneof![Just(1u64), Just(3), Just(50)];
    (prop::collection::vec(input, 1..3), prop::collection::vec(step, 1..9), parallelism, 0u8..3)
        .prop_map(|(inputs, steps, parallelism, codec)| Program {
            inputs,
            steps,
            parallelism,
            codec,
        })
}

/// A value of a dtype as the oracle holds it.
pub fn rounded(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::Float32 => f64::from(x as f32),
        DType::Float64 => x,
        DType::Bool => f64::from(u8::from(x != 0.0)),
        _ => wrapped(x as i128, dtype),
    }
}

fn wrapped(x: i128, dtype: DType) -> f64 {
    match dtype {
        DType::UInt8 => f64::from(x as u8),
        DType::Int16 => f64::from(x as i16),
        DType::Int32 => f64::from(x as i32),
        DType::UInt64 => x as u64 as f64,
        _ => x as i64 as f64,
    }
}

/// As Rust's `as` casts: towards zero and saturating from floats, wrapping between integers.
fn cast(x: f64, from: DType, to: DType) -> f64 {
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

fn element_bytes(x: f64, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Float32 => (x as f32).to_le_bytes().to_vec(),
        DType::Float64 => x.to_le_bytes().to_vec(),
        DType::Int64 => (x as i64).to_le_bytes().to_vec(),
        DType::Int32 => (x as i32).to_le_bytes().to_vec(),
        DType::Int16 => (x as i16).to_le_bytes().to_vec(),
        _ => vec![x as u8],
    }
}

/// The input stored by this test's own writer, and its values.
pub fn stored(input: &Input, number: usize, store: &Arc<dyn Store>) -> Pair {
    let dtype = DTYPES[input.dtype];
    let shape: Vec<u64> = input.axes.iter().map(|a| a.0).collect();
    let chunks: Vec<u64> = input.axes.iter().map(|a| a.1).collect();
    let mut state = input.seed | 1;
    let mut draw = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 33) as f64 - 16.0
    };
    let value = |x: f64| match dtype {
        DType::Float32 | DType::Float64 if x == 13.0 && input.seed.is_multiple_of(4) => f64::NAN,
        DType::Float32 | DType::Float64 => x / 4.0,
        DType::Bool => f64::from(u8::from(x > 2.0)),
        DType::UInt8 => x + 16.0,
        _ => x,
    };
    let extents: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
    let whole = ArrayD::from_shape_fn(IxDyn(&extents), |_| value(draw()));
    let elements: Vec<Vec<u8>> = whole.iter().map(|x| element_bytes(*x, dtype)).collect();
    let path = format!("input-{number}");
    store
        .write(
            &format!("{path}/zarr.json"),
            &serde_json::to_vec(&document(&shape, &chunks, dtype.name())).unwrap(),
        )
        .unwrap();
    for (key, bytes) in chunk_files(&shape, &chunks, &elements) {
        // A chunk of zeros need not be there.
        if bytes.iter().any(|b| *b != 0) || input.seed.is_multiple_of(2) {
            store.write(&format!("{path}/{key}"), &bytes).unwrap();
        }
    }
    Pair { lazy: freestone::open_in(store, &path).unwrap(), whole, dtype }
}

/// Sums of these are exact in any order, and integers among them are exact in `f64`.
fn is_tame(values: &ArrayD<f64>) -> bool {
    let exact = |x: &f64| x.is_nan() || (x.abs() < 1_048_576.0 && (x * 65_536.0).fract() == 0.0);
    values.iter().all(exact)
}

fn broadcast(a: &ArrayD<f64>, shape: &[usize]) -> ArrayD<f64> {
    a.broadcast(IxDyn(shape)).unwrap().to_owned()
}

fn common_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
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

/// One binary function on the oracle.
fn zip(a: &ArrayD<f64>, b: &ArrayD<f64>, f: impl Fn(f64, f64) -> f64) -> ArrayD<f64> {
    let shape = common_shape(a.shape(), b.shape()).unwrap();
    let mut out = broadcast(a, &shape);
    out.zip_mut_with(&broadcast(b, &shape), |x, y| *x = f(*x, *y));
    out
}

fn least(x: f64, y: f64) -> f64 {
    if x.is_nan() || x < y { x } else { y }
}

/// An operand that broadcasts with `a`: an element of the pool, or `a` with axes fixed.
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

/// Applies steps, each of which adds what it makes to the pool; their names.
pub fn apply_all(pool: &mut Vec<Pair>, steps: &[Step]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for step in steps {
        // Mostly what was made last, so that programs are deep.
        let of = if step.operand % 4 == 0 {
            step.operand as usize / 4 % pool.len()
        } else {
            pool.len() - 1
        };
        let Some(next) = apply(&pool[of], pool, step, &mut names) else { continue };
        let integers_are_exact =
            !next.dtype.is_integer() || next.whole.iter().all(|x| x.abs() < 9e15);
        if next.whole.len() < 20_000 && integers_are_exact {
            pool.push(next);
        }
    }
    names
}

/// Applies a step; `None` where it is not defined for what there is, or its oracle would not be
/// exact.
fn apply(a: &Pair, pool: &[Pair], step: &Step, names: &mut Vec<&'static str>) -> Option<Pair> {
    let rank = a.whole.ndim();
    let axis = (rank > 0).then(|| step.a.unsigned_abs() as usize % rank);
    let float = matches!(a.dtype, DType::Float32 | DType::Float64);
    let (name, lazy, whole, dtype) = match step.op % 56 {
        op @ (0..=4 | 8) => {
            let b = partner(a, pool, step);
            let dtype = promoted(a.dtype, b.dtype).filter(|d| *d != DType::Bool)?;
            let integer = |f: fn(i128, i128) -> i128| {
                zip(&a.whole, &b.whole, |x, y| wrapped(f(x as i128, y as i128), dtype))
            };
            let real =
                |f: fn(f64, f64) -> f64| zip(&a.whole, &b.whole, |x, y| rounded(f(x, y), dtype));
            match op {
                0 => (
                    "add",
                    &a.lazy + &b.lazy,
                    if dtype.is_integer() { integer(|x, y| x + y) } else { real(|x, y| x + y) },
                    dtype,
                ),
                1 => (
                    "subtract",
                    &a.lazy - &b.lazy,
                    if dtype.is_integer() { integer(|x, y| x - y) } else { real(|x, y| x - y) },
                    dtype,
                ),
                2 => (
                    "multiply",
                    &a.lazy * &b.lazy,
                    if dtype.is_integer() { integer(|x, y| x * y) } else { real(|x, y| x * y) },
                    dtype,
                ),
                3 => {
                    let dtype = if dtype.is_integer() { DType::Float64 } else { dtype };
                    (
                        "divide",
                        &a.lazy / &b.lazy,
                        zip(&a.whole, &b.whole, |x, y| rounded(x / y, dtype)),
                        dtype,
                    )
                }
                _ if step.c % 2 == 0 => (
                    "minimum",
                    freestone::minimum(&a.lazy, &b.lazy),
                    zip(&a.whole, &b.whole, least),
                    dtype,
                ),
                _ => (
                    "maximum",
                    freestone::maximum(&a.lazy, &b.lazy),
                    zip(&a.whole, &b.whole, |x, y| -least(-x, -y)),
                    dtype,
                ),
            }
        }
        5 | 25 => {
            let b = partner(a, pool, step);
            promoted(a.dtype, b.dtype).filter(|d| *d != DType::Bool)?;
            let of = |f: fn(&f64, &f64) -> bool| {
                zip(&a.whole, &b.whole, |x, y| f64::from(u8::from(f(&x, &y))))
            };
            let (lazy, whole) = match step.c.rem_euclid(6) {
                0 => (freestone::less(&a.lazy, &b.lazy), of(f64::lt)),
                1 => (freestone::less_equal(&a.lazy, &b.lazy), of(f64::le)),
                2 => (freestone::greater(&a.lazy, &b.lazy), of(f64::gt)),
                3 => (freestone::greater_equal(&a.lazy, &b.lazy), of(f64::ge)),
                4 => (freestone::equal(&a.lazy, &b.lazy), of(f64::eq)),
                _ => (freestone::not_equal(&a.lazy, &b.lazy), of(f64::ne)),
            };
            ("compare", lazy, whole, DType::Bool)
        }
        6 | 26 => {
            let b = partner(a, pool, step);
            let dtype = promoted(a.dtype, b.dtype)?;
            let fits = |p: &&Pair| {
                p.dtype == DType::Bool
                    && common_shape(p.whole.shape(), a.whole.shape())
                        .is_some_and(|s| common_shape(&s, b.whole.shape()).is_some())
            };
            let condition = pool.iter().find(fits)?;
            let shape = common_shape(
                &common_shape(condition.whole.shape(), a.whole.shape())?,
                b.whole.shape(),
            )?;
            let (c, mut x, y) = (
                broadcast(&condition.whole, &shape),
                broadcast(&a.whole, &shape),
                broadcast(&b.whole, &shape),
            );
            ndarray::Zip::from(&mut x)
                .and(&c)
                .and(&y)
                .for_each(|x, c, y| *x = rounded(if *c != 0.0 { *x } else { *y }, dtype));
            ("where", freestone::where_(&condition.lazy, &a.lazy, &b.lazy), x, dtype)
        }
        7 | 24 => {
            let to = DTYPES[step.a.unsigned_abs() as usize % DTYPES.len()];
            ("astype", a.lazy.astype(to), a.whole.mapv(|x| cast(x, a.dtype, to)), to)
        }
        9 | 14..=16 if a.dtype != DType::Bool => match step.a.rem_euclid(4) {
            0 if float => ("negative", -&a.lazy, a.whole.mapv(|x| -x), a.dtype),
            0 => ("negative", -&a.lazy, a.whole.mapv(|x| wrapped(-(x as i128), a.dtype)), a.dtype),
            1 if float => (
                "sqrt",
                freestone::sqrt(&a.lazy),
                a.whole.mapv(|x| rounded(x.sqrt(), a.dtype)),
                a.dtype,
            ),
            2 if float => {
                ("round", freestone::round(&a.lazy), a.whole.mapv(f64::round_ties_even), a.dtype)
            }
            _ if float => ("abs", freestone::abs(&a.lazy), a.whole.mapv(f64::abs), a.dtype),
            _ => (
                "abs",
                freestone::abs(&a.lazy),
                a.whole.mapv(|x| wrapped((x as i128).abs(), a.dtype)),
                a.dtype,
            ),
        },
        9 | 14..=16 => ("not", freestone::logical_not(&a.lazy), a.whole.mapv(|x| 1.0 - x), a.dtype),
        10 | 11 if float => (
            "number",
            2.5 - &(&a.lazy * 3.0),
            a.whole.mapv(|x| rounded(2.5 - rounded(x * 3.0, a.dtype), a.dtype)),
            a.dtype,
        ),
        10 | 11 if a.dtype != DType::Bool => {
            ("number", &a.lazy * 3, a.whole.mapv(|x| wrapped(x as i128 * 3, a.dtype)), a.dtype)
        }
        12 | 13 => {
            let (axis, n) = (axis?, a.whole.shape()[axis?] as i64);
            // Not too often empty.
            let bound = |x: i8| (x % 3 == 0).then_some(i64::from(x) % (n + 3));
            let (start, stop) = (bound(step.b), bound(step.c));
            let pace = [1, 2, -1, 3, -2, -3, 7, -7][step.operand as usize % 8];
            let indices = python_slice(start, stop, pace, n);
            (
                "slice",
                a.lazy.slice(freestone::Slice::new(start, stop, pace), axis as i64),
                a.whole.select(Axis(axis), &indices),
                a.dtype,
            )
        }
        17 => {
            let (axis, n) = (axis?, a.whole.shape()[axis?]);
            let at = (n > 0).then(|| step.b.unsigned_abs() as usize % n)?;
            let from_end = if step.c < 0 { at as i64 - n as i64 } else { at as i64 };
            (
                "at",
                a.lazy.at(from_end, axis as i64 - rank as i64),
                a.whole.index_axis(Axis(axis), at).to_owned(),
                a.dtype,
            )
        }
        18 => {
            let mut whole = a.whole.clone();
            whole.invert_axis(Axis(axis?));
            ("flip", a.lazy.flip(axis? as i64), whole, a.dtype)
        }
        19 | 20 => {
            let mut order: Vec<usize> = (0..rank).collect();
            order.rotate_left(axis?);
            if step.b % 2 == 0 {
                order.reverse();
            }
            let axes: Vec<i64> = order.iter().map(|d| *d as i64).collect();
            (
                "permute_dims",
                a.lazy.permute_dims(&axes),
                a.whole.clone().permuted_axes(IxDyn(&order)).as_standard_layout().into_owned(),
                a.dtype,
            )
        }
        21 if rank < 4 => {
            let at = step.b.unsigned_abs() as usize % (rank + 1);
            (
                "expand_dims",
                a.lazy.expand_dims(at as i64),
                a.whole.clone().insert_axis(Axis(at)),
                a.dtype,
            )
        }
        22 | 23 => {
            let chunks: Vec<u64> = (0..rank)
                .map(|d| u64::from([step.a, step.b, step.c, step.a][d].unsigned_abs()) % 9 + 1)
                .collect();
            ("rechunk", a.lazy.rechunk(&chunks), a.whole.clone(), a.dtype)
        }
        36..=47 => return rearrange(a, pool, step, names),
        48..=55 => return more(a, pool, step, names),
        _ => return reduce(a, step, names),
    };
    names.push(name);
    Some(Pair { lazy, whole, dtype })
}

/// Quotient towards -infinity and remainder; of nothing 0, as the library has it.
fn floored(x: i128, y: i128) -> (i128, i128) {
    let q = if y == 0 { 0 } else { x.div_euclid(y) - i128::from(y < 0 && x.rem_euclid(y) != 0) };
    (q, if y == 0 { 0 } else { x - q * y })
}

/// Functions that came later, on numbers above those of the others.
fn more(a: &Pair, pool: &[Pair], step: &Step, names: &mut Vec<&'static str>) -> Option<Pair> {
    let axis = (a.whole.ndim() > 0).then(|| step.a.unsigned_abs() as usize % a.whole.ndim());
    let float = matches!(a.dtype, DType::Float32 | DType::Float64);
    let (name, lazy, whole, dtype) = match step.op % 56 {
        48 | 49 if a.dtype != DType::Bool => {
            let of = |f: fn(f64) -> f64| a.whole.mapv(|x| rounded(f(x), a.dtype));
            match step.a.rem_euclid(5) {
                0 => ("floor", freestone::floor(&a.lazy), of(f64::floor), a.dtype),
                1 => ("ceil", freestone::ceil(&a.lazy), of(f64::ceil), a.dtype),
                2 => ("trunc", freestone::trunc(&a.lazy), of(f64::trunc), a.dtype),
                3 => (
                    "sign",
                    freestone::sign(&a.lazy),
                    of(|x| if x == 0.0 { x } else { x.signum() }),
                    a.dtype,
                ),
                _ if float => ("square", freestone::square(&a.lazy), of(|x| x * x), a.dtype),
                _ => (
                    "square",
                    freestone::square(&a.lazy),
                    a.whole.mapv(|x| wrapped(x as i128 * x as i128, a.dtype)),
                    a.dtype,
                ),
            }
        }
        50 => {
            // Quotients of floats where both are multiples of 2^-16, which is exact.
            let b = partner(a, pool, step);
            let dtype = promoted(a.dtype, b.dtype).filter(|d| *d != DType::Bool)?;
            if !(dtype.is_integer() || is_tame(&a.whole) && is_tame(&b.whole)) {
                return None;
            }
            let scale = if dtype.is_integer() { 1.0 } else { 65_536.0 };
            let exact = |x: f64, y: f64| floored((x * scale) as i128, (y * scale) as i128);
            let nothing =
                |x: f64, y: f64| !dtype.is_integer() && (x.is_nan() || y.is_nan() || y == 0.0);
            let held = |x: f64| {
                if dtype.is_integer() { wrapped(x as i128, dtype) } else { rounded(x, dtype) }
            };
            if step.c % 2 == 0 {
                let whole = zip(&a.whole, &b.whole, |x, y| {
                    if nothing(x, y) { x / y } else { held(exact(x, y).0 as f64) }
                });
                // More digits than float32 has.
                if whole.iter().any(|q| q.is_finite() && q.abs() > 1e6) && dtype == DType::Float32 {
                    return None;
                }
                ("floor_divide", freestone::floor_divide(&a.lazy, &b.lazy), whole, dtype)
            } else {
                let whole = zip(&a.whole, &b.whole, |x, y| {
                    if nothing(x, y) { f64::NAN } else { held(exact(x, y).1 as f64 / scale) }
                });
                ("remainder", freestone::remainder(&a.lazy, &b.lazy), whole, dtype)
            }
        }
        51 => {
            let b = partner(a, pool, step);
            let dtype =
                promoted(a.dtype, b.dtype).filter(|d| *d == DType::Bool || d.is_integer())?;
            let of = |f: fn(i128, i128) -> i128| {
                zip(&a.whole, &b.whole, |x, y| rounded(f(x as i128, y as i128) as f64, dtype))
            };
            match step.c.rem_euclid(3) {
                0 => (
                    "bitwise_and",
                    freestone::bitwise_and(&a.lazy, &b.lazy),
                    of(|x, y| x & y),
                    dtype,
                ),
                1 => {
                    ("bitwise_or", freestone::bitwise_or(&a.lazy, &b.lazy), of(|x, y| x | y), dtype)
                }
                _ => (
                    "bitwise_xor",
                    freestone::bitwise_xor(&a.lazy, &b.lazy),
                    of(|x, y| x ^ y),
                    dtype,
                ),
            }
        }
        52 if a.dtype != DType::Bool => {
            let low = i64::from(step.b % 5)
                + if matches!(a.dtype, DType::UInt8 | DType::UInt64) { 5 } else { 0 };
            let high = low + i64::from(step.c % 7).abs();
            let bounded = |x: f64| if x.is_nan() { x } else { x.clamp(low as f64, high as f64) };
            (
                "clip",
                freestone::clip(&a.lazy, Some(low.into()), Some(high.into())),
                a.whole.mapv(bounded),
                a.dtype,
            )
        }
        53 if a.dtype.is_integer() => {
            // Of ones and twos: powers of 2, which `f64` holds.
            let (axis, dtype) = (
                axis?,
                if matches!(a.dtype, DType::UInt8 | DType::UInt64) {
                    DType::UInt64
                } else {
                    DType::Int64
                },
            );
            let odd = freestone::add(freestone::bitwise_and(&a.lazy, 1), 1);
            let whole = a.whole.mapv(|x| (x as i128 & 1) as f64 + 1.0).fold_axis(
                Axis(axis),
                1.0,
                |x, y| x * y,
            );
            ("prod", odd.prod(axis as i64), whole, dtype)
        }
        54 | 55 => {
            let (axis, n) = (axis?, step.b.unsigned_abs() % 3);
            let mut whole = a.whole.clone();
            for _ in 0..n {
                let len = whole.shape()[axis];
                let (mut high, mut low) = (whole.clone(), whole);
                high.slice_axis_inplace(Axis(axis), Slice::from(1.min(len)..));
                low.slice_axis_inplace(Axis(axis), Slice::from(..len.saturating_sub(1)));
                whole = match a.dtype {
                    DType::Bool => zip(&high, &low, |x, y| f64::from(u8::from(x != y))),
                    d if d.is_integer() => {
                        zip(&high, &low, |x, y| wrapped(x as i128 - y as i128, d))
                    }
                    d => zip(&high, &low, |x, y| rounded(x - y, d)),
                };
            }
            ("diff", a.lazy.diff(n.into(), axis as i64), whole, a.dtype)
        }
        _ => return None,
    };
    names.push(name);
    lazy.check().unwrap_or_else(|e| panic!("{name}: {e}"));
    Some(Pair { lazy, whole, dtype })
}

/// What two operands are promoted to. Not `uint64` beside signed integers: the oracle does not
/// round them before it computes.
pub fn promoted(left: DType, right: DType) -> Option<DType> {
    let dtype = left.promote(right);
    (dtype != DType::Float64 || !(left.is_integer() && right.is_integer())).then_some(dtype)
}

pub fn python_slice(start: Option<i64>, stop: Option<i64>, step: i64, n: i64) -> Vec<usize> {
    // PySlice_AdjustIndices.
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

fn reduce(a: &Pair, step: &Step, names: &mut Vec<&'static str>) -> Option<Pair> {
    let rank = a.whole.ndim();
    let axes: Vec<usize> = (0..rank).filter(|d| step.a >> d & 1 == 1).collect();
    let given: Axes = axes
        .iter()
        .map(|d| if step.b < 0 { *d as i64 - rank as i64 } else { *d as i64 })
        .collect::<Vec<_>>()
        .into();
    let given: Axes = if axes.len() == rank && step.c % 3 == 0 { ().into() } else { given };
    let keepdims = step.b % 2 == 0;
    let given = if keepdims { Reduce::axes(given).keepdims() } else { Reduce::axes(given) };
    if step.operand.is_multiple_of(3) {
        return truth(a, step, &axes, given, names);
    }
    if a.dtype == DType::Bool || !is_tame(&a.whole) {
        return None;
    }
    let fold = |start: f64, f: fn(f64, f64) -> f64| {
        let mut whole = a.whole.clone();
        for d in &axes {
            whole = whole.fold_axis(Axis(*d), start, |x, y| f(*x, *y)).insert_axis(Axis(*d));
        }
        whole
    };
    let count: f64 = axes.iter().map(|d| a.whole.shape()[*d]).product::<usize>() as f64;
    let float = matches!(a.dtype, DType::Float32 | DType::Float64);
    let kind = step.c.rem_euclid(4);
    if kind > 1 && count == 0.0 {
        let refused = if kind == 2 { a.lazy.min(given) } else { a.lazy.max(given) };
        assert!(refused.check().is_err(), "an extreme of nothing");
        return None;
    }
    let sum_dtype = if float {
        a.dtype
    } else if matches!(a.dtype, DType::UInt8 | DType::UInt64) {
        DType::UInt64
    } else {
        DType::Int64
    };
    let mean_dtype = if float { a.dtype } else { DType::Float64 };
    let (name, lazy, whole, dtype) = match kind {
        0 => ("sum", a.lazy.sum(given), fold(0.0, |x, y| x + y), sum_dtype),
        1 => ("mean", a.lazy.mean(given), fold(0.0, |x, y| x + y) / count, mean_dtype),
        2 => ("min", a.lazy.min(given), fold(f64::INFINITY, least), a.dtype),
        _ => ("max", a.lazy.max(given), fold(f64::NEG_INFINITY, |x, y| -least(-x, -y)), a.dtype),
    };
    let mut whole = whole.mapv(|x| rounded(x, dtype));
    if !keepdims {
        for d in axes.iter().rev() {
            whole = whole.index_axis_move(Axis(*d), 0);
        }
    }
    names.push(name);
    Some(Pair { lazy: lazy, whole, dtype })
}

/// Reductions to bools, counts and positions.
fn truth(
    a: &Pair,
    step: &Step,
    axes: &[usize],
    along: Reduce,
    names: &mut Vec<&'static str>,
) -> Option<Pair> {
    let keepdims = step.b % 2 == 0;
    // The values along the reduced axes, in C order, for each kept element.
    let shape = a.whole.shape();
    let (kept, len): (Vec<usize>, usize) = (
        (0..shape.len()).filter(|d| !axes.contains(d)).collect(),
        axes.iter().map(|d| shape[*d]).product(),
    );
    let order: Vec<usize> = kept.iter().chain(axes).copied().collect();
    let rows: Vec<f64> = a.whole.clone().permuted_axes(IxDyn(&order)).iter().copied().collect();
    let out: Vec<usize> = (0..shape.len())
        .filter(|d| keepdims || kept.contains(d))
        .map(|d| if kept.contains(&d) { shape[d] } else { 1 })
        .collect();
    let n: usize = kept.iter().map(|d| shape[*d]).product();
    let fold = |f: &dyn Fn(&[f64]) -> f64| {
        let values = (0..n).map(|i| f(&rows[i * len..(i + 1) * len])).collect();
        ArrayD::from_shape_vec(IxDyn(&out), values).unwrap()
    };
    let positions = axes.len() == 1 || axes.len() == shape.len();
    let (name, lazy, whole, dtype) = match step.c.rem_euclid(5) {
        0 => (
            "any",
            a.lazy.any(along),
            fold(&|v| f64::from(u8::from(v.iter().any(|x| *x != 0.0)))),
            DType::Bool,
        ),
        1 => (
            "all",
            a.lazy.all(along),
            fold(&|v| f64::from(u8::from(v.iter().all(|x| *x != 0.0)))),
            DType::Bool,
        ),
        2 => (
            "count_nonzero",
            a.lazy.count_nonzero(along),
            fold(&|v| v.iter().filter(|x| **x != 0.0).count() as f64),
            DType::Int64,
        ),
        kind if positions && len > 0 && a.dtype != DType::Bool => {
            let along = match (axes.len() == 1, keepdims) {
                (true, _) => along,
                (false, true) => Reduce::all().keepdims(),
                (false, false) => Reduce::all(),
            };
            let sign = if kind == 3 { 1.0 } else { -1.0 };
            let first = |v: &[f64]| {
                let best =
                    |i: usize, x: f64| v[i].is_nan() || (!x.is_nan() && sign * v[i] <= sign * x);
                (1..v.len()).fold(0, |i, j| if best(i, v[j]) { i } else { j }) as f64
            };
            if kind == 3 {
                ("argmin", a.lazy.argmin(along), fold(&first), DType::Int64)
            } else {
                ("argmax", a.lazy.argmax(along), fold(&first), DType::Int64)
            }
        }
        _ => return None,
    };
    names.push(name);
    Some(Pair { lazy: lazy, whole, dtype })
}

/// What the library computes, as the oracle holds it.
pub fn computed(pair: &Pair, spec: &Spec) -> Result<ArrayD<f64>, freestone::Error> {
    Ok(match pair.dtype {
        DType::Bool => {
            freestone::compute::<freestone_engine::kernels::dtype::Bool>(&pair.lazy, spec)?
                .mapv(|x| f64::from(x.0))
        }
        DType::Float32 => freestone::compute::<f32>(&pair.lazy, spec)?.mapv(f64::from),
        DType::Float64 => freestone::compute::<f64>(&pair.lazy, spec)?,
        DType::Int16 => freestone::compute::<i16>(&pair.lazy, spec)?.mapv(f64::from),
        DType::Int32 => freestone::compute::<i32>(&pair.lazy, spec)?.mapv(f64::from),
        DType::Int64 => freestone::compute::<i64>(&pair.lazy, spec)?.mapv(|x| x as f64),
        DType::UInt64 => freestone::compute::<u64>(&pair.lazy, spec)?.mapv(|x| x as f64),
        _ => freestone::compute::<u8>(&pair.lazy, spec)?.mapv(f64::from),
    })
}

#[derive(Default, Debug)]
struct Statistics {
    cases: usize,
    many_chunks_on_two_axes: usize,
    two_stages: usize,
    empty: usize,
    elements_compared: usize,
    operations: BTreeMap<&'static str, usize>,
}

fn run(
    program: &Program,
    place: &Place,
    statistics: &RefCell<Statistics>,
) -> Result<(), TestCaseError> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut pool: Vec<Pair> =
        program.inputs.iter().enumerate().map(|(i, input)| stored(input, i, &store)).collect();
    let names = apply_all(&mut pool, &program.steps);
    let codec = [CodecName::None, CodecName::Zstd(0), CodecName::Lz4][program.codec as usize];
    let spec = Spec { parallelism: program.parallelism, codec: codec.into(), ..place.spec() };
    let made = &pool[program.inputs.len().min(pool.len() - 1)..];
    for pair in made.iter().rev().take(2) {
        let shape: Vec<usize> = pair
            .lazy
            .shape()
            .map_err(|e| TestCaseError::fail(e.to_string()))?
            .iter()
            .map(|n| *n as usize)
            .collect();
        prop_assert_eq!(&shape[..], pair.whole.shape(), "{:?}", names);
        prop_assert_eq!(pair.lazy.dtype().unwrap(), pair.dtype, "{:?}", names);
        let found =
            computed(pair, &spec).map_err(|e| TestCaseError::fail(format!("{names:?}: {e}")))?;
        let same = |x: &f64, y: &f64| x == y || (x.is_nan() && y.is_nan());
        let differ = found.iter().zip(pair.whole.iter()).position(|(x, y)| !same(x, y));
        prop_assert!(
            differ.is_none(),
            "element {:?} after {:?}\n found {}\n expected {}",
            differ,
            names,
            found,
            pair.whole
        );
        statistics.borrow_mut().elements_compared += found.len();
    }
    let mut s = statistics.borrow_mut();
    let many = |i: &Input| {
        i.axes.iter().all(|a| a.0 > 0) && i.axes.iter().filter(|a| a.0 > a.1).count() >= 2
    };
    s.cases += 1;
    s.many_chunks_on_two_axes += usize::from(program.inputs.iter().any(many));
    s.two_stages += usize::from(
        names.iter().filter(|n| ["sum", "mean", "min", "max", "rechunk"].contains(n)).count() >= 2,
    );
    s.empty += usize::from(pool.iter().any(|p| p.whole.is_empty()));
    names.iter().for_each(|n| *s.operations.entry(n).or_default() += 1);
    Ok(())
}

/// The law that everything else rests on. More cases: `PROPTEST_CASES=5000`, another seed:
/// `PROPTEST_RNG_SEED=1`.
#[test]
fn any_program_in_any_chunking_is_what_ndarray_gives() {
    let place = Place::quick();
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 1000;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(20_240_229);
    }
    let statistics = RefCell::default();
    let ended =
        TestRunner::new(config).run(&programs(), |program| run(&program, &place, &statistics));
    if let Err(error) = ended {
        panic!("{error}");
    }
    let s = statistics.into_inner();
    println!("{s:#?}");
    assert!(2 * s.many_chunks_on_two_axes >= s.cases, "{s:?}");
    assert!(s.operations.len() >= 20 && s.operations.values().all(|n| *n >= 5), "{s:?}");
}

#[test]
fn the_writer_of_these_tests_writes_what_the_library_opens() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let pair = stored(&Input { axes: vec![(7, 3), (5, 2)], dtype: 0, seed: 3 }, 0, &store);
    assert_eq!(open_array(&store, "input-0").unwrap().info.grid.chunk_counts(), [3, 3]);
    let place = Place::quick();
    assert_eq!(computed(&pair, &place.spec()).unwrap(), pair.whole);
}

/// They were taken for one input, of one dtype.
#[test]
fn views_of_nothing_in_several_dtypes() {
    let place = Place::quick();
    let empty = |dtype| freestone::zeros(&[2, 0], dtype, &[1, 1]).roll(1, 0);
    let sum = &empty(DType::Float64) + &(&empty(DType::Float32) + &empty(DType::Float64));
    assert_eq!(freestone::compute::<f64>(&sum, &place.spec()).unwrap().shape(), [2, 0]);
}
