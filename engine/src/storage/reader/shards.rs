//! Reads of the chunks in a shard.
//!
//! The index of a shard is read once for all consecutive chunks of the shard. If most of these
//! chunks are needed, the whole shard is read by one request, and remains in the worker's window
//! while its chunks are decoded.

use std::sync::Arc;

use freestone_kernels::Buffer;

use super::{BegunRead, ChunkAccess, ChunkError, WorkerResources};
use crate::memory::window::Permit;
use crate::storage::{ByteRange, ReadOutcome, StorageError, shard};

/// The most recently read shard.
#[derive(Debug, Default)]
pub struct ShardCache {
    coords: Vec<u64>,
    /// Offset and length of each chunk, or `None` if the shard does not exist.
    entries: Option<Vec<[u64; 2]>>,
    /// The bytes of the shard if it was read whole, with their part of the window.
    whole: Option<(Buffer, Arc<Permit>)>,
}

/// The range of a chunk in its shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkRange {
    offset: u64,
    len: u64,
}

impl ChunkRange {
    pub(super) fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

impl From<ChunkRange> for ByteRange {
    fn from(range: ChunkRange) -> ByteRange {
        ByteRange::At { offset: range.offset, len: range.len }
    }
}

impl ShardCache {
    /// Returns true if the bytes of this shard are in memory.
    pub(crate) fn holds(&self, object: &[u64]) -> bool {
        self.whole.is_some() && self.coords == object
    }

    /// Copies a chunk of the shard into a buffer. Returns false if the shard is too short, and
    /// `None` if the shard is not in memory.
    pub(super) fn copy(&self, range: ChunkRange, into: &mut Buffer) -> Option<bool> {
        let (shard, _) = self.whole.as_ref()?;
        let Some(bytes) = shard.bytes().get(range.offset as usize..range.end() as usize) else {
            return Some(false);
        };
        into.set_len(bytes.len());
        into.bytes_mut().copy_from_slice(bytes);
        Some(true)
    }
}

impl ChunkAccess {
    /// Waits for a whole shard and keeps it. Keeps nothing if it did not fit the window.
    pub(super) fn receive_shard(
        &self,
        coords: &[u64],
        begun: BegunRead,
        resources: &mut WorkerResources,
        cache: &mut ShardCache,
    ) -> Result<(), ChunkError> {
        // The previous shard makes room before the next is waited for.
        *cache = ShardCache::default();
        resources.traffic.reads += 1;
        let whole = match begun.pending.wait()? {
            ReadOutcome::Refused => return Ok(()),
            ReadOutcome::Missing => None,
            ReadOutcome::Found(buffer) => Some((buffer, begun.permit)),
        };
        cache.coords = self.object(coords);
        if let Some((buffer, _)) = &whole {
            resources.traffic.bytes_read += buffer.len() as u64;
        }
        (cache.entries, cache.whole) = (whole.is_none().then(Vec::new), whole);
        Ok(())
    }

    /// Returns the range of a chunk in its shard, or `None` if the chunk is not stored.
    pub(super) fn locate(
        &self,
        coords: &[u64],
        key: &str,
        resources: &mut WorkerResources,
        cache: &mut ShardCache,
    ) -> Result<Option<ChunkRange>, ChunkError> {
        let Some(shard) = &self.info.shard else { return Ok(None) };
        let object = self.object(coords);
        if cache.coords != object || cache.entries.is_none() {
            if cache.coords != object {
                *cache = ShardCache { coords: object, entries: None, whole: None };
            }
            cache.entries = self.read_index(key, resources, cache.whole.as_ref().map(|w| &w.0))?;
        }
        let within = coords.iter().zip(&shard.chunks).fold(0, |i, (c, n)| i * n + c % n);
        let entry = cache.entries.as_ref().and_then(|e| e.get(within as usize));
        let Some([offset, len]) = entry.copied().filter(|entry| *entry != shard::ABSENT) else {
            return Ok(None);
        };
        if len > self.codec.encoded_bound() {
            return Err(StorageError::TooLong {
                place: self.store.place(key),
                len,
                limit: self.codec.encoded_bound(),
            }
            .into());
        }
        Ok(Some(ChunkRange { offset, len }))
    }

    /// Reads the index of a shard, from its bytes if they are in memory. Returns `None` if the
    /// shard does not exist.
    fn read_index(
        &self,
        key: &str,
        resources: &mut WorkerResources,
        whole: Option<&Buffer>,
    ) -> Result<Option<Vec<[u64; 2]>>, ChunkError> {
        let (Some(shard), Some(index)) = (&self.info.shard, &self.index) else { return Ok(None) };
        let len = index.encoded_bound();
        let mut encoded = resources.arena.buffer(len)?;
        match whole {
            Some(whole) => {
                let truncated =
                    || StorageError::Truncated { place: self.store.place(key), wanted: len };
                let first = if shard.index_at_end {
                    whole.len().checked_sub(len as usize).ok_or_else(truncated)?
                } else {
                    0
                };
                let bytes = whole.bytes().get(first..first + len as usize).ok_or_else(truncated)?;
                encoded.bytes_mut().copy_from_slice(bytes);
            }
            None => {
                let range = if shard.index_at_end {
                    ByteRange::Last(len)
                } else {
                    ByteRange::At { offset: 0, len }
                };
                resources.traffic.reads += 1;
                if !self.store.read(key, Some(range), len, &mut encoded)? {
                    resources.arena.recycle(encoded);
                    return Ok(None);
                }
                resources.traffic.bytes_read += len;
            }
        }
        let place = |error| ChunkError::Codec {
            place: format!("shard index of `{}`", self.store.place(key)),
            error,
        };
        let (arena, contexts) = (&mut resources.arena, &mut resources.contexts);
        let block = index.decode(encoded, index.decoded_bytes(), arena, contexts).map_err(place)?;
        let entries = block.as_slice::<u64>().chunks_exact(2).map(|e| [e[0], e[1]]).collect();
        resources.arena.recycle(block);
        Ok(Some(entries))
    }
}
