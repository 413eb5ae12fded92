//! Reads and writes of one chunk.

mod shards;

use std::sync::Arc;

use freestone_kernels::{Buffer, copy};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::array::{ArrayInfo, Shard};
use super::codec::{Codec, CodecError, Contexts};
use super::{
    ObjectPart, PartsRead, PendingRead, PendingWrite, ReadOutcome, SharedBytes, StorageError,
    Store, join, shard,
};
use crate::grid::ChunkGrid;
use crate::memory::window::{Permit, Window, transfer_bytes};
use crate::memory::{Arena, Overrun};

pub use shards::ShardCache;

/// The error of a read or write of a chunk.
#[derive(Clone, Debug, Error)]
#[allow(missing_docs)]
pub enum ChunkError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The place is a description such as "chunk [0, 1] at `PATH`".
    #[error("{place}: {error}")]
    Codec { place: String, error: CodecError },
    #[error(transparent)]
    Overrun(#[from] Overrun),
    /// An object that this run has written is damaged or missing.
    #[error("{message}")]
    Damaged { array: usize, object: u64, message: String },
}

/// Bytes and requests of reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Encoded bytes read.
    pub bytes_read: u64,
    /// Encoded bytes written.
    pub bytes_written: u64,
    /// Read requests, including those for missing objects.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
}

impl Traffic {
    /// Adds the counts of another.
    pub fn add(&mut self, other: Traffic) {
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.reads += other.reads;
        self.writes += other.writes;
    }
}

/// The resources of a worker thread: buffers, codec contexts and counters.
#[derive(Debug)]
pub struct WorkerResources {
    /// The buffers.
    pub arena: Arena,
    /// The codec contexts.
    pub contexts: Contexts,
    /// The bytes and requests so far.
    pub traffic: Traffic,
    /// The window of transfers in flight.
    pub(crate) window: Window,
    /// The started writes of the current task.
    pub(crate) writes: Vec<PendingWrite>,
}

impl WorkerResources {
    /// Creates resources for tasks whose projection without reserved memory is `limit`.
    pub fn new(limit: u64) -> WorkerResources {
        WorkerResources {
            arena: Arena::new(limit),
            contexts: Contexts::default(),
            traffic: Traffic::default(),
            window: Window::default(),
            writes: Vec::new(),
        }
    }
}

/// A started read of a chunk, with its part of the worker's window.
#[derive(Debug)]
pub(crate) struct BegunRead {
    pending: PendingRead,
    /// Held until the bytes are the task's own.
    permit: Arc<Permit>,
}

/// The bytes of an object that is being written, with their part of the worker's window.
struct Payload {
    bytes: Buffer,
    _permit: Permit,
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.bytes.bytes()
    }
}

/// Access to the chunks of an array.
#[derive(Debug)]
pub struct ChunkAccess {
    store: Arc<dyn Store>,
    path: String,
    info: ArrayInfo,
    objects: ChunkGrid,
    codec: Codec,
    index: Option<Codec>,
    written_by_run: Option<WrittenByRun>,
}

/// Properties of an array that this run writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenByRun {
    /// The array's index in the plan.
    pub array: usize,
    /// True if every chunk is stored, with a mark for a chunk of fill values. A missing chunk is
    /// then a loss.
    pub is_complete: bool,
}

/// The object that represents a chunk of fill values. It is shorter than any chunk with a checksum.
const FILL_MARK: &[u8] = b"fill";

/// The result of writing a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Written {
    /// All elements are the fill value, so nothing is stored.
    Fill,
    /// An object with this length and hash.
    Object {
        /// Encoded bytes.
        len: u64,
        /// The xxh3-64 hash of the encoded bytes.
        hash: u64,
    },
}

impl ChunkAccess {
    /// Creates the codecs of an array. Performs no I/O.
    ///
    /// # Errors
    /// Returns an error if a codec is not supported.
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
            written_by_run: None,
        })
    }

    /// Marks the array as one that this run writes.
    #[must_use]
    pub fn written_by_run(self, array: WrittenByRun) -> ChunkAccess {
        ChunkAccess { written_by_run: Some(array), ..self }
    }

    /// Returns the description of the array.
    pub fn info(&self) -> &ArrayInfo {
        &self.info
    }

    /// Returns the stored shape of the chunk `coords`.
    pub fn stored_shape(&self, coords: &[u64]) -> Vec<u64> {
        self.info.stored_shape.clone().unwrap_or_else(|| self.info.grid.region(coords).shape)
    }

    /// Returns the grid of stored objects: the chunks, or the shards of a sharded array.
    pub fn objects(&self) -> &ChunkGrid {
        &self.objects
    }

    /// Returns the stored shape of the object `coords`.
    pub fn object_shape(&self, coords: &[u64]) -> Vec<u64> {
        if self.info.stored_shape.is_some() {
            self.info.object_shape()
        } else {
            self.objects.region(coords).shape
        }
    }

    /// Returns the coordinates of the object that contains a chunk.
    pub(crate) fn object(&self, coords: &[u64]) -> Vec<u64> {
        match &self.info.shard {
            Some(shard) => coords.iter().zip(&shard.chunks).map(|(c, n)| c / n).collect(),
            None => coords.to_vec(),
        }
    }

    /// Returns the key of the object that contains a chunk.
    pub fn key(&self, coords: &[u64]) -> String {
        join(&self.path, &self.info.object_key(&self.object(coords)))
    }

    /// Starts to read an object, a chunk or a whole shard, for
    /// [`read_pending`](ChunkAccess::read_pending). Returns `None` if the store does not support
    /// this. The permit is resized once the size of the object is known.
    pub(crate) fn begin_read(&self, object: &[u64], permit: Permit) -> Option<BegunRead> {
        let permit = Arc::new(permit);
        let sized = Arc::clone(&permit);
        let admit = Box::new(move |len: u64| {
            sized.resize(transfer_bytes(len)).then(|| Buffer::zeroed(len as usize))
        });
        let limit = match (&self.info.shard, &self.index) {
            (Some(shard), Some(index)) => shard::encoded_bound(shard, [&self.codec, index]),
            _ => self.encoded_limit(object),
        };
        let key = join(&self.path, &self.info.object_key(object));
        let pending = self.store.begin_read(&key, None, limit, admit)?;
        Some(BegunRead { pending, permit })
    }

    /// Returns the size of an object in bytes if nothing is known about its contents: half of the
    /// decoded size if chunks are compressed.
    pub(crate) fn typical_bytes(&self) -> u64 {
        let n = self.info.shard.as_ref().map_or(1, Shard::n_chunks);
        let decoded = self.codec.decoded_bytes();
        let chunk =
            if self.codec.is_compressed() { decoded / 2 } else { self.codec.encoded_bound() };
        n.saturating_mul(chunk)
    }

    /// Returns the maximum encoded size of a chunk in bytes.
    pub fn encoded_limit(&self, coords: &[u64]) -> u64 {
        self.codec.read_limit(self.decoded_bytes(coords))
    }

    /// Returns the decoded size of a chunk in bytes.
    fn decoded_bytes(&self, coords: &[u64]) -> u64 {
        self.stored_shape(coords).iter().product::<u64>() * self.info.dtype.size() as u64
    }

    /// Reads and decodes a chunk into a block of the chunk's stored shape. A missing chunk consists
    /// of fill values.
    ///
    /// # Errors
    /// Returns an error if the store fails or the chunk is damaged.
    pub fn read(
        &self,
        coords: &[u64],
        resources: &mut WorkerResources,
        cache: &mut ShardCache,
    ) -> Result<Buffer, ChunkError> {
        self.read_pending(coords, None, resources, cache)
    }

    /// Reads and decodes a chunk whose read may be in progress.
    ///
    /// # Errors
    /// Returns the errors of [`read`](ChunkAccess::read).
    pub(crate) fn read_pending(
        &self,
        coords: &[u64],
        begun: Option<BegunRead>,
        resources: &mut WorkerResources,
        cache: &mut ShardCache,
    ) -> Result<Buffer, ChunkError> {
        self.read_any(coords, begun, resources, cache)
            .map_err(|error| self.attribute_damage(coords, error))
    }

    /// Converts damage to a chunk that this run has written to [`ChunkError::Damaged`], which the
    /// driver repairs by repeating the task that wrote the chunk.
    fn attribute_damage(&self, coords: &[u64], error: ChunkError) -> ChunkError {
        let is_damage = matches!(
            &error,
            ChunkError::Codec { error: CodecError::Corrupt(_) | CodecError::Length { .. }, .. }
                | ChunkError::Storage(
                    StorageError::TooLong { .. } | StorageError::Truncated { .. }
                )
        );
        match self.written_by_run {
            Some(WrittenByRun { array, .. }) if is_damage => ChunkError::Damaged {
                array,
                object: self.objects.index(&self.object(coords)),
                message: error.to_string(),
            },
            _ => error,
        }
    }

    fn read_any(
        &self,
        coords: &[u64],
        begun: Option<BegunRead>,
        resources: &mut WorkerResources,
        cache: &mut ShardCache,
    ) -> Result<Buffer, ChunkError> {
        let expected = self.decoded_bytes(coords);
        let key = self.key(coords);
        let failed = |error| match error {
            CodecError::Overrun(o) => ChunkError::Overrun(o),
            error => ChunkError::Codec { place: self.describe(coords, &key), error },
        };
        let limit = self.codec.read_limit(expected);
        let (found, encoded) = if self.info.shard.is_some() {
            if let Some(begun) = begun {
                self.receive_shard(coords, begun, resources, cache)?;
            }
            let Some(range) = self.locate(coords, &key, resources, cache)? else {
                return self.fill_block(expected, resources);
            };
            let mut encoded = resources.arena.buffer(limit)?;
            match cache.copy(range, &mut encoded) {
                Some(true) => (true, encoded),
                Some(false) => {
                    let place = self.describe(coords, &key);
                    return Err(StorageError::Truncated { place, wanted: range.end() }.into());
                }
                None => {
                    resources.traffic.reads += 1;
                    let found = self.store.read(&key, Some(range.into()), limit, &mut encoded)?;
                    resources.traffic.bytes_read += encoded.len() as u64;
                    (found, encoded)
                }
            }
        } else {
            let (found, encoded) = match Self::received(begun, resources)? {
                ReadOutcome::Found(encoded) => (true, encoded),
                ReadOutcome::Missing => (false, Buffer::zeroed(0)),
                ReadOutcome::Refused => {
                    let mut encoded = resources.arena.buffer(limit)?;
                    resources.traffic.reads += 1;
                    (self.store.read(&key, None, limit, &mut encoded)?, encoded)
                }
            };
            if found && encoded.bytes() != FILL_MARK {
                resources.traffic.bytes_read += encoded.len() as u64;
            }
            (found, encoded)
        };
        match self.written_by_run {
            Some(WrittenByRun { array, is_complete: true }) if !found => {
                return Err(ChunkError::Damaged {
                    array,
                    object: self.objects.index(&self.object(coords)),
                    message: format!(
                        "{}, which this run has written, is missing",
                        self.describe(coords, &key)
                    ),
                });
            }
            Some(WrittenByRun { is_complete: true, .. }) if encoded.bytes() == FILL_MARK => {
                resources.arena.recycle(encoded);
                return self.fill_block(expected, resources);
            }
            _ if !found => {
                resources.arena.recycle(encoded);
                return self.fill_block(expected, resources);
            }
            _ => {}
        }
        self.codec
            .decode(encoded, expected, &mut resources.arena, &mut resources.contexts)
            .map_err(failed)
    }

    /// Waits for a started read. Without one, or if it did not fit the window, the result is
    /// [`ReadOutcome::Refused`].
    fn received(
        begun: Option<BegunRead>,
        resources: &mut WorkerResources,
    ) -> Result<ReadOutcome, ChunkError> {
        let Some(begun) = begun else { return Ok(ReadOutcome::Refused) };
        resources.traffic.reads += 1;
        let outcome = begun.pending.wait()?;
        // The bytes are now the task's own.
        drop(begun.permit);
        if let ReadOutcome::Found(buffer) = &outcome {
            resources.arena.accept(buffer)?;
        }
        Ok(outcome)
    }

    /// Describes a chunk for messages.
    fn describe(&self, coords: &[u64], key: &str) -> String {
        format!("chunk {coords:?} at `{}`", self.store.place(key))
    }

    /// Reads parts of an unencoded chunk directly to their destinations. Offsets are in bytes.
    /// Returns false if the chunk does not exist; the contents of `into` are then unspecified.
    ///
    /// # Errors
    /// Returns an error if the store fails or the chunk has another length.
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
                let place = self.describe(coords, &key);
                Err(self.attribute_damage(
                    coords,
                    ChunkError::Codec { place, error: CodecError::Length { found, expected } },
                ))
            }
        }
    }

    /// Returns true if parts of chunks can be read.
    pub fn supports_parts(&self) -> bool {
        self.codec.is_raw() && self.info.shard.is_none() && !self.store.is_remote()
    }

    fn fill_block(
        &self,
        bytes: u64,
        resources: &mut WorkerResources,
    ) -> Result<Buffer, ChunkError> {
        let mut block = resources.arena.buffer(bytes)?;
        copy::fill(&self.info.fill, block.bytes_mut());
        Ok(block)
    }

    /// Encodes a block of an object's stored shape and writes it. A block of fill values is not
    /// stored.
    ///
    /// # Errors
    /// Returns an error if a codec or the store fails.
    pub fn write(
        &self,
        object: &[u64],
        block: &[u8],
        resources: &mut WorkerResources,
    ) -> Result<Written, ChunkError> {
        let key = join(&self.path, &self.info.object_key(object));
        if copy::is_all(&self.info.fill, block) {
            if self.written_by_run.is_some_and(|w| w.is_complete) {
                self.store.write(&key, FILL_MARK)?;
                resources.traffic.writes += 1;
            } else if self.info.window.is_some() {
                // Otherwise readers would see the previous chunk.
                self.store.remove(&key)?;
            }
            return Ok(Written::Fill);
        }
        let failed = |error| match error {
            CodecError::Overrun(o) => ChunkError::Overrun(o),
            error => ChunkError::Codec { place: format!("`{}`", self.store.place(&key)), error },
        };
        let written = match (&self.info.shard, &self.index) {
            (Some(shard), Some(index)) => {
                let encoded =
                    shard::encode(&self.info, shard, [&self.codec, index], block, resources)
                        .map_err(failed)?;
                let written = self.write_object(&key, &[encoded.bytes()], resources)?;
                resources.arena.recycle(encoded);
                written
            }
            _ => {
                let encoded = self
                    .codec
                    .encode(block, &mut resources.arena, &mut resources.contexts)
                    .map_err(failed)?;
                let written = self.write_object(&key, &encoded.parts(block), resources)?;
                encoded.recycle(&mut resources.arena);
                written
            }
        };
        Ok(written)
    }

    /// Starts the write of an object if the store supports this and the window has room. Returns
    /// false otherwise.
    fn hand_over(
        &self,
        key: &str,
        parts: &[&[u8]],
        len: u64,
        resources: &mut WorkerResources,
    ) -> bool {
        if !self.store.is_remote() {
            return false;
        }
        let Some(permit) = resources.window.reserve_write(transfer_bytes(len)) else {
            return false;
        };
        let mut bytes = Buffer::zeroed(len as usize);
        let mut rest = bytes.bytes_mut();
        for part in parts {
            let (now, after) = rest.split_at_mut(part.len());
            now.copy_from_slice(part);
            rest = after;
        }
        let payload: SharedBytes = Arc::new(Payload { bytes, _permit: permit });
        let begun = self.store.begin_shared_write(key, &payload);
        begun.map(|write| resources.writes.push(write)).is_some()
    }

    fn write_object(
        &self,
        key: &str,
        parts: &[&[u8]],
        resources: &mut WorkerResources,
    ) -> Result<Written, ChunkError> {
        let len = parts.iter().map(|p| p.len() as u64).sum();
        if !self.hand_over(key, parts, len, resources) {
            self.store.write_parts(key, parts)?;
        }
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
