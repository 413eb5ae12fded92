//! Bytes-to-bytes codecs: zstd, gzip, zlib, crc32c and blosc.

use std::io::{Cursor, Read, Write};

use freestone_kernels::DType;
use serde_json::Value;

use super::super::blosc;
use super::CodecError;

/// The size of a CRC-32C in bytes.
pub(super) const CHECKSUM_BYTES: usize = 4;
/// The size of state and window of an inflate or deflate stream.
const GZIP_CONTEXT_BYTES: u64 = 400_000;

/// A bytes-to-bytes codec.
#[derive(Debug)]
pub(super) enum Filter {
    Zstd { level: i32, checksum: bool },
    Gzip { level: u32 },
    Zlib { level: u32 },
    Crc32c,
    Blosc(blosc::Settings),
}

/// The codec contexts of one thread, reused for all chunks.
#[derive(Default)]
pub struct Contexts {
    decompress: Option<zstd_safe::DCtx<'static>>,
    compress: Option<zstd_safe::CCtx<'static>>,
}

impl std::fmt::Debug for Contexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contexts").finish_non_exhaustive()
    }
}

impl Filter {
    pub(super) fn new(
        name: &str,
        configuration: &Value,
        dtype: DType,
    ) -> Result<Filter, CodecError> {
        let level = |default: i64| configuration["level"].as_i64().unwrap_or(default);
        Ok(match name {
            "zstd" | "numcodecs.zstd" => Filter::Zstd {
                level: level(0) as i32,
                checksum: configuration["checksum"].as_bool().unwrap_or(false),
            },
            "gzip" => Filter::Gzip { level: level(5) as u32 },
            "zlib" | "numcodecs.zlib" => Filter::Zlib { level: level(5) as u32 },
            "crc32c" | "numcodecs.crc32c" => Filter::Crc32c,
            "blosc" | "numcodecs.blosc" => Filter::Blosc(
                blosc::Settings::new(configuration, dtype.size())
                    .map_err(|why| CodecError::Unusable { name: name.to_owned(), why })?,
            ),
            other => return Err(CodecError::Unknown(other.to_owned())),
        })
    }

    /// Returns the maximum encoded size of `size` bytes.
    pub(super) fn bound(&self, size: u64) -> u64 {
        match self {
            Filter::Zstd { checksum, .. } => {
                zstd_safe::compress_bound(size as usize) as u64 + if *checksum { 4 } else { 0 }
            }
            // Stored blocks of deflate add 5 bytes per 16 KB at worst; header and trailer 18.
            Filter::Gzip { .. } | Filter::Zlib { .. } => size + size / 1024 + 64,
            Filter::Crc32c => size + CHECKSUM_BYTES as u64,
            Filter::Blosc(_) => size + blosc::OVERHEAD_BYTES,
        }
    }

    /// Returns the memory that the codec allocates internally while it processes `size` bytes.
    pub(super) fn working_bytes(&self, size: u64) -> u64 {
        match self {
            Filter::Gzip { .. } | Filter::Zlib { .. } => GZIP_CONTEXT_BYTES,
            Filter::Blosc(settings) => settings.working_bytes(size),
            Filter::Zstd { .. } | Filter::Crc32c => 0,
        }
    }

    /// Decodes into the front of `out` and returns the number of bytes. The size of `out` guards
    /// against damaged headers.
    pub(super) fn decode(
        &self,
        bytes: &[u8],
        out: &mut [u8],
        contexts: &mut Contexts,
    ) -> Result<usize, CodecError> {
        match self {
            Filter::Zstd { .. } => {
                let context = contexts.decompress.get_or_insert_with(zstd_safe::DCtx::create);
                context.decompress(out, bytes).map_err(|code| {
                    CodecError::Corrupt(format!("zstd: {}", zstd_safe::get_error_name(code)))
                })
            }
            Filter::Gzip { .. } => inflate(&mut flate2::bufread::MultiGzDecoder::new(bytes), out),
            Filter::Zlib { .. } => inflate(&mut flate2::bufread::ZlibDecoder::new(bytes), out),
            Filter::Blosc(settings) => {
                let n = settings.decoded_bytes(bytes).map_err(CodecError::Corrupt)?;
                if n > out.len() as u64 {
                    return Err(CodecError::Length { found: n, expected: out.len() as u64 });
                }
                blosc::decompress(bytes, out).map_err(CodecError::Corrupt)
            }
            Filter::Crc32c => {
                let end = verify_crc32c(bytes)?;
                out[..end].copy_from_slice(&bytes[..end]);
                Ok(end)
            }
        }
    }

    /// Encodes into the front of `out`, which has the size of the bound. Returns the number of
    /// bytes.
    pub(super) fn encode(
        &self,
        bytes: &[u8],
        out: &mut [u8],
        contexts: &mut Contexts,
    ) -> Result<usize, CodecError> {
        let failed = |e: std::io::Error| CodecError::Encode(e.to_string());
        match self {
            Filter::Zstd { level, checksum } => compress(*level, *checksum, bytes, out, contexts),
            Filter::Gzip { level } => {
                let mut encoder = flate2::write::GzEncoder::new(
                    Cursor::new(out),
                    flate2::Compression::new(*level),
                );
                encoder.write_all(bytes).map_err(failed)?;
                Ok(encoder.finish().map_err(failed)?.position() as usize)
            }
            Filter::Zlib { level } => {
                let mut encoder = flate2::write::ZlibEncoder::new(
                    Cursor::new(out),
                    flate2::Compression::new(*level),
                );
                encoder.write_all(bytes).map_err(failed)?;
                Ok(encoder.finish().map_err(failed)?.position() as usize)
            }
            Filter::Blosc(settings) => settings.compress(bytes, out).map_err(CodecError::Encode),
            Filter::Crc32c => {
                out[..bytes.len()].copy_from_slice(bytes);
                out[bytes.len()..][..CHECKSUM_BYTES]
                    .copy_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
                Ok(bytes.len() + CHECKSUM_BYTES)
            }
        }
    }
}

/// Verifies the checksum at the end of `bytes` and returns the number of bytes before it.
pub(super) fn verify_crc32c(bytes: &[u8]) -> Result<usize, CodecError> {
    let Some((body, sum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(CodecError::Corrupt("shorter than its checksum".into()));
    };
    if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
        return Err(CodecError::Corrupt("crc32c checksum mismatch".into()));
    }
    Ok(body.len())
}

fn compress(
    level: i32,
    checksum: bool,
    bytes: &[u8],
    out: &mut [u8],
    contexts: &mut Contexts,
) -> Result<usize, CodecError> {
    use zstd_safe::CParameter;
    let context = contexts.compress.get_or_insert_with(zstd_safe::CCtx::create);
    let failed = |code| CodecError::Encode(format!("zstd: {}", zstd_safe::get_error_name(code)));
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
    context.set_parameter(CParameter::ChecksumFlag(checksum)).map_err(failed)?;
    context.compress2(out, bytes).map_err(failed)
}

/// Reads a whole stream into the front of `out`. A longer stream is an error.
fn inflate(stream: &mut dyn Read, out: &mut [u8]) -> Result<usize, CodecError> {
    let corrupt = |e: std::io::Error| CodecError::Corrupt(e.to_string());
    let mut found = 0;
    while found < out.len() {
        match stream.read(&mut out[found..]).map_err(corrupt)? {
            0 => return Ok(found),
            n => found += n,
        }
    }
    match stream.read(&mut [0]).map_err(corrupt)? {
        0 => Ok(found),
        _ => Err(CodecError::Length { found: found as u64 + 1, expected: out.len() as u64 }),
    }
}
