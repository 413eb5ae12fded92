//! A memory tier over another store.
//!
//! The driver substitutes it for the work directory of a run whose tasks share its process.

mod cache;
mod save;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use freestone_kernels::Buffer;

use cache::{
    Cache, KEY_BYTES, LARGE_BYTES, OBJECT_OVERHEAD_BYTES, Object, PAGE_BYTES, SLAB_BYTES,
    copy_parts, folder_of, large_cost,
};

use super::array::ArrayInfo;
use super::codec::Codec;
use super::store::copy_parts_of;
use super::{
    Admit, ByteRange, Lock, ObjectPart, PartsRead, PendingRead, PendingWrite, SharedBytes,
    StorageError, Store, read_small,
};

/// A store that holds objects below a prefix in memory, up to a budget, and writes others to the
/// store below. Each object is in one of the two.
///
/// Objects in memory are lost with the process unless they were [saved](TieredStore::save).
/// [`TieredStore::restore`] restores saved objects in another process.
///
/// Objects of 256 KB and more have a memory mapping of their own. Smaller ones share slabs by
/// folder. Intermediates are removed array by array, and their mappings then return to the system
/// regardless of the allocator.
pub struct TieredStore {
    below: Arc<dyn Store>,
    prefix: String,
    budget: u64,
    /// The epoch of this process, which distinguishes its saved objects from earlier ones.
    epoch: u32,
    cache: RwLock<Cache>,
}

impl fmt::Debug for TieredStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TieredStore")
            .field("below", &self.below)
            .field("prefix", &self.prefix)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

/// The folder of saved slabs.
const SAVED: &str = "kept";
/// The maximum size of a saved slab with the names of its objects, in bytes.
const MAX_PACK_BYTES: u64 = 1 << 26;

impl TieredStore {
    /// Creates a tier of up to `budget` bytes for objects below `prefix`, which ends in `/`.
    pub fn new(below: Arc<dyn Store>, prefix: String, budget: u64, epoch: u32) -> TieredStore {
        TieredStore { below, prefix, budget, epoch, cache: RwLock::default() }
    }

    /// Writes saved small objects below a prefix to a store, in the order in which they were saved.
    /// Omits folders for which `skip` returns true. Large objects are read where they were saved.
    ///
    /// # Errors
    /// Returns an error if a store fails. Damaged objects are omitted, so that readers find them
    /// missing.
    pub fn restore(
        from: &dyn Store,
        prefix: &str,
        to: &dyn Store,
        skip: &dyn Fn(&str) -> bool,
    ) -> Result<(), StorageError> {
        for name in from.list(&format!("{prefix}{SAVED}/"))? {
            let key = format!("{prefix}{SAVED}/{name}");
            let Some(pack) = read_small(from, &key, MAX_PACK_BYTES)? else { continue };
            let Some((len, rest)) = pack.split_first_chunk::<8>() else { continue };
            let Some((contents, bytes)) = usize::try_from(u64::from_le_bytes(*len))
                .ok()
                .and_then(|n| rest.split_at_checked(n))
            else {
                continue;
            };
            let contents: Vec<(String, usize, usize)> =
                serde_json::from_slice(contents).unwrap_or_default();
            for (key, offset, len) in contents {
                let ours = key.strip_prefix(prefix).is_some_and(|k| !skip(folder_of(k)));
                if let (true, Some(object)) =
                    (ours, offset.checked_add(len).and_then(|end| bytes.get(offset..end)))
                {
                    to.write(&key, object)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the maximum memory of an array in bytes.
    pub fn bound(info: &ArrayInfo) -> u64 {
        let objects = u128::from(info.objects().n_chunks());
        // The bound of the largest object applies to all.
        let largest = Codec::new(&info.codecs, info.dtype, &info.chunk_shape()).ok();
        debug_assert!(largest.is_some(), "the plan has checked its codecs");
        let grown =
            largest.as_ref().map_or(0, |c| c.encoded_bound().saturating_sub(c.decoded_bytes()));
        let encoded = info.n_bytes() + objects * u128::from(grown);
        // A slab ends if the next object does not fit, and the last slab is not full.
        let last = SLAB_BYTES[usize::from(4 * encoded > 3 * SLAB_BYTES[0] as u128)] as u128
            + SLAB_BYTES[0] as u128;
        let packed =
            encoded + encoded / 4 + objects * u128::from(OBJECT_OVERHEAD_BYTES + KEY_BYTES) + last;
        let small = largest.is_some_and(|c| c.encoded_bound() < LARGE_BYTES as u64);
        u64::try_from(packed + if small { 0 } else { objects * u128::from(PAGE_BYTES) })
            .unwrap_or(u64::MAX)
    }

    /// Returns the peak size of the objects in memory, in bytes.
    pub fn highest(&self) -> u64 {
        self.read_cache().highest
    }

    fn read_cache(&self) -> RwLockReadGuard<'_, Cache> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_cache(&self) -> RwLockWriteGuard<'_, Cache> {
        self.cache.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a function with an object's bytes if the object is in memory.
    fn with_cached<T>(
        &self,
        key: &str,
        look: impl FnOnce(&[u8]) -> Result<T, StorageError>,
    ) -> Result<Option<T>, StorageError> {
        let cache = self.read_cache();
        match cache.objects.get(key) {
            None => Ok(None),
            Some(Object::Packed { slab, offset, len }) => match cache.slabs.get(slab) {
                Some(slab) => look(&slab.bytes.bytes()[*offset..offset + len]).map(Some),
                None => Err(StorageError::internal(
                    self.place(key),
                    "a packed object's slab is in memory as long as the object",
                )),
            },
            Some(Object::Large { buffer, .. }) => {
                let buffer = Arc::clone(buffer);
                // Copy without holding the lock.
                drop(cache);
                look((*buffer).as_ref()).map(Some)
            }
        }
    }

    /// Returns true if an object of `len` bytes probably fits the budget.
    fn has_room(&self, len: usize) -> bool {
        self.read_cache().used().saturating_add(len as u64) <= self.budget
    }

    /// Inserts an object into memory if it fits the budget, and returns whether it did.
    fn insert(&self, key: &str, parts: &[&[u8]]) -> bool {
        let len = parts.iter().map(|p| p.len()).sum();
        if len < LARGE_BYTES {
            return self.write_cache().pack(key, parts, len, self.budget);
        }
        let cost = large_cost(key, len);
        if !self.write_cache().reserve(cost, self.budget) {
            return false;
        }
        // Copy without holding the lock.
        let mut copy = Buffer::zeroed(len);
        copy_parts(parts, copy.bytes_mut());
        let mut cache = self.write_cache();
        let buffer = Arc::new(cache.hold(copy, cost));
        cache.insert(key, Object::Large { buffer, saved: false });
        true
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for TieredStore {
    fn url(&self) -> &str {
        self.below.url()
    }

    fn is_remote(&self) -> bool {
        self.below.is_remote()
    }

    fn read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        into: &mut Buffer,
    ) -> Result<bool, StorageError> {
        let cached = self.with_cached(key, |bytes| {
            let (offset, len) =
                ByteRange::of(range, bytes.len() as u64, limit, || self.place(key))?;
            into.set_len(len as usize);
            into.bytes_mut().copy_from_slice(&bytes[offset as usize..(offset + len) as usize]);
            Ok(())
        })?;
        if cached.is_some() { Ok(true) } else { self.below.read(key, range, limit, into) }
    }

    fn read_parts(
        &self,
        key: &str,
        size: u64,
        parts: &[ObjectPart],
        into: &mut [u8],
    ) -> Result<PartsRead, StorageError> {
        let cached = self.with_cached(key, |bytes| Ok(copy_parts_of(bytes, size, parts, into)))?;
        cached.map_or_else(|| self.below.read_parts(key, size, parts, into), Ok)
    }

    fn begin_read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        admit: Admit,
    ) -> Option<PendingRead> {
        // A read from memory does not block.
        let is_cached = self.read_cache().objects.contains_key(key);
        if is_cached { None } else { self.below.begin_read(key, range, limit, admit) }
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.write_parts(key, &[bytes])
    }

    fn write_parts(&self, key: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        if key.starts_with(&self.prefix) && self.insert(key, parts) {
            return Ok(());
        }
        self.below.write_parts(key, parts)?;
        if self.read_cache().objects.contains_key(key) {
            self.write_cache().forget(key);
        }
        Ok(())
    }

    fn begin_shared_write(&self, key: &str, bytes: &SharedBytes) -> Option<PendingWrite> {
        // A write to memory does not block.
        let len = AsRef::<[u8]>::as_ref(&**bytes).len();
        let is_cached = self.read_cache().objects.contains_key(key);
        if is_cached || (key.starts_with(&self.prefix) && self.has_room(len)) {
            return None;
        }
        self.below.begin_shared_write(key, bytes)
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        let mut cache = self.write_cache();
        let below = || {
            cache
                .objects
                .range(key.to_owned()..)
                .take_while(|(k, _)| k.starts_with(key))
                .map(|(k, _)| k.clone())
                .collect()
        };
        let gone: Vec<String> = if key.ends_with('/') { below() } else { vec![key.to_owned()] };
        gone.iter().for_each(|key| cache.forget(key));
        drop(cache);
        self.below.remove(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let mut names = self.below.list(prefix)?;
        let cache = self.read_cache();
        let inside =
            cache.objects.range(prefix.to_owned()..).map_while(|(k, _)| k.strip_prefix(prefix));
        names.extend(inside.map(|k| k.split('/').next().unwrap_or(k).to_owned()));
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    fn sync(&self, keys: &mut dyn Iterator<Item = String>) -> Result<(), StorageError> {
        self.below.sync(keys)
    }

    fn remove_partial_writes(&self, prefix: &str) -> Result<(), StorageError> {
        self.below.remove_partial_writes(prefix)
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>, StorageError> {
        self.below.lock(key)
    }

    fn is_locked(&self, key: &str) -> Result<bool, StorageError> {
        self.below.is_locked(key)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, StorageError> {
        let len = match self.read_cache().objects.get(key) {
            Some(Object::Packed { len, .. }) => Some(*len as u64),
            Some(Object::Large { buffer, .. }) => Some((**buffer).as_ref().len() as u64),
            None => None,
        };
        if len.is_some() { Ok(len) } else { self.below.size(key) }
    }

    fn modified(&self, key: &str) -> Result<Option<SystemTime>, StorageError> {
        self.below.modified(key)
    }

    fn blocking_file(&self, key: &str) -> Option<String> {
        self.below.blocking_file(key)
    }

    fn place(&self, key: &str) -> String {
        self.below.place(key)
    }
}
