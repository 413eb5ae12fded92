//! One dtype to another.

use crate::apply::loop1;
use crate::dispatch;
use crate::dtype::{Complex64, Complex128, DType, Element, Kind, no_loop};

/// Casts values: to integers towards zero and saturating (NaN gives 0), complex to real by dropping
/// the imaginary part, anything to bool by comparing with zero.
///
/// `a` holds values of `from`, `out` as many of `to`.
pub(crate) fn cast(from: DType, a: &[u8], to: DType, out: &mut [u8]) {
    if from == to {
        out.copy_from_slice(a);
    } else if to == DType::Bool {
        dispatch!(all, from, T => spread::<T, u8>(a, out, |x| u8::from(x != T::default())));
    } else if from == DType::Bool {
        dispatch!(numeric, to, U => spread(a, out, |x: u8| if x != 0 { one::<U>() } else { U::default() }), else => no_loop(&"cast", to));
    } else {
        dispatch!(numeric, from, T => cast_from::<T>(a, to, out), else => no_loop(&"cast", from));
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
        _ => {
            dispatch!(real, to, U => spread::<T, U>(a, out, |x| x.part().cast_to()), else => no_loop(&"cast", to))
        }
    }
}

/// As Rust's `as`, in a form that the compiler vectorises.
trait CastTo<U> {
    fn cast_to(self) -> U;
}

macro_rules! plain_casts {
    ($($from:ty => $($to:ty),*;)*) => { $($(
        impl CastTo<$to> for $from {
            #[inline(always)] fn cast_to(self) -> $to { self as $to }
        }
    )*)* };
}
plain_casts! {
    i8 => i8, i16, i32, i64, u8, u16, u32, u64, f32, f64;
    i16 => i8, i16, i32, i64, u8, u16, u32, u64, f32, f64;
    i32 => i8, i16, i32, i64, u8, u16, u32, u64, f32, f64;
    i64 => i8, i16, i32, i64, u8, u16, u32, u64, f32, f64;
    u8 => i8, i16, i32, i64, u8, u16, u32, u64, f32, f64;
    u16 => i8, i16, i32, i64, u8, u16, u32, u64, f32, f64;
    u32 => i8, i16, i32, i64, u8, u16, u32, u64, f32, f64;
    u64 => i8, i16, i32, i64, u8, u16, u32, u64, f32, f64;
    f32 => f32, f64;
    f64 => f32, f64;
}

/// From a float through an integer that the processor converts to: a saturating `as` is a branch
/// for each element.
macro_rules! truncating_casts {
    ($($from:ty => [$($to:ident $through:ident),*])*) => { $($(
        impl CastTo<$to> for $from {
            #[inline(always)] fn cast_to(self) -> $to {
                const LOW: $from = <$to>::MIN as $from;
                // One above the greatest, which is a power of two and therefore exact.
                const HIGH: $from = (<$to>::MAX / 2 + 1) as $from * 2.0;
                let inside = (LOW..HIGH).contains(&self);
                let safe = if inside { self } else { 0.0 };
                // SAFETY: `safe` is 0 or within the bounds of `$to`, which `$through` holds.
                #[allow(unsafe_code)]
                let whole = unsafe { safe.to_int_unchecked::<$through>() } as $to;
                let beyond = if self >= HIGH { <$to>::MAX } else if self < LOW { <$to>::MIN } else { 0 };
                if inside { whole } else { beyond }
            }
        }
    )*)* };
}
truncating_casts! {
    f32 => [i8 i32, i16 i32, i32 i32, i64 i64, u8 i32, u16 i32, u32 u32, u64 u64]
    f64 => [i8 i32, i16 i32, i32 i32, i64 i64, u8 i32, u16 i32, u32 u32, u64 u64]
}

/// What a value is before it is cast: itself, or the real part.
trait CastSource {
    type Part: Copy
        + 'static
        + CastTo<i8>
        + CastTo<i16>
        + CastTo<i32>
        + CastTo<i64>
        + CastTo<u8>
        + CastTo<u16>
        + CastTo<u32>
        + CastTo<u64>
        + CastTo<f32>
        + CastTo<f64>;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What Rust's `as` gives is what every cast gives.
    #[test]
    fn casts_saturate_as_the_language_does() {
        let mut values: Vec<f64> = vec![
            0.0,
            -0.0,
            0.5,
            -0.5,
            1.5,
            -1.5,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1e300,
            -1e300,
        ];
        for bits in [7, 8, 15, 16, 31, 32, 63, 64] {
            let power = (1u128 << bits) as f64;
            values.extend([
                power,
                power - 1.0,
                power - 0.5,
                power + 1.0,
                -power,
                -power - 1.0,
                -power - 0.5,
                -power + 1.0,
            ]);
        }
        macro_rules! check {
            ($($to:ty),*) => { $( for x in &values {
                assert_eq!(CastTo::<$to>::cast_to(*x), *x as $to, "{x} to {}", stringify!($to));
                assert_eq!(CastTo::<$to>::cast_to(*x as f32), *x as f32 as $to, "{x} as f32 to \
                    {}", stringify!($to));
            } )* };
        }
        check!(i8, i16, i32, i64, u8, u16, u32, u64);
    }
}
