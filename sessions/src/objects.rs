//! Chunk objects, by their id: our own path for bytes.
//!
//! Icechunk says where a chunk lies; its bytes go through the engine's stores, into the buffer
//! where they are wanted and nowhere else. That is what the projection of memory knows of.

use std::sync::Arc;

use bytes::Bytes;
use freestone_engine::kernels::Buffer;
use freestone_engine::storage::{ByteRange, PendingRead, StorageError, Store};
use icechunk::asset_manager::AssetManager;
use icechunk::format::ChunkId;

use crate::repository::failed;
use crate::runtime::wait;

/// Where chunk objects are.
#[derive(Debug)]
pub(crate) enum Objects {
    /// Below `chunks/` in a directory or bucket, as Icechunk's specification says.
    Store(Arc<dyn Store>),
    /// Inside of Icechunk.
    Memory(Arc<AssetManager>),
}

/// The key of a chunk object below the repository.
pub(crate) fn key(id: &ChunkId) -> String {
    format!("chunks/{id}")
}

impl Objects {
    pub(crate) fn is_remote(&self) -> bool {
        match self {
            Objects::Store(store) => store.is_remote(),
            Objects::Memory(_) => false,
        }
    }

    /// Reads `len` bytes from `offset` of an object into a buffer with room for them; false if the
    /// object is not there.
    pub(crate) fn read(
        &self,
        id: &ChunkId,
        offset: u64,
        len: u64,
        into: &mut Buffer,
    ) -> Result<bool, StorageError> {
        match self {
            Objects::Store(store) => {
                store.read(&key(id), Some(ByteRange::At { offset, len }), len, into)
            }
            Objects::Memory(assets) => {
                let (assets, id) = (Arc::clone(assets), id.clone());
                let place = key(&id);
                let range = offset..offset + len;
                let bytes = wait(async move {
                    assets
                        .fetch_chunk("", &[], &id, &range)
                        .await
                        .map_err(|e| failed(&place, "read", e.kind))
                });
                let bytes =
                    bytes.map_err(|e| e.into_storage("a repository in memory".into(), "read"))?;
                into.set_len(bytes.len());
                into.bytes_mut().copy_from_slice(&bytes);
                Ok(true)
            }
        }
    }

    /// Begins to read the same, where it has to be waited for.
    pub(crate) fn begin_read(
        &self,
        id: &ChunkId,
        offset: u64,
        len: u64,
        into: Buffer,
    ) -> Result<PendingRead, Buffer> {
        match self {
            Objects::Store(store) => {
                store.begin_read(&key(id), Some(ByteRange::At { offset, len }), len, into)
            }
            Objects::Memory(_) => Err(into),
        }
    }

    /// Writes an object.
    pub(crate) fn write(&self, id: &ChunkId, bytes: &[u8]) -> Result<(), StorageError> {
        match self {
            Objects::Store(store) => store.write(&key(id), bytes),
            Objects::Memory(assets) => {
                let (assets, id, bytes) =
                    (Arc::clone(assets), id.clone(), Bytes::copy_from_slice(bytes));
                let place = key(&id);
                let written = wait(async move {
                    assets
                        .write_chunk("", &[], id, bytes)
                        .await
                        .map_err(|e| failed(&place, "write", e.kind))
                });
                written.map_err(|e| e.into_storage("a repository in memory".into(), "write"))
            }
        }
    }
}
