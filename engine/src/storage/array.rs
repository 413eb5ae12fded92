//! How an array's chunks lie in a store.

use std::sync::Arc;

use freestone_kernels::{DType, Scalar};
use serde::{Deserialize, Serialize};

use super::codec::{Codec, CodecError};
use super::{Encoding, Store, join};
use crate::grid::ChunkGrid;

/// Everything that reading or writing a chunk needs to know; it travels in plans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayInfo {
    /// Element type.
    pub dtype: DType,
    /// Value of chunks that are not there.
    pub fill: Scalar,
    /// The chunks that are read; of a sharded array the inner ones.
    pub grid: ChunkGrid,
    /// Shape in which every chunk is stored, edge chunks padded; `None` if chunks are stored as the
    /// grid cuts them.
    pub stored_shape: Option<Vec<u64>>,
    /// Zarr v3 codec list; of a sharded array that of the inner chunks.
    pub codecs: Vec<serde_json::Value>,
    /// Names of the chunks.
    pub keys: Keys,
    /// Where several chunks share an object.
    pub shard: Option<Shard>,
    /// Set where only a part of the stored array is meant, and written in place: the coordinates
    /// there of this grid's first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Vec<u64>>,
}

/// Chunks inside one object, by Zarr's `sharding_indexed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Chunks along each axis of a shard.
    pub chunks: Vec<u64>,
    /// Codec list of the index.
    pub index_codecs: Vec<serde_json::Value>,
    /// The index is at the end of the object, not at its start.
    pub index_at_end: bool,
}

/// How a chunk's key is made of its coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    /// `c/0/1`, or `c.0.1`: Zarr v3's default.
    Default {
        /// Between the numbers.
        separator: char,
    },
    /// `0.1`, or `0/1`: Zarr v2's.
    V2 {
        /// Between the numbers.
        separator: char,
    },
}

impl Shard {
    /// With the index that everybody writes: little-endian, checked, at the end.
    pub fn new(chunks: Vec<u64>) -> Shard {
        let index_codecs = vec![
            serde_json::json!({"name": "bytes", "configuration": {"endian": "little"}}),
            serde_json::json!({"name": "crc32c"}),
        ];
        Shard { chunks, index_codecs, index_at_end: true }
    }

    /// The codec of the index: offset and length of each chunk.
    ///
    /// # Errors
    /// Where it cannot be used.
    pub fn index_codec(&self) -> Result<Codec, CodecError> {
        let shape: Vec<u64> = self.chunks.iter().copied().chain([2]).collect();
        Codec::new(&self.index_codecs, DType::UInt64, &shape)
    }
}

impl Keys {
    /// The key of a chunk, or of a shard, below the array's path.
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
    /// An array of our own between two stages: chunks as the grid cuts them, a codec from the plan,
    /// and a checksum in any case.
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

    /// Elements along each axis.
    pub fn shape(&self) -> Vec<u64> {
        self.grid.shape()
    }

    /// Number of uncompressed bytes.
    pub fn n_bytes(&self) -> u128 {
        self.shape().iter().map(|n| u128::from(*n)).product::<u128>() * self.dtype.size() as u128
    }

    /// Shape of the largest chunk as it is stored.
    pub fn chunk_shape(&self) -> Vec<u64> {
        self.stored_shape.clone().unwrap_or_else(|| self.grid.max_chunk())
    }

    /// The objects that are written: the chunks, or of a sharded array the shards.
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

    /// Shape of the largest object as it is stored: a chunk's, or of a sharded array a shard's.
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

    /// The key of an object, by its coordinates in [`objects`](ArrayInfo::objects).
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

/// An array in a store: how its chunks lie, and what its metadata says besides.
#[derive(Clone, Debug)]
pub struct StoredArray {
    /// Where.
    pub store: Arc<dyn Store>,
    /// Path of the array in the store; empty for its root.
    pub path: String,
    /// How its chunks lie.
    pub info: ArrayInfo,
    /// Zarr format: 2 or 3.
    pub format: u8,
    /// Names of the axes, where the metadata gives them.
    pub dims: Vec<Option<String>>,
    /// User attributes.
    pub attributes: serde_json::Map<String, serde_json::Value>,
    /// Hash of the metadata's text: the input's identity in a plan.
    pub tag: String,
}

impl StoredArray {
    /// Where it is, in words.
    pub fn location(&self) -> String {
        join(self.store.url(), &self.path)
    }
}
