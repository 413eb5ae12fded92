//! Saving the objects of a [`TieredStore`] to the store below, several at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::cache::{Held, Object, folder_of, packed_cost};
use super::{SAVED, TieredStore};
use crate::storage::store::{PendingWrite, SharedBytes};
use crate::storage::{StorageError, Store};

/// The maximum number of writes in flight.
const MAX_WRITES: usize = 16;
/// The interval at which a save checks whether an object in flight is still needed.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// An unsaved part of the tier.
enum Unsaved {
    /// An object with a buffer of its own, by key.
    Large(String),
    /// The unsaved bytes of a slab.
    Slab(u64),
}

/// What is written below, and how it is marked as saved.
struct Write {
    key: String,
    /// The folder of the objects.
    folder: String,
    bytes: SharedBytes,
    mark: Mark,
}

enum Mark {
    Large(Arc<Held>),
    /// The slab, and the number of bytes at its front that are saved then.
    Slab(u64, usize),
}

/// The result of preparing a write.
enum Prepared {
    Write(Write),
    /// The objects were removed or saved since.
    Nothing,
    /// The budget has no room for a copy of a slab.
    NoRoom,
}

impl TieredStore {
    /// Writes unsaved objects to the store below, small objects together in one object per slab.
    /// Omits folders for which `skip` returns true.
    ///
    /// Asks `skip` before each write and during it, and cancels writes that are no longer needed.
    /// Up to 16 writes are in flight at once, if the store below supports this.
    ///
    /// # Errors
    /// Returns an error if the store below fails. Objects written before are saved.
    pub fn save(&self, skip: &dyn Fn(&str) -> bool) -> Result<(), StorageError> {
        let skips = |folder: &str| skip(folder.strip_prefix(&self.prefix).unwrap_or(folder));
        let mut unsaved = self.unsaved();
        let mut in_flight: VecDeque<(Write, PendingWrite)> = VecDeque::new();
        loop {
            while in_flight.len() < MAX_WRITES
                && let Some(next) = unsaved.pop_front()
            {
                let write = match self.prepare(&next, &skips, in_flight.is_empty())? {
                    Prepared::Write(write) => write,
                    Prepared::Nothing => continue,
                    Prepared::NoRoom => {
                        unsaved.push_front(next);
                        break;
                    }
                };
                match self.below.begin_shared_write(&write.key, &write.bytes) {
                    Some(pending) => in_flight.push_back((write, pending)),
                    None => {
                        self.below.write(&write.key, (*write.bytes).as_ref())?;
                        self.mark(write);
                    }
                }
            }
            let Some((write, mut pending)) = in_flight.pop_front() else { return Ok(()) };
            if skips(&write.folder) {
                continue;
            }
            match pending.wait_for(CHECK_INTERVAL) {
                None => in_flight.push_front((write, pending)),
                Some(result) => {
                    result?;
                    self.mark(write);
                }
            }
        }
    }

    /// Returns all unsaved parts in a fixed order.
    fn unsaved(&self) -> VecDeque<Unsaved> {
        let cache = self.read_cache();
        let large = cache.objects.iter().filter_map(|(key, object)| match object {
            Object::Large { saved: false, .. } => Some(Unsaved::Large(key.clone())),
            _ => None,
        });
        let is_unsaved = cache.slabs.iter().filter(|(_, s)| s.saved < s.filled);
        let mut slabs: Vec<u64> = is_unsaved.map(|(id, _)| *id).collect();
        slabs.sort_unstable();
        large.chain(slabs.into_iter().map(Unsaved::Slab)).collect()
    }

    /// Prepares a write. A copy of a slab counts in the budget, except if it is the `only` write.
    fn prepare(
        &self,
        part: &Unsaved,
        skips: &dyn Fn(&str) -> bool,
        only: bool,
    ) -> Result<Prepared, StorageError> {
        // `skips` may take locks of its own, so it is called without the cache's.
        let folder = match part {
            Unsaved::Large(key) => Some(folder_of(key).to_owned()),
            Unsaved::Slab(id) => self.read_cache().slabs.get(id).map(|s| s.folder.clone()),
        };
        let Some(folder) = folder.filter(|folder| !skips(folder)) else {
            return Ok(Prepared::Nothing);
        };
        match part {
            Unsaved::Large(key) => Ok(match self.read_cache().objects.get(key) {
                Some(Object::Large { buffer, saved: false }) => Prepared::Write(Write {
                    key: key.clone(),
                    folder,
                    bytes: Arc::clone(buffer) as SharedBytes,
                    mark: Mark::Large(Arc::clone(buffer)),
                }),
                _ => Prepared::Nothing,
            }),
            Unsaved::Slab(id) => self.prepare_slab(*id, folder, only),
        }
    }

    fn prepare_slab(&self, id: u64, folder: String, only: bool) -> Result<Prepared, StorageError> {
        let mut cache = self.write_cache();
        let Some(slab) = cache.slabs.get(&id) else { return Ok(Prepared::Nothing) };
        let inside = |(key, object): (&String, &Object)| match object {
            Object::Packed { slab: of, offset, len } if *of == id && *offset >= slab.saved => {
                Some((key.clone(), offset - slab.saved, *len))
            }
            _ => None,
        };
        let below = cache
            .objects
            .range(format!("{folder}/")..)
            .take_while(|(key, _)| folder_of(key).starts_with(&folder));
        let names: Vec<(String, usize, usize)> = below.filter_map(inside).collect();
        let new_bytes = &slab.bytes.bytes()[slab.saved..slab.filled];
        let cost = new_bytes.len() as u64
            + names.iter().map(|(key, ..)| 2 * packed_cost(key)).sum::<u64>();
        let contents = serde_json::to_vec(&names).map_err(|_| {
            StorageError::internal(
                self.place(&folder),
                "the names of packed objects are serializable",
            )
        })?;
        let pack = [&(contents.len() as u64).to_le_bytes(), &contents[..], new_bytes].concat();
        let key = format!("{}{SAVED}/{:03}-{id:06}-{:07}", self.prefix, self.epoch, slab.saved);
        let mark = Mark::Slab(id, slab.filled);
        let bytes: SharedBytes = match cache.reserve(cost, self.budget) {
            true => Arc::new(cache.hold(pack, cost)),
            false if only => Arc::new(pack),
            false => return Ok(Prepared::NoRoom),
        };
        Ok(Prepared::Write(Write { key, folder, bytes, mark }))
    }

    /// Marks objects as saved. An object that was removed or replaced since is not marked: its copy
    /// below is unused or identical.
    fn mark(&self, write: Write) {
        let mut cache = self.write_cache();
        match write.mark {
            Mark::Large(held) => {
                if let Some(Object::Large { buffer, saved }) = cache.objects.get_mut(&write.key)
                    && Arc::ptr_eq(buffer, &held)
                {
                    *saved = true;
                }
            }
            Mark::Slab(id, filled) => {
                if let Some(slab) = cache.slabs.get_mut(&id) {
                    slab.saved = filled;
                }
            }
        }
    }
}
