//! Every function of the vocabulary, called by its name on several dtypes in four chunkings, against an oracle that shares no code with
//! the library: ndarray, Rust's own functions of `f64`, num-complex, and `i128` for integers.
//!
//! [`ELEMENTWISE`] and [`OTHERS`] have a row for each function, with its oracle; a function without one fails the test.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::TAU;
use std::panic::Location;

use freestone::vocabulary::{Value, function, functions};
use freestone::{Complex128, DType, Spec};
use ndarray::{ArrayD, Axis, Dimension, IxDyn};

use crate::elements::Element::{self, Complex, Int, Real};
use crate::elements::{Near, computed, is_complex, is_signed, list, stored, ulps};
use crate::support::Place;
use DType::*;

const NUMERIC: &[DType] = &[Int8, UInt8, Int32, Int64, Float32, Float64, Complex64, Complex128];
const REALS: &[DType] = &[Int8, UInt16, Int64, UInt64, Float32, Float64];
/// With an integer dtype for functions that give floats for them.
const INEXACT: &[DType] = &[Int16, Float32, Float64, Complex64, Complex128];
const FLOATS: &[DType] = &[Int32, Float32, Float64];
const INTEGERS: &[DType] = &[Int8, UInt8, Int16, UInt32, Int64, UInt64];
const BITS: &[DType] = &[Bool, Int8, UInt16, Int32, UInt64];
const SOME: &[DType] = &[Bool, UInt8, Int32, Float32, Complex128];
const EVERY: &[DType] = &DType::ALL;
const BOOL: &[DType] = &[Bool];

/// What the oracles see of one function's turn: a dtype and a chunking.
struct Case<'a> {
    name: &'static str,
    dtype: DType,
    /// 0 one chunk, 1 two even ones along each axis, 2 uneven ones, 3 chunks of length 1 along the first axis.
    chunking: usize,
    spec: &'a Spec,
    seed: Cell<u64>,
    checks: Cell<usize>,
    failures: &'a RefCell<Vec<String>>,
}

/// An array, and what it holds.
struct Pair {
    lazy: Value,
    whole: ArrayD<Element>,
}

fn chunks_of(chunking: usize, shape: &[usize]) -> Vec<u64> {
    let length = |(d, n): (usize, &usize)| match chunking {
        0 => *n,
        1 => n.div_ceil(2),
        2 => (2 * n).div_ceil(3),
        _ if d == 0 => 1,
        _ => 3,
    };
    shape.iter().enumerate().map(length).map(|n| n.max(1) as u64).collect()
}

impl Case<'_> {
    fn draw(&self) -> f64 {
        let state = self.seed.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed.set(state);
        (state >> 33) as f64 / (1u64 << 31) as f64
    }

    /// An element of `low..high`: multiples of 1/64, so that `float32` holds them and sums are exact.
    fn element(&self, dtype: DType, (low, high): (f64, f64)) -> Element {
        let part = || ((low + (high - low) * self.draw()) * 64.0).floor() / 64.0;
        match dtype {
            Bool => Element::Bool(self.draw() < 0.6),
            d if is_complex(d) => Complex(Complex128::new(part(), part())),
            d if d.is_integer() && !is_signed(d) => Int(part().abs() as i128),
            d if d.is_integer() => Int(part() as i128),
            _ => Real(part()),
        }
    }

    fn of(&self, dtype: DType, shape: &[usize], range: (f64, f64)) -> Pair {
        let whole = ArrayD::from_shape_fn(IxDyn(shape), |_| self.element(dtype, range));
        self.pair(whole, dtype)
    }

    fn pair(&self, whole: ArrayD<Element>, dtype: DType) -> Pair {
        let array = stored(&whole, dtype, &chunks_of(self.chunking, whole.shape()));
        assert!(self.chunking == 0 || whole.len() < 2 || array.grid().unwrap().n_chunks() > 1);
        Pair { lazy: Value::Array(array), whole }
    }

    /// Of the turn's dtype, on three axes.
    fn cube(&self) -> Pair {
        self.of(self.dtype, &[4, 6, 10], (-9.0, 9.0))
    }

    fn square(&self) -> Pair {
        self.of(self.dtype, &[6, 4], (-9.0, 9.0))
    }

    fn chunks(&self, shape: &[usize]) -> (&'static str, Value) {
        ("chunks", Value::Sequence(chunks_of(self.chunking, shape).into_iter().map(|c| Value::Int(c.into())).collect()))
    }

    /// Calls the function; its results, which are the library's, are what the oracle says.
    #[track_caller]
    fn check(&self, positional: Vec<Value>, named: Vec<(&str, Value)>, expected: &[(DType, ArrayD<Element>)], near: Near) {
        let written = |v: &Value| match v {
            Value::Array(a) => format!("{:?}", a.shape().unwrap()),
            other => format!("{other:?}"),
        };
        let arguments = || positional.iter().map(written).chain(named.iter().map(|(n, v)| format!("{n}={}", written(v)))).collect::<Vec<_>>().join(", ");
        let what = || format!("{}({}) of {} in chunking {}", self.name, arguments(), self.dtype, self.chunking);
        let owned = named.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
        let found = match function(self.name).unwrap().call(positional.clone(), owned) {
            Ok(Value::Sequence(many)) => many,
            Ok(one) => vec![one],
            Err(e) => panic!("{}: {e}", what()),
        };
        assert_eq!(found.len(), expected.len(), "{}", what());
        for (found, (dtype, whole)) in found.iter().zip(expected) {
            let Value::Array(array) = found else { panic!("{} gives {found:?}", what()) };
            assert_eq!(array.dtype().unwrap(), *dtype, "{}", what());
            let shape: Vec<usize> = array.shape().unwrap().iter().map(|n| *n as usize).collect();
            assert_eq!(shape, whole.shape(), "{}", what());
            let values = computed(array, self.spec).unwrap_or_else(|e| panic!("{}: {e}", what()));
            let differ = values.iter().zip(whole).position(|(x, y)| !near.agree(*x, *y, *dtype));
            if let Some(at) = differ {
                let (found, expected) = (values.iter().nth(at), whole.iter().nth(at));
                self.failures.borrow_mut().push(format!("{}: {}: element {at} is {found:?}, not {expected:?}", Location::caller().line(), what()));
            }
        }
        self.checks.set(self.checks.get() + 1);
    }

    /// For functions that move elements and keep the dtype.
    #[track_caller]
    fn moves(&self, positional: Vec<Value>, named: Vec<(&str, Value)>, whole: ArrayD<Element>) {
        self.check(positional, named, &[(self.dtype, whole)], Near::Exact);
    }

    #[track_caller]
    fn refuses(&self, positional: Vec<Value>, named: Vec<(&str, Value)>) {
        let owned = named.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
        let found = function(self.name).unwrap().call(positional, owned);
        assert!(found.is_err(), "{} gives {found:?}", self.name);
    }
}

fn ints(values: &[i128]) -> Value {
    Value::Sequence(values.iter().map(|i| Value::Int(*i)).collect())
}

fn zero(dtype: DType) -> Element {
    Int(0).fit(dtype)
}

fn full(shape: &[usize], value: Element) -> ArrayD<Element> {
    ArrayD::from_elem(IxDyn(shape), value)
}

/// The dtype of a result of this kind for operands of `dtype`.
fn result(dtype: DType, sample: Element) -> DType {
    match sample {
        Element::Bool(_) => Bool,
        Int(_) | Complex(_) => dtype,
        Real(_) if matches!(dtype, Float32 | Complex64) => Float32,
        Real(_) => Float64,
    }
}

// Elementwise functions.

type C = Complex128;

/// A function and its oracle: of the elements of one or two operands, in these ranges.
struct Elementwise {
    name: &'static str,
    dtypes: &'static [DType],
    first: (f64, f64),
    second: Option<(f64, f64)>,
    near: Near,
    oracle: fn(Element, Element, DType) -> Element,
}

/// Unary, and of two operands of one range.
macro_rules! row {
    ($name:literal, $dtypes:ident, $range:expr, $near:expr, |$x:pat_param| $oracle:expr) => {
        Elementwise { name: $name, dtypes: $dtypes, first: $range, second: None, near: $near, oracle: |$x, _, _| $oracle }
    };
    ($name:literal, $dtypes:ident, $range:expr, $second:expr, $near:expr, |$x:pat_param, $y:pat_param, $d:pat_param| $oracle:expr) => {
        Elementwise { name: $name, dtypes: $dtypes, first: $range, second: Some($second), near: $near, oracle: |$x, $y, $d| $oracle }
    };
}

/// Of an integer an integer, and so on.
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

fn each2(x: Element, y: Element, int: fn(i128, i128) -> i128, real: fn(f64, f64) -> f64, complex: fn(C, C) -> C) -> Element {
    match (x, y) {
        (Int(x), Int(y)) => Int(int(x, y)),
        (Complex(x), Complex(y)) => Complex(complex(x, y)),
        _ => Real(real(x.real(), y.real())),
    }
}

fn inexact2(x: Element, y: Element, real: fn(f64, f64) -> f64, complex: fn(C, C) -> C) -> Element {
    if let Complex(x) = x { Complex(complex(x, y.complex())) } else { Real(real(x.real(), y.real())) }
}

fn ordered(x: Element, y: Element, is: fn(Ordering) -> bool) -> Element {
    Element::Bool(x.order(y).is_some_and(is))
}

fn bits(x: Element, y: Element, int: fn(i128, i128) -> i128) -> Element {
    if let Element::Bool(_) = x { Element::Bool(int(x.int(), y.int()) != 0) } else { Int(int(x.int(), y.int())) }
}

fn truths(x: Element, y: Element, f: fn(bool, bool) -> bool) -> Element {
    Element::Bool(f(x.truth(), y.truth()))
}

/// `(quotient towards -infinity, remainder)` of integers; by 0 both are 0.
fn floored(x: i128, y: i128) -> (i128, i128) {
    if y == 0 {
        return (0, 0);
    }
    let q = x / y - i128::from(x % y != 0 && (x < 0) != (y < 0));
    (q, x - q * y)
}

/// The same of multiples of 1/64, which are exact.
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

use Near::{Exact, Ulps};

#[rustfmt::skip]
static ELEMENTWISE: &[Elementwise] = &[
    row!("abs", NUMERIC, (-9.0, 9.0), Ulps(4), |x| if let Complex(z) = x { Real(z.norm()) } else { each(x, i128::abs, f64::abs, no) }),
    row!("acos", INEXACT, (-1.0, 1.0), Ulps(4), |x| inexact(x, f64::acos, C::acos)),
    row!("acosh", INEXACT, (1.0, 30.0), Ulps(4), |x| inexact(x, f64::acosh, C::acosh)),
    row!("asin", INEXACT, (-1.0, 1.0), Ulps(4), |x| inexact(x, f64::asin, C::asin)),
    row!("asinh", INEXACT, (-30.0, 30.0), Ulps(4), |x| inexact(x, f64::asinh, |z| if z.re < 0.0 { -(-z).asinh() } else { z.asinh() })),
    row!("atan", INEXACT, (-30.0, 30.0), Ulps(4), |x| inexact(x, f64::atan, C::atan)),
    row!("atanh", INEXACT, (-0.99, 0.99), Ulps(4), |x| inexact(x, f64::atanh, C::atanh)),
    row!("bitwise_invert", BITS, (-9.0, 120.0), Exact, |x| if let Element::Bool(x) = x { Element::Bool(!x) } else { Int(!x.int()) }),
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
    row!("imag", NUMERIC, (-9.0, 9.0), Exact, |x| if let Complex(z) = x { Real(z.im) } else { each(x, |_| 0, |_| 0.0, no) }),
    row!("isfinite", NUMERIC, (-9.0, 9.0), Exact, |_| Element::Bool(true)),
    row!("isinf", NUMERIC, (-9.0, 9.0), Exact, |_| Element::Bool(false)),
    row!("isnan", NUMERIC, (-9.0, 9.0), Exact, |x| Element::Bool(x.is_nan())),
    row!("log", INEXACT, (1.0, 90.0), Ulps(4), |x| inexact(x, f64::ln, C::ln)),
    row!("log10", INEXACT, (1.0, 90.0), Ulps(4), |x| inexact(x, f64::log10, C::log10)),
    row!("log1p", INEXACT, (-0.9, 90.0), Ulps(4), |x| inexact(x, f64::ln_1p, |z| (z + 1.0).ln())),
    row!("log2", INEXACT, (1.0, 90.0), Ulps(4), |x| inexact(x, f64::log2, C::log2)),
    row!("logical_not", BOOL, (0.0, 1.0), Exact, |x| Element::Bool(!x.truth())),
    row!("negative", NUMERIC, (-9.0, 9.0), Exact, |x| each(x, |x| -x, |x| -x, |z| -z)),
    row!("positive", NUMERIC, (-9.0, 9.0), Exact, |x| x),
    row!("real", NUMERIC, (-9.0, 9.0), Exact, |x| if let Complex(z) = x { Real(z.re) } else { x }),
    row!("reciprocal", INEXACT, (1.0, 9.0), Ulps(1), |x| inexact(x, |x| 1.0 / x, |z| z.inv())),
    row!("round", NUMERIC, (-9.0, 9.0), Exact, |x| each(x, same, f64::round_ties_even, |z| C::new(z.re.round_ties_even(), z.im.round_ties_even()))),
    row!("sign", NUMERIC, (-9.0, 9.0), Ulps(1), |x| each(x, i128::signum, |x| if x == 0.0 { 0.0 } else { x.signum() }, |z| z / z.norm())),
    row!("signbit", FLOATS, (-9.0, 9.0), Exact, |x| Element::Bool(x.real().is_sign_negative())),
    row!("sin", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::sin, C::sin)),
    row!("sinh", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::sinh, C::sinh)),
    row!("sqrt", INEXACT, (0.0, 90.0), Ulps(1), |x| inexact(x, f64::sqrt, C::sqrt)),
    row!("square", NUMERIC, (-9.0, 9.0), Exact, |x| each(x, |x| x * x, |x| x * x, |z| z * z)),
    row!("tan", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::tan, C::tan)),
    row!("tanh", INEXACT, (-9.0, 9.0), Ulps(4), |x| inexact(x, f64::tanh, C::tanh)),
    row!("trunc", REALS, (-9.0, 9.0), Exact, |x| each(x, same, f64::trunc, no)),

    row!("add", NUMERIC, (-99.0, 99.0), (-99.0, 99.0), Exact, |x, y, _| each2(x, y, |x, y| x + y, |x, y| x + y, |x, y| x + y)),
    row!("atan2", FLOATS, (-9.0, 9.0), (-9.0, 9.0), Ulps(4), |x, y, _| Real(x.real().atan2(y.real()))),
    row!("bitwise_and", BITS, (-99.0, 99.0), (-99.0, 99.0), Exact, |x, y, _| bits(x, y, |x, y| x & y)),
    row!("bitwise_left_shift", INTEGERS, (-99.0, 99.0), (0.0, 70.0), Exact, |x, y, d| Int(if y.int() < wide(d).into() { x.int() << y.int() } else { 0 })),
    row!("bitwise_or", BITS, (-99.0, 99.0), (-99.0, 99.0), Exact, |x, y, _| bits(x, y, |x, y| x | y)),
    row!("bitwise_right_shift", INTEGERS, (-99.0, 99.0), (0.0, 70.0), Exact, |x, y, _| Int(x.int() >> y.int())),
    row!("bitwise_xor", BITS, (-99.0, 99.0), (-99.0, 99.0), Exact, |x, y, _| bits(x, y, |x, y| x ^ y)),
    row!("copysign", FLOATS, (-9.0, 9.0), (-9.0, 9.0), Exact, |x, y, _| Real(x.real().copysign(y.real()))),
    row!("divide", INEXACT, (-99.0, 99.0), (1.0, 99.0), Ulps(1), |x, y, _| inexact2(x, y, |x, y| x / y, |x, y| x / y)),
    row!("equal", SOME, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| Element::Bool(x == y)),
    row!("floor_divide", REALS, (-99.0, 99.0), (-7.0, 7.0), Exact, |x, y, _| each2(x, y, |x, y| floored(x, y).0, |x, y| floored_real(x, y).0, no2)),
    row!("greater", REALS, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| ordered(x, y, Ordering::is_gt)),
    row!("greater_equal", REALS, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| ordered(x, y, Ordering::is_ge)),
    row!("hypot", FLOATS, (-99.0, 99.0), (-99.0, 99.0), Ulps(2), |x, y, _| Real(x.real().hypot(y.real()))),
    row!("less", REALS, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| ordered(x, y, Ordering::is_lt)),
    row!("less_equal", REALS, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| ordered(x, y, Ordering::is_le)),
    row!("logaddexp", FLOATS, (0.0, 99.0), (0.0, 99.0), Ulps(4), |x, y, _| {
        let (x, y) = (x.real(), y.real());
        Real(x.max(y) + (-(x - y).abs()).exp().ln_1p())
    }),
    row!("logical_and", BOOL, (0.0, 1.0), (0.0, 1.0), Exact, |x, y, _| truths(x, y, |x, y| x && y)),
    row!("logical_or", BOOL, (0.0, 1.0), (0.0, 1.0), Exact, |x, y, _| truths(x, y, |x, y| x || y)),
    row!("logical_xor", BOOL, (0.0, 1.0), (0.0, 1.0), Exact, |x, y, _| truths(x, y, |x, y| x != y)),
    row!("maximum", REALS, (-9.0, 9.0), (-9.0, 9.0), Exact, |x, y, _| if x.order(y) == Some(Ordering::Less) { y } else { x }),
    row!("minimum", REALS, (-9.0, 9.0), (-9.0, 9.0), Exact, |x, y, _| if x.order(y) == Some(Ordering::Less) { x } else { y }),
    row!("multiply", NUMERIC, (-99.0, 99.0), (-99.0, 99.0), Ulps(1), |x, y, _| each2(x, y, |x, y| x * y, |x, y| x * y, |x, y| x * y)),
    row!("nextafter", FLOATS, (-9.0, 9.0), (-9.0, 9.0), Exact, |x, y, d| {
        let (x, y) = (x.real(), y.real());
        let (up, down) = if d == Float32 { (f64::from((x as f32).next_up()), f64::from((x as f32).next_down())) } else { (x.next_up(), x.next_down()) };
        Real(if x == y { y } else if x < y { up } else { down })
    }),
    row!("not_equal", SOME, (-2.0, 2.0), (-2.0, 2.0), Exact, |x, y, _| Element::Bool(x != y)),
    row!("pow", NUMERIC, (1.0, 9.0), (0.0, 6.0), Ulps(4), |x, y, _| each2(x, y, |x, y| x.pow(y as u32), f64::powf, |x, y| x.powc(y))),
    row!("remainder", REALS, (-99.0, 99.0), (-7.0, 7.0), Exact, |x, y, _| each2(x, y, |x, y| floored(x, y).1, |x, y| floored_real(x, y).1, no2)),
    row!("subtract", NUMERIC, (-99.0, 99.0), (-99.0, 99.0), Exact, |x, y, _| each2(x, y, |x, y| x - y, |x, y| x - y, |x, y| x - y)),
];

/// The shape that two broadcast to, and an array in it.
fn spread(a: &ArrayD<Element>, shape: &[usize]) -> ArrayD<Element> {
    a.broadcast(IxDyn(shape)).unwrap().to_owned()
}

fn elementwise(row: &Elementwise, c: &Case<'_>) {
    let x = c.of(c.dtype, &[4, 6, 10], row.first);
    let Some(range) = row.second else {
        let dtype = result(c.dtype, (row.oracle)(x.whole[[0, 0, 0]], zero(c.dtype), c.dtype));
        let whole = x.whole.mapv(|x| (row.oracle)(x, x, c.dtype).fit(dtype));
        return c.check(vec![x.lazy], vec![], &[(dtype, whole)], row.near);
    };
    // As it is, and spread along two axes; on either side.
    for shape in [&[4, 6, 10][..], &[6, 1]] {
        let y = c.of(c.dtype, shape, range);
        let other = spread(&y.whole, &[4, 6, 10]);
        let dtype = result(c.dtype, (row.oracle)(x.whole[[0, 0, 0]], other[[0, 0, 0]], c.dtype));
        let mut whole = x.whole.clone();
        whole.zip_mut_with(&other, |x, y| *x = (row.oracle)(*x, *y, c.dtype).fit(dtype));
        c.check(vec![x.lazy.clone(), y.lazy], vec![], &[(dtype, whole)], row.near);
    }
}

// Reductions.

/// What `f` makes of the elements along axes, in C order.
fn fold(a: &ArrayD<Element>, axes: &[usize], keepdims: bool, f: &dyn Fn(&[Element]) -> Element) -> ArrayD<Element> {
    let shape = a.shape();
    let kept: Vec<usize> = (0..shape.len()).filter(|d| !axes.contains(d)).collect();
    let order: Vec<usize> = kept.iter().chain(axes).copied().collect();
    let values: Vec<Element> = a.clone().permuted_axes(IxDyn(&order)).iter().copied().collect();
    let len = axes.iter().map(|d| shape[*d]).product::<usize>();
    let out: Vec<usize> = (0..shape.len()).filter(|d| keepdims || kept.contains(d)).map(|d| if kept.contains(&d) { shape[d] } else { 1 }).collect();
    let results = values.chunks(len).map(f).collect();
    ArrayD::from_shape_vec(IxDyn(&out), results).unwrap()
}

/// A reduction along all axes, one, or several; every other time the reduced axes stay.
fn reduction(c: &Case<'_>, x: &Pair, dtype: DType, named: &[(&'static str, Value)], near: Near, f: &dyn Fn(&[Element]) -> Element) {
    let positions = c.name.starts_with("arg");
    let along: &[(Value, &[usize])] = &[
        (Value::None, &[0, 1, 2]),
        (Value::Int(0), &[0]),
        (Value::Int(1), &[1]),
        (Value::Int(-1), &[2]),
        (ints(&[0, 2]), &[0, 2]),
        (ints(&[-1, -2]), &[1, 2]),
    ];
    for (i, (axis, axes)) in along.iter().enumerate().filter(|(_, (axis, _))| !positions || !matches!(axis, Value::Sequence(_))) {
        let keepdims = (i + c.chunking) % 2 == 1;
        let whole = fold(&x.whole, axes, keepdims, &|v| f(v).fit(dtype));
        let all = [&[("axis", axis.clone()), ("keepdims", Value::Bool(keepdims))], named].concat();
        c.check(vec![x.lazy.clone()], all, &[(dtype, whole)], near);
    }
}

fn total(v: &[Element]) -> Element {
    v.iter().fold(Int(0), |s, x| match x {
        Complex(x) => Complex(s.complex() + x),
        Real(x) => Real(s.real() + x),
        x => Int(s.int() + x.int()),
    })
}

fn product(v: &[Element]) -> Element {
    v.iter().fold(Int(1), |s, x| match x {
        Complex(x) => Complex(s.complex() * x),
        Real(x) => Real(s.real() * x),
        x => Int(s.int().wrapping_mul(x.int())),
    })
}

/// Of integers the widest of their sign, of floats their own.
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

/// In two passes.
fn variance(v: &[Element], correction: f64) -> f64 {
    let n = v.len() as f64;
    let mean = v.iter().map(|x| x.real()).sum::<f64>() / n;
    v.iter().map(|x| (x.real() - mean).powi(2)).sum::<f64>() / (n - correction)
}

fn first_best(v: &[Element], better: Ordering) -> Element {
    Int((1..v.len()).fold(0, |at, i| if v[i].order(v[at]) == Some(better) { i } else { at }) as i128)
}

fn var_or_std(c: &Case<'_>) {
    let x = c.cube();
    let root = c.name == "std";
    let finish = move |v: f64| Real(if root { v.sqrt() } else { v });
    reduction(c, &x, averaged(c.dtype), &[], Ulps(16), &|v| finish(variance(v, 0.0)));
    for (given, correction) in [(Value::Int(1), 1.0), (Value::Float(1.5), 1.5), (Value::Float(-2.0), -2.0)] {
        reduction(c, &x, averaged(c.dtype), &[("correction", given)], Ulps(16), &|v| finish(variance(v, correction)));
    }
    if c.dtype == Float64 {
        // Far from 0, where sums of squares have no digits left.
        let far = c.pair(list([4.0, 7.0, 13.0, 16.0].map(|x| Real(x + 1e9)).to_vec()), Float64);
        for (correction, var) in [(0, 22.5), (1, 30.0)] {
            c.check(vec![far.lazy.clone()], vec![("correction", Value::Int(correction))], &[(Float64, full(&[], finish(var)))], Exact);
        }
    }
}

/// The running total or product along each axis, with what there is before it and without.
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
            let named = vec![("axis", Value::Int(axis.into())), ("include_initial", Value::Bool(initial))];
            c.check(vec![x.lazy.clone()], named, &[(dtype, whole)], Exact);
        }
    }
}

/// Sums of products over the last axis of both.
fn dot(a: &[Element], b: &[Element]) -> Element {
    total(&a.iter().zip(b).map(|(a, b)| product(&[*a, *b])).collect::<Vec<_>>())
}

/// The product of stacks of matrices `(…, m, k)` and `(…, n, k)`.
fn matrices(a: &ArrayD<Element>, b: &ArrayD<Element>, stack: &[usize]) -> ArrayD<Element> {
    let (m, n, k) = (a.shape()[a.ndim() - 2], b.shape()[b.ndim() - 2], a.shape()[a.ndim() - 1]);
    let (a, b) = (spread(a, &[stack, &[m, k]].concat()), spread(b, &[stack, &[n, k]].concat()));
    ArrayD::from_shape_fn(IxDyn(&[stack, &[m, n]].concat()), |index| {
        let row = |x: &ArrayD<Element>, i: usize| -> Vec<Element> {
            let at = |kk: usize| -> Vec<usize> { (0..stack.len()).map(|d| index[d]).chain([i, kk]).collect() };
            (0..k).map(|kk| x[IxDyn(&at(kk))]).collect()
        };
        dot(&row(&a, index[stack.len()]), &row(&b, index[stack.len() + 1]))
    })
}

// The others.

/// A row of the table of functions that are not of one element.
struct Other {
    name: &'static str,
    dtypes: &'static [DType],
    run: fn(&Case<'_>),
}

macro_rules! others {
    ($($name:ident $dtypes:ident $run:expr;)*) => { &[$(Other { name: stringify!($name), dtypes: $dtypes, run: $run }),*] };
}

static OTHERS: &[Other] = others! {
    clip REALS |c| {
        let (x, low, high) = (c.cube(), c.of(c.dtype, &[6, 1], (-9.0, 2.0)), c.of(c.dtype, &[10], (0.0, 9.0)));
        let (lows, highs) = (spread(&low.whole, &[4, 6, 10]), spread(&high.whole, &[4, 6, 10]));
        let greater = |x: Element, y: Element| if x.order(y) == Some(Ordering::Less) { y } else { x };
        let lesser = |x: Element, y: Element| if x.order(y) == Some(Ordering::Greater) { y } else { x };
        let with = |f: &dyn Fn(Element, Element, Element) -> Element| {
            let mut whole = x.whole.clone();
            ndarray::Zip::from(&mut whole).and(&lows).and(&highs).for_each(|x, low, high| *x = f(*x, *low, *high));
            whole
        };
        c.moves(vec![x.lazy.clone(), low.lazy.clone(), high.lazy.clone()], vec![], with(&|x, low, high| lesser(greater(x, low), high)));
        c.moves(vec![x.lazy.clone(), low.lazy.clone()], vec![], with(&|x, low, _| greater(x, low)));
        c.moves(vec![x.lazy.clone()], vec![("max", high.lazy.clone())], with(&|x, _, high| lesser(x, high)));
        c.moves(vec![x.lazy.clone(), Value::None, Value::Int(3)], vec![], with(&|x, _, _| lesser(x, Int(3).fit(c.dtype))));
        c.moves(vec![x.lazy.clone()], vec![], x.whole.clone());
    };

    sum SOME |c| {
        let x = c.cube();
        reduction(c, &x, summed(c.dtype), &[], Exact, &total);
        let wider = if is_complex(c.dtype) { Complex128 } else { Float64 };
        reduction(c, &x, wider, &[("dtype", Value::DType(wider))], Exact, &|v| total(v).fit(wider));
    };
    prod NUMERIC |c| {
        // Powers of 2, so that floats are exact too; integers wrap.
        let value = |_| match c.dtype {
            d if is_complex(d) => Complex([C::new(1.0, 0.0), C::new(0.0, -1.0), C::new(0.0, 2.0), C::new(-0.5, 0.0)][(4.0 * c.draw()) as usize]),
            d if d.is_integer() => Int(1 + (3.0 * c.draw()) as i128 - if is_signed(d) { 4 } else { 0 }),
            _ => Real([1.0, -2.0, 0.5, -1.0][(4.0 * c.draw()) as usize]),
        };
        let x = c.pair(ArrayD::from_shape_fn(IxDyn(&[4, 6, 10]), |_| value(())), c.dtype);
        reduction(c, &x, summed(c.dtype), &[], Exact, &product);
        if c.dtype.is_integer() {
            reduction(c, &x, Int32, &[("dtype", Value::DType(Int32))], Exact, &product);
        }
    };
    cumulative_sum SOME |c| running(c, &c.cube(), summed(c.dtype), &total);
    cumulative_prod NUMERIC |c| {
        let value = |_| match c.dtype {
            d if is_complex(d) => Complex([C::new(1.0, 0.0), C::new(0.0, -1.0)][(2.0 * c.draw()) as usize]),
            d if d.is_integer() => Int(1 + (2.0 * c.draw()) as i128),
            _ => Real([1.0, -2.0, 0.5, -1.0][(4.0 * c.draw()) as usize]),
        };
        let x = c.pair(ArrayD::from_shape_fn(IxDyn(&[4, 6, 5]), |_| value(())), c.dtype);
        running(c, &x, summed(c.dtype), &product);
    };
    matmul NUMERIC |c| {
        let shapes: [(&[usize], &[usize], &[usize]); 4] = [(&[5, 7], &[7, 4], &[]), (&[3, 5, 7], &[7, 4], &[3]), (&[2, 1, 5, 7], &[3, 7, 4], &[2, 3]), (&[1, 9], &[9, 1], &[])];
        for (a, b, stack) in shapes {
            let (x, y) = (c.of(c.dtype, a, (-9.0, 9.0)), c.of(c.dtype, b, (-9.0, 9.0)));
            let mut turned = y.whole.clone();
            turned.swap_axes(b.len() - 2, b.len() - 1);
            let whole = matrices(&x.whole, &turned, stack).mapv(|v| v.fit(c.dtype));
            c.check(vec![x.lazy.clone(), y.lazy.clone()], vec![], &[(c.dtype, whole)], Exact);
        }
        // Vectors are rows and columns.
        let (x, v, w) = (c.of(c.dtype, &[5, 7], (-9.0, 9.0)), c.of(c.dtype, &[7], (-9.0, 9.0)), c.of(c.dtype, &[5], (-9.0, 9.0)));
        let (row, rows) = (|x: &Pair| x.whole.iter().copied().collect::<Vec<_>>(), |x: &ArrayD<Element>, i: usize| x.index_axis(Axis(0), i).iter().copied().collect::<Vec<_>>());
        let by_column = list((0..5).map(|i| dot(&rows(&x.whole, i), &row(&v)).fit(c.dtype)).collect());
        c.check(vec![x.lazy.clone(), v.lazy.clone()], vec![], &[(c.dtype, by_column)], Exact);
        let turned = x.whole.clone().reversed_axes();
        let by_row = list((0..7).map(|i| dot(&row(&w), &rows(&turned, i)).fit(c.dtype)).collect());
        c.check(vec![w.lazy.clone(), x.lazy.clone()], vec![], &[(c.dtype, by_row)], Exact);
        c.check(vec![v.lazy.clone(), v.lazy.clone()], vec![], &[(c.dtype, full(&[], dot(&row(&v), &row(&v)).fit(c.dtype)))], Exact);
    };
    tensordot NUMERIC |c| {
        let (x, y) = (c.of(c.dtype, &[3, 4, 5], (-9.0, 9.0)), c.of(c.dtype, &[5, 4, 2], (-9.0, 9.0)));
        let all = |a: [usize; 2], b: [usize; 2], n: usize, at: &dyn Fn(usize, usize, usize) -> (Element, Element)| {
            ArrayD::from_shape_fn(IxDyn(&[a[0], b[0]]), |index| {
                let (a, b): (Vec<Element>, Vec<Element>) = (0..n).map(|k| at(index[0], index[1], k)).unzip();
                dot(&a, &b).fit(c.dtype)
            })
        };
        let pairs = |l: &[i128], r: &[i128]| Value::Sequence([l, r].map(|a| Value::Sequence(a.iter().map(|i| Value::Int(*i)).collect())).to_vec());
        let both = all([3, 0], [2, 0], 20, &|i, j, k| (x.whole[[i, k / 5, k % 5]], y.whole[[k % 5, k / 5, j]]));
        c.check(vec![x.lazy.clone(), y.lazy.clone()], vec![("axes", pairs(&[1, 2], &[1, 0]))], &[(c.dtype, both)], Exact);
        let one = all([12, 0], [8, 0], 5, &|i, j, k| (x.whole[[i / 4, i % 4, k]], y.whole[[k, j / 2, j % 2]])).into_shape_with_order(IxDyn(&[3, 4, 4, 2])).unwrap();
        c.check(vec![x.lazy.clone(), y.lazy.clone()], vec![("axes", Value::Int(1))], &[(c.dtype, one)], Exact);
        let (v, w) = (c.of(c.dtype, &[4], (-9.0, 9.0)), c.of(c.dtype, &[6], (-9.0, 9.0)));
        let none = all([4, 0], [6, 0], 1, &|i, j, _| (v.whole[[i]], w.whole[[j]]));
        c.check(vec![v.lazy.clone(), w.lazy.clone()], vec![("axes", Value::Int(0))], &[(c.dtype, none)], Exact);
    };
    vecdot NUMERIC |c| {
        let (x, y) = (c.of(c.dtype, &[4, 1, 7], (-9.0, 9.0)), c.of(c.dtype, &[6, 7], (-9.0, 9.0)));
        let conjugate = |x: Element| if let Complex(z) = x { Complex(z.conj()) } else { x };
        let whole = ArrayD::from_shape_fn(IxDyn(&[4, 6]), |at| {
            let (a, b): (Vec<Element>, Vec<Element>) = (0..7).map(|k| (conjugate(x.whole[[at[0], 0, k]]), y.whole[[at[1], k]])).unzip();
            dot(&a, &b).fit(c.dtype)
        });
        c.check(vec![x.lazy.clone(), y.lazy.clone()], vec![], &[(c.dtype, whole)], Exact);
    };
    outer NUMERIC |c| {
        let (x, y) = (c.of(c.dtype, &[9], (-9.0, 9.0)), c.of(c.dtype, &[5], (-9.0, 9.0)));
        let whole = ArrayD::from_shape_fn(IxDyn(&[9, 5]), |at| product(&[x.whole[[at[0]]], y.whole[[at[1]]]]).fit(c.dtype));
        c.moves(vec![x.lazy.clone(), y.lazy.clone()], vec![], whole);
    };
    mean SOME |c| {
        let dtype = averaged(c.dtype);
        reduction(c, &c.cube(), dtype, &[], Ulps(1), &|v| {
            let (sum, n) = (total(v), v.len() as f64);
            if let Complex(sum) = sum { Complex(sum / n) } else { Real(sum.real() / n) }
        });
    };
    var FLOATS var_or_std;
    std FLOATS var_or_std;
    min REALS |c| reduction(c, &c.cube(), c.dtype, &[], Exact, &|v| v[first_best(v, Ordering::Less).int() as usize]);
    max REALS |c| reduction(c, &c.cube(), c.dtype, &[], Exact, &|v| v[first_best(v, Ordering::Greater).int() as usize]);
    argmin REALS |c| reduction(c, &c.of(c.dtype, &[4, 6, 10], (-3.0, 3.0)), Int64, &[], Exact, &|v| first_best(v, Ordering::Less));
    argmax REALS |c| reduction(c, &c.of(c.dtype, &[4, 6, 10], (-3.0, 3.0)), Int64, &[], Exact, &|v| first_best(v, Ordering::Greater));
    count_nonzero SOME |c| {
        let x = c.of(c.dtype, &[4, 6, 10], (-0.1, 0.1));
        reduction(c, &x, Int64, &[], Exact, &|v| Int(v.iter().filter(|x| x.truth()).count() as i128));
    };
    where SOME |c| {
        let (condition, x, y) = (c.of(Bool, &[6, 1], (0.0, 1.0)), c.cube(), c.of(c.dtype, &[10], (-9.0, 9.0)));
        let (chosen, others) = (spread(&condition.whole, &[4, 6, 10]), spread(&y.whole, &[4, 6, 10]));
        let mut whole = x.whole.clone();
        ndarray::Zip::from(&mut whole).and(&chosen).and(&others).for_each(|x, c, y| *x = if c.truth() { *x } else { *y });
        c.moves(vec![condition.lazy, x.lazy, y.lazy], vec![], whole);
    };

    all SOME |c| reduction(c, &c.of(c.dtype, &[4, 6, 10], (-0.2, 9.0)), Bool, &[], Exact, &|v| Element::Bool(v.iter().all(|x| x.truth())));
    any SOME |c| reduction(c, &c.of(c.dtype, &[4, 6, 10], (-0.02, 0.02)), Bool, &[], Exact, &|v| Element::Bool(v.iter().any(|x| x.truth())));
    diff SOME |c| {
        let x = c.cube();
        let difference = |a: &ArrayD<Element>, axis: usize| {
            let n = a.shape()[axis];
            let (mut high, low) = (pick(a, axis, &(1..n).collect::<Vec<_>>()), pick(a, axis, &(0..n - 1).collect::<Vec<_>>()));
            high.zip_mut_with(&low, |x, y| *x = if c.dtype == Bool { Element::Bool(x != y) } else { each2(*x, *y, |x, y| x - y, |x, y| x - y, |x, y| x - y).fit(c.dtype) });
            high
        };
        c.moves(vec![x.lazy.clone()], vec![], difference(&x.whole, 2));
        c.moves(vec![x.lazy.clone()], vec![("n", Value::Int(0))], x.whole.clone());
        c.moves(vec![x.lazy.clone()], vec![("n", Value::Int(3)), ("axis", Value::Int(0))], difference(&difference(&difference(&x.whole, 0), 0), 0));
        let (before, after) = (c.of(c.dtype, &[4, 2, 10], (-9.0, 9.0)), c.of(c.dtype, &[4, 1, 10], (-9.0, 9.0)));
        let longer = ndarray::concatenate(Axis(1), &[before.whole.view(), x.whole.view(), after.whole.view()]).unwrap();
        let ends = vec![("axis", Value::Int(-2)), ("prepend", before.lazy), ("append", after.lazy), ("n", Value::Int(2))];
        c.moves(vec![x.lazy.clone()], ends, difference(&difference(&longer, 1), 1));
        c.refuses(vec![x.lazy], vec![("n", Value::Int(-1))]);
    };

    broadcast_arrays SOME |c| {
        let (x, y, z) = (c.of(c.dtype, &[6, 1], (-9.0, 9.0)), c.cube(), c.of(c.dtype, &[10], (-9.0, 9.0)));
        let all = [&x.whole, &y.whole, &z.whole].map(|w| (c.dtype, spread(w, &[4, 6, 10])));
        c.check(vec![x.lazy, y.lazy, z.lazy], vec![], &all, Exact);
    };
    broadcast_to SOME |c| {
        let x = c.of(c.dtype, &[6, 1], (-9.0, 9.0));
        c.moves(vec![x.lazy.clone(), ints(&[4, 6, 10])], vec![], spread(&x.whole, &[4, 6, 10]));
        c.moves(vec![x.lazy.clone(), ints(&[6, 5])], vec![], spread(&x.whole, &[6, 5]));
        c.refuses(vec![x.lazy, ints(&[4, 10])], vec![]);
    };
    concat SOME |c| {
        let (x, y) = (c.cube(), c.of(c.dtype, &[4, 3, 10], (-9.0, 9.0)));
        let arrays = |a: &[&Pair]| Value::Sequence(a.iter().map(|p| p.lazy.clone()).collect());
        c.moves(vec![arrays(&[&x, &y, &x])], vec![("axis", Value::Int(-2))], ndarray::concatenate(Axis(1), &[x.whole.view(), y.whole.view(), x.whole.view()]).unwrap());
        let flat = list(x.whole.iter().chain(&y.whole).copied().collect());
        c.moves(vec![arrays(&[&x, &y])], vec![("axis", Value::None)], flat);
        c.refuses(vec![arrays(&[&x, &y])], vec![]);
    };
    expand_dims SOME |c| {
        let x = c.cube();
        c.moves(vec![x.lazy.clone()], vec![], x.whole.clone().insert_axis(Axis(0)));
        c.moves(vec![x.lazy.clone()], vec![("axis", Value::Int(-1))], x.whole.clone().insert_axis(Axis(3)));
        c.moves(vec![x.lazy.clone()], vec![("axis", Value::Int(2))], x.whole.clone().insert_axis(Axis(2)));
        c.refuses(vec![x.lazy, Value::Int(4)], vec![]);
    };
    flip SOME |c| {
        let x = c.cube();
        let flipped = |axes: &[usize]| {
            let mut whole = x.whole.clone();
            axes.iter().for_each(|d| whole.invert_axis(Axis(*d)));
            whole
        };
        c.moves(vec![x.lazy.clone()], vec![], flipped(&[0, 1, 2]));
        c.moves(vec![x.lazy.clone()], vec![("axis", Value::Int(1))], flipped(&[1]));
        c.moves(vec![x.lazy.clone()], vec![("axis", ints(&[-1, 0]))], flipped(&[0, 2]));
    };
    matrix_transpose SOME |c| {
        let x = c.cube();
        c.moves(vec![x.lazy.clone()], vec![], permuted(&x.whole, &[0, 2, 1]));
    };
    moveaxis SOME |c| {
        let x = c.cube();
        c.moves(vec![x.lazy.clone(), Value::Int(0), Value::Int(-1)], vec![], permuted(&x.whole, &[1, 2, 0]));
        c.moves(vec![x.lazy.clone(), ints(&[0, 1]), ints(&[2, 0])], vec![], permuted(&x.whole, &[1, 2, 0]));
        c.refuses(vec![x.lazy, ints(&[0, 1]), Value::Int(0)], vec![]);
    };
    pad SOME |c| {
        type From = fn(i64, i64) -> Option<i64>;
        let modes: [(&str, From); 5] = [
            ("constant", |i, n| (0..n).contains(&i).then_some(i)),
            ("edge", |i, n| Some(i.clamp(0, n - 1))),
            ("reflect", |i, n| Some(if i < 0 { -i } else if i < n { i } else { 2 * (n - 1) - i })),
            ("symmetric", |i, n| Some(if i < 0 { -i - 1 } else if i < n { i } else { 2 * n - 1 - i })),
            ("wrap", |i, n| Some(i.rem_euclid(n))),
        ];
        let (x, widths) = (c.cube(), [(0, 3), (2, 1), (5, 4)]);
        for (mode, from) in modes {
            let shape: Vec<usize> = widths.iter().zip(x.whole.shape()).map(|((a, b), n)| a + b + n).collect();
            let whole = ArrayD::from_shape_fn(IxDyn(&shape), |at| {
                let at: Option<Vec<usize>> = (0..3).map(|d| from(at[d] as i64 - widths[d].0 as i64, x.whole.shape()[d] as i64).map(|i| i as usize)).collect();
                at.map_or(Int(1).fit(c.dtype), |at| x.whole[&at[..]])
            });
            let pairs = Value::Sequence(widths.iter().map(|(a, b)| ints(&[*a as i128, *b as i128])).collect());
            c.moves(vec![x.lazy.clone(), pairs], vec![("mode", Value::Text(mode.into())), ("constant_values", Value::Int(1))], whole);
        }
        let more = ArrayD::from_shape_fn(IxDyn(&[6, 8, 12]), |at| {
            let inside = (0..3).all(|d| (1..=x.whole.shape()[d]).contains(&at[d]));
            if inside { x.whole[[at[0] - 1, at[1] - 1, at[2] - 1]] } else { zero(c.dtype) }
        });
        c.moves(vec![x.lazy, Value::Int(1)], vec![], more);
    };
    permute_dims SOME |c| {
        let x = c.cube();
        c.moves(vec![x.lazy.clone(), ints(&[2, 0, 1])], vec![], permuted(&x.whole, &[2, 0, 1]));
        c.moves(vec![x.lazy.clone(), ints(&[-1, -2, -3])], vec![], permuted(&x.whole, &[2, 1, 0]));
        c.refuses(vec![x.lazy, ints(&[0, 0, 1])], vec![]);
    };
    repeat SOME |c| {
        let x = c.cube();
        c.moves(vec![x.lazy.clone(), Value::Int(3)], vec![("axis", Value::Int(1))], pick(&x.whole, 1, &(0..18).map(|i| i / 3).collect::<Vec<_>>()));
        c.moves(vec![x.lazy.clone(), ints(&[2, 0, 1, 3])], vec![("axis", Value::Int(0))], pick(&x.whole, 0, &[0, 0, 2, 3, 3, 3]));
        c.moves(vec![x.lazy, Value::Int(2)], vec![], list(x.whole.iter().flat_map(|x| [*x, *x]).collect()));
    };
    reshape SOME |c| {
        let x = c.cube();
        for (asked, shape) in [(ints(&[-1]), &[240][..]), (ints(&[24, 10]), &[24, 10]), (ints(&[4, 1, 60, -1]), &[4, 1, 60, 1]), (ints(&[10, 6, 4]), &[10, 6, 4])] {
            c.moves(vec![x.lazy.clone(), asked], vec![], ArrayD::from_shape_vec(IxDyn(shape), x.whole.iter().copied().collect()).unwrap());
        }
        c.refuses(vec![x.lazy, ints(&[7, -1])], vec![]);
    };
    roll SOME |c| {
        let x = c.cube();
        let moved = |n: i64, by: i64| (0..n).map(|i| (i - by).rem_euclid(n) as usize).collect::<Vec<_>>();
        c.moves(vec![x.lazy.clone(), Value::Int(2)], vec![("axis", Value::Int(2))], pick(&x.whole, 2, &moved(10, 2)));
        c.moves(vec![x.lazy.clone(), ints(&[-13, 1])], vec![("axis", ints(&[1, 0]))], pick(&pick(&x.whole, 1, &moved(6, -13)), 0, &moved(4, 1)));
        let mut flat: Vec<Element> = x.whole.iter().copied().collect();
        flat.rotate_right(37);
        c.moves(vec![x.lazy, Value::Int(37)], vec![], ArrayD::from_shape_vec(IxDyn(&[4, 6, 10]), flat).unwrap());
    };
    squeeze SOME |c| {
        let x = c.of(c.dtype, &[1, 6, 1, 4], (-9.0, 9.0));
        c.moves(vec![x.lazy.clone(), Value::Int(0)], vec![], x.whole.clone().remove_axis(Axis(0)));
        c.moves(vec![x.lazy.clone(), ints(&[-2, 0])], vec![], x.whole.clone().remove_axis(Axis(2)).remove_axis(Axis(0)));
        c.refuses(vec![x.lazy, Value::Int(1)], vec![]);
    };
    stack SOME |c| {
        let (x, y) = (c.cube(), c.cube());
        let arrays = Value::Sequence(vec![x.lazy, y.lazy]);
        c.moves(vec![arrays.clone()], vec![], ndarray::stack(Axis(0), &[x.whole.view(), y.whole.view()]).unwrap());
        c.moves(vec![arrays], vec![("axis", Value::Int(-1))], ndarray::stack(Axis(3), &[x.whole.view(), y.whole.view()]).unwrap());
    };
    tile SOME |c| {
        let x = c.square();
        let twice = |n: usize, times: usize| (0..n * times).map(|i| i % n).collect::<Vec<_>>();
        c.moves(vec![x.lazy.clone(), ints(&[3])], vec![], pick(&x.whole, 1, &twice(4, 3)));
        let tiled = pick(&pick(&x.whole, 0, &twice(6, 2)), 1, &twice(4, 3));
        c.moves(vec![x.lazy.clone(), ints(&[2, 2, 3])], vec![], ndarray::stack(Axis(0), &[tiled.view(), tiled.view()]).unwrap());
        c.moves(vec![x.lazy, ints(&[0, 1])], vec![], full(&[0, 4], zero(c.dtype)));
    };
    tril SOME |c| triangles(c, |i, j, k| j <= i + k);
    triu SOME |c| triangles(c, |i, j, k| j >= i + k);
    unstack SOME |c| {
        let x = c.cube();
        let at = |axis: usize| (0..x.whole.shape()[axis]).map(|i| (c.dtype, x.whole.index_axis(Axis(axis), i).to_owned())).collect::<Vec<_>>();
        c.check(vec![x.lazy.clone()], vec![], &at(0), Exact);
        c.check(vec![x.lazy.clone()], vec![("axis", Value::Int(-2))], &at(1), Exact);
    };
    take SOME |c| {
        let x = c.cube();
        c.moves(vec![x.lazy.clone(), ints(&[5, 0, 0, -1])], vec![("axis", Value::Int(1))], pick(&x.whole, 1, &[5, 0, 0, 5]));
        c.moves(vec![x.lazy.clone(), ints(&[])], vec![("axis", Value::Int(-1))], full(&[4, 6, 0], zero(c.dtype)));
        let line = c.of(c.dtype, &[12], (-9.0, 9.0));
        c.moves(vec![line.lazy, ints(&[11, 3])], vec![], pick(&line.whole, 0, &[11, 3]));
        c.refuses(vec![x.lazy.clone(), ints(&[0])], vec![]);
        c.refuses(vec![x.lazy, ints(&[4])], vec![("axis", Value::Int(0))]);
    };
    astype EVERY |c| {
        // What every dtype holds; negative numbers in those that have them.
        let x = c.of(c.dtype, &[4, 6, 10], (0.0, 90.0));
        for to in DType::ALL {
            if is_complex(c.dtype) && !is_complex(to) && to != Bool {
                c.refuses(vec![x.lazy.clone(), Value::DType(to)], vec![]);
            } else {
                c.check(vec![x.lazy.clone(), Value::DType(to)], vec![], &[(to, x.whole.mapv(|x| x.fit(to)))], Exact);
            }
        }
        if is_signed(c.dtype) || c.dtype == Float32 || c.dtype == Float64 {
            let x = c.cube();
            c.check(vec![x.lazy.clone(), Value::Text("int16".into())], vec![], &[(Int16, x.whole.mapv(|x| x.fit(Int16)))], Exact);
        }
    };

    arange REALS |c| {
        let call = |start: Value, more: Vec<Value>, dtype: Option<DType>, own: DType, values: Vec<f64>| {
            let dtyped = dtype.map(|d| ("dtype", Value::DType(d)));
            let result = dtype.unwrap_or(own);
            let named = dtyped.into_iter().chain([("chunks", Value::Int([12, 6, 5, 1][c.chunking]))]).collect();
            c.check([vec![start], more].concat(), named, &[(result, list(values.into_iter().map(|x| Real(x).fit(result)).collect()))], Ulps(1));
        };
        use Value::{Float, Int};
        call(Int(12), vec![], Some(c.dtype), c.dtype, (0..12).map(f64::from).collect());
        call(Int(12), vec![], None, Int64, (0..12).map(f64::from).collect());
        call(Int(1), vec![Int(12), Int(3)], Some(c.dtype), c.dtype, vec![1.0, 4.0, 7.0, 10.0]);
        call(Int(0), vec![Int(12), Int(3)], None, Int64, vec![0.0, 3.0, 6.0, 9.0]);
        call(Int(17), vec![Int(-1), Int(-3)], Some(c.dtype), c.dtype, vec![17.0, 14.0, 11.0, 8.0, 5.0, 2.0]);
        call(Int(5), vec![Int(5)], Some(c.dtype), c.dtype, vec![]);
        call(Int(5), vec![Int(1)], Some(c.dtype), c.dtype, vec![]);
        call(Float(1.4), vec![Float(4.9), Float(0.4)], None, Float64, (0..9).map(|i| 1.4 + 0.4 * f64::from(i)).collect());
        call(Float(2.0), vec![Float(-2.0), Float(-0.5)], None, Float64, (0..8).map(|i| 2.0 - 0.5 * f64::from(i)).collect());
        c.refuses(vec![Int(5), Int(7), Int(0)], vec![]);
    };
    asarray EVERY |c| {
        let whole = ArrayD::from_shape_fn(IxDyn(&[2, 3]), |_| c.element(c.dtype, (-9.0, 9.0)));
        let number = |x: &Element| match *x {
            Element::Bool(x) => Value::Bool(x),
            Int(x) => Value::Int(x),
            Real(x) => Value::Float(x),
            Complex(x) => Value::Complex(x.re, x.im),
        };
        let rows = |a: &ArrayD<Element>| Value::Sequence(a.outer_iter().map(|row| Value::Sequence(row.iter().map(number).collect())).collect());
        c.moves(vec![rows(&whole)], vec![("dtype", Value::DType(c.dtype))], whole.clone());
        c.moves(vec![number(&whole[[0, 0]])], vec![("dtype", Value::DType(c.dtype))], full(&[], whole[[0, 0]]));
        let x = c.square();
        c.moves(vec![x.lazy], vec![], x.whole);
        c.refuses(vec![Value::Sequence(vec![Value::Int(1), ints(&[2])])], vec![]);
    };
    empty SOME |c| filled(c, vec![], 0);
    ones SOME |c| filled(c, vec![], 1);
    zeros SOME |c| filled(c, vec![], 0);
    full SOME |c| {
        filled(c, vec![Value::Int(1)], 1);
        c.check(vec![ints(&[2, 3]), Value::Float(0.5)], vec![c.chunks(&[2, 3])], &[(Float64, full(&[2, 3], Real(0.5)))], Exact);
        c.check(vec![Value::Int(3), Value::Bool(true)], vec![], &[(Bool, full(&[3], Element::Bool(true)))], Exact);
        c.check(vec![ints(&[]), Value::Complex(1.0, -2.0)], vec![], &[(Complex128, full(&[], Complex(C::new(1.0, -2.0))))], Exact);
    };
    empty_like SOME |c| filled_like(c, vec![], 0);
    ones_like SOME |c| filled_like(c, vec![], 1);
    zeros_like SOME |c| filled_like(c, vec![], 0);
    full_like SOME |c| filled_like(c, vec![Value::Int(3)], 3);
    eye SOME |c| {
        let eye = |n: usize, m: usize, k: i64| ArrayD::from_shape_fn(IxDyn(&[n, m]), |at| Int(i128::from(at[1] as i64 - at[0] as i64 == k)).fit(c.dtype));
        for (n, m, k) in [(4, 4, -1), (4, 4, 0), (4, 4, 1), (1, 3, 2), (6, 4, -3), (3, 3, 7)] {
            let named = vec![("k", Value::Int(k.into())), ("dtype", Value::DType(c.dtype)), c.chunks(&[n, m])];
            c.moves(vec![Value::Int(n as i128), Value::Int(m as i128)], named, eye(n, m, k));
        }
        c.moves(vec![Value::Int(5)], vec![("dtype", Value::DType(c.dtype))], eye(5, 5, 0));
        c.check(vec![Value::Int(5)], vec![], &[(Float64, eye(5, 5, 0).mapv(|x| Real(x.real())))], Exact);
    };
    linspace REALS |c| {
        for (start, stop, n) in [(6.0, 49.0, 50), (1.4, 4.9, 13), (0.0, 0.0, 0), (5.0, 1.0, 5), (3.0, 8.0, 1)] {
            for endpoint in [true, false] {
                let intervals = if endpoint { (n as f64 - 1.0).max(1.0) } else { f64::max(n as f64, 1.0) };
                let value = |i: usize| if endpoint && i + 1 == n && n > 1 { stop } else { start + (stop - start) / intervals * i as f64 };
                // Integers of distances that are none may be one less by rounding.
                if c.dtype.is_integer() && (0..n).any(|i| value(i).fract() != 0.0) {
                    continue;
                }
                let named = vec![("endpoint", Value::Bool(endpoint)), ("dtype", Value::DType(c.dtype)), ("chunks", Value::Int([50, 25, 5, 1][c.chunking]))];
                let whole = list((0..n).map(|i| Real(value(i)).fit(c.dtype)).collect());
                c.check(vec![Value::Float(start), Value::Float(stop), Value::Int(n as i128)], named, &[(c.dtype, whole)], Ulps(2));
            }
        }
        c.check(vec![Value::Int(0), Value::Int(1), Value::Int(3)], vec![], &[(Float64, list([0.0, 0.5, 1.0].map(Real).to_vec()))], Exact);
    };
    meshgrid SOME |c| {
        let arrays = [4, 6, 3].map(|n| c.of(c.dtype, &[n], (-9.0, 9.0)));
        for n in 1..=3 {
            for xy in [false, true] {
                let lazy: Vec<Value> = arrays[..n].iter().map(|a| a.lazy.clone()).collect();
                let place = |i: usize| if xy && n > 1 && i < 2 { 1 - i } else { i };
                let shape: Vec<usize> = (0..n).map(|d| arrays[place(d)].whole.len()).collect();
                let grids = (0..n).map(|i| (c.dtype, ArrayD::from_shape_fn(IxDyn(&shape), |at| arrays[i].whole[[at[place(i)]]])));
                let named = if xy { vec![] } else { vec![("indexing", Value::Text("ij".into()))] };
                c.check(lazy, named, &grids.collect::<Vec<_>>(), Exact);
            }
        }
    };

    random_integers INTEGERS |c| {
        let shape = [6, 7, 5];
        let (low, high) = if is_signed(c.dtype) { (-100, 28) } else { (3, 131) };
        let value = |i: usize| {
            let w = philox(i as u64 / 2, 42).map(u128::from);
            let word = w[2 * (i % 2)] << 32 | w[2 * (i % 2) + 1];
            Int(low + ((word * (high - low) as u128) >> 64) as i128)
        };
        let named = vec![("seed", Value::Int(42)), ("dtype", Value::DType(c.dtype)), c.chunks(&shape)];
        c.moves(vec![ints(&[6, 7, 5]), Value::Int(low), Value::Int(high)], named, ArrayD::from_shape_vec(IxDyn(&shape), (0..210).map(value).collect()).unwrap());
        c.refuses(vec![Value::Int(3), Value::Int(5), Value::Int(5)], vec![("seed", Value::Int(1))]);
        c.refuses(vec![Value::Int(3), Value::Int(5)], vec![("seed", Value::Int(1))]);
    };
    random_normal FLOATING |c| {
        let shape = [6, 7, 5];
        let value = |i: usize| {
            let w = philox(i as u64 / 2, 7).map(u64::from);
            let unit = |high: u64, low: u64| ((high << 32 | low) >> 11) as f64 / (1u64 << 53) as f64;
            let (radius, angle) = ((-2.0 * (unit(w[0], w[1]) + 1.0 / (1u64 << 53) as f64).ln()).sqrt() * 0.5, TAU * unit(w[2], w[3]));
            Real(3.0 + radius * if i.is_multiple_of(2) { angle.cos() } else { angle.sin() }).fit(c.dtype)
        };
        let named = vec![("seed", Value::Int(7)), ("dtype", Value::DType(c.dtype)), c.chunks(&shape)];
        let whole = ArrayD::from_shape_vec(IxDyn(&shape), (0..210).map(value).collect()).unwrap();
        c.check(vec![ints(&[6, 7, 5]), Value::Float(3.0), Value::Float(0.5)], named, &[(c.dtype, whole)], Ulps(4));
        c.refuses(vec![Value::Int(3)], vec![]);
    };
    random_uniform FLOATING |c| {
        let shape = [6, 7, 5];
        let value = |i: usize| {
            let (i, single) = (i as u64, c.dtype == Float32);
            let w = philox(if single { i / 4 } else { i / 2 }, 9).map(u64::from);
            let lane = (i % 2) as usize;
            let unit = if single { (w[(i % 4) as usize] >> 8) as f64 / 16_777_216.0 } else { ((w[2 * lane] << 32 | w[2 * lane + 1]) >> 11) as f64 / (1u64 << 53) as f64 };
            Real(-1.0 + 4.0 * unit).fit(c.dtype)
        };
        let named = vec![("seed", Value::Int(9)), ("dtype", Value::DType(c.dtype)), c.chunks(&shape)];
        let whole = ArrayD::from_shape_vec(IxDyn(&shape), (0..210).map(value).collect()).unwrap();
        c.check(vec![ints(&[6, 7, 5]), Value::Int(-1), Value::Int(3)], named, &[(c.dtype, whole)], Ulps(1));
    };

    rechunk EVERY |c| {
        let x = c.cube();
        for chunks in [ints(&[1, 6, 10]), ints(&[3, -1, 4]), Value::Int(2)] {
            c.moves(vec![x.lazy.clone(), chunks], vec![], x.whole.clone());
        }
        c.refuses(vec![x.lazy, ints(&[0, 1, 1])], vec![]);
    };
};

const FLOATING: &[DType] = &[Float32, Float64];

fn pick(a: &ArrayD<Element>, axis: usize, indices: &[usize]) -> ArrayD<Element> {
    a.select(Axis(axis), indices)
}

fn permuted(a: &ArrayD<Element>, order: &[usize]) -> ArrayD<Element> {
    a.clone().permuted_axes(IxDyn(order)).as_standard_layout().into_owned()
}

fn triangles(c: &Case<'_>, inside: fn(i64, i64, i64) -> bool) {
    for x in [c.cube(), c.square()] {
        for k in [0, -1, 2, 20] {
            let whole = ArrayD::from_shape_fn(x.whole.raw_dim(), |at| {
                let [.., i, j] = *at.slice() else { panic!("too few axes") };
                if inside(i as i64, j as i64, k) { x.whole[at] } else { zero(c.dtype) }
            });
            c.moves(vec![x.lazy.clone()], if k == 0 { vec![] } else { vec![("k", Value::Int(k.into()))] }, whole);
        }
    }
}

fn filled(c: &Case<'_>, more: Vec<Value>, value: i128) {
    for shape in [&[4, 6, 10][..], &[7], &[0, 3]] {
        let lengths = ints(&shape.iter().map(|n| *n as i128).collect::<Vec<_>>());
        let named = vec![("dtype", Value::DType(c.dtype)), c.chunks(shape)];
        c.moves([vec![lengths], more.clone()].concat(), named, full(shape, Int(value).fit(c.dtype)));
    }
}

fn filled_like(c: &Case<'_>, more: Vec<Value>, value: i128) {
    let x = c.cube();
    c.moves([vec![x.lazy.clone()], more.clone()].concat(), vec![], full(&[4, 6, 10], Int(value).fit(c.dtype)));
    let named = vec![("dtype", Value::DType(Float32))];
    c.check([vec![x.lazy], more].concat(), named, &[(Float32, full(&[4, 6, 10], Real(value as f64)))], Exact);
}

/// Philox4x32-10 as its paper has it: ten rounds of two multiplications, keys raised by Weyl sequences.
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

#[test]
fn every_function_is_what_its_oracle_says() {
    let (place, mut turns, mut checks) = (Place::quick(), BTreeMap::<&str, BTreeSet<(DType, usize)>>::new(), 0);
    let (spec, failures) = (place.spec(), RefCell::default());
    let mut all = |name: &'static str, dtypes: &[DType], run: &dyn Fn(&Case<'_>)| {
        for (i, dtype) in dtypes.iter().enumerate() {
            for chunking in 0..4 {
                let seed = Cell::new(name.bytes().fold(i as u64, |s, b| 31 * s + u64::from(b)));
                let case = Case { name, dtype: *dtype, chunking, spec: &spec, seed, checks: Cell::new(0), failures: &failures };
                run(&case);
                assert!(case.checks.get() > 0, "{name} of {dtype} checks nothing");
                checks += case.checks.get();
                turns.entry(name).or_default().insert((*dtype, chunking));
            }
        }
    };
    ELEMENTWISE.iter().for_each(|row| all(row.name, row.dtypes, &|c| elementwise(row, c)));
    OTHERS.iter().for_each(|row| all(row.name, row.dtypes, &row.run));
    let failures = failures.take();
    assert!(failures.is_empty(), "{} calls, the first of them at\n{}", failures.len(), failures[..failures.len().min(40)].join("\n"));
    for f in functions() {
        let turns = turns.get(f.name).unwrap_or_else(|| panic!("{} has no row here: write what it must give", f.name));
        let dtypes: BTreeSet<DType> = turns.iter().map(|t| t.0).collect();
        // Some are not defined for as many.
        let least = match f.dtypes {
            "bool" => 1,
            "floats" if f.name.starts_with("random") => 2,
            _ => 3,
        };
        assert!(dtypes.len() >= least && turns.len() == 4 * dtypes.len(), "{} runs on {dtypes:?} only", f.name);
    }
    println!("{} functions, {} turns of a dtype in a chunking, {checks} calls compared", turns.len(), turns.values().map(BTreeSet::len).sum::<usize>());
    assert_eq!(turns.len(), functions().len(), "a row is of no function, or one function has two");
    assert_eq!(ELEMENTWISE.len() + 1, 67);
}

/// Mean and variance of many random values are what their distribution says, within five standard errors; bounds hold.
#[test]
fn moments_of_random_values() {
    let place = Place::quick();
    let n = 200_000;
    let check = |name: &str, arguments: Vec<Value>, dtype: DType, (mean, variance, fourth): (f64, f64, f64), bounds: (f64, f64)| {
        let named = vec![("seed".to_owned(), Value::Int(2024)), ("dtype".to_owned(), Value::DType(dtype)), ("chunks".to_owned(), Value::Int(70_001))];
        let Ok(Value::Array(array)) = function(name).unwrap().call([vec![Value::Int(n)], arguments].concat(), named) else { panic!("{name}") };
        let values: Vec<f64> = computed(&array, &place.spec()).unwrap().iter().map(|x| x.real()).collect();
        let count = n as f64;
        let found = values.iter().sum::<f64>() / count;
        let spread = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let (error, spread_error) = ((variance / count).sqrt(), ((fourth - variance * variance) / count).sqrt());
        assert!((found - mean).abs() < 5.0 * error, "{name}: mean {found}, not {mean} ± {error}");
        assert!((spread - variance).abs() < 5.0 * spread_error, "{name}: variance {spread}, not {variance} ± {spread_error}");
        assert!(values.iter().all(|x| (bounds.0..bounds.1).contains(x)), "{name} leaves its bounds");
        // Neighbours have nothing to do with each other.
        let together = values.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum::<f64>() / count;
        assert!(together.abs() < 5.0 * variance / count.sqrt(), "{name}: neighbours go together, {together}");
        values
    };
    for dtype in FLOATING {
        check("random_uniform", vec![Value::Int(-1), Value::Int(3)], *dtype, (1.0, 16.0 / 12.0, 256.0 / 80.0), (-1.0, 3.0));
        let normal = check("random_normal", vec![Value::Float(3.0), Value::Float(0.5)], *dtype, (3.0, 0.25, 3.0 * 0.0625), (-10.0, 16.0));
        let within = normal.iter().filter(|x| (**x - 3.0).abs() < 0.5).count() as f64 / n as f64;
        assert!((within - 0.682_689_492).abs() < 5.0 * (0.6827 * 0.3173 / n as f64).sqrt(), "{within} within one deviation");
    }
    // Of 0..10 each one tenth.
    let dice = check("random_integers", vec![Value::Int(0), Value::Int(10)], Int16, (4.5, 8.25, 120.8625), (0.0, 10.0));
    for face in 0..10 {
        let share = dice.iter().filter(|x| **x == f64::from(face)).count() as f64 / n as f64;
        assert!((share - 0.1).abs() < 5.0 * (0.09 / n as f64).sqrt(), "{share} are {face}");
    }
}

/// A sum of `float64` is as if it were rounded once, also where each term alone would be lost.
#[test]
fn sums_keep_what_each_addition_would_lose() {
    let place = Place::quick();
    let n = 1_000_001;
    let check = |what: &str, values: Vec<f64>, exact: f64| {
        let line = ndarray::Array::from_shape_vec(IxDyn(&[n]), values).unwrap();
        // Contiguous, in two rows, and in two columns, where it is not contiguous.
        let twice = |axis| ndarray::stack(Axis(axis), &[line.view(), line.view()]).unwrap().as_standard_layout().into_owned();
        for (whole, axis) in [(line.clone(), 0), (twice(0), 1), (twice(1), 0)] {
            let array = freestone::asarray(&whole).sum(axis).unwrap();
            for x in freestone::compute::<f64>(&array, &place.spec()).unwrap() {
                assert!(ulps(x, exact, Float64) <= 1, "{what} of {:?} along {axis}: {x:?}, not {exact:?}", whole.shape());
            }
        }
    };
    let with = |first: f64, rest: &dyn Fn(usize) -> f64| std::iter::once(first).chain((1..n).map(rest)).collect::<Vec<_>>();
    check("1 and 1e-16 a million times", with(1.0, &|_| 1e-16), 1.0 + 1e-10);
    check("1e16 and 1 a million times", with(1e16, &|_| 1.0), 1e16 + 1e6);
    check("what cancels", with(1.0, &|i| [1e16, 3.0, -1e16, -3.0][i % 4]), 1.0);
    check("a tenth", vec![0.1; n], 100_000.1);
}

/// Numbers that a dtype does not hold once wrapped.
#[test]
fn numbers_that_do_not_fit_are_refused() {
    use freestone::{Complex128, Pad, arange, full};
    for (value, dtype) in [
        (300.0, DType::UInt8),
        (-1.0, DType::UInt8),
        (2.5, DType::Int8),
        (f64::NAN, DType::Int32),
        (1e300, DType::Int64),
        (9_223_372_036_854_775_808.0, DType::Int64),
    ] {
        assert!(full(&[2], value, dtype, &[2]).is_err(), "{value} as {dtype}");
    }
    assert!(full(&[2], 300, DType::UInt8, &[2]).is_err() && full(&[2], -1i64, DType::UInt64, &[2]).is_err());
    assert!(full(&[2], Complex128::new(0.0, 1.0), DType::Float64, &[2]).is_err());
    assert!(arange(0, 300, 1, DType::UInt8, 9).is_err() && arange(0, 256, 1, DType::UInt8, 9).is_ok());
    let x = full(&[2], 7.0, DType::Int8, &[2]).unwrap();
    assert!(x.pad(&[(1, 1)], Pad::Constant(300.into())).is_err() && x.pad(&[(1, 1)], Pad::Constant((-7).into())).is_ok());
    assert!(x.diff(0, u64::MAX).is_ok_and(|d| d.shape().unwrap() == [0]));
    assert!(freestone::zeros(&[99], DType::Int8, &[9]).unwrap().diff(0, 50).is_err());
}
