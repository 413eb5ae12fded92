//! Encoded bytes ↔ blocks, with a bound for everything.
//!
//! Only known codecs are let in. The bytes-to-bytes codecs are peeled off one by one so that each
//! step's size is known before it is made (a flipped bit in a frame header cannot ask for
//! terabytes), and every step goes from one buffer of the arena into another: what is held at worst
//! is [`Codec::decode_scratch`] and [`Codec::encode_beside`], and no codec allocates a chunk.

use std::io::{Cursor, Read, Write};

use freestone_kernels::dtype::Kind;
use freestone_kernels::{Buffer, DType, View, contiguous_strides, copy};
use serde_json::Value;
use thiserror::Error;

use super::{blosc, zstd_bound};
use crate::grid::block_bytes;
use crate::memory::{Arena, Overrun};

/// Why bytes are no chunk.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum CodecError {
    #[error(
        "codec `{0}` is not supported: the known ones are bytes, transpose, sharding_indexed, \
            zstd, blosc, gzip, zlib and crc32c"
    )]
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
    dtype: DType,
    /// A whole chunk's.
    shape: Vec<usize>,
    /// Axis `i` of what is stored is axis `order[i]` of the chunk; `None` for C order.
    order: Option<Vec<usize>>,
    /// Bytes of the words that are stored the other way round; 1 where none are.
    swapped: usize,
    filters: Vec<Filter>,
    /// Bytes of a whole chunk.
    decoded: u64,
}

/// One bytes-to-bytes codec, in the order of encoding.
#[derive(Debug)]
enum Filter {
    Zstd { level: i32, checksum: bool },
    Gzip { level: u32 },
    Zlib { level: u32 },
    Crc32c,
    Blosc(blosc::Settings),
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

/// An encoded chunk: its bytes, or the block's own where these are the encoding, and what follows
/// them.
#[derive(Debug)]
pub struct Encoded {
    own: Option<Buffer>,
    /// Checksums. They are not put behind the bytes, so that a block that is stored as it is need
    /// not be copied for them.
    trailer: Vec<u8>,
}

impl Encoded {
    /// The bytes, one part after the other; `block` is what was encoded.
    pub fn parts<'a>(&'a self, block: &'a [u8]) -> [&'a [u8]; 2] {
        [self.own.as_ref().map_or(block, Buffer::bytes), &self.trailer]
    }

    /// Gives the buffer back.
    pub fn recycle(self, arena: &mut Arena) {
        self.own.into_iter().for_each(|buffer| arena.recycle(buffer));
    }
}

/// Bytes of a CRC-32C.
const CHECKSUM_BYTES: usize = 4;
/// State and window of an inflate or deflate stream.
const GZIP_CONTEXT_BYTES: u64 = 400_000;

impl Codec {
    /// From a Zarr v3 codec list; `shape` is a whole chunk's.
    ///
    /// # Errors
    /// Where a codec is unknown or does not fit the dtype or shape.
    pub fn new(codecs: &[Value], dtype: DType, shape: &[u64]) -> Result<Codec, CodecError> {
        let unusable =
            |name: &str, why: String| CodecError::Unusable { name: name.to_owned(), why };
        let (mut order, mut swapped, mut filters): (
            Option<Vec<usize>>,
            Option<usize>,
            Vec<Filter>,
        ) = (None, None, Vec::new());
        for codec in codecs {
            let Some(name) = codec["name"].as_str().or(codec.as_str()) else {
                return Err(unusable(&codec.to_string(), "it has no name".into()));
            };
            let configuration = &codec["configuration"];
            match name {
                "bytes" | "transpose" if swapped.is_some() => {
                    return Err(unusable(name, "it comes before `bytes`, which comes once".into()));
                }
                "bytes" => {
                    swapped = Some(
                        words_to_swap(configuration["endian"].as_str(), dtype)
                            .map_err(|why| unusable(name, why))?,
                    )
                }
                "transpose" => {
                    let next = permutation(&configuration["order"], shape.len())
                        .ok_or_else(|| unusable(name, "`order` is no order of the axes".into()))?;
                    order = Some(order.map_or_else(
                        || next.clone(),
                        |first| next.iter().map(|i| first[*i]).collect(),
                    ));
                }
                _ => {
                    let filter = Filter::new(name, configuration, dtype)?;
                    if swapped.is_none() {
                        return Err(unusable(name, "it comes after `bytes`".into()));
                    }
                    filters.push(filter);
                }
            }
        }
        let Some(swapped) = swapped else { return Err(unusable("bytes", "it is missing".into())) };
        let decoded = block_bytes(shape, dtype.size()).ok_or_else(|| {
            unusable("bytes", format!("chunks of shape {shape:?} are larger than any memory"))
        })?;
        let order = order.filter(|o| o.iter().enumerate().any(|(i, axis)| i != *axis));
        Ok(Codec {
            dtype,
            shape: shape.iter().map(|n| *n as usize).collect(),
            order,
            swapped,
            filters,
            decoded,
        })
    }

    /// True if values are stored as they are computed with.
    fn is_plain(&self) -> bool {
        self.order.is_none() && self.swapped == 1
    }

    /// True if encoded bytes are the block's own.
    pub fn is_raw(&self) -> bool {
        self.is_plain() && self.filters.is_empty()
    }

    /// Bytes of a whole chunk, decoded.
    pub fn decoded_bytes(&self) -> u64 {
        self.decoded
    }

    /// Most bytes of a chunk, encoded.
    pub fn encoded_bound(&self) -> u64 {
        self.filters.iter().fold(self.decoded, |size, f| f.bound(size))
    }

    /// Most bytes of a stored chunk that holds `expected` bytes.
    pub fn read_limit(&self, expected: u64) -> u64 {
        if self.filters.is_empty() { expected } else { self.encoded_bound() }
    }

    /// Bytes of an encoded chunk that stand beside the block while it is decoded: where nothing is
    /// compressed, the encoded bytes become the block.
    pub fn encoded_beside(&self) -> u64 {
        if self.filters.iter().all(|f| matches!(f, Filter::Crc32c)) {
            self.encoded_bound() - self.decoded
        } else {
            self.encoded_bound()
        }
    }

    /// Bytes that decoding holds besides those and the block.
    pub fn decode_scratch(&self) -> u64 {
        let mut held = self.encoded_bound();
        let mut most = held;
        for (filter, size) in self.filters.iter().zip(self.sizes(self.decoded)).rev() {
            if !matches!(filter, Filter::Crc32c) {
                most = most.max(held + size);
                held = size;
            }
        }
        if self.order.is_some() {
            most = most.max(held + self.decoded);
        }
        most.saturating_sub(self.encoded_beside() + self.decoded) + self.working_bytes()
    }

    /// Bytes that encoding holds besides the block: nothing where the block's own bytes are stored.
    pub fn encode_beside(&self) -> u64 {
        let mut held = if self.is_plain() { 0 } else { self.decoded };
        let mut most = held;
        for (filter, size) in self.body().iter().zip(self.sizes(self.decoded)) {
            most = most.max(held + filter.bound(size));
            held = filter.bound(size);
        }
        most + self.working_bytes()
    }

    /// The filters before the checksums at the end.
    fn body(&self) -> &[Filter] {
        let checksums =
            self.filters.iter().rev().take_while(|f| matches!(f, Filter::Crc32c)).count();
        &self.filters[..self.filters.len() - checksums]
    }

    /// What each filter is given, from blocks of `size` bytes on.
    fn sizes(&self, size: u64) -> Vec<u64> {
        self.filters
            .iter()
            .scan(size, |size, f| Some(std::mem::replace(size, f.bound(*size))))
            .collect()
    }

    /// Bytes of codecs' state that a thread keeps from chunk to chunk for decoding.
    pub fn decode_context_bytes(&self) -> u64 {
        if self.filters.iter().any(|f| matches!(f, Filter::Zstd { .. })) {
            zstd_bound::DECOMPRESSION_CONTEXT_BYTES
        } else {
            0
        }
    }

    /// Bytes of codecs' state that a thread keeps from chunk to chunk for encoding.
    pub fn encode_context_bytes(&self) -> u64 {
        let state = |f: &Filter| match f {
            Filter::Zstd { level, .. } => {
                zstd_bound::compression_context_bytes(*level, self.decoded)
            }
            _ => 0,
        };
        self.filters.iter().map(state).max().unwrap_or(0)
    }

    /// Bytes that codecs hold inside while they work on one chunk.
    fn working_bytes(&self) -> u64 {
        self.filters.iter().map(|f| f.working_bytes(self.decoded)).max().unwrap_or(0)
    }

    /// Decodes a chunk that holds `expected` bytes. The encoded bytes go back to the arena as soon
    /// as they are decoded.
    ///
    /// # Errors
    /// Where the bytes are no such chunk.
    pub fn decode(
        &self,
        encoded: Buffer,
        expected: u64,
        arena: &mut Arena,
        contexts: &mut Contexts,
    ) -> Result<Buffer, CodecError> {
        let mut bytes = encoded;
        for (i, (filter, most)) in self.filters.iter().zip(self.sizes(expected)).enumerate().rev() {
            if let Filter::Crc32c = filter {
                let end = verify_crc32c(bytes.bytes())?;
                bytes.set_len(end);
                continue;
            }
            let mut out = arena.buffer(most)?;
            // What codecs allocate by themselves stands beside the pool.
            arena.prepare(filter.working_bytes(most));
            let n = filter.decode(bytes.bytes(), out.bytes_mut(), contexts)?;
            if i == 0 && n as u64 != expected {
                return Err(CodecError::Length { found: n as u64, expected });
            }
            out.set_len(n);
            arena.recycle(std::mem::replace(&mut bytes, out));
        }
        let found = bytes.len() as u64;
        if found != expected || (self.order.is_some() && found != self.decoded) {
            return Err(CodecError::Length { found, expected });
        }
        swap_words(bytes.bytes_mut(), self.swapped);
        let Some(order) = &self.order else { return Ok(bytes) };
        let mut block = arena.buffer(expected)?;
        let (stored, own) = self.strides(order);
        let view = View {
            dtype: self.dtype,
            bytes: bytes.bytes(),
            offset: 0,
            shape: self.shape.clone(),
            strides: stored,
        };
        copy::strided(&view, block.bytes_mut(), 0, &own);
        arena.recycle(bytes);
        Ok(block)
    }

    /// Encodes a block.
    ///
    /// # Errors
    /// Where a codec fails.
    pub fn encode(
        &self,
        block: &[u8],
        arena: &mut Arena,
        contexts: &mut Contexts,
    ) -> Result<Encoded, CodecError> {
        let mut bytes: Option<Buffer> = None;
        if !self.is_plain() {
            let mut turned = arena.buffer(block.len() as u64)?;
            match &self.order {
                Some(order) if block.len() as u64 == self.decoded => {
                    let (stored, own) = self.strides(order);
                    let view = View {
                        dtype: self.dtype,
                        bytes: block,
                        offset: 0,
                        shape: self.shape.clone(),
                        strides: own,
                    };
                    copy::strided(&view, turned.bytes_mut(), 0, &stored);
                }
                Some(_) => {
                    return Err(CodecError::Length {
                        found: block.len() as u64,
                        expected: self.decoded,
                    });
                }
                None => turned.bytes_mut().copy_from_slice(block),
            }
            swap_words(turned.bytes_mut(), self.swapped);
            bytes = Some(turned);
        }
        let body = self.body();
        for filter in body {
            let from = bytes.as_ref().map_or(block, Buffer::bytes);
            let mut out = arena.buffer(filter.bound(from.len() as u64))?;
            arena.stand_outside(self.encode_context_bytes());
            arena.prepare(filter.working_bytes(from.len() as u64));
            let n = filter.encode(from, out.bytes_mut(), contexts)?;
            out.set_len(n);
            bytes.replace(out).into_iter().for_each(|b| arena.recycle(b));
        }
        let mut trailer = Vec::new();
        let mut sum = 0;
        for i in body.len()..self.filters.len() {
            sum = match i - body.len() {
                0 => crc32c::crc32c(bytes.as_ref().map_or(block, Buffer::bytes)),
                _ => crc32c::crc32c_append(sum, &trailer[trailer.len() - CHECKSUM_BYTES..]),
            };
            trailer.extend_from_slice(&u32::to_le_bytes(sum));
        }
        Ok(Encoded { own: bytes, trailer })
    }

    /// Strides of a chunk's axes in what is stored, and in the block.
    fn strides(&self, order: &[usize]) -> (Vec<isize>, Vec<isize>) {
        let there: Vec<usize> = order.iter().map(|axis| self.shape[*axis]).collect();
        let mut stored = vec![0; order.len()];
        for (axis, stride) in order.iter().zip(contiguous_strides(&there)) {
            stored[*axis] = stride;
        }
        (stored, contiguous_strides(&self.shape))
    }
}

/// An order of `n` axes, as Zarr's `transpose` has it.
fn permutation(order: &Value, n: usize) -> Option<Vec<usize>> {
    match order.as_str() {
        Some("C") => return Some((0..n).collect()),
        Some("F") => return Some((0..n).rev().collect()),
        _ => {}
    }
    let order: Vec<usize> =
        order.as_array()?.iter().map(|v| v.as_u64().map(|i| i as usize)).collect::<Option<_>>()?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    (sorted == (0..n).collect::<Vec<_>>()).then_some(order)
}

/// Bytes of the words that must be turned round, 1 for none.
fn words_to_swap(endian: Option<&str>, dtype: DType) -> Result<usize, String> {
    let word = if dtype.kind() == Kind::Complex { dtype.size() / 2 } else { dtype.size() };
    match endian {
        Some("little") => Ok(if cfg!(target_endian = "big") { word } else { 1 }),
        Some("big") => Ok(if cfg!(target_endian = "big") { 1 } else { word }),
        None if word == 1 => Ok(1),
        _ => Err(format!("`endian` must be little or big for {dtype}")),
    }
}

/// Turns each word's bytes round.
fn swap_words(bytes: &mut [u8], word: usize) {
    match word {
        2 => bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|w| w.reverse()),
        4 => bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|w| w.reverse()),
        8 => bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|w| w.reverse()),
        _ => {}
    }
}

impl Filter {
    fn new(name: &str, configuration: &Value, dtype: DType) -> Result<Filter, CodecError> {
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

    /// Most bytes that it makes of `size` bytes.
    fn bound(&self, size: u64) -> u64 {
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

    /// Bytes that it holds inside while it works on `size` bytes.
    fn working_bytes(&self, size: u64) -> u64 {
        match self {
            Filter::Gzip { .. } | Filter::Zlib { .. } => GZIP_CONTEXT_BYTES,
            Filter::Blosc(settings) => settings.working_bytes(size),
            Filter::Zstd { .. } | Filter::Crc32c => 0,
        }
    }

    /// Decodes into the front of `out`, whose size is the guard against headers that lie; the
    /// number of bytes.
    fn decode(
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

    /// Encodes into the front of `out`, which has room for the bound; the number of bytes.
    fn encode(
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

/// Number of bytes before the checksum, if it is theirs.
fn verify_crc32c(bytes: &[u8]) -> Result<usize, CodecError> {
    let Some((body, sum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(CodecError::Corrupt("it is too short for its checksum".into()));
    };
    if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
        return Err(CodecError::Corrupt("its crc32c checksum does not match".into()));
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

/// Reads a stream to its end into the front of `out`; more than fits is an error.
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
                let codec = Codec::new(&codecs, DType::UInt32, &[6, 35]).unwrap();
                let (mut arena, mut contexts) = (Arena::new(1 << 20), Contexts::default());
                let bytes = codec.encode(block, &mut arena, &mut contexts).unwrap().parts(block).concat();
                prop_assert!(bytes.len() as u64 <= codec.encoded_bound(), "{:?}", codecs);
                let back = codec.decode(Buffer::from_slice(&bytes), block.len() as u64, &mut arena, &mut contexts).unwrap();
                prop_assert_eq!(back.bytes(), block, "{:?}", codecs);
            }
        }

        /// Any damage is an error or other values of the same size: never a panic, never more
        /// memory than the bound.
        #[test]
        fn damage_is_an_error(flip in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>(), truncate: bool) {
            let values: Vec<u32> = (0..210).map(|i| i * i).collect();
            let block: &[u8] = bytemuck_cast(&values);
            for codecs in chains() {
                let codec = Codec::new(&codecs, DType::UInt32, &[6, 35]).unwrap();
                let (mut arena, mut contexts) = (Arena::new(1 << 20), Contexts::default());
                let mut bytes = codec.encode(block, &mut arena, &mut contexts).unwrap().parts(block).concat();
                if truncate { bytes.truncate(cut.index(bytes.len())); } else { let at = flip.index(bytes.len()); bytes[at] ^= 1 << bit; }
                match codec.decode(Buffer::from_slice(&bytes), block.len() as u64, &mut arena, &mut contexts) {
                    Ok(b) => prop_assert_eq!(b.len(), block.len()),
                    Err(e) => prop_assert!(!matches!(e, CodecError::Overrun(_)), "{:?}", codecs),
                }
                let checked = codecs.iter().any(|c| c["name"] == "crc32c") && codecs.last().unwrap()["name"] == "crc32c";
                if checked {
                    prop_assert!(codec.decode(Buffer::from_slice(&bytes), block.len() as u64, &mut arena, &mut contexts).is_err());
                }
            }
        }
    }

    /// Every step takes its buffer from an arena that holds no more than the projection has for it.
    #[test]
    fn steps_stay_within_their_bounds() {
        let values: Vec<u32> = (0..40_000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let block = bytemuck_cast(&values);
        for codecs in chains() {
            let codec = Codec::new(&codecs, DType::UInt32, &[200, 200]).unwrap();
            let mut contexts = Contexts::default();
            let room = codec.encode_beside();
            let mut arena = Arena::new(room);
            let encoded =
                codec.encode(block, &mut arena, &mut contexts).unwrap().parts(block).concat();
            assert!(arena.highest() <= room + 4096, "{codecs:?}: {} in {room}", arena.highest());

            let room = codec.encoded_beside() + codec.decoded_bytes() + codec.decode_scratch();
            let mut arena = Arena::new(room);
            let mut stored = arena.buffer(codec.read_limit(codec.decoded_bytes())).unwrap();
            stored.set_len(encoded.len());
            stored.bytes_mut().copy_from_slice(&encoded);
            let back =
                codec.decode(stored, codec.decoded_bytes(), &mut arena, &mut contexts).unwrap();
            assert!(back.bytes() == block, "{codecs:?}");
            assert!(arena.highest() <= room + 4096, "{codecs:?}: {} in {room}", arena.highest());
        }
    }

    /// Blosc once used the room for the checksum behind it, and what it made was over its bound.
    #[test]
    fn a_checksum_keeps_its_room() {
        let codecs = [
            json!({"name": "bytes", "configuration": {"endian": "little"}}),
            json!({"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": 4, "blocksize": 0}}),
            json!({"name": "crc32c"}),
        ];
        for n in 1..400u64 {
            let values: Vec<u32> = (0..n as u32).map(|i| (i as f32 * 1.5).to_bits()).collect();
            let codec = Codec::new(&codecs, DType::UInt32, &[n]).unwrap();
            let block = bytemuck_cast(&values);
            let encoded = codec
                .encode(block, &mut Arena::new(1 << 21), &mut Contexts::default())
                .unwrap()
                .parts(block)
                .concat();
            assert!(
                encoded.len() as u64 <= codec.encoded_bound(),
                "{n}: {} over {}",
                encoded.len(),
                codec.encoded_bound()
            );
        }
    }

    fn bytemuck_cast(values: &[u32]) -> &[u8] {
        zarrs::array::transmute_to_bytes(values)
    }

    #[test]
    fn an_unknown_codec_is_refused() {
        let codecs = [
            json!({"name": "bytes", "configuration": {"endian": "little"}}),
            json!({"name": "lossy_magic"}),
        ];
        assert!(
            matches!(Codec::new(&codecs, DType::Float32, &[4]), Err(CodecError::Unknown(n)) if n == "lossy_magic")
        );
    }
}
