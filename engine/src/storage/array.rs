//! The layout of an array's chunks in a store.

use std::sync::Arc;

use freestone_kernels::{DType, Scalar};
use serde::{Deserialize, Serialize};

use super::codec::{Codec, CodecError};
use super::{Encoding, Store, join};
use crate::grid::ChunkGrid;

/// The description of an array that reads and writes of chunks need. It is part of plans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayInfo {
    /// The element type.
    pub dtype: DType,
    /// The value of elements in missing chunks.
    pub fill: Scalar,
    /// The chunks that are read: for a sharded array, the inner chunks.
    pub grid: ChunkGrid,
    /// The stored shape of all chunks, with padded edge chunks. `None` if chunks are stored with
    /// their shapes in the grid.
    pub stored_shape: Option<Vec<u64>>,
    /// The Zarr v3 codec list: for a sharded array, of the inner chunks.
    pub codecs: Vec<serde_json::Value>,
    /// The encoding of chunk keys.
    pub keys: Keys,
    /// The shard, if several chunks share an object.
    pub shard: Option<Shard>,
    /// The coordinates in the stored array of this grid's first chunk, if the array is a region of
    /// the stored array that is written in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Vec<u64>>,
}

/// A shard: several chunks in one object, as in Zarr's `sharding_indexed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// The number of chunks along each axis of a shard.
    pub chunks: Vec<u64>,
    /// The codec list of the index.
    pub index_codecs: Vec<serde_json::Value>,
    /// True if the index is at the end of the object, false if it is at the start.
    pub index_at_end: bool,
}

impl Shard {
    /// Returns the number of chunks of a shard.
    pub fn n_chunks(&self) -> u64 {
        self.chunks.iter().fold(1, |n, c| n.saturating_mul(*c))
    }
}

/// The encoding of chunk coordinates as keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    /// Zarr v3's default: `c/0/1` or `c.0.1`.
    Default {
        /// The separator between the numbers.
        separator: char,
    },
    /// Zarr v2's encoding: `0.1` or `0/1`.
    V2 {
        /// The separator between the numbers.
        separator: char,
    },
}

impl Shard {
    /// Creates a shard with the usual index: little-endian, with a checksum, at the end.
    pub fn new(chunks: Vec<u64>) -> Shard {
        let index_codecs = vec![
            serde_json::json!({"name": "bytes", "configuration": {"endian": "little"}}),
            serde_json::json!({"name": "crc32c"}),
        ];
        Shard { chunks, index_codecs, index_at_end: true }
    }

    /// Returns the codec of the index, which holds offset and length of each chunk.
    ///
    /// # Errors
    /// Returns an error if the codec is not supported.
    pub fn index_codec(&self) -> Result<Codec, CodecError> {
        let shape: Vec<u64> = self.chunks.iter().copied().chain([2]).collect();
        Codec::new(&self.index_codecs, DType::UInt64, &shape)
    }
}

impl Keys {
    /// Returns the key of a chunk or shard, relative to the array's path.
    pub fn key(self, coords: &[u64]) -> String {
        use std::fmt::Write as _;
        let (mut key, separator) = match self {
            Keys::Default { separator } => ("c".to_owned(), separator),
            Keys::V2 { separator } => (String::new(), separator),
        };
        for c in coords {
            if !key.is_empty() {
                key.push(separator);
            }
            let _ = write!(key, "{c}");
        }
        if key.is_empty() { "0".into() } else { key }
    }
}

impl ArrayInfo {
    /// Creates the description of an intermediate array: chunks with their shapes in the grid, a
    /// codec from the plan, and always a checksum.
    pub fn intermediate(dtype: DType, grid: ChunkGrid, encoding: impl Into<Encoding>) -> ArrayInfo {
        ArrayInfo {
            dtype,
            fill: Scalar::zero(dtype),
            grid,
            stored_shape: None,
            codecs: Encoding { crc32c: true, ..encoding.into() }.codecs(dtype),
            keys: Keys::Default { separator: '.' },
            shard: None,
            window: None,
        }
    }

    /// Returns the number of elements along each axis.
    pub fn shape(&self) -> Vec<u64> {
        self.grid.shape()
    }

    /// Returns the uncompressed size in bytes.
    pub fn n_bytes(&self) -> u128 {
        self.shape().iter().map(|n| u128::from(*n)).product::<u128>() * self.dtype.size() as u128
    }

    /// Returns the stored shape of the largest chunk.
    pub fn chunk_shape(&self) -> Vec<u64> {
        self.stored_shape.clone().unwrap_or_else(|| self.grid.max_chunk())
    }

    /// Returns the grid of stored objects: the chunks, or the shards of a sharded array.
    pub fn objects(&self) -> ChunkGrid {
        match &self.shard {
            Some(shard) => ChunkGrid::new(
                self.grid
                    .axes()
                    .iter()
                    .zip(&shard.chunks)
                    .map(|(axis, n)| axis.group(*n))
                    .collect(),
            ),
            None => self.grid.clone(),
        }
    }

    /// Returns the stored shape of the largest object: a chunk, or a shard of a sharded array.
    pub fn object_shape(&self) -> Vec<u64> {
        match &self.shard {
            Some(shard) => self
                .chunk_shape()
                .iter()
                .zip(&shard.chunks)
                .map(|(c, n)| c.saturating_mul(*n))
                .collect(),
            None => self.chunk_shape(),
        }
    }

    /// Returns the key of an object with coordinates in [`objects`](ArrayInfo::objects).
    pub fn object_key(&self, coords: &[u64]) -> String {
        let Some(first) = &self.window else { return self.keys.key(coords) };
        let per_object = |d: usize| self.shard.as_ref().map_or(1, |s| s.chunks[d]);
        let there: Vec<u64> = coords
            .iter()
            .zip(first)
            .enumerate()
            .map(|(d, (c, first))| c + first / per_object(d))
            .collect();
        self.keys.key(&there)
    }
}

/// An array in a store, with its metadata.
#[derive(Clone, Debug)]
pub struct StoredArray {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The path of the array in the store, empty for the root.
    pub path: String,
    /// The description of the array's chunks.
    pub info: ArrayInfo,
    /// The Zarr format version: 2 or 3.
    pub format: u8,
    /// The names of the axes, if the metadata contains them.
    pub dims: Vec<Option<String>>,
    /// The user attributes.
    pub attributes: serde_json::Map<String, serde_json::Value>,
    /// The hash of the metadata text, which identifies the input in a plan.
    pub tag: String,
}

impl StoredArray {
    /// Returns the location of the array, for messages.
    pub fn location(&self) -> String {
        join(self.store.url(), &self.path)
    }
}
