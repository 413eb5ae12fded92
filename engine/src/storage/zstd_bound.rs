//! How much memory zstd's compression context takes: it lives outside Rust's allocator and grows
//! with level and size.

/// Bytes of a compression context at `level` for inputs of up to `size` bytes, by the library's own
/// estimate.
///
/// A 26 MB chunk takes about 3 MB at level 3, and some hundreds of MB at level 22.
#[allow(unsafe_code)]
pub(crate) fn compression_context_bytes(level: i32, size: u64) -> u64 {
    // SAFETY: both functions are pure arithmetic over plain values; any level and size are allowed.
    unsafe {
        let parameters = zstd_sys::ZSTD_getCParams(level, size, 0);
        zstd_sys::ZSTD_estimateCCtxSize_usingCParams(parameters) as u64
    }
}

/// Bytes of a decompression context for one-shot use: about 96 KB in 1.5.7, whatever the frame.
pub(crate) const DECOMPRESSION_CONTEXT_BYTES: u64 = 160_000;
