//! Branch-free `f64` functions.
//!
//! Coefficients: fdlibm (Sun Microsystems, 1993) for log, sin, cos, asin, atan; SLEEF 3 (Shibata,
//! 2016) for exp and pow.

use super::{Elementary, RealMath};

const LN_2: f64 = std::f64::consts::LN_2;
const LN_2_LO: f64 = 2.319046813846299558e-17; // ln 2 - LN_2
const FRAC_PI_2: f64 = std::f64::consts::FRAC_PI_2;
const PI_2_LO: f64 = 6.123233995736766036e-17; // pi/2 - FRAC_PI_2
const PI_2_LO2: f64 = -1.497384904859169777e-33;
const SIGN: u64 = 1 << 63;
/// Adding this constant leaves the nearest integer in the low bits.
const ROUNDER: f64 = 6755399441055744.0; // 1.5 * 2^52

/// Above this limit, three parts of pi/2 are not precise enough.
const TRIG_LIMIT: f64 = 1.099511627776e12; // 2^40

/// Evaluates a polynomial, highest power first, in two chains, because the longer functions are
/// bound by latency.
#[inline(always)]
pub(super) fn polynomial<const N: usize>(x: f64, coefficients: [f64; N]) -> f64 {
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
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let t = s - a;
    (s, (a - (s - t)) + (b - t))
}

/// Returns `2^k` for an integer `-1023 < k < 1024`.
#[inline(always)]
fn exp2_int(k: f64) -> f64 {
    f64::from_bits((k + ROUNDER).to_bits().wrapping_add(1023) << 52)
}

/// Returns `p 2^k` with one rounding, for `|k| < 2040`. Two factors are used, because one may be
/// out of range where the product is not.
#[inline(always)]
fn scale(p: f64, k: f64) -> f64 {
    let half = (k * 0.5 + ROUNDER) - ROUNDER;
    p * exp2_int(half) * exp2_int(k - half)
}

/// Returns `(k, p)` such that `exp(x + lo) = 2^k (1 + p)`, for `|x| < 2^20` and a small `lo`.
#[inline(always)]
fn exp_parts(x: f64, lo: f64) -> (f64, f64) {
    let k = (x * std::f64::consts::LOG2_E + ROUNDER) - ROUNDER;
    // The first difference is exact, and is added last. The rounding of `r` affects only the
    // series.
    let r0 = (-k).mul_add(LN_2, x);
    let correction = (-k).mul_add(LN_2_LO, lo);
    let r = r0 + correction;
    let q = polynomial(
        r,
        [
            2.08860621107283687536341e-09,
            2.51112930892876518610661e-08,
            2.75573911234900471893338e-07,
            2.75572362911928827629423e-06,
            2.4801587159235472998791e-05,
            0.000198412698960509205564975,
            0.00138888888889774492207962,
            0.00833333333331652721664984,
            0.0416666666666665047591422,
            0.166666666666666851703837,
            0.5,
        ],
    );
    (k, r0 + (r * r).mul_add(q, correction))
}

/// Clamps `x` for the range reductions. NaN stays NaN.
#[inline(always)]
fn clamp(x: f64, low: f64, high: f64) -> f64 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    let (k, p) = exp_parts(clamp(x, -746.0, 710.0), 0.0);
    scale(1.0 + p, k)
}

super::hyperbolic!(f64, overflow 711.0, tiny 1e-17);

/// Returns `(k, f)` such that `x = 2^k (1 + f)` and `sqrt(1/2) <= 1 + f < sqrt(2)`, for positive
/// finite `x`.
#[inline(always)]
fn log_parts(x: f64) -> (f64, f64) {
    const SQRT_HALF: u64 = 0x3fe6a09e667f3bcd;
    let subnormal = x < f64::MIN_POSITIVE;
    let scaled = if subnormal { x * 18014398509481984.0 } else { x }; // 2^54
    let bits = scaled.to_bits().wrapping_add(0x3ff0000000000000 - SQRT_HALF);
    const TWO_52: f64 = 4503599627370496.0;
    let k = f64::from_bits((bits >> 52) | 0x4330000000000000) - (TWO_52 + 1023.0);
    let m = f64::from_bits((bits & 0x000fffffffffffff) + SQRT_HALF);
    (if subnormal { k - 54.0 } else { k }, m - 1.0)
}

/// Returns `(h, t)` such that `log(1 + f) = f - h + t`.
#[inline(always)]
fn log_series(f: f64) -> (f64, f64) {
    let h = 0.5 * f * f;
    let s = f / (2.0 + f);
    let z = s * s;
    let r = z * polynomial(
        z,
        [
            1.479819860511658591e-01,
            1.531383769920937332e-01,
            1.818357216161805012e-01,
            2.222219843214978396e-01,
            2.857142874366239149e-01,
            3.999999999940941908e-01,
            6.666666666666735130e-01,
        ],
    );
    (h, s * (h + r))
}

/// Returns `y` if `x` is positive and finite, else the limit of any logarithm.
#[inline(always)]
fn log_specials(x: f64, y: f64) -> f64 {
    let y = if x == f64::INFINITY { x } else { y };
    let y = if x == 0.0 { f64::NEG_INFINITY } else { y };
    if x >= 0.0 { y } else { f64::NAN }
}

#[inline(always)]
pub(super) fn log(x: f64) -> f64 {
    const HI: f64 = 6.93147180369123816490e-01; // 33 bits, so that k HI is exact
    const LO: f64 = 1.90821492927058770002e-10;
    let (k, f) = log_parts(x);
    let (h, t) = log_series(f);
    log_specials(x, k.mul_add(HI, f - (h - k.mul_add(LO, t))))
}

/// `f - h` with the low half cleared, and what is missing to `log(1 + f)`.
#[inline(always)]
fn log_halves(f: f64) -> (f64, f64) {
    let (h, t) = log_series(f);
    let hi = f64::from_bits((f - h).to_bits() & 0xffffffff00000000);
    (hi, (f - hi) - h + t)
}

#[inline(always)]
pub(super) fn log2(x: f64) -> f64 {
    const HI: f64 = 1.44269504072144627571e+00;
    const LO: f64 = 1.67517131648865118353e-10;
    let (k, f) = log_parts(x);
    let (hi, lo) = log_halves(f);
    let high = hi * HI;
    let low = (lo + hi).mul_add(LO, lo * HI);
    let w = k + high;
    log_specials(x, w + (low + ((k - w) + high)))
}

#[inline(always)]
pub(super) fn log10(x: f64) -> f64 {
    const HI: f64 = 4.34294481878168880939e-01;
    const LO: f64 = 2.50829467116452752298e-11;
    const TWO_HI: f64 = 3.01029995663611771306e-01;
    const TWO_LO: f64 = 3.69423907715893078616e-13;
    let (k, f) = log_parts(x);
    let (hi, lo) = log_halves(f);
    let high = hi * HI;
    let y = k * TWO_HI;
    let low = k.mul_add(TWO_LO, (lo + hi).mul_add(LO, lo * HI));
    let w = y + high;
    log_specials(x, w + (low + ((y - w) + high)))
}

#[inline(always)]
pub(super) fn log1p(x: f64) -> f64 {
    const HI: f64 = 6.93147180369123816490e-01;
    const LO: f64 = 1.90821492927058770002e-10;
    let u = 1.0 + x;
    let (k, f) = log_parts(u);
    // The rounding error of the sum, relative to u.
    let lost = if u > x.abs() { x - (u - 1.0) } else { 1.0 - (u - x) };
    let c = if k == 0.0 || u > 1e20 { 0.0 } else { lost / u };
    let f = if k == 0.0 { x } else { f };
    let (h, t) = log_series(f);
    let y = k.mul_add(HI, f - (h - (k.mul_add(LO, c) + t)));
    let y = log_specials(u, y);
    if x.abs() < 1e-17 { x } else { y }
}

#[inline(always)]
fn asinh(x: f64) -> f64 {
    let a = x.abs();
    let huge = a > 1e18;
    let bounded = if huge { 1.0 } else { a };
    let square = bounded * bounded;
    let t = if huge { a } else { bounded + square / (1.0 + (square + 1.0).sqrt()) };
    let y = log1p(t) + if huge { LN_2 } else { 0.0 };
    y.copysign(x)
}

#[inline(always)]
fn acosh(x: f64) -> f64 {
    let huge = x > 1e18;
    let t = x - 1.0;
    let bounded = if huge { 1.0 } else { t };
    let u = if huge { x } else { bounded + bounded.mul_add(bounded, 2.0 * bounded).sqrt() };
    let y = log1p(u) + if huge { LN_2 } else { 0.0 };
    if x >= 1.0 { y } else { f64::NAN }
}

#[inline(always)]
fn atanh(x: f64) -> f64 {
    let a = x.abs();
    (0.5 * log1p(2.0 * a / (1.0 - a))).copysign(x)
}

/// The rational part of asin: `asin(s) = s + s R(s^2)` for `|s| <= 1/2`.
#[inline(always)]
fn asin_series(z: f64) -> f64 {
    let p = polynomial(
        z,
        [
            3.47933107596021167570e-05,
            7.91534994289814532176e-04,
            -4.00555345006794114027e-02,
            2.01212532134862925881e-01,
            -3.25565818622400915405e-01,
            1.66666666666666657415e-01,
        ],
    );
    let q = polynomial(
        z,
        [
            7.70381505559019352791e-02,
            -6.88283971605453293030e-01,
            2.02094576023350569471e+00,
            -2.40339491173441421878e+00,
            1.0,
        ],
    );
    z * p / q
}

/// Returns the square root of `z` and its rounding error.
#[inline(always)]
fn sqrt_parts(z: f64) -> (f64, f64) {
    let s = z.sqrt();
    let e = (-s).mul_add(s, z) / (s + s);
    (s, if z > 0.0 { e } else { 0.0 })
}

#[inline(always)]
pub(super) fn asin(x: f64) -> f64 {
    let a = x.abs();
    let small = a < 0.5;
    let z = if small { x * x } else { 0.5 * (1.0 - a) };
    let r = asin_series(z);
    let (s, e) = sqrt_parts(z);
    let large = FRAC_PI_2 - 2.0 * s - (2.0 * (s.mul_add(r, e)) - PI_2_LO);
    let y = if small { a.mul_add(r, a) } else { large };
    let y = if a < 1e-9 { a } else { y };
    if a <= 1.0 { y.copysign(x) } else { f64::NAN }
}

#[inline(always)]
pub(super) fn acos(x: f64) -> f64 {
    let a = x.abs();
    let small = a < 0.5;
    let z = if small { x * x } else { 0.5 * (1.0 - a) };
    let r = asin_series(z);
    let (s, e) = sqrt_parts(z);
    let rest = s.mul_add(r, e);
    let middle = FRAC_PI_2 - (x - (PI_2_LO - x * r));
    let outer = if x < 0.0 { 2.0 * (FRAC_PI_2 - (s + (rest - PI_2_LO))) } else { 2.0 * (s + rest) };
    let y = if small { middle } else { outer };
    if a <= 1.0 { y } else { f64::NAN }
}

/// Returns atan of a positive number.
#[inline(always)]
fn atan_positive(a: f64) -> f64 {
    let b = if a > 1e300 { 1e300 } else { a };
    let (low, half, one) = (b < 0.4375, b < 0.6875, b < 1.1875);
    let far = b >= 2.4375;
    let n = if one { b - 1.0 } else { b - 1.5 };
    let d = if one { b + 1.0 } else { b.mul_add(1.5, 1.0) };
    let (hi, lo) = if one {
        (std::f64::consts::FRAC_PI_4, 0.5 * PI_2_LO)
    } else {
        (9.82793723247329054082e-01, 1.39033110312309984516e-17)
    };
    let n = if half { b.mul_add(2.0, -1.0) } else { n };
    let d = if half { 2.0 + b } else { d };
    let (hi, lo) =
        if half { (4.63647609000806093515e-01, 2.26987774529616870924e-17) } else { (hi, lo) };
    let n = if low { b } else { n };
    let d = if low { 1.0 } else { d };
    let (hi, lo) = if low { (0.0, 0.0) } else { (hi, lo) };
    let n = if far { -1.0 } else { n };
    let d = if far { b } else { d };
    let (hi, lo) = if far { (FRAC_PI_2, PI_2_LO) } else { (hi, lo) };
    let t = n / d;
    let z = t * t;
    let s = z * polynomial(
        z,
        [
            1.62858201153657823623e-02,
            -3.65315727442169155270e-02,
            4.97687799461593236017e-02,
            -5.83357013379057348645e-02,
            6.66107313738753120669e-02,
            -7.69187620504482999495e-02,
            9.09088713343650656196e-02,
            -1.11111104054623557880e-01,
            1.42857142725034663711e-01,
            -1.99999999998764832476e-01,
            3.33333333333329318027e-01,
        ],
    );
    hi - (t.mul_add(s, -lo) - t)
}

#[inline(always)]
pub(super) fn atan(x: f64) -> f64 {
    let y = atan_positive(x.abs()).copysign(x);
    if x.is_nan() { x } else { y }
}

#[inline(always)]
pub(super) fn atan2(y: f64, x: f64) -> f64 {
    let (a, b) = (y.abs(), x.abs());
    let q = if a == b { 1.0 } else { a / b };
    let q = if a == 0.0 { 0.0 } else { q };
    let r = atan_positive(q);
    let r = if x.is_sign_negative() { 2.0 * FRAC_PI_2 - (r - 2.0 * PI_2_LO) } else { r };
    if x.is_nan() || y.is_nan() { f64::NAN } else { r.copysign(y) }
}

/// Returns sin and cos of `x` reduced to `|x| <= pi/4`, and the quadrant in the low two bits.
///
/// The reduction is Cody and Waite's. With a fused multiply-add the first difference is exact; the
/// error of the second is kept.
#[inline(always)]
fn trig_parts(x: f64) -> (f64, f64, u64) {
    let t = x * std::f64::consts::FRAC_2_PI + ROUNDER;
    let k = t - ROUNDER;
    let r0 = (-k).mul_add(FRAC_PI_2, x);
    let p = -k * PI_2_LO;
    let (r, e) = two_sum(r0, p);
    let lo = e + (-k).mul_add(PI_2_LO2, (-k).mul_add(PI_2_LO, -p));
    let z = r * r;
    let v = z * r;
    let s = polynomial(
        z,
        [
            1.58969099521155010221e-10,
            -2.50507602534068634195e-08,
            2.75573137070700676789e-06,
            -1.98412698298579493134e-04,
            8.33333333332248946124e-03,
        ],
    );
    let sin = r - ((z * (0.5 * lo - v * s) - lo) - v * -1.66666666666666324348e-01);
    let c = polynomial(
        z,
        [
            -1.13596475577881948265e-11,
            2.08757232129817482790e-09,
            -2.75573143513906633035e-07,
            2.48015872894767294178e-05,
            -1.38888888888741095749e-03,
            4.16666666666666019037e-02,
        ],
    );
    let h = 0.5 * z;
    let w = 1.0 - h;
    let cos = w + (((1.0 - w) - h) + (z * z).mul_add(c, -r * lo));
    (sin, cos, t.to_bits())
}

/// Negates a value in quadrants 2 and 3.
#[inline(always)]
fn turn(x: f64, quadrant: u64) -> f64 {
    f64::from_bits(x.to_bits() ^ ((quadrant << 62) & SIGN))
}

#[inline(always)]
pub(super) fn sin_cos_lane(x: f64) -> (f64, f64) {
    let (s, c, q) = trig_parts(x);
    let (sin, cos) = if q & 1 == 0 { (s, c) } else { (c, s) };
    (if x.abs() < 1e-9 { x } else { turn(sin, q) }, turn(cos, q.wrapping_add(1)))
}

#[inline(always)]
pub(super) fn sin_lane(x: f64) -> f64 {
    let (s, c, q) = trig_parts(x);
    let y = turn(if q & 1 == 0 { s } else { c }, q);
    if x.abs() < 1e-9 { x } else { y }
}

#[inline(always)]
pub(super) fn cos_lane(x: f64) -> f64 {
    let (s, c, q) = trig_parts(x);
    turn(if q & 1 == 0 { c } else { s }, q.wrapping_add(1))
}

#[inline(always)]
pub(super) fn tan_lane(x: f64) -> f64 {
    let (s, c, q) = trig_parts(x);
    let y = if q & 1 == 0 { s / c } else { -c / s };
    if x.abs() < 1e-9 { x } else { y }
}

#[inline(always)]
pub(super) fn trig_outside(x: f64) -> bool {
    (x.abs() > TRIG_LIMIT) & (x.abs() < f64::INFINITY)
}

/// Returns log of a positive finite `x` as an unevaluated sum, with about 12 extra bits.
#[inline(always)]
fn log_double(x: f64) -> (f64, f64) {
    const TWO_THIRDS: f64 = 0.6666666666666666;
    const TWO_THIRDS_LO: f64 = 3.700743415417188e-17;
    let (k, f) = log_parts(x);
    let (d, d_lo) = two_sum(2.0, f);
    let s = f / d;
    let s_lo = ((-s).mul_add(d, f) - s * d_lo) / d;
    let z = s * s;
    let z_lo = s.mul_add(s, -z) + 2.0 * s * s_lo;
    let tail = z * polynomial(
        z,
        [
            0.116255524079935043668677,
            0.103239680901072952701192,
            0.117754809412463995466069,
            0.13332981086846273921509,
            0.153846227114512262845736,
            0.181818180850050775676507,
            0.222222222230083560345903,
            0.285714285714249172087875,
            0.400000000000000077715612,
        ],
    );
    let t = TWO_THIRDS + tail;
    let t_lo = (TWO_THIRDS - t) + tail + TWO_THIRDS_LO;
    let cube = s * z;
    let cube_lo = s.mul_add(z, -cube) + s.mul_add(z_lo, s_lo * z);
    let u = cube * t;
    let u_lo = cube.mul_add(t, -u) + cube.mul_add(t_lo, cube_lo * t);
    let whole = k * LN_2;
    let whole_lo = k.mul_add(LN_2, -whole) + k * LN_2_LO;
    let (a, a_lo) = two_sum(whole, 2.0 * s);
    let (b, b_lo) = two_sum(a, u);
    let lo = b_lo + (a_lo + (whole_lo + 2.0f64.mul_add(s_lo, u_lo)));
    let hi = b + lo;
    (hi, (b - hi) + lo)
}

#[inline(always)]
fn pow(x: f64, y: f64) -> f64 {
    let (l, l_lo) = log_double(x.abs());
    let w = y * l;
    let w_lo = y.mul_add(l, -w) + y * l_lo;
    let w_lo = if w.abs() < 800.0 { w_lo } else { 0.0 };
    let (k, p) = exp_parts(clamp(w, -800.0, 800.0), w_lo);
    pow_specials(x, y, scale(1.0 + p, k))
}

#[inline(always)]
pub(super) fn hypot(x: f64, y: f64) -> f64 {
    const SMALL: f64 = f64::from_bits((1023 - 600) << 52);
    const LARGE: f64 = f64::from_bits((1023 + 600) << 52);
    let (a, b) = (x.abs(), y.abs());
    let (a, b) = if a < b { (b, a) } else { (a, b) };
    let (down, up) = if a > 1e150 { (SMALL, LARGE) } else { (1.0, 1.0) };
    let (down, up) = if a < 1e-140 { (LARGE, SMALL) } else { (down, up) };
    let (s, t) = (a * down, b * down);
    let h = s.mul_add(s, t * t).sqrt() * up;
    if (a == f64::INFINITY) | (b == f64::INFINITY) { f64::INFINITY } else { h }
}

#[inline(always)]
fn logaddexp(x: f64, y: f64) -> f64 {
    let (high, low) = if x < y { (y, x) } else { (x, y) };
    let gap = if high == low { 0.0 } else { low - high };
    let r = high + log1p(exp(gap));
    if x.is_nan() | y.is_nan() { f64::NAN } else { r }
}

super::real_common!(f64, u64, 9007199254740992.0, libm::fmod);

impl Elementary for f64 {
    super::forward!(
        acos, acosh, asin, asinh, atan, atanh, cosh, exp, expm1, log, log1p, log2, log10, sinh,
        tanh, reciprocal, sign
    );
    super::forward!(cos_lane, sin_lane, tan_lane; trig_outside -> bool);
    super::forward!(two: divide, pow, times);

    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn sin(self) -> f64 {
        if trig_outside(self) { libm::sin(self) } else { sin_lane(self) }
    }
    #[inline(always)]
    fn cos(self) -> f64 {
        if trig_outside(self) { libm::cos(self) } else { cos_lane(self) }
    }
    #[inline(always)]
    fn tan(self) -> f64 {
        if trig_outside(self) { libm::tan(self) } else { tan_lane(self) }
    }
}

impl RealMath for f64 {
    super::forward!(
        two: atan2, copysign, floor_divide, floor_divide_lane, hypot, logaddexp, nextafter,
        remainder, remainder_lane; quotient_outside -> bool
    );
}
