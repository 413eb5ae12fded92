//! Reductions of random programs.

use freestone::{Axes, DType, Reduce};
use ndarray::{ArrayD, Axis, IxDyn};

use super::oracle::{is_tame, least, rounded};
use super::{Pair, Step};

pub(super) fn reduce(a: &Pair, step: &Step, names: &mut Vec<&'static str>) -> Option<Pair> {
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
        return logical_or_position(a, step, &axes, given, names);
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
        assert!(refused.check().is_err(), "the minimum of an empty array");
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
    Some(Pair { lazy, whole, dtype })
}

/// Applies a reduction to bools, counts or positions.
fn logical_or_position(
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
    Some(Pair { lazy, whole, dtype })
}
