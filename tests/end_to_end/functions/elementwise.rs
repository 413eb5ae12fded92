//! Elementwise functions of one to three arrays.

use std::cmp::Ordering;

use freestone::{Complex128, DType};
use freestone_expr::vocabulary::Value;
use ndarray::{ArrayD, IxDyn};

use super::{
    BITS, BOOL, Case, EVERY, FLOATS, INEXACT, INTEGERS, NUMERIC, Other, REALS, SOME, other, result,
    spread, zero,
};
use crate::elements::Element::{self, Complex, Int, Real};
use crate::elements::Near::{self, Exact, Ulps};
use crate::elements::{is_complex, is_signed};
use DType::*;

pub(super) type C = Complex128;

/// A function with its oracle and the ranges of one or two operands.
pub(super) struct Elementwise {
    pub(super) name: &'static str,
    pub(super) dtypes: &'static [DType],
    pub(super) first: (f64, f64),
    pub(super) second: Option<(f64, f64)>,
    pub(super) near: Near,
    pub(super) oracle: fn(Element, Element, DType) -> Element,
}

/// A row of a unary function, or of a binary one.
macro_rules! row {
    ($name:literal, $dtypes:ident, $range:expr, $near:expr, |$x:pat_param| $oracle:expr) => {
        Elementwise {
            name: $name,
            dtypes: $dtypes,
            first: $range,
            second: None,
            near: $near,
            oracle: |$x, _, _| $oracle,
        }
    };
    (
        $name:literal, $dtypes:ident, $range:expr, $second:expr, $near:expr,
        |$x:pat_param, $y:pat_param, $d:pat_param| $oracle:expr
    ) => {
        Elementwise {
            name: $name,
            dtypes: $dtypes,
            first: $range,
            second: Some($second),
            near: $near,
            oracle: |$x, $y, $d| $oracle,
        }
    };
}

pub(super) static ELEMENTWISE: &[Elementwise] = &[
    row!("abs", NUMERIC, (-9.0, 9.0), Ulps(4), |x| if let Complex(z) = x {
        Real(z.norm())
    } else {
        each(x, i128::abs, f64::abs, no)
    }),
    row!("acos", INEXACT, (-1.0, 1.0), Ulps(4), |x| inexact(x, f64::acos, C::acos)),
    row!("acosh", INEXACT, (1.0, 30.0), Ulps(4), |x| inexact(x, f64::acosh, C::acosh)),
    row!("asin", INEXACT, (-1.0, 1.0), Ulps(4), |x| inexact(x, f64::asin, C::asin)),
    row!("asinh", INEXACT, (-30.0, 30.0), Ulps(4), |x| inexact(x, f64::asinh, |z| if z.re < 0.0 {
        -(-z).asinh()
    } else {
        z.asinh()
    })),
    row!("atan", INEXACT, (-30.0, 30.0), Ulps(4), |x| inexact(x, f64::atan, C::atan)),
    row!("atanh", INEXACT, (-0.99, 0.99), Ulps(4), |x| inexact(x, f64::atanh, C::atanh)),
    row!("bitwise_invert", BITS, (-9.0, 120.0), Exact, |x| if let Element::Bool(x) = x {
        Element::Bool(!x)
    } else {
        Int(!x.int())
    }),
    row!("ceil", REALS, (-9.0, 9.0), Exact, |x| each(x, same, f64::ceil, no)),
    row!("conj", NUMERIC, (-9.0, 9.0), Exact, |x| each(x, same, same, |z| z.conj())),
    row!("cos", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::cos, C::cos)),
    row!("cosh", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::cosh, C::cosh)),
    row!("exp", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::exp, C::exp)),
    row!("expm1", INEXACT, (-2.0, 3.0), Ulps(4), |x| inexact(x, f64::exp_m1, |z| {
        let half = (z.im / 2.0).sin();
        C::new(z.re.exp_m1() * z.im.cos() - 2.0 * half * half, z.re.exp() * z.im.sin())
    })),
    row!("floor", REALS, (-9.0, 9.0), Exact, |x| each(x, same, f64::floor, no)),
    row!("imag", NUMERIC, (-9.0, 9.0), Exact, |x| if let Complex(z) = x {
        Real(z.im)
    } else {
        each(x, |_| 0, |_| 0.0, no)
    }),
    row!("log", INEXACT, (1.0, 90.0), Ulps(4), |x| inexact(x, f64::ln, C::ln)),
    row!("log10", INEXACT, (1.0, 90.0), Ulps(4), |x| inexact(x, f64::log10, C::log10)),
    row!("log1p", INEXACT, (-0.9, 90.0), Ulps(4), |x| inexact(x, f64::ln_1p, |z| (z + 1.0).ln())),
    row!("log2", INEXACT, (1.0, 90.0), Ulps(4), |x| inexact(x, f64::log2, C::log2)),
    row!("logical_not", BOOL, (0.0, 1.0), Exact, |x| Element::Bool(!x.truth())),
    row!("negative", NUMERIC, (-9.0, 9.0), Exact, |x| each(x, |x| -x, |x| -x, |z| -z)),
    row!("positive", NUMERIC, (-9.0, 9.0), Exact, |x| x),
    row!("real", NUMERIC, (-9.0, 9.0), Exact, |x| if let Complex(z) = x { Real(z.re) } else { x }),
    row!("reciprocal", INEXACT, (1.0, 9.0), Ulps(1), |x| inexact(x, |x| 1.0 / x, |z| z.inv())),
    row!("round", NUMERIC, (-9.0, 9.0), Exact, |x| each(
        x,
        same,
        f64::round_ties_even,
        |z| C::new(z.re.round_ties_even(), z.im.round_ties_even())
    )),
    row!("sign", NUMERIC, (-9.0, 9.0), Ulps(1), |x| each(
        x,
        i128::signum,
        |x| if x == 0.0 { 0.0 } else { x.signum() },
        |z| z / z.norm()
    )),
    row!("signbit", FLOATS, (-9.0, 9.0), Exact, |x| Element::Bool(x.real().is_sign_negative())),
    row!("sin", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::sin, C::sin)),
    row!("sinh", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::sinh, C::sinh)),
    row!("sqrt", INEXACT, (0.0, 90.0), Ulps(1), |x| inexact(x, f64::sqrt, C::sqrt)),
    row!("square", NUMERIC, (-9.0, 9.0), Exact, |x| each(x, |x| x * x, |x| x * x, |z| z * z)),
    row!("tan", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::tan, C::tan)),
    row!("tanh", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::tanh, C::tanh)),
    row!("trunc", REALS, (-9.0, 9.0), Exact, |x| each(x, same, f64::trunc, no)),
    row!("add", NUMERIC, (-99.0, 99.0), (-99.0, 99.0), Exact, |x, y, _| each2(
        x,
        y,
        |x, y| x + y,
        |x, y| x + y,
        |x, y| x + y
    )),
    row!("atan2", FLOATS, (-9.0, 9.0), (-9.0, 9.0), Ulps(4), |x, y, _| Real(
        x.real().atan2(y.real())
    )),
    row!("bitwise_and", BITS, (-99.0, 99.0), (-99.0, 99.0), Exact, |x, y, _| bits(x, y, |x, y| x
        & y)),
    row!("bitwise_left_shift", INTEGERS, (-99.0, 99.0), (0.0, 70.0), Exact, |x, y, d| Int(
        if y.int() < wide(d).into() { x.int() << y.int() } else { 0 }
    )),
    row!("bitwise_or", BITS, (-99.0, 99.0), (-99.0, 99.0), Exact, |x, y, _| bits(x, y, |x, y| x
        | y)),
    row!("bitwise_right_shift", INTEGERS, (-99.0, 99.0), (0.0, 70.0), Exact, |x, y, _| Int(x
        .int()
        >> y.int())),
    row!("bitwise_xor", BITS, (-99.0, 99.0), (-99.0, 99.0), Exact, |x, y, _| bits(x, y, |x, y| x
        ^ y)),
    row!("copysign", FLOATS, (-9.0, 9.0), (-9.0, 9.0), Exact, |x, y, _| Real(
        x.real().copysign(y.real())
    )),
    row!("divide", INEXACT, (-99.0, 99.0), (1.0, 99.0), Ulps(1), |x, y, _| inexact2(
        x,
        y,
        |x, y| x / y,
        |x, y| x / y
    )),
    row!("equal", SOME, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| Element::Bool(x == y)),
    row!("floor_divide", REALS, (-99.0, 99.0), (-7.0, 7.0), Exact, |x, y, _| each2(
        x,
        y,
        |x, y| floored(x, y).0,
        |x, y| floored_real(x, y).0,
        no2
    )),
    row!("greater", REALS, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| ordered(
        x,
        y,
        Ordering::is_gt
    )),
    row!("greater_equal", REALS, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| ordered(
        x,
        y,
        Ordering::is_ge
    )),
    row!("hypot", FLOATS, (-99.0, 99.0), (-99.0, 99.0), Ulps(2), |x, y, _| Real(
        x.real().hypot(y.real())
    )),
    row!("less", REALS, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| ordered(x, y, Ordering::is_lt)),
    row!("less_equal", REALS, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| ordered(
        x,
        y,
        Ordering::is_le
    )),
    row!("logaddexp", FLOATS, (0.0, 99.0), (0.0, 99.0), Ulps(4), |x, y, _| {
        let (x, y) = (x.real(), y.real());
        Real(x.max(y) + (-(x - y).abs()).exp().ln_1p())
    }),
    row!("logical_and", BOOL, (0.0, 1.0), (0.0, 1.0), Exact, |x, y, _| truths(x, y, |x, y| x && y)),
    row!("logical_or", BOOL, (0.0, 1.0), (0.0, 1.0), Exact, |x, y, _| truths(x, y, |x, y| x || y)),
    row!("logical_xor", BOOL, (0.0, 1.0), (0.0, 1.0), Exact, |x, y, _| truths(x, y, |x, y| x != y)),
    row!("maximum", REALS, (-9.0, 9.0), (-9.0, 9.0), Exact, |x, y, _| if x.order(y)
        == Some(Ordering::Less)
    {
        y
    } else {
        x
    }),
    row!("minimum", REALS, (-9.0, 9.0), (-9.0, 9.0), Exact, |x, y, _| if x.order(y)
        == Some(Ordering::Less)
    {
        x
    } else {
        y
    }),
    row!("multiply", NUMERIC, (-99.0, 99.0), (-99.0, 99.0), Ulps(1), |x, y, _| each2(
        x,
        y,
        |x, y| x * y,
        |x, y| x * y,
        |x, y| x * y
    )),
    row!("nextafter", FLOATS, (-9.0, 9.0), (-9.0, 9.0), Exact, |x, y, d| {
        let (x, y) = (x.real(), y.real());
        let (up, down) = if d == Float32 {
            (f64::from((x as f32).next_up()), f64::from((x as f32).next_down()))
        } else {
            (x.next_up(), x.next_down())
        };
        Real(if x == y {
            y
        } else if x < y {
            up
        } else {
            down
        })
    }),
    row!("not_equal", SOME, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| Element::Bool(x != y)),
    row!("pow", NUMERIC, (1.0, 9.0), (0.0, 6.0), Ulps(4), |x, y, _| each2(
        x,
        y,
        |x, y| x.pow(y as u32),
        f64::powf,
        |x, y| x.powc(y)
    )),
    row!("remainder", REALS, (-99.0, 99.0), (-7.0, 7.0), Exact, |x, y, _| each2(
        x,
        y,
        |x, y| floored(x, y).1,
        |x, y| floored_real(x, y).1,
        no2
    )),
    row!("subtract", NUMERIC, (-99.0, 99.0), (-99.0, 99.0), Exact, |x, y, _| each2(
        x,
        y,
        |x, y| x - y,
        |x, y| x - y,
        |x, y| x - y
    )),
];

/// Checks a predicate of floats on finite values, infinities and NaN. For complex numbers, `join`
/// combines the parts.
fn classified(c: &Case<'_>, holds: fn(f64) -> bool, join: fn(bool, bool) -> bool) {
    let values = [0.5, f64::INFINITY, -3.0, f64::NAN, f64::NEG_INFINITY, 0.0];
    let x = ArrayD::from_shape_fn(IxDyn(&[6, 6]), |at| match zero(c.dtype) {
        Int(_) => Int(at[0] as i128 - at[1] as i128).fit(c.dtype),
        Complex(_) => Complex(C::new(values[at[0]], values[at[1]])),
        _ => Real(values[(at[0] + at[1]) % 6]),
    });
    let whole = x.mapv(|x| match x {
        Real(x) => Element::Bool(holds(x)),
        Complex(z) => Element::Bool(join(holds(z.re), holds(z.im))),
        x => Element::Bool(holds(x.real())),
    });
    let x = c.pair(x, c.dtype);
    c.check(vec![x.lazy], vec![], &[(Bool, whole)], Exact);
}

/// Functions of three operands, predicates and casts.
pub(super) static OF_SEVERAL: &[Other] = &[
    other("isfinite", NUMERIC, |c| classified(c, f64::is_finite, |re, im| re && im)),
    other("isinf", NUMERIC, |c| classified(c, f64::is_infinite, |re, im| re || im)),
    other("isnan", NUMERIC, |c| classified(c, f64::is_nan, |re, im| re || im)),
    other("clip", REALS, |c| {
        let (x, low, high) =
            (c.cube(), c.of(c.dtype, &[6, 1], (-9.0, 2.0)), c.of(c.dtype, &[10], (0.0, 9.0)));
        let (lows, highs) = (spread(&low.whole, &[4, 6, 10]), spread(&high.whole, &[4, 6, 10]));
        let greater =
            |x: Element, y: Element| if x.order(y) == Some(Ordering::Less) { y } else { x };
        let lesser =
            |x: Element, y: Element| if x.order(y) == Some(Ordering::Greater) { y } else { x };
        let with = |f: &dyn Fn(Element, Element, Element) -> Element| {
            let mut whole = x.whole.clone();
            ndarray::Zip::from(&mut whole)
                .and(&lows)
                .and(&highs)
                .for_each(|x, low, high| *x = f(*x, *low, *high));
            whole
        };
        c.moves(
            vec![x.lazy.clone(), low.lazy.clone(), high.lazy.clone()],
            vec![],
            with(&|x, low, high| lesser(greater(x, low), high)),
        );
        c.moves(vec![x.lazy.clone(), low.lazy.clone()], vec![], with(&|x, low, _| greater(x, low)));
        c.moves(
            vec![x.lazy.clone()],
            vec![("max", high.lazy.clone())],
            with(&|x, _, high| lesser(x, high)),
        );
        c.moves(
            vec![x.lazy.clone(), Value::None, Value::Int(3)],
            vec![],
            with(&|x, _, _| lesser(x, Int(3).fit(c.dtype))),
        );
        c.moves(vec![x.lazy.clone()], vec![], x.whole.clone());
    }),
    other("where", SOME, |c| {
        let (condition, x, y) =
            (c.of(Bool, &[6, 1], (0.0, 1.0)), c.cube(), c.of(c.dtype, &[10], (-9.0, 9.0)));
        let (chosen, others) =
            (spread(&condition.whole, &[4, 6, 10]), spread(&y.whole, &[4, 6, 10]));
        let mut whole = x.whole.clone();
        ndarray::Zip::from(&mut whole)
            .and(&chosen)
            .and(&others)
            .for_each(|x, c, y| *x = if c.truth() { *x } else { *y });
        c.moves(vec![condition.lazy, x.lazy, y.lazy], vec![], whole);
    }),
    other("astype", EVERY, |c| {
        // Values that every dtype holds.
        let x = c.of(c.dtype, &[4, 6, 10], (0.0, 90.0));
        for to in DType::ALL {
            if is_complex(c.dtype) && !is_complex(to) && to != Bool {
                c.refuses(vec![x.lazy.clone(), Value::DType(to)], vec![]);
            } else {
                c.check(
                    vec![x.lazy.clone(), Value::DType(to)],
                    vec![],
                    &[(to, x.whole.mapv(|x| x.fit(to)))],
                    Exact,
                );
            }
        }
        if is_signed(c.dtype) || c.dtype == Float32 || c.dtype == Float64 {
            let x = c.cube();
            c.check(
                vec![x.lazy.clone(), Value::Text("int16".into())],
                vec![],
                &[(Int16, x.whole.mapv(|x| x.fit(Int16)))],
                Exact,
            );
        }
    }),
];

/// Calls a function of one or two operands as its row describes.
pub(super) fn elementwise(row: &Elementwise, c: &Case<'_>) {
    let x = c.of(c.dtype, &[4, 6, 10], row.first);
    let Some(range) = row.second else {
        let dtype = result(c.dtype, (row.oracle)(x.whole[[0, 0, 0]], zero(c.dtype), c.dtype));
        let whole = x.whole.mapv(|x| (row.oracle)(x, x, c.dtype).fit(dtype));
        return c.check(vec![x.lazy], vec![], &[(dtype, whole)], row.near);
    };
    // The second operand of the same shape, and broadcast along two axes.
    for shape in [&[4, 6, 10][..], &[6, 1]] {
        let y = c.of(c.dtype, shape, range);
        let other = spread(&y.whole, &[4, 6, 10]);
        let dtype = result(c.dtype, (row.oracle)(x.whole[[0, 0, 0]], other[[0, 0, 0]], c.dtype));
        let mut whole = x.whole.clone();
        whole.zip_mut_with(&other, |x, y| *x = (row.oracle)(*x, *y, c.dtype).fit(dtype));
        c.check(vec![x.lazy.clone(), y.lazy], vec![], &[(dtype, whole)], row.near);
    }
}

/// Applies the function of the element's kind.
fn each(x: Element, int: fn(i128) -> i128, real: fn(f64) -> f64, complex: fn(C) -> C) -> Element {
    match x {
        Int(x) => Int(int(x)),
        Complex(x) => Complex(complex(x)),
        _ => Real(real(x.real())),
    }
}

fn inexact(x: Element, real: fn(f64) -> f64, complex: fn(C) -> C) -> Element {
    if let Complex(x) = x { Complex(complex(x)) } else { Real(real(x.real())) }
}

pub(super) fn each2(
    x: Element,
    y: Element,
    int: fn(i128, i128) -> i128,
    real: fn(f64, f64) -> f64,
    complex: fn(C, C) -> C,
) -> Element {
    match (x, y) {
        (Int(x), Int(y)) => Int(int(x, y)),
        (Complex(x), Complex(y)) => Complex(complex(x, y)),
        _ => Real(real(x.real(), y.real())),
    }
}

fn inexact2(x: Element, y: Element, real: fn(f64, f64) -> f64, complex: fn(C, C) -> C) -> Element {
    if let Complex(x) = x {
        Complex(complex(x, y.complex()))
    } else {
        Real(real(x.real(), y.real()))
    }
}

fn ordered(x: Element, y: Element, is: fn(Ordering) -> bool) -> Element {
    Element::Bool(x.order(y).is_some_and(is))
}

fn bits(x: Element, y: Element, int: fn(i128, i128) -> i128) -> Element {
    if let Element::Bool(_) = x {
        Element::Bool(int(x.int(), y.int()) != 0)
    } else {
        Int(int(x.int(), y.int()))
    }
}

fn truths(x: Element, y: Element, f: fn(bool, bool) -> bool) -> Element {
    Element::Bool(f(x.truth(), y.truth()))
}

/// Returns the quotient rounded towards -infinity and the remainder; both are 0 for a zero divisor.
fn floored(x: i128, y: i128) -> (i128, i128) {
    if y == 0 {
        return (0, 0);
    }
    let q = x / y - i128::from(x % y != 0 && (x < 0) != (y < 0));
    (q, x - q * y)
}

/// Returns the floored quotient and remainder of multiples of 1/64, which are exact.
fn floored_real(x: f64, y: f64) -> (f64, f64) {
    let (q, r) = floored((x * 64.0) as i128, (y * 64.0) as i128);
    if y == 0.0 { ((x / y).floor(), f64::NAN) } else { (q as f64, r as f64 / 64.0) }
}

fn wide(dtype: DType) -> u32 {
    8 * dtype.size() as u32
}

fn same<T>(x: T) -> T {
    x
}

fn no2(_: C, _: C) -> C {
    unreachable!("not for complex numbers")
}

fn no(_: C) -> C {
    unreachable!("not for complex numbers")
}
