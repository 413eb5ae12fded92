//! The objects of a [`TieredStore`](super::TieredStore) in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use freestone_kernels::Buffer;

#[derive(Default)]
pub(super) struct Cache {
    pub(super) objects: BTreeMap<String, Object>,
    pub(super) slabs: HashMap<u64, Slab>,
    /// The slab of each folder that is being filled.
    pub(super) filling: HashMap<String, u64>,
    pub(super) next_slab: u64,
    /// The bytes in memory, including buffers of removed objects that are still in use.
    used: Arc<AtomicU64>,
    pub(super) highest: u64,
}

/// Bytes that count as used until they are freed, also if their object was removed before.
pub(super) struct Held<B = Buffer> {
    bytes: B,
    cost: u64,
    used: Arc<AtomicU64>,
}

impl<B> Drop for Held<B> {
    fn drop(&mut self) {
        self.used.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.bytes.bytes()
    }
}

impl AsRef<[u8]> for Held<Vec<u8>> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

pub(super) enum Object {
    Large { buffer: Arc<Held>, saved: bool },
    Packed { slab: u64, offset: usize, len: usize },
}

/// Consecutive small objects of one folder.
pub(super) struct Slab {
    pub(super) folder: String,
    pub(super) bytes: Buffer,
    pub(super) filled: usize,
    /// The number of bytes at the front that are saved.
    pub(super) saved: usize,
    pub(super) objects: usize,
}

/// The size from which objects have a buffer of their own, which is a memory mapping.
pub(super) const LARGE_BYTES: usize = 262_144;
/// The sizes of the first slab of a folder and of further slabs.
pub(super) const SLAB_BYTES: [usize; 2] = [LARGE_BYTES, 1_048_576];
/// The granularity of memory mappings.
pub(super) const PAGE_BYTES: u64 = 4096;
/// The overhead of an object besides its bytes and key: map entries, counters and allocations.
pub(super) const OBJECT_OVERHEAD_BYTES: u64 = 160;
/// The approximate maximum length of an intermediate's key.
pub(super) const KEY_BYTES: u64 = 96;

pub(super) fn folder_of(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(folder, _)| folder)
}

pub(super) fn large_cost(key: &str, len: usize) -> u64 {
    (len as u64).next_multiple_of(PAGE_BYTES) + packed_cost(key)
}

pub(super) fn packed_cost(key: &str) -> u64 {
    OBJECT_OVERHEAD_BYTES + key.len() as u64
}

pub(super) fn copy_parts(parts: &[&[u8]], into: &mut [u8]) {
    let mut at = 0;
    for part in parts {
        into[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

impl Cache {
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn free(&self, cost: u64) {
        self.used.fetch_sub(cost, Ordering::Relaxed);
    }

    pub(super) fn reserve(&mut self, cost: u64, budget: u64) -> bool {
        let used = self.used();
        if cost > budget.saturating_sub(used) {
            return false;
        }
        self.used.fetch_add(cost, Ordering::Relaxed);
        self.highest = self.highest.max(used + cost);
        true
    }

    /// Binds a reserved cost to the lifetime of bytes.
    pub(super) fn hold<B>(&self, bytes: B, cost: u64) -> Held<B> {
        Held { bytes, cost, used: Arc::clone(&self.used) }
    }

    /// Inserts an object whose cost is reserved, replacing an existing one.
    pub(super) fn insert(&mut self, key: &str, object: Object) {
        self.forget(key);
        self.objects.insert(key.to_owned(), object);
    }

    pub(super) fn forget(&mut self, key: &str) {
        match self.objects.remove(key) {
            // The memory of a large object is free once no read and no save uses it.
            None | Some(Object::Large { .. }) => {}
            Some(Object::Packed { slab, .. }) => {
                self.free(packed_cost(key));
                let Some(entry) = self.slabs.get_mut(&slab) else {
                    return debug_assert!(
                        false,
                        "a packed object's slab is in memory as long as the object"
                    );
                };
                entry.objects -= 1;
                if entry.objects == 0 {
                    let len = entry.bytes.len() as u64;
                    self.free(len);
                    self.slabs.remove(&slab);
                    self.filling.retain(|_, filling| *filling != slab);
                }
            }
        }
    }

    pub(super) fn pack(&mut self, key: &str, parts: &[&[u8]], len: usize, budget: u64) -> bool {
        let folder = folder_of(key);
        let filling = self.filling.get(folder).copied();
        let fits = |s: &Slab| s.bytes.len() - s.filled >= len;
        let slab = match filling.filter(|id| self.slabs.get(id).is_some_and(fits)) {
            Some(id) if self.reserve(packed_cost(key), budget) => id,
            Some(_) => return false,
            None => {
                let size = SLAB_BYTES[usize::from(filling.is_some())];
                if !self.reserve(size as u64 + packed_cost(key), budget) {
                    return false;
                }
                self.next_slab += 1;
                self.slabs.insert(
                    self.next_slab,
                    Slab {
                        folder: folder.to_owned(),
                        bytes: Buffer::zeroed(size),
                        filled: 0,
                        saved: 0,
                        objects: 0,
                    },
                );
                self.filling.insert(folder.to_owned(), self.next_slab);
                self.next_slab
            }
        };
        let Some(entry) = self.slabs.get_mut(&slab) else {
            debug_assert!(false, "the slab that is being filled is in memory");
            return false;
        };
        let offset = entry.filled;
        copy_parts(parts, &mut entry.bytes.bytes_mut()[offset..offset + len]);
        entry.filled += len;
        entry.objects += 1;
        self.insert(key, Object::Packed { slab, offset, len });
        true
    }
}
