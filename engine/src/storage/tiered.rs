//! A store that keeps objects in this process's memory while there is room.
//!
//! The driver puts one in the place of the work directory for a run whose tasks share its process.
//! Nobody else knows of it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use freestone_kernels::Buffer;

use super::array::ArrayInfo;
use super::codec::Codec;
use super::store::copy_parts_of;
use super::{ByteRange, Lock, ObjectPart, PartsRead, PendingRead, StorageError, Store, read_small};

/// A store over another one: what is written below a prefix stays in memory while it fits into a
/// budget, and goes to the other store where it does not. Each object is in one of them, and is
/// read and removed wherever it is.
///
/// What is in memory is lost with the process, unless it was [saved](TieredStore::save): then
/// [`TieredStore::restore`] brings it back in another one.
///
/// Objects of 256 KB and more are mappings of their own, smaller ones share some, by folder:
/// intermediates are removed array by array, and their memory is then the system's again, whatever
/// the program's allocator keeps.
pub struct TieredStore {
    below: Arc<dyn Store>,
    prefix: String,
    budget: u64,
    /// Sets what this process saves apart from what those before it did.
    epoch: u32,
    kept: RwLock<Kept>,
}

#[derive(Default)]
struct Kept {
    objects: BTreeMap<String, Object>,
    slabs: HashMap<u64, Slab>,
    /// For each folder, the slab that is being filled.
    filling: HashMap<String, u64>,
    next_slab: u64,
    used: u64,
    highest: u64,
}

enum Object {
    Own { buffer: Arc<Buffer>, saved: bool },
    Packed { slab: u64, offset: usize, len: usize },
}

/// Small objects behind each other.
struct Slab {
    folder: String,
    bytes: Buffer,
    filled: usize,
    /// The front that is saved.
    saved: usize,
    objects: usize,
}

/// Objects from here on have a buffer of their own, which is a mapping.
const OWN_BYTES: usize = 262_144;
/// The first slab of a folder, and those after it.
const SLAB_BYTES: [usize; 2] = [OWN_BYTES, 1_048_576];
/// The folder of saved slabs.
const SAVED: &str = "kept";
/// A slab with the names of what is in it is not larger.
const MAX_PACK_BYTES: u64 = 1 << 26;
/// What a mapping is rounded up to.
const PAGE_BYTES: u64 = 4096;
/// What an object takes besides its bytes and its key: entries in maps, counters, allocations.
const OBJECT_OVERHEAD_BYTES: u64 = 160;
/// Keys of intermediates are not longer, give or take.
const KEY_BYTES: u64 = 96;

impl fmt::Debug for TieredStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TieredStore")
            .field("below", &self.below)
            .field("prefix", &self.prefix)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

fn folder_of(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn own_cost(key: &str, len: usize) -> u64 {
    (len as u64).next_multiple_of(PAGE_BYTES) + packed_cost(key)
}

fn packed_cost(key: &str) -> u64 {
    OBJECT_OVERHEAD_BYTES + key.len() as u64
}

impl TieredStore {
    /// Keeps up to `budget` bytes of what lies below `prefix`, which ends in `/`.
    pub fn new(below: Arc<dyn Store>, prefix: String, budget: u64, epoch: u32) -> TieredStore {
        TieredStore { below, prefix, budget, epoch, kept: RwLock::default() }
    }

    /// Writes what is in memory and was not saved before to the store below, small objects together
    /// in one object for each slab. What lies in a folder that `skip` names is left out.
    ///
    /// # Errors
    /// Where the store below fails; what it has taken until then is saved.
    pub fn save(&self, skip: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        let skips = |folder: &str| skip(folder.strip_prefix(&self.prefix).unwrap_or(folder));
        let (own, slabs) = {
            let kept = self.read_kept();
            let unsaved = |(key, object): (&String, &Object)| match object {
                Object::Own { buffer, saved: false } if !skips(folder_of(key)) => {
                    Some((key.clone(), Arc::clone(buffer)))
                }
                _ => None,
            };
            let own: Vec<(String, Arc<Buffer>)> = kept.objects.iter().filter_map(unsaved).collect();
            let mut slabs: Vec<u64> = kept
                .slabs
                .iter()
                .filter(|(_, s)| s.saved < s.filled && !skips(&s.folder))
                .map(|(id, _)| *id)
                .collect();
            slabs.sort_unstable();
            (own, slabs)
        };
        for (key, bytes) in own {
            self.below.write(&key, bytes.bytes())?;
            // What was removed meanwhile, or written again, is not marked; what stays of it below
            // is never looked for, or is the same.
            if let Some(Object::Own { buffer, saved }) = self.write_kept().objects.get_mut(&key)
                && Arc::ptr_eq(buffer, &bytes)
            {
                *saved = true;
            }
        }
        for id in slabs {
            let filled = {
                let kept = self.read_kept();
                let Some(slab) = kept.slabs.get(&id) else { continue };
                let inside = |(key, object): (&String, &Object)| match object {
                    Object::Packed { slab, offset, len } if *slab == id => {
                        Some((key.clone(), *offset, *len))
                    }
                    _ => None,
                };
                let below = kept
                    .objects
                    .range(format!("{}/", slab.folder)..)
                    .take_while(|(key, _)| folder_of(key).starts_with(&slab.folder));
                let new = below
                    .filter_map(inside)
                    .filter(|(_, offset, _)| *offset >= slab.saved)
                    .map(|(key, offset, len)| (key, offset - slab.saved, len));
                let contents = serde_json::to_vec(&new.collect::<Vec<_>>()).map_err(|_| {
                    StorageError::internal(
                        self.place(&slab.folder),
                        "the names of packed objects have a JSON",
                    )
                })?;
                let name =
                    format!("{}{SAVED}/{:03}-{id:06}-{:07}", self.prefix, self.epoch, slab.saved);
                let new_bytes = &slab.bytes.bytes()[slab.saved..slab.filled];
                self.below.write_parts(
                    &name,
                    &[&(contents.len() as u64).to_le_bytes(), &contents, new_bytes],
                )?;
                slab.filled
            };
            if let Some(slab) = self.write_kept().slabs.get_mut(&id) {
                slab.saved = filled;
            }
        }
        Ok(())
    }

    /// Brings small objects that were saved below a prefix to a store, in the order in which they
    /// were saved, but for those in folders that `skip` names. Larger ones are where they are read.
    ///
    /// # Errors
    /// Where a store fails. What is damaged is left out: who reads it will miss it.
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

    /// Bytes of memory that are enough for an array.
    pub fn bound(info: &ArrayInfo) -> u64 {
        let objects = u128::from(info.objects().n_chunks());
        // The largest object's bound stands for all of them where it is not known how they are cut.
        let largest = Codec::new(&info.codecs, info.dtype, &info.chunk_shape()).ok();
        debug_assert!(largest.is_some(), "the plan has checked its codecs");
        let grown =
            largest.as_ref().map_or(0, |c| c.encoded_bound().saturating_sub(c.decoded_bytes()));
        let encoded = info.n_bytes() + objects * u128::from(grown);
        // A slab ends where the next object does not fit into its rest, and the last one is not
        // full.
        let last = SLAB_BYTES[usize::from(4 * encoded > 3 * SLAB_BYTES[0] as u128)] as u128
            + SLAB_BYTES[0] as u128;
        let packed =
            encoded + encoded / 4 + objects * u128::from(OBJECT_OVERHEAD_BYTES + KEY_BYTES) + last;
        let small = largest.is_some_and(|c| c.encoded_bound() < OWN_BYTES as u64);
        u64::try_from(packed + if small { 0 } else { objects * u128::from(PAGE_BYTES) })
            .unwrap_or(u64::MAX)
    }

    /// The most bytes that were kept at once.
    pub fn highest(&self) -> u64 {
        self.read_kept().highest
    }

    fn read_kept(&self) -> RwLockReadGuard<'_, Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_kept(&self) -> RwLockWriteGuard<'_, Kept> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at an object's bytes, if it is in memory.
    fn with_kept<T>(
        &self,
        key: &str,
        look: impl FnOnce(&[u8]) -> Result<T, StorageError>,
    ) -> Result<Option<T>, StorageError> {
        let kept = self.read_kept();
        match kept.objects.get(key) {
            None => Ok(None),
            Some(Object::Packed { slab, offset, len }) => match kept.slabs.get(slab) {
                Some(slab) => look(&slab.bytes.bytes()[*offset..offset + len]).map(Some),
                None => Err(StorageError::internal(
                    self.place(key),
                    "a packed object's slab is in memory as long as the object",
                )),
            },
            Some(Object::Own { buffer, .. }) => {
                let buffer = Arc::clone(buffer);
                // Copied while nobody waits.
                drop(kept);
                look(buffer.bytes()).map(Some)
            }
        }
    }

    /// True if the object is in memory now.
    fn keep(&self, key: &str, parts: &[&[u8]]) -> bool {
        let len = parts.iter().map(|p| p.len()).sum();
        if len < OWN_BYTES {
            return self.write_kept().pack(key, parts, len, self.budget);
        }
        let cost = own_cost(key, len);
        if !self.write_kept().reserve(cost, self.budget) {
            return false;
        }
        // Copied while nobody waits.
        let mut copy = Buffer::zeroed(len);
        copy_parts(parts, copy.bytes_mut());
        self.write_kept().insert(key, Object::Own { buffer: Arc::new(copy), saved: false });
        true
    }
}

fn copy_parts(parts: &[&[u8]], into: &mut [u8]) {
    let mut at = 0;
    for part in parts {
        into[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

impl Kept {
    fn reserve(&mut self, cost: u64, budget: u64) -> bool {
        if cost > budget.saturating_sub(self.used) {
            return false;
        }
        self.used += cost;
        self.highest = self.highest.max(self.used);
        true
    }

    /// Puts an object whose cost is reserved in the place of what was there.
    fn insert(&mut self, key: &str, object: Object) {
        self.forget(key);
        self.objects.insert(key.to_owned(), object);
    }

    fn forget(&mut self, key: &str) {
        match self.objects.remove(key) {
            None => {}
            Some(Object::Own { buffer, .. }) => self.used -= own_cost(key, buffer.len()),
            Some(Object::Packed { slab, .. }) => {
                self.used -= packed_cost(key);
                let Some(entry) = self.slabs.get_mut(&slab) else {
                    return debug_assert!(
                        false,
                        "a packed object's slab is in memory as long as the object"
                    );
                };
                entry.objects -= 1;
                if entry.objects == 0 {
                    self.used -= entry.bytes.len() as u64;
                    self.slabs.remove(&slab);
                    self.filling.retain(|_, filling| *filling != slab);
                }
            }
        }
    }

    fn pack(&mut self, key: &str, parts: &[&[u8]], len: usize, budget: u64) -> bool {
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
        let kept = self.with_kept(key, |bytes| {
            let (offset, len) =
                ByteRange::of(range, bytes.len() as u64, limit, || self.place(key))?;
            into.set_len(len as usize);
            into.bytes_mut().copy_from_slice(&bytes[offset as usize..(offset + len) as usize]);
            Ok(())
        })?;
        if kept.is_some() { Ok(true) } else { self.below.read(key, range, limit, into) }
    }

    fn read_parts(
        &self,
        key: &str,
        size: u64,
        parts: &[ObjectPart],
        into: &mut [u8],
    ) -> Result<PartsRead, StorageError> {
        let kept = self.with_kept(key, |bytes| Ok(copy_parts_of(bytes, size, parts, into)))?;
        kept.map_or_else(|| self.below.read_parts(key, size, parts, into), Ok)
    }

    fn begin_read(
        &self,
        key: &str,
        range: Option<ByteRange>,
        limit: u64,
        into: Buffer,
    ) -> Result<PendingRead, Buffer> {
        // What is in memory need not be waited for.
        if self.read_kept().objects.contains_key(key) {
            Err(into)
        } else {
            self.below.begin_read(key, range, limit, into)
        }
    }

    fn write(&self, key: &str, bytes: &[u8]) -> Result<(), StorageError> {
        self.write_parts(key, &[bytes])
    }

    fn write_parts(&self, key: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        if key.starts_with(&self.prefix) && self.keep(key, parts) {
            return Ok(());
        }
        self.below.write_parts(key, parts)?;
        if self.read_kept().objects.contains_key(key) {
            self.write_kept().forget(key);
        }
        Ok(())
    }

    fn remove(&self, key: &str) -> Result<(), StorageError> {
        let mut kept = self.write_kept();
        let below = || {
            kept.objects
                .range(key.to_owned()..)
                .take_while(|(k, _)| k.starts_with(key))
                .map(|(k, _)| k.clone())
                .collect()
        };
        let gone: Vec<String> = if key.ends_with('/') { below() } else { vec![key.to_owned()] };
        gone.iter().for_each(|key| kept.forget(key));
        drop(kept);
        self.below.remove(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        let mut names = self.below.list(prefix)?;
        let kept = self.read_kept();
        let inside =
            kept.objects.range(prefix.to_owned()..).map_while(|(k, _)| k.strip_prefix(prefix));
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
        let len = match self.read_kept().objects.get(key) {
            Some(Object::Packed { len, .. }) => Some(*len as u64),
            Some(Object::Own { buffer, .. }) => Some(buffer.len() as u64),
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

#[cfg(test)]
mod tests {
    use super::super::{MemoryStore, conformance};
    use super::*;

    fn tier(budget: u64) -> (Arc<MemoryStore>, TieredStore) {
        let below = Arc::new(MemoryStore::new());
        (Arc::clone(&below), TieredStore::new(below, "run/".into(), budget, 0))
    }

    #[test]
    fn it_keeps_the_contract_of_stores() {
        for budget in [0, 100_000, 300_000, 600_000, 100_000_000] {
            conformance::check(&tier(budget).1, "run");
            conformance::check(&tier(budget).1, "other");
        }
    }

    #[test]
    fn what_was_saved_comes_back() {
        for (budget, back) in [
            (0, 0),
            (400_000, 100_000_000),
            (1_000_000, 600_000),
            (100_000_000, 100_000_000),
            (100_000_000, 0),
        ] {
            let (below, tier) = tier(budget);
            let object =
                |i: usize| vec![i as u8; if i.is_multiple_of(7) { 300_000 } else { 1000 + i }];
            let check = |store: &dyn Store, last: usize| {
                for i in 0..last {
                    let found = read_small(store, &format!("run/a/{i}"), 1 << 20).unwrap();
                    assert!(
                        found.as_deref() == Some(object(i).as_slice()),
                        "object {i}, budget {budget}"
                    );
                }
            };
            for i in 0..30 {
                tier.write(&format!("run/a/{i}"), &object(i)).unwrap();
                tier.write(&format!("run/gone/{i}"), &object(i)).unwrap();
                if i == 10 || i == 20 {
                    tier.save(&|_| false).unwrap();
                    // Written again after it was saved: the later one counts.
                    tier.write("run/a/3", b"other").unwrap();
                    tier.write("run/a/3", &object(3)).unwrap();
                }
            }
            tier.save(&|folder| folder == "gone").unwrap();
            tier.write("run/a/30", &object(30)).unwrap();
            check(&tier, 31);
            drop(tier);
            let below: Arc<dyn Store> = below;
            let second = TieredStore::new(Arc::clone(&below), "run/".into(), back, 1);
            TieredStore::restore(&*below, "run/", &second, &|folder| folder == "gone").unwrap();
            check(&second, 30);
            assert!(
                budget < 100_000_000 || read_small(&second, "run/a/30", 1 << 20).unwrap().is_none()
            );
            let gone = |i: usize| second.read_kept().objects.contains_key(&format!("run/gone/{i}"));
            assert!(!(0..30).any(gone));
            // A third one finds what the second has saved, too.
            second.write("run/a/31", &object(31)).unwrap();
            second.save(&|_| false).unwrap();
            let third = TieredStore::new(Arc::clone(&below), "run/".into(), back, 2);
            TieredStore::restore(&*below, "run/", &third, &|_| false).unwrap();
            check(&third, 30);
            assert!(read_small(&third, "run/a/31", 1 << 20).unwrap().unwrap() == object(31));
        }
    }

    #[test]
    fn it_keeps_what_has_room_below_its_prefix() {
        let (below, tier) = tier(3_000_000);
        tier.write("plan.json", b"plan").unwrap();
        for i in 0..10 {
            tier.write(&format!("run/large/{i}"), &vec![i; 500_000]).unwrap();
            tier.write(&format!("run/small/{i}"), &vec![i; 70_000]).unwrap();
        }
        assert!(tier.highest() <= 3_000_000);
        let spilled = below.keys().len();
        assert!((2..19).contains(&spilled), "{:?}", below.keys());
        for i in 0..10u8 {
            for (name, len) in [("large", 500_000), ("small", 70_000)] {
                let mut into = Buffer::zeroed(500_000);
                assert!(tier.read(&format!("run/{name}/{i}"), None, 500_000, &mut into).unwrap());
                assert!(into.len() == len && into.bytes().iter().all(|b| *b == i));
            }
        }
        assert_eq!(tier.list("run/small/").unwrap().len(), 10);
        // Written again with and without room for two of them.
        tier.write("run/large/0", &vec![9; 500_000]).unwrap();
        tier.write("run/small/0", b"other").unwrap();
        let mut into = Buffer::zeroed(500_000);
        assert!(tier.read("run/small/0", None, 500_000, &mut into).unwrap());
        assert_eq!(into.bytes(), b"other");
        tier.remove("run/large/").unwrap();
        tier.remove("run/small/").unwrap();
        let kept = tier.read_kept();
        assert_eq!(
            (kept.used, kept.slabs.len(), kept.filling.len(), kept.objects.len()),
            (0, 0, 0, 0)
        );
        assert_eq!(below.keys(), ["plan.json"]);
    }
}
