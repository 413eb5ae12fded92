//! Chunk objects by id.
//!
//! Icechunk provides the references of chunks. Their bytes are transferred by the engine's stores
//! directly into the destination buffer, as the memory projection assumes.

use std::sync::Arc;

use bytes::Bytes;
use freestone_engine::kernels::Buffer;
use freestone_engine::storage::{Admit, ByteRange, PendingRead, StorageError, Store};
use icechunk::asset_manager::AssetManager;
use icechunk::format::ChunkId;

use crate::repository::failed;
use crate::runtime::wait;

/// The store of chunk objects.
#[derive(Debug)]
pub(crate) enum Objects {
    /// Below `chunks/` in a directory or bucket, as in Icechunk's specification.
    Store(Arc<dyn Store>),
    /// In Icechunk's memory storage.
    Memory(Arc<AssetManager>),
}

/// Returns the key of a chunk object in the repository.
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

    /// Reads `len` bytes from `offset` of an object into a buffer with room for them. Returns false
    /// if the object does not exist.
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

    /// Starts to read bytes of an object, if the read would block.
    pub(crate) fn begin_read(
        &self,
        id: &ChunkId,
        offset: u64,
        len: u64,
        admit: Admit,
    ) -> Option<PendingRead> {
        match self {
            Objects::Store(store) => {
                store.begin_read(&key(id), Some(ByteRange::At { offset, len }), len, admit)
            }
            Objects::Memory(_) => None,
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
