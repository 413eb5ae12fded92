//! Generated arrays: ranges, constants, given values, and random values as their papers define
//! them.

use std::f64::consts::TAU;

use freestone::DType;
use freestone_expr::vocabulary::{Value, function};
use ndarray::{ArrayD, IxDyn};

use super::elementwise::C;
use super::{Case, EVERY, INTEGERS, Other, REALS, SOME, full, ints, other};
use crate::elements::Element::{self, Complex, Int, Real};
use crate::elements::Near::{Exact, Ulps};
use crate::elements::{computed, is_signed, list};
use crate::support::Place;
use DType::*;

const FLOATING: &[DType] = &[Float32, Float64];

/// Functions that generate arrays.
pub(super) static MADE: &[Other] = &[
    other("arange", REALS, |c| {
        let call =
            |start: Value, more: Vec<Value>, dtype: Option<DType>, own: DType, values: Vec<f64>| {
                let dtyped = dtype.map(|d| ("dtype", Value::DType(d)));
                let result = dtype.unwrap_or(own);
                let named = dtyped
                    .into_iter()
                    .chain([("chunks", Value::Int([12, 6, 5, 1][c.chunking]))])
                    .collect();
                c.check(
                    [vec![start], more].concat(),
                    named,
                    &[(result, list(values.into_iter().map(|x| Real(x).fit(result)).collect()))],
                    Ulps(1),
                );
            };
        use Value::{Float, Int};
        call(Int(12), vec![], Some(c.dtype), c.dtype, (0..12).map(f64::from).collect());
        call(Int(12), vec![], None, Int64, (0..12).map(f64::from).collect());
        call(Int(1), vec![Int(12), Int(3)], Some(c.dtype), c.dtype, vec![1.0, 4.0, 7.0, 10.0]);
        call(Int(0), vec![Int(12), Int(3)], None, Int64, vec![0.0, 3.0, 6.0, 9.0]);
        call(
            Int(17),
            vec![Int(-1), Int(-3)],
            Some(c.dtype),
            c.dtype,
            vec![17.0, 14.0, 11.0, 8.0, 5.0, 2.0],
        );
        call(Int(5), vec![Int(5)], Some(c.dtype), c.dtype, vec![]);
        call(Int(5), vec![Int(1)], Some(c.dtype), c.dtype, vec![]);
        call(
            Float(1.4),
            vec![Float(4.9), Float(0.4)],
            None,
            Float64,
            (0..9).map(|i| 1.4 + 0.4 * f64::from(i)).collect(),
        );
        call(
            Float(2.0),
            vec![Float(-2.0), Float(-0.5)],
            None,
            Float64,
            (0..8).map(|i| 2.0 - 0.5 * f64::from(i)).collect(),
        );
        c.refuses(vec![Int(5), Int(7), Int(0)], vec![]);
    }),
    other("asarray", EVERY, |c| {
        let whole = ArrayD::from_shape_fn(IxDyn(&[2, 3]), |_| c.element(c.dtype, (-9.0, 9.0)));
        let number = |x: &Element| match *x {
            Element::Bool(x) => Value::Bool(x),
            Int(x) => Value::Int(x),
            Real(x) => Value::Float(x),
            Complex(x) => Value::Complex(x.re, x.im),
        };
        let rows = |a: &ArrayD<Element>| {
            Value::Sequence(
                a.outer_iter()
                    .map(|row| Value::Sequence(row.iter().map(number).collect()))
                    .collect(),
            )
        };
        c.moves(vec![rows(&whole)], vec![("dtype", Value::DType(c.dtype))], whole.clone());
        c.moves(
            vec![number(&whole[[0, 0]])],
            vec![("dtype", Value::DType(c.dtype))],
            full(&[], whole[[0, 0]]),
        );
        let x = c.square();
        c.moves(vec![x.lazy], vec![], x.whole);
        c.refuses(vec![Value::Sequence(vec![Value::Int(1), ints(&[2])])], vec![]);
    }),
    other("empty", SOME, |c| filled(c, vec![], 0)),
    other("ones", SOME, |c| filled(c, vec![], 1)),
    other("zeros", SOME, |c| filled(c, vec![], 0)),
    other("full", SOME, |c| {
        filled(c, vec![Value::Int(1)], 1);
        c.check(
            vec![ints(&[2, 3]), Value::Float(0.5)],
            vec![c.chunks(&[2, 3])],
            &[(Float64, full(&[2, 3], Real(0.5)))],
            Exact,
        );
        c.check(
            vec![Value::Int(3), Value::Bool(true)],
            vec![],
            &[(Bool, full(&[3], Element::Bool(true)))],
            Exact,
        );
        c.check(
            vec![ints(&[]), Value::Complex(1.0, -2.0)],
            vec![],
            &[(Complex128, full(&[], Complex(C::new(1.0, -2.0))))],
            Exact,
        );
    }),
    other("empty_like", SOME, |c| filled_like(c, vec![], 0)),
    other("ones_like", SOME, |c| filled_like(c, vec![], 1)),
    other("zeros_like", SOME, |c| filled_like(c, vec![], 0)),
    other("full_like", SOME, |c| filled_like(c, vec![Value::Int(3)], 3)),
    other("eye", SOME, |c| {
        let eye = |n: usize, m: usize, k: i64| {
            ArrayD::from_shape_fn(IxDyn(&[n, m]), |at| {
                Int(i128::from(at[1] as i64 - at[0] as i64 == k)).fit(c.dtype)
            })
        };
        for (n, m, k) in [(4, 4, -1), (4, 4, 0), (4, 4, 1), (1, 3, 2), (6, 4, -3), (3, 3, 7)] {
            let named = vec![
                ("k", Value::Int(k.into())),
                ("dtype", Value::DType(c.dtype)),
                c.chunks(&[n, m]),
            ];
            c.moves(vec![Value::Int(n as i128), Value::Int(m as i128)], named, eye(n, m, k));
        }
        c.moves(vec![Value::Int(5)], vec![("dtype", Value::DType(c.dtype))], eye(5, 5, 0));
        c.check(
            vec![Value::Int(5)],
            vec![],
            &[(Float64, eye(5, 5, 0).mapv(|x| Real(x.real())))],
            Exact,
        );
    }),
    other("linspace", REALS, |c| {
        for (start, stop, n) in
            [(6.0, 49.0, 50), (1.4, 4.9, 13), (0.0, 0.0, 0), (5.0, 1.0, 5), (3.0, 8.0, 1)]
        {
            for endpoint in [true, false] {
                let intervals =
                    if endpoint { (n as f64 - 1.0).max(1.0) } else { f64::max(n as f64, 1.0) };
                let value = |i: usize| {
                    if endpoint && i + 1 == n && n > 1 {
                        stop
                    } else {
                        start + (stop - start) / intervals * i as f64
                    }
                };
                // Fractional steps cast to integers may be one less by rounding.
                if c.dtype.is_integer() && (0..n).any(|i| value(i).fract() != 0.0) {
                    continue;
                }
                let named = vec![
                    ("endpoint", Value::Bool(endpoint)),
                    ("dtype", Value::DType(c.dtype)),
                    ("chunks", Value::Int([50, 25, 5, 1][c.chunking])),
                ];
                let whole = list((0..n).map(|i| Real(value(i)).fit(c.dtype)).collect());
                c.check(
                    vec![Value::Float(start), Value::Float(stop), Value::Int(n as i128)],
                    named,
                    &[(c.dtype, whole)],
                    Ulps(2),
                );
            }
        }
        c.check(
            vec![Value::Int(0), Value::Int(1), Value::Int(3)],
            vec![],
            &[(Float64, list([0.0, 0.5, 1.0].map(Real).to_vec()))],
            Exact,
        );
    }),
    other("meshgrid", SOME, |c| {
        let arrays = [4, 6, 3].map(|n| c.of(c.dtype, &[n], (-9.0, 9.0)));
        for n in 1..=3 {
            for xy in [false, true] {
                let lazy: Vec<Value> = arrays[..n].iter().map(|a| a.lazy.clone()).collect();
                let place = |i: usize| if xy && n > 1 && i < 2 { 1 - i } else { i };
                let shape: Vec<usize> = (0..n).map(|d| arrays[place(d)].whole.len()).collect();
                let grids = (0..n).map(|i| {
                    (
                        c.dtype,
                        ArrayD::from_shape_fn(IxDyn(&shape), |at| arrays[i].whole[[at[place(i)]]]),
                    )
                });
                let named = if xy { vec![] } else { vec![("indexing", Value::Text("ij".into()))] };
                c.check(lazy, named, &grids.collect::<Vec<_>>(), Exact);
            }
        }
    }),
    other("random_integers", INTEGERS, |c| {
        let shape = [6, 7, 5];
        let (low, high) = if is_signed(c.dtype) { (-100, 28) } else { (3, 131) };
        let value = |i: usize| {
            let w = philox(i as u64 / 2, 42).map(u128::from);
            let word = w[2 * (i % 2)] << 32 | w[2 * (i % 2) + 1];
            Int(low + ((word * (high - low) as u128) >> 64) as i128)
        };
        let named =
            vec![("seed", Value::Int(42)), ("dtype", Value::DType(c.dtype)), c.chunks(&shape)];
        c.moves(
            vec![ints(&[6, 7, 5]), Value::Int(low), Value::Int(high)],
            named,
            ArrayD::from_shape_vec(IxDyn(&shape), (0..210).map(value).collect()).unwrap(),
        );
        c.refuses(vec![Value::Int(3), Value::Int(5), Value::Int(5)], vec![("seed", Value::Int(1))]);
        c.refuses(vec![Value::Int(3), Value::Int(5)], vec![("seed", Value::Int(1))]);
    }),
    other("random_normal", FLOATING, |c| {
        let shape = [6, 7, 5];
        let value = |i: usize| {
            let w = philox(i as u64 / 2, 7).map(u64::from);
            let unit =
                |high: u64, low: u64| ((high << 32 | low) >> 11) as f64 / (1u64 << 53) as f64;
            let (radius, angle) = (
                (-2.0 * (unit(w[0], w[1]) + 1.0 / (1u64 << 53) as f64).ln()).sqrt() * 0.5,
                TAU * unit(w[2], w[3]),
            );
            Real(3.0 + radius * if i.is_multiple_of(2) { angle.cos() } else { angle.sin() })
                .fit(c.dtype)
        };
        let named =
            vec![("seed", Value::Int(7)), ("dtype", Value::DType(c.dtype)), c.chunks(&shape)];
        let whole = ArrayD::from_shape_vec(IxDyn(&shape), (0..210).map(value).collect()).unwrap();
        c.check(
            vec![ints(&[6, 7, 5]), Value::Float(3.0), Value::Float(0.5)],
            named,
            &[(c.dtype, whole)],
            Ulps(4),
        );
        c.refuses(vec![Value::Int(3)], vec![]);
    }),
    other("random_uniform", FLOATING, |c| {
        let shape = [6, 7, 5];
        let value = |i: usize| {
            let (i, single) = (i as u64, c.dtype == Float32);
            let w = philox(if single { i / 4 } else { i / 2 }, 9).map(u64::from);
            let lane = (i % 2) as usize;
            let unit = if single {
                (w[(i % 4) as usize] >> 8) as f64 / 16_777_216.0
            } else {
                ((w[2 * lane] << 32 | w[2 * lane + 1]) >> 11) as f64 / (1u64 << 53) as f64
            };
            Real(-1.0 + 4.0 * unit).fit(c.dtype)
        };
        let named =
            vec![("seed", Value::Int(9)), ("dtype", Value::DType(c.dtype)), c.chunks(&shape)];
        let whole = ArrayD::from_shape_vec(IxDyn(&shape), (0..210).map(value).collect()).unwrap();
        c.check(
            vec![ints(&[6, 7, 5]), Value::Int(-1), Value::Int(3)],
            named,
            &[(c.dtype, whole)],
            Ulps(1),
        );
    }),
];

/// Mean and variance of many random values match the distribution within five standard errors.
#[test]
fn moments_of_random_values() {
    let place = Place::quick();
    let n = 200_000;
    let check = |name: &str,
                 arguments: Vec<Value>,
                 dtype: DType,
                 (mean, variance, fourth): (f64, f64, f64),
                 bounds: (f64, f64)| {
        let named = vec![
            ("seed".to_owned(), Value::Int(2024)),
            ("dtype".to_owned(), Value::DType(dtype)),
            ("chunks".to_owned(), Value::Int(70_001)),
        ];
        let Ok(Value::Array(array)) =
            function(name).unwrap().call([vec![Value::Int(n)], arguments].concat(), named)
        else {
            panic!("{name}")
        };
        let values: Vec<f64> =
            computed(&array, &place.spec()).unwrap().iter().map(|x| x.real()).collect();
        let count = n as f64;
        let found = values.iter().sum::<f64>() / count;
        let spread = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let (error, spread_error) =
            ((variance / count).sqrt(), ((fourth - variance * variance) / count).sqrt());
        assert!((found - mean).abs() < 5.0 * error, "{name}: mean {found}, not {mean} ± {error}");
        assert!(
            (spread - variance).abs() < 5.0 * spread_error,
            "{name}: variance {spread}, not {variance} ± {spread_error}"
        );
        assert!(
            values.iter().all(|x| (bounds.0..bounds.1).contains(x)),
            "{name} leaves its bounds"
        );
        // Neighbours are uncorrelated.
        let together =
            values.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum::<f64>() / count;
        assert!(
            together.abs() < 5.0 * variance / count.sqrt(),
            "{name}: neighbours have the covariance {together}"
        );
        values
    };
    for dtype in FLOATING {
        check(
            "random_uniform",
            vec![Value::Int(-1), Value::Int(3)],
            *dtype,
            (1.0, 16.0 / 12.0, 256.0 / 80.0),
            (-1.0, 3.0),
        );
        let normal = check(
            "random_normal",
            vec![Value::Float(3.0), Value::Float(0.5)],
            *dtype,
            (3.0, 0.25, 3.0 * 0.0625),
            (-10.0, 16.0),
        );
        let within = normal.iter().filter(|x| (**x - 3.0).abs() < 0.5).count() as f64 / n as f64;
        assert!(
            (within - 0.682_689_492).abs() < 5.0 * (0.6827 * 0.3173 / n as f64).sqrt(),
            "{within} within one deviation"
        );
    }
    // Each of 0..10 has a share of one tenth.
    let dice = check(
        "random_integers",
        vec![Value::Int(0), Value::Int(10)],
        Int16,
        (4.5, 8.25, 120.8625),
        (0.0, 10.0),
    );
    for face in 0..10 {
        let share = dice.iter().filter(|x| **x == f64::from(face)).count() as f64 / n as f64;
        assert!((share - 0.1).abs() < 5.0 * (0.09 / n as f64).sqrt(), "{share} are {face}");
    }
}

/// Numbers outside a dtype's range were once wrapped.
#[test]
fn numbers_outside_the_dtype_are_refused() {
    use freestone::{Complex128, Pad, arange, full};
    for (value, dtype) in [
        (300.0, DType::UInt8),
        (-1.0, DType::UInt8),
        (2.5, DType::Int8),
        (f64::NAN, DType::Int32),
        (1e300, DType::Int64),
        (9_223_372_036_854_775_808.0, DType::Int64),
    ] {
        assert!(full([2], value, dtype, [2]).check().is_err(), "{value} as {dtype}");
    }
    assert!(
        full([2], 300, DType::UInt8, [2]).check().is_err()
            && full([2], -1i64, DType::UInt64, [2]).check().is_err()
    );
    assert!(full([2], Complex128::new(0.0, 1.0), DType::Float64, [2]).check().is_err());
    assert!(
        arange(0, 300, 1, DType::UInt8, 9).check().is_err()
            && arange(0, 256, 1, DType::UInt8, 9).check().is_ok()
    );
    let x = full([2], 7.0, DType::Int8, [2]);
    assert!(
        x.pad([(1, 1)], Pad::Constant(300.into())).check().is_err()
            && x.pad([(1, 1)], Pad::Constant((-7).into())).check().is_ok()
    );
    assert!(x.diff(u64::MAX, 0).shape().is_ok_and(|shape| shape == [0]));
    assert!(freestone::zeros([99], DType::Int8, [9]).diff(50, 0).check().is_err());
}

fn filled(c: &Case<'_>, more: Vec<Value>, value: i128) {
    for shape in [&[4, 6, 10][..], &[7], &[0, 3]] {
        let lengths = ints(&shape.iter().map(|n| *n as i128).collect::<Vec<_>>());
        let named = vec![("dtype", Value::DType(c.dtype)), c.chunks(shape)];
        c.moves(
            [vec![lengths], more.clone()].concat(),
            named,
            full(shape, Int(value).fit(c.dtype)),
        );
    }
}

fn filled_like(c: &Case<'_>, more: Vec<Value>, value: i128) {
    let x = c.cube();
    c.moves(
        [vec![x.lazy.clone()], more.clone()].concat(),
        vec![],
        full(&[4, 6, 10], Int(value).fit(c.dtype)),
    );
    let named = vec![("dtype", Value::DType(Float32))];
    c.check(
        [vec![x.lazy], more].concat(),
        named,
        &[(Float32, full(&[4, 6, 10], Real(value as f64)))],
        Exact,
    );
}

/// Returns the words of Philox4x32-10 as its paper defines it: ten rounds of two multiplications,
/// with keys advanced by Weyl sequences.
fn philox(counter: u64, key: u64) -> [u32; 4] {
    let split = |x: u64| ((x >> 32) as u32, x as u32);
    let ((c1, c0), (mut k1, mut k0)) = (split(counter), split(key));
    let mut c = [c0, c1, 0, 0];
    for _ in 0..10 {
        let (high0, low0) = split(0xD251_1F53 * u64::from(c[0]));
        let (high1, low1) = split(0xCD9E_8D57 * u64::from(c[2]));
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0];
        (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
    }
    c
}
