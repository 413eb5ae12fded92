//! One chunk, from or to a store.

use std::sync::Arc;

use freestone_kernels::{Buffer, copy};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::array::{ArrayInfo, Shard};
use super::codec::{Codec, CodecError, Contexts};
use super::{ByteRange, ObjectPart, PartsRead, PendingRead, StorageError, Store, join, shard};
use crate::grid::ChunkGrid;
use crate::memory::{Arena, Overrun};

/// Why a chunk did not come or go.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum ChunkError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{place}: {error}")]
    Codec { place: String, error: CodecError },
    #[error(transparent)]
    Overrun(#[from] Overrun),
    /// An object of an array that the run writes itself is damaged or gone.
    #[error("{why}")]
    Own { array: usize, object: u64, why: String },
}

/// What was moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Encoded bytes read.
    pub bytes_read: u64,
    /// Encoded bytes written.
    pub bytes_written: u64,
    /// Requests that read, those that found nothing included.
    pub reads: u64,
    /// Requests that wrote.
    pub writes: u64,
}

impl Traffic {
    /// Adds another's.
    pub fn add(&mut self, other: Traffic) {
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.reads += other.reads;
        self.writes += other.writes;
    }
}

/// What a thread holds besides the array: buffers, codec states, counters.
#[derive(Debug)]
pub struct WorkerResources {
    /// Buffers.
    pub arena: Arena,
    /// Codec states.
    pub contexts: Contexts,
    /// Counters.
    pub traffic: Traffic,
}

/// The index of the shard that was read last.
#[derive(Debug, Default)]
pub struct ShardCache {
    coords: Vec<u64>,
    /// Offset and length of each chunk; `None` if there is no such shard.
    entries: Option<Vec<[u64; 2]>>,
}

/// An array opened for its chunks.
#[derive(Debug)]
pub struct ChunkAccess {
    store: Arc<dyn Store>,
    path: String,
    info: ArrayInfo,
    objects: ChunkGrid,
    codec: Codec,
    index: Option<Codec>,
    own: Option<Own>,
}

/// What is known of an array that the run writes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its number in the plan.
    pub array: usize,
    /// Every chunk is there once it is written, a mark in the place of one of fill values: what is
    /// not there is lost.
    pub whole: bool,
}

/// An object in the place of a chunk of fill values, shorter than any chunk with its checksum.
const FILL_MARK: &[u8] = b"fill";

/// What became of a chunk that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Written {
    /// Every element is the fill value: nothing is stored.
    Fill,
    /// An object of so many bytes with that xxh3 hash.
    Object {
        /// Encoded bytes.
        len: u64,
        /// xxh3-64 of them.
        hash: u64,
    },
}

impl ChunkAccess {
    /// Makes the codecs ready. No I/O.
    ///
    /// # Errors
    /// Where a codec cannot be used.
    pub fn new(
        store: Arc<dyn Store>,
        path: &str,
        info: &ArrayInfo,
    ) -> Result<ChunkAccess, CodecError> {
        let codec = Codec::new(&info.codecs, info.dtype, &info.chunk_shape())?;
        let index = info.shard.as_ref().map(Shard::index_codec).transpose()?;
        Ok(ChunkAccess {
            store,
            path: path.to_owned(),
            info: info.clone(),
            objects: info.objects(),
            codec,
            index,
            own: None,
        })
    }

    /// The same, of an array that the run writes itself.
    #[must_use]
    pub fn owned(self, own: Own) -> ChunkAccess {
        ChunkAccess { own: Some(own), ..self }
    }

    /// The array.
    pub fn info(&self) -> &ArrayInfo {
        &self.info
    }

    /// Shape of chunk `coords` as it is stored.
    pub fn stored_shape(&self, coords: &[u64]) -> Vec<u64> {
        self.info.stored_shape.clone().unwrap_or_else(|| self.info.grid.region(coords).shape)
    }

    /// The objects that are written: the chunks, or of a sharded array the shards.
    pub fn objects(&self) -> &ChunkGrid {
        &self.objects
    }

    /// Shape of object `coords` as it is stored.
    pub fn object_shape(&self, coords: &[u64]) -> Vec<u64> {
        if self.info.stored_shape.is_some() {
            self.info.object_shape()
        } else {
            self.objects.region(coords).shape
        }
    }

    /// The object that holds a chunk.
    fn object(&self, coords: &[u64]) -> Vec<u64> {
        match &self.info.shard {
            Some(shard) => coords.iter().zip(&shard.chunks).map(|(c, n)| c / n).collect(),
            None => coords.to_vec(),
        }
    }

    /// The key of the object that holds a chunk.
    pub fn key(&self, coords: &[u64]) -> String {
        join(&self.path, &self.info.object_key(&self.object(coords)))
    }

    /// Begins to read a chunk, not of a shard, that [`read_begun`](ChunkAccess::read_begun) will be
    /// asked for, into a buffer of [`encoded_limit`](ChunkAccess::encoded_limit) bytes, where the
    /// store can.
    pub fn begin_read(
        &self,
        coords: &[u64],
        into: Buffer,
        resources: &mut WorkerResources,
    ) -> Option<PendingRead> {
        match self.store.begin_read(&self.key(coords), None, self.encoded_limit(coords), into) {
            Ok(pending) => {
                resources.traffic.reads += 1;
                Some(pending)
            }
            Err(into) => {
                resources.arena.recycle(into);
                None
            }
        }
    }

    /// Most bytes of a chunk as it is stored.
    pub fn encoded_limit(&self, coords: &[u64]) -> u64 {
        self.codec.read_limit(self.decoded_bytes(coords))
    }

    /// Bytes of a chunk as it is stored, decoded.
    fn decoded_bytes(&self, coords: &[u64]) -> u64 {
        self.stored_shape(coords).iter().product::<u64>() * self.info.dtype.size() as u64
    }

    /// Reads and decodes a chunk; one that is not there is all fill values.
    ///
    /// The block has the chunk's stored shape.
    ///
    /// # Errors
    /// Where the store fails or the bytes are no such chunk.
    pub fn read(
        &self,
        coords: &[u64],
        resources: &mut WorkerResources,
        cache: &mut ShardCache,
    ) -> Result<Buffer, ChunkError> {
        self.read_begun(coords, None, resources, cache)
    }

    /// The same, of a chunk the read of which may have begun.
    ///
    /// # Errors
    /// As [`read`](ChunkAccess::read).
    pub fn read_begun(
        &self,
        coords: &[u64],
        begun: Option<PendingRead>,
        resources: &mut WorkerResources,
        cache: &mut ShardCache,
    ) -> Result<Buffer, ChunkError> {
        self.read_any(coords, begun, resources, cache).map_err(|error| self.blame(coords, error))
    }

    /// What is wrong with a chunk that the run has written can be mended by who runs it.
    fn blame(&self, coords: &[u64], error: ChunkError) -> ChunkError {
        let is_damage = matches!(
            &error,
            ChunkError::Codec { error: CodecError::Corrupt(_) | CodecError::Length { .. }, .. }
                | ChunkError::Storage(
                    StorageError::TooLong { .. } | StorageError::Truncated { .. }
                )
        );
        match self.own {
            Some(own) if is_damage => ChunkError::Own {
                array: own.array,
                object: self.objects.index(&self.object(coords)),
                why: error.to_string(),
            },
            _ => error,
        }
    }

    fn read_any(
        &self,
        coords: &[u64],
        begun: Option<PendingRead>,
        resources: &mut WorkerResources,
        cache: &mut ShardCache,
    ) -> Result<Buffer, ChunkError> {
        let expected = self.decoded_bytes(coords);
        let key = self.key(coords);
        let failed = |error| match error {
            CodecError::Overrun(o) => ChunkError::Overrun(o),
            error => ChunkError::Codec {
                place: format!("{} (chunk {coords:?})", self.store.place(&key)),
                error,
            },
        };
        let range = match &self.info.shard {
            None => None,
            Some(_) => match self.locate(coords, &key, resources, cache)? {
                Some(range) => Some(range),
                None => return self.filled(expected, resources),
            },
        };
        let (found, encoded) = match begun {
            Some(begun) => begun.wait()?,
            None => {
                let limit = self.codec.read_limit(expected);
                let mut encoded = resources.arena.buffer(limit)?;
                resources.traffic.reads += 1;
                (self.store.read(&key, range, limit, &mut encoded)?, encoded)
            }
        };
        match self.own {
            Some(Own { array, whole: true }) if !found => {
                let why = format!(
                    "{} (chunk {coords:?}), which this run has written, is gone",
                    self.store.place(&key)
                );
                return Err(ChunkError::Own {
                    array,
                    object: self.objects.index(&self.object(coords)),
                    why,
                });
            }
            Some(Own { whole: true, .. }) if encoded.bytes() == FILL_MARK => {
                resources.arena.recycle(encoded);
                return self.filled(expected, resources);
            }
            _ if !found => {
                resources.arena.recycle(encoded);
                return self.filled(expected, resources);
            }
            _ => {}
        }
        resources.traffic.bytes_read += encoded.len() as u64;
        self.codec
            .decode(encoded, expected, &mut resources.arena, &mut resources.contexts)
            .map_err(failed)
    }

    /// Reads parts of a chunk that is stored as it is, offsets and places in bytes, straight to
    /// where they belong. False if there is no such chunk: then nothing is said of `into`.
    ///
    /// # Errors
    /// Where the store fails, or the chunk has another length.
    pub fn read_parts(
        &self,
        coords: &[u64],
        parts: &[ObjectPart],
        into: &mut [u8],
        resources: &mut WorkerResources,
    ) -> Result<bool, ChunkError> {
        let expected = self.decoded_bytes(coords);
        let key = self.key(coords);
        resources.traffic.reads += 1;
        match self.store.read_parts(&key, expected, parts, into)? {
            PartsRead::Done => {
                resources.traffic.bytes_read += parts.iter().map(|p| p.len as u64).sum::<u64>();
                Ok(true)
            }
            PartsRead::Missing => Ok(false),
            PartsRead::Length(found) => {
                let place = format!("{} (chunk {coords:?})", self.store.place(&key));
                Err(self.blame(
                    coords,
                    ChunkError::Codec { place, error: CodecError::Length { found, expected } },
                ))
            }
        }
    }

    /// True if parts of chunks can be read.
    pub fn is_in_parts(&self) -> bool {
        self.codec.is_raw() && self.info.shard.is_none() && !self.store.is_remote()
    }

    fn filled(&self, bytes: u64, resources: &mut WorkerResources) -> Result<Buffer, ChunkError> {
        let mut block = resources.arena.buffer(bytes)?;
        copy::fill(&self.info.fill, block.bytes_mut());
        Ok(block)
    }

    /// Where a chunk lies in its shard; `None` if it is not there.
    fn locate(
        &self,
        coords: &[u64],
        key: &str,
        resources: &mut WorkerResources,
        cache: &mut ShardCache,
    ) -> Result<Option<ByteRange>, ChunkError> {
        let (Some(shard), Some(index)) = (&self.info.shard, &self.index) else { return Ok(None) };
        let object: Vec<u64> = coords.iter().zip(&shard.chunks).map(|(c, n)| c / n).collect();
        if cache.coords != object || cache.entries.is_none() {
            let len = index.encoded_bound();
            let range = if shard.index_at_end {
                ByteRange::Last(len)
            } else {
                ByteRange::At { offset: 0, len }
            };
            let mut encoded = resources.arena.buffer(len)?;
            resources.traffic.reads += 1;
            let found = self.store.read(key, Some(range), len, &mut encoded)?;
            *cache = ShardCache { coords: object, entries: None };
            if found {
                resources.traffic.bytes_read += len;
                let place = |error| ChunkError::Codec {
                    place: format!("the shard index of {}", self.store.place(key)),
                    error,
                };
                let block = index
                    .decode(
                        encoded,
                        index.decoded_bytes(),
                        &mut resources.arena,
                        &mut resources.contexts,
                    )
                    .map_err(place)?;
                cache.entries =
                    Some(block.as_slice::<u64>().chunks_exact(2).map(|e| [e[0], e[1]]).collect());
                resources.arena.recycle(block);
            } else {
                resources.arena.recycle(encoded);
            }
        }
        let within = coords.iter().zip(&shard.chunks).fold(0, |i, (c, n)| i * n + c % n);
        let Some(entry) = cache.entries.as_ref().and_then(|e| e.get(within as usize)) else {
            return Ok(None);
        };
        if *entry == shard::ABSENT {
            return Ok(None);
        }
        let [offset, len] = *entry;
        if len > self.codec.encoded_bound() {
            return Err(StorageError::TooLong {
                place: self.store.place(key),
                len,
                limit: self.codec.encoded_bound(),
            }
            .into());
        }
        Ok(Some(ByteRange::At { offset, len }))
    }

    /// Encodes a block of an object's stored shape and writes it, unless it is all fill values.
    ///
    /// # Errors
    /// Where a codec or the store fails.
    pub fn write(
        &self,
        object: &[u64],
        block: &[u8],
        resources: &mut WorkerResources,
    ) -> Result<Written, ChunkError> {
        let key = join(&self.path, &self.info.object_key(object));
        if copy::is_all(&self.info.fill, block) {
            if self.own.is_some_and(|own| own.whole) {
                self.store.write(&key, FILL_MARK)?;
                resources.traffic.writes += 1;
            } else if self.info.window.is_some() {
                // What was there before would be seen instead.
                self.store.remove(&key)?;
            }
            return Ok(Written::Fill);
        }
        let failed = |error| match error {
            CodecError::Overrun(o) => ChunkError::Overrun(o),
            error => ChunkError::Codec { place: self.store.place(&key), error },
        };
        let written = match (&self.info.shard, &self.index) {
            (Some(shard), Some(index)) => {
                let encoded =
                    shard::encode(&self.info, shard, [&self.codec, index], block, resources)
                        .map_err(failed)?;
                let written = self.put(&key, &[encoded.bytes()], resources)?;
                resources.arena.recycle(encoded);
                written
            }
            _ => {
                let encoded = self
                    .codec
                    .encode(block, &mut resources.arena, &mut resources.contexts)
                    .map_err(failed)?;
                let written = self.put(&key, &encoded.parts(block), resources)?;
                encoded.recycle(&mut resources.arena);
                written
            }
        };
        Ok(written)
    }

    fn put(
        &self,
        key: &str,
        parts: &[&[u8]],
        resources: &mut WorkerResources,
    ) -> Result<Written, ChunkError> {
        self.store.write_parts(key, parts)?;
        let len = parts.iter().map(|p| p.len() as u64).sum();
        resources.traffic.writes += 1;
        resources.traffic.bytes_written += len;
        let hash = match parts {
            [bytes] | [bytes, []] => xxhash_rust::xxh3::xxh3_64(bytes),
            _ => {
                let mut hasher = xxhash_rust::xxh3::Xxh3::new();
                parts.iter().for_each(|part| hasher.update(part));
                hasher.digest()
            }
        };
        Ok(Written::Object { len, hash })
    }
}
