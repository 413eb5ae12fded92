//! Branch-free `f32` functions. The others round the `f64` function.
//!
//! Coefficients: Cephes (Moshier, 1992).

use super::{Elementary, RealMath, real64};

use std::f32::consts::{FRAC_2_PI, FRAC_PI_2, LN_2, LOG2_E};

const LN_2_LO: f32 = -1.90465422e-09; // ln 2 - LN_2
const PI_2_LO: f32 = -4.37113883e-08; // pi/2 - FRAC_PI_2
const PI_2_LO2: f32 = -1.71512451e-15;
const ROUNDER: f32 = 12582912.0; // 1.5 * 2^23

/// Above this limit, the `f64` lane is used.
const TRIG_LIMIT: f32 = 131072.0;

#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let square = x * x;
    let (mut a, mut b) = (coefficients[0], coefficients[1]);
    let mut i = 2;
    while i + 1 < N {
        (a, b) = (a.mul_add(square, coefficients[i]), b.mul_add(square, coefficients[i + 1]));
        i += 2;
    }
    if N.is_multiple_of(2) {
        a.mul_add(x, b)
    } else {
        b.mul_add(x, a.mul_add(square, coefficients[N - 1]))
    }
}

#[inline(always)]
fn two_sum(a: f32, b: f32) -> (f32, f32) {
    let s = a + b;
    let t = s - a;
    (s, (a - (s - t)) + (b - t))
}

/// Returns `2^k` for an integer `-127 < k < 128`.
#[inline(always)]
fn exp2_int(k: f32) -> f32 {
    f32::from_bits((k + ROUNDER).to_bits().wrapping_add(127) << 23)
}

#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// Returns `p 2^k` with one rounding, for `|k| < 250`.
#[inline(always)]
fn scale(p: f32, k: f32) -> f32 {
    let half = k.mul_add(0.5, ROUNDER) - ROUNDER;
    p * exp2_int(half) * exp2_int(k - half)
}

/// Returns `(k, p)` such that `exp(x + lo) = 2^k (1 + p)`.
#[inline(always)]
fn exp_parts(x: f32, lo: f32) -> (f32, f32) {
    let k = x.mul_add(LOG2_E, ROUNDER) - ROUNDER;
    let r0 = (-k).mul_add(LN_2, x);
    let correction = (-k).mul_add(LN_2_LO, lo);
    let r = r0 + correction;
    let q = polynomial(
        r,
        [
            1.9875691500e-4,
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
        ],
    );
    (k, r0 + (r * r).mul_add(q, correction))
}

#[inline(always)]
fn exp(x: f32) -> f32 {
    let (k, p) = exp_parts(clamp(x, -104.0, 89.0), 0.0);
    scale(1.0 + p, k)
}

super::hyperbolic!(f32, overflow 90.0, tiny 1e-9);

/// Returns `(k, f)` such that `x = 2^k (1 + f)` and `sqrt(1/2) <= 1 + f < sqrt(2)`, for positive
/// finite `x`.
#[inline(always)]
fn log_parts(x: f32) -> (f32, f32) {
    const SQRT_HALF: u32 = 0x3f3504f3;
    let subnormal = x < f32::MIN_POSITIVE;
    let scaled = if subnormal { x * 33554432.0 } else { x }; // 2^25
    let bits = scaled.to_bits().wrapping_add(0x3f800000 - SQRT_HALF);
    let k = (bits >> 23) as i32 as f32 - if subnormal { 127.0 + 25.0 } else { 127.0 };
    (k, f32::from_bits((bits & 0x007fffff) + SQRT_HALF) - 1.0)
}

/// Returns `t` such that `log(1 + f) = f + t`.
#[inline(always)]
fn log_series(f: f32, lo: f32) -> f32 {
    let z = f * f;
    let p = polynomial(
        f,
        [
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ],
    );
    // The second-order term is the largest, and is added last.
    (-0.5f32).mul_add(z, (f * z).mul_add(p, lo))
}

/// Returns `y` if `x` is positive and finite, else the limit of any logarithm.
#[inline(always)]
fn log_specials(x: f32, y: f32) -> f32 {
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x >= 0.0 { y } else { f32::NAN }
}

#[inline(always)]
fn log(x: f32) -> f32 {
    let (k, f) = log_parts(x);
    log_specials(x, k.mul_add(LN_2, f + log_series(f, k * LN_2_LO)))
}

#[inline(always)]
fn log2(x: f32) -> f32 {
    const LO: f32 = 1.925963033500011e-08; // log2(e) - LOG2_E
    let (k, f) = log_parts(x);
    let low = log_series(f, 0.0).mul_add(LOG2_E, f * LO);
    log_specials(x, k + f.mul_add(LOG2_E, low))
}

#[inline(always)]
fn log1p(x: f32) -> f32 {
    let u = 1.0 + x;
    let (k, f) = log_parts(u);
    // The rounding error of the sum, relative to u.
    let lost = if u > x.abs() { x - (u - 1.0) } else { 1.0 - (u - x) };
    let c = if (k == 0.0) | (u > 1e10) { 0.0 } else { lost / u };
    let f = if k == 0.0 { x } else { f };
    let y = log_specials(u, k.mul_add(LN_2, f + log_series(f, k.mul_add(LN_2_LO, c))));
    if x.abs() < 1e-9 { x } else { y }
}

/// Returns sin and cos of `x` reduced to `|x| <= pi/4`, and the quadrant in the low two bits; see
/// [`real64`].
#[inline(always)]
fn trig_parts(x: f32) -> (f32, f32, u32) {
    let t = x.mul_add(FRAC_2_PI, ROUNDER);
    let k = t - ROUNDER;
    let r0 = (-k).mul_add(FRAC_PI_2, x);
    let p = -k * PI_2_LO;
    let (r, e) = two_sum(r0, p);
    let lo = e + (-k).mul_add(PI_2_LO2, (-k).mul_add(PI_2_LO, -p));
    let z = r * r;
    let s = polynomial(z, [-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1]);
    let sin = r + (r * z).mul_add(s, lo);
    let c = polynomial(z, [2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2]);
    let h = 0.5 * z;
    let w = 1.0 - h;
    let cos = w + (((1.0 - w) - h) + (z * z).mul_add(c, -r * lo));
    (sin, cos, t.to_bits())
}

#[inline(always)]
fn turn(x: f32, quadrant: u32) -> f32 {
    f32::from_bits(x.to_bits() ^ ((quadrant << 30) & 0x80000000))
}

#[inline(always)]
fn sin_lane(x: f32) -> f32 {
    let (s, c, q) = trig_parts(x);
    let y = turn(if q & 1 == 0 { s } else { c }, q);
    if x.abs() < 1e-4 { x } else { y }
}

#[inline(always)]
fn cos_lane(x: f32) -> f32 {
    let (s, c, q) = trig_parts(x);
    turn(if q & 1 == 0 { c } else { s }, q.wrapping_add(1))
}

#[inline(always)]
fn tan_lane(x: f32) -> f32 {
    let (s, c, q) = trig_parts(x);
    let y = if q & 1 == 0 { s / c } else { -c / s };
    if x.abs() < 1e-4 { x } else { y }
}

#[inline(always)]
fn trig_outside(x: f32) -> bool {
    (x.abs() > TRIG_LIMIT) & (x.abs() < f32::INFINITY)
}

/// Computes in `f64`, with as many terms as `f32` needs: the series of atanh for the logarithm, the
/// Taylor series for the exponential.
#[inline(always)]
fn pow(x: f32, y: f32) -> f32 {
    const SQRT_HALF: u64 = 0x3fe6a09e667f3bcd;
    const ROUNDER: f64 = 6755399441055744.0; // 1.5 * 2^52
    let bits = (x.abs() as f64).to_bits().wrapping_add(0x3ff0000000000000 - SQRT_HALF);
    const TWO_52: f64 = 4503599627370496.0;
    let k = f64::from_bits((bits >> 52) | 0x4330000000000000) - (TWO_52 + 1023.0);
    let m = f64::from_bits((bits & 0x000fffffffffffff) + SQRT_HALF);
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let series = real64::polynomial(
        z,
        [2.0 / 13.0, 2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0],
    );
    let w = y as f64 * s.mul_add(series * std::f64::consts::LOG2_E, k);
    let w = if w < -200.0 { -200.0 } else { w };
    let w = if w > 200.0 { 200.0 } else { w };
    let t = w + ROUNDER;
    let r = (w - (t - ROUNDER)) * std::f64::consts::LN_2;
    let c = [
        1.0 / 40320.0,
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let e = real64::polynomial(r, c) * f64::from_bits(t.to_bits().wrapping_add(1023) << 52);
    pow_specials(x, y, e as f32)
}

super::real_common!(f32, u32, 16777216.0, libm::fmodf);

macro_rules! through_f64 {
    ($($f:ident),*) => { $(
        #[inline(always)]
        fn $f(self) -> f32 { Elementary::$f(self as f64) as f32 }
    )* };
    (two: $($f:ident),*) => { $(
        #[inline(always)]
        fn $f(self, other: f32) -> f32 { RealMath::$f(self as f64, other as f64) as f32 }
    )* };
}

impl Elementary for f32 {
    through_f64!(acos, acosh, asin, asinh, atan, atanh, log10);
    super::forward!(cosh, exp, expm1, log, log1p, log2, reciprocal, sign, sinh, tanh);
    super::forward!(cos_lane, sin_lane, tan_lane; trig_outside -> bool);
    super::forward!(two: divide, pow, times);

    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn sin(self) -> f32 {
        if trig_outside(self) { Elementary::sin(self as f64) as f32 } else { sin_lane(self) }
    }
    #[inline(always)]
    fn cos(self) -> f32 {
        if trig_outside(self) { Elementary::cos(self as f64) as f32 } else { cos_lane(self) }
    }
    #[inline(always)]
    fn tan(self) -> f32 {
        if trig_outside(self) { Elementary::tan(self as f64) as f32 } else { tan_lane(self) }
    }
}

impl RealMath for f32 {
    through_f64!(two: atan2, hypot, logaddexp);
    super::forward!(
        two: copysign, floor_divide, floor_divide_lane, nextafter, remainder, remainder_lane;
        quotient_outside -> bool
    );
}
