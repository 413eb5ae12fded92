//! Run-time choice of instruction set.
//!
//! The compiler vectorises plain loops well, but only for the baseline (SSE2 on x86-64). `wide_fn!`
//! compiles a loop a second time for AVX2 + FMA and picks at run time: select and compare loops
//! gain up to nine times. AVX-512 added nothing measurable on top.

/// True where the AVX2 + FMA copies of the loops can run. The answer is cached by the standard
/// library.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Defines a function whose body is compiled for the baseline and for AVX2 + FMA, and dispatched at
/// run time.
///
/// The body must be written as a call of `#[inline(always)]` code or as plain loops; closures
/// passed in as generic parameters are inlined into both copies.
macro_rules! wide_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$($g:ident $(: $b0:path)?),*>($($a:ident: $t:ty),* $(,)?) $(-> $r:ty)? where {$($w:tt)*} $body:block) => {
        $(#[$meta])*
        $vis fn $name<$($g $(: $b0)?),*>($($a: $t),*) $(-> $r)? where $($w)* {
            #[inline(always)]
            fn body<$($g $(: $b0)?),*>($($a: $t),*) $(-> $r)? where $($w)* $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($g $(: $b0)?),*>($($a: $t),*) $(-> $r)? where $($w)* { body($($a),*) }

            #[cfg(target_arch = "x86_64")]
            if $crate::simd::has_avx2() {
                // SAFETY: the features that `avx2` was compiled for were just detected on this
                // processor.
                #[allow(unsafe_code)]
                return unsafe { avx2($($a),*) };
            }
            body($($a),*)
        }
    };
}
