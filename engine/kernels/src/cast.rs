//! One dtype to another.

use num_traits::AsPrimitive;

use crate::apply::loop1;
use crate::dispatch;
use crate::dtype::{Complex64, Complex128, DType, Element, Kind};

/// Casts values: to integers towards zero and saturating (NaN gives 0), complex to real by dropping the imaginary part,
/// anything to bool by comparing with zero.
///
/// `a` holds values of `from`, `out` as many of `to`.
pub(crate) fn cast(from: DType, a: &[u8], to: DType, out: &mut [u8]) {
    if from == to {
        out.copy_from_slice(a);
    } else if to == DType::Bool {
        dispatch!(all, from, T => spread::<T, u8>(a, out, |x| u8::from(x != T::default())));
    } else if from == DType::Bool {
        dispatch!(numeric, to, U => spread(a, out, |x: u8| if x != 0 { one::<U>() } else { U::default() }), else => {});
    } else {
        dispatch!(numeric, from, T => cast_from::<T>(a, to, out), else => {});
    }
}

fn one<U: Element>() -> U {
    bytemuck::pod_read_unaligned(crate::scalar::Scalar::new(1u8).cast(U::DTYPE).bytes())
}

fn spread<T: Element, U: Element>(a: &[u8], out: &mut [u8], f: impl Fn(T) -> U) {
    match (bytemuck::try_cast_slice(a), bytemuck::try_cast_slice_mut(out)) {
        (Ok(a), Ok(out)) => loop1(a, out, f),
        // Scalars' bytes are not aligned; there is one of them.
        _ => {
            for (x, o) in a.chunks_exact(size_of::<T>()).zip(out.chunks_exact_mut(size_of::<U>())) {
                o.copy_from_slice(bytemuck::bytes_of(&f(bytemuck::pod_read_unaligned(x))));
            }
        }
    }
}

fn cast_from<T: Element + CastSource>(a: &[u8], to: DType, out: &mut [u8]) {
    match to.kind() {
        Kind::Complex if to == DType::Complex64 => spread::<T, Complex64>(a, out, |x| {
            let c = x.complex();
            Complex64::new(c.re as f32, c.im as f32)
        }),
        Kind::Complex => spread::<T, Complex128>(a, out, |x| x.complex()),
        _ => dispatch!(real, to, U => spread::<T, U>(a, out, |x| x.part().as_()), else => {}),
    }
}

/// What a value is before it is cast: itself, or the real part.
trait CastSource {
    type Part: Copy
        + 'static
        + AsPrimitive<i8>
        + AsPrimitive<i16>
        + AsPrimitive<i32>
        + AsPrimitive<i64>
        + AsPrimitive<u8>
        + AsPrimitive<u16>
        + AsPrimitive<u32>
        + AsPrimitive<u64>
        + AsPrimitive<f32>
        + AsPrimitive<f64>;
    fn part(self) -> Self::Part;
    fn complex(self) -> Complex128;
}

macro_rules! cast_sources {
    ($($t:ty),*) => { $(impl CastSource for $t {
        type Part = $t;
        #[inline(always)] fn part(self) -> $t { self }
        #[inline(always)] fn complex(self) -> Complex128 { Complex128::new(self as f64, 0.0) }
    })* };
}
cast_sources!(i8, i16, i32, i64, u8, u16, u32, u64, f32, f64);

macro_rules! complex_sources {
    ($($t:ty: $p:ty),*) => { $(impl CastSource for $t {
        type Part = $p;
        #[inline(always)] fn part(self) -> $p { self.re }
        #[inline(always)] fn complex(self) -> Complex128 { Complex128::new(self.re as f64, self.im as f64) }
    })* };
}
complex_sources!(Complex64: f32, Complex128: f64);
