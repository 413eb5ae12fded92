//! Casts between dtypes.

use crate::apply::loop1;
use crate::dispatch;
use crate::dtype::{Complex64, Complex128, DType, Element, Kind, no_loop};

/// Casts values. Casts to integers truncate towards zero and saturate (NaN gives 0); casts from
/// complex to real drop the imaginary part; casts to bool compare with zero.
///
/// `a` holds values of `from`; `out` has room for as many of `to`.
pub(crate) fn cast(from: DType, a: &[u8], to: DType, out: &mut [u8]) {
    if from == to {
        out.copy_from_slice(a);
    } else if to == DType::Bool {
        dispatch!(all, from, T => convert::<T, u8>(a, out, |x| u8::from(x != T::default())));
    } else if from == DType::Bool {
        dispatch!(numeric, to, U => {
            convert(a, out, |x: u8| if x != 0 { one::<U>() } else { U::default() })
        }, else => no_loop(&"cast", to));
    } else {
        dispatch!(numeric, from, T => cast_from::<T>(a, to, out), else => no_loop(&"cast", from));
    }
}

fn one<U: Element>() -> U {
    bytemuck::pod_read_unaligned(crate::scalar::Scalar::new(1u8).cast(U::DTYPE).bytes())
}

/// Converts each value by `f`.
fn convert<T: Element, U: Element>(a: &[u8], out: &mut [u8], f: impl Fn(T) -> U) {
    match (bytemuck::try_cast_slice(a), bytemuck::try_cast_slice_mut(out)) {
        (Ok(a), Ok(out)) => loop1(a, out, f),
        // The bytes of a scalar are not aligned.
        _ => {
            for (x, o) in a.chunks_exact(size_of::<T>()).zip(out.chunks_exact_mut(size_of::<U>())) {
                o.copy_from_slice(bytemuck::bytes_of(&f(bytemuck::pod_read_unaligned(x))));
            }
        }
    }
}

fn cast_from<T: Element + CastSource>(a: &[u8], to: DType, out: &mut [u8]) {
    match to.kind() {
        Kind::Complex if to == DType::Complex64 => convert::<T, Complex64>(a, out, |x| {
            let c = x.complex();
            Complex64::new(c.re as f32, c.im as f32)
        }),
        Kind::Complex => convert::<T, Complex128>(a, out, |x| x.complex()),
        _ => dispatch!(real, to, U => convert::<T, U>(a, out, |x| x.real_part().cast_to()),
            else => no_loop(&"cast", to)),
    }
}

/// The semantics of Rust's `as`, in a form that the compiler vectorises.
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

/// Casts from floats through an integer type that the processor converts to. A saturating `as`
/// compiles to a branch per element.
macro_rules! truncating_casts {
    ($($from:ty => [$($to:ident $through:ident),*])*) => { $($(
        impl CastTo<$to> for $from {
            #[inline(always)] fn cast_to(self) -> $to {
                const LOW: $from = <$to>::MIN as $from;
                // One above the maximum: a power of two, and therefore exact.
                const HIGH: $from = (<$to>::MAX / 2 + 1) as $from * 2.0;
                let inside = (LOW..HIGH).contains(&self);
                let safe = if inside { self } else { 0.0 };
                // SAFETY: `safe` is 0 or within the bounds of `$to`, which `$through` holds.
                #[allow(unsafe_code)]
                let whole = unsafe { safe.to_int_unchecked::<$through>() } as $to;
                let low = if self < LOW { <$to>::MIN } else { 0 };
                let beyond = if self >= HIGH { <$to>::MAX } else { low };
                if inside { whole } else { beyond }
            }
        }
    )*)* };
}
truncating_casts! {
    f32 => [i8 i32, i16 i32, i32 i32, i64 i64, u8 i32, u16 i32, u32 u32, u64 u64]
    f64 => [i8 i32, i16 i32, i32 i32, i64 i64, u8 i32, u16 i32, u32 u32, u64 u64]
}

/// The source of a cast. The real part of a real value is the value itself.
trait CastSource {
    type RealPart: Copy
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
    fn real_part(self) -> Self::RealPart;
    fn complex(self) -> Complex128;
}

macro_rules! cast_sources {
    ($($t:ty),*) => { $(impl CastSource for $t {
        type RealPart = $t;
        #[inline(always)] fn real_part(self) -> $t { self }
        #[inline(always)] fn complex(self) -> Complex128 { Complex128::new(self as f64, 0.0) }
    })* };
}
cast_sources!(i8, i16, i32, i64, u8, u16, u32, u64, f32, f64);

macro_rules! complex_sources {
    ($($t:ty: $p:ty),*) => { $(impl CastSource for $t {
        type RealPart = $p;
        #[inline(always)] fn real_part(self) -> $p { self.re }
        #[inline(always)] fn complex(self) -> Complex128 {
            Complex128::new(self.re as f64, self.im as f64)
        }
    })* };
}
complex_sources!(Complex64: f32, Complex128: f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_match_the_as_operator() {
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
                let single = *x as f32;
                assert_eq!(
                    CastTo::<$to>::cast_to(single), single as $to,
                    "{x} as f32 to {}", stringify!($to)
                );
            } )* };
        }
        check!(i8, i16, i32, i64, u8, u16, u32, u64);
    }
}
