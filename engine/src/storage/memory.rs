//! A store in this process's memory, which counts its reads and writes.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use freestone_kernels::Buffer;

use super::lock::{LockKind, LockedKeys, guard};
use super::store::copy_parts_of;
use super::{ByteRange, Lock, ObjectPart, PartsRead, StorageError, Store};

/// A store in memory, for results that this process uses and for tests.
#[derive(Debug)]
pub struct MemoryStore {
    url: String,
    objects: RwLock<BTreeMap<String, Arc<[u8]>>>,
    counts: Mutex<Counts>,
    locks: LockedKeys,
}

/// The number of reads and writes of each key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads of existing objects, by key.
    pub reads: HashMap<String, u64>,
    /// Writes, by key.
    pub writes: HashMap<String, u64>,
}

static NEXT_STORE: AtomicU64 = AtomicU64::new(0);

impl MemoryStore {
    /// Creates an empty store with a unique URL.
    #[allow(clippy::new_without_default)]
    pub fn new() -> MemoryStore {
        MemoryStore {
            url: format!("memory://{}", NEXT_STORE.fetch_add(1, Ordering::Relaxed)),
            objects: RwLock::default(),
            counts: Mutex::default(),
            locks: LockedKeys::default(),
        }
    }

    /// Returns the counts so far.
    pub fn counts(&self) -> Counts {
        guard(&self.counts).clone()
    }

    /// Returns all keys in order.
    pub fn keys(&self) -> Vec<String> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

impl Store for MemoryStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        into: &mut Buffer,
    ) -> Result<bool, StorageError> {
        let Some(object) =
            self.objects.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
        else {
            return Ok(false);
        };
        let (offset, len) = ByteRange::of(range, object.len() as u64, limit, || self.place(key))?;
        into.set_len(len as usize);
        into.bytes_mut().copy_from_slice(&object[offset as usize..(offset + len) as usize]);
        *guard(&self.counts).reads.entry(key.to_owned()).or_default() += 1;
        Ok(true)
    }

    fn read_parts(
        &self,
        key: &str,
        size: u64,
        parts: &[ObjectPart],
        into: &mut [u8],
    ) -> Result<PartsRead, StorageError> {
        let Some(object) =
            self.objects.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
        else {
            return Ok(PartsRead::Missing);
        };
        let read = copy_parts_of(&object, size, parts, into);
        if read == PartsRead::Done {
            *guard(&self.counts).reads.entry(key.to_owned()).or_default() += 1;
        }
        Ok(read)
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.write_parts(key, &[bytes])
    }

    fn write_parts(&self, key: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        let object: Arc<[u8]> =
            if let [bytes] = parts { (*bytes).into() } else { parts.concat().into() };
        self.objects.write().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), object);
        *guard(&self.counts).writes.entry(key.to_owned()).or_default() += 1;
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        if key.ends_with('/') {
            objects.retain(|k, _| !k.starts_with(key));
        } else {
            objects.remove(key);
        }
        Ok(())
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let below = objects.keys().filter_map(|k| k.strip_prefix(prefix));
        let mut names: Vec<String> =
            below.map(|k| k.split('/').next().unwrap_or(k).to_owned()).collect();
        names.dedup();
        Ok(names)
    }

    fn sync(&self, _keys: &mut dyn Iterator<Item = String>) -> Result<(), StorageError> {
        Ok(())
    }

    fn remove_partial_writes(&self, _prefix: &str) -> Result<(), StorageError> {
        // Writes are never partial.
        Ok(())
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        let is_free = guard(&self.locks).insert(key.to_owned());
        Ok(is_free.then(|| Lock(LockKind::Memory(Arc::clone(&self.locks), key.to_owned()))))
    }

    fn is_locked(&self, key: &str) -> Result<bool, StorageError> {
        Ok(guard(&self.locks).contains(key))
    }

    fn size(&self, key: &str) -> Result<Option<u64>, StorageError> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        Ok(objects.get(key).map(|object| object.len() as u64))
    }

    fn modified(&self, _key: &str) -> Result<Option<SystemTime>, StorageError> {
        Ok(None)
    }

    fn blocking_file(&self, _key: &str) -> Option<String> {
        None
    }
}
