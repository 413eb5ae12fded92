//! Evaluation of one function over one strip.

use num_complex::Complex;

use crate::dispatch;
use crate::dtype::{Complex64, Complex128, DType, Element, no_loop};
use crate::expr::{BinaryOp, UnaryOp};
use crate::math::{self, Elementary};

wide_fn! {
    pub(crate) fn loop1<T, U, F>(a: &[T], out: &mut [U], f: F) where {T: Copy, F: Fn(T) -> U} {
        for (o, a) in out.iter_mut().zip(a) { *o = f(*a); }
    }
}
wide_fn! {
    fn loop2<T, U, F>(a: &[T], b: &[T], out: &mut [U], f: F) where {T: Copy, F: Fn(T, T) -> U} {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) { *o = f(*a, *b); }
    }
}
wide_fn! {
    fn loop3<T: Blend>(c: &[u8], a: &[T], b: &[T], out: &mut [T]) where {} {
        for (((o, c), a), b) in out.iter_mut().zip(c).zip(a).zip(b) { *o = a.blend(*b, *c != 0); }
    }
}

/// Selection by masks, because `if` would compile to a branch per element.
trait Blend: Copy {
    /// Returns `self` if `chosen`, else `other`.
    fn blend(self, other: Self, chosen: bool) -> Self;
}

macro_rules! blends {
    ($($t:ty),*) => { $(impl Blend for $t {
        #[inline(always)] fn blend(self, other: Self, chosen: bool) -> Self {
            let mask = <$t>::from(chosen).wrapping_neg();
            (self & mask) | (other & !mask)
        }
    })* };
}
blends!(u8, u16, u32, u64);

impl Blend for [u64; 2] {
    #[inline(always)]
    fn blend(self, other: Self, chosen: bool) -> Self {
        [self[0].blend(other[0], chosen), self[1].blend(other[1], chosen)]
    }
}

fn cast<T: Element>(bytes: &[u8]) -> &[T] {
    bytemuck::cast_slice(bytes)
}

fn cast_mut<T: Element>(bytes: &mut [u8]) -> &mut [T] {
    bytemuck::cast_slice_mut(bytes)
}

/// Operations of all numeric dtypes. Integers wrap.
pub(crate) trait Numeric: Element {
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    /// Multiplies as `times` does, except that 1 returns the other factor unchanged.
    fn product(self, other: Self) -> Self {
        self.times(other)
    }
    fn neg(self) -> Self;
    fn conjugate(self) -> Self {
        self
    }
    fn round_even(self) -> Self {
        self
    }
    fn finite(self) -> bool {
        true
    }
    fn infinite(self) -> bool {
        false
    }
    fn nan(self) -> bool {
        false
    }
}

/// Operations of real dtypes. Minimum and maximum propagate NaN.
pub(crate) trait Real: Numeric + PartialOrd {
    fn least(self, other: Self) -> Self;
    fn greatest(self, other: Self) -> Self;
    fn magnitude(self) -> Self;
    fn round_down(self) -> Self {
        self
    }
    fn round_up(self) -> Self {
        self
    }
    fn round_to_zero(self) -> Self {
        self
    }
}

/// Operations of integers. Quotients are rounded towards -inf. A shift by the width or more, or by
/// a negative number, shifts all bits out.
pub(crate) trait Bits: Real {
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn invert(self) -> Self;
    fn shift_left(self, by: Self) -> Self;
    fn shift_right(self, by: Self) -> Self;
    fn power(self, other: Self) -> Self;
    fn sign(self) -> Self;
    fn floor_quotient(self, other: Self) -> Self;
    fn floor_modulus(self, other: Self) -> Self;
}

macro_rules! integers {
    ($($t:ty, $abs:expr, $sign:expr, $below_zero:expr;)*) => { $(
        impl Numeric for $t {
            #[inline(always)] fn plus(self, other: Self) -> Self { self.wrapping_add(other) }
            #[inline(always)] fn minus(self, other: Self) -> Self { self.wrapping_sub(other) }
            #[inline(always)] fn times(self, other: Self) -> Self { self.wrapping_mul(other) }
            #[inline(always)] fn neg(self) -> Self { self.wrapping_neg() }
        }
        impl Real for $t {
            #[inline(always)] fn least(self, other: Self) -> Self { self.min(other) }
            #[inline(always)] fn greatest(self, other: Self) -> Self { self.max(other) }
            #[inline(always)] fn magnitude(self) -> Self { let f: fn($t) -> $t = $abs; f(self) }
        }
        impl Bits for $t {
            #[inline(always)] fn sign(self) -> Self { let f: fn($t) -> $t = $sign; f(self) }
            /// Raises by squaring. A negative exponent gives 0, except for bases of 1 and -1.
            #[inline(always)] fn power(self, other: Self) -> Self {
                let negative: fn($t) -> bool = $below_zero;
                if negative(other) {
                    return match self {
                        1 => 1,
                        x if negative(x) && x.wrapping_neg() == 1 => {
                            if other & 1 == 0 { 1 } else { x }
                        }
                        _ => 0,
                    };
                }
                let (mut result, mut base, mut rest): ($t, $t, $t) = (1, self, other);
                while rest != 0 {
                    if rest & 1 == 1 { result = result.wrapping_mul(base); }
                    base = base.wrapping_mul(base);
                    rest >>= 1;
                }
                result
            }
            /// Division by 0 gives 0, as in NumPy; the standard does not define it.
            #[inline(always)] fn floor_quotient(self, other: Self) -> Self {
                let negative: fn($t) -> bool = $below_zero;
                if other == 0 { return 0; }
                let q = self.wrapping_div(other);
                let inexact = self.wrapping_rem(other) != 0;
                if inexact && negative(self) != negative(other) { q.wrapping_sub(1) } else { q }
            }
            #[inline(always)] fn floor_modulus(self, other: Self) -> Self {
                let negative: fn($t) -> bool = $below_zero;
                if other == 0 { return 0; }
                let r = self.wrapping_rem(other);
                if r != 0 && negative(r) != negative(other) { r.wrapping_add(other) } else { r }
            }
            #[inline(always)] fn and(self, other: Self) -> Self { self & other }
            #[inline(always)] fn or(self, other: Self) -> Self { self | other }
            #[inline(always)] fn xor(self, other: Self) -> Self { self ^ other }
            #[inline(always)] fn invert(self) -> Self { !self }
            #[inline(always)] fn shift_left(self, by: Self) -> Self {
                if (by as u64) < <$t>::BITS as u64 { self << by } else { 0 }
            }
            #[inline(always)] fn shift_right(self, by: Self) -> Self {
                let inside = (by as u64) < <$t>::BITS as u64;
                if inside { self >> by } else { (self >> (<$t>::BITS - 2)) >> 1 >> 1 }
            }
        }
    )* };
}
integers! {
    i8, |x| x.wrapping_abs(), |x| x.signum(), |x| x < 0;
    i16, |x| x.wrapping_abs(), |x| x.signum(), |x| x < 0;
    i32, |x| x.wrapping_abs(), |x| x.signum(), |x| x < 0;
    i64, |x| x.wrapping_abs(), |x| x.signum(), |x| x < 0;
    u8, |x| x, |x| x.min(1), |_| false;
    u16, |x| x, |x| x.min(1), |_| false;
    u32, |x| x, |x| x.min(1), |_| false;
    u64, |x| x, |x| x.min(1), |_| false;
}

macro_rules! floats {
    ($($t:ty),*) => { $(
        impl Numeric for $t {
            #[inline(always)] fn plus(self, other: Self) -> Self { self + other }
            #[inline(always)] fn minus(self, other: Self) -> Self { self - other }
            #[inline(always)] fn times(self, other: Self) -> Self { self * other }
            #[inline(always)] fn neg(self) -> Self { -self }
            #[inline(always)] fn round_even(self) -> Self { self.round_ties_even() }
            #[inline(always)] fn finite(self) -> bool { self.is_finite() }
            #[inline(always)] fn infinite(self) -> bool { self.is_infinite() }
            #[inline(always)] fn nan(self) -> bool { self.is_nan() }
        }
        impl Real for $t {
            #[inline(always)] fn least(self, other: Self) -> Self {
                if (self < other) | self.is_nan() { self } else { other }
            }
            #[inline(always)] fn greatest(self, other: Self) -> Self {
                if (self > other) | self.is_nan() { self } else { other }
            }
            #[inline(always)] fn magnitude(self) -> Self { self.abs() }
            #[inline(always)] fn round_down(self) -> Self { self.floor() }
            #[inline(always)] fn round_up(self) -> Self { self.ceil() }
            #[inline(always)] fn round_to_zero(self) -> Self { self.trunc() }
        }
        impl Numeric for Complex<$t> {
            #[inline(always)] fn plus(self, other: Self) -> Self { self + other }
            #[inline(always)] fn minus(self, other: Self) -> Self { self - other }
            #[inline(always)] fn times(self, other: Self) -> Self { Elementary::times(self, other) }
            // The plain formula gives NaN for 1 times an infinity, and loses the signs of zeros.
            #[inline(always)] fn product(self, other: Self) -> Self {
                let one = |z: Self| z.re == 1.0 && z.im.to_bits() == 0;
                if one(self) {
                    other
                } else if one(other) {
                    self
                } else {
                    Elementary::times(self, other)
                }
            }
            #[inline(always)] fn neg(self) -> Self { -self }
            #[inline(always)] fn conjugate(self) -> Self { self.conj() }
            #[inline(always)] fn round_even(self) -> Self {
                Complex::new(self.re.round_ties_even(), self.im.round_ties_even())
            }
            #[inline(always)] fn finite(self) -> bool {
                self.re.is_finite() && self.im.is_finite()
            }
            #[inline(always)] fn infinite(self) -> bool {
                self.re.is_infinite() || self.im.is_infinite()
            }
            #[inline(always)] fn nan(self) -> bool {
                self.re.is_nan() || self.im.is_nan()
            }
        }
    )* };
}
floats!(f32, f64);

/// Applies a unary function to a strip of `dtype`.
pub(crate) fn unary(op: UnaryOp, dtype: DType, a: &[u8], out: &mut [u8]) {
    use UnaryOp as U;
    macro_rules! same {
        ($kind:ident, $f:expr) => {
            dispatch!($kind, dtype, T => loop1(cast::<T>(a), cast_mut::<T>(out), $f),
                else => no_loop(&op, dtype))
        };
    }
    macro_rules! elementary {
        ($f:ident) => {
            dispatch!(inexact, dtype, T => math::$f::<T>(cast(a), cast_mut(out)),
                else => no_loop(&op, dtype))
        };
    }
    macro_rules! test {
        ($kind:ident, $f:expr) => {
            dispatch!($kind, dtype, T => loop1(cast::<T>(a), out, |x| u8::from($f(x))),
                else => no_loop(&op, dtype))
        };
    }
    macro_rules! part {
        ($complex:expr, $real:expr) => {
            match dtype {
                DType::Complex64 => loop1(cast::<Complex64>(a), cast_mut::<f32>(out), $complex),
                DType::Complex128 => loop1(cast::<Complex128>(a), cast_mut::<f64>(out), $complex),
                _ => same!(real, $real),
            }
        };
    }
    match op {
        U::Abs => match dtype {
            DType::Complex64 => math::norm(cast::<Complex64>(a), cast_mut::<f32>(out)),
            DType::Complex128 => math::norm(cast::<Complex128>(a), cast_mut::<f64>(out)),
            _ => same!(real, Real::magnitude),
        },
        U::Acos => elementary!(acos),
        U::Acosh => elementary!(acosh),
        U::Asin => elementary!(asin),
        U::Asinh => elementary!(asinh),
        U::Atan => elementary!(atan),
        U::Atanh => elementary!(atanh),
        U::BitwiseInvert if dtype == DType::Bool => loop1(a, out, |x| u8::from(x == 0)),
        U::BitwiseInvert => same!(integer, Bits::invert),
        U::Ceil => same!(real, Real::round_up),
        U::Conj => same!(numeric, Numeric::conjugate),
        U::Cos => elementary!(cos),
        U::Cosh => elementary!(cosh),
        U::Exp => elementary!(exp),
        U::Expm1 => elementary!(expm1),
        U::Floor => same!(real, Real::round_down),
        U::Imag => part!(|x| x.im, |_| Default::default()),
        U::Isfinite => test!(numeric, Numeric::finite),
        U::Isinf => test!(numeric, Numeric::infinite),
        U::Isnan => test!(numeric, Numeric::nan),
        U::Log => elementary!(log),
        U::Log1p => elementary!(log1p),
        U::Log2 => elementary!(log2),
        U::Log10 => elementary!(log10),
        U::LogicalNot => loop1(a, out, |x| u8::from(x == 0)),
        U::Negative => same!(numeric, Numeric::neg),
        U::Positive => out.copy_from_slice(a),
        U::Real => part!(|x| x.re, |x| x),
        U::Reciprocal => elementary!(reciprocal),
        U::Round => same!(numeric, Numeric::round_even),
        U::Sign => dispatch!(inexact, dtype, T => math::sign::<T>(cast(a), cast_mut(out)),
            else => same!(integer, Bits::sign)),
        U::Signbit => test!(float, |x: T| x.is_sign_negative()),
        U::Sin => elementary!(sin),
        U::Sinh => elementary!(sinh),
        U::Sqrt => elementary!(sqrt),
        U::Square => same!(numeric, |x| Numeric::times(x, x)),
        U::Tan => elementary!(tan),
        U::Tanh => elementary!(tanh),
        U::Trunc => same!(real, Real::round_to_zero),
    }
}

/// Applies a binary function to strips of `dtype`.
pub(crate) fn binary(op: BinaryOp, dtype: DType, a: &[u8], b: &[u8], out: &mut [u8]) {
    use BinaryOp as B;
    macro_rules! same {
        ($kind:ident, $f:expr) => {
            dispatch!($kind, dtype, T => loop2(cast::<T>(a), cast(b), cast_mut::<T>(out), $f),
                else => no_loop(&op, dtype))
        };
    }
    macro_rules! elementary {
        ($kind:ident, $f:ident) => { elementary!($kind, $f, else => no_loop(&op, dtype)) };
        ($kind:ident, $f:ident, else => $else:expr) => {
            dispatch!($kind, dtype, T => math::$f::<T>(cast(a), cast(b), cast_mut(out)),
                else => $else)
        };
    }
    macro_rules! test {
        ($kind:ident, $f:expr) => {
            dispatch!($kind, dtype, T => {
                loop2(cast::<T>(a), cast(b), out, |x: T, y: T| u8::from($f(&x, &y)))
            }, else => no_loop(&op, dtype))
        };
    }
    let mut truth =
        |f: fn(bool, bool) -> bool| loop2(a, b, out, |x, y| u8::from(f(x != 0, y != 0)));
    match op {
        B::BitwiseAnd | B::LogicalAnd if dtype == DType::Bool => truth(|x, y| x & y),
        B::BitwiseOr | B::LogicalOr if dtype == DType::Bool => truth(|x, y| x | y),
        B::BitwiseXor | B::LogicalXor | B::NotEqual if dtype == DType::Bool => truth(|x, y| x != y),
        B::Equal if dtype == DType::Bool => truth(|x, y| x == y),
        B::LogicalAnd | B::LogicalOr | B::LogicalXor => no_loop(&op, dtype),
        B::Add => same!(numeric, Numeric::plus),
        B::Atan2 => elementary!(float, atan2),
        B::BitwiseAnd => same!(integer, Bits::and),
        B::BitwiseLeftShift => same!(integer, Bits::shift_left),
        B::BitwiseOr => same!(integer, Bits::or),
        B::BitwiseRightShift => same!(integer, Bits::shift_right),
        B::BitwiseXor => same!(integer, Bits::xor),
        B::Copysign => elementary!(float, copysign),
        B::Divide => elementary!(inexact, divide),
        B::Equal => test!(numeric, PartialEq::eq),
        B::FloorDivide => {
            elementary!(float, floor_divide, else => same!(integer, Bits::floor_quotient))
        }
        B::Greater => test!(real, PartialOrd::gt),
        B::GreaterEqual => test!(real, PartialOrd::ge),
        B::Hypot => elementary!(float, hypot),
        B::Less => test!(real, PartialOrd::lt),
        B::LessEqual => test!(real, PartialOrd::le),
        B::Logaddexp => elementary!(float, logaddexp),
        B::Maximum => same!(real, Real::greatest),
        B::Minimum => same!(real, Real::least),
        B::Multiply => same!(numeric, Numeric::times),
        B::Nextafter => elementary!(float, nextafter),
        B::NotEqual => test!(numeric, PartialEq::ne),
        B::Pow => elementary!(inexact, pow, else => same!(integer, Bits::power)),
        B::Remainder => elementary!(float, remainder, else => same!(integer, Bits::floor_modulus)),
        B::Subtract => same!(numeric, Numeric::minus),
    }
}

/// Selects elements of `a` where `c` is not 0, and of `b` elsewhere.
pub(crate) fn select(dtype: DType, c: &[u8], a: &[u8], b: &[u8], out: &mut [u8]) {
    match dtype.size() {
        1 => loop3::<u8>(c, a, b, out),
        2 => loop3::<u16>(c, cast(a), cast(b), cast_mut(out)),
        4 => loop3::<u32>(c, cast(a), cast(b), cast_mut(out)),
        8 => loop3::<u64>(c, cast(a), cast(b), cast_mut(out)),
        _ => {
            let (a, b) = (bytemuck::cast_slice(a), bytemuck::cast_slice(b));
            loop3::<[u64; 2]>(c, a, b, bytemuck::cast_slice_mut(out))
        }
    }
}
