//! Temporary.
use num_complex::{Complex, ComplexFloat};

pub(crate) trait Elementary: Copy {
    fn acos(self) -> Self;
    fn acosh(self) -> Self;
    fn asin(self) -> Self;
    fn asinh(self) -> Self;
    fn atan(self) -> Self;
    fn atanh(self) -> Self;
    fn cos(self) -> Self;
    fn cosh(self) -> Self;
    fn exp(self) -> Self;
    fn expm1(self) -> Self;
    fn log(self) -> Self;
    fn log1p(self) -> Self;
    fn log2(self) -> Self;
    fn log10(self) -> Self;
    fn sin(self) -> Self;
    fn sinh(self) -> Self;
    fn sqrt(self) -> Self;
    fn tan(self) -> Self;
    fn tanh(self) -> Self;
    fn reciprocal(self) -> Self;
    fn sign(self) -> Self;
    fn pow(self, other: Self) -> Self;
    fn divide(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
}
pub(crate) trait RealMath: Elementary {
    fn atan2(self, o: Self) -> Self;
    fn hypot(self, o: Self) -> Self;
    fn copysign(self, o: Self) -> Self;
    fn nextafter(self, o: Self) -> Self;
    fn logaddexp(self, o: Self) -> Self;
    fn remainder(self, o: Self) -> Self;
    fn floor_divide(self, o: Self) -> Self;
}
macro_rules! all { ($($t:ty),*) => { $(
    impl Elementary for $t {
        fn acos(self) -> Self { ComplexFloat::acos(self) } fn acosh(self) -> Self { ComplexFloat::acosh(self) } fn asin(self) -> Self { ComplexFloat::asin(self) }
        fn asinh(self) -> Self { ComplexFloat::asinh(self) } fn atan(self) -> Self { ComplexFloat::atan(self) } fn atanh(self) -> Self { ComplexFloat::atanh(self) }
        fn cos(self) -> Self { ComplexFloat::cos(self) } fn cosh(self) -> Self { ComplexFloat::cosh(self) } fn exp(self) -> Self { ComplexFloat::exp(self) }
        fn expm1(self) -> Self { ComplexFloat::exp(self) - Self::from(1.0) } fn log(self) -> Self { ComplexFloat::ln(self) } fn log1p(self) -> Self { ComplexFloat::ln(self + Self::from(1.0)) }
        fn log2(self) -> Self { ComplexFloat::log2(self) } fn log10(self) -> Self { ComplexFloat::log10(self) } fn sin(self) -> Self { ComplexFloat::sin(self) }
        fn sinh(self) -> Self { ComplexFloat::sinh(self) } fn sqrt(self) -> Self { ComplexFloat::sqrt(self) } fn tan(self) -> Self { ComplexFloat::tan(self) }
        fn tanh(self) -> Self { ComplexFloat::tanh(self) } fn reciprocal(self) -> Self { Self::from(1.0) / self } fn sign(self) -> Self { self }
        fn pow(self, other: Self) -> Self { (ComplexFloat::ln(self) * other).exp() } fn divide(self, other: Self) -> Self { self / other } fn times(self, other: Self) -> Self { self * other }
    }
)* } }
all!(f32, f64, Complex<f32>, Complex<f64>);
macro_rules! reals { ($($t:ident),*) => { $(impl RealMath for $t {
    fn atan2(self, o: Self) -> Self { $t::atan2(self, o) } fn hypot(self, o: Self) -> Self { $t::hypot(self, o) } fn copysign(self, o: Self) -> Self { $t::copysign(self, o) }
    fn nextafter(self, _: Self) -> Self { self } fn logaddexp(self, o: Self) -> Self { self + o } fn remainder(self, o: Self) -> Self { self.rem_euclid(o) } fn floor_divide(self, o: Self) -> Self { (self / o).floor() }
})* } }
reals!(f32, f64);
pub(crate) fn magnitude<T: num_traits::Float>(z: Complex<T>) -> T {
    z.norm()
}
