//! Unsafe calls: blosc, and loops compiled for AVX2.
//!
//! Only the [floor](crate::floor) uses them.
#![allow(unsafe_code, reason = "a C library, and instructions that are looked for first")]

use std::ffi::c_int;

/// Runs a loop compiled for AVX2 if available. The functions that it calls must be inlined.
pub(crate) fn wide<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { wide_avx2(work) };
    }
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn wide_avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Decodes a blosc buffer into `out`. Returns false if the buffer is invalid or does not fill
/// `out`.
pub(crate) fn blosc_decode(bytes: &[u8], out: &mut [u8]) -> bool {
    let mut found = 0usize;
    // SAFETY: the pointer is valid for the length beside it, and blosc only reads it.
    let valid = unsafe {
        blosc_src::blosc_cbuffer_validate(bytes.as_ptr().cast(), bytes.len(), &raw mut found)
    };
    if valid != 0 || found != out.len() {
        return false;
    }
    // SAFETY: the header was just checked against the input's length, blosc writes at most
    // `out.len()` bytes, and the two do not overlap because `out` is borrowed mutably.
    let written = unsafe {
        blosc_src::blosc_decompress_ctx(
            bytes.as_ptr().cast(),
            out.as_mut_ptr().cast(),
            out.len(),
            1,
        )
    };
    usize::try_from(written) == Ok(out.len())
}

/// Returns the maximum number of bytes that [`blosc_encode`] writes.
pub(crate) fn blosc_bound(bytes: usize) -> usize {
    bytes + blosc_src::BLOSC_MAX_OVERHEAD as usize
}

/// Encodes 4-byte elements with lz4 at level 5 and byte shuffle. `out` has room for the bound.
/// Returns the encoded length, or `None` on failure.
pub(crate) fn blosc_encode(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let (level, shuffle, type_size) = (5, blosc_src::BLOSC_SHUFFLE as c_int, 4);
    // SAFETY: both pointers are valid for the lengths beside them and do not overlap, and the name
    // ends in a zero byte.
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
    usize::try_from(written).ok().filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blosc_goes_there_and_back() {
        let values: Vec<u8> =
            (0..40_000u32).flat_map(|i| ((i % 300) as f32).to_le_bytes()).collect();
        let mut encoded = vec![0; blosc_bound(values.len())];
        let mut back = vec![0; values.len()];
        let len = blosc_encode(&values, &mut encoded).unwrap();
        assert!(len < values.len() && blosc_decode(&encoded[..len], &mut back));
        assert_eq!(back, values);
        assert!(!blosc_decode(&encoded[..len - 1], &mut back));
        assert!(!blosc_decode(&encoded[..len], &mut back[1..]));
    }
}
