//! Blosc frames, encoded and decoded in given buffers.
//!
//! The calls of the library in zarrs allocate their results. Here the buffers are from the arena,
//! which counts them.

use std::ffi::c_char;

use blosc_src::{blosc_cbuffer_validate, blosc_compress_ctx, blosc_decompress_ctx};
use serde_json::Value;

/// The compression settings. Decompression ignores all but the block size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// The compressor's name as a C string.
    compressor: &'static [u8],
    level: i32,
    shuffle: i32,
    typesize: usize,
    blocksize: usize,
}

/// The maximum size of a frame in addition to its input, in bytes.
pub(super) const OVERHEAD_BYTES: u64 = blosc_src::BLOSC_MAX_OVERHEAD as u64;

/// The largest block that blosc chooses by itself (c-blosc 1.21, `compute_blocksize`).
const BLOCK_BYTES: u64 = 1 << 20;

/// The state of zstd in blosc while it compresses, in bytes.
const ZSTD_BYTES: u64 = 1_300_000;

/// The state of the other compressors, and of all decompressors, in bytes. The compressor of a
/// frame may differ from that of the settings.
const INNER_BYTES: u64 = 400_000;

impl Settings {
    /// Parses the codec's configuration of Zarr or numcodecs. `size` is the default for `typesize`.
    pub(super) fn new(configuration: &Value, size: usize) -> Result<Settings, String> {
        let number = |key: &str| configuration[key].as_i64();
        let compressor: &[u8] = match configuration["cname"].as_str() {
            Some("blosclz") => blosc_src::BLOSC_BLOSCLZ_COMPNAME,
            Some("lz4") => blosc_src::BLOSC_LZ4_COMPNAME,
            Some("lz4hc") => blosc_src::BLOSC_LZ4HC_COMPNAME,
            Some("snappy") => blosc_src::BLOSC_SNAPPY_COMPNAME,
            Some("zlib") => blosc_src::BLOSC_ZLIB_COMPNAME,
            Some("zstd") => blosc_src::BLOSC_ZSTD_COMPNAME,
            _ => {
                return Err(format!(
                    "invalid `cname` {}: expected blosclz, lz4, lz4hc, snappy, zlib or zstd",
                    configuration["cname"]
                ));
            }
        };
        let typesize = number("typesize")
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n > 0)
            .unwrap_or(size);
        let shuffle = match (configuration["shuffle"].as_str(), number("shuffle")) {
            (Some("noshuffle"), _) | (_, Some(0)) => blosc_src::BLOSC_NOSHUFFLE,
            (Some("shuffle"), _) | (_, Some(1)) => blosc_src::BLOSC_SHUFFLE,
            (Some("bitshuffle"), _) | (_, Some(2)) => blosc_src::BLOSC_BITSHUFFLE,
            (_, Some(-1)) if size == 1 => blosc_src::BLOSC_BITSHUFFLE,
            (_, Some(-1)) => blosc_src::BLOSC_SHUFFLE,
            _ => {
                return Err(format!(
                    "invalid `shuffle` {}: expected noshuffle, shuffle or bitshuffle",
                    configuration["shuffle"]
                ));
            }
        };
        Ok(Settings {
            compressor,
            level: number("clevel")
                .and_then(|n| i32::try_from(n).ok())
                .filter(|n| (0..=9).contains(n))
                .ok_or("invalid `clevel`: expected 0 to 9")?,
            shuffle: shuffle as i32,
            typesize,
            blocksize: number("blocksize").and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
        })
    }

    /// Returns the maximum block size of a frame in bytes. Larger blocks are refused.
    pub(super) fn block_bytes(&self) -> u64 {
        (self.blocksize as u64).max(BLOCK_BYTES)
    }

    /// Returns the memory that the library allocates for a frame of `size` bytes, in bytes.
    pub(super) fn working_bytes(&self, size: u64) -> u64 {
        // One shuffled block, and one compressed block with a length for each byte of an element.
        let blocks = 2 * self.block_bytes().min(size + 64) + 4 * self.typesize as u64;
        let inner = if self.compressor == blosc_src::BLOSC_ZSTD_COMPNAME {
            ZSTD_BYTES
        } else {
            INNER_BYTES
        };
        blocks + inner.min(size + 65_536)
    }

    /// Compresses into `out` and returns the length of the frame.
    #[allow(unsafe_code)]
    pub(super) fn compress(&self, bytes: &[u8], out: &mut [u8]) -> Result<usize, String> {
        // SAFETY: both pointers are valid for the given lengths, the name is null-terminated, and
        // the library writes at most `destsize` bytes. It uses one thread and no global state.
        let made = unsafe {
            blosc_compress_ctx(
                self.level,
                self.shuffle,
                self.typesize,
                bytes.len(),
                bytes.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                out.len(),
                self.compressor.as_ptr().cast::<c_char>(),
                self.blocksize,
                1,
            )
        };
        usize::try_from(made)
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| format!("blosc failed to compress {} bytes", bytes.len()))
    }

    /// Returns the decoded size of a frame in bytes.
    ///
    /// # Errors
    /// Returns an error if the header contradicts the frame's length or has larger blocks than
    /// these settings allow.
    pub(super) fn decoded_bytes(&self, frame: &[u8]) -> Result<u64, String> {
        // Header: version, versionlz, flags, typesize, nbytes, blocksize, cbytes (little-endian
        // u32).
        let word = |at: usize| {
            frame.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
        };
        let (Some(n), Some(block), Some(len)) = (word(4), word(8), word(12)) else {
            return Err("shorter than a blosc header".into());
        };
        if len as usize != frame.len() {
            return Err("the blosc header does not match the length of the object".into());
        }
        if u64::from(block) > self.block_bytes() {
            return Err(format!("blosc blocks are larger than {} bytes", self.block_bytes()));
        }
        Ok(u64::from(n))
    }
}

/// Decompresses a frame into the front of `out` and returns the length.
#[allow(unsafe_code)]
pub(super) fn decompress(frame: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let mut n = 0;
    // SAFETY: the pointer is valid for the given length, and the library reads no further.
    let valid =
        unsafe { blosc_cbuffer_validate(frame.as_ptr().cast(), frame.len(), &raw mut n) } == 0;
    if !valid || n > out.len() {
        return Err("invalid blosc header".into());
    }
    if n == 0 {
        return Ok(0);
    }
    // SAFETY: the header was checked against the frame's length. The library checks offsets against
    // the frame and writes at most `destsize` bytes. It uses one thread and no global state.
    let made = unsafe {
        blosc_decompress_ctx(frame.as_ptr().cast(), out.as_mut_ptr().cast(), out.len(), 1)
    };
    usize::try_from(made)
        .ok()
        .filter(|made| *made == n)
        .ok_or_else(|| "blosc failed to decompress".into())
}
