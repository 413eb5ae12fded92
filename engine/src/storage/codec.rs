//! Encoding and decoding of chunks with bounded memory.
//!
//! Unknown codecs are refused. Bytes-to-bytes codecs are applied one by one, so that the maximum
//! size of each step is known before its allocation: a damaged frame header cannot cause a larger
//! one. Each step transfers from one buffer of the arena to another. The peak memory is
//! [`Codec::decode_scratch`] and [`Codec::encode_beside`]; no codec allocates a chunk by itself.

mod filter;
#[cfg(test)]
mod tests;

use freestone_kernels::dtype::Kind;
use freestone_kernels::{Buffer, DType, View, contiguous_strides, copy};
use serde_json::Value;
use thiserror::Error;

use filter::{CHECKSUM_BYTES, Filter, verify_crc32c};

use super::zstd_bound;
use crate::grid::block_bytes;
use crate::memory::{Arena, Overrun};

pub use filter::Contexts;

/// The error of a codec.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum CodecError {
    #[error(
        "unsupported codec `{0}`: expected bytes, transpose, sharding_indexed, zstd, blosc, gzip, \
            zlib or crc32c"
    )]
    Unknown(String),
    #[error("invalid codec `{name}`: {why}")]
    Unusable { name: String, why: String },
    #[error("damaged chunk: {0}")]
    Corrupt(String),
    #[error("damaged or truncated chunk: decoded to {found} bytes, expected {expected}")]
    Length { found: u64, expected: u64 },
    #[error("cannot encode the chunk: {0}")]
    Encode(String),
    #[error(transparent)]
    Overrun(#[from] Overrun),
}

/// The codecs of the chunks of one array.
#[derive(Debug)]
pub struct Codec {
    dtype: DType,
    /// The shape of a whole chunk.
    shape: Vec<usize>,
    /// The order of the stored axes: stored axis `i` is axis `order[i]` of the chunk. `None` for C
    /// order.
    order: Option<Vec<usize>>,
    /// The size of words whose bytes are swapped, or 1 if none are.
    swapped: usize,
    filters: Vec<Filter>,
    /// The size of a whole decoded chunk in bytes.
    decoded: u64,
}

/// An encoded chunk: its bytes, or those of the block if they need no encoding, and a trailer.
#[derive(Debug)]
pub struct Encoded {
    own: Option<Buffer>,
    /// The checksums. They are separate from the bytes, so that an unencoded block is not copied.
    trailer: Vec<u8>,
}

impl Encoded {
    /// Returns the parts of the encoded bytes. `block` is the block that was encoded.
    pub fn parts<'a>(&'a self, block: &'a [u8]) -> [&'a [u8]; 2] {
        [self.own.as_ref().map_or(block, Buffer::bytes), &self.trailer]
    }

    /// Returns the buffer to the arena.
    pub fn recycle(self, arena: &mut Arena) {
        self.own.into_iter().for_each(|buffer| arena.recycle(buffer));
    }
}

impl Codec {
    /// Creates the codecs of a Zarr v3 codec list. `shape` is the shape of a whole chunk.
    ///
    /// # Errors
    /// Returns an error if a codec is unknown, or not valid for the dtype or shape.
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
                return Err(unusable(&codec.to_string(), "missing name".into()));
            };
            let configuration = &codec["configuration"];
            match name {
                "bytes" | "transpose" if swapped.is_some() => {
                    return Err(unusable(name, "expected it once and not after `bytes`".into()));
                }
                "bytes" => {
                    swapped = Some(
                        words_to_swap(configuration["endian"].as_str(), dtype)
                            .map_err(|why| unusable(name, why))?,
                    )
                }
                "transpose" => {
                    let next = permutation(&configuration["order"], shape.len())
                        .ok_or_else(|| unusable(name, "`order` is not a permutation".into()))?;
                    order = Some(order.map_or_else(
                        || next.clone(),
                        |first| next.iter().map(|i| first[*i]).collect(),
                    ));
                }
                _ => {
                    let filter = Filter::new(name, configuration, dtype)?;
                    if swapped.is_none() {
                        return Err(unusable(name, "expected it after `bytes`".into()));
                    }
                    filters.push(filter);
                }
            }
        }
        let Some(swapped) = swapped else {
            return Err(unusable("bytes", "missing from the codec list".into()));
        };
        let decoded = block_bytes(shape, dtype.size()).ok_or_else(|| {
            unusable("bytes", format!("the size of chunks of shape {shape:?} overflows"))
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

    /// Returns true if values are stored in the layout of blocks.
    fn is_plain(&self) -> bool {
        self.order.is_none() && self.swapped == 1
    }

    /// Returns true if encoded bytes equal the bytes of the block.
    pub fn is_raw(&self) -> bool {
        self.is_plain() && self.filters.is_empty()
    }

    /// Returns true if a compressor determines the encoded size.
    pub fn is_compressed(&self) -> bool {
        self.filters.iter().any(|f| !matches!(f, Filter::Crc32c))
    }

    /// Returns the size of a whole decoded chunk in bytes.
    pub fn decoded_bytes(&self) -> u64 {
        self.decoded
    }

    /// Returns the maximum size of an encoded chunk in bytes.
    pub fn encoded_bound(&self) -> u64 {
        self.filters.iter().fold(self.decoded, |size, f| f.bound(size))
    }

    /// Returns the maximum encoded size of a chunk with `expected` decoded bytes.
    pub fn read_limit(&self, expected: u64) -> u64 {
        if self.filters.is_empty() { expected } else { self.encoded_bound() }
    }

    /// Returns the memory for the encoded chunk in addition to the block during decoding. Without
    /// compression, the encoded bytes become the block.
    pub fn encoded_beside(&self) -> u64 {
        if self.filters.iter().all(|f| matches!(f, Filter::Crc32c)) {
            self.encoded_bound() - self.decoded
        } else {
            self.encoded_bound()
        }
    }

    /// Returns the memory that decoding uses in addition to the encoded chunk and the block.
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

    /// Returns the memory that encoding uses in addition to the block. It is zero if the block's
    /// own bytes are stored.
    pub fn encode_beside(&self) -> u64 {
        let mut held = if self.is_plain() { 0 } else { self.decoded };
        let mut most = held;
        for (filter, size) in self.body().iter().zip(self.sizes(self.decoded)) {
            most = most.max(held + filter.bound(size));
            held = filter.bound(size);
        }
        most + self.working_bytes()
    }

    /// Returns the filters before the trailing checksums.
    fn body(&self) -> &[Filter] {
        let checksums =
            self.filters.iter().rev().take_while(|f| matches!(f, Filter::Crc32c)).count();
        &self.filters[..self.filters.len() - checksums]
    }

    /// Returns the maximum input size of each filter, for blocks of `size` bytes.
    fn sizes(&self, size: u64) -> Vec<u64> {
        self.filters
            .iter()
            .scan(size, |size, f| Some(std::mem::replace(size, f.bound(*size))))
            .collect()
    }

    /// Returns the size of the contexts that a thread reuses for decoding.
    pub fn decode_context_bytes(&self) -> u64 {
        if self.filters.iter().any(|f| matches!(f, Filter::Zstd { .. })) {
            zstd_bound::DECOMPRESSION_CONTEXT_BYTES
        } else {
            0
        }
    }

    /// Returns the size of the contexts that a thread reuses for encoding.
    pub fn encode_context_bytes(&self) -> u64 {
        let state = |f: &Filter| match f {
            Filter::Zstd { level, .. } => {
                zstd_bound::compression_context_bytes(*level, self.decoded)
            }
            _ => 0,
        };
        self.filters.iter().map(state).max().unwrap_or(0)
    }

    /// Returns the memory that codecs allocate internally while they process one chunk.
    fn working_bytes(&self) -> u64 {
        self.filters.iter().map(|f| f.working_bytes(self.decoded)).max().unwrap_or(0)
    }

    /// Decodes a chunk with `expected` decoded bytes. Returns the encoded buffer to the arena once
    /// it is decoded.
    ///
    /// # Errors
    /// Returns an error if the bytes are not such a chunk.
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
            // The codecs' own allocations are outside the pool.
            arena.make_room(filter.working_bytes(most));
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
    /// Returns an error if a codec fails.
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
            arena.reserve_external(self.encode_context_bytes());
            arena.make_room(filter.working_bytes(from.len() as u64));
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

    /// Returns the strides of a chunk's axes in the stored chunk and in the block.
    fn strides(&self, order: &[usize]) -> (Vec<isize>, Vec<isize>) {
        let there: Vec<usize> = order.iter().map(|axis| self.shape[*axis]).collect();
        let mut stored = vec![0; order.len()];
        for (axis, stride) in order.iter().zip(contiguous_strides(&there)) {
            stored[*axis] = stride;
        }
        (stored, contiguous_strides(&self.shape))
    }
}

/// Parses the order of `n` axes of Zarr's `transpose`.
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

/// Returns the size of the words whose bytes must be swapped, or 1 if none.
fn words_to_swap(endian: Option<&str>, dtype: DType) -> Result<usize, String> {
    let word = if dtype.kind() == Kind::Complex { dtype.size() / 2 } else { dtype.size() };
    match endian {
        Some("little") => Ok(if cfg!(target_endian = "big") { word } else { 1 }),
        Some("big") => Ok(if cfg!(target_endian = "big") { 1 } else { word }),
        None if word == 1 => Ok(1),
        _ => Err(format!("invalid `endian` for {dtype}: expected little or big")),
    }
}

/// Reverses the bytes of each word.
fn swap_words(bytes: &mut [u8], word: usize) {
    match word {
        2 => bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|w| w.reverse()),
        4 => bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|w| w.reverse()),
        8 => bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|w| w.reverse()),
        _ => {}
    }
}
