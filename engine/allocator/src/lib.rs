//! The global allocator of programs that run tasks: mimalloc, configured to commit memory on
//! demand.
//!
//! By default, mimalloc commits its first gigabyte at once and requests huge pages for it. Each
//! thread that allocates a little then occupies about 2 MB: 8 MB in an idle process, 30 MB in one
//! that reads over a network. No memory projection includes these bytes.
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: freestone_allocator::Allocator = freestone_allocator::Allocator;
//! ```
//!
//! mimalloc retains freed memory for a short time to serve later allocations. [`EagerPurge`]
//! returns freed memory to the system at once, for code that allocates and frees much memory once.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_int, c_long};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use mimalloc::MiMalloc;

/// A mimalloc allocator for `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

/// `mi_option_arena_eager_commit`, available since version 2 of mimalloc.
const ARENA_EAGER_COMMIT: c_int = 4;

/// `mi_option_purge_delay` in milliseconds, available since version 2 of mimalloc.
const PURGE_DELAY: c_int = 15;

#[allow(unsafe_code)]
unsafe extern "C" {
    fn mi_option_set(option: c_int, value: c_long);
    fn mi_option_get(option: c_int) -> c_long;
    fn mi_collect(force: bool);
}

static CONFIGURED: AtomicBool = AtomicBool::new(false);

#[allow(unsafe_code)]
fn configure() {
    // SAFETY: sets one number in a table; the call allocates nothing, and runs before the first
    // allocation.
    unsafe { mi_option_set(ARENA_EAGER_COMMIT, 0) };
    CONFIGURED.store(true, Ordering::Relaxed);
}

/// A guard under which all threads return freed memory to the system at once.
///
/// Creating the guard also returns the memory that mimalloc retained. Cost: one system call per
/// purged range.
#[derive(Debug)]
pub struct EagerPurge(());

/// The number of live guards, and the purge delay to restore after the last one.
static GUARDS: Mutex<(usize, c_long)> = Mutex::new((0, 0));

impl EagerPurge {
    /// Starts eager purging. Has no effect if [`Allocator`] is not the global allocator.
    #[allow(unsafe_code, clippy::new_without_default)]
    pub fn new() -> EagerPurge {
        let mut guards = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the first two calls read and set one number in a table; the third returns unused
        // memory to the system.
        unsafe {
            if guards.0 == 0 {
                guards.1 = mi_option_get(PURGE_DELAY);
                mi_option_set(PURGE_DELAY, 0);
            }
            mi_collect(true);
        }
        guards.0 += 1;
        EagerPurge(())
    }
}

impl Drop for EagerPurge {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        let mut guards = GUARDS.lock().unwrap_or_else(PoisonError::into_inner);
        guards.0 -= 1;
        if guards.0 == 0 {
            // SAFETY: sets one number in a table.
            unsafe { mi_option_set(PURGE_DELAY, guards.1) };
        }
    }
}

// SAFETY: every call is forwarded to mimalloc, which implements the contract.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !CONFIGURED.load(Ordering::Relaxed) {
            configure();
        }
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !CONFIGURED.load(Ordering::Relaxed) {
            configure();
        }
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { MiMalloc.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe { MiMalloc.realloc(at, layout, size) }
    }
}
