//! Shards: several chunks in one object with an index of their positions (Zarr's
//! `sharding_indexed`).
//!
//! Sharded arrays are written by shards and read by inner chunks. The memory bounds of writing a
//! shard are next to the function that writes it.

use freestone_kernels::{Buffer, View, contiguous_strides, copy};

use super::array::{ArrayInfo, Shard};
use super::codec::{Codec, CodecError};
use super::reader::WorkerResources;
use crate::grid::{Region, try_for_each_coord};

/// The entry of a shard's index for a chunk that is not stored.
pub(super) const ABSENT: [u64; 2] = [u64::MAX, u64::MAX];

/// Returns the maximum size of an encoded shard in bytes.
pub(crate) fn encoded_bound(shard: &Shard, [inner, index]: [&Codec; 2]) -> u64 {
    shard.n_chunks().saturating_mul(inner.encoded_bound()).saturating_add(index.encoded_bound())
}

/// Returns the memory that [`encode`] uses in addition to the block and the encoded shard, in
/// bytes: one chunk and the index.
pub(crate) fn encode_scratch(codecs: [&Codec; 2]) -> u64 {
    let [chunk, index] = codecs.map(|codec| codec.decoded_bytes() + codec.encode_beside());
    chunk + index
}

/// Encodes a block of the shape of a whole shard. Chunks of fill values are omitted.
pub(super) fn encode(
    info: &ArrayInfo,
    shard: &Shard,
    codecs: [&Codec; 2],
    block: &[u8],
    resources: &mut WorkerResources,
) -> Result<Buffer, CodecError> {
    let [inner, index] = codecs;
    let sizes = |shape: Vec<u64>| -> Vec<usize> { shape.iter().map(|n| *n as usize).collect() };
    let (whole, shape) =
        (contiguous_strides(&sizes(info.object_shape())), sizes(info.chunk_shape()));
    let strides = contiguous_strides(&shape);
    let mut out = resources.arena.buffer(encoded_bound(shard, codecs))?;
    let mut entries = resources.arena.buffer(index.decoded_bytes())?;
    let mut chunk = resources.arena.buffer(inner.decoded_bytes())?;
    let index_len = index.encoded_bound() as usize;
    let (mut end, mut n) = (if shard.index_at_end { 0 } else { index_len }, 0);
    try_for_each_coord(&Region::whole(&shard.chunks), |at| {
        let offset: isize = at
            .iter()
            .zip(&shape)
            .zip(&whole)
            .map(|((c, n), stride)| *c as isize * *n as isize * stride)
            .sum();
        let from = View {
            dtype: info.dtype,
            bytes: block,
            offset: offset as usize,
            shape: shape.clone(),
            strides: whole.clone(),
        };
        copy::strided(&from, chunk.bytes_mut(), 0, &strides);
        let mut entry = ABSENT;
        if !copy::is_all(&info.fill, chunk.bytes()) {
            let encoded =
                inner.encode(chunk.bytes(), &mut resources.arena, &mut resources.contexts)?;
            let start = end;
            for part in encoded.parts(chunk.bytes()) {
                out.bytes_mut()[end..end + part.len()].copy_from_slice(part);
                end += part.len();
            }
            entry = [start as u64, (end - start) as u64];
            encoded.recycle(&mut resources.arena);
        }
        entries.as_mut_slice::<u64>()[n..n + 2].copy_from_slice(&entry);
        n += 2;
        Ok::<(), CodecError>(())
    })?;
    resources.arena.recycle(chunk);
    let encoded = index.encode(entries.bytes(), &mut resources.arena, &mut resources.contexts)?;
    let parts = encoded.parts(entries.bytes());
    if parts.iter().map(|p| p.len()).sum::<usize>() != index_len {
        return Err(CodecError::Encode("the codecs of the shard index change its length".into()));
    }
    let mut at = if shard.index_at_end { end } else { 0 };
    for part in parts {
        out.bytes_mut()[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    out.set_len(if shard.index_at_end { end + index_len } else { end });
    encoded.recycle(&mut resources.arena);
    resources.arena.recycle(entries);
    Ok(out)
}
