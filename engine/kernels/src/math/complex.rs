//! Complex functions, with the special cases of the standard (those of C99, Annex G).
//!
//! Functions of `Complex<f32>` are computed in `f64` and rounded, except for products. All
//! functions are inlined into the loops, because FMA is an instruction only in the loops compiled
//! for it. Only products and quotients are vectorised.
//!
//! Sources: Kahan, "Branch cuts for complex elementary functions" (1987) for tanh; Hull, Fairgrieve
//! and Tang, "Implementing the complex arcsine and arccosine functions using exception handling"
//! (1997) for asin and acos; Smith (1962) for quotients.

use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, LN_2, LN_10, PI};

use num_complex::Complex;

use super::real64::{
    acos as acos_real, asin as asin_real, atan, atan2, cosh as cosh_real, exp as exp_real,
    expm1 as expm1_real, hypot, log as log_real,
};
use super::real64::{log1p as log1p_real, sinh as sinh_real, tanh as tanh_real};
use super::{Elementary, real64};

type C64 = Complex<f64>;

const INFINITY: f64 = f64::INFINITY;
const NAN: f64 = f64::NAN;

/// The magnitude of a complex number, without overflow of intermediate results.
pub(crate) trait Norm: Copy {
    type Part;
    fn norm(self) -> Self::Part;
}

#[inline(always)]
fn c(re: f64, im: f64) -> C64 {
    Complex { re, im }
}

/// Returns `i z`. Trigonometric functions are hyperbolic functions of `i z`: `sin z = -i sinh(i
/// z)`.
#[inline(always)]
fn times_i(z: C64) -> C64 {
    c(-z.im, z.re)
}

/// Returns `-i z`.
#[inline(always)]
fn divided_by_i(z: C64) -> C64 {
    c(z.im, -z.re)
}

#[inline(always)]
fn sin_cos(x: f64) -> (f64, f64) {
    if real64::trig_outside(x) { libm::sincos(x) } else { real64::sin_cos_lane(x) }
}

/// Returns `a^2 + b^2 - 1` for `a >= b`, without losing the digits that cancel.
#[inline(always)]
fn square_excess(a: f64, b: f64) -> f64 {
    let (aa, bb) = (a * a, b * b);
    let low = a.mul_add(a, -aa) + b.mul_add(b, -bb);
    let s = aa - 1.0;
    let lost = aa - (s + 1.0);
    let t = s + bb;
    let lost_too = if s.abs() > bb { bb - (t - s) } else { s - (t - bb) };
    t + (low + lost + lost_too)
}

/// Returns `log |z|`.
#[inline(always)]
fn log_norm(z: C64) -> f64 {
    const UP: f64 = f64::from_bits((1023 + 200) << 52);
    const DOWN: f64 = f64::from_bits((1023 - 200) << 52);
    let (x, y) = (z.re.abs(), z.im.abs());
    let (a, b) = if x < y { (y, x) } else { (x, y) };
    if a > 0.5 && a < 2.0 {
        return 0.5 * log1p_real(square_excess(a, b));
    }
    let (factor, shift) = if a > 1e200 { (DOWN, 200.0 * LN_2) } else { (1.0, 0.0) };
    let (factor, shift) = if a < 1e-200 { (UP, -200.0 * LN_2) } else { (factor, shift) };
    log_real(hypot(z.re * factor, z.im * factor)) + shift
}

/// Returns `factor e^a (cos b + i sin b)` for finite `a`, also if the exponential overflows and the
/// result does not.
#[inline(always)]
fn exp_cis(a: f64, b: f64, factor: f64) -> C64 {
    let (sin, cos) = sin_cos(b);
    let half = exp_real(0.5 * a);
    let (e, f) = if a.abs() < 700.0 { (exp_real(a), factor) } else { (half, half * factor) };
    c(e * (f * cos), e * (f * sin))
}

#[inline(always)]
fn exp(z: C64) -> C64 {
    let (a, b) = (z.re, z.im);
    if b == 0.0 {
        c(exp_real(a), b)
    } else if a.is_finite() {
        exp_cis(a, b, 1.0)
    } else if a == -INFINITY {
        if b.is_finite() { product(0.0, sin_cos(b)) } else { c(0.0, 0.0) }
    } else if a == INFINITY {
        if b.is_finite() { product(INFINITY, sin_cos(b)) } else { c(INFINITY, NAN) }
    } else {
        c(NAN, NAN)
    }
}

#[inline(always)]
fn product(r: f64, (sin, cos): (f64, f64)) -> C64 {
    c(r * cos, r * sin)
}

#[inline(always)]
fn expm1(z: C64) -> C64 {
    let (a, b) = (z.re, z.im);
    if b == 0.0 {
        c(expm1_real(a), b)
    } else if a.abs() < 700.0 {
        let (sin, cos) = sin_cos(b);
        let half = sin_cos(0.5 * b).0;
        c(expm1_real(a).mul_add(cos, -2.0 * half * half), exp_real(a) * sin)
    } else {
        let e = exp(z);
        c(e.re - 1.0, e.im)
    }
}

#[inline(always)]
fn log(z: C64) -> C64 {
    c(log_norm(z), atan2(z.im, z.re))
}

#[inline(always)]
fn log1p(z: C64) -> C64 {
    let (a, b) = (z.re, z.im);
    let w = c(1.0 + a, b);
    let re = if b == 0.0 && a > -1.0 {
        log1p_real(a)
    } else if a.abs() < 0.5 && b.abs() < 0.5 {
        // 2 a + a^2 + b^2: the first and the last term may cancel.
        let (aa, bb) = (a * a, b * b);
        let t = 2.0 * a + bb;
        let lost = if 2.0 * a.abs() > bb { bb - (t - 2.0 * a) } else { 2.0 * a - (t - bb) };
        0.5 * log1p_real(t + (aa + (lost + b.mul_add(b, -bb))))
    } else {
        log_norm(w)
    };
    c(re, atan2(b, w.re))
}

#[inline(always)]
fn log2(z: C64) -> C64 {
    let w = log(z);
    c(w.re / LN_2, w.im / LN_2)
}

#[inline(always)]
fn log10(z: C64) -> C64 {
    let w = log(z);
    c(w.re / LN_10, w.im / LN_10)
}

#[inline(always)]
fn sqrt(z: C64) -> C64 {
    let (a, b) = (z.re, z.im);
    if a == 0.0 && b == 0.0 {
        return c(0.0, b);
    } else if b.is_infinite() {
        return c(INFINITY, b);
    } else if a.is_nan() {
        return c(NAN, NAN);
    } else if a.is_infinite() {
        let other = if b.is_nan() { b } else { 0.0 };
        return if a < 0.0 {
            c(other.abs(), INFINITY.copysign(b))
        } else {
            c(a, other.copysign(b))
        };
    }
    let large = a.abs().max(b.abs());
    let (down, up) = if large > 1e300 { (0.0625, 4.0) } else { (1.0, 1.0) };
    const TWO_54: f64 = 18014398509481984.0;
    const TWO_27: f64 = 134217728.0;
    let (down, up) = if large < 1e-290 { (TWO_54, 1.0 / TWO_27) } else { (down, up) };
    let (a, b) = (a * down, b * down);
    let t = (0.5 * (a.abs() + hypot(a, b))).sqrt();
    let other = b.abs() / (2.0 * t);
    let (re, im) = if a >= 0.0 { (t, other) } else { (other, t) };
    c(re * up, (im * up).copysign(b))
}

/// Returns half of `e^a (cos b + i sin b)`, for large `a`.
#[inline(always)]
fn exp_half(a: f64, b: f64) -> C64 {
    if a.is_finite() { exp_cis(a, b, 0.5) } else { product(a, sin_cos(b)) }
}

#[inline(always)]
fn cosh(z: C64) -> C64 {
    let (a, b) = (z.re, z.im);
    if b == 0.0 {
        return c(cosh_real(a), b * 0f64.copysign(a));
    } else if a.is_nan() {
        return c(NAN, NAN);
    } else if !b.is_finite() {
        return if a == 0.0 {
            c(NAN, a)
        } else {
            c(a * a + if a.is_finite() { NAN } else { 0.0 }, NAN)
        };
    }
    if a.abs() > 700.0 {
        let e = exp_half(a.abs(), b);
        return c(e.re, e.im * 1f64.copysign(a));
    }
    let (sin, cos) = sin_cos(b);
    c(cosh_real(a) * cos, sinh_real(a) * sin)
}

#[inline(always)]
fn sinh(z: C64) -> C64 {
    let (a, b) = (z.re, z.im);
    if b == 0.0 {
        return c(sinh_real(a), b);
    } else if a.is_nan() {
        return c(NAN, NAN);
    } else if !b.is_finite() {
        return c(if a.is_finite() && a != 0.0 { NAN } else { a }, NAN);
    }
    if a.abs() > 700.0 {
        let e = exp_half(a.abs(), b);
        return c(e.re * 1f64.copysign(a), e.im);
    }
    let (sin, cos) = sin_cos(b);
    c(sinh_real(a) * cos, cosh_real(a) * sin)
}

#[inline(always)]
fn tanh(z: C64) -> C64 {
    let (a, b) = (z.re, z.im);
    if b == 0.0 {
        return c(tanh_real(a), b);
    } else if a.is_nan() {
        return c(NAN, NAN);
    } else if a.is_infinite() {
        return c(1f64.copysign(a), 0f64.copysign(b));
    } else if !b.is_finite() {
        return c(if a == 0.0 { a } else { NAN }, NAN);
    }
    let (sin, cos) = sin_cos(b);
    if a.abs() > 22.0 {
        let e = exp_real(-a.abs());
        return c(1f64.copysign(a), 4.0 * sin * cos * e * e);
    }
    let t = sin / cos;
    let beta = t.mul_add(t, 1.0);
    let s = sinh_real(a);
    let rho = s.mul_add(s, 1.0).sqrt();
    let d = (beta * s).mul_add(s, 1.0);
    c(beta * rho * s / d, t / d)
}

/// Returns the real parts of asin and acos, and the imaginary part of asin, for finite `x, y >= 0`.
/// The exceptional cases are those of Hull et al.
#[inline(always)]
fn arcs(x: f64, y: f64) -> (f64, f64, f64) {
    const SAFE_MIN: f64 = 6e-154; // 4 sqrt(f64::MIN_POSITIVE)
    const SAFE_MAX: f64 = 1.6e153; // sqrt(f64::MAX) / 8
    let (up, down) = (x + 1.0, x - 1.0);
    if x > SAFE_MIN && x < SAFE_MAX && y > SAFE_MIN && y < SAFE_MAX {
        let (r, s) = (hypot(up, y), hypot(down, y));
        let a = 0.5 * (r + s);
        let b = x / a;
        let (sine, cosine) = if b <= 0.6417 {
            (asin_real(b), acos_real(b))
        } else {
            let t = if x <= 1.0 {
                (0.5 * (a + x) * (y * y / (r + up) + (s - down))).sqrt()
            } else {
                y * (0.5 * ((a + x) / (r + up) + (a + x) / (s + down))).sqrt()
            };
            (atan2(x, t), atan2(t, x))
        };
        let height = if a <= 1.5 {
            let t = 0.5 * (y * y / (r + up) + if x < 1.0 { y * y / (s - down) } else { s + down });
            log1p_real(t + (t * (a + 1.0)).sqrt())
        } else {
            log_real(a + (a * a - 1.0).sqrt())
        };
        return (sine, cosine, height);
    }
    // Excludes 1 itself, which is a branch point.
    if y < f64::EPSILON * down.abs() {
        if x < 1.0 {
            return (asin_real(x), acos_real(x), y / (-down * up).sqrt());
        }
        let root = down.sqrt() * up.sqrt();
        let height = if x > SAFE_MAX { LN_2 + log_real(x) } else { log1p_real(down + root) };
        (FRAC_PI_2, y / root, height)
    } else if y <= SAFE_MIN {
        if x < 0.5 {
            return (x, FRAC_PI_2, y);
        }
        (FRAC_PI_2 - y.sqrt(), y.sqrt(), y.sqrt())
    } else if f64::EPSILON * y - 1.0 >= x {
        (x / y, FRAC_PI_2, LN_2 + log_real(y))
    } else if x > 1.0 {
        let q = x / y;
        (atan(q), atan2(y, x), LN_2 + log_real(y) + 0.5 * log1p_real(q * q))
    } else {
        let a = y.mul_add(y, 1.0).sqrt();
        (x / a, FRAC_PI_2, 0.5 * log1p_real(2.0 * y * (y + a)))
    }
}

/// Extends [`arcs`] to infinities and NaN.
#[inline(always)]
fn arcs_special(z: C64) -> (f64, f64, f64) {
    let (x, y) = (z.re.abs(), z.im.abs());
    if x.is_finite() && y.is_finite() {
        return arcs(x, y);
    }
    match (x.is_infinite(), y.is_infinite()) {
        (true, true) => (FRAC_PI_4, FRAC_PI_4, INFINITY),
        (true, false) => {
            if y.is_nan() {
                (NAN, NAN, INFINITY)
            } else {
                (FRAC_PI_2, 0.0, INFINITY)
            }
        }
        (false, true) => {
            if x.is_nan() {
                (NAN, NAN, INFINITY)
            } else {
                (0.0, FRAC_PI_2, INFINITY)
            }
        }
        (false, false) => {
            if x == 0.0 {
                (0.0, FRAC_PI_2, NAN)
            } else {
                (NAN, NAN, NAN)
            }
        }
    }
}

#[inline(always)]
fn asin(z: C64) -> C64 {
    let (sine, _, height) = arcs_special(z);
    c(sine.copysign(z.re), height.copysign(z.im))
}

#[inline(always)]
fn acos(z: C64) -> C64 {
    let (_, cosine, height) = arcs_special(z);
    c(if z.re.is_sign_negative() { PI - cosine } else { cosine }, -height.copysign(z.im))
}

#[inline(always)]
fn acosh(z: C64) -> C64 {
    let w = acos(z);
    c(w.im.abs(), w.re.copysign(z.im))
}

#[inline(always)]
fn atanh(z: C64) -> C64 {
    let (x, y) = (z.re.abs(), z.im.abs());
    let (re, im) = if y.is_infinite() || (x.is_infinite() && !y.is_nan()) {
        (0.0, FRAC_PI_2)
    } else if y.is_nan() && (x == 0.0 || x.is_infinite()) {
        (0.0, NAN)
    } else if x.is_nan() || y.is_nan() {
        (NAN, NAN)
    } else if x > 1e150 || y > 1e150 {
        let h = hypot(0.5 * x, 0.5 * y);
        (0.25 * (x / h) / h, FRAC_PI_2)
    } else if x == 1.0 && y < 1e-150 && y > 0.0 {
        (0.5 * (LN_2 - log_real(y)), FRAC_PI_4)
    } else {
        let gap = 1.0 - x;
        (
            0.25 * log1p_real(4.0 * x / gap.mul_add(gap, y * y)),
            0.5 * atan2(2.0 * y, gap.mul_add(1.0 + x, -y * y)),
        )
    };
    c(re.copysign(z.re), im.copysign(z.im))
}

#[inline(always)]
fn asinh(z: C64) -> C64 {
    times_i(asin(divided_by_i(z)))
}

#[inline(always)]
fn atan_complex(z: C64) -> C64 {
    divided_by_i(atanh(times_i(z)))
}

#[inline(always)]
fn sin(z: C64) -> C64 {
    divided_by_i(sinh(times_i(z)))
}

#[inline(always)]
fn cos(z: C64) -> C64 {
    cosh(times_i(z))
}

#[inline(always)]
fn tan(z: C64) -> C64 {
    divided_by_i(tanh(times_i(z)))
}

#[inline(always)]
fn norm(z: C64) -> f64 {
    hypot(z.re, z.im)
}

#[inline(always)]
fn sign(z: C64) -> C64 {
    let large = z.re.abs().max(z.im.abs());
    let factor = if large < 1e-290 { 18014398509481984.0 } else { 1.0 }; // 2^54
    let factor = if large > 1e300 { 0.25 } else { factor };
    let z = c(z.re * factor, z.im * factor);
    let h = norm(z);
    if z.re.is_nan() || z.im.is_nan() {
        c(NAN, NAN)
    } else if h == 0.0 {
        c(0.0, 0.0)
    } else {
        c(z.re / h, z.im / h)
    }
}

#[inline(always)]
fn times(z: C64, w: C64) -> C64 {
    c(z.re * w.re - z.im * w.im, z.im * w.re + z.re * w.im)
}

/// Returns the quotient by Smith's method, as [`reciprocal`] does. A zero divisor divides both
/// parts.
#[inline(always)]
fn divide(z: C64, w: C64) -> C64 {
    let huge = z.re.abs().max(z.im.abs()).max(w.re.abs()).max(w.im.abs()) > 1e300;
    let factor = if huge { 0.25 } else { 1.0 };
    let (z, w) = (c(z.re * factor, z.im * factor), c(w.re * factor, w.im * factor));
    let wide = w.re.abs() >= w.im.abs();
    let (p, q) = if wide { (w.re, w.im) } else { (w.im, w.re) };
    let zero = p == 0.0;
    let r = if zero { 0.0 } else { q / p };
    let d = if zero { p } else { p + q * r };
    let (re, im) =
        if wide { (z.re + z.im * r, z.im - z.re * r) } else { (z.re * r + z.im, z.im * r - z.re) };
    c(re / d, im / d)
}

#[inline(always)]
fn reciprocal(z: C64) -> C64 {
    let factor = if z.re.abs().max(z.im.abs()) > 1e300 { 0.25 } else { 1.0 };
    let w = c(z.re * factor, z.im * factor);
    let wide = w.re.abs() >= w.im.abs();
    let (p, q) = if wide { (w.re, w.im) } else { (w.im, w.re) };
    let r = if p == 0.0 { q } else { q / p };
    let d = q.mul_add(r, p);
    let (re, im) = if wide { (1.0 / d, -r / d) } else { (r / d, -1.0 / d) };
    c(re * factor, im * factor)
}

/// Returns `exp(y log(x))`, or a product for small integer exponents, so that powers of integers
/// are integers.
#[inline(always)]
fn pow(x: C64, y: C64) -> C64 {
    if y.re == 0.0 && y.im == 0.0 {
        return c(1.0, 0.0);
    }
    if x.re == 0.0 && x.im == 0.0 && y.re > 0.0 {
        return c(0.0, 0.0);
    }
    if y.im == 0.0 && y.re.abs() <= 64.0 && y.re.floor() == y.re {
        let mut n = y.re.abs() as u32;
        // The product does not start at 1, because a product with 1 loses the signs of zeros.
        let mut square = x;
        while n & 1 == 0 {
            square = times(square, square);
            n >>= 1;
        }
        let mut power = square;
        while n > 1 {
            square = times(square, square);
            n >>= 1;
            power = if n & 1 == 1 { times(power, square) } else { power };
        }
        let power = if y.re < 0.0 { reciprocal(power) } else { power };
        if power.re.is_finite() && power.im.is_finite() && power != c(0.0, 0.0) {
            return power;
        }
    }
    let l = log(x);
    exp(if y.im == 0.0 { c(y.re * l.re, y.re * l.im) } else { times(y, l) })
}

impl Norm for Complex<f64> {
    type Part = f64;
    #[inline(always)]
    fn norm(self) -> f64 {
        norm(self)
    }
}

impl Norm for Complex<f32> {
    type Part = f32;
    #[inline(always)]
    fn norm(self) -> f32 {
        norm(widened(self)) as f32
    }
}

#[inline(always)]
fn widened(z: Complex<f32>) -> C64 {
    c(z.re as f64, z.im as f64)
}

#[inline(always)]
fn rounded(z: C64) -> Complex<f32> {
    Complex { re: z.re as f32, im: z.im as f32 }
}

macro_rules! implement {
    ($($f:ident: $path:ident),*; $($two:ident),*) => {
        impl Elementary for Complex<f64> {
            $(#[inline(always)] fn $f(self) -> Self { $path(self) })*
            $(#[inline(always)] fn $two(self, other: Self) -> Self { $two(self, other) })*
            #[inline(always)] fn times(self, other: Self) -> Self { times(self, other) }
        }
        impl Elementary for Complex<f32> {
            $(#[inline(always)] fn $f(self) -> Self { rounded($path(widened(self))) })*
            $(#[inline(always)] fn $two(self, other: Self) -> Self {
                rounded($two(widened(self), widened(other)))
            })*
            #[inline(always)] fn times(self, other: Self) -> Self {
                let re = self.re * other.re - self.im * other.im;
                Complex { re, im: self.im * other.re + self.re * other.im }
            }
        }
    };
}
implement!(
    acos: acos, acosh: acosh, asin: asin, asinh: asinh, atan: atan_complex, atanh: atanh, cos: cos,
    cosh: cosh, exp: exp, expm1: expm1, log: log, log1p: log1p, log2: log2, log10: log10, sin: sin,
    sinh: sinh, sqrt: sqrt, tan: tan, tanh: tanh, reciprocal: reciprocal, sign: sign;
    pow, divide
);
