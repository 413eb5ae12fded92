//! Encoded bytes ↔ blocks, with a bound for everything.
//!
//! The codecs are zarrs'. What is done here is what it leaves open: only known codecs are let in, the bytes-to-bytes codecs
//! are peeled off one by one so that each step's size is known before it is made (a flipped bit in a frame header cannot ask
//! for terabytes), and zstd, gzip and crc32c decode straight into a buffer that is used again.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::sync::Arc;

use freestone_kernels::{Buffer, DType, Scalar};
use thiserror::Error;
use zarrs::array::{ArrayBytes, BytesRepresentation, CodecChain, CodecOptions, DataType, FillValue};
use zarrs::array::{ArrayToBytesCodecTraits, BytesToBytesCodecTraits};
use zarrs::metadata::v3::MetadataV3;

use super::zstd_bound;
use crate::grid::block_bytes;
use crate::memory::{Arena, Overrun};

/// Why bytes are no chunk.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum CodecError {
    #[error("codec `{0}` is not supported: the known ones are bytes, transpose, sharding_indexed, zstd, blosc, gzip, zlib and crc32c")]
    Unknown(String),
    #[error("codec `{name}` cannot be used here: {why}")]
    Unusable { name: String, why: String },
    #[error("the chunk is damaged: {0}")]
    Corrupt(String),
    #[error("the chunk decodes to {found} bytes, not to {expected}: it is damaged or cut short")]
    Length { found: u64, expected: u64 },
    #[error("the chunk could not be encoded: {0}")]
    Encode(String),
    #[error(transparent)]
    Overrun(#[from] Overrun),
}

/// How the chunks of one array are encoded.
#[derive(Debug)]
pub struct Codec {
    /// Array-to-array codecs and the array-to-bytes codec.
    head: CodecChain,
    /// The head changes nothing: native byte order, C order.
    plain: bool,
    filters: Vec<Filter>,
    shape: Vec<NonZeroU64>,
    data_type: DataType,
    fill: FillValue,
    /// Bytes of a whole chunk.
    decoded: u64,
    n_transposes: usize,
}

/// One bytes-to-bytes codec, in the order of encoding.
#[derive(Debug)]
enum Filter {
    Zstd {
        level: i32,
        checksum: bool,
    },
    Gzip {
        level: u32,
    },
    Zlib {
        level: u32,
    },
    Crc32c,
    /// With the largest block that is allowed.
    Blosc(Arc<dyn BytesToBytesCodecTraits>, u64),
}

/// Codecs' states of one thread, used again from chunk to chunk.
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

/// Bytes of a CRC-32C.
const CHECKSUM_BYTES: usize = 4;
/// The largest block that blosc chooses by itself (c-blosc 1.21, `compute_blocksize`).
const BLOSC_BLOCK_BYTES: u64 = 1 << 20;
/// State of the codecs inside blosc, of which zstd's is the largest.
const BLOSC_INNER_BYTES: u64 = 1_300_000;
/// State and window of an inflate or deflate stream.
const GZIP_CONTEXT_BYTES: u64 = 400_000;

impl Codec {
    /// From a Zarr v3 codec list; `shape` is a whole chunk's.
    ///
    /// # Errors
    /// Where a codec is unknown or does not fit the dtype or shape.
    pub fn new(codecs: &[serde_json::Value], dtype: DType, fill: &Scalar, shape: &[u64]) -> Result<Codec, CodecError> {
        let unusable = |name: &str, why: String| CodecError::Unusable { name: name.to_owned(), why };
        let (mut head, mut filters, mut n_transposes, mut foreign_order) = (Vec::new(), Vec::new(), 0, false);
        for codec in codecs {
            let metadata: MetadataV3 = serde_json::from_value(codec.clone()).map_err(|e| unusable(&codec.to_string(), e.to_string()))?;
            let number = |key: &str| codec["configuration"][key].as_i64();
            match metadata.name() {
                "bytes" => {
                    foreign_order =
                        dtype.size() > 1 && codec["configuration"]["endian"].as_str() != Some(if cfg!(target_endian = "big") { "big" } else { "little" });
                    head.push(metadata);
                }
                "transpose" => {
                    n_transposes += 1;
                    head.push(metadata);
                }
                "zstd" | "numcodecs.zstd" => filters
                    .push(Filter::Zstd { level: number("level").unwrap_or(0) as i32, checksum: codec["configuration"]["checksum"].as_bool().unwrap_or(false) }),
                "gzip" => filters.push(Filter::Gzip { level: number("level").unwrap_or(5) as u32 }),
                "zlib" | "numcodecs.zlib" => filters.push(Filter::Zlib { level: number("level").unwrap_or(5) as u32 }),
                "crc32c" | "numcodecs.crc32c" => filters.push(Filter::Crc32c),
                name @ ("blosc" | "numcodecs.blosc") => {
                    let bytes = serde_json::from_value(serde_json::json!({"name": "bytes", "configuration": {"endian": "little"}}))
                        .map_err(|e| unusable(name, e.to_string()))?;
                    let chain = CodecChain::from_metadata(&[bytes, metadata.clone()]).map_err(|e| unusable(name, e.to_string()))?;
                    let blosc = chain.bytes_to_bytes_codecs().first().cloned().ok_or_else(|| unusable(name, "it is no bytes-to-bytes codec".into()))?;
                    filters.push(Filter::Blosc(blosc, number("blocksize").map_or(0, |b| b.max(0) as u64).max(BLOSC_BLOCK_BYTES)));
                }
                other => return Err(CodecError::Unknown(other.to_owned())),
            }
        }
        let head = CodecChain::from_metadata(&head).map_err(|e| unusable("bytes", e.to_string()))?;
        let data_type = DataType::from_metadata(&MetadataV3::new(dtype.name())).map_err(|e| unusable("bytes", e.to_string()))?;
        let decoded = block_bytes(shape, dtype.size()).ok_or_else(|| unusable("bytes", format!("chunks of shape {shape:?} are larger than any memory")))?;
        Ok(Codec {
            plain: n_transposes == 0 && !foreign_order,
            head,
            filters,
            shape: shape.iter().filter_map(|n| NonZeroU64::new(*n)).collect(),
            data_type,
            fill: FillValue::new(fill.bytes().to_vec()),
            decoded,
            n_transposes,
        })
    }

    /// True if encoded bytes are the block's own.
    pub fn is_raw(&self) -> bool {
        self.plain && self.filters.is_empty()
    }

    /// Bytes of a whole chunk, decoded.
    pub fn decoded_bytes(&self) -> u64 {
        self.decoded
    }

    /// Most bytes of a chunk, encoded.
    pub fn encoded_bound(&self) -> u64 {
        self.filters.iter().fold(self.decoded, |size, f| f.bound(size))
    }

    /// Bytes that decoding holds besides the encoded bytes and the block.
    pub fn decode_scratch(&self) -> u64 {
        let mut sizes: Vec<u64> = self
            .filters
            .iter()
            .scan(self.decoded, |size, f| {
                let inner = *size;
                *size = f.bound(*size);
                Some(inner)
            })
            .collect();
        // The innermost filter of a plain chain decodes into the block itself; a checksum only shortens.
        if self.plain && !sizes.is_empty() {
            sizes.remove(0);
        }
        let steps: u64 =
            sizes.iter().zip(self.filters.iter().skip(usize::from(self.plain))).map(|(s, f)| if matches!(f, Filter::Crc32c) { 0 } else { *s }).sum();
        steps + self.decoded * self.n_transposes as u64 + self.working_bytes()
    }

    /// Bytes that encoding holds besides the block and the encode buffer.
    pub fn encode_scratch(&self) -> u64 {
        // A checksum is put behind what our own encoders made, where there is room for it.
        let in_place = matches!(self.filters.as_slice(), [.., Filter::Zstd { .. } | Filter::Gzip { .. } | Filter::Zlib { .. }, Filter::Crc32c]);
        let steps: u64 = self
            .filters
            .iter()
            .scan(self.decoded, |size, f| {
                *size = f.bound(*size);
                Some(*size)
            })
            .sum();
        let head = if self.plain { 0 } else { self.decoded * (1 + self.n_transposes as u64) };
        let once = if in_place { self.encoded_bound() - CHECKSUM_BYTES as u64 } else { 0 };
        head + steps.saturating_sub(self.encoded_bound() + once) + self.working_bytes()
    }

    /// Bytes of codecs' state that a thread keeps from chunk to chunk for decoding.
    pub fn decode_context_bytes(&self) -> u64 {
        if self.filters.iter().any(|f| matches!(f, Filter::Zstd { .. })) { zstd_bound::DECOMPRESSION_CONTEXT_BYTES } else { 0 }
    }

    /// Bytes of codecs' state that a thread keeps from chunk to chunk for encoding.
    pub fn encode_context_bytes(&self) -> u64 {
        let state = |f: &Filter| match f {
            Filter::Zstd { level, .. } => zstd_bound::compression_context_bytes(*level, self.decoded),
            _ => 0,
        };
        self.filters.iter().map(state).max().unwrap_or(0)
    }

    /// Bytes that codecs hold inside while they work on one chunk.
    fn working_bytes(&self) -> u64 {
        let working = |f: &Filter| match f {
            Filter::Gzip { .. } | Filter::Zlib { .. } => GZIP_CONTEXT_BYTES,
            Filter::Blosc(_, block) => 3 * (*block).min(self.decoded + 64) + BLOSC_INNER_BYTES.min(self.decoded + 65_536),
            Filter::Zstd { .. } | Filter::Crc32c => 0,
        };
        self.filters.iter().map(working).max().unwrap_or(0)
    }

    /// Decodes a chunk that holds `expected` bytes.
    ///
    /// # Errors
    /// Where the bytes are no such chunk.
    pub fn decode(&self, encoded: &[u8], expected: u64, arena: &mut Arena, contexts: &mut Contexts) -> Result<Buffer, CodecError> {
        // What each filter yields, innermost first.
        let mut sizes = Vec::with_capacity(self.filters.len());
        let mut size = expected;
        for filter in &self.filters {
            sizes.push(size);
            size = filter.bound(size);
        }
        let mut bytes: Cow<'_, [u8]> = Cow::Borrowed(encoded);
        for (i, (filter, most)) in self.filters.iter().zip(&sizes).enumerate().rev() {
            if let Filter::Crc32c = filter {
                let end = verify_crc32c(&bytes)?;
                match &mut bytes {
                    Cow::Borrowed(b) => *b = &b[..end],
                    Cow::Owned(v) => v.truncate(end),
                }
                continue;
            }
            if !(i == 0 && self.plain && matches!(filter, Filter::Zstd { .. })) {
                // What codecs allocate by themselves stands beside the pool.
                arena.prepare(self.decode_scratch() + expected);
            }
            if i == 0 && self.plain {
                return filter.decode_last(&bytes, expected, arena, contexts);
            }
            bytes = Cow::Owned(filter.decode(&bytes, *most, i == 0, contexts)?);
        }
        if bytes.len() as u64 != expected {
            return Err(CodecError::Length { found: bytes.len() as u64, expected });
        }
        if self.plain {
            let mut block = arena.buffer(expected)?;
            block.bytes_mut().copy_from_slice(&bytes);
            return Ok(block);
        }
        arena.prepare(self.decode_scratch() + expected);
        let options = CodecOptions::default().with_concurrent_target(1);
        let decoded = self.head.decode(bytes, &self.shape, &self.data_type, &self.fill, &options).map_err(|e| CodecError::Corrupt(e.to_string()))?;
        let block = decoded.into_fixed().map_err(|e| CodecError::Corrupt(e.to_string()))?.into_owned();
        Ok(arena.adopt(block)?)
    }

    /// Encodes a block; `None` if its own bytes are the encoding.
    ///
    /// # Errors
    /// Where a codec fails.
    pub fn encode(&self, block: &[u8], arena: &mut Arena, contexts: &mut Contexts) -> Result<Option<Buffer>, CodecError> {
        let mut bytes: Cow<'_, [u8]> = Cow::Borrowed(block);
        if !self.is_raw() {
            arena.prepare(self.encode_scratch() + self.encoded_bound());
        }
        if !self.plain {
            let options = CodecOptions::default().with_concurrent_target(1);
            let encoded = self
                .head
                .encode(ArrayBytes::new_flen(bytes), &self.shape, &self.data_type, &self.fill, &options)
                .map_err(|e| CodecError::Encode(e.to_string()))?;
            bytes = Cow::Owned(encoded.into_owned());
        }
        let (filters, checksum) = match self.filters.as_slice() {
            [filters @ .., Filter::Crc32c] if !filters.is_empty() => (filters, CHECKSUM_BYTES),
            filters => (filters, 0),
        };
        let Some((last, first)) = filters.split_last() else {
            return match bytes {
                Cow::Borrowed(_) => Ok(None),
                Cow::Owned(v) => Ok(Some(arena.adopt(v)?)),
            };
        };
        for filter in first {
            bytes = Cow::Owned(filter.encode(&bytes, contexts)?);
        }
        if let Filter::Zstd { level, checksum: own_checksum } = last {
            let mut out = arena.buffer(last.bound(bytes.len() as u64) + checksum as u64)?;
            let n = compress(*level, *own_checksum, &bytes, out.bytes_mut(), contexts)?;
            out.set_len(n + checksum);
            if checksum > 0 {
                let (body, sum) = out.bytes_mut().split_at_mut(n);
                sum.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
            }
            return Ok(Some(out));
        }
        let mut out = last.encode(&bytes, contexts)?;
        if checksum > 0 {
            out.reserve_exact(checksum);
            out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        }
        Ok(Some(arena.adopt(out)?))
    }
}

impl Filter {
    /// Most bytes that it makes of `size` bytes.
    fn bound(&self, size: u64) -> u64 {
        match self {
            Filter::Zstd { checksum, .. } => zstd_safe::compress_bound(size as usize) as u64 + if *checksum { 4 } else { 0 },
            // Stored blocks of deflate add 5 bytes per 16 KB at worst; header and trailer 18.
            Filter::Gzip { .. } | Filter::Zlib { .. } => size + size / 1024 + 64,
            Filter::Crc32c => size + 4,
            Filter::Blosc(codec, _) => codec.encoded_representation(&BytesRepresentation::BoundedSize(size)).size().unwrap_or(size + 16),
        }
    }

    /// Decodes the innermost filter into a pooled block of exactly `expected` bytes.
    fn decode_last(&self, bytes: &[u8], expected: u64, arena: &mut Arena, contexts: &mut Contexts) -> Result<Buffer, CodecError> {
        let found = match self {
            Filter::Zstd { .. } => {
                let mut block = arena.buffer(expected)?;
                let n = decompress(bytes, block.bytes_mut(), contexts)? as u64;
                if n == expected {
                    return Ok(block);
                }
                n
            }
            Filter::Gzip { .. } | Filter::Zlib { .. } => {
                let mut block = arena.buffer(expected)?;
                inflate(self, bytes, block.bytes_mut())?;
                return Ok(block);
            }
            Filter::Blosc(..) | Filter::Crc32c => {
                let decoded = self.decode(bytes, expected, true, contexts)?;
                if decoded.len() as u64 == expected {
                    return Ok(arena.adopt(decoded)?);
                }
                decoded.len() as u64
            }
        };
        Err(CodecError::Length { found, expected })
    }

    /// Decodes to at most `most` bytes, exactly so many where `exact`.
    fn decode(&self, bytes: &[u8], most: u64, exact: bool, contexts: &mut Contexts) -> Result<Vec<u8>, CodecError> {
        match self {
            Filter::Zstd { .. } => {
                let mut out = vec![0; most as usize];
                let n = decompress(bytes, &mut out, contexts)?;
                out.truncate(n);
                Ok(out)
            }
            Filter::Gzip { .. } | Filter::Zlib { .. } if exact => {
                let mut out = vec![0; most as usize];
                inflate(self, bytes, &mut out)?;
                Ok(out)
            }
            Filter::Gzip { .. } | Filter::Zlib { .. } => {
                let mut out = Vec::with_capacity(most as usize);
                reader(self, bytes).take(most + 1).read_to_end(&mut out).map_err(|e| CodecError::Corrupt(e.to_string()))?;
                if out.len() as u64 > most { Err(CodecError::Length { found: out.len() as u64, expected: most }) } else { Ok(out) }
            }
            Filter::Blosc(codec, block) => {
                // Header: version, versionlz, flags, typesize, nbytes, blocksize, cbytes (little-endian u32).
                let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
                match (word(4), word(12)) {
                    (Some(n), Some(c)) if u64::from(n) <= most && c as usize == bytes.len() && (!exact || u64::from(n) == most) => {}
                    (Some(n), Some(c)) if c as usize == bytes.len() => return Err(CodecError::Length { found: n.into(), expected: most }),
                    _ => return Err(CodecError::Corrupt("the blosc header does not agree with the length of the object".into())),
                }
                if word(8).is_none_or(|b| u64::from(b) > *block) {
                    return Err(CodecError::Corrupt(format!("its blosc blocks are larger than {block} bytes")));
                }
                let size = if exact { BytesRepresentation::FixedSize(most) } else { BytesRepresentation::BoundedSize(most) };
                let decoded = codec
                    .decode(Cow::Borrowed(bytes), &size, &CodecOptions::default().with_concurrent_target(1))
                    .map_err(|e| CodecError::Corrupt(e.to_string()))?;
                Ok(decoded.into_owned())
            }
            Filter::Crc32c => Ok(bytes[..verify_crc32c(bytes)?].to_vec()),
        }
    }

    fn encode(&self, bytes: &[u8], contexts: &mut Contexts) -> Result<Vec<u8>, CodecError> {
        let failed = |e: std::io::Error| CodecError::Encode(e.to_string());
        match self {
            Filter::Zstd { level, checksum } => {
                let mut out = vec![0; self.bound(bytes.len() as u64) as usize];
                let n = compress(*level, *checksum, bytes, &mut out, contexts)?;
                out.truncate(n);
                Ok(out)
            }
            Filter::Gzip { level } => {
                let out = Vec::with_capacity(self.bound(bytes.len() as u64) as usize + CHECKSUM_BYTES);
                let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(*level));
                encoder.write_all(bytes).map_err(failed)?;
                encoder.finish().map_err(failed)
            }
            Filter::Zlib { level } => {
                let out = Vec::with_capacity(self.bound(bytes.len() as u64) as usize + CHECKSUM_BYTES);
                let mut encoder = flate2::write::ZlibEncoder::new(out, flate2::Compression::new(*level));
                encoder.write_all(bytes).map_err(failed)?;
                encoder.finish().map_err(failed)
            }
            Filter::Crc32c => {
                let mut out = Vec::with_capacity(bytes.len() + 4);
                out.extend_from_slice(bytes);
                out.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
                Ok(out)
            }
            Filter::Blosc(codec, _) => {
                let encoded =
                    codec.encode(Cow::Borrowed(bytes), &CodecOptions::default().with_concurrent_target(1)).map_err(|e| CodecError::Encode(e.to_string()))?;
                Ok(encoded.into_owned())
            }
        }
    }
}

/// Number of bytes before the checksum, if it is theirs.
fn verify_crc32c(bytes: &[u8]) -> Result<usize, CodecError> {
    let Some((body, sum)) = bytes.split_last_chunk::<4>() else { return Err(CodecError::Corrupt("it is too short for its checksum".into())) };
    if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
        return Err(CodecError::Corrupt("its crc32c checksum does not match".into()));
    }
    Ok(body.len())
}

/// One-shot; the target's size is the guard against headers that lie.
fn decompress(bytes: &[u8], out: &mut [u8], contexts: &mut Contexts) -> Result<usize, CodecError> {
    let context = contexts.decompress.get_or_insert_with(zstd_safe::DCtx::create);
    context.decompress(out, bytes).map_err(|code| CodecError::Corrupt(format!("zstd: {}", zstd_safe::get_error_name(code))))
}

fn compress(level: i32, checksum: bool, bytes: &[u8], out: &mut [u8], contexts: &mut Contexts) -> Result<usize, CodecError> {
    use zstd_safe::CParameter;
    let context = contexts.compress.get_or_insert_with(zstd_safe::CCtx::create);
    let failed = |code| CodecError::Encode(format!("zstd: {}", zstd_safe::get_error_name(code)));
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
    context.set_parameter(CParameter::ChecksumFlag(checksum)).map_err(failed)?;
    context.compress2(out, bytes).map_err(failed)
}

fn reader<'a>(filter: &Filter, bytes: &'a [u8]) -> Box<dyn Read + 'a> {
    match filter {
        Filter::Gzip { .. } => Box::new(flate2::read::MultiGzDecoder::new(bytes)),
        _ => Box::new(flate2::read::ZlibDecoder::new(bytes)),
    }
}

/// Fills `out` exactly; more or less is an error.
fn inflate(filter: &Filter, bytes: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
    let mut stream = reader(filter, bytes);
    let mut found = 0;
    while found < out.len() {
        match stream.read(&mut out[found..]) {
            Ok(0) => return Err(CodecError::Length { found: found as u64, expected: out.len() as u64 }),
            Ok(n) => found += n,
            Err(e) => return Err(CodecError::Corrupt(e.to_string())),
        }
    }
    match stream.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(CodecError::Length { found: found as u64 + 1, expected: out.len() as u64 }),
        Err(e) => Err(CodecError::Corrupt(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn chains() -> Vec<Vec<serde_json::Value>> {
        let le = json!({"name": "bytes", "configuration": {"endian": "little"}});
        let be = json!({"name": "bytes", "configuration": {"endian": "big"}});
        let zstd = json!({"name": "zstd", "configuration": {"level": 1, "checksum": true}});
        let gzip = json!({"name": "gzip", "configuration": {"level": 5}});
        let zlib = json!({"name": "numcodecs.zlib", "configuration": {"level": 5}});
        let crc = json!({"name": "crc32c"});
        let transpose = json!({"name": "transpose", "configuration": {"order": [1, 0]}});
        let blosc = |cname: &str, shuffle: &str| json!({"name": "blosc", "configuration": {"cname": cname, "clevel": 5, "shuffle": shuffle, "typesize": 4, "blocksize": 0}});
        vec![
            vec![le.clone()],
            vec![be.clone()],
            vec![le.clone(), zstd.clone()],
            vec![le.clone(), crc.clone()],
            vec![le.clone(), zstd.clone(), crc.clone()],
            vec![le.clone(), crc.clone(), gzip.clone()],
            vec![le.clone(), gzip.clone()],
            vec![le.clone(), zlib],
            vec![be, zstd.clone(), crc.clone()],
            vec![transpose.clone(), le.clone(), gzip],
            vec![transpose, le.clone(), blosc("lz4", "shuffle")],
            vec![le.clone(), blosc("zstd", "bitshuffle")],
            vec![le, blosc("lz4", "shuffle"), crc, zstd],
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_is_encoded_decodes_within_its_bounds(values in prop::collection::vec(any::<u32>(), 6 * 35), smooth: bool) {
            let values: Vec<u32> = if smooth { values.iter().enumerate().map(|(i, v)| i as u32 * 3 + v % 4).collect() } else { values };
            let block: &[u8] = bytemuck_cast(&values);
            for codecs in chains() {
                let codec = Codec::new(&codecs, DType::UInt32, &Scalar::zero(DType::UInt32), &[6, 35]).unwrap();
                let (mut arena, mut contexts) = (Arena::new(1 << 20), Contexts::default());
                let encoded = codec.encode(block, &mut arena, &mut contexts).unwrap();
                let bytes = encoded.as_ref().map_or(block, Buffer::bytes).to_vec();
                prop_assert!(bytes.len() as u64 <= codec.encoded_bound(), "{:?}", codecs);
                let back = codec.decode(&bytes, block.len() as u64, &mut arena, &mut contexts).unwrap();
                prop_assert_eq!(back.bytes(), block, "{:?}", codecs);
            }
        }

        /// Any damage is an error or other values of the same size: never a panic, never more memory than the bound.
        #[test]
        fn damage_is_an_error(flip in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>(), truncate: bool) {
            let values: Vec<u32> = (0..210).map(|i| i * i).collect();
            let block: &[u8] = bytemuck_cast(&values);
            for codecs in chains() {
                let codec = Codec::new(&codecs, DType::UInt32, &Scalar::zero(DType::UInt32), &[6, 35]).unwrap();
                let (mut arena, mut contexts) = (Arena::new(1 << 20), Contexts::default());
                let encoded = codec.encode(block, &mut arena, &mut contexts).unwrap();
                let mut bytes = encoded.as_ref().map_or(block, Buffer::bytes).to_vec();
                if truncate { bytes.truncate(cut.index(bytes.len())); } else { let at = flip.index(bytes.len()); bytes[at] ^= 1 << bit; }
                match codec.decode(&bytes, block.len() as u64, &mut arena, &mut contexts) {
                    Ok(b) => prop_assert_eq!(b.len(), block.len()),
                    Err(e) => prop_assert!(!matches!(e, CodecError::Overrun(_)), "{:?}", codecs),
                }
                let checked = codecs.iter().any(|c| c["name"] == "crc32c") && codecs.last().unwrap()["name"] == "crc32c";
                if checked {
                    prop_assert!(codec.decode(&bytes, block.len() as u64, &mut arena, &mut contexts).is_err());
                }
            }
        }
    }

    fn bytemuck_cast(values: &[u32]) -> &[u8] {
        zarrs::array::transmute_to_bytes(values)
    }

    #[test]
    fn an_unknown_codec_is_refused() {
        let codecs = [json!({"name": "bytes", "configuration": {"endian": "little"}}), json!({"name": "lossy_magic"})];
        assert!(matches!(Codec::new(&codecs, DType::Float32, &Scalar::zero(DType::Float32), &[4]), Err(CodecError::Unknown(n)) if n == "lossy_magic"));
    }
}
