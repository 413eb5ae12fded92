//! Locks on keys of stores.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::StorageError;
#[cfg(feature = "object-stores")]
use super::{lease, object};

/// A lock on a key of a store, released when dropped.
#[derive(Debug)]
pub struct Lock(pub(super) LockKind);

/// The implementation of a lock.
#[derive(Debug)]
pub(super) enum LockKind {
    /// The store has no locks.
    Noop,
    File(std::fs::File),
    Memory(LockedKeys, String),
    #[cfg(feature = "object-stores")]
    Lease(lease::Lease),
}

/// The locked keys of a store in memory.
pub(super) type LockedKeys = Arc<Mutex<HashSet<String>>>;

impl Lock {
    /// Returns the lock of a store without locks. It excludes no other holder.
    pub fn noop() -> Lock {
        Lock(LockKind::Noop)
    }

    /// Returns true if the store has no locks, so that this one excludes no other holder.
    pub fn is_noop(&self) -> bool {
        matches!(self.0, LockKind::Noop)
    }

    /// Returns true if another process is known to have taken the lock, because this process has
    /// not renewed it. The holder must then stop.
    pub fn is_lost(&self) -> bool {
        match &self.0 {
            LockKind::Noop | LockKind::File(_) | LockKind::Memory(..) => false,
            #[cfg(feature = "object-stores")]
            LockKind::Lease(lease) => lease.is_lost(),
        }
    }

    /// Renews the lock and returns whether this process still holds it.
    ///
    /// # Errors
    /// Returns an error if the store fails.
    pub fn confirm(&self) -> Result<bool, StorageError> {
        match &self.0 {
            LockKind::Noop | LockKind::File(_) | LockKind::Memory(..) => Ok(true),
            #[cfg(feature = "object-stores")]
            LockKind::Lease(lease) => object::confirm(lease),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        match &self.0 {
            // Closing the file is not enough: a process that another thread is spawning may have
            // inherited the descriptor, and the lock with it.
            LockKind::File(file) => drop(file.unlock()),
            LockKind::Memory(keys, key) => drop(guard(keys).remove(key)),
            LockKind::Noop => {}
            #[cfg(feature = "object-stores")]
            LockKind::Lease(_) => {}
        }
    }
}

/// Locks a mutex, ignoring poisoning.
pub(super) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
