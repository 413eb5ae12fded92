//! Run-time choice of instruction set.
//!
//! The compiler vectorises plain loops well, but only for the baseline (SSE2 on x86-64). `wide_fn!`
//! compiles a loop a second time for AVX2 + FMA and selects at run time: select and compare loops
//! gain up to nine times. AVX-512 gave no further measurable gain.

/// Returns true if the processor has AVX2 and FMA. The standard library caches the detection.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Defines a function whose body is compiled for the baseline and for AVX2 + FMA, and dispatched at
/// run time.
///
/// The body must be plain loops or calls of `#[inline(always)]` code. Closures passed as generic
/// parameters are inlined into both copies.
macro_rules! wide_fn {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$($g:ident $(: $b0:path)?),*>(
            $($a:ident: $t:ty),* $(,)?
        ) $(-> $r:ty)? where {$($w:tt)*} $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name<$($g $(: $b0)?),*>($($a: $t),*) $(-> $r)? where $($w)* {
            #[inline(always)]
            fn body<$($g $(: $b0)?),*>($($a: $t),*) $(-> $r)? where $($w)* $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($g $(: $b0)?),*>($($a: $t),*) $(-> $r)? where $($w)* { body($($a),*) }

            #[cfg(target_arch = "x86_64")]
            if $crate::simd::has_avx2() {
                // SAFETY: the processor has the features that `avx2` was compiled for.
                #[allow(unsafe_code)]
                return unsafe { avx2($($a),*) };
            }
            body($($a),*)
        }
    };
}
