//! The calls that Rust cannot check: blosc, and a loop compiled for AVX2.
//!
//! Only the [floor](crate::floor) uses them.
#![allow(unsafe_code, reason = "a C library, and instructions that are looked for first")]

use std::ffi::c_int;

/// Cells of a strip: its three sums stay in the second-level cache while time goes by.
const STRIP: usize = 4096;

/// Adds u·u, u·v and v·v of one chunk of maps to sums over time.
pub(crate) fn fold(u: &[f32], v: &[f32], sums: &mut [Vec<f64>; 3]) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { fold_avx2(u, v, sums) };
    }
    strips(u, v, sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn fold_avx2(u: &[f32], v: &[f32], sums: &mut [Vec<f64>; 3]) {
    strips(u, v, sums);
}

#[inline(always)]
fn strips(u: &[f32], v: &[f32], sums: &mut [Vec<f64>; 3]) {
    let [uu, uv, vv] = sums;
    let cells = uu.len();
    for start in (0..cells).step_by(STRIP) {
        let strip = start..(start + STRIP).min(cells);
        for (u, v) in u.chunks_exact(cells).zip(v.chunks_exact(cells)) {
            let maps = u[strip.clone()].iter().zip(&v[strip.clone()]);
            let sums = uu[strip.clone()].iter_mut().zip(&mut uv[strip.clone()]).zip(&mut vv[strip.clone()]);
            for ((u, v), ((uu, uv), vv)) in maps.zip(sums) {
                let (u, v) = (f64::from(*u), f64::from(*v));
                *uu += u * u;
                *uv += u * v;
                *vv += v * v;
            }
        }
    }
}

/// Decodes a blosc buffer into `out`, which it must fill; false if it does not.
pub(crate) fn blosc_decode(bytes: &[u8], out: &mut [u8]) -> bool {
    let mut found = 0usize;
    // SAFETY: the pointer is valid for the length beside it, and blosc only reads it.
    let valid = unsafe { blosc_src::blosc_cbuffer_validate(bytes.as_ptr().cast(), bytes.len(), &raw mut found) };
    if valid != 0 || found != out.len() {
        return false;
    }
    // SAFETY: the header was just checked against the input's length, blosc writes at most `out.len()` bytes, and the two
    // do not overlap because `out` is borrowed mutably.
    let written = unsafe { blosc_src::blosc_decompress_ctx(bytes.as_ptr().cast(), out.as_mut_ptr().cast(), out.len(), 1) };
    usize::try_from(written) == Ok(out.len())
}

/// Most bytes that [`blosc_encode`] writes.
pub(crate) fn blosc_bound(bytes: usize) -> usize {
    bytes + blosc_src::BLOSC_MAX_OVERHEAD as usize
}

/// Encodes 4-byte elements with lz4 at level 5 behind a byte shuffle; `out` has room for the bound. False if it fails.
pub(crate) fn blosc_encode(bytes: &[u8], out: &mut [u8]) -> bool {
    let (level, shuffle, type_size) = (5, blosc_src::BLOSC_SHUFFLE as c_int, 4);
    // SAFETY: both pointers are valid for the lengths beside them and do not overlap, and the name ends in a zero byte.
    let written = unsafe {
        blosc_src::blosc_compress_ctx(
            level,
            shuffle,
            type_size,
            bytes.len(),
            bytes.as_ptr().cast(),
            out.as_mut_ptr().cast(),
            out.len(),
            blosc_src::BLOSC_LZ4_COMPNAME.as_ptr().cast(),
            0,
            1,
        )
    };
    written > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fold_sums_over_time() {
        // 5000 cells: a whole strip and a ragged one.
        let (cells, times) = (5000, 3);
        let u: Vec<f32> = (0..cells * times).map(|i| (i % 17) as f32 - 8.0).collect();
        let v: Vec<f32> = (0..cells * times).map(|i| (i % 5) as f32).collect();
        let mut sums = [(); 3].map(|()| vec![1.0; cells]);
        fold(&u, &v, &mut sums);
        for cell in 0..cells {
            let over_time = |f: &dyn Fn(f32, f32) -> f32| 1.0 + (0..times).map(|t| f64::from(f(u[t * cells + cell], v[t * cells + cell]))).sum::<f64>();
            assert_eq!(sums[0][cell], over_time(&|u, _| u * u));
            assert_eq!(sums[1][cell], over_time(&|u, v| u * v));
            assert_eq!(sums[2][cell], over_time(&|_, v| v * v));
        }
    }

    #[test]
    fn blosc_goes_there_and_back() {
        let values: Vec<u8> = (0..40_000u32).flat_map(|i| ((i % 300) as f32).to_le_bytes()).collect();
        let mut encoded = vec![0; blosc_bound(values.len())];
        assert!(blosc_encode(&values, &mut encoded));
        let mut back = vec![0; values.len()];
        // What the encoder did not use is behind the buffer's own length, which the header gives.
        let len = u32::from_le_bytes(encoded[12..16].try_into().unwrap()) as usize;
        assert!(len < values.len() && blosc_decode(&encoded[..len], &mut back));
        assert_eq!(back, values);
        assert!(!blosc_decode(&encoded[..len - 1], &mut back));
        assert!(!blosc_decode(&encoded[..len], &mut back[1..]));
    }
}
