//! The special cases of the standard, and errors against an oracle in units in the last place.

use num_complex::Complex;

use super::{Elementary, RealMath};

/// Parses a table's value: a number or a fraction of `pi`. A leading `?` means that either sign is
/// right; the second result is true then.
fn value(text: &str) -> (f64, bool) {
    let number = text.trim_start_matches('?');
    let v = match number.trim_start_matches('-') {
        "pi" => std::f64::consts::PI,
        "pi/2" => std::f64::consts::FRAC_PI_2,
        "pi/4" => std::f64::consts::FRAC_PI_4,
        "3pi/4" => 3.0 * std::f64::consts::FRAC_PI_4,
        other => other.parse().unwrap(),
    };
    (if number.starts_with('-') { -v } else { v }, text.starts_with('?'))
}

fn agree(got: f64, (expect, any_sign): (f64, bool), tolerance: f64) -> bool {
    let (got, expect) = if any_sign { (got.abs(), expect.abs()) } else { (got, expect) };
    let near = got == expect || (got - expect).abs() <= tolerance * expect.abs();
    (got.is_nan() && expect.is_nan())
        || (near && got.is_sign_negative() == expect.is_sign_negative())
}

/// Checks `f` against rows of numbers: `n` arguments, then the expected parts.
#[track_caller]
fn rows(name: &str, table: &str, n: usize, f: impl Fn(&[f64]) -> Vec<f64>, tolerance: f64) {
    for row in table.split(';').map(str::trim).filter(|r| !r.is_empty()) {
        let values: Vec<(f64, bool)> = row.split_whitespace().map(value).collect();
        let arguments: Vec<f64> = values[..n].iter().map(|v| v.0).collect();
        let got = f(&arguments);
        assert_eq!(got.len() + n, values.len(), "{name}: {row}");
        let right = got.iter().zip(&values[n..]).all(|(g, e)| agree(*g, *e, tolerance));
        assert!(right, "{name}: {row}, got {got:?}");
    }
}

/// Calls a slice function with seventeen copies of one element, so that both the vector loop and
/// its remainder run.
fn spread<T: Copy + Default>(x: T, f: impl Fn(&[T], &mut [T])) -> T {
    let mut out = [T::default(); 17];
    f(&[x; 17], &mut out);
    out[5]
}

macro_rules! unary_specials {
    ($($f:ident $table:literal)*) => { $(
        let double = |x: &[f64]| vec![spread(x[0], super::$f::<f64>)];
        rows(concat!(stringify!($f), " f64"), $table, 1, double, 4e-16);
        let single = |x: &[f64]| vec![spread(x[0] as f32, super::$f::<f32>) as f64];
        rows(concat!(stringify!($f), " f32"), $table, 1, single, 2e-7);
    )* };
}

#[test]
fn real_special_cases() {
    unary_specials!(
        acos "nan nan; 1.5 nan; -1.5 nan; 1 0; inf nan; -inf nan; -1 pi; 0 pi/2"
        acosh "nan nan; 0.5 nan; -2 nan; -inf nan; 1 0; inf inf"
        asin "nan nan; 1.5 nan; -1.5 nan; 0 0; -0 -0; inf nan; 1 pi/2; -1 -pi/2"
        asinh "nan nan; 0 0; -0 -0; inf inf; -inf -inf"
        atan "nan nan; 0 0; -0 -0; inf pi/2; -inf -pi/2"
        atanh "nan nan; -2 nan; 2 nan; inf nan; -inf nan; -1 -inf; 1 inf; 0 0; -0 -0"
        cos "nan nan; 0 1; -0 1; inf nan; -inf nan"
        cosh "nan nan; 0 1; -0 1; inf inf; -inf inf"
        exp "nan nan; 0 1; -0 1; inf inf; -inf 0; 1000 inf; -1000 0"
        expm1 "nan nan; 0 0; -0 -0; inf inf; -inf -1; 1000 inf; -1000 -1"
        log "nan nan; -1 nan; -inf nan; 0 -inf; -0 -inf; 1 0; inf inf"
        log1p "nan nan; -2 nan; -inf nan; -1 -inf; 0 0; -0 -0; inf inf"
        log2 "nan nan; -1 nan; -inf nan; 0 -inf; -0 -inf; 1 0; inf inf; 8 3; 0.25 -2"
        log10 "nan nan; -1 nan; -inf nan; 0 -inf; -0 -inf; 1 0; inf inf; 1000 3; 1e15 15"
        sin "nan nan; 0 0; -0 -0; inf nan; -inf nan"
        sinh "nan nan; 0 0; -0 -0; inf inf; -inf -inf; 1000 inf; -1000 -inf"
        sqrt "nan nan; -1 nan; -inf nan; 0 0; -0 -0; inf inf; 4 2"
        tan "nan nan; 0 0; -0 -0; inf nan; -inf nan"
        tanh "nan nan; 0 0; -0 -0; inf 1; -inf -1; 100 1; -100 -1"
        reciprocal "nan nan; 0 inf; -0 -inf; inf 0; -inf -0; 4 0.25"
        sign "nan nan; 0 0; -0 0; 3 1; -3 -1; inf 1; -inf -1"
    );
}

macro_rules! binary_specials {
    ($($f:ident $table:literal)*) => { $(
        let double = |x: &[f64]| {
            vec![spread(x[0], |a, o| super::$f::<f64>(a, &[x[1]; 17], o))]
        };
        rows(concat!(stringify!($f), " f64"), $table, 2, double, 4e-16);
        let single = |x: &[f64]| {
            vec![spread(x[0] as f32, |a, o| super::$f::<f32>(a, &[x[1] as f32; 17], o)) as f64]
        };
        rows(concat!(stringify!($f), " f32"), $table, 2, single, 2e-7);
    )* };
}

#[test]
fn binary_special_cases() {
    binary_specials!(
        atan2 "nan 1 nan; 1 nan nan; nan nan nan; 1 0 pi/2; 1 -0 pi/2; 0 1 0; 0 0 0; 0 -0 pi;
            0 -1 pi; -0 1 -0; -0 0 -0; -0 -0 -pi; -0 -1 -pi; -1 0 -pi/2; -1 -0 -pi/2; 1 inf 0;
            1 -inf pi; -1 inf -0; -1 -inf -pi; inf 1 pi/2; -inf 1 -pi/2; inf inf pi/4;
            inf -inf 3pi/4; -inf inf -pi/4; -inf -inf -3pi/4"
        copysign "1 -2 -1; -1 2 1; 1 -0 -1; -1 0 1; 3 inf 3; 3 -inf -3; inf -1 -inf; nan 1 nan"
        hypot "inf nan inf; nan inf inf; -inf nan inf; nan -inf inf; 0 -3 3; -3 -0 3; 1 nan nan;
            nan 1 nan; nan nan nan; 3 4 5; -3 4 5; 0 0 0"
        logaddexp "nan 1 nan; 1 nan nan; nan inf nan; inf 1 inf; 1 inf inf; inf inf inf;
            -inf inf inf; inf -inf inf; -inf -inf -inf; -inf 1 1; 2 -inf 2"
        nextafter "nan 1 nan; 1 nan nan; -0 0 0; 0 -0 -0; inf inf inf; 2 2 2; -inf -inf -inf"
        divide "nan 1 nan; 1 nan nan; inf inf nan; 0 0 nan; 1 0 inf; 1 -0 -inf; -1 0 -inf; 1 inf 0;
            -1 inf -0; inf -2 -inf; -0 2 -0"
        pow "2 nan nan; nan 0 1; nan -0 1; 0 0 1; inf -0 1; nan 2 nan; 2 inf inf; -2 inf inf;
            2 -inf 0; -2 -inf 0; 1 inf 1; -1 inf 1; 1 -inf 1; -1 -inf 1; 1 nan 1; 1 5 1; 0.5 inf 0;
            -0.5 inf 0; 0.5 -inf inf; -0.5 -inf inf; inf 2 inf; inf 0.5 inf; inf -2 0; -inf 3 -inf;
            -inf 2 inf; -inf 0.5 inf; -inf -3 -0; -inf -2 0; 0 2 0; 0 0.5 0; 0 -2 inf; 0 -0.5 inf;
            0 -3 inf; -0 3 -0; -0 2 0; -0 0.5 0; -0 -3 -inf; -0 -2 inf; -0 -0.5 inf; -2 0.5 nan;
            -2 3 -8; -2 2 4; -2 -1 -0.5; 10 400 inf; 10 -400 0; -10 401 -inf; -10 -401 -0; 0 inf 0;
            0 -inf inf; inf inf inf; inf -inf 0; -inf inf inf; -inf -inf 0"
        remainder "nan 1 nan; 1 nan nan; inf inf nan; -inf inf nan; 0 0 nan; -0 0 nan; 0 3 0;
            -0 3 0; 0 -3 -0; -0 -3 -0; 1 0 nan; 1 -0 nan; -1 0 nan; inf 3 nan; inf -3 nan;
            -inf 3 nan; -inf -3 nan; 2 inf 2; 2 -inf -inf; -2 inf inf; -2 -inf -2; 7 3 1; -7 3 2;
            7 -3 -2; -7 -3 -1; 6 3 0; -6 3 0; 6 -3 -0"
        floor_divide "nan 1 nan; 1 nan nan; inf inf nan; -inf inf nan; 0 0 nan; -0 0 nan; 0 3 0;
            -0 3 -0; 0 -3 -0; -0 -3 0; 1 0 inf; 1 -0 -inf; -1 0 -inf; -1 -0 inf; inf 3 inf;
            inf -3 -inf; -inf 3 -inf; -inf -3 inf; 2 inf 0; 2 -inf -0; -2 inf -0; -2 -inf 0; 7 3 2;
            -7 3 -3; 7 -3 -3; -7 -3 2; 6 3 2; -6 3 -2; 1 3 0; -1 3 -1"
    );
}

/// C99's results where the standard and C agree, also for the conjugates.
macro_rules! complex_specials {
    ($($f:ident $table:literal)*) => { $(
        for (conjugate, sign) in [(false, 1.0), (true, -1.0)] {
            let parts = |w: Complex<f64>| vec![w.re, w.im * sign];
            let name = format!("{} {conjugate}", stringify!($f));
            let double = |x: &[f64]| {
                parts(spread(Complex::new(x[0], x[1] * sign), super::$f::<Complex<f64>>))
            };
            rows(&name, $table, 2, double, 4e-16);
            let single = |x: &[f64]| {
                let z = Complex::new(x[0] as f32, (x[1] * sign) as f32);
                let w = spread(z, super::$f::<Complex<f32>>);
                parts(Complex::new(w.re as f64, w.im as f64))
            };
            rows(&name, $table, 2, single, 2e-7);
        }
    )* };
}

#[test]
fn complex_special_cases() {
    complex_specials!(
        acos "0 0 pi/2 -0; -0 0 pi/2 -0; 0 nan pi/2 nan; -0 nan pi/2 nan; 2 inf pi/2 -inf;
            -2 inf pi/2 -inf; 2 nan nan nan; -inf 2 pi -inf; inf 2 0 -inf; -inf inf 3pi/4 -inf;
            inf inf pi/4 -inf; inf nan nan ?inf; -inf nan nan ?inf; nan 2 nan nan; nan inf nan -inf;
            nan nan nan nan"
        acosh "0 0 0 pi/2; -0 0 0 pi/2; 2 inf inf pi/2; -2 inf inf pi/2; 2 nan nan nan;
            0 nan nan ?pi/2; -inf 2 inf pi; inf 2 inf 0; -inf inf inf 3pi/4; inf inf inf pi/4;
            inf nan inf nan; -inf nan inf nan; nan 2 nan nan; nan inf inf nan; nan nan nan nan"
        asinh "0 0 0 0; 2 inf inf pi/2; 2 nan nan nan; inf 2 inf 0; inf inf inf pi/4; nan 0 nan 0;
            nan 2 nan nan; nan inf ?inf nan; nan nan nan nan; inf nan inf nan"
        asin "0 0 0 0; -0 0 -0 0; 2 inf 0 inf; inf 2 pi/2 inf; inf inf pi/4 inf; 0 nan 0 nan;
            nan nan nan nan; -inf 2 -pi/2 inf"
        atanh "0 0 0 0; 0 nan 0 nan; 1 0 inf 0; 2 inf 0 pi/2; 2 nan nan nan; inf 2 0 pi/2;
            inf inf 0 pi/2; inf nan 0 nan; nan 2 nan nan; nan inf ?0 pi/2; nan nan nan nan;
            -inf 2 -0 pi/2"
        atan "0 0 0 0; nan 0 nan 0; 0 1 0 inf; inf 2 pi/2 0; inf inf pi/2 0; nan inf nan 0;
            nan nan nan nan"
        cosh "0 0 1 0; 0 inf nan ?0; 0 nan nan ?0; 2 inf nan nan; 2 nan nan nan; inf 0 inf 0;
            inf 2 -inf inf; inf inf ?inf nan; inf nan inf nan; nan 0 nan ?0; nan 2 nan nan;
            nan nan nan nan; -inf 2 -inf -inf"
        cos "0 0 1 -0; 0 inf inf -0; nan 0 nan ?0; nan nan nan nan"
        exp "0 0 1 0; -0 0 1 0; 2 inf nan nan; 2 nan nan nan; inf 0 inf 0; -inf 0 0 0; -inf 2 -0 0;
            inf 2 -inf inf; -inf inf ?0 ?0; inf inf ?inf nan; -inf nan ?0 ?0; inf nan ?inf nan;
            nan 0 nan 0; nan 2 nan nan; nan nan nan nan"
        expm1 "0 0 0 0; 2 inf nan nan; 2 nan nan nan; inf 0 inf 0; -inf 2 -1 0; inf 2 -inf inf;
            -inf inf -1 ?0; inf inf ?inf nan; -inf nan -1 ?0; inf nan ?inf nan; nan 0 nan 0;
            nan 2 nan nan; nan nan nan nan"
        log "-0 0 -inf pi; 0 0 -inf 0; 2 inf inf pi/2; 2 nan nan nan; -inf 2 inf pi; inf 2 inf 0;
            -inf inf inf 3pi/4; inf inf inf pi/4; inf nan inf nan; -inf nan inf nan; nan 2 nan nan;
            nan inf inf nan; nan nan nan nan; -1 0 0 pi"
        log1p "-1 0 -inf 0; 2 inf inf pi/2; 2 nan nan nan; -inf 2 inf pi; inf 2 inf 0;
            -inf inf inf 3pi/4; inf inf inf pi/4; inf nan inf nan; -inf nan inf nan; nan 2 nan nan;
            nan inf inf nan; nan nan nan nan; 0 0 0 0"
        sinh "0 0 0 0; 0 inf ?0 nan; 0 nan ?0 nan; 2 inf nan nan; 2 nan nan nan; inf 0 inf 0;
            inf 2 -inf inf; inf inf ?inf nan; inf nan ?inf nan; nan 0 nan 0; nan 2 nan nan;
            nan nan nan nan"
        sin "0 0 0 0; -0 0 -0 0; 0 inf 0 inf; inf 0 nan ?0; nan nan nan nan"
        sqrt "0 0 0 0; -0 0 0 0; 2 inf inf inf; nan inf inf inf; inf inf inf inf; -inf inf inf inf;
            2 nan nan nan; -inf 2 0 inf; inf 2 inf 0; -inf nan nan ?inf; inf nan inf nan;
            nan 2 nan nan; nan nan nan nan; -4 0 0 2; 4 0 2 0"
        tanh "0 0 0 0; 2 inf nan nan; 0 inf 0 nan; 2 nan nan nan; 0 nan 0 nan; inf 2 1 0;
            inf inf 1 ?0; inf nan 1 ?0; nan 0 nan 0; nan 2 nan nan; nan nan nan nan"
        tan "0 0 0 0; 2 inf 0 1; nan inf ?0 1; nan nan nan nan"
        sign "0 0 0 ?0; -0 0 0 ?0; nan 1 nan nan; 1 nan nan nan; 3 4 0.6 0.8; -5 0 -1 0"
        reciprocal "4 0 0.25 ?0; 0 2 ?0 -0.5; nan nan nan nan; inf 1 0 ?0"
    );
}

/// Returns the distance of `got` from a more precise `expect`, in units in the last place of a
/// float type of `digits` binary digits and of this least exponent.
fn ulps(got: f64, expect: f64, digits: i32, least_exponent: i32) -> f64 {
    if got.is_nan() && expect.is_nan() || got == expect {
        return 0.0;
    }
    let exponent = ((expect.abs().to_bits() >> 52) as i32 - 1023).max(least_exponent);
    (got - expect).abs() / f64::from_bits(((exponent + 1023) as u64) << 52)
        * (1u64 << (digits - 1)) as f64
}

macro_rules! f32_distances {
    ($($f:ident $oracle:path, $step:literal $limit:literal;)*) => { $( {
        let x: Vec<f32> = (0..=u32::MAX).step_by($step).map(f32::from_bits).collect();
        let mut y = vec![0f32; x.len()];
        super::$f(&x, &mut y);
        let (mut worst, mut at) = (0.0, 0.0);
        for (x, y) in x.iter().zip(&y) {
            let expect = $oracle(*x as f64);
            let overflows = expect.abs() > f32::MAX as f64 && *y == expect as f32;
            let u = if overflows { 0.0 } else { ulps(*y as f64, expect, 24, -126) };
            if u > worst || u.is_nan() { (worst, at) = (u, *x); }
        }
        println!("f32 {:6} {worst:.3} at {at:e}", stringify!($f));
        assert!(worst <= $limit, "{} is {worst} ulp off at {at:e}", stringify!($f));
    } )* };
}

#[test]
fn f32_errors_are_bounded_over_all_exponents() {
    // libm's acosh is finite for some arguments below -1.
    f32_distances!(
        exp libm::exp, 1009 1.0;
        log libm::log, 1009 1.0;
        sin libm::sin, 1009 1.0;
        cos libm::cos, 1009 1.0;
        tan libm::tan, 2003 2.5;
        acos libm::acos, 20011 0.51;
        acosh pxfm::f_acosh, 20011 0.51;
        asin libm::asin, 20011 0.51;
        asinh libm::asinh, 20011 0.51;
        atan libm::atan, 20011 0.51;
        atanh libm::atanh, 20011 0.51;
        cosh libm::cosh, 20011 2.5;
        expm1 libm::expm1, 20011 2.5;
        log1p libm::log1p, 20011 2.5;
        log2 libm::log2, 20011 1.0;
        log10 libm::log10, 20011 2.5;
        sinh libm::sinh, 20011 2.5;
        tanh libm::tanh, 20011 2.5;
        sqrt f64::sqrt, 20011 0.5;
    );
}

fn numbers(n: u64) -> impl Iterator<Item = u64> {
    (1..n).map(|i| {
        let z = i.wrapping_mul(0x9e3779b97f4a7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    })
}

/// Returns arguments of all magnitudes, and more in `low..high`.
fn arguments(low: f64, high: f64) -> Vec<f64> {
    let uniform = |z: u64| low + (high - low) * (z >> 11) as f64 * (1.0 / 9007199254740992.0);
    numbers(20000).map(f64::from_bits).chain(numbers(20000).map(uniform)).collect()
}

macro_rules! f64_distances {
    ($($f:ident $oracle:ident $low:literal $high:literal $limit:literal)*) => { $( {
        let x = arguments($low, $high);
        let mut y = vec![0f64; x.len()];
        super::$f(&x, &mut y);
        let (mut worst, mut at) = (0.0, 0.0);
        for (x, y) in x.iter().zip(&y) {
            let u = ulps(*y, pxfm::$oracle(*x), 53, -1022);
            if u > worst || u.is_nan() { (worst, at) = (u, *x); }
        }
        println!("f64 {:6} {worst} at {at:e}", stringify!($f));
        assert!(worst <= $limit, "{} is {worst} ulp off at {at:e}", stringify!($f));
    } )* };
}

/// The oracle is correctly rounded except in rare cases, so a distance of 1 means an error below
/// 1.5.
#[test]
fn f64_errors_are_bounded() {
    f64_distances!(
        exp f_exp -750.0 750.0 1.0
        log f_log 0.0 10.0 1.0
        sin f_sin -1000.0 1000.0 1.0
        cos f_cos -1000.0 1000.0 1.0
        tan f_tan -100.0 100.0 2.0
        acos f_acos -1.0 1.0 1.0
        acosh f_acosh 1.0 10.0 2.0
        asin f_asin -1.0 1.0 2.0
        asinh f_asinh -5.0 5.0 2.0
        atan f_atan -5.0 5.0 1.0
        atanh f_atanh -1.0 1.0 2.0
        cosh f_cosh -5.0 5.0 2.0
        expm1 f_expm1 -2.0 2.0 2.0
        log1p f_log1p -0.9 3.0 1.0
        log2 f_log2 0.0 10.0 1.0
        log10 f_log10 0.0 10.0 1.0
        sinh f_sinh -5.0 5.0 2.0
        tanh f_tanh -2.0 2.0 2.0
    );
}

#[test]
fn pow_errors_are_bounded() {
    let x: Vec<f64> =
        numbers(30000).map(|z| (z >> 11) as f64 * (10.0 / 9007199254740992.0)).collect();
    let y: Vec<f64> = numbers(60000)
        .skip(30000)
        .map(|z| (z >> 11) as f64 * (300.0 / 9007199254740992.0) - 150.0)
        .collect();
    let mut out = vec![0.0; x.len()];
    super::pow(&x, &y, &mut out);
    let worst =
        (0..x.len()).map(|i| ulps(out[i], pxfm::f_pow(x[i], y[i]), 53, -1022)).fold(0.0, f64::max);
    assert!(worst <= 1.0, "{worst}");

    let (x, y): (Vec<f32>, Vec<f32>) =
        (x.iter().map(|x| *x as f32).collect(), y.iter().map(|y| *y as f32 / 4.0).collect());
    let mut out = vec![0.0; x.len()];
    super::pow(&x, &y, &mut out);
    let expect = |i: usize| pxfm::f_pow(x[i] as f64, y[i] as f64);
    let worst = (0..x.len())
        .filter(|i| expect(*i) < 3e38)
        .map(|i| ulps(out[i] as f64, expect(i), 24, -126))
        .fold(0.0, f64::max);
    assert!(worst <= 1.0, "{worst}");
}

/// Compares slice functions with the scalar methods, which are compiled for the baseline here: each
/// fused multiply-add is a call.
macro_rules! same_bits {
    ($t:ident: $($f:ident)*) => { $( {
        let any = |z: u64| $t::from_bits((z >> (64 - 8 * size_of::<$t>())) as _);
        let moderate = |z: u64| z as $t * 1e-18 - 9.0;
        let pick = |z: u64| if z % 2 == 0 { moderate(z) } else { any(z) };
        let x: Vec<$t> = numbers(3000).map(pick).collect();
        let mut y = vec![0.0; x.len()];
        super::$f(&x, &mut y);
        for (x, y) in x.iter().zip(&y) {
            let scalar = Elementary::$f(*x);
            let same = scalar.to_bits() == y.to_bits() || (scalar.is_nan() && y.is_nan());
            assert!(same, "{} {x:e}: {scalar:e} {y:e}", stringify!($f));
        }
    } )* };
}

#[test]
fn results_do_not_depend_on_the_instruction_set() {
    same_bits!(f32: acos acosh asin asinh atan atanh cos cosh exp expm1 log log1p log2 log10);
    same_bits!(f32: sin sinh tan tanh);
    same_bits!(f64: acos acosh asin asinh atan atanh cos cosh exp expm1 log log1p log2 log10);
    same_bits!(f64: sin sinh tan tanh);
}

/// One huge argument at the end of moderate ones, for slices of many lengths.
#[test]
fn huge_arguments_are_recomputed_in_place() {
    for n in [0, 1, 7, 64, 1023, 1025, 3000] {
        let mut a: Vec<f64> = (0..n).map(|i| i as f64 * 0.37).collect();
        if let Some(last) = a.last_mut() {
            *last = 1e22;
        }
        let mut out = vec![0.0; n];
        super::sin(&a, &mut out);
        assert!(a.iter().zip(&out).all(|(a, o)| (libm::sin(*a) - o).abs() < 3e-16), "{n}");
        if n > 0 {
            assert_eq!(out[n - 1], -0.8522008497671888);
        }
        let b = vec![0.1; n];
        super::floor_divide(&a, &b, &mut out);
        assert!(
            out.iter()
                .zip(&a)
                .take(n.saturating_sub(1))
                .all(|(o, a)| *o == (a / 0.1 - 1e-9).floor() || *o == (a / 0.1 + 1e-9).floor()),
            "{n}"
        );
        super::remainder(&a, &b, &mut out);
        assert!(out.iter().all(|r| (0.0..0.1).contains(r)), "{n}");
    }
}

/// Results computed by Python.
#[test]
fn quotients_agree_with_python() {
    for (x, y, q, r) in [
        (1.0, 0.1, 9.0, 0.09999999999999995),
        (-1.0, 0.1, -10.0, 5.551115123125783e-17),
        (1e300, 3.0, 3.3333333333333335e299, 0.0),
        (-1e-20, 1.0, -1.0, 1.0),
        (5e-324, -1.0, -1.0, -1.0),
        (9007199254740993.0, 2.0, 4503599627370496.0, 0.0),
        (1e22, -7.0, -1.4285714285714287e21, -3.0),
        (1e30, 7.0, 1.4285714285714285e29, 5.0),
    ] {
        assert_eq!(RealMath::floor_divide(x, y), q, "{x} // {y}");
        assert_eq!(RealMath::remainder(x, y), r, "{x} % {y}");
    }
}

#[test]
fn nextafter_steps_by_one_unit() {
    assert_eq!(RealMath::nextafter(0.0f64, -1.0), -5e-324);
    assert_eq!(RealMath::nextafter(5e-324f64, 0.0).to_bits(), 0);
    assert_eq!(RealMath::nextafter(-5e-324f64, 0.0).to_bits(), (-0.0f64).to_bits());
    assert_eq!(RealMath::nextafter(1.0f32, 2.0), 1.0 + f32::EPSILON);
    assert_eq!(RealMath::nextafter(f32::MAX, f32::INFINITY), f32::INFINITY);
    assert_eq!(RealMath::nextafter(f64::INFINITY, 0.0), f64::MAX);
    assert_eq!(RealMath::nextafter(-1.0f64, 1.0), -1.0 + f64::EPSILON / 2.0);
}

#[test]
fn complex_arithmetic() {
    type C = Complex<f64>;
    assert_eq!(C::new(1.0, 2.0).times(C::new(3.0, -1.0)), C::new(5.0, 5.0));
    assert_eq!(C::new(5.0, 5.0).divide(C::new(2.0, -2.0)), C::new(0.0, 2.5));
    assert_eq!(C::new(1e308, 1e308).divide(C::new(1e308, 1e308)), C::new(1.0, 0.0));
    assert_eq!(
        C::new(1.0, -2.0).divide(C::new(0.0, 0.0)),
        C::new(f64::INFINITY, f64::NEG_INFINITY)
    );
    assert_eq!(Elementary::pow(C::new(1.0, 2.0), C::new(2.0, 0.0)), C::new(-3.0, 4.0));
    assert_eq!(Elementary::pow(C::new(0.0, 0.0), C::new(0.0, 0.0)), C::new(1.0, 0.0));
    let mut norms = [0.0; 3];
    super::norm(
        &[C::new(3e200, 4e200), C::new(f64::NAN, f64::INFINITY), C::new(3e-320, 0.0)],
        &mut norms,
    );
    norms[0] = (norms[0] / 1e185).round() * 1e185;
    assert_eq!(norms, [5e200, f64::INFINITY, 3e-320]);
    let huge = Elementary::exp(C::new(710.0, 1.5));
    assert!(huge.re.is_finite() && huge.im.is_infinite());
}

/// The values of every complex function at and near 0, 1, i, infinity and NaN.
const COMPLEX_POINTS: &str = include_str!("../../../../tests/data/complex_points.txt");

/// Returns the distance of a component in units in the last place: infinite if a NaN, an infinity
/// or the sign of a zero differs.
fn component_distance(got: f64, text: &str, digits: i32, least_exponent: i32) -> f64 {
    let either = text.starts_with('±');
    let expect: f64 = text.trim_start_matches('±').parse().unwrap();
    let (got, expect) = if either { (got.abs(), expect.abs()) } else { (got, expect) };
    match expect {
        _ if expect.is_nan() || got.is_nan() => {
            if expect.is_nan() && got.is_nan() {
                0.0
            } else {
                f64::INFINITY
            }
        }
        _ if expect == 0.0 && got == 0.0 && expect.is_sign_negative() != got.is_sign_negative() => {
            f64::INFINITY
        }
        _ if expect.is_infinite() != got.is_infinite() => f64::INFINITY,
        _ => ulps(got, expect, digits, least_exponent),
    }
}

fn pair(text: &str) -> (&str, &str) {
    text.strip_prefix('(')
        .and_then(|t| t.strip_suffix(')'))
        .and_then(|t| t.split_once(','))
        .unwrap()
}

macro_rules! complex_points {
    ($part:ident, $name:expr, $z:expr; $($f:ident)*) => {
        match $name {
            $(stringify!($f) => spread($z, super::$f::<Complex<$part>>),)*
            "square" => Elementary::times($z, $z),
            "abs" => {
                let mut out = [0.0; 17];
                super::norm(&[$z; 17], &mut out);
                Complex::new(out[5], 0.0)
            }
            other => unreachable!("{other}"),
        }
    };
    ($part:ident, $name:expr, $z:expr) => {
        complex_points!($part, $name, $z; acos acosh asin asinh atan atanh cos cosh exp expm1 log
            log1p log2 log10 reciprocal sign sin sinh sqrt tan tanh)
    };
}

fn power(dtype: &str, x: Complex<f64>, y: Complex<f64>) -> Complex<f64> {
    if dtype == "complex128" {
        return spread(x, |x, out| super::pow(x, &[y; 17], out));
    }
    let narrow = |z: Complex<f64>| Complex::new(z.re as f32, z.im as f32);
    let w = spread(narrow(x), |x, out| super::pow(x, &[narrow(y); 17], out));
    Complex::new(w.re as f64, w.im as f64)
}

#[test]
fn complex_functions_at_and_near_special_points() {
    let (mut failures, mut n) = (Vec::new(), 0);
    let mut worst = std::collections::BTreeMap::<(&str, &str), f64>::new();
    for line in COMPLEX_POINTS.lines().filter(|l| !l.starts_with('#')) {
        let [name, dtype, operands, result] =
            line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let mut operands = operands
            .split(' ')
            .map(pair)
            .map(|(re, im)| Complex::<f64>::new(re.parse().unwrap(), im.parse().unwrap()));
        let (Complex { re: a, im: b }, exponent) = (operands.next().unwrap(), operands.next());
        let (re, im) = if name == "abs" { (result, "0.0") } else { pair(result) };
        let (digits, least) = if dtype == "complex64" { (24, -126) } else { (53, -1022) };
        // f(conj z) = conj f(z), also on the branch cuts.
        for conjugate in [1.0, -1.0] {
            let exponent = exponent.map(|y| Complex::new(y.re, y.im * conjugate));
            let w = if let Some(y) = exponent {
                power(dtype, Complex::new(a, b * conjugate), y)
            } else if dtype == "complex64" {
                let w = complex_points!(f32, name, Complex::new(a as f32, (b * conjugate) as f32));
                Complex::new(w.re as f64, w.im as f64)
            } else {
                complex_points!(f64, name, Complex::new(a, b * conjugate))
            };
            let im_found = if name == "abs" { w.im } else { w.im * conjugate };
            let mut distance = component_distance(w.re, re, digits, least)
                .max(component_distance(im_found, im, digits, least));
            let numbers = [re, im].map(|t| t.trim_start_matches('±').parse::<f64>().unwrap());
            if let ("pow", Some(large)) = (
                name,
                numbers
                    .into_iter()
                    .map(f64::abs)
                    .reduce(f64::max)
                    .filter(|x| x.is_finite() && *x > 0.0),
            ) {
                // The parts of products, and of their exponentials, are as precise as the larger
                // part.
                let off = [w.re, im_found]
                    .iter()
                    .zip(numbers)
                    .map(|(x, y)| (x - y).abs())
                    .fold(0.0, f64::max);
                let signs = [(w.re, re), (im_found, im)].iter().all(|(x, t)| {
                    *x != 0.0 || component_distance(*x, t, digits, least).is_finite()
                });
                distance =
                    if signs { ulps(large + off, large, digits, least) } else { f64::INFINITY };
            }
            let most = worst.entry((name, dtype)).or_default();
            *most = most.max(if distance.is_finite() { distance } else { 0.0 });
            n += 1;
            if distance > MOST_ULPS {
                failures.push(format!(
                    "{name} of {dtype} ({a:e}, {b:e}) {exponent:?} conjugate {conjugate}: \
                     ({:e}, {im_found:e}), not {result}: {distance:.1}",
                    w.re
                ));
            }
        }
    }
    for ((name, dtype), distance) in &worst {
        println!("{name:12} {dtype:12} {distance:.2}");
    }
    assert!(failures.is_empty(), "{} of {n} fail:\n{}", failures.len(), failures.join("\n"));
    assert!(n > 13_000, "rows are missing");
}

/// The maximum error of a component.
const MOST_ULPS: f64 = 4.0;
