//! Reductions, and cumulative sums and products.

use std::cmp::Ordering;

use freestone::DType;
use freestone_expr::vocabulary::Value;
use ndarray::{ArrayD, Axis, IxDyn};

use super::elementwise::C;
use super::{Case, FLOATS, NUMERIC, Other, Pair, REALS, SOME, full, ints, other};
use crate::elements::Element::{self, Complex, Int, Real};
use crate::elements::Near::{self, Exact, Ulps};
use crate::elements::{is_complex, is_signed, list, ulps};
use crate::support::Place;
use DType::*;

/// Reductions and cumulative functions.
pub(super) static REDUCED: &[Other] = &[
    other("sum", SOME, |c| {
        let x = c.cube();
        reduction(c, &x, summed(c.dtype), &[], Exact, &total);
        let wider = if is_complex(c.dtype) { Complex128 } else { Float64 };
        reduction(c, &x, wider, &[("dtype", Value::DType(wider))], Exact, &|v| total(v).fit(wider));
    }),
    other("prod", NUMERIC, |c| {
        // Powers of 2, so that floats are exact too; integers wrap.
        let value = |_| match c.dtype {
            d if is_complex(d) => Complex(
                [C::new(1.0, 0.0), C::new(0.0, -1.0), C::new(0.0, 2.0), C::new(-0.5, 0.0)]
                    [(4.0 * c.draw()) as usize],
            ),
            d if d.is_integer() => {
                Int(1 + (3.0 * c.draw()) as i128 - if is_signed(d) { 4 } else { 0 })
            }
            _ => Real([1.0, -2.0, 0.5, -1.0][(4.0 * c.draw()) as usize]),
        };
        let x = c.pair(ArrayD::from_shape_fn(IxDyn(&[4, 6, 10]), |_| value(())), c.dtype);
        reduction(c, &x, summed(c.dtype), &[], Exact, &product);
        if c.dtype.is_integer() {
            reduction(c, &x, Int32, &[("dtype", Value::DType(Int32))], Exact, &product);
        }
    }),
    other("cumulative_sum", SOME, |c| running(c, &c.cube(), summed(c.dtype), &total)),
    other("cumulative_prod", NUMERIC, |c| {
        let value = |_| match c.dtype {
            d if is_complex(d) => {
                Complex([C::new(1.0, 0.0), C::new(0.0, -1.0)][(2.0 * c.draw()) as usize])
            }
            d if d.is_integer() => Int(1 + (2.0 * c.draw()) as i128),
            _ => Real([1.0, -2.0, 0.5, -1.0][(4.0 * c.draw()) as usize]),
        };
        let x = c.pair(ArrayD::from_shape_fn(IxDyn(&[4, 6, 5]), |_| value(())), c.dtype);
        running(c, &x, summed(c.dtype), &product);
    }),
    other("mean", SOME, |c| {
        let dtype = averaged(c.dtype);
        reduction(c, &c.cube(), dtype, &[], Ulps(1), &|v| {
            let (sum, n) = (total(v), v.len() as f64);
            if let Complex(sum) = sum { Complex(sum / n) } else { Real(sum.real() / n) }
        });
    }),
    other("var", FLOATS, var_or_std),
    other("std", FLOATS, var_or_std),
    other("min", REALS, |c| {
        reduction(c, &c.cube(), c.dtype, &[], Exact, &|v| {
            v[first_best(v, Ordering::Less).int() as usize]
        })
    }),
    other("max", REALS, |c| {
        reduction(c, &c.cube(), c.dtype, &[], Exact, &|v| {
            v[first_best(v, Ordering::Greater).int() as usize]
        })
    }),
    other("argmin", REALS, |c| {
        reduction(c, &c.of(c.dtype, &[4, 6, 10], (-3.0, 3.0)), Int64, &[], Exact, &|v| {
            first_best(v, Ordering::Less)
        })
    }),
    other("argmax", REALS, |c| {
        reduction(c, &c.of(c.dtype, &[4, 6, 10], (-3.0, 3.0)), Int64, &[], Exact, &|v| {
            first_best(v, Ordering::Greater)
        })
    }),
    other("count_nonzero", SOME, |c| {
        let x = c.of(c.dtype, &[4, 6, 10], (-0.1, 0.1));
        reduction(c, &x, Int64, &[], Exact, &|v| {
            Int(v.iter().filter(|x| x.truth()).count() as i128)
        });
    }),
    other("all", SOME, |c| {
        reduction(c, &c.of(c.dtype, &[4, 6, 10], (-0.2, 9.0)), Bool, &[], Exact, &|v| {
            Element::Bool(v.iter().all(|x| x.truth()))
        })
    }),
    other("any", SOME, |c| {
        reduction(c, &c.of(c.dtype, &[4, 6, 10], (-0.02, 0.02)), Bool, &[], Exact, &|v| {
            Element::Bool(v.iter().any(|x| x.truth()))
        })
    }),
];

/// Sums of `float64` are nearly as if rounded once, also if rounding would lose each term.
#[test]
fn sums_are_compensated() {
    let place = Place::quick();
    let n = 1_000_001;
    let check = |what: &str, values: Vec<f64>, exact: f64| {
        let line = ndarray::Array::from_shape_vec(IxDyn(&[n]), values).unwrap();
        // One contiguous row, two rows, and two columns.
        let twice = |axis| {
            ndarray::stack(Axis(axis), &[line.view(), line.view()])
                .unwrap()
                .as_standard_layout()
                .into_owned()
        };
        for (whole, axis) in [(line.clone(), 0), (twice(0), 1), (twice(1), 0)] {
            let array = freestone::asarray(&whole).sum(axis);
            for x in freestone::compute::<f64>(&array, &place.spec()).unwrap() {
                assert!(
                    ulps(x, exact, Float64) <= 1,
                    "{what} of {:?} along {axis}: {x:?}, not {exact:?}",
                    whole.shape()
                );
            }
        }
    };
    let with = |first: f64, rest: &dyn Fn(usize) -> f64| {
        std::iter::once(first).chain((1..n).map(rest)).collect::<Vec<_>>()
    };
    check("1 and 1e-16 a million times", with(1.0, &|_| 1e-16), 1.0 + 1e-10);
    check("1e16 and 1 a million times", with(1e16, &|_| 1.0), 1e16 + 1e6);
    check("cancelling terms", with(1.0, &|i| [1e16, 3.0, -1e16, -3.0][i % 4]), 1.0);
    check("a tenth", vec![0.1; n], 100_000.1);
}

/// Applies `f` to the elements along axes, in C order.
fn fold(
    a: &ArrayD<Element>,
    axes: &[usize],
    keepdims: bool,
    f: &dyn Fn(&[Element]) -> Element,
) -> ArrayD<Element> {
    let shape = a.shape();
    let kept: Vec<usize> = (0..shape.len()).filter(|d| !axes.contains(d)).collect();
    let order: Vec<usize> = kept.iter().chain(axes).copied().collect();
    let values: Vec<Element> = a.clone().permuted_axes(IxDyn(&order)).iter().copied().collect();
    let len = axes.iter().map(|d| shape[*d]).product::<usize>();
    let out: Vec<usize> = (0..shape.len())
        .filter(|d| keepdims || kept.contains(d))
        .map(|d| if kept.contains(&d) { shape[d] } else { 1 })
        .collect();
    let results = values.chunks(len).map(f).collect();
    ArrayD::from_shape_vec(IxDyn(&out), results).unwrap()
}

/// Checks a reduction along all axes, one, and several; every other time with `keepdims`.
fn reduction(
    c: &Case<'_>,
    x: &Pair,
    dtype: DType,
    named: &[(&'static str, Value)],
    near: Near,
    f: &dyn Fn(&[Element]) -> Element,
) {
    let positions = c.name.starts_with("arg");
    let along: &[(Value, &[usize])] = &[
        (Value::None, &[0, 1, 2]),
        (Value::Int(0), &[0]),
        (Value::Int(1), &[1]),
        (Value::Int(-1), &[2]),
        (ints(&[0, 2]), &[0, 2]),
        (ints(&[-1, -2]), &[1, 2]),
    ];
    for (i, (axis, axes)) in along
        .iter()
        .enumerate()
        .filter(|(_, (axis, _))| !positions || !matches!(axis, Value::Sequence(_)))
    {
        let keepdims = (i + c.chunking) % 2 == 1;
        let whole = fold(&x.whole, axes, keepdims, &|v| f(v).fit(dtype));
        let all = [&[("axis", axis.clone()), ("keepdims", Value::Bool(keepdims))], named].concat();
        c.check(vec![x.lazy.clone()], all, &[(dtype, whole)], near);
    }
}

pub(super) fn total(v: &[Element]) -> Element {
    v.iter().fold(Int(0), |s, x| match x {
        Complex(x) => Complex(s.complex() + x),
        Real(x) => Real(s.real() + x),
        x => Int(s.int() + x.int()),
    })
}

pub(super) fn product(v: &[Element]) -> Element {
    v.iter().fold(Int(1), |s, x| match x {
        Complex(x) => Complex(s.complex() * x),
        Real(x) => Real(s.real() * x),
        x => Int(s.int().wrapping_mul(x.int())),
    })
}

/// Returns the dtype of sums: the widest integer of the same sign, or the float dtype itself.
fn summed(dtype: DType) -> DType {
    match dtype {
        UInt8 | UInt16 | UInt32 | UInt64 => UInt64,
        d if d.is_integer() || d == Bool => Int64,
        d => d,
    }
}

fn averaged(dtype: DType) -> DType {
    if dtype.is_integer() || dtype == Bool { Float64 } else { dtype }
}

/// Returns the variance, in two passes.
fn variance(v: &[Element], correction: f64) -> f64 {
    let n = v.len() as f64;
    let mean = v.iter().map(|x| x.real()).sum::<f64>() / n;
    v.iter().map(|x| (x.real() - mean).powi(2)).sum::<f64>() / (n - correction)
}

fn first_best(v: &[Element], better: Ordering) -> Element {
    Int((1..v.len()).fold(0, |at, i| if v[i].order(v[at]) == Some(better) { i } else { at })
        as i128)
}

fn var_or_std(c: &Case<'_>) {
    let x = c.cube();
    let root = c.name == "std";
    let finish = move |v: f64| Real(if root { v.sqrt() } else { v });
    reduction(c, &x, averaged(c.dtype), &[], Ulps(16), &|v| finish(variance(v, 0.0)));
    for (given, correction) in
        [(Value::Int(1), 1.0), (Value::Float(1.5), 1.5), (Value::Float(-2.0), -2.0)]
    {
        reduction(c, &x, averaged(c.dtype), &[("correction", given)], Ulps(16), &|v| {
            finish(variance(v, correction))
        });
    }
    if c.dtype == Float64 {
        // Values far from 0, for which sums of squares lose all digits.
        let far = c.pair(list([4.0, 7.0, 13.0, 16.0].map(|x| Real(x + 1e9)).to_vec()), Float64);
        for (correction, var) in [(0, 22.5), (1, 30.0)] {
            c.check(
                vec![far.lazy.clone()],
                vec![("correction", Value::Int(correction))],
                &[(Float64, full(&[], finish(var)))],
                Exact,
            );
        }
    }
}

/// Checks a cumulative sum or product along each axis, with and without the initial value.
fn running(c: &Case<'_>, x: &Pair, dtype: DType, f: &dyn Fn(&[Element]) -> Element) {
    for axis in [0, 1, -1i64] {
        let at = if axis < 0 { x.whole.ndim() - 1 } else { axis as usize };
        for initial in [false, true] {
            let mut shape = x.whole.shape().to_vec();
            shape[at] += usize::from(initial);
            let whole = ArrayD::from_shape_fn(IxDyn(&shape), |index| {
                let mut here = index.clone();
                let before: Vec<Element> = (0..index[at] + usize::from(!initial))
                    .map(|i| {
                        here[at] = i;
                        x.whole[&here]
                    })
                    .collect();
                f(&before).fit(dtype)
            });
            let named =
                vec![("axis", Value::Int(axis.into())), ("include_initial", Value::Bool(initial))];
            c.check(vec![x.lazy.clone()], named, &[(dtype, whole)], Exact);
        }
    }
}
