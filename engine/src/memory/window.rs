//! The window of a worker: the bytes of transfers in flight.
//!
//! The stage's projection contains the window. A read reserves its estimated size before it is
//! sent, and its exact size before its body is received. A read that does not fit then is refused
//! and repeated on demand, so the bound does not depend on the estimate.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that transfers may hold together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    capacity: u64,
    /// The part of the capacity that reads may use, so that room is left for writes.
    for_reads: u64,
    bytes: u64,
}

/// The part of a window that is left to writes, for a stage that also writes over a network.
const WRITE_SHARE: u64 = 4;

/// A reservation of a transfer, released on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    window: Window,
    bytes: Mutex<u64>,
}

/// The bytes that one request holds besides its body: connection, task, request and response.
const REQUEST_BYTES: u64 = 49_152;
/// The maximum bytes of received fragments of one body. Four concurrent bodies raised the measured
/// peak by up to 1.5 MB.
const FRAGMENT_BYTES: u64 = 1_000_000;

/// Returns the bytes that the transfer of `len` bytes holds.
pub(crate) fn transfer_bytes(len: u64) -> u64 {
    len.saturating_add(len.min(FRAGMENT_BYTES)).saturating_add(REQUEST_BYTES)
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the capacity, for the transfers of another stage. Writes of the previous stage that are
    /// in flight count until they end.
    pub(crate) fn set_capacity(&self, bytes: u64, has_writes: bool) {
        let mut held = self.lock();
        held.capacity = bytes;
        held.for_reads = if has_writes { bytes - bytes / WRITE_SHARE } else { bytes };
    }

    /// Reserves the bytes of a read, or returns `None` if they do not fit.
    pub(crate) fn reserve_read(&self, bytes: u64) -> Option<Permit> {
        let most = self.lock().for_reads;
        self.reserve_within(bytes, most)
    }

    /// Reserves the bytes of a write, or returns `None` if they do not fit.
    pub(crate) fn reserve_write(&self, bytes: u64) -> Option<Permit> {
        self.reserve_within(bytes, u64::MAX)
    }

    fn reserve_within(&self, bytes: u64, most: u64) -> Option<Permit> {
        let mut held = self.lock();
        if held.bytes.saturating_add(bytes) > held.capacity.min(most) {
            return None;
        }
        held.bytes += bytes;
        drop(held);
        Some(Permit { window: self.clone(), bytes: Mutex::new(bytes) })
    }
}

impl Permit {
    /// Changes the reservation. Returns false, and changes nothing, if the bytes do not fit.
    pub(crate) fn resize(&self, bytes: u64) -> bool {
        let mut own = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.window.lock();
        let others = held.bytes.saturating_sub(*own);
        if bytes > *own && others.saturating_add(bytes) > held.capacity {
            return false;
        }
        held.bytes = others + bytes;
        *own = bytes;
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let own = *self.bytes.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.window.lock();
        held.bytes = held.bytes.saturating_sub(own);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_window_never_holds_more_than_its_capacity(
            capacity in 0u64..1000,
            steps in prop::collection::vec((0u64..400, 0u8..4), 1..60),
        ) {
            let window = Window::default();
            window.set_capacity(capacity, true);
            let mut permits = Vec::new();
            for (bytes, action) in steps {
                match (action, permits.len()) {
                    (0, n) if n > 0 => drop(permits.swap_remove(bytes as usize % n)),
                    (1, n) if n > 0 => {
                        let before = window.lock().bytes;
                        let at: &Permit = &permits[bytes as usize % n];
                        let was = *at.bytes.lock().unwrap();
                        let resized = at.resize(bytes);
                        let now = if resized { before - was + bytes } else { before };
                        prop_assert_eq!(window.lock().bytes, now);
                        prop_assert!(resized || before - was + bytes > capacity);
                    }
                    _ => permits.extend(match bytes % 2 {
                        0 => window.reserve_read(bytes),
                        _ => window.reserve_write(bytes),
                    }),
                }
                prop_assert!(window.lock().bytes <= capacity);
            }
            permits.clear();
            prop_assert_eq!(window.lock().bytes, 0);
        }
    }
}
