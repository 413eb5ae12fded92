//! The implementation of [`Store`] for a session.

use std::time::SystemTime;

use freestone_engine::kernels::Buffer;
use freestone_engine::storage::{
    Admit, ByteRange, Lock, ObjectPart, PartsRead, PendingRead, PendingWrite, ReadOutcome,
    SharedBytes, StorageError, Store,
};
use icechunk::format::ChunkId;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::{Found, Keep, SessionStore};
use crate::error::Error;
use crate::key::Key;
use crate::receipt::{INLINE_BYTES, Receipt, Written};

#[deny(clippy::missing_trait_methods)]
impl Store for SessionStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn is_remote(&self) -> bool {
        self.repository.objects().is_remote()
    }

    fn read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        into: &mut Buffer,
    ) -> Result<bool, StorageError> {
        let wrong = |e: Error| e.into_storage(self.place(key), "read");
        let copy = |bytes: &[u8], into: &mut Buffer| {
            let (offset, len) =
                ByteRange::of(range, bytes.len() as u64, limit, || self.place(key))?;
            into.set_len(len as usize);
            into.bytes_mut().copy_from_slice(&bytes[offset as usize..(offset + len) as usize]);
            Ok(true)
        };
        match Key::parse(key) {
            Key::Nothing => Ok(false),
            Key::Document(path) => match self.document(path).map_err(wrong)? {
                Some(text) => copy(&text, into),
                None => Ok(false),
            },
            Key::Chunk(array, chunk) => match self.locate(array, &chunk).map_err(wrong)? {
                Found::Nowhere => Ok(false),
                Found::Here(bytes) => copy(&bytes, into),
                Found::Object { id, offset, len } => {
                    let (start, len) = ByteRange::of(range, len, limit, || self.place(key))?;
                    self.read_object(key, &id, offset + start, len, into).map(|()| true)
                }
                Found::Virtual { len } => {
                    let (start, len) = ByteRange::of(range, len, limit, || self.place(key))?;
                    let bytes = self.read_virtual(array, chunk, start, len).map_err(wrong)?;
                    into.set_len(bytes.len());
                    into.bytes_mut().copy_from_slice(&bytes);
                    Ok(true)
                }
            },
        }
    }

    fn begin_read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        admit: Admit,
    ) -> Option<PendingRead> {
        // Reads from memory do not block, and errors are reported by `read`.
        let Key::Chunk(array, chunk) = Key::parse(key) else { return None };
        let Ok(Found::Object { id, offset, len }) = self.locate(array, &chunk) else { return None };
        let (start, len) = ByteRange::of(range, len, limit, || self.place(key)).ok()?;
        let begun = self.repository.objects().begin_read(&id, offset + start, len, admit)?;
        let gone = self.gone(key, &id);
        Some(PendingRead::new(move || match begun.wait()? {
            ReadOutcome::Missing => Err(gone),
            outcome => Ok(outcome),
        }))
    }

    fn read_parts(
        &self,
        key: &str,
        size: u64,
        parts: &[ObjectPart],
        into: &mut [u8],
    ) -> Result<PartsRead, StorageError> {
        let wrong = |e: Error| e.into_storage(self.place(key), "read");
        let Key::Chunk(array, chunk) = Key::parse(key) else { return Ok(PartsRead::Missing) };
        match self.locate(array, &chunk).map_err(wrong)? {
            Found::Nowhere => Ok(PartsRead::Missing),
            Found::Here(bytes) if bytes.len() as u64 != size => {
                Ok(PartsRead::Length(bytes.len() as u64))
            }
            Found::Object { len, .. } | Found::Virtual { len } if len != size => {
                Ok(PartsRead::Length(len))
            }
            Found::Here(bytes) => {
                for part in parts {
                    into[part.place..part.place + part.len]
                        .copy_from_slice(&bytes[part.offset as usize..][..part.len]);
                }
                Ok(PartsRead::Done)
            }
            Found::Object { id, offset, .. } => {
                if let (0, Some(store)) = (offset, self.repository.base_store())
                    && let done @ (PartsRead::Done | PartsRead::Missing) =
                        store.read_parts(&crate::objects::key(&id), size, parts, into)?
                {
                    return match done {
                        // A referenced object is missing. A whole read returns the error.
                        PartsRead::Missing => self
                            .read_object(key, &id, 0, size, &mut Buffer::zeroed(size as usize))
                            .map(|()| PartsRead::Done),
                        done => Ok(done),
                    };
                }
                for part in parts {
                    let mut buffer = Buffer::zeroed(part.len);
                    self.read_object(key, &id, offset + part.offset, part.len as u64, &mut buffer)?;
                    into[part.place..part.place + part.len].copy_from_slice(buffer.bytes());
                }
                Ok(PartsRead::Done)
            }
            Found::Virtual { .. } => {
                for part in parts {
                    let bytes = self
                        .read_virtual(array, chunk.clone(), part.offset, part.len as u64)
                        .map_err(wrong)?;
                    into[part.place..part.place + part.len].copy_from_slice(&bytes);
                }
                Ok(PartsRead::Done)
            }
        }
    }

    fn write_parts(&self, key: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        // The receipt is for the whole object.
        match parts {
            [bytes] | [bytes, []] => self.write(key, bytes),
            _ => self.write(key, &parts.concat()),
        }
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let writes = self.writes(key)?;
        let Key::Chunk(array, chunk) = Key::parse(key) else {
            let why = "a session's store accepts only chunks, not metadata";
            return Err(StorageError::Io {
                place: self.place(key),
                action: "write",
                message: why.into(),
                transient: false,
            });
        };
        if writes.receipts == Keep::Here && bytes.len() <= INLINE_BYTES {
            return self.note(Receipt::inline(array, &chunk, bytes));
        }
        let receipt =
            Receipt::object(&writes.session, array, &chunk, bytes.len() as u64, xxh3_64(bytes));
        if let Written::Object { id, .. } = &receipt.written {
            self.repository.objects().write(&ChunkId::new(*id), bytes)?;
        }
        if writes.receipts == Keep::Here { self.note(receipt) } else { Ok(()) }
    }

    fn begin_shared_write(&self, _key: &str, _bytes: &SharedBytes) -> Option<PendingWrite> {
        // A chunk's receipt is made when it is written.
        None
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        let writes = self.writes(key)?;
        match Key::parse(key) {
            Key::Chunk(array, chunk) => {
                if writes.receipts == Keep::Here {
                    self.note(Receipt::fill(array, &chunk))
                } else {
                    Ok(())
                }
            }
            Key::Document(_) | Key::Nothing => {
                let why = "a session's store removes only chunks, not arrays and groups";
                Err(StorageError::Io {
                    place: self.place(key),
                    action: "remove",
                    message: why.into(),
                    transient: false,
                })
            }
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let path = prefix.trim_end_matches('/');
        let wrong = |e: Error| e.into_storage(self.place(prefix), "list");
        let Some(document) = self.document(path).map_err(wrong)? else {
            return if path.is_empty() {
                self.children(path).map_err(wrong)
            } else {
                Ok(Vec::new())
            };
        };
        let mut names = match serde_json::from_slice::<Value>(&document) {
            Ok(document) if document["node_type"] == "array" => vec!["c".to_owned()],
            _ => self.children(path).map_err(wrong)?,
        };
        names.push("zarr.json".into());
        Ok(names)
    }

    fn sync(&self, _keys: &mut dyn Iterator<Item = String>) -> Result<(), StorageError> {
        // The commit flushes all objects.
        Ok(())
    }

    fn remove_partial_writes(&self, _prefix: &str) -> Result<(), StorageError> {
        // A garbage collection removes unreferenced objects.
        Ok(())
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        let why = "a session's store has no locks";
        Err(StorageError::Io {
            place: self.place(key),
            action: "lock",
            message: why.into(),
            transient: false,
        })
    }

    fn is_locked(&self, _key: &str) -> Result<bool, StorageError> {
        // A session's store has no locks.
        Ok(false)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, StorageError> {
        let wrong = |e: Error| e.into_storage(self.place(key), "inspect");
        Ok(match Key::parse(key) {
            Key::Nothing => None,
            Key::Document(path) => {
                self.document(path).map_err(wrong)?.map(|text| text.len() as u64)
            }
            Key::Chunk(array, chunk) => match self.locate(array, &chunk).map_err(wrong)? {
                Found::Nowhere => None,
                Found::Here(bytes) => Some(bytes.len() as u64),
                Found::Object { len, .. } | Found::Virtual { len } => Some(len),
            },
        })
    }

    fn modified(&self, _key: &str) -> Result<Option<SystemTime>, StorageError> {
        // Snapshots have no times of their objects.
        Ok(None)
    }

    fn blocking_file(&self, _key: &str) -> Option<String> {
        // The draft checks that no array contains other nodes.
        None
    }

    fn place(&self, key: &str) -> String {
        format!("{} in {}", if key.is_empty() { "the root" } else { key }, self.url)
    }
}
