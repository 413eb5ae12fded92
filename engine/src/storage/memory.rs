//! The memory of this process; it counts what is asked of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use freestone_kernels::Buffer;

use super::{
    ByteRange, Held, Lock, Names, ObjectPart, PartsRead, StorageError, Store, copy_out, locked,
};

/// Objects in memory, for results that are wanted here and for tests.
#[derive(Debug)]
pub struct MemoryStore {
    url: String,
    objects: RwLock<BTreeMap<String, Arc<[u8]>>>,
    counts: Mutex<Counts>,
    locks: Names,
}

/// How often each key was read and written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads that found an object, by key.
    pub reads: HashMap<String, u64>,
    /// Writes, by key.
    pub writes: HashMap<String, u64>,
}

static NEXT_STORE: AtomicU64 = AtomicU64::new(0);

impl MemoryStore {
    /// An empty store with a URL of its own.
    #[allow(clippy::new_without_default)]
    pub fn new() -> MemoryStore {
        MemoryStore {
            url: format!("memory://{}", NEXT_STORE.fetch_add(1, Ordering::Relaxed)),
            objects: RwLock::default(),
            counts: Mutex::default(),
            locks: Names::default(),
        }
    }

    /// What was read and written so far.
    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All keys.
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
        *self
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reads
            .entry(key.to_owned())
            .or_default() += 1;
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
        let read = copy_out(&object, size, parts, into);
        if read == PartsRead::Done {
            *locked(&self.counts).reads.entry(key.to_owned()).or_default() += 1;
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
        *self
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .writes
            .entry(key.to_owned())
            .or_default() += 1;
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
        // A write is never seen, or left, in part.
        Ok(())
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        let is_free = locked(&self.locks).insert(key.to_owned());
        Ok(is_free.then(|| Lock(Held::Memory(Arc::clone(&self.locks), key.to_owned()))))
    }

    fn is_locked(&self, key: &str) -> Result<bool, StorageError> {
        Ok(locked(&self.locks).contains(key))
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
