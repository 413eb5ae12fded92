//! Memory bounds of zstd's contexts, which are allocated outside Rust's allocator. The size of a
//! compression context grows with level and input size.

/// Returns the size in bytes of a compression context at `level` for inputs of up to `size` bytes,
/// as estimated by the library.
///
/// For a 26 MB chunk it is about 3 MB at level 3, and some hundreds of MB at level 22.
#[allow(unsafe_code)]
pub(crate) fn compression_context_bytes(level: i32, size: u64) -> u64 {
    // SAFETY: both functions are pure arithmetic on plain values, and accept any level and size.
    unsafe {
        let parameters = zstd_sys::ZSTD_getCParams(level, size, 0);
        zstd_sys::ZSTD_estimateCCtxSize_usingCParams(parameters) as u64
    }
}

/// The size in bytes of a decompression context for one-shot use. It is about 96 KB in zstd 1.5.7
/// for any frame.
pub(crate) const DECOMPRESSION_CONTEXT_BYTES: u64 = 160_000;
