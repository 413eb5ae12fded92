//! Blosc frames, from and into memory that is ours.
//!
//! zarrs' own calls of the library allocate what they yield; here a frame is decoded into a buffer
//! that was counted, and made in one.

use std::ffi::c_char;

use blosc_src::{blosc_cbuffer_validate, blosc_compress_ctx, blosc_decompress_ctx};
use serde_json::Value;

/// How frames are made. Reading one needs none of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// The compressor's name, ended by a zero as C wants it.
    compressor: &'static [u8],
    level: i32,
    shuffle: i32,
    typesize: usize,
    blocksize: usize,
}

/// Bytes that a frame takes at most besides those that went in.
pub(super) const OVERHEAD_BYTES: u64 = blosc_src::BLOSC_MAX_OVERHEAD as u64;

/// The largest block that blosc chooses by itself (c-blosc 1.21, `compute_blocksize`).
const BLOCK_BYTES: u64 = 1 << 20;

/// State of zstd inside blosc, which compresses.
const ZSTD_BYTES: u64 = 1_300_000;

/// State of the other compressors, and of all that decompress: a frame may be another's than the
/// settings say.
const INNER_BYTES: u64 = 400_000;

impl Settings {
    /// From the codec's configuration, Zarr's or numcodecs'; the size of an element stands in where
    /// none is given.
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
                    "`cname` is {}, which is no compressor of blosc's",
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
                    "`shuffle` is {}, not noshuffle, shuffle or bitshuffle",
                    configuration["shuffle"]
                ));
            }
        };
        Ok(Settings {
            compressor,
            level: number("clevel")
                .and_then(|n| i32::try_from(n).ok())
                .filter(|n| (0..=9).contains(n))
                .ok_or("`clevel` is not 0 to 9")?,
            shuffle: shuffle as i32,
            typesize,
            blocksize: number("blocksize").and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
        })
    }

    /// The largest block that a frame may have; what is larger is not read.
    pub(super) fn block_bytes(&self) -> u64 {
        (self.blocksize as u64).max(BLOCK_BYTES)
    }

    /// Bytes that the library holds inside while it works on a frame of `size` bytes.
    pub(super) fn working_bytes(&self, size: u64) -> u64 {
        // A block shuffled, and one compressed with a length for each byte of an element.
        let blocks = 2 * self.block_bytes().min(size + 64) + 4 * self.typesize as u64;
        let inner = if self.compressor == blosc_src::BLOSC_ZSTD_COMPNAME {
            ZSTD_BYTES
        } else {
            INNER_BYTES
        };
        blocks + inner.min(size + 65_536)
    }

    /// Makes a frame in `out`; its length.
    #[allow(unsafe_code)]
    pub(super) fn compress(&self, bytes: &[u8], out: &mut [u8]) -> Result<usize, String> {
        // SAFETY: both pointers are valid for the lengths beside them, the name ends with a zero,
        // and the library keeps to `destsize`. One thread, and no state but its own.
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
            .ok_or_else(|| format!("blosc cannot compress {} bytes", bytes.len()))
    }

    /// Bytes in a frame, if its header agrees with its length and asks for no larger blocks than
    /// these settings make.
    pub(super) fn decoded_bytes(&self, frame: &[u8]) -> Result<u64, String> {
        // Header: version, versionlz, flags, typesize, nbytes, blocksize, cbytes (little-endian
        // u32).
        let word = |at: usize| {
            frame.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
        };
        let (Some(n), Some(block), Some(len)) = (word(4), word(8), word(12)) else {
            return Err("it is too short for a blosc header".into());
        };
        if len as usize != frame.len() {
            return Err("the blosc header does not agree with the length of the object".into());
        }
        if u64::from(block) > self.block_bytes() {
            return Err(format!("its blosc blocks are larger than {} bytes", self.block_bytes()));
        }
        Ok(u64::from(n))
    }
}

/// Fills the front of `out` with what a frame holds; its length.
#[allow(unsafe_code)]
pub(super) fn decompress(frame: &[u8], out: &mut [u8]) -> Result<usize, String> {
    let mut n = 0;
    // SAFETY: the pointer is valid for the length beside it; only that much is looked at.
    let valid =
        unsafe { blosc_cbuffer_validate(frame.as_ptr().cast(), frame.len(), &raw mut n) } == 0;
    if !valid || n > out.len() {
        return Err("the blosc header is not valid".into());
    }
    if n == 0 {
        return Ok(0);
    }
    // SAFETY: the frame's header was checked against its length, and the library against offsets
    // that leave the frame; it keeps to `destsize`. One thread, and no state but its own.
    let made = unsafe {
        blosc_decompress_ctx(frame.as_ptr().cast(), out.as_mut_ptr().cast(), out.len(), 1)
    };
    usize::try_from(made)
        .ok()
        .filter(|made| *made == n)
        .ok_or_else(|| "blosc cannot decompress it".into())
}
